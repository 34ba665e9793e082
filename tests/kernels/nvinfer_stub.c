/* Stands in for libnvinfer.so.11, libnvinfer_plugin.so.11 and libnvonnxparser.so.11 (this one file, compiled three
 * times under those sonames), so that NVIDIA's `tensorrt_bindings` load, whose layer `tensorrt.plugin` is tested. The
 * registry of plugins is that of TensorRT-RTX, which must already be loaded; nothing else is called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

static void* rtx(const char* name) {
    void* library = dlopen("libtensorrt_rtx.so.1", RTLD_NOW | RTLD_NOLOAD);
    void* found = library ? dlsym(library, name) : NULL;
    if (!found) abort();
    return found;
}

void* getPluginRegistry(void) { return ((void* (*)(void))rtx("getPluginRegistry"))(); }
void* getBuilderPluginRegistry(int capability) { return ((void* (*)(int))rtx("getBuilderPluginRegistry"))(capability); }

#define NOT_CALLED(name) \
    void name(void) { abort(); }
NOT_CALLED(getNvOnnxParserVersion)
NOT_CALLED(createInferBuilder_INTERNAL)
NOT_CALLED(createInferRuntime_INTERNAL)
NOT_CALLED(createInferRefitter_INTERNAL)
NOT_CALLED(createNvOnnxParser_INTERNAL)
NOT_CALLED(createNvOnnxParserRefitter_INTERNAL)
NOT_CALLED(initLibNvInferPlugins)
