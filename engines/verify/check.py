"""An engine is put in its place only when it agrees with torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from intsr.calib.data.clips import list_clips, verification_clips
from intsr.calib.data.pictures import verification_inputs
from intsr.calib.models.video_spec import VideoSpec
from intsr.cli.console import progress
from intsr.engines.verify.agreement import (
    RunsNetworks,
    Verification,
    check_agreement,
    default_bound_db,
    polygraphy_metrics,
    verify,
)
from intsr.engines.verify.chunks import ChunkNetworks
from intsr.errors import UsageError
from intsr.manifest import Manifest
from intsr.runtime.backends.compatibility import list_devices
from intsr.runtime.backends.video import VideoBackend
from intsr.runtime.engine import Engine, open_engine
from intsr.runtime.pictures.reader import list_pictures
from intsr.targets import Target, target_from_name
from intsr.types import PictureSpec

PICTURES = 4


def list_shown(images: Path, is_video: bool) -> list[Path]:
    """Return the pictures of a folder, or for a video engine the films of one. Raises UsageError."""
    return list_clips(images) if is_video else list_pictures(images)


def verify_engine(
    engine: Engine,
    reference: RunsNetworks,
    spec: PictureSpec | VideoSpec,
    shown: Sequence[Path],
    min_psnr_db: float | None,
) -> tuple[Verification, float]:
    """Compare on pictures, or clips, and on smooth tiles made for it; also returns what each must reach, in dB.

    shown: of `list_shown`. min_psnr_db: that bound, of every picture or frame; None for what correct engines reach.
    Raises VerificationError, UsageError, ImageError.
    """
    networks: RunsNetworks = engine
    if isinstance(spec, VideoSpec):
        assert isinstance(engine.backend, VideoBackend)
        inputs = list(verification_clips(shown, spec, engine.tile_px, engine.backend.chunk.frames))
        networks = ChunkNetworks(engine.backend)
    else:
        inputs = list(verification_inputs(shown, spec, engine.tile_px))
    # Plans of TensorRT are judged as its own tools judge them, too.
    compare = polygraphy_metrics if target_from_name(engine.manifest.target).gpu else None
    result = verify(networks, reference, progress(inputs, "verifying"), compare=compare)
    bound_db = default_bound_db(engine.manifest.bits, engine.precision) if min_psnr_db is None else min_psnr_db
    return result, bound_db


@dataclass(frozen=True, slots=True)
class Check:
    """Compares an engine with torch on a folder's first four pictures, or clips, and on smooth ones made for it."""

    # A folder of low-resolution pictures; for a video model of films, or pictures, which then stand still.
    images: Path
    # See `verify_engine`.
    min_psnr_db: float | None

    def shown(self, target: Target, is_video: bool = False) -> list[Path]:
        """List what is shown to it, before long work. Raises UsageError: nothing, or no GPU to run the engine on."""
        if target.gpu:
            devices, why = list_devices()
            if len(devices) == 1:
                raise UsageError("--verify", f"an engine of target {target.name} cannot run here ({why})")
        return list_shown(self.images, is_video)[:PICTURES]

    def put_in_place(
        self,
        build: Callable[[Path], Manifest],
        output: Path,
        shown: list[Path],
        spec: PictureSpec | VideoSpec,
        reference_of: Callable[[Engine], RunsNetworks],
    ) -> tuple[Manifest, Verification]:
        """Build an engine beside `output`, and move it there when it agrees with its reference.

        Raises what `build` raises, VerificationError where they differ by more, OutOfMemoryError.
        """
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".intsr-verify-", dir=output.parent) as beside:
            place = Path(beside) / output.name
            manifest = build(place)
            with open_engine(place) as opened:
                result, bound_db = verify_engine(opened, reference_of(opened), spec, shown, self.min_psnr_db)
            fix = "no engine was written: look at each network with intsr verify, or lower --min-psnr"
            check_agreement(result, bound_db, "--verify", fix)
            place.replace(output)
        return manifest, result
