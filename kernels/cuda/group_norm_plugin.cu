// GroupNorm, SiLU, LET and Quantize in a single launch with nothing but its inputs and its output: what TensorRT can
// put into a plan ahead of time (kernels/tensorrt_plugin.py). fp16 -> int8 codes, or fp16 where `halves`.
//
//   y = silu((x - mean_g) * (rstd_g * gamma) + beta)          (silu left out where `activation` is 0)
//   out = (y - shift) * multiplier, as fp16, or as a code: clamp(rint(out), lowest, highest)
//
// Layouts: `linear` is (N, C, H, W), a group in one piece; `last` is (N, H, W, C) and C % 16 == 0, TensorRT's HWC8 and
// HWC16, a slice of channels (see group_norm.cu) a piece. One block, or a cluster of eight (sm_90 and up), a piece.
// x is read from memory once as far as shared memory holds it (`held` vectors a block), the rest a second time.
#include "common.cuh"

// As the plugin passes them: inputs, numbers, output. No number is negative: TensorRT has them as sizes.
struct PluginParams {
    const uint16_t* x;
    const float* gamma;
    const float* beta;
    const float* shift;
    const float* multiplier;
    int pixels, channels, groups, slice;
    int held;          // 16-byte vectors of x that a block keeps
    int epsilon_bits;  // of the fp32 number
    int activation;
    int lowest, highest;  // codes + 128
    void* out;
};

constexpr int PLUGIN_THREADS = 512, PLUGIN_CLUSTER = 8;

// A kernel of separate parameters on the device, of one struct for the emulation, which has the same layout.
#ifdef INTSR_EMULATE
#define INTSR_PLUGIN_CLUSTER
#define INTSR_PLUGIN_KERNEL(name, cluster) INTSR_KERNEL(name, PluginParams, PLUGIN_THREADS, 1)
#else
#define INTSR_PLUGIN_KERNEL(name, cluster)                                                                         \
    __device__ __forceinline__ void name##_body(const PluginParams& p);                                            \
    extern "C" __global__ void __launch_bounds__(PLUGIN_THREADS, 1) cluster name(                                  \
        const uint16_t* x, const float* gamma, const float* beta, const float* shift, const float* multiplier,     \
        int pixels, int channels, int groups, int slice, int held, int epsilon_bits, int activation, int lowest,   \
        int highest, void* out) {                                                                                  \
        name##_body({x, gamma, beta, shift, multiplier, pixels, channels, groups, slice, held, epsilon_bits,       \
                     activation, lowest, highest, out});                                                           \
    }                                                                                                              \
    __device__ __forceinline__ void name##_body(const PluginParams& p)
#if __CUDA_ARCH__ >= 900
#define INTSR_PLUGIN_CLUSTER __cluster_dims__(PLUGIN_CLUSTER, 1, 1)
#else
#define INTSR_PLUGIN_CLUSTER
#endif
#endif

// Count, sum and squares of what one thread saw, eight columns of it, around the first value of each.
struct Sums {
    float count, pivot[8], sum[8], square[8];
};

// This block's part of a piece: `count` vectors, of which vector i lies at x[place(i)].
template <bool LAST>
struct Piece {
    int64_t base;
    int count, active, vectors, channels, slice;

    __device__ __forceinline__ Piece(const PluginParams& p, int blocks, int rank) : channels(p.channels) {
        const int group_size = p.channels / p.groups;
        slice = LAST ? p.slice : group_size;
        vectors = LAST ? p.slice / 8 : 1;
        // A row: one pixel's part of the slice, or one vector of the group.
        const int all = LAST ? p.pixels : p.pixels / 8 * group_size, most = (all + blocks - 1) / blocks;
        const int first = min(rank * most, all), rows = min(most, all - first);
        count = rows * vectors;
        active = PLUGIN_THREADS / vectors * vectors;
        const int64_t picture = static_cast<int64_t>(blockIdx.z) * p.pixels * p.channels;
        base = LAST ? picture + static_cast<int64_t>(first) * p.channels + blockIdx.y * p.slice
                    : picture + static_cast<int64_t>(blockIdx.y) * p.pixels * group_size + first * 8;
    }

    __device__ __forceinline__ int64_t place(int i) const {
        return LAST ? base + static_cast<int64_t>(i / vectors) * channels + i % vectors * 8
                    : base + static_cast<int64_t>(i) * 8;
    }
};

