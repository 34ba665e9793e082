"""Tiny engines (`identity_engines`), pictures, running windows, and machines with a simulated GPU."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from identity_engines import DIRECT_SHAPES, SHAPES, manifest_for, write_identity_engine
from PIL import Image
from windows import Window, watched_browser

from intsr import bundle
from intsr.bundle import write_bundle
from intsr.kernels.launches.parameters import SOURCES
from intsr.manifest import ChunkEntry, NetworkEntry
from intsr.types import VIDEO_NETWORKS, TensorInfo

MakeEngine = Callable[..., Path]


@pytest.fixture(scope="session")
def make_engine(tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    """make_engine(...) -> path of a new bundle, as `write_identity_engine` makes it."""

    def make(*arguments: object, **changes: object) -> Path:
        return write_identity_engine(tmp_path_factory.mktemp("engine"), *arguments, **changes)  # type: ignore[arg-type]

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
        direct: bool = False,
        **changes: object,
    ) -> Path:
        """Its three networks are the identity; direct: two, which repeat each pixel. plan_version, plan_target: the
        plans' own, else the manifest's.
        """
        from fake_tensorrt import write_plan

        version = VERSIONS[target]
        built = plan_version or tuple(map(int, version.split(".")))
        shapes = DIRECT_SHAPES if direct else SHAPES
        networks, members = [], {}
        for (name, ports), arena_bytes in zip(shapes.items(), (1000, 3000, 2000), strict=False):
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

    def video_engine(self, target: str = "tensorrt-rtx", chunk_frames: int = 9) -> Path:
        """The engine of `video_engines`, in plans of float16."""
        from fake_tensorrt import write_plan
        from video_engines import FACTOR, PER_LATENT, TILE_PX, ports

        networks, members = [], {}
        for name in VIDEO_NETWORKS:
            infos = [tuple(TensorInfo(*item, "float16") for item in of.items()) for of in ports(name, chunk_frames)]
            networks.append(NetworkEntry(name, f"{name}.plan", *infos))
            tensors = [
                (info.name, info.shape, info.dtype, mode)
                for of, mode in zip(infos, ("INPUT", "OUTPUT"), strict=True)
                for info in of
            ]
            description = {"name": name, "tensors": tensors, "arena_bytes": 1000, "weights_bytes": 100}
            members[f"{name}.plan"] = self.folder / f"{name}.plan"
            version = tuple(map(int, VERSIONS[target].split(".")))
            members[f"{name}.plan"].write_bytes(write_plan(target, version, description))
        values = {
            "target": target,
            "library": target,
            "library_version": VERSIONS[target],
            "gpu_architecture": {"tensorrt": "sm89", "tensorrt-rtx": "sm86,sm89,sm120"}[target],
            "precision": "f16",
            "networks": tuple(networks),
            "tile_px": TILE_PX,
            "upscale_factor": FACTOR,
            "overlap_px": 4,
            "color_fix": "none",
            "chunk": ChunkEntry(chunk_frames, PER_LATENT, 3),
        }
        path = self.folder / f"video.{target}.engine"
        write_bundle(path, dataclasses.replace(manifest_for("cpu"), **values), members)
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


@pytest.fixture(scope="module")
def window(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    """A running window of the module's own fixture `engine`."""
    opened = Window([engine], tmp_path_factory.mktemp("window"))
    yield opened
    opened.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A real one; at the end it has had no error, and asked nobody else."""
    with watched_browser(tmp_path / "profile") as opened:
        yield opened
