"""`python -m intsr.kernels.selfcheck`: every kernel against its reference on fresh random inputs, on this GPU.

One line a check: name, shape, largest error, share of numbers that differ, time, rate, share of the peak measured
here first. Exit codes: 0 all agree, 1 some do not, 3 no usable GPU. A kernel that faults ends it: what would follow
fails with it, and would hide which one it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np

from intsr.arrays import Array
from intsr.errors import EXIT_ENGINE_MISMATCH, EXIT_OK, EXIT_SOME_FAILED, IntsrError
from intsr.kernels.checks import group_norm_plugin, picture
from intsr.kernels.checks.check import Check, Random
from intsr.kernels.launches.launch import Device

_COPY_BYTES = 1 << 30
_KINDS = (picture, group_norm_plugin)


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one check."""

    name: str
    shape: str
    passed: bool
    max_error: float
    differing_share: float
    # This and what follows from it are None on an emulated device, whose times mean nothing.
    time_ms: float | None = None
    # Of reading the inputs and writing the output, each once.
    gbs: float | None = None
    share_of_peak: float | None = None
    # Whether the kernel's fault left the GPU unusable, so that no later check was run.
    context_lost: bool = False

    def line(self) -> str:
        head = f"{'ok  ' if self.passed else 'FAIL'} {self.name:36} {self.shape:40} "
        error = f"error {self.max_error:.3g} in {self.differing_share:.4%}"
        if self.time_ms is None:
            return head + error
        return f"{head}{error}, {self.time_ms:.4f} ms, {self.gbs:.0f} GB/s, {self.share_of_peak:.0%} of peak"


def measure_peak(device: Device, repeats: int = 20) -> float:
    """Return the rate in GB/s at which this GPU copies its memory, bytes read plus written."""
    return 2 * _COPY_BYTES / device.copy_milliseconds(_COPY_BYTES, repeats) / 1e6


def compare(got: Array, expected: Array) -> tuple[float, float]:
    """Return the largest difference, infinite where one of two is no number, and the share of numbers that differ."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return float("inf"), 1.0
    differs = got != expected
    if not differs.any():
        return 0.0, 0.0
    error = np.abs(got[differs].astype(np.float64) - expected[differs].astype(np.float64))
    return (float(error.max()) if np.isfinite(error).all() else float("inf")), float(differs.mean())


def run_check(device: Device, check: Check, copy_gbs: float | None, repeats: int = 20) -> Result:
    """copy_gbs: the rate to compare with; None where times mean nothing."""
    plan = check.plan(device)
    expected = check.expected()
    error, share = compare(device.download(device.run(plan)), expected)
    passed = error <= check.tolerance.max_error and share <= check.tolerance.max_share
    result = Result(check.name, check.shape, passed, error, share)
    if copy_gbs is None:
        return result
    time_ms = device.milliseconds(plan, repeats)
    gbs = sum(array.nbytes for array in (*check.inputs, expected)) / time_ms / 1e6
    return replace(result, time_ms=time_ms, gbs=gbs, share_of_peak=gbs / copy_gbs)


def all_checks(rng: Random, clusters: bool, full: bool) -> Iterator[Check]:
    """Yield every kernel and every branch in small sizes, and, where `full`, in sizes where times mean something."""
    for kind in _KINDS:
        yield from kind.small_checks(rng, clusters)
    for kind in _KINDS if full else ():
        yield from kind.full_checks(rng, clusters)


def open_device(emulate: bool) -> Device:
    """Return the GPU or its emulation. Raises IntsrError without the libraries or the compiler for it."""
    if emulate:
        from intsr.kernels.devices.emulated import EmulatedDevice

        return EmulatedDevice()
    from intsr.kernels.devices.cuda import GpuDevice

    return GpuDevice()


def _is_lost(device: Device) -> bool:
    """Tell whether a kernel's fault has made every call to the GPU fail."""
    try:
        device.upload(np.zeros(1, np.uint8))
    except IntsrError:
        return True
    return False


def run_selfcheck(device: Device, seed: int, say: Callable[[str], None]) -> tuple[float | None, list[Result]]:
    """Run all checks, saying one line each; one that cannot run has failed, and is the last where the GPU is lost.

    The rate of `measure_peak` is returned with the results.
    """
    copy_gbs = None if device.emulated else measure_peak(device)
    say(f"{device.name}, compute capability {device.capability[0]}.{device.capability[1]}, seed {seed}")
    if copy_gbs:
        say(f"measured peak: copy {copy_gbs:.0f} GB/s")
    rng: Random = np.random.default_rng(seed)
    results = []
    for check in all_checks(rng, device.capability >= (9, 0), full=not device.emulated):
        try:
            result = run_check(device, check, copy_gbs)
        except IntsrError as error:
            lost = _is_lost(device)
            say(f"FAIL {check.name} {check.shape}: {error}")
            results.append(Result(check.name, check.shape, False, float("inf"), 1.0, context_lost=lost))
            if lost:
                say(f"stopped: the GPU's context is lost with {check.name} {check.shape}; later checks were not run")
                break
            continue
        results.append(result)
        say(result.line())
    return copy_gbs, results


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m intsr.kernels.selfcheck", description="Check the device kernels.")
    parser.add_argument("--emulate", action="store_true", help="run the kernels' sources on the CPU, small sizes")
    parser.add_argument("--seed", type=int, default=None, help="of the inputs (default: a new one each time)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else there")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
    try:
        device = open_device(options.emulate)
    except IntsrError as error:
        print(error, file=sys.stderr)
        return EXIT_ENGINE_MISMATCH
    stream = sys.stderr if options.json else sys.stdout
    try:
        copy_gbs, results = run_selfcheck(device, seed, lambda line: print(line, file=stream, flush=True))
    except IntsrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    failed = sum(not result.passed for result in results)
    print(f"{len(results)} checks, {failed} failed", file=stream)
    if options.json:
        report = {
            "device": device.name,
            "seed": seed,
            "peaks": {"copy_gbs": copy_gbs} if copy_gbs else None,
            "checks": [asdict(result) for result in results],
        }
        print(json.dumps(report).replace("Infinity", "null"))
    return EXIT_SOME_FAILED if failed else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
