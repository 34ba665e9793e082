"""Video engines over a simulated GPU: what is remembered stays on the device, and nothing is left behind."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from fake_tensorrt import ICudaEngine
from video_engines import SIDE_PX

from intsr.bundle import read_manifest
from intsr.errors import EngineMismatchError
from intsr.runtime.backends.tensorrt.library import check_tensors
from intsr.runtime.backends.tensorrt.video import Remembered, TensorRTVideoBackend
from intsr.runtime.engine import open_engine

FRAMES = 13


def clip(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (1, 3, FRAMES, SIDE_PX, SIDE_PX)).astype(np.float16)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_chunks_come_out_as_they_went_in(machine, target: str) -> None:
    with open_engine(machine.video_engine(target, FRAMES)) as engine:
        backend = engine.backend
        assert isinstance(backend, TensorRTVideoBackend) and engine.precision == "f16"
        told: list[str] = []
        # Graphs are captured on the second run of the same addresses, and launched from the third on.
        for seed in range(4):
            x = clip(seed)
            got = np.concatenate(list(backend.run_chunk(x, lambda name, ms: told.append(name))), axis=2)
            np.testing.assert_allclose(got.astype(np.float32), x.astype(np.float32), atol=4e-3)
        assert told[:4] == ["encoder_start", "encoder_next", "encoder_next", "encoder_next"]
        assert backend.uses_graphs() and backend.device_bytes() > 0 and "GeForce One" in str(backend.device)
        # A chunk's frames up, its latents down and up again, and frames down: no more.
        machine.gpu.log.clear()
        list(backend.run_chunk(clip()))
        assert (machine.gpu.log.count("up"), machine.gpu.log.count("down")) == (9, 9)
    machine.assert_nothing_is_left()


def test_a_picture_is_a_clip_that_stands_still(machine, photo: np.ndarray) -> None:
    with open_engine(machine.video_engine()) as engine:
        result = engine.upscale(photo)
    assert result.shape == (2 * photo.shape[0], 2 * photo.shape[1], 3)
    machine.assert_nothing_is_left()


def test_what_one_network_leaves_is_not_what_it_reads(machine) -> None:
    with open_engine(machine.video_engine(chunk_frames=FRAMES)) as engine:
        x, start, following = clip(), *(engine.backend.network(f"encoder_{name}") for name in ("start", "next"))
        (_, first) = start.run_all([x[:, :, :1]])
        (_, second) = following.run_all([x[:, :, 1:5], first])
        (_, third) = following.run_all([x[:, :, 5:9], second])
        assert [first, second, third] == [Remembered(0), Remembered(1), Remembered(0)]
        with pytest.raises(ValueError, match="has shape"):
            following.run_all([x[:, :, :1], third])


def test_an_error_leaves_nothing_behind(machine) -> None:
    engine = open_engine(machine.video_engine())
    machine.trt.failures["execute"] = "cannot run"
    with engine, pytest.raises(EngineMismatchError, match=r"running the encoder_start.*cannot run"):
        list(engine.backend.run_chunk(clip()[:, :, :9]))
    machine.assert_nothing_is_left()


def test_tensors_may_come_in_any_order_but_all_of_them(machine) -> None:
    entry = read_manifest(machine.video_engine()).networks[1]
    infos = [*((info, "OUTPUT") for info in entry.outputs), *((info, "INPUT") for info in entry.inputs[::-1])]
    tensors = [(info.name, info.shape, info.dtype, mode) for info, mode in infos]
    library = SimpleNamespace(trt=machine.trt)

    def plan(tensors: list[tuple]) -> ICudaEngine:
        engine = ICudaEngine.__new__(ICudaEngine)
        engine._module, engine._weights = machine.trt, machine.gpu.alloc(1)
        engine._description = {"tensors": tensors}
        machine.trt.live["engine"] += 1
        return engine

    check_tensors(library, plan(tensors), entry, "there")
    with pytest.raises(EngineMismatchError, match=r"encoder_next has .*'x'.* by the manifest"):
        check_tensors(library, plan(tensors[:-2]), entry, "there")
