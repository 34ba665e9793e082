// Runs the kernels' own code on a CPU, so that indexing, barriers and data flow are checked without a GPU: each CUDA
// thread is a coroutine, each barrier and warp operation a meeting point. Slow by design. What it cannot check: PTX,
// alignment of device pointers, the memory model, and speed.
//
// Stricter than a GPU where that finds mistakes: shared memory starts as garbage, warps run one after the other, and
// writes past the shared memory and barriers that some threads never reach end the launch with a message.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) double2 {
    double x, y;
};
struct uint3 {
    unsigned x, y, z;
};
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }

namespace emulation {

[[noreturn]] inline void fail(const char* message);

struct Meeting {  // a barrier that can be used again
    unsigned arrived = 0, generation = 0;
};

struct Warp {
    Meeting meeting;
    uint64_t values[2][32] = {};  // two in turn: a fast lane may be one operation ahead
    unsigned turn[32] = {};
};

struct Block {
    uint3 index{};
    unsigned rank = 0;
    Meeting meeting;
    std::vector<Warp> warps;
    std::vector<unsigned char> storage;
    unsigned char* shared = nullptr;
};

struct Fiber {
    ucontext_t context{};
    std::unique_ptr<unsigned char[]> stack{new unsigned char[1 << 16]};
    uint3 thread{};
    unsigned number = 0;
    Block* block = nullptr;
    bool done = false;
};

struct State {
    ucontext_t scheduler{};
    Fiber* current = nullptr;
    std::vector<Block> blocks;  // of the running cluster
    Meeting cluster;
    unsigned threads = 0, cluster_size = 1;
    unsigned long progress = 0;
    uint3 block_dim{}, grid_dim{};
    void (*body)(const void*) = nullptr;
    const void* params = nullptr;
    const char* problem = nullptr;
};

inline State state;

// Only inside a thread: the launch ends there, and returns the message.
inline void fail(const char* message) {
    state.problem = message;
    setcontext(&state.scheduler);
    std::abort();
}

inline void yield() { swapcontext(&state.current->context, &state.scheduler); }

inline void meet(Meeting& meeting, unsigned count) {
    const unsigned mine = meeting.generation;
    state.progress++;
    if (++meeting.arrived == count) {
        meeting.arrived = 0;
        meeting.generation++;
        return;
    }
    while (meeting.generation == mine) yield();
    state.progress++;
}

inline Warp& warp() { return state.current->block->warps[state.current->number / 32]; }
inline unsigned lane() { return state.current->number % 32; }
inline void meet_warp() { meet(warp().meeting, 32); }

inline void run_fiber() {
    state.body(state.params);
    state.current->done = true;
    state.progress++;
    yield();
}

// A warp runs as far as it can before the next one does, and so does a block of a cluster: what lacks a barrier reads
// what is not there yet.
inline void run_warp(std::vector<Fiber>& fibers, size_t warp) {
    for (unsigned long before = state.progress - 1; before != state.progress && state.problem == nullptr;) {
        before = state.progress;
        for (size_t i = warp * 32; i < warp * 32 + 32; i++) {
            if (fibers[i].done) continue;
            state.current = &fibers[i];
            swapcontext(&state.scheduler, &fibers[i].context);
            if (state.problem != nullptr) return;
        }
    }
}

inline void run_cluster(std::vector<Fiber>& fibers, unsigned seed) {
    for (Fiber& fiber : fibers) {
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = 1 << 16;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_fiber, 0);
    }
    const size_t blocks = state.cluster_size, warps = state.threads / 32;
    const auto done = [](const Fiber& fiber) { return fiber.done; };
    const auto all_done = [&] { return std::all_of(fibers.begin(), fibers.end(), done); };
    while (!all_done()) {
        const unsigned long before = state.progress;
        for (size_t i = 0; i < blocks; i++) {
            const size_t block = (seed + i) % blocks;
            for (unsigned long now = state.progress - 1; now != state.progress && state.problem == nullptr;) {
                now = state.progress;
                for (size_t j = 0; j < warps && state.problem == nullptr; j++)
                    run_warp(fibers, block * warps + (seed % 2 ? j : warps - 1 - j));
            }
            if (state.problem != nullptr) return;
        }
        if (state.progress == before) {
            state.problem = "a barrier that some threads never reach";
            return;
        }
    }
}