__device__ __forceinline__ void add_vector(Sums& sums, uint4 vector) {
    float x[8];
    floats_from_halves(x, vector);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        if (sums.count == 0.0f) sums.pivot[j] = x[j];
        const float difference = x[j] - sums.pivot[j];
        sums.sum[j] += difference;
        sums.square[j] += difference * difference;
    }
    sums.count += 1.0f;
}

struct Shared {
    uint4* held;
    float* partial;  // (active threads, 8)
    float* sums;     // (slice,), of this block; `linear` uses the first
    float* moments;  // (groups of the piece, 2): mean, 1 / sqrt(variance + epsilon)
};

// The threads' values together: a channel each, or one for all of them. Ends with a barrier.
template <bool LAST>
__device__ __forceinline__ void sum_block(const Shared& shared, const float (&value)[8], int vectors, int slice) {
    const int thread = threadIdx.x, active = PLUGIN_THREADS / vectors * vectors;
    if (LAST) {
        if (thread < active)
#pragma unroll
            for (int j = 0; j < 8; j++) shared.partial[thread * 8 + j] = value[j];
        __syncthreads();
        // Eight lanes a channel; whole warps go round, so that the exchange always has all its lanes.
        for (int task = thread; task < (slice * 8 + 31) / 32 * 32; task += PLUGIN_THREADS) {
            const int channel = task / 8;
            float sum = 0.0f;
            if (channel < slice)
                for (int row = task % 8; row < active / vectors; row += 8)
                    sum += shared.partial[(row * vectors + channel / 8) * 8 + channel % 8];
            sum = sum_of_lanes<8>(sum);
            if (channel < slice && task % 8 == 0) shared.sums[channel] = sum;
        }
    } else {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; j++) sum += value[j];
        sum = sum_of_lanes<32>(sum);
        if (thread % 32 == 0) shared.partial[thread / 32] = sum;
        __syncthreads();
        if (thread == 0) {
            float total = 0.0f;
            for (int warp = 0; warp < PLUGIN_THREADS / 32; warp++) total += shared.partial[warp];
            shared.sums[0] = total;
        }
    }
    __syncthreads();
}

// Mean and rstd of every group of the piece into shared.moments. Ends with a barrier of all blocks.
template <bool LAST, bool CLUSTER>
__device__ __forceinline__ void find_moments(
    const PluginParams& p, const Shared& shared, const Piece<LAST>& piece, const Sums& sums, int blocks) {
    const int thread = threadIdx.x, group_size = p.channels / p.groups;
    const int groups = LAST ? p.slice / group_size : 1, columns = LAST ? group_size : 1;
    const int column = thread % piece.vectors * 8;
    const float numbers = static_cast<float>(p.pixels) * static_cast<float>(group_size);
    float value[8];
#pragma unroll
    for (int j = 0; j < 8; j++) value[j] = sums.sum[j] + sums.count * sums.pivot[j];
    sum_block<LAST>(shared, value, piece.vectors, piece.slice);
    sync_all<CLUSTER>();
    if (thread < groups)
        shared.moments[2 * thread] = cluster_total<CLUSTER>(shared.sums + thread * columns, columns, blocks) / numbers;
    sync_all<CLUSTER>();
    // Squares around each thread's own mean, and that mean's around the group's: nothing large cancels.
    const float share = 1.0f / fmaxf(sums.count, 1.0f);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float mean = shared.moments[LAST ? 2 * ((column + j) / group_size) : 0];
        const float own = sums.sum[j] * share, step = sums.pivot[j] + own - mean;
        value[j] = fmaxf(sums.square[j] - sums.sum[j] * own, 0.0f) + sums.count * step * step;
    }
    sum_block<LAST>(shared, value, piece.vectors, piece.slice);
    sync_all<CLUSTER>();
    if (thread < groups) {
        const float variance = cluster_total<CLUSTER>(shared.sums + thread * columns, columns, blocks) / numbers;
        shared.moments[2 * thread + 1] = 1.0f / sqrtf(variance + float_from_bits(p.epsilon_bits));
    }
    // No block of the cluster leaves while another reads its sums.
    sync_all<CLUSTER>();
}

struct Constants {
    float mean[8], factor[8], beta[8], shift[8], multiplier[8];
};

