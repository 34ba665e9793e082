"""The targets, as data."""

from __future__ import annotations

from dataclasses import dataclass

from intsr.errors import UsageError
from intsr.export.lowering import LOWERING_OF_TARGET, OTHERS_OF_TARGET, WEIGHT_ONLY_OF_TARGET


@dataclass(frozen=True, slots=True)
class Target:
    """module: has `build(onnx_path, plan_path, options) -> BuildReport`. lowering: what its graphs must be.
    suffix: of its member. precision: of what is not integer, `auto` where the runtime decides on the machine.
    sharing: "module:function", function(member, further members), where further tile sizes can do with the first
    one's weights; their members then have `further_suffix`. tiles: what is built where nothing else is asked for.
    """

    name: str
    module: str
    suffix: str
    precision: str
    sharing: str = ""
    further_suffix: str = ""
    tiles: tuple[int, ...] = (128,)

    @property
    def lowering(self) -> str:
        return LOWERING_OF_TARGET[self.name]

    @property
    def weight_only_lowering(self) -> str | None:
        """For integer weights and float activations; None where the target has no use for it."""
        return WEIGHT_ONLY_OF_TARGET.get(self.name)

    def takes(self, lowering: str) -> bool:
        """Whether graphs of that lowering can be built."""
        return lowering in (self.lowering, self.weight_only_lowering, *OTHERS_OF_TARGET.get(self.name, ()))


TARGETS = (
    Target(
        "cpu",
        "intsr.engines.openvino",
        "ir",
        "auto",
        sharing="intsr.engines.openvino_tiles:share_weights",
        further_suffix="xml.gz",
        tiles=(128, 64),
    ),
    Target("onnxruntime", "intsr.engines.onnxruntime", "onnx", "f32"),
    Target("tensorrt", "intsr.engines.tensorrt", "plan", "f16"),
    Target("tensorrt-rtx", "intsr.engines.tensorrt_rtx", "plan", "f16"),
)
TARGET_NAMES = tuple(target.name for target in TARGETS)


def target_from_name(name: str) -> Target:
    """Raises UsageError."""
    for target in TARGETS:
        if target.name == name:
            return target
    raise UsageError("--target", repr(name), f"one of {', '.join(TARGET_NAMES)}")
