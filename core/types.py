"""The immutable data types that stages hand to one another."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any

from msgspec import Meta

from intsr.errors import UsageError

NETWORKS = ("encoder", "unet", "decoder")
# Of a video engine: its VAE has a network for a film's first frame and one for those behind it.
VIDEO_NETWORKS = ("encoder_start", "encoder_next", "transformer", "decoder_start", "decoder_next")
COLOR_FIXES = ("wavelet", "adain", "none")
RESIZE_FILTERS = ("bicubic", "lanczos")
MIN_BITS, MAX_BITS = 2, 8
MIXED_SUFFIX = "-mixed"
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
    # (pattern of sites, bits of weights, of activations): the first that fits a site has its own, "*" standing for
    # anything. What is written of such bits is `w4a4-mixed`, and the sites know the rest.
    rules: tuple[tuple[str, int, int], ...] = ()
    mixed: bool = False

    def __post_init__(self) -> None:
        pairs = [
            (self.weights, self.activations),
            *((weights, activations) for _, weights, activations in self.rules),
        ]
        for pair in pairs if pairs != [(None, None)] else ():
            if not all(width in range(MIN_BITS, MAX_BITS + 1) for width in pair):
                raise ValueError(f"bits {pair} are neither two of {MIN_BITS} to {MAX_BITS} nor two of None")
        object.__setattr__(self, "mixed", self.mixed or bool(self.rules))

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Read `fp`, wXaY with X and Y from 2 to 8, or `wXaY PATTERN=wXaY ...`. Raises UsageError."""
        if text == "fp":
            return cls(None, None)
        default, *rules = text.split(" ")
        name = default.removesuffix(MIXED_SUFFIX)
        parsed = tuple(
            (pattern, *_widths(bits, text)) for pattern, _, bits in (rule.partition("=") for rule in rules)
        )
        return cls(*_widths(name, text), parsed, mixed=name != default)

    @property
    def quantized(self) -> bool:
        return self.weights is not None

    def of_site(self, site: str) -> tuple[int, int] | None:
        """(weight bits, activation bits) by the first rule that fits, or None."""
        fitting = (rule for rule in self.rules if fnmatchcase(site, rule[0]))
        return next(((weights, activations) for _, weights, activations in fitting), None)

    def __str__(self) -> str:
        return f"w{self.weights}a{self.activations}{MIXED_SUFFIX * self.mixed}" if self.quantized else "fp"


def _widths(name: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"w([0-9])a([0-9])", name)
    if match is None or not all(MIN_BITS <= int(group) <= MAX_BITS for group in match.groups()):
        expected = "wXaY with X and Y from 2 to 8, or fp"
        raise UsageError("--bits", repr(text), expected, "for example --bits w8a8")
    return int(match[1]), int(match[2])


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


def tile_step(upscale_factor: int, size_multiple_px: int) -> int:
    """Tiles that the networks take are whole multiples of so many low-resolution pixels."""
    return size_multiple_px // math.gcd(size_multiple_px, upscale_factor)


def check_tile(tile_px: int, upscale_factor: int, size_multiple_px: int) -> None:
    """Raises UsageError where the networks cannot take a tile of that size."""
    step = tile_step(upscale_factor, size_multiple_px)
    if tile_px < 1 or tile_px % step:
        below = max(tile_px // step * step, step)
        nearest = f"{below} or {below + step}" if tile_px > step else str(step)
        raise UsageError("--tile", f"{tile_px} pixels", f"a positive multiple of {step}", f"use {nearest}")
