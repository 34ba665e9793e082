"""`intsr bench`: what it says, that it interleaves, and that it warns."""

from __future__ import annotations

import errno
import itertools
import json
import signal
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from intsr.errors import EXIT_ENGINE_MISMATCH, EXIT_SOME_FAILED, EXIT_USAGE
from intsr.runtime.backends.protocol import backend_module
from intsr.runtime.engine import open_engine
from intsr.runtime.measure import benchmark
from intsr.runtime.measure import report as benchmark_report
from intsr.runtime.measure.benchmark import Entry, bench_picture, measure
from intsr.runtime.measure.measurement import Measurement, relative_to_first, warnings_from_measurements
from intsr.runtime.upscaler import STAGES, UpscaleResult
from intsr.types import NO_WEIGHT_OPTIONS, WeightOptions

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--size", 24, "--min-seconds", 0.01, "--min-runs", 3, "--threads", 1)


class ClockedUpscaler:
    """Answers at once, claims the given latencies in turn, and keeps a log of who ran."""

    upscale_factor = 4

    def __init__(self, name: str, latencies_ms: list[float], log: list[str]) -> None:
        self.name, self.latencies_ms, self.log = name, itertools.cycle(latencies_ms), log
        self.backend = types.SimpleNamespace(
            precision="f32", device=None, notes=(), chunk=None, device_bytes=lambda: None, uses_graphs=lambda: None
        )

    def upscale_with_timings(self, picture: np.ndarray) -> UpscaleResult:
        latency_ms = next(self.latencies_ms)
        self.log.append(self.name)
        return UpscaleResult(picture, dict.fromkeys(STAGES, latency_ms / len(STAGES)), latency_ms, 1)


def _entry(name: str, latencies_ms: list[float], log: list[str], bits: str = "w8a8") -> Entry:
    return Entry(path=name, target="cpu", bits=bits, upscaler=ClockedUpscaler(name, latencies_ms, log))


def test_warm_up_then_interleaved_until_both_limits_hold() -> None:
    log: list[str] = []
    entries = [_entry("a", [100.0], log), _entry("b", [50.0], log)]
    first, second = measure(entries, bench_picture(8, 8), min_runs=5, min_seconds=0.4)
    assert log[:6] == ["a", "a", "b", "b", "b", "b"]  # 200 ms each
    # 5 runs are not enough: b needs 8 for 0.4 s. Each follows an unmeasured run of its own.
    assert log[6:] == ["a", "a", "b", "b"] * 8
    assert (first.runs, second.runs) == (8, 8)
    assert (first.median_ms, second.median_ms) == (100, 50)
    assert second.images_per_s == pytest.approx(20)
    assert second.output_megapixels_per_s == pytest.approx(20 * 32 * 32 / 1e6)
    assert relative_to_first([first, second])[1]["speedup"] == pytest.approx(2)


def test_a_gpu_warms_up_longer_and_its_clock_is_read_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    gpus = [{"name": "NVIDIA H200", "clock_sm_mhz": "1980"}, {"name": "NVIDIA A2", "clock_sm_mhz": "300"}]
    ran_before, ran_again = [], threading.Event()

    class Working(ClockedUpscaler):
        def upscale_with_timings(self, picture: np.ndarray) -> UpscaleResult:
            if ran_before:
                ran_again.set()
            return super().upscale_with_timings(picture)

    def gpus_from_nvidia_smi() -> list[dict[str, str]]:
        ran_before.append(len(log))
        assert ran_again.wait(timeout=60), "the GPU waits while its clock is read"
        return gpus

    monkeypatch.setattr(benchmark, "gpus_from_nvidia_smi", gpus_from_nvidia_smi)
    entry = _entry("a", [], log)
    entry.upscaler = Working("a", [100.0], log)
    entry.upscaler.backend.device = "cuda:0 NVIDIA H200 (sm90)"
    (result,) = measure([entry], bench_picture(8, 8), min_runs=2, min_seconds=0)
    # 1.5 s instead of 0.2; the thread may begin a run later than it was asked to.
    assert ran_before[0] >= 15
    assert result.clock_mhz == 1980 and result.runs == 2
    monkeypatch.setattr(benchmark, "gpus_from_nvidia_smi", list)
    # As where there is no nvidia-smi.
    assert measure([entry], bench_picture(8, 8), 1, 0)[0].clock_mhz is None


