"""Open an `.engine` file and upscale pictures with it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from intsr.bundle import Bundle, read_manifest
from intsr.runtime.compatibility import check_runs_here
from intsr.runtime.networks import Network, SessionOptions, open_networks, precision_from_network
from intsr.runtime.upscaler import Upscaler

if TYPE_CHECKING:
    from intsr.types import Manifest


class Engine(Upscaler):
    """An upscaler that came out of a bundle. path: the file. manifest: what it says about itself.

    precision: what the parts that are not integer are computed in here.
    """

    def __init__(self, path: Path, manifest: Manifest, networks: tuple[Network, Network, Network]) -> None:
        super().__init__(
            networks,
            manifest.tile_px,
            manifest.overlap_px,
            manifest.upscale_factor,
            manifest.resize_filter,
            manifest.color_fix,
            manifest.synthetic,
        )
        self.path, self.manifest = path, manifest
        self.precision = precision_from_network(networks[0])

    def __enter__(self) -> Engine:
        return self


def open_engine(
    path: str | PathLike[str],
    threads: int | None = None,
    precision: str = "auto",
    device: str | None = None,
    cuda_backend: str = "cuda-python",
    profile: bool = False,
) -> Engine:
    """Check the bundle, then open its three networks.

    threads: None for the library's own choice. precision: of what is not integer, `auto`, `f32` or `bf16`. device:
    for GPU engines `cuda:INDEX` or a part of its name. cuda_backend: `cuda-python` or `pycuda`. profile: see
    `SessionOptions`. Checked in this order, before a library sees a byte: the options, the manifest, target, library,
    version, the members' hashes. Raises UsageError, BundleError, EngineMismatchError, OutOfMemoryError.
    """
    path = Path(path)
    options = SessionOptions(threads, precision, device, cuda_backend, profile)
    check_runs_here(read_manifest(path), path)
    with Bundle(path) as bundle:
        networks = open_networks(bundle, options)
        try:
            return Engine(path, bundle.manifest, networks)
        except BaseException:
            for network in networks:
                network.close()
            raise
