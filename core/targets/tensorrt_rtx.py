"""Target `tensorrt-rtx`: GeForce RTX 30 and later, built ahead of time on a machine without a GPU."""

from intsr.targets.target import Target

TARGET = Target(
    name="tensorrt-rtx",
    builder="intsr.engines.builders.tensorrt_rtx",
    backend="intsr.runtime.backends.tensorrt.backend",
    library="tensorrt-rtx",
    module="tensorrt_rtx",
    distributions=("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    install='pip install "intsr[rtx]"',
    extra="rtx",
    exact_version=True,
    suffix="plan",
    lowering="symmetric-rtx",
    weight_only_lowering="weight-only",
    compile_options=("activations", "workspace_mib", "hardware_compatibility"),
    gpu=True,
    # `vtrt`
    plan_tag=0x74727476,
    # By NVIDIA's support matrix, where no others were asked for. Of what lies between and beyond, RTX runs on none
    # (Hopper, data-centre Blackwell), or only with plans made for it (12.1).
    gpu_capabilities=((8, 6), (8, 9), (12, 0)),
    keeps=True,
    times_layers=True,
    precision="f16",
    precision_words="fp16",
    float_bytes=2,
    build_copies=2.0,
    extra_bytes=26_000_000,
)