def test_statistics() -> None:
    times = [float(value) for value in range(1, 101)]
    (result,) = measure([_entry("a", [300.0, *times], [])], bench_picture(8, 8), min_runs=100, min_seconds=0)
    assert (result.min_ms, result.max_ms, result.mean_ms, result.median_ms) == (1, 100, 50.5, 50.5)
    assert sum(result.stages_ms.values()) == pytest.approx(result.median_ms)
    assert result.networks_ms == pytest.approx(result.median_ms * 3 / len(STAGES))
    assert (result.p90_ms, result.p95_ms, result.p99_ms) == pytest.approx((90.1, 95.05, 99.01))
    assert result.variation_percent == pytest.approx(np.std(times) / 50.5 * 100)


def test_long_runs_need_no_run_before_them_and_are_few() -> None:
    log: list[str] = []
    entries = [_entry("a", [5000.0], log), _entry("b", [500.0], log)]
    told: list[tuple[float, float]] = []
    first, second = measure(
        entries, bench_picture(8, 6), None, 0.1, on_round=lambda share, left_s: told.append((share, left_s))
    )
    assert log == ["a", "b"] + ["a", "b", "b"] * 3 and (first.runs, second.runs) == (3, 3)
    assert told == [(0.0, 18.0), (pytest.approx(1 / 3), 12.0), (pytest.approx(2 / 3), 6.0), (1.0, 0.0)]
    assert first.input_px == (8, 6)
    # Another size begins anew.
    assert measure(entries, bench_picture(8, 8), 2, 0)[0].runs == 2


