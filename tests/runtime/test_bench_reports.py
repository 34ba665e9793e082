"""What `intsr bench` writes beside the numbers: counterparts, files, layers, memory, and the GPU's share."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from intsr.runtime.measure import benchmark
from intsr.runtime.measure import machine as benchmark_environment
from intsr.runtime.measure.layer_times import totals_by_kind
from intsr.runtime.upscaler import STAGES
from intsr.types import NETWORKS

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--size", 24, "--min-seconds", 0.01, "--min-runs", 3, "--threads", 1)


@pytest.fixture
def pair(make_engine, tmp_path: Path) -> tuple[Path, Path]:
    """An integer engine and its full-precision counterpart in one folder."""
    paths = tmp_path / "int8.engine", tmp_path / "fp.engine"
    for path, bits in zip(paths, ("w8a8", "fp"), strict=True):
        shutil.copy(make_engine("cpu", bits=bits), path)
    return paths


def _paths(out: str) -> list[str]:
    return [Path(engine["path"]).name for engine in json.loads(out)["engines"]]


def test_a_counterpart_in_the_folder_is_measured_too(intsr: Run, pair: tuple[Path, Path]) -> None:
    code, out, err = intsr("bench", pair[0], *QUICK, "--json")
    assert code == 0 and _paths(out) == ["int8.engine", "fp.engine"]
    assert "full precision, the same model" in err
    for arguments, names in (
        ((pair[0], "--alone"), ["int8.engine"]),
        ((pair[0], pair[1]), ["int8.engine", "fp.engine"]),
        ((pair[0], "--against", pair[1]), ["fp.engine", "int8.engine"]),
    ):
        assert _paths(intsr("bench", *arguments, *QUICK, "--json")[1]) == names


def test_what_is_no_counterpart(intsr: Run, make_engine, pair: tuple[Path, Path]) -> None:
    int8, fp = pair
    for changes in ({"bits": "w6a6"}, {"bits": "fp", "model": "another"}, {"bits": "fp", "overlap_px": 1}):
        shutil.copy(make_engine("cpu", **changes), fp)
        found = benchmark.counterpart_of(int8)
        assert found == (fp if "overlap_px" in changes else None), changes
    fp.write_bytes(b"no engine")
    assert benchmark.counterpart_of(int8) is None
    code, _, err = intsr("bench", int8, *QUICK)
    assert code == 0 and "intsr compile --bits fp" in err


def test_csv_and_markdown(intsr: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    files = "--csv", tmp_path / "b.csv", "--markdown", tmp_path / "b.md"
    code, out, _ = intsr("bench", *pair, *QUICK, *files, "--json")
    assert code == 0
    measured = json.loads(out)["engines"]
    with (tmp_path / "b.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(map(str, pair))
    for row, engine in zip(rows, measured, strict=True):
        for key in ("median_ms", "p90_ms", "p95_ms", "p99_ms", "networks_ms"):
            assert float(row[key]) == engine[key]
        for stage in STAGES:
            assert float(row[f"stage_{stage}_ms"]) == engine["stages_ms"][stage]
        assert row["transfers_ms"] == row["peak_device_bytes"] == ""
    assert float(rows[0]["speedup"]) == 1
    text = (tmp_path / "b.md").read_text()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {12, 4}
    assert "| int8.engine | cpu | w8a8 " in text and "| color_fix |" in text and "| engine file |" in text


def test_plot(intsr: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: it is the extra `plot`")
    code, _, _ = intsr("bench", *pair, *QUICK, "--plot", tmp_path / "b.svg")
    assert code == 0
    assert (tmp_path / "b.svg").read_text().count("int8.engine") >= 1


def test_plot_without_matplotlib_names_the_extra_first(
    intsr: Run, identity_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name, words in (("b.png", "intsr[plot]"), ("b.jpg", ".svg")):
        code, out, err = intsr("bench", identity_engine, *QUICK, "--plot", tmp_path / name)
        assert (code, out, err.count("\n"), words in err) == (2, "", 1, True)


def test_layers_of_a_cpu_engine(intsr: Run, pair: tuple[Path, Path]) -> None:
    code, out, _ = intsr("bench", *pair, *QUICK, "--layers", "--json")
    assert code == 0
    for engine in json.loads(out)["engines"]:
        layers = engine["layers"]
        assert {layer["network"] for layer in layers} == set(NETWORKS)
        assert sum(layer["share"] for layer in layers) == pytest.approx(1)
        assert all(layer["ms"] >= 0 and layer["kind"] for layer in layers)
        assert "SpaceToDepth" in [layer["kind"] for layer in layers if layer["network"] == "encoder"]
        totals = totals_by_kind(layers)
        assert sum(total["layers"] for total in totals) == len(layers)
        assert totals[0]["ms"] == max(total["ms"] for total in totals)
    code, out, _ = intsr("bench", pair[0], *QUICK, "--layers", "--alone")
    assert code == 0 and "ms a tile, measured apart" in out and "SpaceToDepth" in out


def test_layers_are_not_to_be_had_of_onnxruntime(intsr: Run, identity_engine: Path) -> None:
    code, out, err = intsr("bench", identity_engine, *QUICK, "--layers", "--json")
    assert (code, out) == (2, "") and "--layers" in err and "measuring" not in err


def test_a_gpu_engine(intsr: Run, machine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulated, its clock ticks once an operation: numbers of no meaning, from the right places.
    monkeypatch.setattr(benchmark, "WARM_UP_DEVICE_MS", 50.0)
    gpu = {"name": "GeForce Two", "clock_sm_mhz": "2520"}
    monkeypatch.setattr(benchmark, "gpus_from_nvidia_smi", lambda: [gpu])
    arguments = ("--alone", "--layers", "--device", "cuda:1")
    code, out, _ = intsr("bench", machine.engine(), *QUICK, *arguments, "--json")
    assert code == 0
    (engine,) = json.loads(out)["engines"]
    assert engine["device"].startswith("cuda:1 GeForce Two") and engine["cuda_graphs"] is True
    assert engine["transfers_ms"] >= 2 and engine["networks_ms"] >= 3
    assert engine["networks_ms"] == pytest.approx(sum(engine["stages_ms"][name] for name in NETWORKS))
    assert engine["peak_device_bytes"] > 3000 and engine["clock_mhz"] == 2520
    assert [layer["name"] for layer in engine["layers"]][:2] == ["encoder_conv", "encoder_norm"]
    gpu["name"] = "GeForce One"
    code, out, _ = intsr("bench", machine.engine(), *QUICK, "--alone", "--cuda-backend", "pycuda")
    assert code == 0 and "without CUDA graphs; 2520 MHz after warming up" in out
    assert "copies to and from the GPU" in out


def test_gpus_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    line = "0, NVIDIA GeForce RTX 4090, 580.95.05, 24564, 2520, 3105, 10501, 41, 62.51, 450.00, P0"
    program.write_text(f"#!{sys.executable}\nimport sys\nassert sys.argv[1].count(',') == 10\nprint('{line}')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (gpu,) = benchmark_environment.gpus_from_nvidia_smi()
    assert gpu["name"] == "NVIDIA GeForce RTX 4090" and gpu["driver_version"] == "580.95.05"
    assert (gpu["clock_sm_mhz"], gpu["clock_sm_max_mhz"], gpu["power_limit_w"]) == ("2520", "3105", "450.00")
    assert benchmark_environment.clock_from_gpus([gpu], "cuda:0 NVIDIA GeForce RTX 4090 (sm89)") == 2520
    # Another; two of the same name; a name that is only the beginning of another; a driver that does not say.
    for gpus, device in (
        ([gpu], "cuda:0 NVIDIA A2 (sm86)"),
        ([gpu, gpu], "cuda:0 NVIDIA GeForce RTX 4090 (sm89)"),
        ([gpu], "cuda:0 NVIDIA GeForce RTX 4090 D (sm89)"),
        ([gpu | {"clock_sm_mhz": "[N/A]"}], "cuda:0 NVIDIA GeForce RTX 4090 (sm89)"),
    ):
        assert benchmark_environment.clock_from_gpus(gpus, device) is None
    program.write_text(f"#!{sys.executable}\nraise SystemExit('no devices were found')\n")
    assert benchmark_environment.gpus_from_nvidia_smi() == []
    program.unlink()
    assert benchmark_environment.gpus_from_nvidia_smi() == []
