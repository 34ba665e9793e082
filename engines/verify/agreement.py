"""Agreement in numbers: an engine's networks, one by one and in a row, against torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from intsr.errors import UsageError, VerificationError
from intsr.optional import require
from intsr.runtime.backends.protocol import Network
from intsr.runtime.measure.metrics import EXACT_DB, psnr_db, psnr_db_from_mse
from intsr.types import Bits

PICTURE_PEAK = 2.0  # pictures lie in [-1, 1]

F32 = NDArray[np.float32]

# What correct engines reach on every picture, flat ones included, in dB: docs/measure/agreement.md.
FULL_PRECISION_DB = {"f32": 60.0, "bf16": 36.0, "f16": 36.0}
# By the fewer bits of the two: one value that falls to the other side of a tie moves by a whole step, in each
# implementation another one, and a flat picture's values all fall alike.
INTEGER_DB = {8: 30.0, 7: 27.0, 6: 24.0, 5: 20.0, 4: 16.0, 3: 12.0, 2: 8.0}


def default_bound_db(bits: str, precision: str) -> float:
    """Return the PSNR that every picture must reach. bits: a manifest's; precision: of what is not integer, here."""
    from intsr.export.graphs import is_weight_only

    if bits == "fp" or is_weight_only(bits):
        return FULL_PRECISION_DB[precision]
    of_engine = Bits.parse(bits)
    return INTEGER_DB[min(of_engine.weights or 8, of_engine.activations or 8)]


class RunsNetworks(Protocol):
    """What is compared: an engine, or the torch reference."""

    @property
    def network_names(self) -> tuple[str, ...]:
        """Names in the order in which the networks run; the last one makes the picture."""
        ...

    def network(self, name: str) -> Network: ...


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far one network's outputs are from the reference's."""

    name: str
    # Over all pictures together.
    psnr_db: float
    # The largest single difference.
    max_abs_error: float

    def to_mapping(self) -> dict[str, Any]:
        return {"name": self.name, "psnr_db": round(self.psnr_db, 2), "max_abs_error": self.max_abs_error}


@dataclass(frozen=True, slots=True)
class Verification:
    """An engine compared with its reference."""

    # Each on the reference's own input.
    networks: tuple[Agreement, ...]
    # All of them in a row.
    end_to_end: Agreement
    # Picture, or frame of a clip -> its PSNR in dB, end to end.
    per_image_db: Mapping[str, float]
    # Network -> metric -> its mean over the pictures.
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[str, float]:
        """The picture on which the two agree least, and its PSNR in dB: a mean would hide a flat one."""
        return min(self.per_image_db.items(), key=lambda item: item[1])

    @property
    def metric_lines(self) -> list[str]:
        """`metrics` for people, a line a network."""
        numbers = {
            of: ", ".join(f"{name} {value:.6g}" for name, value in m.items()) for of, m in self.metrics.items()
        }
        return [f"{name:<11} {text}" for name, text in numbers.items()]


class _Errors:
    """Collects squared error, largest error, and the peak to relate them to."""

    def __init__(self, peak: float | None) -> None:
        self.squared, self.count, self.largest = 0.0, 0, 0.0
        self._peak, self._low, self._high = peak, np.inf, -np.inf

    def add(self, got: F32, expected: F32) -> float:
        """Return this pair's own PSNR."""
        if not np.isfinite(got).all():
            raise VerificationError("engine", "NaN or infinity in its output", "finite values")
        difference = (got - expected).astype(np.float64)
        squared = float((difference**2).sum())
        self.squared, self.count = self.squared + squared, self.count + difference.size
        self.largest = max(self.largest, float(np.abs(difference).max()))
        self._low, self._high = min(self._low, float(expected.min())), max(self._high, float(expected.max()))
        return psnr_db_from_mse(squared / difference.size, self._peak or self._high - self._low)

    def agreement(self, name: str) -> Agreement:
        peak = self._peak or self._high - self._low
        return Agreement(name, psnr_db_from_mse(self.squared / self.count, peak), self.largest)


def capped_psnr_db(first: NDArray[Any], second: NDArray[Any]) -> float:
    """PSNR of two pictures with a peak of 255, at most EXACT_DB."""
    return min(psnr_db(first.astype(np.float64), second.astype(np.float64)), EXACT_DB)


