"""The kernels' parameters, field by field as in the CUDA sources: one struct a kernel, passed by value."""

from __future__ import annotations

import ctypes
from typing import ClassVar

from intsr.cuda.arrays import DeviceArray
from intsr.cuda.driver import Places

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_uint64, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


def fields_of(**groups: str) -> list[tuple[str, type]]:
    """Names by kind, which a digit behind it may tell from an earlier group of the same kind."""
    kinds = {"pointers": _POINTER, "ints": _INT, "longs": _LONG, "floats": _FLOAT}
    return [(name, kinds[group.rstrip("0123456789")]) for group, names in groups.items() for name in names.split()]


class Params(ctypes.Structure):
    # Whether the kernel takes the fields one by one rather than the struct.
    separate: ClassVar[bool] = False

    def __init__(self, **values: int | float | DeviceArray | None) -> None:
        """Every field by name, none left out; an array stands for its pointer, None for the null pointer."""
        names = {name for name, *_ in self._fields_}
        if names != set(values):
            raise TypeError(f"{type(self).__name__}: fields {sorted(names ^ set(values))} are missing or unknown")
        plain = {k: v.pointer if isinstance(v, DeviceArray) else 0 if v is None else v for k, v in values.items()}
        super().__init__(**plain)

    @classmethod
    def places(cls) -> Places:
        """(offset, bytes) of every parameter of the kernel."""
        if not cls.separate:
            return ((0, ctypes.sizeof(cls)),)
        fields = [getattr(cls, name) for name, *_ in cls._fields_]
        return tuple((field.offset, field.size) for field in fields)


class ReadParams(Params):
    _fields_: ClassVar = fields_of(pointers="words out", longs="count")


class PluginParams(Params):
    separate: ClassVar[bool] = True
    _fields_: ClassVar = fields_of(
        pointers="x gamma beta shift multiplier",
        ints="pixels channels groups slice held epsilon_bits activation lowest highest",
        pointers2="out",
    )


class ResizeParams(Params):
    _fields_: ClassVar = fields_of(
        pointers="pixels out first_x taps_x first_y taps_y",
        ints="height width out_height out_width taps rows",
    )


class ExtractParams(Params):
    _fields_: ClassVar = fields_of(pointers="pixels out", ints="picture_width top left height width side")


class AccumulateParams(Params):
    _fields_: ClassVar = fields_of(
        pointers="tile out rows columns",
        ints="picture_height picture_width top left height width side vector",
    )


class PixelsParams(Params):
    _fields_: ClassVar = fields_of(pointers="planes out", longs="count")


class RangeParams(Params):
    _fields_: ClassVar = fields_of(pointers="planes extremes", longs="count", ints="blocks")


class ColorParams(Params):
    _fields_: ClassVar = fields_of(
        pointers="target source partial factors", longs="count", ints="blocks", floats="variance_floor"
    )


class WaveletParams(Params):
    _fields_: ClassVar = fields_of(pointers="in target source out", ints="height width dilation last")


# By kernel; every source file's kernels together.
KERNELS: dict[str, tuple[str, type[Params]]] = {
    "read_words": ("measure", ReadParams),
    **{
        f"plugin_{layout}_{output}{cluster}": ("group_norm_plugin", PluginParams)
        for layout in ("linear", "last")
        for output in ("codes", "halves")
        for cluster in ("", "_cluster")
    },
    "resize_pixels": ("picture", ResizeParams),
    "extract_tile": ("picture", ExtractParams),
    "accumulate_tile": ("picture", AccumulateParams),
    "pixels_from_unit": ("picture", PixelsParams),
    "luma_from_unit": ("picture", PixelsParams),
    "clip_and_range": ("picture", RangeParams),
    "adain_sums": ("color_fix", ColorParams),
    "adain_finish": ("color_fix", ColorParams),
    "adain_apply": ("color_fix", ColorParams),
    "wavelet_level": ("color_fix", WaveletParams),
}
SOURCES = tuple(dict.fromkeys(source for source, _ in KERNELS.values()))
