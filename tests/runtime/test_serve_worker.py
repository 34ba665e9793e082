"""What answers Triton's requests: results, errors, and runs that several pictures share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intsr.errors import OutOfMemoryError
from intsr.runtime.engine import Engine, open_engine
from intsr.runtime.serve.triton_model import read_message
from intsr.runtime.serve.worker import OUTPUTS, Worker

Answers = list[tuple[dict[str, Any], list[np.ndarray]]]


def _request(index: int, name: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "inputs": [name], "outputs": list(OUTPUTS.values()), "parameters": parameters or {}}


def _answers(worker: Worker, requests: Sequence[dict[str, Any]], arrays: Sequence[np.ndarray]) -> Answers:
    stream = io.BytesIO()
    worker.answer(requests, arrays, stream)
    stream.seek(0)
    return [read_message(stream) for _ in requests]


@pytest.fixture(scope="module")
def worker(make_engine: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(make_engine(), None, {"threads": "1"}, tmp_path_factory.mktemp("work"))
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def wide_worker(make_engine: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Its engine takes four tiles at once."""
    worker = Worker(make_engine(batch=4), None, {}, tmp_path_factory.mktemp("work"))
    yield worker
    worker.close()


def _file(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), np.uint8)[None]


@pytest.mark.parametrize("dtype, name", [(np.uint8, "image"), (np.uint16, "image16")])
def test_arrays_of_one_size_come_back_as_arrays(
    worker: Worker, identity_engine: Path, photo: np.ndarray, dtype: type, name: str
) -> None:
    pixels = np.stack([photo, photo[::-1]]).astype(dtype) * (257 if dtype is np.uint16 else 1)
    ((message, arrays),) = _answers(worker, [_request(0, name, {"color_fix": "wavelet"})], [pixels])
    assert message == {"index": 0, "output": f"upscaled_{name}"} and arrays[0].dtype == dtype
    with open_engine(identity_engine) as engine:
        expected = [engine.upscale(one, "wavelet") for one in pixels]
    assert np.array_equal(arrays[0], expected)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_files_come_back_as_intsr_upscale_writes_them(
    worker: Worker, upscale: Callable[..., Any], photo: np.ndarray, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    Image.fromarray(photo).save(path, exif=exif)
    assert upscale(path, "-o", tmp_path / f"big.{suffix}", "--scale", "1.5")[0] == 0
    ((_, arrays),) = _answers(worker, [_request(0, "encoded", {"outscale": 1.5})], [_file(path)])
    assert arrays[0].tobytes() == (tmp_path / f"big.{suffix}").read_bytes()


def test_format_and_quality_are_parameters(worker: Worker, photo_path: Path) -> None:
    qualities = [{"format": "webp", "quality": quality} for quality in (10, 90)]
    requests = [_request(index, "encoded", parameters) for index, parameters in enumerate(qualities)]
    (_, low), (_, high) = _answers(worker, requests, [_file(photo_path)] * 2)
    assert low[0][0, 8:12].tobytes() == b"WEBP" and low[0].size < high[0].size


@pytest.mark.parametrize(
    "name, parameters, expected",
    [
        ("encoded", {"quality": 50}, "parameter quality: has no effect: the output is not JPEG, WebP or AVIF"),
        ("encoded", {"quality": "50"}, "parameter quality: '50'; expected a number"),
        ("encoded", {"quality": True}, "parameter quality: True; expected a number"),
        ("encoded", {"format": "gif"}, "parameter format: 'gif'; expected one of same, png"),
        ("encoded", {"color_fix": "blue"}, "parameter color_fix: 'blue'; expected one of wavelet"),
        ("encoded", {"outscale": 17}, "--outscale: 17.0; expected above 0, up to 16"),
        ("encoded", {"tile": 8}, "parameter tile: 8; expected one of color_fix, outscale, format, quality"),
        ("image", {"outscale": 2}, "parameter outscale: 2, which is for encoded pictures; expected one of color_fix"),
    ],
)
def test_bad_parameters_are_errors_of_one_line(
    worker: Worker, photo_path: Path, photo: np.ndarray, name: str, parameters: dict[str, Any], expected: str
) -> None:
    array = photo[None] if name == "image" else _file(photo_path)
    ((message, arrays),) = _answers(worker, [_request(0, name, parameters)], [array])
    assert message["error"].startswith(expected) and message["code"] == "INVALID_ARG" and not arrays
    assert "\n" not in message["error"]


def test_a_bad_request_does_not_stop_those_beside_it(worker: Worker, photo_path: Path, photo: np.ndarray) -> None:
    whole = _file(photo_path)
    arrays = [
        whole,
        whole[:, :2000],
        whole[:, :0],
        np.zeros((1, 0, 4, 3), np.uint8),
        np.repeat(whole, 2, 0),
        photo[None],
    ]
    names = ["encoded", "encoded", "encoded", "image", "encoded", "image"]
    requests = [_request(index, name) for index, name in enumerate(names)]
    requests += [{**_request(6, "image"), "inputs": ["image", "encoded"]}, {**_request(7, "image"), "inputs": []}]
    requests += [{**_request(8, "image"), "outputs": ["upscaled_encoded"]}]
    answers = _answers(worker, requests, [*arrays, photo[None], whole, photo[None]])
    assert [message["index"] for message, _ in answers] == list(range(9))
    errors = [message.get("error", "") for message, _ in answers]
    assert errors[0] == errors[5] == ""
    assert errors[1].startswith("encoded: cannot be read (") and errors[2].startswith("encoded: file is empty")
    assert errors[3].startswith("picture: shape (0, 4, 3); expected (H, W, 3)")
    assert errors[4] == "encoded: 2 pictures; expected one a request; send it as (1, bytes)"
    assert errors[6].startswith("request: inputs image, encoded; expected one of")
    assert errors[7].startswith("request: inputs none; expected one of")
    assert errors[8] == "request: input image, but not output upscaled_image; expected the output of its kind"


def test_what_does_not_fit_into_memory_is_an_error(
    make_engine: Callable[..., Path], photo: np.ndarray, photo_path: Path, tmp_path: Path
) -> None:
    worker = Worker(make_engine(), None, {"memory": "1M"}, tmp_path)
    requests = [_request(0, "image"), _request(1, "encoded")]
    answers = _answers(worker, requests, [photo[None], _file(photo_path)])
    worker.close()
    for message, _ in answers:
        assert message["code"] == "UNAVAILABLE" and "142x106 pixels out need about" in message["error"]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"threads": "many"}, "config.pbtxt: parameter threads 'many'; expected auto or a number"),
        ({"tile": "17"}, "--tile: 17 pixels; expected 16"),
        ({"memory": "much"}, "--memory: 'much'; expected such as 4G"),
        ({"precision": "f8"}, "--precision: 'f8'"),
        ({"colour": "red"}, "config.pbtxt: parameter colour; expected one of threads, tile, memory, precision"),
    ],
)
def test_options_of_the_configuration_are_checked(
    identity_engine: Path, tmp_path: Path, options: dict[str, str], expected: str
) -> None:
    with pytest.raises(Exception, match=expected.replace("(", "\\(")):
        Worker(identity_engine, None, options, tmp_path)


