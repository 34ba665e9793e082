"""What a target is, as data."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec

from intsr.errors import MissingLibraryError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Everything in which targets differ and that is not code: stages ask a field instead of the name."""

    name: str

    # The module with `build(onnx_path, plan_path, options) -> BuildReport`.
    builder: str
    # The module with `open_backend(bundle, options) -> Backend`.
    backend: str

    # The library that runs its engines, as manifests call it.
    library: str
    # That library's import name, the distributions that bring it, and the command that installs it.
    module: str
    distributions: tuple[str, ...]
    install: str
    # The extra of this package that brings the library; "" where it is always installed.
    extra: str = ""
    # True where the library reads engines of its own release and of no other.
    exact_version: bool = False

    # Suffix of a network's member in the bundle.
    suffix: str
    # Where further tile sizes can do with the weights of the first: "module:function", a function(member, further
    # members) that makes them do, and the suffix that they then have.
    sharing: str = ""
    further_suffix: str = ""
    # "module:function", a function(member) that says where a member has int8 codes of weights, so that those of few
    # bits are packed (runtime/backends/codes.py); "" where the library's own format holds them.
    codes: str = ""
    # Tile sizes that are built where no other is asked for, low-resolution pixels.
    tiles: tuple[int, ...] = (128,)

    # The lowering that its graphs have, others that it takes (the same integers in another form), and the one for
    # integer weights with float activations, where it has a use for that. Names of `lowering.LOWERINGS`.
    lowering: str
    other_lowerings: tuple[str, ...] = ()
    weight_only_lowering: str | None = None
    # Operators that may be nodes of our own, of `lowering.PLUGINS`.
    plugins: tuple[str, ...] = ()
    # Parameters of `intsr compile` that change something for this target and not for all.
    compile_options: tuple[str, ...] = ()

    # True where engines run on NVIDIA GPUs alone.
    gpu: bool = False
    # The first four bytes of a TensorRT plan, little-endian.
    plan_tag: int = 0
    # Compute capabilities that plans are for where they are for several.
    gpu_capabilities: tuple[tuple[int, int], ...] = ()
    # True where the builder chooses kernels by measuring them on this machine's GPU.
    times_kernels: bool = False
    # True where what the library makes of a network is kept in the user's cache.
    keeps: bool = False
    # True where the library tells the time of each layer.
    times_layers: bool = False

    # Precision of what is not integer: for manifests (`auto`: the runtime decides on the machine), in words, and its
    # bytes a value.
    precision: str
    precision_words: str
    float_bytes: int
    # How often the builder has a network's weights in memory, and whether it runs the network once: measured.
    build_copies: float
    measures_inference: bool = False
    # What an engine holds beside weights (graphs, biases, compiled kernels), measured on the demonstration model.
    extra_bytes: int

    def takes(self, lowering: str) -> bool:
        """Return whether graphs of that lowering can be built."""
        return lowering in (self.lowering, self.weight_only_lowering, *self.other_lowerings)

    def check_installed(self) -> None:
        """Raise MissingLibraryError where the library is missing; nothing is imported. For use before long work."""
        if self.extra and self.module not in sys.modules and find_spec(self.module) is None:
            raise MissingLibraryError(self.module, self.extra, f"target {self.name}")
