// GroupNorm, SiLU, LET and Quantize in one operation: fp16 NHWC -> int8 NHWC, C % 8 == 0.
//
//   y = silu((x - mean_g) * (rstd_g * gamma) + beta)          (silu left out where `activation` is 0)
//   code = clamp(rint((y - shift) * multiplier) + zero_point, lowest, highest),   multiplier = 1 / (s * scale)
//
// Three ways, one arithmetic:
//   group_norm_block    one block a slice of channels, the slice held in shared memory: x is read once
//   group_norm_cluster  the same over a cluster's shared memory (sm_90 and up), for larger pictures
//   group_norm_sums, _finish, _apply   any size: x is read twice
// A slice is the least number of channels that is whole groups and whole 16-byte vectors.
#include "common.cuh"

struct NormParams {
    const uint16_t* x;
    int8_t* out;
    const float* gamma;
    const float* beta;
    const float* shift;
    const float* multiplier;
    float* partial;  // (N, chunks, 2, C): sums of x - pivot and of its square; pivot: the first pixel's value
    float* moments;  // (N, groups, 2): mean and 1 / sqrt(variance + epsilon)
    int pixels, channels, groups, slice, chunks;
    float epsilon;
    int activation, zero_point, lowest, highest;
};

constexpr int NORM_THREADS = 512, SUM_THREADS = 256, SUM_SLAB = 256;

struct ChannelConstants {
    float mean[8], factor[8], beta[8], shift[8], multiplier[8];
};

__device__ __forceinline__ uint32_t quantized(const NormParams& p, const ChannelConstants& c, float x, int i) {
    float y = (x - c.mean[i]) * c.factor[i] + c.beta[i];
    if (p.activation) y = silu(y);
    const float code = rintf((y - c.shift[i]) * c.multiplier[i]) + static_cast<float>(p.zero_point);
    return code_bits(code, p.lowest, p.highest);
}

__device__ __forceinline__ uint2 quantized_vector(const NormParams& p, const ChannelConstants& c, uint4 vector) {
    float x[8];
    floats_from_halves(x, vector);
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++) words[i / 4] |= quantized(p, c, x[i], i) << (i % 4 * 8);
    return make_uint2(words[0], words[1]);
}

// moments: mean and rstd of each group, `first_group` being that of moments[0].
__device__ __forceinline__ ChannelConstants channel_constants(
    const NormParams& p, const float* moments, int first_group, int channel) {
    ChannelConstants c;
    const int group_size = p.channels / p.groups;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float* of_group = moments + 2 * ((channel + i) / group_size - first_group);
        c.mean[i] = of_group[0];
        c.factor[i] = of_group[1] * p.gamma[channel + i];
        c.beta[i] = p.beta[channel + i];
        c.shift[i] = p.shift[channel + i];
        c.multiplier[i] = p.multiplier[channel + i];
    }
    return c;
}

// Shared memory of the two kernels that hold their part of the picture.
struct Held {
    uint4* vectors;   // (rows, slice / 8)
    float* partial;   // (active threads, 8)
    float* sums;      // (slice,): of this block
    float* moments;   // (groups of the slice, 2)
};

// Sum of `of(value, channel of the slice)` a channel over the block's rows; ends with a barrier.
template <typename Of>
__device__ __forceinline__ void sum_channels(const Held& held, int rows, int slice, Of of) {
    const int vectors = slice / 8, active = NORM_THREADS / vectors * vectors, thread = threadIdx.x;
    if (thread < active) {
        float sums[8] = {};
        for (int i = thread; i < rows * vectors; i += active) {
            float x[8];
            floats_from_halves(x, held.vectors[i]);
#pragma unroll
            for (int j = 0; j < 8; j++) sums[j] += of(x[j], thread % vectors * 8 + j);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) held.partial[thread * 8 + j] = sums[j];
    }
    __syncthreads();
    // Eight lanes a channel; whole warps go round, so that the exchange always has all its lanes.
    for (int task = thread; task < (slice * 8 + 31) / 32 * 32; task += NORM_THREADS) {
        const int channel = task / 8;
        float sum = 0.0f;
        if (channel < slice)
            for (int row = task % 8; row < active / vectors; row += 8)
                sum += held.partial[(row * vectors + channel / 8) * 8 + channel % 8];
        sum = sum_of_lanes<8>(sum);
        if (channel < slice && task % 8 == 0) held.sums[channel] = sum;
    }
    __syncthreads();
}

