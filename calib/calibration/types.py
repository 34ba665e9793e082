"""A calibration: numbers only, by site.

A site is a Conv2d, Conv3d or Linear by its diffusers name below `unet.`, `transformer.` or `vae.`, for example
`unet.down_blocks.0.resnets.0.conv1`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from intsr.calib.models.families.wan import VIDEO_PARTS
from intsr.errors import CalibrationError
from intsr.kernels.quantizer import QuantParams, quantize_weight, quantize_weight_in_range
from intsr.kernels.rotation import SIZES as ROTATION_SIZES
from intsr.types import MAX_BITS, MIN_BITS, Bits

PARTS = ("unet", "vae")
# Optional tensors of a site, with their dtypes: a pair is there whole or not at all.
ARRAY_DTYPES: dict[str, type[np.generic]] = {
    "let_scale": np.float32,
    "let_shift": np.float32,
    "weight_low": np.float32,
    "weight_high": np.float32,
    "weight_codes": np.int8,
    "weight_scale": np.float32,
    "branch_up": np.float32,
    "branch_down": np.float32,
}
ARRAY_PAIRS = (("let_scale", "let_shift"), ("weight_low", "weight_high"), ("weight_codes", "weight_scale"))
# How export folds a calibration: each layer on one grid, as `sites` say, or as PassionSR's own code computes it.
UNIFORM, PASSIONSR = "uniform", "passionsr"
# What an import knows of one site beyond `SiteQuantizer`: numbers, truth values and arrays by name.
Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class SiteQuantizer:
    """The numbers that calibration learned of one layer. Raises ValueError for numbers that no grid can have."""

    # The range of the layer's input; with a LET, of x~ = (x - d) / s.
    x_min: float
    x_max: float
    activation_bits: int
    weight_bits: int
    # s > 0 and d of LET, float32 (Cin,), or None for none. Everything said of weights is then of W~ = s W.
    let_scale: NDArray[np.float32] | None = None
    let_shift: NDArray[np.float32] | None = None
    # The learned range of each output channel's weights, float32 (Cout,); None: its own smallest and largest.
    weight_low: NDArray[np.float32] | None = None
    weight_high: NDArray[np.float32] | None = None
    # Weights that are rounded already, int8 in W's shape and float32 (Cout,): W~ = codes * scale. Methods that learn
    # how to round, or change the weights, give these.
    weight_codes: NDArray[np.int8] | None = None
    weight_scale: NDArray[np.float32] | None = None
    # A branch of small rank r that stays float, L = up down, float32 (Cout, r) and (r, Cin, kh, kw) or (r, in), on x
    # itself: the integer weights are then those of what it leaves, s (W - L).
    branch_up: NDArray[np.float32] | None = None
    branch_down: NDArray[np.float32] | None = None
    # Sizes of the blocks of `kernels.rotation`, 0 for none. Of the input: everything said of it, s and d too, is of
    # H x, and of weights of (W - L) H. Of the output: integer weights and bias are H W and H b, and their product is
    # rotated back.
    rotation: int = 0
    row_rotation: int = 0

    def __post_init__(self) -> None:
        for name in ("activation_bits", "weight_bits"):
            bits = getattr(self, name)
            if not (isinstance(bits, int) and MIN_BITS <= bits <= MAX_BITS):
                raise ValueError(f"{name} is {bits!r}, expected {MIN_BITS} to {MAX_BITS}")
        if not (math.isfinite(self.x_min) and math.isfinite(self.x_max) and self.x_min <= self.x_max):
            raise ValueError(f"range [{self.x_min}, {self.x_max}] is not finite and ordered")
        for pair in ARRAY_PAIRS:
            self._check_pair(*pair)
        if not {self.rotation, self.row_rotation} <= {0, *ROTATION_SIZES}:
            raise ValueError(f"rotations {self.rotation} and {self.row_rotation} are not of {ROTATION_SIZES}")
        self._check_branch()
        if self.let_scale is not None and not np.all(self.let_scale > 0):
            raise ValueError("let_scale must be positive")
        low, high = self.weight_low, self.weight_high
        if low is not None and high is not None and np.any(low > high):
            raise ValueError("weight_low must not be above weight_high")
        if self.weight_codes is not None:
            amax = 127 if self.weight_bits == MAX_BITS else 2**self.weight_bits - 1
            if self.weight_low is not None or np.abs(self.weight_codes.astype(np.int16)).max(initial=0) > amax:
                raise ValueError(f"weight_codes must lie within {amax} and exclude a learned weight range")

    def _check_branch(self) -> None:
        up, down = self.branch_up, self.branch_down
        if up is None and down is None:
            return
        if up is None or down is None or up.ndim != 2 or down.ndim not in (2, 4) or up.shape[1] != down.shape[0]:
            raise ValueError("branch_up (Cout, r) and branch_down (r, Cin, ...) belong together")
        for value in (up, down):
            if value.dtype != np.float32 or not np.all(np.isfinite(value)):
                raise ValueError("branch_up and branch_down must be finite float32")
            value.flags.writeable = False

    def _check_pair(self, first_name: str, second_name: str) -> None:
        first, second = getattr(self, first_name), getattr(self, second_name)
        if (first is None) != (second is None):
            raise ValueError(f"{first_name} and {second_name} belong together")
        if first is None:
            return
        for name, value in ((first_name, first), (second_name, second)):
            if value.dtype != ARRAY_DTYPES[name] or not np.all(np.isfinite(value)):
                raise ValueError(f"{name} must be finite {np.dtype(ARRAY_DTYPES[name]).name}")
            value.flags.writeable = False
        if second.ndim != 1 or len(first) != len(second):
            raise ValueError(f"{first_name} and {second_name} must be of one length")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the tensors that are there, by name."""
        return {name: value for name in ARRAY_DTYPES if (value := getattr(self, name)) is not None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SiteQuantizer) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        arrays = [(name, value.shape, value.tobytes()) for name, value in self.arrays().items()]
        rotations = (self.rotation, self.row_rotation)
        return (self.x_min, self.x_max, self.activation_bits, self.weight_bits, *rotations, *arrays)

    def branch(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return up and down of the branch, or None."""
        return None if self.branch_up is None or self.branch_down is None else (self.branch_up, self.branch_down)

    def activation_params(self) -> QuantParams:
        """Return the grid of the layer's input."""
        return QuantParams.from_range(self.x_min, self.x_max, self.activation_bits)

    def explicit_shift(self) -> NDArray[np.float32] | None:
        """Return d where padding must come before it, in a layer whose LET folds into nothing; else None.

        A grid without 0 has no code for a padded zero: then even a d of zeros says that padding comes first.
        """
        if self.let_shift is None:
            return None
        grid = self.activation_params()
        return self.let_shift if self.let_shift.any() or not 0 <= grid.zero_point <= grid.qmax else None

    def quantize_weight(self, weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return integers in the shape of W~ = s W, and their scales (Cout,), of the first rows if W~ has fewer.

        They are codes learned by calibration, or on its ranges, or on each row's own maximum.
        """
        rows = len(weight)
        if self.weight_codes is not None and self.weight_scale is not None:
            return self.weight_codes[:rows], self.weight_scale[:rows]
        if self.weight_low is not None and self.weight_high is not None:
            return quantize_weight_in_range(weight, self.weight_low[:rows], self.weight_high[:rows], self.weight_bits)
        return quantize_weight(weight, self.weight_bits)


@dataclass(frozen=True, slots=True)
class PhaseName:
    """One phase of training, which a learning curve and a journal's file are named after."""

    # encoder, unet or decoder.
    network: str
    # "" for a phase of the whole network.
    block: str
    # "" for all stages of a block.
    stage: str

    def __str__(self) -> str:
        return ": ".join(name for name in (self.network, self.block, self.stage) if name)

    @classmethod
    def parse(cls, text: str) -> PhaseName:
        """Read the name of a learning curve: of a stage of a block, or of a whole network."""
        network, *block, stage = text.split(": ")
        return cls(network, ": ".join(block), stage)


@dataclass(frozen=True, slots=True)
class Clipped:
    """Shares of one layer's input that lie outside its grid, 0 to 1: on pictures, and on `made_pictures`."""

    pictures: float
    guard: float

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.pictures, self.guard)):
            raise ValueError(f"clipped: {self.pictures} and {self.guard} are not shares from 0 to 1")


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Of one layer, by `learn.volts`: the variance of its input's mean over clips, and the tier that it is in."""

    variance: float
    tier: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """Ranges of every layer of `parts` of the model whose digest is `model_digest`."""

    method: str
    bits: Bits
    parts: tuple[str, ...]
    model: str
    model_digest: str
    # How many it was made from.
    pictures: int
    # Side of the low-resolution tiles looked at.
    tile_px: int
    # What calibrating took.
    seconds: float
    peak_bytes: int
    sites: Mapping[str, SiteQuantizer] = field(default_factory=dict)
    # Learning curves, by the text of a PhaseName: [[step, loss, loss on held-out pictures], ...].
    curves: Mapping[str, list[list[float]]] = field(default_factory=dict)
    # What pictures were compared by in training, beside their squared error; "" where none were.
    perceptual: str = ""
    # Sites of the upsamplers that are in phases (`models.phases`); the others are whole.
    phases: tuple[str, ...] = ()
    # Of every layer that engines run on integers; none of an imported calibration.
    clipped: Mapping[str, Clipped] = field(default_factory=dict)
    # Of methods that train layers by tiers.
    sensitivity: Mapping[str, Sensitivity] = field(default_factory=dict)
    # Of an imported calibration alone, kind -> site -> record: engines compute with these, and `sites` sum them up.
    imported: Mapping[str, Mapping[str, Record]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.parts or not any(set(self.parts) <= set(parts) for parts in (PARTS, VIDEO_PARTS)):
            raise CalibrationError("calibration", f"parts {self.parts}", f"some of {PARTS} or of {VIDEO_PARTS}")
        for name in ("sites", "clipped", "sensitivity", "imported"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def folding(self) -> str:
        """UNIFORM or PASSIONSR: who folds it into weights."""
        return PASSIONSR if self.imported else UNIFORM

    def digest(self) -> str:
        """Return a SHA-256 over everything that changes an engine; how long calibrating took does not."""
        facts = [self.method, str(self.bits), list(self.parts), self.model_digest]
        if self.phases:
            facts.append(list(self.phases))
        digest = hashlib.sha256(json.dumps(facts).encode())
        for site, q in self.sites.items():
            digest.update(json.dumps([site, repr(q.x_min), repr(q.x_max), q.activation_bits, q.weight_bits]).encode())
            if q.rotation or q.row_rotation:
                digest.update(json.dumps([q.rotation, q.row_rotation]).encode())
            for name, array in q.arrays().items():
                digest.update(f"{name}{array.shape}".encode() + array.tobytes())
        for kind, records in self.imported.items():
            for site, record in records.items():
                digest.update(f"{kind} {site}".encode())
                for name, value in sorted(record.items()):
                    array = np.asarray(value)
                    digest.update(f"{name}{array.dtype}{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    def check_model(self, digest: str, name: str) -> None:
        """Raise CalibrationError where this calibration belongs to another model than `name` with this digest."""
        if self.model_digest != digest:
            raise CalibrationError(
                f"calibration of {self.model}",
                f"made for a model with digest {self.model_digest[:12]}",
                f"{digest[:12]} ({name})",
                "calibrate this model (intsr calibrate), or give the --lora and the like it was made with",
            )
