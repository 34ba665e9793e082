"""Small random models in AdcSR's published files."""

from __future__ import annotations

from pathlib import Path

from intsr.calib.models.families.adcsr import AdcSRArchitecture
from intsr.calib.models.synth import write_synthetic_adcsr

# Two UNet blocks, attention in the first; 8 low-resolution pixels and their multiples, wide enough for every rule of
# GroupNorm's groups: 48 and 144 channels have 24, 96 have 32.
SMALL = AdcSRArchitecture("adcsr-small", (48, 96), (True, False), 1, (32, 32, 64, 64))


def write_small_adcsr(folder: Path) -> Path:
    """Both published files in `folder`."""
    write_synthetic_adcsr(SMALL, folder)
    return folder