// Grid: (blocks of a cluster or 1, slices, N).
template <bool CLUSTER>
__device__ __forceinline__ void norm_held(const NormParams& p, unsigned char* shared) {
    const int blocks = CLUSTER ? gridDim.x : 1, rank = CLUSTER ? static_cast<int>(cluster_rank()) : 0;
    const int most_rows = (p.pixels + blocks - 1) / blocks, first_row = min(rank * most_rows, p.pixels);
    const int rows = min(most_rows, p.pixels - first_row), vectors = p.slice / 8, thread = threadIdx.x;
    const int group_size = p.channels / p.groups, groups = p.slice / group_size, first_channel = blockIdx.y * p.slice;
    Held held;
    held.vectors = reinterpret_cast<uint4*>(shared);
    held.partial = reinterpret_cast<float*>(held.vectors + most_rows * vectors);
    held.sums = held.partial + NORM_THREADS * 8;
    held.moments = held.sums + p.slice;
    const int64_t base = (static_cast<int64_t>(blockIdx.z) * p.pixels + first_row) * p.channels + first_channel;
    for (int i = thread; i < rows * vectors; i += NORM_THREADS) {
        const int64_t place = base + static_cast<int64_t>(i / vectors) * p.channels + i % vectors * 8;
        held.vectors[i] = *reinterpret_cast<const uint4*>(p.x + place);
    }
    __syncthreads();
    const float count = static_cast<float>(p.pixels) * static_cast<float>(group_size);
    // The variance around the mean, as the values are at hand: nothing cancels.
    sum_channels(held, rows, p.slice, [](float x, int) { return x; });
    sync_all<CLUSTER>();
    if (thread < groups)
        held.moments[2 * thread] = cluster_total<CLUSTER>(held.sums + thread * group_size, group_size, blocks) / count;
    sync_all<CLUSTER>();
    sum_channels(held, rows, p.slice, [&](float x, int channel) {
        const float difference = x - held.moments[2 * (channel / group_size)];
        return difference * difference;
    });
    sync_all<CLUSTER>();
    if (thread < groups) {
        const float variance = cluster_total<CLUSTER>(held.sums + thread * group_size, group_size, blocks) / count;
        held.moments[2 * thread + 1] = 1.0f / sqrtf(variance + p.epsilon);
    }
    // No block of the cluster leaves while another reads its sums.
    sync_all<CLUSTER>();
    const int active = NORM_THREADS / vectors * vectors;
    if (thread >= active) return;
    const int channel = first_channel + thread % vectors * 8;
    const ChannelConstants constants = channel_constants(p, held.moments, first_channel / group_size, channel);
    for (int i = thread; i < rows * vectors; i += active) {
        const int64_t place = base + static_cast<int64_t>(i / vectors) * p.channels + i % vectors * 8;
        *reinterpret_cast<uint2*>(p.out + place) = quantized_vector(p, constants, held.vectors[i]);
    }
}

INTSR_KERNEL(group_norm_block, NormParams, NORM_THREADS, 1) {
    INTSR_SHARED(unsigned char, shared);
    norm_held<false>(p, shared);
}

INTSR_KERNEL(group_norm_cluster, NormParams, NORM_THREADS, 1) {
    INTSR_SHARED(unsigned char, shared);
    norm_held<true>(p, shared);
}

