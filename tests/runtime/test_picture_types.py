"""Pictures from a program: arrays of any library that says what it holds, and Pillow images that may be broken."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intsr.errors import ImageError, IntsrError
from intsr.runtime.engine import open_engine
from intsr.runtime.pictures.python_types import copy_of, picture_like, pixels_from_picture


def _by_array(array: np.ndarray) -> Any:
    return type("ByArray", (), {"__array__": lambda self, *_, **__: array})()


def _by_interface(array: np.ndarray) -> Any:
    return type("ByInterface", (), {"array": array, "__array_interface__": array.__array_interface__})()


def _by_dlpack(array: np.ndarray) -> Any:
    def dlpack(self: object, **options: Any) -> Any:
        return array.__dlpack__(**options)

    return type("ByDlpack", (), {"__dlpack__": dlpack, "__dlpack_device__": lambda self: array.__dlpack_device__()})()


class OnGpu:
    """As a tensor on a GPU answers."""

    dtype, shape, device, requires_grad = "uint8", (4, 4, 3), "cuda:0", False

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")


def _torch(array: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(array)


KINDS = [_by_array, _by_interface, _by_dlpack, _torch]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_of_other_libraries(identity_engine: Path, photo: np.ndarray, kind: Any, dtype: type) -> None:
    pixels = photo.astype(dtype) * (257 if dtype == np.uint16 else 1)
    with open_engine(identity_engine) as engine:
        expected = engine.upscale(pixels)
        made = [engine.upscale(kind(pixels)), *engine.upscale_many([kind(pixels)])]
        made.append(np.concatenate(list(engine.upscale_rows(kind(pixels)))))
    for result in made:
        assert isinstance(result, np.ndarray)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_buffer_that_is_used_again(kind: Any) -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    copy = copy_of(kind(pixels))
    pixels[:] = 7
    assert not pixels_from_picture(copy).any()


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (OnGpu(), "a OnGpu of uint8, shape (4, 4, 3), on cuda:0, which NumPy cannot read; expected uint8"),
        (_by_array(np.zeros((4, 4, 3), np.float32)), "dtype float32; expected uint8 or uint16"),
        (_by_array(np.zeros((3, 4, 4), np.uint8)), "shape (3, 4, 4); expected (H, W, 3) or (H, W)"),
        ([[1, 2], [3, 4]], "a list; expected an array or a Pillow image"),
        ("photo.png", "a str; expected an array or a Pillow image"),
        (Image.new("CMYK", (2, 2)), "mode CMYK; expected RGB, L or I;16"),
        (np.uint8(3), "shape (); expected (H, W, 3) or (H, W)"),
    ],
)
def test_other_things(picture: Any, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        pixels_from_picture(picture)
    assert str(caught.value).startswith(f"picture: {words}") and "\n" not in str(caught.value)
    assert copy_of(picture) is picture or type(copy_of(picture)) in (np.ndarray, type(picture))


def test_tensors_that_are_no_pictures() -> None:
    torch = pytest.importorskip("torch")
    words = r"a Tensor of torch.float32, shape \(3, 4, 4\), on cpu, which requires gradients, .*tensor.detach\(\).cpu"
    with pytest.raises(ImageError, match=words):
        pixels_from_picture(torch.zeros(3, 4, 4, requires_grad=True))
    with pytest.raises(ImageError, match=r"a Tensor of torch.bfloat16, shape .*which NumPy cannot read"):
        pixels_from_picture(torch.zeros(4, 4, 3, dtype=torch.bfloat16))
    with pytest.raises(ImageError, match="on meta, which NumPy cannot read"):
        pixels_from_picture(torch.zeros(4, 4, 3, dtype=torch.uint8, device="meta"))
    with pytest.raises(ImageError, match="dtype float32"):
        pixels_from_picture(torch.zeros(4, 4, 3))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_broken_picture_that_is_opened_late(identity_engine: Path, photo: np.ndarray, kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, kind)
    with open_engine(identity_engine) as engine:
        for use in (engine.upscale, lambda image: list(engine.upscale_many([photo, image]))):
            with pytest.raises(IntsrError, match="cannot be read"):
                use(Image.open(io.BytesIO(file.getvalue()[: file.tell() // 2])))


def test_a_picture_whose_file_is_closed(photo_path: Path) -> None:
    with Image.open(photo_path) as image:
        pass
    with pytest.raises(ImageError, match=r"photo.png: cannot be read \(.*\); expected a whole picture"):
        pixels_from_picture(image)


def test_the_result_is_a_pillow_image_where_the_picture_is() -> None:
    pixels = np.zeros((2, 2), np.uint8)
    assert isinstance(picture_like(Image.new("L", (1, 1)), pixels), Image.Image)
    assert picture_like(_by_array(pixels), pixels) is pixels  # type: ignore[arg-type]
