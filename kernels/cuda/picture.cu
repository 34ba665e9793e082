// Pictures to tiles and back. Every result equals the CPU path's to the last bit, but for adain's statistics.
#include "common.cuh"

constexpr int PICTURE_THREADS = 256, TILE_WIDTH = 64, TILE_HEIGHT = 32;

// Four 8-bit RGB pixels are three words.
__device__ __forceinline__ void store_pixels(uint8_t* out, const uint32_t (&bytes)[12], int count, bool vector) {
    if (vector) {
#pragma unroll
        for (int word = 0; word < 3; word++) {
            const uint32_t* b = bytes + word * 4;
            reinterpret_cast<uint32_t*>(out)[word] = b[0] | b[1] << 8 | b[2] << 16 | b[3] << 24;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 12; i++)
        if (i < count * 3) out[i] = static_cast<uint8_t>(bytes[i]);
}

__device__ __forceinline__ float unit_from_byte(uint32_t byte) { return __fdiv_rn(static_cast<float>(byte), 255.0f); }

__device__ __forceinline__ uint16_t model_input_from_byte(uint32_t byte) {
    return half_from_float(__fsub_rn(__fmul_rn(unit_from_byte(byte), 2.0f), 1.0f));
}

// ---- Enlarge with Pillow's 8-bit arithmetic: along x, rounded and clipped to 8 bits, then along y. --------------
struct ResizeParams {
    const uint8_t* pixels;   // (H, W, 3)
    uint8_t* out;            // (out_height, out_width, 3)
    const int* first_x;      // (out_width,) first pixel of each window
    const int* taps_x;       // (out_width, taps) in steps of 2**-22
    const int* first_y;
    const int* taps_y;
    int height, width, out_height, out_width, taps, rows;  // rows: of shared memory, at least those a block needs
};

__device__ __forceinline__ uint32_t byte_from_sum(int sum) {
    return static_cast<uint32_t>(min(max(sum >> 22, 0), 255));
}

// Grid: (tiles along x, tiles along y). Shared: rows x TILE_WIDTH x 3 bytes.
INTSR_KERNEL(resize_pixels, ResizeParams, PICTURE_THREADS, 4) {
    INTSR_SHARED(uint8_t, between);
    const int left = blockIdx.x * TILE_WIDTH, top = blockIdx.y * TILE_HEIGHT;
    const int bottom = min(top + TILE_HEIGHT, p.out_height) - 1;
    const int first_row = p.first_y[top], rows = min(p.first_y[bottom] + p.taps, p.height) - first_row;
    for (int i = threadIdx.x; i < rows * TILE_WIDTH; i += PICTURE_THREADS) {
        const int x = left + i % TILE_WIDTH;
        if (x >= p.out_width) continue;
        const uint8_t* row = p.pixels + static_cast<int64_t>(first_row + i / TILE_WIDTH) * p.width * 3;
        const int first = p.first_x[x];
        int sums[3] = {1 << 21, 1 << 21, 1 << 21};
        for (int tap = 0; tap < p.taps; tap++) {
            // Taps past the edge are 0: any pixel does.
            const int from = min(first + tap, p.width - 1) * 3, factor = p.taps_x[x * p.taps + tap];
#pragma unroll
            for (int channel = 0; channel < 3; channel++) sums[channel] += row[from + channel] * factor;
        }
#pragma unroll
        for (int channel = 0; channel < 3; channel++)
            between[i * 3 + channel] = static_cast<uint8_t>(byte_from_sum(sums[channel]));
    }
    __syncthreads();
    const bool vector = p.out_width % 4 == 0;
    for (int i = threadIdx.x; i < TILE_WIDTH / 4 * TILE_HEIGHT; i += PICTURE_THREADS) {
        const int column = i % (TILE_WIDTH / 4) * 4, x = left + column, y = top + i / (TILE_WIDTH / 4);
        if (x >= p.out_width || y >= p.out_height) continue;
        const int first = p.first_y[y] - first_row, count = min(4, p.out_width - x);
        int sums[12];
#pragma unroll
        for (int j = 0; j < 12; j++) sums[j] = 1 << 21;
        for (int tap = 0; tap < p.taps; tap++) {
            const uint8_t* row = between + (min(first + tap, rows - 1) * TILE_WIDTH + column) * 3;
            const int factor = p.taps_y[y * p.taps + tap];
#pragma unroll
            for (int j = 0; j < 12; j++) sums[j] += (j < count * 3 ? row[j] : 0) * factor;
        }
        uint32_t bytes[12];
#pragma unroll
        for (int j = 0; j < 12; j++) bytes[j] = byte_from_sum(sums[j]);
        const int64_t place = static_cast<int64_t>(y) * p.out_width + x;
        store_pixels(p.out + place * 3, bytes, count, vector);
    }
}

// ---- A rectangle of the enlarged picture as a model's square input, reflected at the bottom and right. ----------
struct ExtractParams {
    const uint8_t* pixels;  // (picture_height, picture_width, 3)
    uint16_t* out;          // fp16 (3, side, side)
    int picture_width, top, left, height, width, side;
};

__device__ __forceinline__ int reflected(int index, int length) {
    if (length == 1) return 0;
    const int period = 2 * (length - 1), place = index % period;
    return place < length ? place : period - place;
}

// Grid: (pixels of the tile over 8 a thread). side % 8 == 0.
INTSR_KERNEL(extract_tile, ExtractParams, PICTURE_THREADS, 4) {
    const int64_t place = (static_cast<int64_t>(blockIdx.x) * PICTURE_THREADS + threadIdx.x) * 8;
    const int64_t plane = static_cast<int64_t>(p.side) * p.side;
    if (place >= plane) return;
    const int y = static_cast<int>(place / p.side), x = static_cast<int>(place % p.side);
    const uint8_t* row = p.pixels + static_cast<int64_t>(p.top + reflected(y, p.height)) * p.picture_width * 3;
    uint16_t values[3][8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint8_t* pixel = row + (p.left + reflected(x + i, p.width)) * 3;
#pragma unroll
        for (int channel = 0; channel < 3; channel++) values[channel][i] = model_input_from_byte(pixel[channel]);
    }
#pragma unroll
    for (int channel = 0; channel < 3; channel++) {
        uint4 vector;
        const uint16_t* v = values[channel];
        vector.x = v[0] | static_cast<uint32_t>(v[1]) << 16;
        vector.y = v[2] | static_cast<uint32_t>(v[3]) << 16;
        vector.z = v[4] | static_cast<uint32_t>(v[5]) << 16;
        vector.w = v[6] | static_cast<uint32_t>(v[7]) << 16;
        *reinterpret_cast<uint4*>(p.out + channel * plane + place) = vector;
    }
}

// ---- A tile's output, weighted, onto the picture. ---------------------------------------------------------------
struct AccumulateParams {
    const uint16_t* tile;  // fp16 (3, side, side), nominally in [-1, 1]
    float* out;            // (3, picture_height, picture_width)
    const float* rows;     // (height,)
    const float* columns;  // (width,)
    int picture_height, picture_width, top, left, height, width, side, vector;
};

// Grid: (quads of a row over the threads, height, 3). vector: rows and left of the picture are multiples of 4 floats.
INTSR_KERNEL(accumulate_tile, AccumulateParams, PICTURE_THREADS, 4) {
    const int x = (blockIdx.x * PICTURE_THREADS + threadIdx.x) * 4, y = blockIdx.y, channel = blockIdx.z;
    if (x >= p.width) return;
    const uint16_t* tile = p.tile + (static_cast<int64_t>(channel) * p.side + y) * p.side + x;
    const int64_t out_row = static_cast<int64_t>(channel) * p.picture_height + p.top + y;
    float* out = p.out + out_row * p.picture_width + p.left + x;
    const float row = p.rows[y];
    const auto blended = [&](float before, uint16_t half, int i) {
        const float unit = __fadd_rn(__fmul_rn(float_from_half(half), 0.5f), 0.5f);
        return __fadd_rn(before, __fmul_rn(__fmul_rn(unit, row), p.columns[x + i]));
    };
    if (p.vector && x + 4 <= p.width) {
        const uint2 halves = *reinterpret_cast<const uint2*>(tile);
        float4 sums = *reinterpret_cast<const float4*>(out);
        sums.x = blended(sums.x, static_cast<uint16_t>(halves.x & 0xffff), 0);
        sums.y = blended(sums.y, static_cast<uint16_t>(halves.x >> 16), 1);
        sums.z = blended(sums.z, static_cast<uint16_t>(halves.y & 0xffff), 2);
        sums.w = blended(sums.w, static_cast<uint16_t>(halves.y >> 16), 3);
        *reinterpret_cast<float4*>(out) = sums;
        return;
    }
    for (int i = 0; i < min(4, p.width - x); i++) out[i] = blended(out[i], tile[i], i);
}

// ---- Planes to 8-bit pixels, rounded half to even. --------------------------------------------------------------
struct PixelsParams {
    const float* planes;  // (3, H W) in [0, 1]
    uint8_t* out;         // (H W, 3)
    int64_t count;        // H W
};

__device__ __forceinline__ uint32_t byte_from_unit(float unit) {
    return static_cast<uint32_t>(rintf(__fmul_rn(fminf(fmaxf(unit, 0.0f), 1.0f), 255.0f)));
}

// Grid: (pixels over 4 a thread).
INTSR_KERNEL(pixels_from_unit, PixelsParams, PICTURE_THREADS, 4) {
    const int64_t place = (static_cast<int64_t>(blockIdx.x) * PICTURE_THREADS + threadIdx.x) * 4;
    if (place >= p.count) return;
    const int count = static_cast<int>(min(static_cast<int64_t>(4), p.count - place));
    uint32_t bytes[12];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int channel = 0; channel < 3; channel++)
            bytes[i * 3 + channel] = i < count ? byte_from_unit(p.planes[channel * p.count + place + i]) : 0;
    store_pixels(p.out + place * 3, bytes, count, count == 4);
}

