// int8 products as implicit GEMM: out (pixels, Cout) fp16 = scale * (codes . weights) + bias + residual.
//
//   codes   int8 (N, H, W, Cin)           weights int8 (Cout, kh, kw, Cin)          Cin % 16 == 0, Cout % 8 == 0
//   pad     int8 (Cin,)  the code that a padded pixel holds: with LET and a zero-point it differs by channel
//   out = half(((float(acc) * scale[co]) + bias[co]) + residual), each step rounded to fp32 as in the reference
//
// A block makes BM x BN outputs, 64 bytes of K a step, three steps in flight (cp.async). Shared rows are 64 bytes in
// four 16-byte chunks; chunk c of row r lies at c ^ (r / 2 % 4): no bank conflicts in stores or ldmatrix.
#include "common.cuh"

#ifdef INTSR_EMULATE
#include <deque>
#include <map>
#include <vector>

struct Copy {
    unsigned char* to;
    unsigned char bytes[16];
};

// Of this thread: groups that are under way, and last the one that is not closed yet.
inline std::deque<std::vector<Copy>>& copy_groups() {
    static std::map<const void*, std::deque<std::vector<Copy>>> of_threads;
    auto& groups = of_threads[emulation::state.current];
    if (groups.empty()) groups.emplace_back();
    return groups;
}

inline void copy_async_16(void* shared, const void* global, bool valid) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0) emulation::fail("a misaligned copy into shared memory");
    if (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0) emulation::fail("a misaligned copy from memory");
    Copy copy{static_cast<unsigned char*>(shared), {}};
    if (valid) std::memcpy(copy.bytes, global, 16);
    copy_groups().back().push_back(copy);
}

inline void copy_async_commit() { copy_groups().emplace_back(); }

// A copy lands as late as it may: what waits for it too little is found.
template <int pending>
void copy_async_wait() {
    auto& groups = copy_groups();
    while (groups.size() > pending + 1) {
        for (const auto& copy : groups.front()) std::memcpy(copy.to, copy.bytes, 16);
        groups.pop_front();
    }
}

inline void load_matrices(uint32_t (&r)[4], const void* row) {
    auto& warp = emulation::warp();
    const unsigned lane = emulation::lane(), turn = warp.turn[lane]++ % 2;
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::fail("a misaligned ldmatrix row");
    warp.values[turn][lane] = reinterpret_cast<uint64_t>(row);
    emulation::meet_warp();
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        const auto* address = reinterpret_cast<const unsigned char*>(warp.values[turn][matrix * 8 + lane / 4]);
        std::memcpy(&r[matrix], address + lane % 4 * 4, 4);
    }
}