// Grid: (chunks, slabs of 256 channels, N). A warp reads 512 bytes of a pixel at once. Shared: 8 x 256 x 2 floats.
INTSR_KERNEL(group_norm_sums, NormParams, SUM_THREADS, 4) {
    INTSR_SHARED(float, shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, channel = blockIdx.y * SUM_SLAB + lane * 8;
    const int rows = (p.pixels + p.chunks - 1) / p.chunks;
    const int end = min((static_cast<int>(blockIdx.x) + 1) * rows, p.pixels);
    float sums[8] = {}, squares[8] = {};
    if (channel < p.channels) {
        const uint16_t* x = p.x + static_cast<int64_t>(blockIdx.z) * p.pixels * p.channels + channel;
        // Around each channel's first value: a mean that is large against the spread costs no digits.
        float pivot[8];
        floats_from_halves(pivot, *reinterpret_cast<const uint4*>(x));
#pragma unroll 4
        for (int pixel = static_cast<int>(blockIdx.x) * rows + warp; pixel < end; pixel += SUM_THREADS / 32) {
            float values[8];
            floats_from_halves(values, *reinterpret_cast<const uint4*>(x + static_cast<int64_t>(pixel) * p.channels));
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float difference = values[i] - pivot[i];
                sums[i] += difference;
                squares[i] += difference * difference;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        // Neighbouring lanes write neighbouring words: no bank conflicts.
        shared[(warp * 8 + i) * 32 + lane] = sums[i];
        shared[2048 + (warp * 8 + i) * 32 + lane] = squares[i];
    }
    __syncthreads();
    const int mine = blockIdx.y * SUM_SLAB + threadIdx.x;
    if (mine >= p.channels) return;
    float sum = 0.0f, square = 0.0f;
    for (int from = 0; from < SUM_THREADS / 32; from++) {
        const int place = (from * 8 + threadIdx.x % 8) * 32 + threadIdx.x / 8;
        sum += shared[place];
        square += shared[2048 + place];
    }
    float* out = p.partial + (static_cast<int64_t>(blockIdx.z) * p.chunks + blockIdx.x) * 2 * p.channels + mine;
    out[0] = sum;
    out[p.channels] = square;
}

// Grid: (groups, N), one warp each; in fp64, as it is little. Order is fixed: the same picture gives the same codes.
INTSR_KERNEL(group_norm_finish, NormParams, 32, 1) {
    const int group_size = p.channels / p.groups, group = blockIdx.x, picture = blockIdx.y;
    const double pixels = p.pixels;
    double total = 0.0, total_square = 0.0;  // of x - pivot of the group's first channel
    const uint16_t* first_pixel = p.x + static_cast<int64_t>(picture) * p.pixels * p.channels;
    const double origin = float_from_half(first_pixel[group * group_size]);
    for (int task = threadIdx.x; task < group_size * p.chunks; task += 32) {
        const int channel = group * group_size + task % group_size, chunk = task / group_size;
        const float* in = p.partial + (static_cast<int64_t>(picture) * p.chunks + chunk) * 2 * p.channels + channel;
        const int rows = (p.pixels + p.chunks - 1) / p.chunks;
        const double count = max(min(rows, p.pixels - chunk * rows), 0);
        const double step = float_from_half(first_pixel[channel]) - origin, sum = in[0];
        total += sum + count * step;
        total_square += in[p.channels] + 2 * step * sum + count * step * step;
    }
    total = sum_of_lanes<32>(total);
    total_square = sum_of_lanes<32>(total_square);
    if (threadIdx.x != 0) return;
    const double mean = total / (pixels * group_size);
    const double variance = fmax(total_square / (pixels * group_size) - mean * mean, 0.0);
    float* out = p.moments + 2 * (picture * p.groups + group);
    out[0] = static_cast<float>(mean + origin);
    out[1] = static_cast<float>(1.0 / sqrt(variance + static_cast<double>(p.epsilon)));
}

// Grid: (chunks, slabs of 256 channels, N).
INTSR_KERNEL(group_norm_apply, NormParams, SUM_THREADS, 2) {
    const int channel = blockIdx.y * SUM_SLAB + threadIdx.x % 32 * 8;
    if (channel >= p.channels) return;
    const int rows = (p.pixels + p.chunks - 1) / p.chunks;
    const int end = min((static_cast<int>(blockIdx.x) + 1) * rows, p.pixels);
    const float* moments = p.moments + static_cast<int64_t>(blockIdx.z) * p.groups * 2;
    const ChannelConstants constants = channel_constants(p, moments, 0, channel);
    const int64_t base = static_cast<int64_t>(blockIdx.z) * p.pixels * p.channels + channel;
#pragma unroll 2
    for (int pixel = static_cast<int>(blockIdx.x) * rows + threadIdx.x / 32; pixel < end; pixel += SUM_THREADS / 32) {
        const int64_t place = base + static_cast<int64_t>(pixel) * p.channels;
        const uint4 vector = *reinterpret_cast<const uint4*>(p.x + place);
        *reinterpret_cast<uint2*>(p.out + place) = quantized_vector(p, constants, vector);
    }
}
