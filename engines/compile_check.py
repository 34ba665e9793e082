"""An engine is put in its place only when it agrees with torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from intsr.calib.calibration import Calibration
from intsr.calib.model import ModelSource
from intsr.calib.pictures import calibration_inputs, list_pictures
from intsr.calib.torch_engine import reference_from_calibration
from intsr.console import progress
from intsr.engines.targets import Target
from intsr.engines.verify import Verification, verify
from intsr.errors import UsageError, VerificationError
from intsr.runtime.devices import list_devices
from intsr.runtime.engine import open_engine

PICTURES = 4


@dataclass(frozen=True, slots=True)
class Check:
    """images: a folder of low-resolution pictures, of which the first four are looked at. min_psnr_db: end to end."""

    images: Path
    min_psnr_db: float

    def pictures(self, target: Target) -> list[Path]:
        """Before long work. Raises UsageError: no picture, or no GPU to run the engine on."""
        if target.name.startswith("tensorrt"):
            devices, why = list_devices("cuda-python")
            if len(devices) == 1:
                raise UsageError("--verify", f"an engine of target {target.name} cannot run here ({why})")
        return list_pictures(self.images)[:PICTURES]

    def run(
        self, engine: Path, pictures: list[Path], source: ModelSource, ranges: Calibration | None, weight_only: bool
    ) -> Verification:
        """Raises VerificationError where they differ by more, OutOfMemoryError."""
        with open_engine(engine) as opened:
            reference = reference_from_calibration(source.load(), ranges, opened.tile_px, weight_only)
            inputs = calibration_inputs(progress(pictures, "verifying"), source.spec, opened.tile_px)
            result = verify(opened, reference, inputs)
        if result.end_to_end.psnr_db < self.min_psnr_db:
            got = f"{result.end_to_end.psnr_db:.2f} dB against torch: no engine was written"
            fix = "look at each network with intsr verify, or lower --min-psnr"
            raise VerificationError("--verify", got, f"at least {self.min_psnr_db:g}", fix)
        return result
