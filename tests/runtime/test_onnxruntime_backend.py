"""The `onnxruntime` target: graphs whose weights lie beside them, and devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from intsr.bundle import read_manifest, write_bundle
from intsr.engines.builders.onnxruntime import build
from intsr.engines.builders.types import BuildOptions
from intsr.errors import EngineMismatchError, UsageError
from intsr.runtime.backends.onnxruntime import create_session, providers_from_device
from intsr.runtime.backends.packed import ONNX_MAGIC, is_packed
from intsr.runtime.engine import open_engine

CPU = "CPUExecutionProvider"


def test_weights_beside_the_graph_give_the_same(
    make_engine: Callable[..., Path], tmp_path: Path, photo: np.ndarray, mapped_engines: None
) -> None:
    # As graphs above 2 GB are kept, which one protobuf cannot hold.
    plain = make_engine("onnxruntime")
    model = onnx.load(plain.parent / "unet.onnx")
    kernel = np.zeros((12, 12, 3, 3), np.float32)
    kernel[..., 1, 1] = np.eye(12)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(kernel, "kernel"))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
    onnx.save(model, tmp_path / "unet.onnx")
    members = {entry.member: plain.parent / entry.member for entry in read_manifest(plain).networks}
    members["unet.member"] = tmp_path / "unet.member"
    report = build(tmp_path / "unet.onnx", members["unet.member"], BuildOptions("onnxruntime"), largest_model_bytes=0)
    assert is_packed(ONNX_MAGIC, memoryview(members["unet.member"].read_bytes()))
    assert report.plan_bytes > kernel.nbytes and len(list(tmp_path.iterdir())) == 2
    write_bundle(tmp_path / "packed.engine", read_manifest(plain), members)
    with open_engine(plain) as expected, open_engine(tmp_path / "packed.engine") as engine:
        np.testing.assert_array_equal(engine.upscale(photo), expected.upscale(photo))


def _library(*available: str, loads: bool = True) -> Any:
    """ONNX Runtime with these providers. loads: whether a session gets them."""

    def session(graph: bytes, settings: object, providers: list[tuple[str, object]]) -> Any:
        names = [name for name, _ in providers]
        return SimpleNamespace(get_providers=lambda: names if loads else [CPU])

    return SimpleNamespace(
        __version__="1.31.1",
        get_available_providers=lambda: [*available, CPU],
        preload_dlls=lambda: None,
        InferenceSession=session,
    )


@pytest.mark.parametrize(
    ("device", "available", "expected"),
    [
        ("cpu", (), [(CPU, {})]),
        ("cuda", ("CUDAExecutionProvider",), [("CUDAExecutionProvider", {"device_id": 0}), (CPU, {})]),
        ("cuda:1", ("CUDAExecutionProvider",), [("CUDAExecutionProvider", {"device_id": 1}), (CPU, {})]),
        # What TensorRT's does not take may go to CUDA's, where that is there.
        ("tensorrt", ("TensorrtExecutionProvider",), [("TensorrtExecutionProvider", {"device_id": 0}), (CPU, {})]),
        (
            "tensorrt-rtx:2",
            ("NvTensorRTRTXExecutionProvider",),
            [("NvTensorRTRTXExecutionProvider", {"device_id": 2}), (CPU, {})],
        ),
    ],
)
def test_providers_of_a_device(device: str, available: tuple[str, ...], expected: list[tuple[str, Any]]) -> None:
    assert providers_from_device(_library(*available), device) == expected


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "cpu:1", ""])
def test_devices_that_there_are_not(device: str) -> None:
    with pytest.raises(UsageError, match=r"--device: .*; expected cpu, cuda, tensorrt, tensorrt-rtx, or with"):
        providers_from_device(_library("CUDAExecutionProvider"), device)


def test_a_provider_that_cannot_be_loaded_is_told() -> None:
    # ONNX Runtime itself would go on with the CPU.
    providers = [("CUDAExecutionProvider", {}), (CPU, {})]
    with pytest.raises(EngineMismatchError, match="cannot load its CUDAExecutionProvider: a library of CUDA"):
        create_session(_library(loads=False), memoryview(b"x"), None, "e.engine", providers)
    assert create_session(_library(), memoryview(b"x"), None, "e.engine", providers) is not None
