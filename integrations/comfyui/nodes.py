"""Two nodes of ComfyUI's V3 schema over IntSR's Python API: load an engine, upscale a batch of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io

from intsr import open_engine
from intsr.errors import ImageError
from intsr.runtime.batch.plan import cheapest_tile
from intsr.runtime.tiles.enlarge import enlarge
from intsr.types import COLOR_FIXES

if TYPE_CHECKING:
    from intsr import Engine
    from intsr.arrays import Array
    from intsr.runtime.tiles.blend import TileProgress
    from intsr.runtime.tiles.grid import Tile

FOLDER = "intsr"
ENGINES = Path(folder_paths.models_dir, FOLDER)
ENGINES.mkdir(parents=True, exist_ok=True)
# `extra_model_paths.yaml` may have named other folders before.
folder_paths.add_model_folder_path(FOLDER, str(ENGINES))
folder_paths.folder_names_and_paths[FOLDER][1].add(".engine")

EngineType = io.Custom("INTSR_ENGINE")
AUTO = "auto"
# Levels of 8 bits: float32 of k / 255 times 255 is off by less than a ten-thousandth.
_SAME_LEVEL = 1e-3
_CHANNELS = (1, 3, 4)


class LoadedEngine:
    """An open engine, at any of the tile sizes that its file holds; closed when ComfyUI forgets it."""

    def __init__(self, engine: Engine) -> None:
        # The manifest of an engine that is opened again has the tile in use as its default.
        self.engine, self._manifest = engine, engine.manifest

    def at(self, tile_px: int, size: tuple[int, int]) -> Engine:
        """Open it at a tile size; 0: at that which `intsr upscale` takes for pictures of this height and width.

        Raises UsageError for a size that the file does not hold, and what `open_engine` raises.
        """
        self.engine = self.engine.reopen(tile_px or cheapest_tile(self._manifest, [size]))
        return self.engine

    def __del__(self) -> None:
        self.engine.close()


class LoadEngine(io.ComfyNode):
    """A choice of the files in `models/intsr` -> an open engine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IntSRLoadEngine",
            display_name="Load IntSR engine",
            category="image/upscaling",
            description="Opens an .engine file of models/intsr.",
            inputs=[io.Combo.Input("engine_name", options=folder_paths.get_filename_list(FOLDER))],
            outputs=[EngineType.Output(display_name="engine")],
        )

    @classmethod
    def execute(cls, engine_name: str) -> io.NodeOutput:
        """Raises FileNotFoundError, and what `open_engine` raises."""
        return io.NodeOutput(LoadedEngine(open_engine(folder_paths.get_full_path_or_raise(FOLDER, engine_name))))

    @classmethod
    def fingerprint_inputs(cls, engine_name: str) -> tuple[int, int]:
        """Tell a file that was replaced from the one that is open."""
        facts = Path(folder_paths.get_full_path_or_raise(FOLDER, engine_name)).stat()
        return facts.st_mtime_ns, facts.st_size


class Upscale(io.ComfyNode):
    """IMAGE -> IMAGE, `upscale_factor` times as large: each image has the pixels that `intsr upscale` makes of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IntSRUpscale",
            display_name="Upscale (IntSR)",
            category="image/upscaling",
            description="Enlarges each image by the engine's factor, in tiles.",
            inputs=[
                EngineType.Input("engine"),
                io.Image.Input("image"),
                io.Combo.Input(
                    "color_fix",
                    options=[AUTO, *COLOR_FIXES],
                    default=AUTO,
                    tooltip="Gives the result the colours of the input. auto: as the engine was made for.",
                ),
                io.Int.Input(
                    "tile",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Side of the tiles in pixels, of those the engine holds. 0: what costs least.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, engine: LoadedEngine, image: torch.Tensor, color_fix: str, tile: int) -> io.NodeOutput:
        """Upscale a batch.

        image: (B, H, W, C) float in [0, 1], C = 1 grey, 3 RGB or 4 RGBA -> (B, H f, W f, C) float32 on its device.
        Raises ImageError, UsageError, VerificationError, and ComfyUI's own exception where the user stops it.
        """
        if image.ndim != 4 or image.shape[3] not in _CHANNELS or 0 in image.shape:
            raise ImageError(
                "image", f"shape {tuple(image.shape)}", "(B, H, W, C) with 1, 3 or 4 channels, not empty"
            )
        count, height, width, channels = image.shape
        opened, bar = engine.at(tile, (height, width)), comfy.utils.ProgressBar(count)
        factor = opened.upscale_factor
        result = torch.empty((count, height * factor, width * factor, channels))
        for index, one in enumerate(image):
            watch = _watched(bar, index, count)
            made = _upscaled(opened, _pixels(one), None if color_fix == AUTO else color_fix, watch)
            result[index] = torch.from_numpy(made)
        return io.NodeOutput(result.to(image.device))


def _watched(bar: comfy.utils.ProgressBar, index: int, count: int) -> TileProgress:
    """Move the bar with the tiles of image `index` of `count`; raise ComfyUI's exception once the user stops it."""

    def watched(tiles: Sequence[Tile]) -> Iterator[Tile]:
        for done, tile in enumerate(tiles, index * len(tiles)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield tile
            bar.update_absolute(done + 1, count * len(tiles))

    return watched


def _pixels(image: torch.Tensor) -> Array:
    """(H, W, C) float -> uint8 where all values are levels of 8 bits, as those of most files are, else uint16.

    Values beyond [0, 1] are clipped, as ComfyUI does when it saves them. Raises ImageError.
    """
    unit = image.detach().cpu().float().clamp(0, 1).numpy()
    if np.isnan(unit).any():
        raise ImageError("image", "NaN values", "values in [0, 1]")
    levels = np.rint(unit * 255)
    if np.abs(unit * 255 - levels).max() < _SAME_LEVEL:
        return levels.astype(np.uint8)
    return np.rint(unit * 65535).astype(np.uint16)


def _upscaled(engine: Engine, pixels: Array, color_fix: str | None, progress: TileProgress) -> Array:
    """(H, W, C) uint8 or uint16 -> (H f, W f, C) float32 in [0, 1]. Transparency is enlarged apart from colours."""
    colours = pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[..., :3])
    made = [engine.upscale_with_timings(colours, color_fix, tile_progress=progress).image]
    if pixels.shape[2] == 4:
        made.append(enlarge(np.ascontiguousarray(pixels[..., 3]), engine.upscale_factor, "lanczos"))
    return np.dstack([_unit(part) for part in made])


def _unit(values: Array) -> Array:
    if values.dtype == np.float32:
        return values
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)


class IntsrExtension(ComfyExtension):
    """What ComfyUI registers."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadEngine, Upscale]


async def comfy_entrypoint() -> IntsrExtension:
    """Called by ComfyUI when it has imported the folder."""
    return IntsrExtension()
