"""Pictures written in bands: every format, whole or not at all; what it cannot hold is refused beforehand."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intsr.errors import ImageError, UsageError
from intsr.runtime.batch.naming import OUTPUT_FORMATS
from intsr.runtime.pictures import formats
from intsr.runtime.pictures import writer as picture_writer
from intsr.runtime.pictures.formats import registry, tiff
from intsr.runtime.pictures.formats.registry import FORMATS, PICTURE_SUFFIXES, UNREAD_SUFFIXES, format_from_path
from intsr.runtime.pictures.picture import ImageMetadata
from intsr.runtime.pictures.reader import read_image
from intsr.runtime.pictures.writer import check_pixels_fit, open_writer, write_image

LOSSLESS = (".png", ".tif", ".bmp")
ALL = (".png", ".jpg", ".tif", ".webp", ".avif", ".bmp")
NOTHING = ImageMetadata()


def _rows(height: int, width: int, channels: int, dtype: type = np.uint8) -> np.ndarray:
    """(H, W, C), smooth enough for JPEG."""
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    unit = 0.5 + 0.2 * np.sin(x / 9 + c) + 0.2 * np.cos(y / 13 - c)
    return (unit * np.iinfo(dtype).max).astype(dtype)


def _write(path: Path, rows: np.ndarray, step: int, has_alpha: bool = False, **settings: object) -> None:
    height, width, channels = rows.shape
    opened = open_writer(path, width, height, channels - has_alpha, rows.dtype, has_alpha=has_alpha, **settings)
    with opened as writer:
        for top in range(0, height, step):
            writer.write(rows[top : top + step])


def _read(path: Path) -> np.ndarray:
    """(H, W, C) with transparency."""
    read = read_image(path)
    return np.dstack([read.pixels, *([] if read.alpha is None else [read.alpha])])


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_format_in_bands(tmp_path: Path, suffix: str, channels: int, dtype: type) -> None:
    path, rows, has_alpha = tmp_path / f"a{suffix}", _rows(150, 67, channels, dtype), channels % 2 == 0
    target = format_from_path(path)
    if (dtype is np.uint16 and not target.holds_16_bits) or (has_alpha and not target.holds_alpha):
        with pytest.raises(ImageError, match=r"write a \.png"):
            _write(path, rows, 41, has_alpha)
        assert list(tmp_path.iterdir()) == []
        return
    _write(path, rows, 41, has_alpha)
    read = _read(path)
    assert read.dtype == dtype
    if channels < 3 and not target.holds_grey:
        read = read[..., [0, 3] if has_alpha else [0]]
    differences = np.abs(read.astype(int) - rows)
    assert differences[..., : channels - has_alpha].max() <= (0 if suffix in LOSSLESS else 12)
    assert not has_alpha or differences[..., -1].max() <= (3 if suffix == ".avif" else 0)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ALL)
def test_equal_pictures_are_equal_bytes_however_they_come(tmp_path: Path, suffix: str) -> None:
    rows = _rows(201, 67, 3)
    for resize_to in (None, (50, 90)):
        for name, step in (("a", 201), ("b", 1), ("c", 64)):
            _write(tmp_path / f"{name}{suffix}", rows, step, resize_to=resize_to)
        first, *others = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "abc")
        assert others == [first, first]


@pytest.mark.parametrize("new_size", [(33, 100), (134, 402), (1, 1)])
@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (4, np.uint16)])
def test_resized_by_lanczos(tmp_path: Path, channels: int, dtype: type, new_size: tuple[int, int]) -> None:
    """As Pillow does it, but for rounding and the very edge; transparency apart from the colours."""
    rows = _rows(201, 67, channels, dtype)
    _write(tmp_path / "a.png", rows, 40, channels == 4, resize_to=new_size)
    read = _read(tmp_path / "a.png")
    planes = (Image.fromarray(rows[..., channel].astype(np.float32)) for channel in range(channels))
    expected = np.dstack([np.asarray(plane.resize(new_size, Image.Resampling.LANCZOS)) for plane in planes])
    assert read.shape == expected.shape
    differences = np.abs(read - np.clip(expected, 0, np.iinfo(dtype).max)) / np.iinfo(dtype).max
    assert new_size == (1, 1) or (differences.mean() < 0.005 and differences.max() < 0.03)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
def test_quality(tmp_path: Path, suffix: str) -> None:
    path, rows, sizes = tmp_path / f"a{suffix}", _rows(200, 200, 3), []
    rows += np.random.default_rng(0).integers(0, 20, rows.shape, np.uint8)
    for quality in (30, 80, None):
        _write(path, rows, 64, quality=quality)
        sizes.append(path.stat().st_size)
    assert sizes == sorted(set(sizes))
    if suffix == ".jpg":
        with Image.open(path) as image:
            assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3, "colours in full resolution"  # type: ignore[attr-defined]


def test_a_png_is_no_larger_than_pillows(tmp_path: Path) -> None:
    """At level 4 there; a photograph of a megapixel."""
    from skimage.data import astronaut

    photo = np.asarray(Image.fromarray(astronaut()).resize((1024, 1024), Image.Resampling.LANCZOS))
    _write(tmp_path / "ours.png", photo, 256)
    Image.fromarray(photo).save(tmp_path / "pillow.png", compress_level=4)
    assert (tmp_path / "ours.png").stat().st_size < 1.05 * (tmp_path / "pillow.png").stat().st_size


def test_a_tiff_for_more_than_4_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "_BIG_TIFF_BYTES", 0)
    exif = Image.Exif()
    exif[0x013B] = "somebody"
    exif.get_ifd(0x8769).update({0xA002: 1, 0x927C: b"maker"})
    exif.get_ifd(0x8825).update({1: "N", 2: (12.0, 30.0, 1.5)})
    path, rows = tmp_path / "a.tif", _rows(150, 67, 4)
    _write(path, rows, 64, True, metadata=ImageMetadata(exif.tobytes(), xmp=b"<xmp/>"))
    assert path.read_bytes()[:4] == b"II+\0"
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), rows)
        found, details, gps = image.getexif(), image.getexif().get_ifd(0x8769), image.getexif().get_ifd(0x8825)
        assert (found[0x013B], image.info["xmp"], gps[2]) == ("somebody", b"<xmp/>", (12.0, 30.0, 1.5))
    assert (details[0xA002], details[0x927C]) == (67, b"maker")


@pytest.mark.parametrize("shape", [(80, 33), (80, 33, 3)])
def test_a_whole_array_with_its_alpha(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    pixels, alpha = (rng.integers(0, 65536, size, np.uint16) for size in (shape, (80, 33)))
    write_image(tmp_path / "a.png", pixels, alpha, NOTHING)
    np.testing.assert_array_equal(_read(tmp_path / "a.png"), np.dstack([pixels, alpha]))


@pytest.mark.parametrize("suffix", ALL)
def test_a_file_that_did_not_arrive_is_noticed(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"before")
    check = picture_writer.check_written

    def check_half(file: Path, *expected: object) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        check(file, *expected)  # type: ignore[arg-type]

    monkeypatch.setattr(picture_writer, "check_written", check_half)
    with pytest.raises(ImageError, match=r"cannot be (written|read)"):
        write_image(path, photo, None, NOTHING)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("bits", "channels", "size", "name", "message"),
    [
        (8, 3, (80000, 40), "a.jpg", r"sides up to 65500 in JPEG; write a \.png"),
        (8, 3, (40, 20000), "a.webp", "sides up to 16383"),
        (8, 3, (40, 20000), "a.avif", "sides up to 16384"),
        (8, 3, (40, 2_000_000), "a.png", r"sides up to 1000000 in PNG; write a \.tif"),
        (8, 3, (40000, 40000), "a.bmp", "4294901760 bytes in BMP"),
        (16, 1, (40, 40), "a.jpg", "16-bit grey"),
        (16, 3, (40, 40), "a.avif", "16-bit colour"),
        (8, 3, (40, 40), "a.gif", "suffix .gif"),
        (8, 3, (40, 40), "a", "none"),
    ],
)
def test_what_cannot_be_written_is_known_beforehand(
    bits: int, channels: int, size: tuple[int, int], name: str, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        check_pixels_fit(*size, channels, bits, Path(name))


def test_formats_are_what_the_folder_has() -> None:
    assert [item.name for item in FORMATS] == ["PNG", "JPEG", "WebP", "AVIF", "TIFF", "BMP"]
    assert PICTURE_SUFFIXES == (".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp")
    assert OUTPUT_FORMATS == ("same", "png", "jpg", "webp", "avif", "tif", "bmp")
    assert not set(UNREAD_SUFFIXES) & set(PICTURE_SUFFIXES)
    assert format_from_path(Path("A.JPeG")).name == "JPEG"


def test_another_format_is_one_more_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.py").write_text(
        "from intsr.runtime.pictures.picture import PictureFormat\n"
        "class Other(PictureFormat):\n    name, suffixes = 'Other', ('.other',)\n"
        "FORMAT = Other()\n"
    )
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    assert [item.name for item in registry._found()] == [*(item.name for item in FORMATS), "Other"]


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("written", [0, 400])
def test_an_exception_leaves_nothing(tmp_path: Path, suffix: str, written: int) -> None:
    before = _descriptors()
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / f"a{suffix}", 400, 1000, 3, np.uint8) as writer:
        writer.write(np.zeros((written, 400, 3), np.uint8))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert _descriptors() == before


@pytest.mark.parametrize("suffix", ALL)
def test_nothing_stays_open_after_a_picture(tmp_path: Path, suffix: str) -> None:
    before = []
    for _ in range(3):
        before.append(_descriptors())
        _write(tmp_path / f"a{suffix}", _rows(9, 8, 3), 9, resize_to=(5, 5))
    # Libraries open something of their own, once.
    assert _descriptors() == before[-1]


def test_a_disk_without_room_is_known_before_the_rows_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    opened = open_writer(tmp_path / "a.png", 10_000, 10_000, 3, np.uint8)
    with pytest.raises(UsageError, match="GB free on its disk"), opened:
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ALL)
def test_the_limit_of_pixels_is_for_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    _write(tmp_path / f"a{suffix}", _rows(20, 30, 3), 20)
    with pytest.raises(ImageError, match="more pixels than the limit"):
        read_image(tmp_path / f"a{suffix}")


OTHER_KIND = r"rows of .*expected rows of \(7, 3\) uint8"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((9, 7, 3), np.uint8), "9 rows; expected 10"),
        (np.zeros((11, 7, 3), np.uint8), "11 rows; expected 10"),
        (np.zeros((10, 6, 3), np.uint8), OTHER_KIND),
        (np.zeros((10, 7, 4), np.uint8), OTHER_KIND),
        (np.zeros((10, 7), np.uint8), OTHER_KIND),
        (np.zeros((10, 7, 3), np.uint16), OTHER_KIND),
        (np.zeros(7, np.uint8), OTHER_KIND),
    ],
)
def test_other_rows_than_announced(tmp_path: Path, rows: np.ndarray, message: str) -> None:
    opened = open_writer(tmp_path / "a.png", 7, 10, 3, np.uint8)
    with pytest.raises(ImageError, match=message), opened as writer:
        writer.write(rows)
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_is_no_block_of_memory_is_written_as_it_is(tmp_path: Path) -> None:
    rows = _rows(20, 30, 3)
    with open_writer(tmp_path / "a.png", 15, 20, 3, np.uint8) as writer:
        writer.write(rows[:, ::2])
    np.testing.assert_array_equal(_read(tmp_path / "a.png"), rows[:, ::2])


_CHILD = """
import resource, sys, time
import numpy as np
from pathlib import Path
from intsr.errors import ImageError
from intsr.memory import peak_resident_bytes, resident_bytes, restart_peak
from intsr.runtime.pictures.writer import open_writer
path = Path(sys.argv[1])
noise = np.random.default_rng(0).integers(0, 256, (100, 1200, 3)).astype(np.uint8)
"""
_FULL = """
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    with open_writer(path, 1200, 1200, 3, np.uint8) as writer:
        [writer.write(noise) for _ in range(12)]
