"""Open an `.engine` file and upscale pictures with it."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from intsr.bundle import Bundle, read_manifest
from intsr.runtime.compatibility import check_runs_here
from intsr.runtime.networks import Network, SessionOptions, open_networks, precision_from_network
from intsr.runtime.upscaler import Upscaler

if TYPE_CHECKING:
    from intsr.bundle import Identity
    from intsr.types import Manifest


class Engine(Upscaler):
    """An upscaler that came out of a bundle. path: the file. manifest: what it says about itself, with the opened
    tile size as the default. options: how it was opened.

    precision: what the parts that are not integer are computed in here.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        networks: tuple[Network, Network, Network],
        options: SessionOptions,
        identity: Identity,
    ) -> None:
        super().__init__(
            networks,
            manifest.tile_px,
            manifest.overlap_px,
            manifest.upscale_factor,
            manifest.resize_filter,
            manifest.color_fix,
            manifest.synthetic,
            path,
        )
        self.path, self.manifest, self.options = path, manifest, options
        self.precision = precision_from_network(networks[0])
        # Absolute: the program may go elsewhere before it asks for `reopen`.
        self._place, self._identity = path.absolute(), identity

    @property
    def tile_sizes(self) -> tuple[int, ...]:
        """Sides of the tiles that the file holds networks for, low-resolution pixels, the largest first."""
        return self.manifest.tile_sizes

    def reopen(self, tile_px: int) -> Engine:
        """The same file with the same options at another tile size; this engine is closed first.

        At the size that it has already, it is returned as it is where it is open. The members' hashes are checked
        again only where the file has changed. Raises UsageError for a size that the file does not hold (this engine
        then stays open), and what `open_engine` raises.
        """
        if tile_px == self.tile_px and not self._closed:
            return self
        self.manifest.at_tile(tile_px)
        self.close()
        return _open(self._place, replace(self.options, tile_px=tile_px), self._identity)

    def __enter__(self) -> Engine:
        return self


def open_engine(
    path: str | PathLike[str],
    threads: int | None = None,
    precision: str = "auto",
    device: str | None = None,
    cuda_backend: str = "cuda-python",
    profile: bool = False,
    tile_px: int | None = None,
) -> Engine:
    """Check the bundle, then open its three networks.

    threads: None for the library's own choice. precision: of what is not integer, `auto`, `f32` or `bf16`. device:
    for GPU engines `cuda:INDEX` or a part of its name. cuda_backend: `cuda-python` or `pycuda`. profile: see
    `SessionOptions`. tile_px: one of the file's tile sizes, None for its default. Checked in this order, before a
    library sees a byte: the options, the manifest, target, library, version, tile size, the members' hashes. Raises
    UsageError, BundleError, EngineMismatchError, OutOfMemoryError.
    """
    return _open(Path(path), SessionOptions(threads, precision, device, cuda_backend, profile, tile_px))


def _open(path: Path, options: SessionOptions, checked: Identity | None = None) -> Engine:
    """checked: of the file when its hashes were last found right."""
    check_runs_here(read_manifest(path), path)
    with Bundle(path, options.tile_px, checked) as bundle:
        networks = open_networks(bundle, options)
        try:
            engine = Engine(path, bundle.manifest, networks, options, bundle.identity)
        except BaseException:
            for network in networks:
                network.close()
            raise
    # Once more: the mapped file counted as this process's memory, and a fourth of SD 2.1's engine is that.
    engine.count_opened_memory()
    return engine
