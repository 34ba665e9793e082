// What times are taken with.
#include "common.cuh"

// Reads all and keeps next to nothing: afterwards caches hold `words`, and none of it has to be written back.
struct ReadParams {
    const uint4* words;
    uint32_t* out;  // (blocks x 8,): sums by warp, modulo 2^32
    int64_t count;  // of 16 bytes
};

INTSR_KERNEL(read_words, ReadParams, 256, 4) {
    uint32_t sum = 0;
    const int64_t step = static_cast<int64_t>(gridDim.x) * 256;
#pragma unroll 4
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; i < p.count; i += step) {
        const uint4 words = p.words[i];
        sum += words.x + words.y + words.z + words.w;
    }
    sum = sum_of_lanes<32>(sum);
    if (threadIdx.x % 32 == 0) p.out[blockIdx.x * 8 + threadIdx.x / 32] = sum;
}
