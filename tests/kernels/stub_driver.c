/* A libcuda.so.1 that has one GPU made of the emulated kernels (kernels/cuda/emulate.h): memory is the host's, a
 * launch is a call into the libraries named by INTSR_STUB_KERNELS (separated by ':'). What is checked here is how
 * cuda-python is called: handles, sizes, parameter passing, attributes. Anything unexpected is an error status. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void* Handle;
typedef struct { char name[64]; } Function;
enum { OK = 0, INVALID = 1, BAD_IMAGE = 200, NOT_FOUND = 500, FAILED = 719 };
static const Handle STREAM = (Handle)7, GRAPH = (Handle)5, EXECUTABLE = (Handle)6;
/* Set by the kernel named by INTSR_STUB_FAULT. As on a GPU, its launch succeeds and every later call fails. */
static int lost = OK;

int cuInit(unsigned flags) { return flags == 0 ? OK : INVALID; }
int cuDriverGetVersion(int* version) { *version = 13000; return OK; }
int cuDeviceGetCount(int* count) { *count = 1; return OK; }
int cuDeviceTotalMem_v2(size_t* size, int device) { *size = 1ull << 34; return OK; }
int cuDeviceGet(int* device, int ordinal) { *device = 0; return ordinal == 0 ? OK : 101; }
int cuDeviceGetName(char* name, int length, int device) { snprintf(name, length, "stub GPU"); return OK; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
        case 75: *value = getenv("INTSR_STUB_OLD") ? 7 : 9; return OK;
        case 76: *value = 0; return OK;
        case 16: *value = 2; return OK;
        case 97: *value = 232448; return OK;
    }
    return INVALID;
}
int cuDevicePrimaryCtxRetain(Handle* context, int device) { *context = (Handle)1; return OK; }
int cuCtxSetCurrent(Handle context) { return context == (Handle)1 ? OK : INVALID; }
int cuStreamCreate(Handle* stream, unsigned flags) { *stream = STREAM; return OK; }
int cuStreamDestroy_v2(Handle stream) { return stream == STREAM ? OK : INVALID; }
int cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) {
    return stream == STREAM && event == (Handle)3 && flags == 0 ? OK : INVALID;
}
int cuCtxSynchronize(void) { return lost; }
int cuStreamSynchronize(Handle stream) { return lost ? lost : stream == STREAM ? OK : INVALID; }
int cuMemAlloc_v2(uint64_t* pointer, size_t size) {
    if (lost) return lost;
    if (size > (1ull << 33)) return 2;
    *pointer = (uint64_t)aligned_alloc(256, (size + 255) / 256 * 256);
    return OK;
}
int cuMemAllocHost_v2(void** pointer, size_t size) { *pointer = malloc(size); return OK; }
int cuMemFreeHost(void* pointer) { free(pointer); return OK; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { *free = 1ull << 33; *total = 1ull << 34; return OK; }
int cuMemFree_v2(uint64_t pointer) { free((void*)pointer); return OK; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, Handle stream) {
    memcpy((void*)to, from, size);
    return stream == STREAM ? OK : INVALID;
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, Handle stream) {
    memcpy(to, (void*)from, size);
    return stream == STREAM ? OK : INVALID;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, Handle stream) {
    memcpy((void*)to, (void*)from, size);
    return stream == STREAM ? OK : INVALID;
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, Handle stream) {
    memset((void*)to, value, size);
    return stream == STREAM ? OK : INVALID;
}
int cuModuleLoadData(Handle* module, const void* image) {
    *module = (Handle)2;
    return *(const uint32_t*)image == 0xba55ed50 ? OK : BAD_IMAGE;
}
int cuModuleUnload(Handle module) { return module == (Handle)2 ? OK : INVALID; }
int cuModuleGetFunction(Handle* function, Handle module, const char* name) {
    Function* made = calloc(1, sizeof *made);
    snprintf(made->name, sizeof made->name, "%s", name);
    *function = made;
    return module == (Handle)2 ? OK : INVALID;
}

static void* kernel_symbol(const char* name, const char* suffix) {
    char symbol[96], paths[4096];
    snprintf(symbol, sizeof symbol, "%s%s", name, suffix);
    snprintf(paths, sizeof paths, "%s", getenv("INTSR_STUB_KERNELS"));
    char* rest = NULL;
    for (char* path = strtok_r(paths, ":", &rest); path; path = strtok_r(NULL, ":", &rest)) {
        void* library = dlopen(path, RTLD_NOW);
        void* found = library ? dlsym(library, symbol) : NULL;
        if (found) return found;
    }
    return NULL;
}
/* Kernels of separate parameters: five pointers, nine ints, a pointer (kernels/cuda/group_norm_plugin.cu). */
enum { SEPARATE = 15, SEPARATE_BYTES = 88 };
static int is_separate(const Function* function) { return strncmp(function->name, "plugin_", 7) == 0; }
static size_t separate_offset(size_t i) { return i < 5 ? i * 8 : i < 14 ? 40 + (i - 5) * 4 : 80; }
static size_t separate_size(size_t i) { return i < 5 || i == 14 ? 8 : 4; }

int cuFuncGetParamInfo(Function* function, size_t index, size_t* offset, size_t* size) {
    unsigned (*params)(void) = (unsigned (*)(void))kernel_symbol(function->name, "_params");
    if (!params) return NOT_FOUND;
    if (is_separate(function)) {
        if (index >= SEPARATE || params() != SEPARATE_BYTES) return INVALID;
        *offset = separate_offset(index);
        *size = separate_size(index);
        return OK;
    }
    if (index != 0) return INVALID;
    *offset = 0;
    *size = params();
    return OK;
}
int cuFuncSetAttribute(Function* function, int attribute, int value) {
    return attribute == 8 && value <= 232448 ? OK : INVALID;
}

static int run(Function* function, const unsigned* grid, unsigned block, unsigned cluster, unsigned shared,
               void** p) {
    if (lost) return lost;
    if (getenv("INTSR_STUB_FAULT") && !strcmp(getenv("INTSR_STUB_FAULT"), function->name)) lost = 700;
    typedef const char* (*Kernel)(const void*, const unsigned*, unsigned, unsigned, unsigned);
    Kernel kernel = (Kernel)kernel_symbol(function->name, "");
    if (!kernel) return NOT_FOUND;
    if (!is_separate(function)) return kernel(p[0], grid, block, cluster, shared) ? FAILED : OK;
    unsigned char packed[SEPARATE_BYTES];
    for (size_t i = 0; i < SEPARATE; i++) memcpy(packed + separate_offset(i), p[i], separate_size(i));
    /* Compiled in, as on a GPU: the launch says nothing of it. */
    return kernel(packed, grid, block, strstr(function->name, "_cluster") ? 8 : cluster, shared) ? FAILED : OK;
}
int cuLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Handle stream, void** params, void** extra) {
    const unsigned grid[3] = {gx, gy, gz};
    if (stream != STREAM || by != 1 || bz != 1 || extra) return INVALID;
    return run(function, grid, bx, 1, shared, params);
}
typedef struct { unsigned id, pad; unsigned value[16]; } Attribute;
typedef struct { unsigned grid[3], block[3], shared; Handle stream; Attribute* attributes; unsigned count; } Config;
int cuLaunchKernelEx(const Config* config, Function* function, void** params, void** extra) {
    if (config->count != 1 || config->attributes[0].id != 4 || config->stream != STREAM || extra) return INVALID;
    const unsigned* cluster = config->attributes[0].value;
    if (cluster[1] != 1 || cluster[2] != 1) return INVALID;
    return run(function, config->grid, config->block[0], cluster[0], config->shared, params);
}

