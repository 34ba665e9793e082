"""Target `tensorrt`: NVIDIA's data-centre and RTX GPUs, built on the GPU that the engine is for."""

from intsr.targets.lowering import PLUGINS
from intsr.targets.target import Target

TARGET = Target(
    name="tensorrt",
    builder="intsr.engines.builders.tensorrt",
    backend="intsr.runtime.backends.tensorrt.backend",
    library="tensorrt",
    module="tensorrt",
    distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    install='pip install "intsr[tensorrt]"',
    extra="tensorrt",
    exact_version=True,
    suffix="plan",
    lowering="symmetric",
    other_lowerings=("symmetric-plugins", "weight-only-plugins"),
    weight_only_lowering="weight-only",
    plugins=PLUGINS,
    compile_options=("activations", "plugins", "workspace_mib", "hardware_compatibility", "timing_cache"),
    gpu=True,
    # `ftrt`
    plan_tag=0x74727466,
    times_kernels=True,
    times_layers=True,
    precision="f16",
    precision_words="fp16",
    float_bytes=2,
    build_copies=2.0,
    extra_bytes=10_000_000,
)