// Grid: (pixels over 4 a thread). out: (H W), Rec. 601, summed in the order of the CPU path.
INTSR_KERNEL(luma_from_unit, PixelsParams, PICTURE_THREADS, 4) {
    const int64_t place = (static_cast<int64_t>(blockIdx.x) * PICTURE_THREADS + threadIdx.x) * 4;
    uint32_t word = 0;
    for (int i = 0; i < 4; i++) {
        if (place + i >= p.count) break;
        const float* unit = p.planes + place + i;
        const float two = __fadd_rn(__fmul_rn(unit[0], 0.299f), __fmul_rn(unit[p.count], 0.587f));
        const uint32_t byte = byte_from_unit(__fadd_rn(two, __fmul_rn(unit[2 * p.count], 0.114f)));
        word |= byte << (8 * i);
        if (place + 4 > p.count) p.out[place + i] = static_cast<uint8_t>(byte);
    }
    if (place + 4 <= p.count) *reinterpret_cast<uint32_t*>(p.out + place) = word;
}

// ---- The picture clipped to [0, 1], and what it was before: whoever reads bytes sees no NaN. --------------------
struct RangeParams {
    float* planes;    // (3, H W)
    float2* extremes; // (3, blocks): least and largest value; the largest is infinite where one was not finite
    int64_t count;    // H W
    int blocks;
};

// Grid: (blocks, 3). Shared: a float2 a warp.
INTSR_KERNEL(clip_and_range, RangeParams, PICTURE_THREADS, 4) {
    INTSR_SHARED(float2, shared);
    float* plane = p.planes + blockIdx.y * p.count;
    const float infinity = float_from_bits(0x7f800000);
    float least = infinity, largest = -infinity;
    const int64_t step = static_cast<int64_t>(p.blocks) * PICTURE_THREADS;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * PICTURE_THREADS + threadIdx.x; i < p.count; i += step) {
        const float value = plane[i];
        // No comparison with NaN is true.
        const bool finite = fabsf(value) < infinity;
        least = fminf(least, value);
        largest = finite ? fmaxf(largest, value) : infinity;
        plane[i] = fminf(fmaxf(value, 0.0f), 1.0f);
    }
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
        least = fminf(least, __shfl_xor_sync(FULL_WARP, least, lane));
        largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, lane));
    }
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = make_float2(least, largest);
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < PICTURE_THREADS / 32; warp++) {
        least = fminf(least, shared[warp].x);
        largest = fmaxf(largest, shared[warp].y);
    }
    p.extremes[blockIdx.y * p.blocks + blockIdx.x] = make_float2(least, largest);
}
