// GroupNorm, SiLU, LET and Quantize in a single launch with nothing but its inputs and its output: what TensorRT can
// put into a plan ahead of time (kernels/tensorrt_plugin.py). fp16 -> int8 codes, or fp16 where `halves`.
//
//   y = silu((x - mean_g) * (rstd_g * gamma) + beta)          (silu left out where `activation` is 0)
//   out = (y - shift) * multiplier, as fp16, or as a code: clamp(rint(out), lowest, highest)
//
// Layouts: `linear` is (N, C, H, W), a group in one piece; `last` is (N, H, W, C) and C % 16 == 0, TensorRT's HWC8 and
// HWC16, a slice a piece: the fewest channels that are whole groups and whole 16-byte vectors. One block, or a cluster
// of eight (sm_90 and up), a piece.
// Where there are no clusters several blocks can share a piece, too: each finds the moments of all of it by itself, as
// blocks of a grid cannot wait for one another, and writes its own part.
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
// Loads that a thread has under way at once: a block asks for 32 KB, as few multiprocessors must keep the memory busy.
// Fewer where it writes, so that two blocks of layout `linear` have registers enough on one multiprocessor.
constexpr int PLUGIN_BATCH = 4, PLUGIN_WRITES = 2;

// A kernel of separate parameters on the device, of one struct for the emulation, which has the same layout.
#ifdef INTSR_EMULATE
#define INTSR_PLUGIN_CLUSTER
#define INTSR_PLUGIN_KERNEL(name, blocks, cluster) INTSR_KERNEL(name, PluginParams, PLUGIN_THREADS, blocks)
#else
#define INTSR_PLUGIN_KERNEL(name, blocks, cluster)                                                                 \
    __device__ __forceinline__ void name##_body(const PluginParams& p);                                            \
    extern "C" __global__ void __launch_bounds__(PLUGIN_THREADS, blocks) cluster name(                             \
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

// One of `parts` equal parts of a piece: `count` vectors. A thread takes every `active`-th of them, from its own number
// on: the first lies at x[start(thread)], each further one `step` on. No division on the way.
template <bool LAST>
struct Piece {
    int64_t base, step;
    int first, count, active, vectors, channels, slice;

    __device__ __forceinline__ Piece(const PluginParams& p, int parts, int part) : channels(p.channels) {
        const int group_size = p.channels / p.groups;
        slice = LAST ? p.slice : group_size;
        vectors = LAST ? p.slice / 8 : 1;
        // A row: one pixel's part of the slice, or one vector of the group.
        const int all = LAST ? p.pixels : p.pixels / 8 * group_size, most = (all + parts - 1) / parts;
        first = min(part * most, all);
        const int rows = min(most, all - first);
        count = rows * vectors;
        active = PLUGIN_THREADS / vectors * vectors;
        const int64_t picture = static_cast<int64_t>(blockIdx.z) * p.pixels * p.channels;
        base = LAST ? picture + static_cast<int64_t>(first) * p.channels + blockIdx.y * p.slice
                    : picture + (static_cast<int64_t>(blockIdx.y) * p.pixels * group_size +
                                 static_cast<int64_t>(first) * 8);
        step = LAST ? static_cast<int64_t>(active / vectors) * channels : PLUGIN_THREADS * 8;
    }

    __device__ __forceinline__ int64_t start(int thread) const {
        return base + (LAST ? static_cast<int64_t>(thread / vectors) * channels + thread % vectors * 8 : thread * 8);
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

// Of a vector's eight lanes, each its own channel or all of one.
template <bool LAST>
struct Constants {
    static constexpr int LANES = LAST ? 8 : 1;
    float mean[LANES], factor[LANES], beta[LANES], shift[LANES], multiplier[LANES];

    // channel: of the first lane. first_group: whose moments come first.
    __device__ __forceinline__ void load(const PluginParams& p, const float* moments, int channel, int first_group) {
        const int group_size = p.channels / p.groups;
#pragma unroll
        for (int j = 0; j < LANES; j++) {
            const int of = channel + j;
            // The piece of layout `linear` is one group.
            const float* group = moments + (LAST ? 2 * (of / group_size - first_group) : 0);
            mean[j] = group[0];
            factor[j] = group[1] * p.gamma[of];
            beta[j] = p.beta[of];
            shift[j] = p.shift[of];
            multiplier[j] = p.multiplier[of];
        }
    }
};

// The channel of a thread's vector in layout `linear`, kept up to date by additions as the thread goes on.
struct Channel {
    int number, inside;           // inside: vectors of the channel before this one
    int of_channel, whole, rest;  // vectors a channel; a step in whole channels and further vectors

    __device__ __forceinline__ Channel(const PluginParams& p, int first_channel, int vector) {
        of_channel = p.pixels / 8;
        whole = PLUGIN_THREADS / of_channel;
        rest = PLUGIN_THREADS - whole * of_channel;
        number = first_channel + vector / of_channel;
        inside = vector % of_channel;
    }

    // Whether the next vector is of another channel.
    __device__ __forceinline__ bool advance() {
        inside += rest;
        const int over = inside >= of_channel;
        inside -= over ? of_channel : 0;
        number += whole + over;
        return whole + over > 0;
    }
};

template <bool LAST, bool HALVES>
__device__ __forceinline__ void store(const PluginParams& p, const Constants<LAST>& c, int64_t place, uint4 vector) {
    float x[8];
    floats_from_halves(x, vector);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const int lane = LAST ? j : 0;
        float y = (x[j] - c.mean[lane]) * c.factor[lane] + c.beta[lane];
        if (p.activation) y = silu(y);
        x[j] = (y - c.shift[lane]) * c.multiplier[lane];
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

// Sums of a thread's vectors; `held` of them from `begin` on, those that this block writes first, into shared memory.
template <bool LAST>
__device__ __forceinline__ Sums read_piece(
    const PluginParams& p, const Shared& shared, const Piece<LAST>& piece, int begin) {
    Sums sums = {};
    const uint16_t* from = p.x + piece.start(threadIdx.x);
    const int end = piece.count - begin;
    // Counted from `begin`, below 0 before it.
    for (int i = static_cast<int>(threadIdx.x) - begin; i < end; i += PLUGIN_BATCH * piece.active) {
        uint4 batch[PLUGIN_BATCH];
        // All loads before the first use.
#pragma unroll
        for (int b = 0; b < PLUGIN_BATCH; b++)
            if (i + b * piece.active < end) batch[b] = *reinterpret_cast<const uint4*>(from + b * piece.step);
#pragma unroll
        for (int b = 0; b < PLUGIN_BATCH; b++) {
            const int at = i + b * piece.active;
            if (at >= end) break;
            // Read back behind the barriers of find_moments.
            if (at >= 0 && at < p.held) shared.held[at] = batch[b];
            add_vector(sums, batch[b]);
        }
        from += PLUGIN_BATCH * piece.step;
    }
    return sums;
}

template <bool LAST, bool HALVES>
__device__ __forceinline__ void write_piece(const PluginParams& p, const Shared& shared, const Piece<LAST>& piece) {
    const int thread = threadIdx.x, group_size = p.channels / p.groups, of_piece = static_cast<int>(blockIdx.y);
    Channel channel(p, of_piece * group_size, LAST ? 0 : piece.first + thread);
    Constants<LAST> constants;
    const int first = LAST ? of_piece * p.slice + thread % piece.vectors * 8 : channel.number;
    if (thread < piece.count) constants.load(p, shared.moments, first, of_piece * (p.slice / group_size));
    int64_t place = piece.start(thread);
    for (int i = thread; i < piece.count; i += PLUGIN_WRITES * piece.active) {
        uint4 batch[PLUGIN_WRITES];
#pragma unroll
        for (int b = 0; b < PLUGIN_WRITES; b++) {
            const int at = i + b * piece.active;
            if (at >= piece.count) break;
            batch[b] = at < p.held ? shared.held[at] : *reinterpret_cast<const uint4*>(p.x + place + b * piece.step);
        }
#pragma unroll
        for (int b = 0; b < PLUGIN_WRITES; b++) {
            const int at = i + b * piece.active;
            if (at >= piece.count) break;
            store<LAST, HALVES>(p, constants, place, batch[b]);
            place += piece.step;
            if (!LAST && channel.advance() && at + piece.active < piece.count)
                constants.load(p, shared.moments, channel.number, 0);
        }
    }
}

template <bool LAST, bool CLUSTER, bool HALVES>
__device__ __forceinline__ void norm_plugin(const PluginParams& p, unsigned char* memory) {
    const int parts = CLUSTER ? PLUGIN_CLUSTER : gridDim.x, part = CLUSTER ? cluster_rank() : blockIdx.x;
    const Piece<LAST> own(p, parts, part), all(p, 1, 0);
    const Piece<LAST>& seen = CLUSTER ? own : all;
    Shared shared;
    shared.held = reinterpret_cast<uint4*>(memory);
    shared.partial = reinterpret_cast<float*>(shared.held + p.held);
    shared.sums = shared.partial + PLUGIN_THREADS * 8;
    shared.moments = shared.sums + own.slice;
    Sums sums = {};
    if (threadIdx.x < own.active) sums = read_piece<LAST>(p, shared, seen, CLUSTER ? 0 : own.first * own.vectors);
    find_moments<LAST, CLUSTER>(p, shared, seen, sums, CLUSTER ? PLUGIN_CLUSTER : 1);
    if (threadIdx.x < own.active) write_piece<LAST, HALVES>(p, shared, own);
}

INTSR_PLUGIN_KERNEL(plugin_linear_codes, 2, ) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<false, false, false>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_linear_halves, 2, ) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<false, false, true>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_last_codes, 1, ) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<true, false, false>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_last_halves, 1, ) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<true, false, true>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_linear_codes_cluster, 2, INTSR_PLUGIN_CLUSTER) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<false, true, false>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_linear_halves_cluster, 2, INTSR_PLUGIN_CLUSTER) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<false, true, true>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_last_codes_cluster, 1, INTSR_PLUGIN_CLUSTER) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<true, true, false>(p, shared);
}

INTSR_PLUGIN_KERNEL(plugin_last_halves_cluster, 1, INTSR_PLUGIN_CLUSTER) {
    INTSR_SHARED(unsigned char, shared);
    norm_plugin<true, true, true>(p, shared);
}
