"""The immutable data types that stages hand to one another."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from intsr.errors import UsageError

NETWORKS = ("encoder", "unet", "decoder")
COLOR_FIXES = ("wavelet", "adain", "none")
RESIZE_FILTERS = ("bicubic", "lanczos")
MIN_BITS, MAX_BITS = 2, 8
SYNTHETIC_NOTE = "random weights: for measuring speed and memory only"

T = TypeVar("T")


def is_kind(value: Any, *kinds: type) -> bool:
    """Whether what JSON gave is of one of these types. To Python true is an int; here it is not."""
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def dataclass_from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from JSON. Unknown and missing keys are errors, never ignored. Raises UsageError."""
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(where, f"unknown keys {', '.join(unknown)}", f"only {', '.join(sorted(known))}")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise UsageError(where, str(error), f"a valid {cls.__name__}") from error


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
        """Raises UsageError for anything but `fp` and wXaY with X and Y from 2 to 8."""
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
    """What one-step inference needs to know beside the weights.

    timestep: index into the scheduler's betas. alpha_bar: cumulative product of alphas there, in (0, 1).
    latent_scaling_factor: the VAE's. upscale_factor: output side over input side.
    resize_filter: how the input is brought to the output's size first. size_multiple_px: the output's sides must be
    whole multiples of this for all three networks. synthetic: random weights, good for speed and memory alone.
    """

    name: str
    timestep: int
    alpha_bar: float
    latent_scaling_factor: float
    upscale_factor: int
    resize_filter: str
    size_multiple_px: int
    licence: str = ""
    # Not in repr(), of which digests are made: those of older calibrations must stay.
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
    """Name, shape and NumPy dtype name of a network's input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))


@dataclass(frozen=True, slots=True)
class NetworkEntry:
    """One network of a bundle. `member` is its file in the bundle; `weights_member`, where it is not empty, the one
    that holds its weights, which networks of several tile sizes share.

    encoder: x (N, 3, H, W) in [-1, 1] -> latent (N, C, h, w), scaled. unet: latent -> denoised latent, scaled.
    decoder: denoised latent -> image (N, 3, H, W), nominally in [-1, 1], not clamped.
    """

    name: str
    member: str
    input: TensorInfo
    output: TensorInfo
    weights_member: str = ""


def network_entries_from_list(values: Sequence[Mapping[str, Any]], where: str) -> tuple[NetworkEntry, ...]:
    """The `networks` of a manifest or an export, from JSON. Raises UsageError, KeyError, TypeError."""
    entries = []
    for value in values:
        tensors = {key: dataclass_from_mapping(TensorInfo, value[key], where) for key in ("input", "output")}
        entries.append(dataclass_from_mapping(NetworkEntry, {**value, **tensors}, where))
    return tuple(entries)


@dataclass(frozen=True, slots=True)
class TileEntry:
    """One more tile size of a bundle: the same three networks with other shapes. See `Manifest` for the units."""

    tile_px: int
    overlap_px: int
    networks: tuple[NetworkEntry, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "networks", tuple(self.networks))
        if tuple(entry.name for entry in self.networks) != NETWORKS:
            raise ValueError(f"networks are {[e.name for e in self.networks]}, expected {list(NETWORKS)}")
        if not 0 <= self.overlap_px < self.tile_px:
            raise ValueError(f"overlap_px {self.overlap_px} is not below tile_px {self.tile_px}")


def tile_entries_from_list(values: Sequence[Mapping[str, Any]], where: str) -> tuple[TileEntry, ...]:
    """The `tiles` of a manifest, from JSON. Raises UsageError, KeyError, TypeError."""
    return tuple(
        dataclass_from_mapping(
            TileEntry, {**value, "networks": network_entries_from_list(value["networks"], where)}, where
        )
        for value in values
    )


@dataclass(frozen=True, slots=True)
class Manifest:
    """`manifest.json` of an `.engine` bundle (schema 1).

    tile_px: the side of the square low-resolution tile that the networks take; its output has
    tile_px * upscale_factor. overlap_px: default overlap of neighbouring tiles, in low-resolution pixels.
    library: what built it. gpu_architecture: for example `sm80+` or `sm86,sm89`, empty where none. precision: of what
    is not integer. sha256: of every member but the manifest. build: numbers of the build (sizes, seconds), free form.
    synthetic: of random weights. tiles: further tile sizes that the bundle holds networks for, where tile_px,
    overlap_px and networks are the default's. Bundles older than these two keys have none.
    """

    schema_version: int
    model: str
    method: str
    bits: str
    parts: tuple[str, ...]
    target: str
    library: str
    library_version: str
    gpu_architecture: str
    precision: str
    tile_px: int
    overlap_px: int
    upscale_factor: int
    resize_filter: str
    color_fix: str
    networks: tuple[NetworkEntry, ...]
    sha256: dict[str, str]
    calibration_digest: str
    licence: str
    build: dict[str, Any] = field(default_factory=dict)
    synthetic: bool = False
    tiles: tuple[TileEntry, ...] = ()

    def __post_init__(self) -> None:
        for name in ("parts", "networks", "tiles"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes = [entry.tile_px for entry in self.all_tiles]
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"tiles of {sizes} pixels, one size twice")
        if self.color_fix not in COLOR_FIXES or self.resize_filter not in RESIZE_FILTERS:
            raise ValueError(f"color_fix {self.color_fix!r} or resize_filter {self.resize_filter!r} is not known")

    @property
    def all_tiles(self) -> tuple[TileEntry, ...]:
        """Every tile size with its networks, the default first."""
        return (TileEntry(self.tile_px, self.overlap_px, self.networks), *self.tiles)

    @property
    def tile_sizes(self) -> tuple[int, ...]:
        """Sides of the tiles that there are networks for, low-resolution pixels, descending."""
        return tuple(sorted((entry.tile_px for entry in self.all_tiles), reverse=True))

    def at_tile(self, tile_px: int | None) -> Manifest:
        """The same with that size as the default and the others in `tiles`; None leaves it as it is.

        Raises UsageError for a size that the bundle does not hold.
        """
        if tile_px is None or tile_px == self.tile_px:
            return self
        chosen = next((entry for entry in self.tiles if entry.tile_px == tile_px), None)
        if chosen is None:
            held = " or ".join(map(str, self.tile_sizes))
            got, expected = f"{tile_px} pixels", f"{held}, which the engine holds"
            raise UsageError("--tile", got, expected, f"compile it with --tile {tile_px}")
        others = tuple(entry for entry in self.all_tiles if entry is not chosen)
        return replace(self, tile_px=tile_px, overlap_px=chosen.overlap_px, networks=chosen.networks, tiles=others)