def _counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an entry for each run of the engine."""
    runs, run = list[int](), engine.backend.run
    monkeypatch.setattr(engine.backend, "run", lambda x, *more: (runs.append(len(x)), run(x, *more))[1])
    return runs


def test_pictures_of_several_requests_share_runs_and_come_out_the_same(
    worker: Worker, wide_worker: Worker, photo: np.ndarray, photo_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1, 2, 6 tiles, those of the file, and 1.
    arrays = [
        photo[None, :9, :9],
        photo[None, :16, :28],
        photo[None, :20, :40],
        _file(photo_path),
        photo[None, :5, :7],
    ]
    requests = [_request(index, "image") for index in range(5)]
    requests[3] = _request(3, "encoded")
    alone = [_answers(wide_worker, [one], [array])[0][1][0] for one, array in zip(requests, arrays, strict=True)]
    unbatched = _answers(worker, requests, arrays)
    runs = _counted(wide_worker._engine, monkeypatch)
    together = _answers(wide_worker, requests, arrays)
    tiles = sum(
        wide_worker._engine.start(pixels).tiles for pixels in (*(a[0] for a in arrays[:3]), photo, arrays[4][0])
    )
    assert len(runs) == -(-tiles // 4)
    for one, (_, (other,)), (_, (single,)) in zip(alone, together, unbatched, strict=True):
        assert np.array_equal(one, other) and np.array_equal(one, single)


def test_a_picture_that_fails_in_a_shared_run_leaves_the_others_whole(
    wide_worker: Worker, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tile, a picture over a full run with the next one's first tiles in it, and another.
    arrays = [photo[None, :9, :9], photo[None, :20, :40], photo[None, :16, :28]]
    expected = [_answers(wide_worker, [_request(0, "image")], [array])[0][1][0] for array in arrays]
    run, calls = wide_worker._engine.backend.run, iter(range(100))

    def breaks_second(x: np.ndarray, *more: Any) -> np.ndarray:
        if next(calls) == 1:
            raise OutOfMemoryError("GPU", "is full")
        return run(x, *more)

    monkeypatch.setattr(wide_worker._engine.backend, "run", breaks_second)
    answers = _answers(wide_worker, [_request(index, "image") for index in range(3)], arrays)
    assert [message.get("error") for message, _ in answers] == [None, "GPU: is full", None]
    assert np.array_equal(answers[0][1][0], expected[0]) and np.array_equal(answers[2][1][0], expected[2])


@pytest.mark.parametrize("has_kernels", [False, True])
def test_pictures_share_runs_of_a_gpu_and_come_out_the_same(
    machine, photo: np.ndarray, tmp_path: Path, has_kernels: bool
) -> None:
    if has_kernels:
        machine.build_kernels()
    worker = Worker(machine.engine(batch=4, dtype="float16"), "cuda:0", {}, tmp_path)
    arrays = [photo[None, :9, :9], photo[None, :20, :40], photo[None, :16, :28], photo[None]]
    requests = [_request(index, "image", {"color_fix": "wavelet"}) for index in range(4)]
    alone = [_answers(worker, [one], [array]) for one, array in zip(requests, arrays, strict=True)]
    together = _answers(worker, requests, arrays)
    assert not any("error" in message for message, _ in together)
    for ((_, one),), (_, other) in zip(alone, together, strict=True):
        assert np.array_equal(one, other)
    worker.close()
    machine.assert_nothing_is_left()
