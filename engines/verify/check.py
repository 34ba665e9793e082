"""An engine is put in its place only when it agrees with torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from intsr.calib.calibration.types import Calibration
from intsr.calib.data.pictures import verification_inputs
from intsr.calib.models.open import ModelSource
from intsr.cli.console import progress
from intsr.engines.verify.agreement import Verification, check_agreement, default_bound_db, verify
from intsr.engines.verify.reference import reference_from_calibration
from intsr.errors import UsageError
from intsr.runtime.backends.compatibility import list_devices
from intsr.runtime.engine import open_engine
from intsr.runtime.pictures.reader import list_pictures
from intsr.targets import Target

PICTURES = 4


@dataclass(frozen=True, slots=True)
class Check:
    """Compares an engine with torch on the first four pictures of a folder and on smooth ones made for it."""

    # A folder of low-resolution pictures.
    images: Path
    # What every one of them must reach end to end; None for what correct engines reach.
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
            inputs = list(verification_inputs(pictures, source.spec, opened.tile_px))
            result = verify(opened, reference, progress(inputs, "verifying"))
            bound_db = default_bound_db(opened.manifest.bits, opened.precision)
        bound_db = bound_db if self.min_psnr_db is None else self.min_psnr_db
        fix = "no engine was written: look at each network with intsr verify, or lower --min-psnr"
        check_agreement(result, bound_db, "--verify", fix)
        return result
