/* Stands in for libnvinfer.so.11, libnvinfer_plugin.so.11 and libnvonnxparser.so.11 (this one file, compiled three
 * times under those sonames) so that NVIDIA's `tensorrt_bindings` of PyPI drive the TensorRT-RTX libraries of PyPI.
 *
 * Every entry point is forwarded to the RTX library with that library's OWN version number: the bindings pass theirs,
 * which the RTX library would refuse. The RTX libraries must already be loaded; RTLD_NOLOAD finds them by soname, so
 * that no path is compiled in.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static const char RTX[] = "libtensorrt_rtx.so.1";
static const char PARSER[] = "libtensorrt_onnxparser_rtx.so.1";

static void* symbol(const char* library, const char* name)
{
    void* handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    void* address = handle ? dlsym(handle, name) : NULL;
    if (!address)
    {
        fprintf(stderr, "rtx shim: %s is not loaded or has no %s\n", library, name);
        abort();
    }
    return address;
}

static int32_t rtx_version(void)
{
    return ((int32_t (*)(void)) symbol(RTX, "getInferLibVersion"))();
}

int32_t getNvOnnxParserVersion(void)
{
    return ((int32_t (*)(void)) symbol(PARSER, "getNvOnnxParserVersion"))();
}

void* createInferBuilder_INTERNAL(void* logger, int32_t version)
{
    (void) version;
    return ((void* (*)(void*, int32_t)) symbol(RTX, "createInferBuilder_INTERNAL"))(logger, rtx_version());
}

void* createInferRuntime_INTERNAL(void* logger, int32_t version)
{
    (void) version;
    return ((void* (*)(void*, int32_t)) symbol(RTX, "createInferRuntime_INTERNAL"))(logger, rtx_version());
}

void* createInferRefitter_INTERNAL(void* engine, void* logger, int32_t version)
{
    (void) version;
    return ((void* (*)(void*, void*, int32_t)) symbol(RTX, "createInferRefitter_INTERNAL"))(
        engine, logger, rtx_version());
}

void* getPluginRegistry(void)
{
    return ((void* (*)(void)) symbol(RTX, "getPluginRegistry"))();
}

void* getBuilderPluginRegistry(int32_t capability)
{
    return ((void* (*)(int32_t)) symbol(RTX, "getBuilderPluginRegistry"))(capability);
}

void* createNvOnnxParser_INTERNAL(void* network, void* logger, int32_t version)
{
    (void) version;
    return ((void* (*)(void*, void*, int32_t)) symbol(PARSER, "createNvOnnxParser_INTERNAL"))(
        network, logger, getNvOnnxParserVersion());
}

void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void* logger, int32_t version)
{
    (void) version;
    return ((void* (*)(void*, void*, int32_t)) symbol(PARSER, "createNvOnnxParserRefitter_INTERNAL"))(
        refitter, logger, getNvOnnxParserVersion());
}

/* The RTX library has its plugins registered already. */
bool initLibNvInferPlugins(void* logger, const char* library_namespace)
{
    (void) logger;
    (void) library_namespace;
    return true;
}