inline void multiply_add_s8(int (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    auto& warp = emulation::warp();
    const unsigned lane = emulation::lane(), turn = warp.turn[lane]++ % 2;
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    warp.values[turn][lane] = reinterpret_cast<uint64_t>(mine);
    emulation::meet_warp();
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 32; k++) {
            const auto* of_a = reinterpret_cast<const uint32_t*>(warp.values[turn][row % 8 * 4 + k % 16 / 4]);
            const auto* of_b = reinterpret_cast<const uint32_t*>(warp.values[turn][column * 4 + k % 16 / 4]);
            acc[i] += static_cast<int8_t>(of_a[row / 8 + k / 16 * 2] >> k % 4 * 8) *
                      static_cast<int8_t>(of_b[4 + k / 16] >> k % 4 * 8);
        }
    }
    emulation::meet_warp();
}
#else
// 16 bytes from global to shared memory without passing registers; zeros where `valid` is false (nothing is read).
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Until at most `pending` of this thread's groups are under way.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16-bit elements (8 rows of 16 bytes); lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// acc (16x8 int32) += A (16x32 int8, rows) B (32x8 int8, columns). Source: PTX ISA, mma.m16n8k32.
__device__ __forceinline__ void multiply_add_s8(int (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

struct ProductParams {
    const int8_t* codes;
    const int8_t* weights;
    const int8_t* pad;
    const float* scale;
    const float* bias;
    const uint16_t* residual;  // fp16 (pixels, Cout) or null
    uint16_t* out;
    int pixels, height, width, channels_in, channels_out;
    int kernel_height, kernel_width, stride, pad_top, pad_left, out_height, out_width;
};

constexpr int STEP_BYTES = 64, CHUNKS = STEP_BYTES / 16, STAGES = 3;

__device__ __forceinline__ int chunk_offset(int row, int chunk) {
    return row * STEP_BYTES + ((chunk ^ (row >> 1 & 3)) << 4);
}

template <int BM, int BN, int THREADS, bool CONVOLUTION>
struct Product {
    static constexpr int WARPS_N = BN / 32, WARPS_M = THREADS / 32 / WARPS_N, WM = BM / WARPS_M, TILES_M = WM / 16;
    static constexpr int A_LOADS = BM * CHUNKS / THREADS, B_LOADS = BN * CHUNKS / THREADS;
    static constexpr int STAGE_BYTES = (BM + BN) * STEP_BYTES, ROWS_A_PASS = THREADS / CHUNKS;

    const ProductParams& p;
    const int chunk = threadIdx.x % CHUNKS, first_row = threadIdx.x / CHUNKS;
    const int pixel_0 = blockIdx.x * BM, channel_0 = blockIdx.y * BN;
    // Of each row this thread loads: its picture's first pixel, and the window's top left corner.
    int base[A_LOADS], top[A_LOADS], left[A_LOADS];
    // The next step to load.
    int tap_y = 0, tap_x = 0, channel = 0;

    __device__ __forceinline__ explicit Product(const ProductParams& params) : p(params) {
#pragma unroll
        for (int i = 0; i < A_LOADS; i++) {
            const int pixel = pixel_0 + first_row + i * ROWS_A_PASS;
            if (CONVOLUTION) {
                const int row = pixel / p.out_width, picture = row / p.out_height;
                base[i] = picture * p.height * p.width;
                top[i] = (row - picture * p.out_height) * p.stride - p.pad_top;
                left[i] = (pixel - row * p.out_width) * p.stride - p.pad_left;
            } else {
                base[i] = pixel;
                top[i] = left[i] = 0;
            }
        }
    }

    __device__ __forceinline__ void load_step(unsigned char* stage) {
        const int from = channel + chunk * 16;
        const bool inside = from < p.channels_in;
#pragma unroll
        for (int i = 0; i < A_LOADS; i++) {
            const int row = first_row + i * ROWS_A_PASS;
            const int8_t* source = p.codes + static_cast<int64_t>(base[i]) * p.channels_in + from;
            if (CONVOLUTION) {
                const int y = top[i] + tap_y, x = left[i] + tap_x;
                const bool padded = y < 0 || y >= p.height || x < 0 || x >= p.width;
                source = padded ? p.pad + from : source + static_cast<int64_t>(y * p.width + x) * p.channels_in;
            }
            copy_async_16(stage + chunk_offset(row, chunk), source, inside && pixel_0 + row < p.pixels);
        }
        const int taps = p.kernel_height * p.kernel_width, tap = tap_y * p.kernel_width + tap_x;
#pragma unroll
        for (int i = 0; i < B_LOADS; i++) {
            const int row = first_row + i * ROWS_A_PASS, out = channel_0 + row;
            const int8_t* source = p.weights + (static_cast<int64_t>(out) * taps + tap) * p.channels_in + from;
            copy_async_16(stage + BM * STEP_BYTES + chunk_offset(row, chunk), source, inside && out < p.channels_out);
        }
        channel += STEP_BYTES;
        if (channel >= p.channels_in) {
            channel = 0;
            if (++tap_x == p.kernel_width) tap_x = 0, tap_y++;
        }
    }

    __device__ __forceinline__ void multiply(int (&acc)[TILES_M][4][4], const unsigned char* stage) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int row_a = warp / WARPS_N * WM + lane % 16, row_b = warp % WARPS_N * 32 + lane % 8 + lane / 16 * 8;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t b[2][4];
#pragma unroll
            for (int n = 0; n < 2; n++)
                load_matrices(b[n], stage + BM * STEP_BYTES + chunk_offset(row_b + n * 16, half * 2 + lane / 8 % 2));
#pragma unroll
            for (int m = 0; m < TILES_M; m++) {
                uint32_t a[4];
                load_matrices(a, stage + chunk_offset(row_a + m * 16, half * 2 + lane / 16));
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const uint32_t* of_tile = &b[n / 2][n % 2 * 2];
                    multiply_add_s8(acc[m][n], a, of_tile[0], of_tile[1]);
                }
            }
        }
    }

    __device__ __forceinline__ void store(const int (&acc)[TILES_M][4][4]) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const int out = channel_0 + warp % WARPS_N * 32 + n * 8 + lane % 4 * 2;
            if (out >= p.channels_out) continue;
            const float2 scale = *reinterpret_cast<const float2*>(p.scale + out);
            const float2 bias = *reinterpret_cast<const float2*>(p.bias + out);
