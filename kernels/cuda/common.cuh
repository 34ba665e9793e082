// What every kernel file uses. fp16 travels as its 16 bits; arithmetic is fp32, rounded as NumPy does where the
// intrinsics say _rn (no contraction into FMA), so that a kernel and its reference agree to the last bit.
// The same sources compile for the CPU with -DINTSR_EMULATE (emulate.h), which checks all but the PTX below.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef INTSR_EMULATE
#include "emulate.h"
#else
#include <cuda_fp16.h>

// One struct by value is all a kernel takes: the launcher passes one pointer.
#define INTSR_KERNEL(name, Params, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p)
// Dynamic shared memory only.
#define INTSR_SHARED(Type, name)                                   \
    extern __shared__ __align__(128) unsigned char intsr_shared[]; \
    Type* name = reinterpret_cast<Type*>(intsr_shared)

__device__ __forceinline__ float float_from_half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

__device__ __forceinline__ uint16_t half_from_float(float value) { return __half_as_ushort(__float2half_rn(value)); }

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Clusters exist from sm_90 on; the launcher never starts a cluster kernel elsewhere.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_sync() {
    // Not .aligned: a warp may come here in parts, out of a branch.
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
}

// A float at the same place of another block's shared memory.
__device__ __forceinline__ float cluster_load(const float* shared, unsigned rank) {
    uint32_t remote;
    float value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(remote) : "r"(shared_address(shared)), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];\n" : "=f"(value) : "r"(remote) : "memory");
    return value;
}
#else
__device__ __forceinline__ unsigned cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_sync() { __trap(); }
__device__ __forceinline__ float cluster_load(const float*, unsigned) { return 0.0f; }
#endif
#endif

template <bool CLUSTER>
__device__ __forceinline__ void sync_all() {
    if (CLUSTER)
        cluster_sync();
    else
        __syncthreads();
}

// Sums of one group over all blocks that hold a part of it.
template <bool CLUSTER>
__device__ __forceinline__ float cluster_total(const float* sums, int count, int blocks) {
    float total = 0.0f;
    for (int index = 0; index < count; index++)
        for (int rank = 0; rank < blocks; rank++) total += CLUSTER ? cluster_load(sums + index, rank) : sums[index];
    return total;
}

constexpr unsigned FULL_WARP = 0xffffffffu;

// Eight fp16 of one 16-byte load.
__device__ __forceinline__ void floats_from_halves(float (&values)[8], uint4 vector) {
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        values[2 * i] = float_from_half(static_cast<uint16_t>(words[i] & 0xffff));
        values[2 * i + 1] = float_from_half(static_cast<uint16_t>(words[i] >> 16));
    }
}

__device__ __forceinline__ float float_from_bits(int bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

__device__ __forceinline__ float silu(float y) { return __fdividef(y, 1.0f + __expf(-fmaxf(y, -80.0f))); }

// The lowest byte of a rounded number within [lowest, highest]. In fp32 so far: a zero-point may lie far outside int8.
__device__ __forceinline__ uint32_t code_bits(float code, int lowest, int highest) {
    const float inside = fminf(fmaxf(code, static_cast<float>(lowest)), static_cast<float>(highest));
    return static_cast<uint32_t>(static_cast<int>(inside)) & 0xff;
}

__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
    return half_from_float(low) | static_cast<uint32_t>(half_from_float(high)) << 16;
}

// Sum over aligned runs of `width` lanes (a power of two), the same in each of them; every lane takes part.
template <int width, typename Number>
__device__ __forceinline__ Number sum_of_lanes(Number value) {
#pragma unroll
    for (int step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(FULL_WARP, value, step);
    return value;
}
