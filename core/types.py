"""The immutable data types that stages hand to one another."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from intsr.errors import UsageError

NETWORKS = ("encoder", "unet", "decoder")
COLOR_FIXES = ("wavelet", "adain", "none")
RESIZE_FILTERS = ("bicubic", "lanczos")
MIN_BITS, MAX_BITS = 2, 8
SYNTHETIC_NOTE = "random weights: for measuring speed and memory only"

# What arrays can be made of; the libraries' own names are mapped to these.
_DTYPES = "^(float32|float16|bfloat16|int8|uint8|int32|int64|bool)$"
# A side, a size or a factor. What is read from JSON is held to these bounds.
Count = Annotated[int, Meta(ge=1, lt=1 << 31)]


def is_kind(value: Any, *kinds: type) -> bool:
    """Tell whether what JSON gave is of one of these types. To Python true is an int; here it is not."""
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits of weights and activations, written `w8a8`; `fp` is full precision (both None)."""

    weights: int | None
    activations: int | None

    def __post_init__(self) -> None:
        widths = (self.weights, self.activations)
        if widths != (None, None) and not all(width in range(MIN_BITS, MAX_BITS + 1) for width in widths):
            raise ValueError(f"bits {widths} are neither two of {MIN_BITS} to {MAX_BITS} nor two of None")

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Read `fp` or wXaY with X and Y from 2 to 8. Raises UsageError."""
        if text == "fp":
            return cls(None, None)
        match = re.fullmatch(r"w([0-9])a([0-9])", text)
        if match is None or not all(MIN_BITS <= int(group) <= MAX_BITS for group in match.groups()):
            raise UsageError("--bits", repr(text), "wXaY with X and Y from 2 to 8, or fp", "for example --bits w8a8")
        return cls(int(match[1]), int(match[2]))

    @property
    def quantized(self) -> bool:
        return self.weights is not None

    def __str__(self) -> str:
        return f"w{self.weights}a{self.activations}" if self.quantized else "fp"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What one-step inference needs to know beside the weights."""

    name: str
    # Index into the scheduler's betas.
    timestep: int
    # The cumulative product of alphas there, in (0, 1).
    alpha_bar: float
    # The VAE's.
    latent_scaling_factor: float
    # Output side over input side.
    upscale_factor: int
    # How the input is brought to the output's size first.
    resize_filter: str
    # The output's sides must be whole multiples of this for all networks.
    size_multiple_px: int
    licence: str = ""
    # Random weights, good for speed and memory alone. Not in repr(), of which digests are made.
    synthetic: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.alpha_bar < 1:
            raise ValueError(f"alpha_bar is {self.alpha_bar}, not in (0, 1)")
        if self.resize_filter not in RESIZE_FILTERS:
            raise ValueError(f"resize_filter is {self.resize_filter!r}, not one of {', '.join(RESIZE_FILTERS)}")
        for name in ("upscale_factor", "size_multiple_px", "latent_scaling_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, not above 0")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape (of any rank) and NumPy dtype name of a network's input or output."""

    name: str
    shape: tuple[Count, ...]
    dtype: Annotated[str, Meta(pattern=_DTYPES)]
