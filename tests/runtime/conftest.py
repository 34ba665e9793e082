"""Tiny engines out of hand-written ONNX graphs: no torch, no model, milliseconds to open."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, checker, helper, numpy_helper, save
from PIL import Image

from intsr import bundle
from intsr.bundle import write_bundle
from intsr.kernels.launches.parameters import SOURCES
from intsr.manifest import SCHEMA_VERSION, Manifest, NetworkEntry
from intsr.types import TensorInfo

TILE_PX, FACTOR, LATENT_CHANNELS = 16, 2, 12
SIDE_PX, LATENT_PX = TILE_PX * FACTOR, TILE_PX * FACTOR // 2
PICTURE, LATENT = (1, 3, SIDE_PX, SIDE_PX), (1, LATENT_CHANNELS, LATENT_PX, LATENT_PX)
SHAPES = {
    "encoder": (("x", PICTURE), ("latent", LATENT)),
    "unet": (("latent", LATENT), ("denoised", LATENT)),
    "decoder": (("denoised", LATENT), ("image", PICTURE)),
}
LIBRARIES = {"cpu": "openvino", "onnxruntime": "onnxruntime"}


def write_graph(path: Path, name: str, decoder_gain: float = 1.0, decoder_bias: float = 0.0, batch: int = 1) -> None:
    """encoder: space to depth. unet: identity. decoder: depth to space, times the gain, plus the bias."""
    (input_name, input_shape), (output_name, output_shape) = _ports(name, batch)
    constants = {
        "encoder": {},
        "unet": {"kernel": np.eye(LATENT_CHANNELS)[:, :, None, None]},
        "decoder": {"gain": decoder_gain, "bias": decoder_bias},
    }[name]
    if name == "encoder":
        nodes = [helper.make_node("SpaceToDepth", [input_name], [output_name], blocksize=2)]
    elif name == "unet":
        nodes = [helper.make_node("Conv", [input_name, "kernel"], [output_name])]
    else:
        nodes = [
            helper.make_node("DepthToSpace", [input_name], ["spread"], blocksize=2),
            helper.make_node("Mul", ["spread", "gain"], ["scaled"]),
            helper.make_node("Add", ["scaled", "bias"], [output_name]),
        ]
    source = helper.make_tensor_value_info(input_name, TensorProto.FLOAT, input_shape)
    target = helper.make_tensor_value_info(output_name, TensorProto.FLOAT, output_shape)
    initializers = [numpy_helper.from_array(np.array(value, np.float32), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, [source], [target], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(model)
    save(model, path)


def write_member(target: str, onnx_path: Path, member_path: Path) -> None:
    import openvino

    from intsr.runtime.backends.packed import IR_MAGIC, pack_member

    if target == "onnxruntime":
        member_path.write_bytes(onnx_path.read_bytes())
        return
    xml_path = onnx_path.with_suffix(".xml")
    openvino.save_model(openvino.Core().read_model(str(onnx_path)), str(xml_path), compress_to_fp16=False)
    pack_member(IR_MAGIC, xml_path, xml_path.with_suffix(".bin"), member_path)


def _ports(name: str, batch: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((key, (batch, *shape[1:])) for key, shape in SHAPES[name])


def manifest_for(target: str, /, batch: int = 1, **changes: object) -> Manifest:
    ports = {name: [(TensorInfo(key, shape, "float32"),) for key, shape in _ports(name, batch)] for name in SHAPES}
    networks = tuple(NetworkEntry(name, f"{name}.member", *tensors) for name, tensors in ports.items())
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        model="identity",
        method="none",
        bits="fp",
        parts=(),
        target=target,
        library=LIBRARIES[target],
        library_version=str(import_module(LIBRARIES[target]).__version__),
        gpu_architecture="",
        precision="auto",
        tile_px=TILE_PX,
        overlap_px=4,
        upscale_factor=FACTOR,
        resize_filter="bicubic",
        color_fix="none",
        networks=networks,
        sha256={},
        calibration_digest="",
        licence="",
    )
    return dataclasses.replace(manifest, **changes)  # type: ignore[arg-type]


MakeEngine = Callable[..., Path]


@pytest.fixture(scope="session")
def make_engine(tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    """make_engine(target, decoder_gain=, decoder_bias=, batch=, **manifest changes) -> path of a new bundle."""

    def make(
        target: str = "onnxruntime",
        /,
        decoder_gain: float = 1.0,
        decoder_bias: float = 0.0,
        batch: int = 1,
        **changes: object,
    ) -> Path:
        folder = tmp_path_factory.mktemp("engine")
        members = {}
        for name in SHAPES:
            onnx_path, member_path = folder / f"{name}.onnx", folder / f"{name}.member"
            write_graph(onnx_path, name, decoder_gain, decoder_bias, batch)
            write_member(target, onnx_path, member_path)
            members[member_path.name] = member_path
        path = folder / "identity.engine"
        write_bundle(path, manifest_for(target, batch, **changes), members)
        return path

    return make


@pytest.fixture(scope="session")
def identity_engine(make_engine: MakeEngine) -> Path:
    """Its three networks are the identity: the output is the enlarged input."""
    return make_engine()


@pytest.fixture(scope="session", params=["onnxruntime", "cpu"])
def any_engine(request: pytest.FixtureRequest, make_engine: MakeEngine) -> Path:
    return make_engine(request.param)


@pytest.fixture
def mapped_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of any size are used where they lie, as large ones are."""
    monkeypatch.setattr(bundle, "COPIED_BYTES", 0)


