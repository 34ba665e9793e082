from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from folding import Folded
from numpy.typing import NDArray
from onnx import numpy_helper

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.open import SRModel
from intsr.errors import ExportError, UsageError
from intsr.export import graphs as onnx_export
from intsr.export.graphs import load_export
from intsr.export.pipeline import export_model
from intsr.targets.lowering import LOWERINGS
from intsr.types import tile_step


@pytest.fixture(scope="module")
def exported_once(
    tiny_model: SRModel, tiny_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_model(tiny_model, tiny_calibration, LOWERINGS["asymmetric"], 16, folder)
    return folder


@pytest.fixture
def exported(exported_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_once, tmp_path / "onnx"))


def test_files_and_their_contract(exported: Path) -> None:
    export = load_export(exported)
    names = {"encoder.onnx", "unet.onnx", "decoder.onnx", "export.json"}
    assert {path.name for path in exported.iterdir()} == names
    assert export.networks[0].input.shape == (1, 3, 64, 64)
    assert export.networks[2].output.shape == (1, 3, 64, 64)
    for entry in export.networks:
        session = onnxruntime.InferenceSession(str(exported / entry.member))
        assert [i.name for i in session.get_inputs()] == [entry.input.name]
        assert tuple(session.get_outputs()[0].shape) == entry.output.shape


def test_integer_weights_are_stored_as_integers(exported: Path, tiny_folded: Folded) -> None:
    graph = onnx.load(exported / "unet.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for site in tiny_folded["unet"].layers:
        assert types[f"{site}.weight"] == onnx.TensorProto.INT8
        assert types.get(f"{site}.bias", onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT
    # Rank 0, or TensorRT silently keeps every convolution in float.
    scales = [tensor for tensor in graph.initializer if tensor.name.endswith(".input_scale")]
    assert scales and all(len(tensor.dims) == 0 for tensor in scales)


def test_large_graphs_put_their_weights_outside(
    tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "EXTERNAL_DATA_BYTES", 10_000)
    export_model(tiny_model, tiny_calibration, LOWERINGS["asymmetric"], 16, tmp_path / "outside")
    monkeypatch.undo()
    export_model(tiny_model, tiny_calibration, LOWERINGS["asymmetric"], 16, tmp_path / "inside")
    load_export(tmp_path / "outside")
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    assert (tmp_path / "outside" / "encoder.onnx.data").is_file()
    assert_same_network(*(tmp_path / where / "encoder.onnx" for where in ("outside", "inside")), {"x": x})


def assert_same_network(got: Path, expected: Path, feed: dict[str, NDArray[np.float32]]) -> None:
    """Nodes and weights bit for bit; what ONNX Runtime makes of them but for rounding, which may move a code."""
    one, other = (onnx.load(path).graph for path in (got, expected))
    assert len(one.node) > 10 and list(one.node) == list(other.node)
    for tensor, wanted in zip(one.initializer, other.initializer, strict=True):
        assert tensor.name == wanted.name
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(wanted))
    results = [onnxruntime.InferenceSession(str(path)).run(None, feed)[0] for path in (got, expected)]
    assert np.abs(results[0] - results[1]).mean() <= 1e-4 * np.ptp(results[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extra": 1}, "extra"),
        ({"lowering": "of another"}, "lowering 'of another'"),
        ({"networks": []}, "networks"),
        ({"upscale_factor": 0}, "upscale_factor"),
        ({"upscale_factor": True}, "upscale_factor"),
        ({"tile_px": "16"}, "tile_px"),
        ({"model": None}, "model"),
        ({"parts": [1]}, "parts"),
        (None, "export again"),
    ],
)
def test_what_no_export_says_is_refused(exported: Path, changes: dict[str, object] | None, words: str) -> None:
    path = exported / "export.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps([values] if changes is None else values | changes))
    with pytest.raises(ExportError, match=r"(?s)export\.json: .*" + words) as error:
        load_export(exported)
    assert "\n" not in str(error.value) and "export again" in str(error.value)


def test_graphs_that_are_elsewhere_or_gone(exported: Path) -> None:
    values = json.loads((exported / "export.json").read_text())
    elsewhere = [values["networks"][0] | {"member": "../encoder.onnx"}, *values["networks"][1:]]
    (exported / "export.json").write_text(json.dumps(values | {"networks": elsewhere}))
    with pytest.raises(ExportError, match="expected a plain file name"):
        load_export(exported)
    (exported / "export.json").write_text(json.dumps(values))
    (exported / "unet.onnx").unlink()
    with pytest.raises(ExportError, match=r"unet\.onnx"):
        load_export(exported)


def test_a_tile_that_the_networks_cannot_take_names_the_nearest(tiny_model: SRModel, tmp_path: Path) -> None:
    model = replace(tiny_model, spec=replace(tiny_model.spec, size_multiple_px=64))
    nearest = {100: "96 or 112", 17: "16 or 32", 3: "16", -5: "16"}
    for tile_px, near in nearest.items():
        text = f"--tile: {tile_px} pixels; expected a positive multiple of 16; use {near}$"
        with pytest.raises(UsageError, match=text):
            export_model(model, None, LOWERINGS["asymmetric"], tile_px, tmp_path / "onnx")
    with pytest.raises(UsageError, match="--tile: 16,8,16; expected each size once"):
        export_model(tiny_model, None, LOWERINGS["asymmetric"], 16, tmp_path / "x", further_tiles=(8, 16))
    assert not list(tmp_path.iterdir())
    # 3 x 21 is no multiple of 64; 64 is the smallest that is.
    assert tile_step(3, 64) == 64


def test_a_failure_leaves_nothing(tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path) -> None:
    def fail(name: str) -> None:
        if name == "decoder":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(tiny_model, tiny_calibration, LOWERINGS["asymmetric"], 16, tmp_path / "onnx", on_network=fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_several_tile_sizes_share_their_external_data(
    tiny_model: SRModel, tiny_calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "EXTERNAL_DATA_BYTES", 1000)
    export_model(tiny_model, tiny_calibration, LOWERINGS["asymmetric"], 16, tmp_path / "one")
    export = export_model(
        tiny_model, tiny_calibration, LOWERINGS["asymmetric"], 16, tmp_path / "two", further_tiles=(8,)
    )
    assert load_export(tmp_path / "two") == export
    assert [entry.member for entry in export.tiles[0].networks] == ["encoder@8.onnx", "unet@8.onnx", "decoder@8.onnx"]
    sizes = [(tmp_path / folder / "unet.onnx.data").stat().st_size for folder in ("one", "two")]
    assert sizes[0] == sizes[1]
    entry = export.tiles[0].networks[1]
    x = np.random.default_rng(0).normal(size=entry.input.shape).astype(np.float32)
    alone = export_model(tiny_model, tiny_calibration, LOWERINGS["asymmetric"], 8, tmp_path / "alone").networks[1]
    assert_same_network(tmp_path / "two" / entry.member, tmp_path / "alone" / alone.member, {"latent": x})
