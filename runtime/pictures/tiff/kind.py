"""What the header of a TIFF says of its pixels, and one decision: read as that, by whom, or refused by its name.

Source: TIFF 6.0, sections 3 to 8 and 16 to 23; Adobe Photoshop TIFF Technical Notes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from PIL.TiffImagePlugin import COMPRESSION_INFO

from intsr.errors import ImageError
from intsr.runtime.pictures.tiff import pages
from intsr.runtime.pictures.tiff.pages import Page

_NEGATIVE, _GREY, _RGB, _PALETTE, _INKS, _YCBCR = 0, 1, 2, 3, 5, 6
# Channels that are no transparency.
_COLOURS = {_NEGATIVE: 1, _GREY: 1, _RGB: 3, _PALETTE: 1, _INKS: 4, _YCBCR: 3}
_NAMES = {_NEGATIVE: "grey", _GREY: "grey", _RGB: "RGB", _PALETTE: "palette", _INKS: "CMYK", _YCBCR: "YCbCr"}
_OTHER_NAMES = {8: "CIELab", 9: "ICCLab", 10: "ITULab", 32844: "LogL", 32845: "LogLuv"}
_FORMATS = {2: "signed whole numbers", 3: "floating-point numbers", 5: "complex numbers", 6: "complex numbers"}
_UNSIGNED = {1, 4}
# Multiplied with the colours, not multiplied, and CorelDRAW's number for it.
_TRANSPARENCIES = (1, 2, 999)
_CMYK_INK_SET = 1
_APART = 2
# LZMA and Zstandard are read by Pillow's libtiff only.
_NONE, _FAX, _OLD_JPEG, _VIPS_COMPRESSIONS = 1, (2, 3, 4), 6, {1, 5, 7, 8, 32773, 32946}
_COMPRESSION_NAMES = {
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    34661: "JBIG",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
_DEPTHS = {_NEGATIVE: (1, 2, 4, 8, 16), _GREY: (1, 2, 4, 8, 12, 16), _PALETTE: (1, 2, 4, 8), _YCBCR: (8,)}
_COLOUR_DEPTHS = (8, 16)
_EXPECTED = "8 or 16 bits a channel, unsigned, in grey, RGB or CMYK"


@dataclass(frozen=True, slots=True)
class TiffKind:
    """How the pixels are stored, and who reads them."""

    # Channels of the file that are colours: 1, 3, or 4 of inks.
    colours: int
    # Of each channel.
    bits: int
    # All channels.
    samples: int
    # Which of the channels is the transparency; None where none is.
    alpha: int | None
    palette: bool
    # Tiles, or channels apart, from which the rows are put together.
    in_pieces: bool
    # Else by libvips.
    by_pillow: bool = False

    @property
    def inks(self) -> bool:
        return self.colours == 4

    @property
    def read_bits(self) -> int:
        """The bits of the decoded picture: inks become light by tables of 8 bits."""
        return 16 if self.bits > 8 and not self.inks else 8

    @property
    def read_channels(self) -> int:
        return 3 if self.colours > 1 or self.palette else 1

    @property
    def notes(self) -> tuple[str, ...]:
        dropped = self.samples - self.colours - (self.alpha is not None)
        notes = [f"channels beside the colours were dropped: {dropped}"] if dropped else []
        if self.inks and self.bits == 16:
            notes.append("16 bits a channel became 8: this kind of picture is read in no other way")
        return tuple(notes)


def kind_of_tiff(path: Path, page: Page) -> TiffKind:
    """Tell what the picture of a directory is. Raises ImageError for what is not read, by its name."""
    compression = page.first(pages.COMPRESSION, _NONE)
    photometric = _photometric(path, page, compression)
    samples = page.first(pages.SAMPLES, 3 if compression == _OLD_JPEG else 1)
    bits = _bits(path, page, samples)
    if photometric not in _COLOURS:
        name = _OTHER_NAMES.get(photometric, f"colours of the kind {photometric}")
        raise ImageError(path, f"a TIFF in {name}", _EXPECTED, "convert it to RGB first")
    name = _NAMES[photometric]
    if bits not in _DEPTHS.get(photometric, _COLOUR_DEPTHS):
        raise ImageError(path, f"a TIFF of {bits}-bit {name}", _EXPECTED, "convert it to 8 or 16 bits first")
    colours = 1 if photometric == _YCBCR and samples == 1 else _COLOURS[photometric]
    alpha = _alpha(path, page, name, colours, samples)
    apart = samples > 1 and page.numbers.get(pages.PLANES) == (_APART,)
    tiled = bool(page.numbers.get(pages.TILE_WIDTH))
    kind = TiffKind(colours, bits, samples, alpha, palette=photometric == _PALETTE, in_pieces=apart or tiled)
    vips_colours = photometric in (_RGB, _INKS) or (photometric in (_NEGATIVE, _GREY) and not apart)
    if vips_colours and bits in (8, 16) and compression in _VIPS_COMPRESSIONS and not (apart and tiled):
        return kind
    _check_pillow_reads(path, page, kind, name, apart=apart)
    subsampling = page.numbers.get(pages.SUBSAMPLING, ()) or (2, 2)
    if photometric == _YCBCR and compression == _NONE and colours == 3 and subsampling != (1, 1):
        raise ImageError(path, "a TIFF of YCbCr with fewer colours than pixels", _EXPECTED, "convert it to RGB first")
    return replace(kind, by_pillow=True)


def _photometric(path: Path, page: Page, compression: int) -> int:
    found = page.numbers.get(pages.PHOTOMETRIC, ())
    if compression == _OLD_JPEG:
        return _YCBCR
    if not found and compression not in _FAX:
        raise ImageError(path, "a TIFF that does not say what its colours are", _EXPECTED, "save it anew")
    return found[0] if found else _NEGATIVE


def _bits(path: Path, page: Page, samples: int) -> int:
    """Return the bits of every channel. Raises ImageError where they differ, or are no whole numbers from 0."""
    bits, *others = set((page.numbers.get(pages.BITS, ()) or (1,))[: max(samples, 1)])
    if others:
        raise ImageError(path, "a TIFF whose channels have different depths", _EXPECTED, "convert it to 8 bits first")
    if odd := set(page.numbers.get(pages.SAMPLE_FORMAT, ())) - _UNSIGNED:
        name = _FORMATS.get(min(odd), f"numbers of the kind {min(odd)}")
        fix = "scale it to 8 or 16 bits first, in a program that knows what is black and what is white"
        raise ImageError(path, f"a TIFF of {bits}-bit {name}", _EXPECTED, fix)
    return bits


def _alpha(path: Path, page: Page, name: str, colours: int, samples: int) -> int | None:
    """Find the channel that is transparency. Raises ImageError where nobody knows which channels are the picture."""
    extras = samples - colours
    if extras < 0:
        raise ImageError(path, f"a TIFF of {name} with {samples} channels", f"{colours}", "save it anew")
    if name == "CMYK" and page.numbers.get(pages.INK_SET, ()) not in ((), (_CMYK_INK_SET,)):
        raise ImageError(path, "a TIFF of inks that are not CMYK", _EXPECTED, "convert it to RGB first")
    meanings = page.numbers.get(pages.EXTRA_SAMPLES, ())[:extras]
    if name == "grey" and (extras > 1 or (extras and not meanings)):
        fix = "say which of them are red, green and blue, as gdal_translate -b 1 -b 2 -b 3 -co PHOTOMETRIC=RGB does"
        raise ImageError(path, f"a TIFF of {samples} channels that are called grey", "1, or colours", fix)
    if name == "RGB" and extras == 1 and not meanings:
        # As all programs take it.
        return colours
    return next((colours + at for at, meaning in enumerate(meanings) if meaning in _TRANSPARENCIES), None)


def _check_pillow_reads(path: Path, page: Page, kind: TiffKind, name: str, *, apart: bool) -> None:
    """Raise ImageError for what Pillow does not read either, or not rightly."""
    got, fix = "", "save it anew, uncompressed or with LZW or Deflate"
    extras, meanings = kind.samples - kind.colours, page.numbers.get(pages.EXTRA_SAMPLES, ())
    compression = page.first(pages.COMPRESSION, _NONE)
    method = _COMPRESSION_NAMES.get(compression) or COMPRESSION_INFO.get(compression, f"the method {compression}")
    plain_alpha = name == "RGB" and kind.bits == 8 and meanings in ((), (2,))
    one_extra = extras == 1 and kind.bits == 8 and (name == "RGB" or meanings in ((0,), (2,)))
    if compression not in COMPRESSION_INFO:
        got = f"a TIFF compressed by {method}"
    elif page.order == ">" and (page.big or kind.bits == 12):
        got = f"a big-endian {'BigTIFF' if page.big else 'TIFF'} of {kind.bits}-bit {name}"
    elif apart and (kind.bits == 16 or kind.colours == 1 or (extras and not (extras == 1 and plain_alpha))):
        got = "a TIFF with its channels apart"
        fix = "save it with them together, as -co INTERLEAVE=PIXEL does in GDAL"
    elif kind.colours > 1 and kind.bits == 16:
        got = f"a TIFF of {kind.bits}-bit {name}, compressed by {method}"
    elif extras and not one_extra:
        got = f"a TIFF of {kind.bits}-bit {name} with {kind.samples} channels, compressed by {method}"
    if got:
        raise ImageError(path, got, fix=fix)
