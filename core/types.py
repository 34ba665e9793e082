"""The immutable data types that stages hand to one another."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Protocol

from msgspec import Meta

from intsr.errors import UsageError

NETWORKS = ("encoder", "unet", "decoder")
# Of a model whose UNet takes the low resolution itself.
DIRECT_NETWORKS = ("unet", "decoder")
# Of a video engine: its VAE has a network for a film's first frame and one for those behind it.
VIDEO_NETWORKS = ("encoder_start", "encoder_next", "transformer", "decoder_start", "decoder_next")
COLOR_FIXES = ("wavelet", "adain", "none")
# `box` repeats each pixel.
RESIZE_FILTERS = ("bicubic", "lanczos", "box")
# How x0 follows from the latents z and the UNet's output e (`ModelSpec.x0_gains`).
X0_RULES = ("epsilon", "v", "sample", "difference")
# Whose published files are read, as options and manifests have it.
FAMILY_NAMES = ("osediff", "hypir", "pisasr", "omgsr", "adcsr")
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
class WeightOptions:
    """What a model takes from other files than its own, and from words: options of every command that opens one.

    Raises UsageError for two that exclude each other.
    """

    # A safetensors file with the tensor `context`.
    context: Path | None = None
    # A family's file or folder, merged into the weights.
    lora: Path | None = None
    # Through the model's own text encoder.
    prompt: str | None = None
    # Of PiSA-SR's two LoRAs.
    pisa_weights: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None and self.context is not None:
            raise UsageError("--prompt", "together with --context", "one of them")
        if self.pisa_weights is not None and self.lora is None:
            raise UsageError("--pisa-weights", "without a LoRA", "--lora pisa_sr.pkl too")

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `calib.models.open.open_model`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def given(self) -> tuple[str, ...]:
        """The options that were given, as they are written."""
        values = self.arguments.items()
        return tuple(f"--{name.replace('_', '-')}" for name, value in values if value is not None)

    def check_of_video(self) -> None:
        """Raise UsageError for anything but a context, which is all that video models take."""
        for option in self.given:
            if option != "--context":
                raise UsageError(option, "together with a video model", "a picture model")

    def check_none(self, title: str) -> None:
        """Raise UsageError where one of them is given: a family's own files are all that its models are made of."""
        if self.given:
            raise UsageError(self.given[0], f"together with {title}", f"none: {title} has neither prompt nor LoRA")

    def check_belongs(self, has_model: bool, option: str) -> None:
        """Raise UsageError where one of them is given and no model is. option: what would give one."""
        if not has_model and self.given:
            raise UsageError(self.given[0], "no model that it belongs to", f"{option} MODEL too")


NO_WEIGHT_OPTIONS = WeightOptions()


@dataclass(frozen=True, slots=True)
class RunDefaults:
    """How a model's own code runs it, and so an engine of it where nobody says otherwise."""

    # The family's name; "" for a model of none that is known.
    family: str = ""
    color_fix: str = "wavelet"
    # Side of a tile, low-resolution pixels; None: whatever is usual for the target.
    tile_px: Count | None = None
    # Neighbouring tiles share one part in so many of a side.
    overlap_divisor: Count = 8
    # Pictures whose shorter side, enlarged, is below this are enlarged further, and made smaller again at the end.
    min_side_px: int = 0


USUAL_DEFAULTS = RunDefaults()


class PictureSpec(Protocol):
    """What every stage asks of a model of pictures, of whatever family."""

    @property
    def name(self) -> str: ...

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of its networks, in the order in which they run."""
        ...

    @property
    def upscale_factor(self) -> int:
        """Output side over input side."""
        ...

    @property
    def input_factor(self) -> int:
        """Side of what the first network takes over the low resolution's: 1, or `upscale_factor`."""
        ...

    @property
    def resize_filter(self) -> str:
        """How the input is brought to the output's size: for the first network, and for colour fixes."""
        ...

    @property
    def size_multiple_px(self) -> int:
        """The output's sides must be whole multiples of this for all networks."""
        ...

    @property
    def licence(self) -> str: ...

    @property
    def synthetic(self) -> bool: ...

    @property
    def prompt(self) -> str | None:
        """The text that its context was made of; None where there is none, or it came as a tensor."""
        ...

    @property
    def defaults(self) -> RunDefaults: ...


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What one-step inference of a diffusion model needs to know beside the weights; see `PictureSpec`."""

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
    # Of `X0_RULES`.
    x0_rule: str = "epsilon"
    # The text that the context was made of; None where it came as a tensor.
    prompt: str | None = None
    defaults: RunDefaults = USUAL_DEFAULTS

    @property
    def x0_gains(self) -> tuple[float, float]:
        """(g, h) of x0 = g z + h e, of the scaled latents z and what the UNet makes of them at `timestep`."""
        signal, noise = math.sqrt(self.alpha_bar), math.sqrt(1 - self.alpha_bar)
        return {
            "epsilon": (1 / signal, -noise / signal),
            "v": (signal, -noise),
            "sample": (0.0, 1.0),
            "difference": (1.0, -1.0),
        }[self.x0_rule]

    def __post_init__(self) -> None:
        if self.x0_rule not in X0_RULES:
            raise ValueError(f"x0_rule is {self.x0_rule!r}, not one of {', '.join(X0_RULES)}")
        if not 0 < self.alpha_bar < 1:
            raise ValueError(f"alpha_bar is {self.alpha_bar}, not in (0, 1)")
        if self.resize_filter not in RESIZE_FILTERS:
            raise ValueError(f"resize_filter is {self.resize_filter!r}, not one of {', '.join(RESIZE_FILTERS)}")
        for name in ("upscale_factor", "size_multiple_px", "latent_scaling_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, not above 0")

    @property
    def networks(self) -> tuple[str, ...]:
        return NETWORKS

    @property
    def input_factor(self) -> int:
        return self.upscale_factor


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