@pytest.mark.parametrize("after", [4, 5, 6])
def test_ctrl_c_leaves_what_was_measured(after: int) -> None:
    log: list[str] = []

    class Stopped(ClockedUpscaler):
        def upscale_with_timings(self, picture: np.ndarray) -> UpscaleResult:
            if len(log) == after:
                raise KeyboardInterrupt
            return super().upscale_with_timings(picture)

    entries = [_entry(name, [2000.0], log) for name in "ab"]
    for entry in entries:
        entry.upscaler = Stopped(entry.path, [2000.0], log)
    with pytest.raises(benchmark.InterruptedMeasurement) as caught:
        measure(entries, bench_picture(8, 8), 10, 0)
    assert [m.runs for m in caught.value.measurements] == [(after - 1) // 2, (after - 2) // 2]


def test_ctrl_c_before_there_is_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = _entry("a", [300.0], [])
    monkeypatch.setattr(Entry, "measure", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt) as caught:
        measure([entry], bench_picture(8, 8), 10, 0)
    assert not isinstance(caught.value, benchmark.InterruptedMeasurement)


def test_an_interrupted_command_prints_its_results(
    intsr: Run, identity_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    measure_once = Entry.measure

    def measured(entry: Entry, picture: np.ndarray) -> None:
        calls.append(picture.shape)
        if len(calls) == 5:
            raise KeyboardInterrupt
        measure_once(entry, picture)

    monkeypatch.setattr(Entry, "measure", measured)
    options = ("--min-seconds", 0, "--min-runs", 3, "--threads", 1, "--size", "24x16,20")
    code, out, err = intsr("bench", identity_engine, *options, "--json")
    engines = json.loads(out)["engines"]
    assert (code, [(e["input_px"], e["runs"]) for e in engines]) == (130, [([24, 16], 3), ([20, 20], 1)])
    assert "these are the results so far" in err and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


@pytest.mark.parametrize("size", ["0", "5000", "1x", "1x2x3", "a", "128,", "-1", "9" * 5000])
def test_sizes_that_are_none(intsr: Run, identity_engine: Path, size: str) -> None:
    code, _, err = intsr("bench", identity_engine, "--size", size)
    assert (code, err.count("\n")) == (EXIT_USAGE, 1) and "1024x768" in err


def test_several_sizes_are_compared_apart(intsr: Run, make_engine, tmp_path: Path) -> None:
    engines = make_engine("onnxruntime"), make_engine("cpu")
    options = ("--min-seconds", 0, "--min-runs", 1, "--threads", 1, "--size", "24,16x40")
    table = tmp_path / "bench.md"
    code, out, _ = intsr("bench", *engines, *options, "--markdown", table, "--json")
    result = json.loads(out)
    assert code == 0 and [e["input_px"] for e in result["engines"]] == [[24, 24]] * 2 + [[16, 40]] * 2
    assert [entry["speedup"] == 1 for entry in result["relative_to_first"]] == [True, False, True, False]
    assert result["engines"][0]["tiles"] == 4
    assert "a picture of 24x24, 4 tiles:" in table.read_text() and "a picture of 16x40, " in table.read_text()
    assert "a picture of 16x40, " in intsr("bench", *engines, *options)[1]


def _measured(path: str, bits: str, latencies_ms: list[float]) -> Measurement:
    return measure([_entry(path, latencies_ms, [], bits)], bench_picture(8, 8), len(latencies_ms), 0)[0]


def test_noise_is_warned_of() -> None:
    assert warnings_from_measurements([_measured("a", "w8a8", [300.0, 300.1])]) == []
    (warning,) = warnings_from_measurements([_measured("a", "w8a8", [300.0, 330.0])])
    assert "a: runs vary by 4.8 %" in warning


def test_slower_integers_are_said_loudly() -> None:
    integer, full = _measured("int8.engine", "w8a8", [300.0]), _measured("fp.engine", "fp", [250.0])
    (warning,) = warnings_from_measurements([integer, full])
    assert warning.startswith("INT IS SLOWER HERE: int8.engine (w8a8) takes 300.0 ms, fp.engine")
    faster = _measured("int8.engine", "w8a8", [200.0])
    assert warnings_from_measurements([faster, full, _measured("w6a6.engine", "w6a6", [201.0])]) == []


def test_what_an_engine_notes_is_a_warning() -> None:
    entry = _entry("a", [300.0], [])
    entry.upscaler.backend.notes = ("integer layers are computed in float32",)
    measured = measure([entry], bench_picture(8, 8), 1, 0)
    assert warnings_from_measurements(measured) == ["a: integer layers are computed in float32"]
    assert "notes" not in measured[0].to_json()


def test_json(intsr: Run, make_engine) -> None:
    first, second = make_engine("onnxruntime"), make_engine("cpu", bits="w8a8", color_fix="wavelet")
    code, out, _ = intsr("bench", first, second, *QUICK, "--precision", "f32", "--json")
    assert code == 0
    result = json.loads(out)
    assert [(e["path"], e["target"], e["bits"]) for e in result["engines"]] == [
        (str(first), "onnxruntime", "fp"),
        (str(second), "cpu", "w8a8"),
    ]
    for engine in result["engines"]:
        assert engine["runs"] >= 3 and engine["precision"] == "f32"
        assert engine["min_ms"] <= engine["median_ms"] <= engine["p90_ms"] <= engine["p99_ms"] <= engine["max_ms"]
        assert set(engine["stages_ms"]) == set(STAGES)
        assert all(0 <= ms <= engine["max_ms"] for ms in engine["stages_ms"].values())
        assert 0 < engine["networks_ms"] <= engine["max_ms"]
        assert engine["peak_process_bytes"] > 30e6 and isinstance(engine["opened_bytes"], int)
        assert engine["engine_bytes"] == Path(engine["path"]).stat().st_size
        assert not any(engine[key] for key in ("peak_device_bytes", "device", "cuda_graphs", "transfers_ms"))
    assert [entry["path"] for entry in result["relative_to_first"]] == [str(first), str(second)]
    assert result["relative_to_first"][0]["speedup"] == 1
    environment = result["environment"]
    assert environment["threads"] == 1 and environment["libraries"]["openvino"]
    assert set(environment) >= {"machine", "cpu", "date", "included", "input_px"}


def test_people_get_a_table(intsr: Run, identity_engine: Path) -> None:
    code, out, _ = intsr("bench", identity_engine, *QUICK)
    assert (code, "times as fast as the first" in out) == (0, True)
    assert f"{identity_engine} (onnxruntime, fp, f32)" in out


def test_reference_is_opened_by_name(intsr: Run, identity_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def open_reference(
        model: str, tile_px: int, threads: int | None, weights: WeightOptions, *, frames: None
    ) -> object:
        asked.append((model, tile_px, threads, weights))
        return open_engine(identity_engine, threads)

    monkeypatch.setitem(sys.modules, "fake_reference", types.SimpleNamespace(open_reference=open_reference))
    monkeypatch.setitem(benchmark.REFERENCES, "torch", "fake_reference:open_reference")
    code, out, _ = intsr("bench", identity_engine, *QUICK, "--reference", "demo", "--json")
    assert code == 0
    assert asked == [("demo", 16, 1, NO_WEIGHT_OPTIONS)]
    assert [engine["target"] for engine in json.loads(out)["engines"]] == ["onnxruntime", "torch"]
    given = ("--reference", "sd21", "--context", "c.safetensors", "--lora", "osediff.pkl")
    assert intsr("bench", identity_engine, *QUICK, *given)[0] == 0
    assert asked[1:] == [("sd21", 16, 1, WeightOptions(Path("c.safetensors"), Path("osediff.pkl")))]
    for option in ("--context", "--lora"):
        code, _, err = intsr("bench", identity_engine, *QUICK, option, "file")
        assert (code, f"{option}: no model that it belongs to; expected --reference MODEL too" in err) == (2, True)


def test_an_engine_that_does_not_run_here(intsr: Run, make_engine) -> None:
    code, out, err = intsr("bench", make_engine("cpu", library_version="2099.1.0"), *QUICK, "--json")
    assert (code, out, err.count("\n")) == (EXIT_ENGINE_MISMATCH, "", 1)


@pytest.mark.parametrize("option", ["--csv", "--markdown"])
def test_a_file_that_cannot_be_written_is_told_before_measuring(
    intsr: Run, identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(benchmark, "measure", lambda *args: pytest.fail("measured"))
    code, _, err = intsr("bench", identity_engine, *QUICK, option, tmp_path)
    assert (code, "is a folder" in err) == (EXIT_USAGE, True)


def test_what_was_measured_is_printed_before_files_are_written(
    intsr: Run, identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, rows: object) -> None:
        raise OSError(errno.ENOSPC, "full", str(path))

    monkeypatch.setattr(benchmark_report, "write_csv", full)
    code, out, err = intsr("bench", identity_engine, *QUICK, "--csv", tmp_path / "a.csv", "--json")
    assert (code, len(json.loads(out)["engines"])) == (EXIT_SOME_FAILED, 1)
    assert "a.csv: no space left on the device" in err


@pytest.mark.parametrize("target", ["cpu", "onnxruntime"])
def test_no_engine_is_charged_with_its_library(make_engine, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    done: list[str] = []

    module = backend_module(target)
    load_library = module.load_library
    monkeypatch.setattr(module, "load_library", lambda: done.append(target) or load_library())
    monkeypatch.setattr(benchmark, "resident_bytes", lambda: done.append("asked") or 0)
    benchmark.entry_from_engine(make_engine(target), threads=1, precision="f32").upscaler.close()  # type: ignore[attr-defined]
    assert done == [target, "asked", "asked"]
