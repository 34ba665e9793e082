// The colour fixes over a whole picture. No atomics: the same picture gives the same bytes.
#include "common.cuh"

constexpr int COLOR_THREADS = 256;

struct ColorParams {
    float* target;          // (3, H W), overwritten by adain_apply
    const uint8_t* source;  // (H W, 3), the enlarged input
    double2* partial;       // (blocks, 3 channels, 2): sums and squares about 1/2 of the target; of the source
    float* factors;         // (3, 3): target mean, std ratio, source mean
    int64_t count;          // H W
    int blocks;
    float variance_floor;
};

// Grid: (blocks). Shared: warps x 12 doubles. Four pixels a turn: 12 bytes of the source are three words.
INTSR_KERNEL(adain_sums, ColorParams, COLOR_THREADS, 2) {
    INTSR_SHARED(double, shared);
    double sums[12] = {};  // target sum and square, source sum and square, by channel
    const int64_t step = static_cast<int64_t>(p.blocks) * COLOR_THREADS * 4;
    for (int64_t i = (static_cast<int64_t>(blockIdx.x) * COLOR_THREADS + threadIdx.x) * 4; i < p.count; i += step) {
        const int pixels = static_cast<int>(min(static_cast<int64_t>(4), p.count - i));
        uint32_t bytes[12];
        if (pixels == 4) {
            const uint32_t* words = reinterpret_cast<const uint32_t*>(p.source + i * 3);
#pragma unroll
            for (int word = 0; word < 3; word++)
#pragma unroll
                for (int byte = 0; byte < 4; byte++) bytes[word * 4 + byte] = words[word] >> (byte * 8) & 0xff;
        } else {
#pragma unroll
            for (int j = 0; j < 12; j++) bytes[j] = j < pixels * 3 ? p.source[i * 3 + j] : 0;
        }
#pragma unroll
        for (int channel = 0; channel < 3; channel++) {
            // Four values in fp32, then fp64: consumer GPUs have little fp64.
            float sum = 0.0f, square = 0.0f;
            uint32_t whole = 0, whole_square = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (j >= pixels) break;
                const float value = p.target[channel * p.count + i + j] - 0.5f;
                sum += value;
                square += value * value;
                whole += bytes[j * 3 + channel];
                whole_square += bytes[j * 3 + channel] * bytes[j * 3 + channel];
            }
            sums[channel * 4] += sum;
            sums[channel * 4 + 1] += square;
            sums[channel * 4 + 2] += whole;
            sums[channel * 4 + 3] += whole_square;
        }
    }
#pragma unroll
    for (int j = 0; j < 12; j++) {
        const double sum = sum_of_lanes<32>(sums[j]);
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32 * 12 + j] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= 6) return;
    double2 total = make_double2(0.0, 0.0);
    for (int warp = 0; warp < COLOR_THREADS / 32; warp++) {
        total.x += shared[warp * 12 + threadIdx.x * 2];
        total.y += shared[warp * 12 + threadIdx.x * 2 + 1];
    }
    p.partial[blockIdx.x * 6 + threadIdx.x] = total;
}

// Grid: (1), one warp a channel.
INTSR_KERNEL(adain_finish, ColorParams, 96, 1) {
    const int channel = threadIdx.x / 32;
    double mean[2], deviation[2];
    for (int which = 0; which < 2; which++) {
        double sum = 0.0, square = 0.0;
        for (int block = threadIdx.x % 32; block < p.blocks; block += 32) {
            const double2 part = p.partial[block * 6 + channel * 2 + which];
            sum += part.x;
            square += part.y;
        }
        const double count = static_cast<double>(p.count), unit = which ? 255.0 : 1.0;
        sum = sum_of_lanes<32>(sum) / unit;
        square = sum_of_lanes<32>(square) / (unit * unit);
        mean[which] = sum / count;
        const double variance = p.count > 1 ? fmax(square - sum * mean[which], 0.0) / (count - 1) : 0.0;
        deviation[which] = sqrt(variance + static_cast<double>(p.variance_floor));
    }
    if (threadIdx.x % 32 != 0) return;
    p.factors[channel * 3] = static_cast<float>(mean[0] + 0.5);
    p.factors[channel * 3 + 1] = static_cast<float>(deviation[1] / deviation[0]);
    p.factors[channel * 3 + 2] = static_cast<float>(mean[1]);
}

// Grid: (pixels over 4 a thread, 3).
INTSR_KERNEL(adain_apply, ColorParams, COLOR_THREADS, 4) {
    const float* f = p.factors + blockIdx.y * 3;
    const float mean = f[0], ratio = f[1], source_mean = f[2];
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * COLOR_THREADS + threadIdx.x) * 4;
    float* target = p.target + blockIdx.y * p.count;
    const auto fixed = [&](float value) { return __fadd_rn(__fmul_rn(__fsub_rn(value, mean), ratio), source_mean); };
    if (p.count % 4 == 0 && first + 4 <= p.count) {
        float4 values = *reinterpret_cast<const float4*>(target + first);
        values = make_float4(fixed(values.x), fixed(values.y), fixed(values.z), fixed(values.w));
        *reinterpret_cast<float4*>(target + first) = values;
        return;
    }
    for (int64_t i = first; i < min(first + 4, p.count); i++) target[i] = fixed(target[i]);
}

// ---- Wavelet: target + L(source - target), L five blurs [1 2 1]/4 outer [1 2 1]/4, dilation 1, 2, 4, 8, 16. ------
struct WaveletParams {
    const float* in;        // (3, H, W), or null in the first level: source - target is made on the fly
    const float* target;    // (3, H, W)
    const uint8_t* source;  // (H, W, 3)
    float* out;             // (3, H, W)
    int height, width, dilation, last;  // last: the target is added
};

// Grid: (x over 32, y over 8, 3). Products by 1/2 and 1/4 are exact: contraction changes nothing.
INTSR_KERNEL(wavelet_level, WaveletParams, COLOR_THREADS, 4) {
    const int x = blockIdx.x * 32 + threadIdx.x % 32, y = blockIdx.y * 8 + threadIdx.x / 32, channel = blockIdx.z;
    if (x >= p.width || y >= p.height) return;
    const int64_t plane = static_cast<int64_t>(channel) * p.height * p.width;
    const auto value_at = [&](int row, int column) {
        const int64_t place = static_cast<int64_t>(row) * p.width + column;
        if (p.in != nullptr) return p.in[plane + place];
        const float source = __fdiv_rn(static_cast<float>(p.source[place * 3 + channel]), 255.0f);
        return __fsub_rn(source, p.target[plane + place]);
    };
    const int above = max(y - p.dilation, 0), below = min(y + p.dilation, p.height - 1);
    const auto blurred = [&](int column) {
        const float ends = __fadd_rn(value_at(above, column), value_at(below, column));
        return __fadd_rn(__fmul_rn(value_at(y, column), 0.5f), __fmul_rn(ends, 0.25f));
    };
    const float ends = __fadd_rn(blurred(max(x - p.dilation, 0)), blurred(min(x + p.dilation, p.width - 1)));
    float low = __fadd_rn(__fmul_rn(blurred(x), 0.5f), __fmul_rn(ends, 0.25f));
    const int64_t place = plane + static_cast<int64_t>(y) * p.width + x;
    if (p.last) low = __fadd_rn(p.target[place], low);
    p.out[place] = low;
}