except ImageError as error:
    print(error)
"""


@pytest.mark.parametrize(("suffix", "most_bytes"), [(".png", 1 << 20), (".png", 4_320_000), (".bmp", 4_320_000)])
def test_a_full_disk_is_an_image_error(tmp_path: Path, suffix: str, most_bytes: int) -> None:
    """While rows come in; while libvips encodes noise; while Pillow writes."""
    path = tmp_path / f"a{suffix}"
    command = [sys.executable, "-c", _CHILD + _FULL, str(path), str(most_bytes)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.startswith(f"{path}: cannot be written (")
    assert "File too large" in result.stdout or (suffix == ".bmp" and "ends early" in result.stdout)
    assert (result.stdout.count("\n"), result.stderr) == (1, "")
    assert list(tmp_path.iterdir()) == []


_INTERRUPTED = """
with open_writer(path, 1200, 1200, 3, np.uint8) as writer:
    writer.write(noise)
    print("running", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_kill_in_the_middle(tmp_path: Path, number: signal.Signals) -> None:
    """Rows are in a file without a name: the system removes it whatever becomes of the process."""
    command = [sys.executable, "-c", _CHILD + _INTERRUPTED, str(tmp_path / "a.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        os.kill(process.pid, number)
        process.wait(30)
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == (number == signal.SIGKILL) and all(name.endswith(".part") for name in left)


_LARGE = """
def write(side):
    restart_peak()
    rows = (np.arange(64 * side * 3) // 500).astype(np.uint8).reshape(64, side, 3)
    with open_writer(path, side, side, 3, np.uint8, resize_to=eval(sys.argv[2])) as writer:
        for top in range(0, side, 64):
            writer.write(rows[: side - top])
    print(peak_resident_bytes() - before)
before = 0
write(64)
before = resident_bytes()
write(6000)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "resize_to"), [(".png", None), (".jpg", (4000, 4000))])
def test_rows_that_wait_take_no_memory(tmp_path: Path, suffix: str, resize_to: tuple[int, int] | None) -> None:
    """108 MB of pixels: they are on disk until they are encoded."""
    command = [sys.executable, "-c", _CHILD + _LARGE, str(tmp_path / f"a{suffix}"), str(resize_to)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert int(result.stdout.splitlines()[-1]) < 40e6
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.size == (resize_to or (6000, 6000))


def test_a_writer_is_imported_without_libvips() -> None:
    code = "import sys, intsr.runtime.pictures.writer; print('pyvips' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