inline const char* launch(void (*body)(const void*), const void* params, const unsigned* grid, unsigned threads,
                          unsigned cluster, unsigned shared_bytes) {
    if (threads % 32 != 0 || grid[0] % cluster != 0) return "whole warps and whole clusters only";
    state.problem = nullptr;
    state.body = body;
    state.params = params;
    state.threads = threads;
    state.cluster_size = cluster;
    state.block_dim = {threads, 1, 1};
    state.grid_dim = {grid[0], grid[1], grid[2]};
    static std::vector<Fiber> fibers;
    if (fibers.size() != static_cast<size_t>(threads) * cluster) fibers = std::vector<Fiber>(threads * cluster);
    unsigned seed = 1;
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x += cluster) {
                state.blocks = std::vector<Block>(cluster);
                state.cluster = Meeting{};
                for (unsigned rank = 0; rank < cluster; rank++) {
                    Block& now = state.blocks[rank];
                    now.index = {x + rank, y, z};
                    now.rank = rank;
                    now.warps = std::vector<Warp>(threads / 32);
                    now.storage.assign(shared_bytes + 256, 0xCB);
                    const auto address = reinterpret_cast<uintptr_t>(now.storage.data());
                    now.shared = now.storage.data() + (128 - address % 128) % 128;
                    for (unsigned i = 0; i < threads; i++) {
                        Fiber& fiber = fibers[rank * threads + i];
                        fiber.thread = {i, 0, 0};
                        fiber.number = i;
                        fiber.block = &now;
                    }
                }
                run_cluster(fibers, seed++);
                for (Block& now : state.blocks)
                    for (unsigned i = 0; i < 64; i++)
                        if (now.shared[shared_bytes + i] != 0xCB) state.problem = "a write past the shared memory";
                if (state.problem != nullptr) return state.problem;
            }
    return nullptr;
}

}  // namespace emulation

#define threadIdx (emulation::state.current->thread)
#define blockIdx (emulation::state.current->block->index)
#define blockDim (emulation::state.block_dim)
#define gridDim (emulation::state.grid_dim)

// One exported function a kernel: null, or what went wrong.
#define INTSR_KERNEL(name, Params, threads, blocks)                                                               \
    static void name##_body(const Params& p);                                                                     \
    extern "C" unsigned name##_params() { return sizeof(Params); }                                                \
    extern "C" const char* name(const void* p, const unsigned* grid, unsigned block, unsigned cluster,            \
                                unsigned shared_bytes) {                                                          \
        if (block > (threads)) return "more threads than the launch bounds";                                      \
        return emulation::launch([](const void* q) { name##_body(*static_cast<const Params*>(q)); }, p, grid,     \
                                 block, cluster, shared_bytes);                                                   \
    }                                                                                                             \
    static void name##_body(const Params& p)
#define INTSR_SHARED(Type, name) Type* name = reinterpret_cast<Type*>(emulation::state.current->block->shared)

inline void __syncthreads() { emulation::meet(emulation::state.current->block->meeting, emulation::state.threads); }
inline void __syncwarp() { emulation::meet_warp(); }

template <typename Number>
Number __shfl_xor_sync(unsigned, Number value, int mask) {
    static_assert(sizeof(Number) <= 8);
    auto& warp = emulation::warp();
    const unsigned lane = emulation::lane(), turn = warp.turn[lane]++ % 2;
    std::memcpy(&warp.values[turn][lane], &value, sizeof value);
    emulation::meet_warp();
    Number other;
    std::memcpy(&other, &warp.values[turn][lane ^ static_cast<unsigned>(mask)], sizeof other);
    return other;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
using std::fmaxf;
using std::fminf;
using std::max;
using std::min;
using std::rintf;
using std::sqrt;

inline float float_from_half(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t exponent = bits >> 10 & 31, digits = bits & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * static_cast<float>(digits) * 0x1p-24f;
    const uint32_t word = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | digits << 13;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

inline uint16_t half_from_float(float value) {  // round half to even
    uint32_t word;
    std::memcpy(&word, &value, 4);
    const uint16_t sign = static_cast<uint16_t>(word >> 16 & 0x8000);
    const float size = std::fabs(value);
    if (std::isnan(value)) return sign | 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 0x1p-14f) return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(size * 0x1p24f)));
    const uint32_t rounded = (word & 0x7fffffff) + 0xfff + (word >> 13 & 1);
    return static_cast<uint16_t>(sign | static_cast<uint16_t>((rounded >> 13) - (112u << 10)));
}

inline unsigned cluster_rank() { return emulation::state.current->block->rank; }

inline void cluster_sync() {
    emulation::meet(emulation::state.cluster, emulation::state.threads * emulation::state.cluster_size);
}

inline float cluster_load(const float* shared, unsigned rank) {
    const auto offset = reinterpret_cast<const unsigned char*>(shared) - emulation::state.current->block->shared;
    float value;
    std::memcpy(&value, emulation::state.blocks[rank].shared + offset, 4);
    return value;
}
