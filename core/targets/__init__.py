"""The targets, as data."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec

from intsr.errors import MissingLibraryError, UsageError
from intsr.optional import EXTRAS
from intsr.targets.lowering import LOWERING_OF_TARGET, OTHERS_OF_TARGET, WEIGHT_ONLY_OF_TARGET


@dataclass(frozen=True, slots=True)
class Target:
    """module: has `build(onnx_path, plan_path, options) -> BuildReport`. lowering: what its graphs must be.
    suffix: of its member. precision: of what is not integer, `auto` where the runtime decides on the machine.
    sharing: "module:function", function(member, further members), where further tile sizes can do with the first
    one's weights; their members then have `further_suffix`. tiles: what is built where nothing else is asked for.
    libraries: import names, one of these groups is needed to build. times_kernels: the builder chooses them by
    measuring on this machine's GPU.
    """

    name: str
    module: str
    suffix: str
    precision: str
    sharing: str = ""
    further_suffix: str = ""
    tiles: tuple[int, ...] = (128,)
    libraries: tuple[tuple[str, ...], ...] = ()
    times_kernels: bool = False

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

    def check_installed(self) -> None:
        """Before long work; nothing is imported. Raises MissingLibraryError naming what the last group lacks."""
        missing: list[str] = []
        for group in self.libraries:
            missing = [library for library in group if library not in sys.modules and find_spec(library) is None]
            if not missing:
                return
        if missing:
            raise MissingLibraryError(missing[0], EXTRAS[missing[0]], f"target {self.name}")


TARGETS = (
    Target(
        "cpu",
        "intsr.engines.builders.openvino",
        "ir",
        "auto",
        sharing="intsr.engines.builders.openvino_tiles:share_weights",
        further_suffix="xml.gz",
        tiles=(128, 64),
    ),
    Target("onnxruntime", "intsr.engines.builders.onnxruntime", "onnx", "f32", libraries=(("onnxruntime",),)),
    Target(
        "tensorrt", "intsr.engines.builders.tensorrt", "plan", "f16", libraries=(("tensorrt",),), times_kernels=True
    ),
    Target(
        "tensorrt-rtx",
        "intsr.engines.builders.tensorrt_rtx",
        "plan",
        "f16",
        libraries=(("tensorrt_rtx",), ("onnxruntime_ep_nv_tensorrt_rtx", "tensorrt_bindings")),
    ),
)
TARGET_NAMES = tuple(target.name for target in TARGETS)


def target_from_name(name: str) -> Target:
    """Raises UsageError."""
    for target in TARGETS:
        if target.name == name:
            return target
    raise UsageError("--target", repr(name), f"one of {', '.join(TARGET_NAMES)}")
