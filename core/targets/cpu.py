"""Target `cpu`: OpenVINO on any x86 or ARM CPU."""

from intsr.targets.target import Target

TARGET = Target(
    name="cpu",
    builder="intsr.engines.builders.openvino",
    backend="intsr.runtime.backends.openvino.backend",
    library="openvino",
    module="openvino",
    distributions=("openvino",),
    install="pip install -U openvino",
    suffix="ir",
    sharing="intsr.engines.builders.openvino_tiles:share_weights",
    further_suffix="xml.gz",
    codes="intsr.engines.builders.openvino_tiles:places_of_codes",
    tiles=(128, 64),
    lowering="asymmetric-cpu",
    other_lowerings=("asymmetric",),
    compile_options=("precision",),
    keeps=True,
    times_layers=True,
    precision="auto",
    precision_words="float32 or bf16",
    float_bytes=4,
    build_copies=2.0,
    measures_inference=True,
    extra_bytes=2_500_000,
)
