"""Open an `.engine` file and upscale pictures with it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from intsr.bundle import Bundle, is_overwritten, read_manifest
from intsr.errors import BundleError, IntsrError, OutOfMemoryError
from intsr.runtime.backends.compatibility import check_runs_here, expected_inference_bytes
from intsr.runtime.backends.protocol import Backend, SessionOptions, backend_module, ran_out_of_memory
from intsr.runtime.upscaler import Upscaler

if TYPE_CHECKING:
    from intsr.bundle import Identity

_FREE_SOME = "close other programs, or use an engine of smaller tiles (--tile)"


class Engine(Upscaler):
    """An upscaler that came out of a bundle.

    `path` is the file, `manifest` what it says about itself, with the opened tile size as the default, `options` how
    it was opened, and `precision` what the parts that are not integer are computed in here.
    """

    def __init__(self, path: Path, bundle: Bundle, backend: Backend, options: SessionOptions) -> None:
        manifest = bundle.manifest
        super().__init__(
            backend,
            manifest.tile_px,
            manifest.overlap_px,
            manifest.upscale_factor,
            resize_filter=manifest.resize_filter,
            color_fix=manifest.color_fix,
            min_side_px=manifest.min_side_px,
            synthetic=manifest.synthetic,
            where=path,
        )
        self.path, self.manifest, self.options = path, manifest, options
        self.precision, self.expected_bytes = backend.precision, expected_inference_bytes(manifest)
        # Absolute: the program may go elsewhere before it asks for `reopen`.
        self._place, self._identity = path.absolute(), bundle.identity
        # Whether the networks read from the file as they run.
        self._in_place = bundle.is_used_in_place

    @property
    def tile_sizes(self) -> tuple[int, ...]:
        """The sides of the tiles that the file holds networks for, low-resolution pixels, the largest first."""
        return self.manifest.tile_sizes

    def reopen(self, tile_px: int) -> Engine:
        """Open the same file with the same options at another tile size; this engine is closed first.

        At the size that it has already, it is returned as it is where it is open. The members' hashes are checked
        again only where the file has changed. Raises UsageError for a size that the file does not hold (this engine
        then stays open), and what `open_engine` raises.
        """
        if tile_px == self.tile_px and not self._closed:
            return self
        self.manifest.at_tile(tile_px)
        self.close()
        return open_engine_with(self._place, replace(self.options, tile_px=tile_px), self._identity)

    def check_usable(self) -> None:
        """Raises UsageError after `close`; BundleError where its networks read from a file that has been written into
        since: at best the results would be wrong.
        """
        super().check_usable()
        if self._in_place and is_overwritten(self._place, self._identity):
            fix = "open it again; if that is to happen, with a copy: --copy-engine, or open_engine(copy=True)"
            raise BundleError(self.path, "was written into while it was in use", "a file that stays as it is", fix)


def open_engine(
    path: str | PathLike[str],
    threads: int | None = None,
    precision: str = "auto",
    *,
    device: str | None = None,
    cuda_backend: str = "cuda-python",
    profile: bool = False,
    tile_px: int | None = None,
    copy: bool = False,
    cache: bool = True,
) -> Engine:
    """Check the bundle, then open its networks.

    threads: None for the library's own choice; a GPU has none. precision: of what is not integer, `auto`, `f32` or
    `bf16`. device: None for the target's own, for GPU engines `cuda:INDEX` or a part of its name. cuda_backend: who
    talks to CUDA, `cuda-python` or `pycuda`. profile: time each layer (`Backend.layer_times_ms`), which costs some
    itself. tile_px: one of the file's tile sizes, None for its default. copy: the file may be written into while the
    engine is open, which a small one (`bundle.COPIED_BYTES`) always may: it is read into memory. cache: what
    libraries make of a network may be kept in the user's cache, and taken from there. Checked in this order: the
    options, the manifest, target, library, version, tile size, the members' hashes; before a library sees a byte, but
    of weights beside a graph from the cache, which are checked before anything is computed with them.
    Raises UsageError, BundleError, EngineMismatchError, OutOfMemoryError.
    """
    options = SessionOptions(threads, precision, device, cuda_backend, profile, tile_px, copy, cache)
    return open_engine_with(Path(path), options)


def open_engine_with(path: Path, options: SessionOptions, checked: Identity | None = None) -> Engine:
    """Do as `open_engine`, with its options in one. checked: of the file when its hashes were last found right."""
    try:
        check_runs_here(read_manifest(path), path)
        with Bundle(path, options.tile_px, checked, options.copy) as bundle, ExitStack() as opened:
            backend: Backend = backend_module(bundle.manifest.target).open_backend(bundle, options)
            opened.callback(backend.close)
            bundle.check()
            engine = Engine(path, bundle, backend, options)
            opened.pop_all()
    except IntsrError:
        raise
    except Exception as error:  # Libraries, loaded only now, have many kinds.
        if not ran_out_of_memory(error):
            raise
        text = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise OutOfMemoryError(path, f"there is not enough memory to open it ({text})", fix=_FREE_SOME) from error

    # Count again: the mapped engine file was included above, about a quarter of it for SD 2.1.
    engine.count_opened_memory()
    return engine