int cuEventCreate(Handle* event, unsigned flags) { *event = (Handle)3; return flags == 1 ? OK : INVALID; }
int cuEventRecord(Handle event, Handle stream) { return event == (Handle)3 && stream == STREAM ? OK : INVALID; }
int cuEventSynchronize(Handle event) { return event == (Handle)3 ? lost : INVALID; }
int cuEventDestroy_v2(Handle event) { return OK; }
int cuEventElapsedTime_v2(float* ms, Handle from, Handle to) { *ms = 1.5f; return OK; }
int cuEventElapsedTime(float* ms, Handle from, Handle to) { *ms = 1.5f; return OK; }
int cuStreamBeginCapture_v2(Handle stream, int mode) { return stream == STREAM && mode == 1 ? OK : INVALID; }
int cuStreamEndCapture(Handle stream, Handle* graph) { *graph = GRAPH; return OK; }
int cuGraphInstantiateWithFlags(Handle* executable, Handle graph, unsigned long long flags) {
    *executable = EXECUTABLE;
    return graph == GRAPH && flags == 0 ? OK : INVALID;
}
int cuGraphLaunch(Handle executable, Handle stream) {
    return executable == EXECUTABLE && stream == STREAM ? OK : INVALID;
}
int cuGraphExecDestroy(Handle executable) { return executable == EXECUTABLE ? OK : INVALID; }
int cuGraphDestroy(Handle graph) { return graph == GRAPH ? OK : INVALID; }

int cuGetProcAddress_v2(const char* name, void** found, int version, uint64_t flags, int* status) {
    char newer[128];
    void* self = dlopen("libcuda.so.1", RTLD_NOW);
    snprintf(newer, sizeof newer, "%s%s", name, strcmp(name, "cuGraphInstantiate") ? "_v2" : "WithFlags");
    *found = dlsym(self, newer);
    if (!*found) *found = dlsym(self, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? OK : NOT_FOUND;
}
int cuGetProcAddress(const char* name, void** found, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, found, version, flags, NULL);
}
