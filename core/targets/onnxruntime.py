"""Target `onnxruntime`: the graph itself, as the reference and fallback."""

from intsr.targets.target import Target

TARGET = Target(
    name="onnxruntime",
    builder="intsr.engines.builders.onnxruntime",
    backend="intsr.runtime.backends.onnxruntime",
    library="onnxruntime",
    module="onnxruntime",
    distributions=("onnxruntime", "onnxruntime-gpu"),
    install='pip install -U "intsr[compile]"',
    extra="compile",
    suffix="onnx",
    codes="intsr.engines.builders.onnxruntime:places_of_codes",
    lowering="asymmetric",
    other_lowerings=("asymmetric-cpu",),
    precision="f32",
    precision_words="float32",
    float_bytes=4,
    build_copies=3.0,
    extra_bytes=500_000,
)