def verify(
    engine: RunsNetworks,
    reference: RunsNetworks,
    inputs: Iterable[tuple[str, F32]],
    *,
    compare: Callable[[F32, F32], Mapping[str, float]] | None = None,
) -> Verification:
    """Run both over named inputs, (1, 3, H, W) float32 in [-1, 1], or chunks of frames (1, 3, F, H, W).

    A latent's peak is the range of the reference's values; a picture's is 2, values clamped to [-1, 1] as they are
    when it is written. compare: further metrics of a network's output and the reference's, by name, as
    `polygraphy_metrics` gives them. Raises VerificationError for an output that is not finite, or no input at all,
    UsageError where the two are not of one model.
    """
    _check_shapes(engine, reference)
    names = reference.network_names
    errors = {name: _Errors(PICTURE_PEAK if name == names[-1] else None) for name in names}
    total, per_image = _Errors(PICTURE_PEAK), {}
    metrics: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names if compare}
    for label, x in inputs:
        given, value = x, x
        for name in names:
            expected = _output(reference, name, given)
            got = _output(engine, name, given)
            errors[name].add(got, expected)
            for metric, number in compare(got, expected).items() if compare else ():
                metrics[name][metric].append(number)
            value = got if value is given else _output(engine, name, value)
            given = expected
        for name, *pair in _pictures(label, value, expected):
            per_image[name] = total.add(*pair)
    if not per_image:
        raise VerificationError("--images", "no picture", "at least one")
    means = {name: {metric: float(np.mean(values)) for metric, values in of.items()} for name, of in metrics.items()}
    agreements = tuple(errors[name].agreement(name) for name in names)
    return Verification(agreements, total.agreement("end_to_end"), per_image, means)


# Polygraphy's comparators, and the field of the result that each one's number is in. Its PSNR is not among them: it
# takes the largest value of the first array for the peak, and a latent's is nobody's peak.
_METRICS = {
    "snr_db": ("SnrCompareFunc", "snr"),
    "cosine_similarity": ("CosineSimilarityCompareFunc", "cosine_similarity"),
    "l2": ("L2CompareFunc", "l2_norm"),
}


def polygraphy_metrics(got: Any, expected: Any) -> dict[str, float]:
    """Return Polygraphy's metrics by name, of one output and the reference's, arrays of the same shape.

    `snr_db` is at most EXACT_DB. Raises MissingLibraryError.
    """
    comparator = require("polygraphy.comparator", "comparing a GPU engine with its reference")
    logger = require("polygraphy.logger", "comparing a GPU engine with its reference").G_LOGGER
    results = [comparator.IterationResult(outputs={"output": array}) for array in (expected, got)]
    values: dict[str, float] = {}
    # It would print whether its own thresholds, which are not ours, are met.
    with logger.verbosity(logger.CRITICAL):
        for name, (function, field_name) in _METRICS.items():
            result = getattr(comparator, function)()(*results)["output"]
            values[name] = float(getattr(result, field_name))
    return values | {"snr_db": min(values["snr_db"], EXACT_DB)}


def check_agreement(result: Verification, bound_db: float, where: object, fix: str) -> None:
    """Raise VerificationError where a picture is below the bound."""
    below = [f"{value:.2f} dB on {name}" for name, value in result.per_image_db.items() if value < bound_db]
    if below:
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        expected = f"at least {bound_db:g} on every picture"
        raise VerificationError(where, f"{', '.join(below[:3])}{more}", expected, fix)


def _check_shapes(engine: RunsNetworks, reference: RunsNetworks) -> None:
    if engine.network_names != reference.network_names:
        there, wanted = (", ".join(each.network_names) for each in (engine, reference))
        raise UsageError("--against", f"the engine has networks {there}", f"the model's {wanted}")
    for name in reference.network_names:
        got, expected = ((n.input.shape, n.output.shape) for n in (engine.network(name), reference.network(name)))
        if got != expected:
            fix = "compare it with the model that it was made from"
            raise UsageError("--against", f"{name} of the engine has shapes {got}", f"the model's {expected}", fix)


def _pictures(label: str, got: F32, expected: F32) -> Iterator[tuple[str, F32, F32]]:
    """A picture by itself, the frames of a chunk one by one, each with its name."""
    if got.ndim == 4:
        yield label, got, expected
        return
    for index in range(got.shape[2]):
        yield f"{label}, frame {index + 1}", got[:, :, index], expected[:, :, index]


def _output(networks: RunsNetworks, name: str, x: F32) -> F32:
    y = networks.network(name).run(x).astype(np.float32)
    return y.clip(-1, 1) if name == networks.network_names[-1] else y
