"""An engine is put in its place only when it agrees with torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from intsr.calib.calibration.types import Calibration
from intsr.calib.data.pictures import verification_inputs
from intsr.calib.models.open import ModelSource
from intsr.cli.console import progress
from intsr.engines.verify.agreement import (
    RunsNetworks,
    Verification,
    check_agreement,
    default_bound_db,
    polygraphy_metrics,
    verify,
)
from intsr.engines.verify.reference import reference_from_calibration
from intsr.errors import UsageError
from intsr.runtime.backends.compatibility import list_devices
from intsr.runtime.engine import Engine, open_engine
from intsr.runtime.pictures.reader import list_pictures
from intsr.targets import Target, target_from_name
from intsr.types import ModelSpec

PICTURES = 4


def verify_engine(
    engine: Engine, reference: RunsNetworks, spec: ModelSpec, pictures: Sequence[Path], min_psnr_db: float | None
) -> tuple[Verification, float]:
    """Compare on pictures and on smooth tiles made for it; also returns what every picture must reach, in dB.

    min_psnr_db: that bound; None for what correct engines reach. Raises VerificationError, UsageError, ImageError.
    """
    inputs = list(verification_inputs(pictures, spec, engine.tile_px))
    # Plans of TensorRT are judged as its own tools judge them, too.
    compare = polygraphy_metrics if target_from_name(engine.manifest.target).gpu else None
    result = verify(engine, reference, progress(inputs, "verifying"), compare=compare)
    bound_db = default_bound_db(engine.manifest.bits, engine.precision) if min_psnr_db is None else min_psnr_db
    return result, bound_db


@dataclass(frozen=True, slots=True)
class Check:
    """Compares an engine with torch on the first four pictures of a folder and on smooth ones made for it."""

    # A folder of low-resolution pictures.
    images: Path
    # See `verify_engine`.
    min_psnr_db: float | None

    def pictures(self, target: Target) -> list[Path]:
        """List the pictures, before long work. Raises UsageError: no picture, or no GPU to run the engine on."""
        if target.gpu:
            devices, why = list_devices()
            if len(devices) == 1:
                raise UsageError("--verify", f"an engine of target {target.name} cannot run here ({why})")
        return list_pictures(self.images)[:PICTURES]

    def run(
        self, engine: Path, pictures: list[Path], source: ModelSource, ranges: Calibration | None, weight_only: bool
    ) -> Verification:
        """Compare the engine with torch. Raises VerificationError where they differ by more, OutOfMemoryError."""
        with open_engine(engine) as opened:
            reference = reference_from_calibration(source.load(), ranges, opened.tile_px, weight_only)
            result, bound_db = verify_engine(opened, reference, source.spec, pictures, self.min_psnr_db)
        fix = "no engine was written: look at each network with intsr verify, or lower --min-psnr"
        check_agreement(result, bound_db, "--verify", fix)
        return result