#pragma unroll
            for (int m = 0; m < TILES_M * 2; m++) {
                const int pixel = pixel_0 + warp / WARPS_N * WM + m * 8 + lane / 4;
                if (pixel >= p.pixels) continue;
                const int64_t place = static_cast<int64_t>(pixel) * p.channels_out + out;
                const int* sums = &acc[m / 2][n][m % 2 * 2];
                float low = __fadd_rn(__fmul_rn(static_cast<float>(sums[0]), scale.x), bias.x);
                float high = __fadd_rn(__fmul_rn(static_cast<float>(sums[1]), scale.y), bias.y);
                if (p.residual != nullptr) {
                    const uint32_t words = *reinterpret_cast<const uint32_t*>(p.residual + place);
                    low = __fadd_rn(low, float_from_half(static_cast<uint16_t>(words & 0xffff)));
                    high = __fadd_rn(high, float_from_half(static_cast<uint16_t>(words >> 16)));
                }
                *reinterpret_cast<uint32_t*>(p.out + place) = pack_halves(low, high);
            }
        }
    }

    __device__ __forceinline__ void run(unsigned char* shared) {
        const int steps = p.kernel_height * p.kernel_width * ((p.channels_in + STEP_BYTES - 1) / STEP_BYTES);
        int acc[TILES_M][4][4] = {};
#pragma unroll
        for (int stage = 0; stage < STAGES - 1; stage++) {
            if (stage < steps) load_step(shared + stage * STAGE_BYTES);
            copy_async_commit();
        }
        int reading = 0, writing = STAGES - 1;
        for (int step = 0; step < steps; step++) {
            copy_async_wait<STAGES - 2>();
            // Everyone's copies have landed, and everyone has left the stage that is overwritten next.
            __syncthreads();
            if (step + STAGES - 1 < steps) load_step(shared + writing * STAGE_BYTES);
            copy_async_commit();
            multiply(acc, shared + reading * STAGE_BYTES);
            reading = reading + 1 == STAGES ? 0 : reading + 1;
            writing = writing + 1 == STAGES ? 0 : writing + 1;
        }
        copy_async_wait<0>();
        store(acc);
    }
};

INTSR_KERNEL(int8_gemm_128, ProductParams, 256, 2) {
    INTSR_SHARED(unsigned char, shared);
    Product<128, 128, 256, false>(p).run(shared);
}

INTSR_KERNEL(int8_gemm_64, ProductParams, 128, 4) {
    INTSR_SHARED(unsigned char, shared);
    Product<64, 64, 128, false>(p).run(shared);
}

INTSR_KERNEL(int8_conv_128, ProductParams, 256, 2) {
    INTSR_SHARED(unsigned char, shared);
    Product<128, 128, 256, true>(p).run(shared);
}

INTSR_KERNEL(int8_conv_64, ProductParams, 128, 4) {
    INTSR_SHARED(unsigned char, shared);
    Product<64, 64, 128, true>(p).run(shared);
}