// channel: of the first lane; step: 1 where the lanes are eight channels, 0 where all are one.
template <bool LAST>
__device__ __forceinline__ Constants constants_of(const PluginParams& p, const float* moments, int channel, int first) {
    Constants c;
    const int group_size = p.channels / p.groups;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const int of = LAST ? channel + j : channel;
        const float* group = moments + 2 * (of / group_size - first);
        c.mean[j] = group[0];
        c.factor[j] = group[1] * p.gamma[of];
        c.beta[j] = p.beta[of];
        c.shift[j] = p.shift[of];
        c.multiplier[j] = p.multiplier[of];
    }
    return c;
}

template <bool HALVES>
__device__ __forceinline__ void store(const PluginParams& p, const Constants& c, int64_t place, uint4 vector) {
    float x[8];
    floats_from_halves(x, vector);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float y = (x[j] - c.mean[j]) * c.factor[j] + c.beta[j];
        if (p.activation) y = silu(y);
        x[j] = (y - c.shift[j]) * c.multiplier[j];
    }
    if (HALVES) {
        const uint4 out = {pack_halves(x[0], x[1]), pack_halves(x[2], x[3]), pack_halves(x[4], x[5]),
                           pack_halves(x[6], x[7])};
        *reinterpret_cast<uint4*>(static_cast<uint16_t*>(p.out) + place) = out;
    } else {
        uint32_t words[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < 8; j++) words[j / 4] |= code_bits(rintf(x[j]), p.lowest - 128, p.highest - 128) << (j % 4 * 8);
        *reinterpret_cast<uint2*>(static_cast<int8_t*>(p.out) + place) = make_uint2(words[0], words[1]);
    }
}

template <bool LAST, bool CLUSTER, bool HALVES>
__device__ __forceinline__ void norm_plugin(const PluginParams& p, unsigned char* memory) {
    const int blocks = CLUSTER ? PLUGIN_CLUSTER : 1, rank = CLUSTER ? static_cast<int>(cluster_rank()) : 0;
    const int thread = threadIdx.x, group_size = p.channels / p.groups;
    const Piece<LAST> piece(p, blocks, rank);
    Shared shared;
    shared.held = reinterpret_cast<uint4*>(memory);
    shared.partial = reinterpret_cast<float*>(shared.held + p.held);
    shared.sums = shared.partial + PLUGIN_THREADS * 8;
    shared.moments = shared.sums + piece.slice;
    Sums sums = {};
    if (thread < piece.active)
        for (int i = thread; i < piece.count; i += piece.active) {
            const uint4 vector = *reinterpret_cast<const uint4*>(p.x + piece.place(i));
            // Read back by the thread that wrote it: no barrier.
            if (i < p.held) shared.held[i] = vector;
            add_vector(sums, vector);
        }
    find_moments<LAST, CLUSTER>(p, shared, piece, sums, blocks);
    if (thread >= piece.active) return;
    const int first_group = LAST ? static_cast<int>(blockIdx.y) * (p.slice / group_size) : static_cast<int>(blockIdx.y);
    Constants constants;
    if (LAST) {
        const int channel = static_cast<int>(blockIdx.y) * p.slice + thread % piece.vectors * 8;
        constants = constants_of<LAST>(p, shared.moments, channel, first_group);
    }
    const int64_t start = static_cast<int64_t>(blockIdx.z) * p.pixels * p.channels;
    for (int i = thread; i < piece.count; i += piece.active) {
        const int64_t place = piece.place(i);
        if (!LAST) {
            const int channel = static_cast<int>((place - start) / p.pixels);
            constants = constants_of<LAST>(p, shared.moments, channel, first_group);
        }
        const uint4 vector = i < p.held ? shared.held[i] : *reinterpret_cast<const uint4*>(p.x + place);
        store<HALVES>(p, constants, place, vector);
    }
}

INTSR_PLUGIN_KERNEL(plugin_linear_codes, ) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<false, false, false>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_linear_halves, ) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<false, false, true>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_last_codes, ) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<true, false, false>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_last_halves, ) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<true, false, true>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_linear_codes_cluster, INTSR_PLUGIN_CLUSTER) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<false, true, false>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_linear_halves_cluster, INTSR_PLUGIN_CLUSTER) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<false, true, true>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_last_codes_cluster, INTSR_PLUGIN_CLUSTER) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<true, true, false>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_last_halves_cluster, INTSR_PLUGIN_CLUSTER) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<true, true, true>(p, shared);
}
