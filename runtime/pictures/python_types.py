"""The types that a picture may come in from a program: arrays, NumPy's or another library's, and Pillow images."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from intsr.arrays import Array
from intsr.errors import ImageError

Picture: TypeAlias = Array | Image.Image


def pixels_from_picture(image: Picture) -> Array:
    """Return (H, W) or (H, W, 3), uint8 or uint16; what lies in this machine's memory is not copied.

    Raises ImageError for anything else.
    """
    pixels = _pixels_from_pillow(image) if isinstance(image, Image.Image) else _array_from(image)
    colour_axes = pixels.shape[2:]
    if pixels.ndim not in (2, 3) or colour_axes not in ((), (3,)) or 0 in pixels.shape:
        raise ImageError("picture", f"shape {pixels.shape}", "(H, W, 3) or (H, W), not empty")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError("picture", f"dtype {pixels.dtype}", "uint8 or uint16")
    return pixels


def copy_of(image: Picture) -> Picture:
    """Return a picture that its owner cannot change any more; what is no whole picture stays as it is."""
    try:
        return image.copy() if isinstance(image, Image.Image) else np.array(_array_from(image))
    except Exception:
        # No picture, or a broken one: it is told at its turn.
        return image


def picture_like(image: Picture, pixels: Array) -> Picture:
    """Return `pixels` as a Pillow image where `image` is one."""
    return Image.fromarray(pixels) if isinstance(image, Image.Image) else pixels


def _pixels_from_pillow(image: Image.Image) -> Array:
    if image.mode not in ("RGB", "L", "I;16"):
        raise ImageError("picture", f"mode {image.mode}", "RGB, L or I;16", 'convert it with .convert("RGB")')
    try:
        # One that was opened is decoded only now, and may be broken or closed.
        image.load()
        return np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds.
        where = getattr(image, "filename", "") or "picture"
        raise ImageError(where, f"cannot be read ({error})", "a whole picture") from error


def _array_from(image: Any) -> Array:
    if isinstance(image, np.ndarray):
        return image
    # As arrays of other libraries hand out what they hold.
    by_numpy = hasattr(type(image), "__array_interface__") or hasattr(type(image), "__array__")
    if not by_numpy and not hasattr(type(image), "__dlpack__"):
        raise ImageError("picture", f"a {type(image).__name__}", "an array or a Pillow image")
    try:
        return np.asarray(image) if by_numpy else np.from_dlpack(image)
    except MemoryError:
        raise
    except Exception as error:  # Libraries raise many kinds: of what a GPU holds, of what gradients flow through.
        expected = "uint8 or uint16 in this machine's memory"
        fix = "give what NumPy can read, as tensor.detach().cpu() is"
        raise ImageError("picture", f"{_description(image)}, which NumPy cannot read", expected, fix) from error


def _description(image: Any) -> str:
    """Return `a Tensor of torch.float32, shape (3, 8, 8), on cuda:0, which requires gradients`, as far as it says."""
    text = f"a {type(image).__name__}"
    if (dtype := getattr(image, "dtype", None)) is not None:
        text += f" of {dtype}"
    if (shape := getattr(image, "shape", None)) is not None:
        text += f", shape {tuple(shape)}"
    if (device := getattr(image, "device", None)) is not None:
        text += f", on {device}"
    return text + ", which requires gradients" * bool(getattr(image, "requires_grad", False))
