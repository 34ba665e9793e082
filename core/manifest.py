"""`manifest.json`: what an `.engine` bundle says about itself and about its networks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from msgspec import Meta

from intsr.errors import BundleError, EngineMismatchError, UsageError
from intsr.json_files import decode_json
from intsr.types import COLOR_FIXES, RESIZE_FILTERS, VIDEO_NETWORKS, Count, TensorInfo

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class NetworkEntry:
    """One network of a bundle. An engine runs its networks in order, each on what the one before it gave.

    A one-step model has three, of one input and one output each. encoder: x (N, 3, H, W) in [-1, 1] -> latent
    (N, C, h, w), scaled. unet: latent -> denoised latent, scaled. decoder: denoised latent -> image (N, 3, H, W),
    nominally in [-1, 1], not clamped. Of a model without an encoder unet takes the low resolution itself, x of
    `Manifest.tile_px` a side, and what it hands on are features.
    """

    name: str
    # Its file in the bundle.
    member: Annotated[str, Meta(min_length=1)]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    # The member that holds its weights, where networks of several tile sizes share them; else empty.
    weights_member: str = ""

    @property
    def input(self) -> TensorInfo:
        """The only input. Raises EngineMismatchError where there are several: no backend runs that yet."""
        return self._only(self.inputs, "inputs")

    @property
    def output(self) -> TensorInfo:
        """The only output. Raises EngineMismatchError as `input` does."""
        return self._only(self.outputs, "outputs")

    def _only(self, tensors: tuple[TensorInfo, ...], kind: str) -> TensorInfo:
        if len(tensors) != 1:
            raise EngineMismatchError(f"network {self.name}", f"{len(tensors)} {kind}", "one", "use a newer intsr")
        return tensors[0]


@dataclass(frozen=True, slots=True)
class TileEntry:
    """One more tile size of a bundle: the same networks with other shapes. See `Manifest` for the units."""

    tile_px: Count
    overlap_px: int
    networks: tuple[NetworkEntry, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_px < self.tile_px:
            raise ValueError(f"overlap_px {self.overlap_px} is not below tile_px {self.tile_px}")


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """What the networks of a video engine take of time: chunks of frames, which neighbours share some of.

    Its networks are `VIDEO_NETWORKS`. The first tensor of each is what it works on, (1, channels, frames, H, W); the
    others are what the VAE's layers remember of the frames before: `encoder_start` and `decoder_start` have none as
    inputs, and leave what `encoder_next` and `decoder_next` take and leave in their turn.
    """

    # Of a chunk: a latent of one frame, and one for each `frames_per_latent` behind it.
    frames: Count
    frames_per_latent: Count
    # The default of frames that neighbouring chunks share.
    overlap_frames: int

    def __post_init__(self) -> None:
        if (self.frames - 1) % self.frames_per_latent:
            raise ValueError(f"chunks of {self.frames} frames, expected {self.frames_per_latent} n + 1")
        if not 0 <= 2 * self.overlap_frames <= self.frames:
            raise ValueError(f"{self.overlap_frames} frames shared, expected at most half of {self.frames}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`manifest.json` of an `.engine` bundle."""

    schema_version: int = SCHEMA_VERSION
    model: str
    method: str
    bits: str
    # What is quantized: of `unet` and `vae`.
    parts: tuple[str, ...]
    target: str
    # What built it.
    library: str
    library_version: str
    # For example `sm80+` or `sm86,sm89`; empty where there is none.
    gpu_architecture: str
    # Of what is not integer.
    precision: str
    # The side of the square low-resolution tile that the networks take; their output has tile_px * upscale_factor.
    tile_px: Count
    # The default overlap of neighbouring tiles, in low-resolution pixels.
    overlap_px: int
    upscale_factor: Count
    resize_filter: str
    color_fix: str
    # In the order in which they run, at `tile_px`.
    networks: tuple[NetworkEntry, ...]
    # Of every member but the manifest.
    sha256: dict[str, str]
    calibration_digest: str
    licence: str
    # Numbers of the build (sizes, seconds), free form.
    build: dict[str, Any] = field(default_factory=dict)
    # Random weights.
    synthetic: bool = False
    # Further tile sizes, each with the same networks; tile_px, overlap_px and networks are the default's.
    tiles: tuple[TileEntry, ...] = ()
    # Of a video engine.
    chunk: ChunkEntry | None = None
    # The model's family, by the name that `intsr synth --family` knows; "" for none that is known.
    family: str = ""
    # The text that the networks were told; None where the context came as a tensor.
    prompt: str | None = None
    # Pictures whose shorter side, enlarged, is below this are enlarged further, and made smaller again at the end.
    min_side_px: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        sizes = [entry.tile_px for entry in self.all_tiles]
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"tiles of {sizes} pixels, one size twice")
        if self.color_fix not in COLOR_FIXES or self.resize_filter not in RESIZE_FILTERS:
            raise ValueError(f"color_fix {self.color_fix!r} or resize_filter {self.resize_filter!r} is not known")
        names = self.network_names
        if not names or len(set(names)) < len(names):
            raise ValueError(f"networks are {list(names)}, expected one or more of different names")
        if (self.chunk is not None) != (names == VIDEO_NETWORKS):
            raise ValueError(
                f"networks are {list(names)}, expected {list(VIDEO_NETWORKS)} for chunks of frames alone"
            )
        for tile in self.tiles:
            own = [entry.name for entry in tile.networks]
            if own != list(names):
                raise ValueError(f"networks of tile {tile.tile_px} are {own}, expected {list(names)}")

    @property
    def network_names(self) -> tuple[str, ...]:
        """Names of the networks, in the order in which they run."""
        return tuple(entry.name for entry in self.networks)

    @property
    def all_tiles(self) -> tuple[TileEntry, ...]:
        """List every tile size with its networks, the default first."""
        return (TileEntry(self.tile_px, self.overlap_px, self.networks), *self.tiles)

    @property
    def tile_sizes(self) -> tuple[int, ...]:
        """Sides of the tiles that there are networks for, low-resolution pixels, descending."""
        return tuple(sorted((entry.tile_px for entry in self.all_tiles), reverse=True))

    def run_facts(self) -> dict[str, str]:
        """What an engine of a known family does where nobody says otherwise, and its licence, for people."""
        if not self.family:
            return {"licence": self.licence} if self.licence else {}
        is_enlarged = self.networks[0].input.shape[-1] != self.tile_px
        facts = {"family": self.family, "enlarged first": self.resize_filter if is_enlarged else "no"}
        facts |= {"colour fix": self.color_fix, "overlap": f"{self.overlap_px} px"}
        facts |= {"least output": f"{self.min_side_px} px"} if self.min_side_px else {}
        facts |= {"prompt": repr(self.prompt)} if self.prompt is not None else {}
        return facts | ({"licence": self.licence} if self.licence else {})

    def at_tile(self, tile_px: int | None) -> Manifest:
        """Return this manifest with that size as the default and the others in `tiles`; with None, as it is.

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


def manifest_from_json(data: bytes, where: object) -> Manifest:
    """Read `manifest.json`. Raises BundleError for another schema, unknown keys and values out of range."""
    fix = "compile the model again with this intsr"
    return decode_json(data, Manifest, where, error=BundleError, version=SCHEMA_VERSION, fix=fix)