@pytest.fixture
def photo() -> np.ndarray:
    """(53, 71, 3) uint8: a part of a photograph, its sides no multiple of anything."""
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[30:83, 180:251])


@pytest.fixture
def photo_path(tmp_path: Path, photo: np.ndarray) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    return path


@pytest.fixture
def upscale(intsr, identity_engine: Path):
    """upscale(*arguments, engine=) -> what `intsr upscale` answers, with an engine of identity networks."""

    def run(*arguments: object, engine: Path = identity_engine) -> tuple[int, str, str]:
        return intsr("upscale", engine, *arguments)

    return run


# Of the libraries that the simulated GPU comes with.
VERSIONS = {"tensorrt": "10.13.0.35", "tensorrt-rtx": "1.7.1.116"}


class FakeMachine:
    """A machine with a simulated GPU: `gpu`, its `trt`, and bundles that run there."""

    def __init__(self, folder: Path) -> None:
        from fake_driver import CudaDriver, PyCudaDriver
        from fake_gpu import Simulator
        from fake_tensorrt import FakeTensorRT

        self.folder, self.gpu = folder, Simulator()
        self.trt, self.driver, self.pycuda = FakeTensorRT(self.gpu), CudaDriver(self.gpu), PyCudaDriver(self.gpu)

    def build_kernels(self) -> None:
        """As if nvcc had: without it, pictures go through host memory."""
        from fake_driver import fatbin_of

        for source in SOURCES:
            (self.folder / f"{source}.fatbin").write_bytes(fatbin_of(source))

    def engine(
        self,
        target: str = "tensorrt",
        batch: int = 1,
        dtype: str = "float32",
        plan_version: tuple[int, ...] | None = None,
        plan_target: str | None = None,
        **changes: object,
    ) -> Path:
        """Its three networks are the identity. plan_version, plan_target: the plans' own, else the manifest's."""
        from fake_tensorrt import write_plan

        version = VERSIONS[target]
        built = plan_version or tuple(map(int, version.split(".")))
        networks, members = [], {}
        for (name, ports), arena_bytes in zip(SHAPES.items(), (1000, 3000, 2000), strict=True):
            (source, target_info) = (TensorInfo(key, (batch, *shape[1:]), dtype) for key, shape in ports)
            networks.append(NetworkEntry(name, f"{name}.plan", (source,), (target_info,)))
            tensors = [
                (info.name, info.shape, info.dtype, mode)
                for info, mode in ((source, "INPUT"), (target_info, "OUTPUT"))
            ]
            description = {"name": name, "tensors": tensors, "arena_bytes": arena_bytes, "weights_bytes": 100}
            members[f"{name}.plan"] = self.folder / f"{name}.plan"
            members[f"{name}.plan"].write_bytes(write_plan(plan_target or target, built, description))
        values = {
            "target": target,
            "library": target,
            "library_version": version,
            "gpu_architecture": {"tensorrt": "sm89", "tensorrt-rtx": "sm86,sm89,sm120"}[target],
            "precision": "f16",
            "networks": tuple(networks),
        }
        path = self.folder / f"{target}.engine"
        write_bundle(path, dataclasses.replace(manifest_for("cpu"), **values | changes), members)
        return path

    def assert_nothing_is_left(self) -> None:
        """Of what an engine takes: device and page-locked memory, streams, events, graphs, TensorRT's objects."""
        gc.collect()
        assert self.gpu.leftovers() == {}
        assert not any(self.trt.live.values())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """The runtime finds a simulated GPU, and TensorRT of the version that the bundles are of."""
    from intsr.cuda import driver as cuda_interface
    from intsr.kernels.launches import sources
    from intsr.runtime.backends import compatibility
    from intsr.runtime.backends.tensorrt import library as tensorrt_library

    machine = FakeMachine(tmp_path)
    libraries = {"cuda.bindings.driver": machine.driver, "pycuda.driver": machine.pycuda}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Those of this machine, if it has any, are for real GPUs.
    monkeypatch.setattr(sources, "fatbin_path", lambda source: tmp_path / f"{source}.fatbin")
    monkeypatch.setattr(cuda_interface, "import_library", lambda name, where, extra: libraries[name])
    monkeypatch.setattr(tensorrt_library, "import_library", lambda name, where, extra: machine.trt.imported_as(name))
    installed = compatibility.installed_version
    found = VERSIONS.get
    monkeypatch.setattr(compatibility, "installed_version", lambda target: found(target.name) or installed(target))
    return machine
