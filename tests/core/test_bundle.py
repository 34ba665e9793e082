"""The bundle gives back what went in, or says in one line what is wrong with it, before anything else reads it."""

import hashlib
import json
import os
import threading
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intsr import bundle as bundle_module
from intsr.bundle import MANIFEST_NAME, MEMBER_ALIGNMENT_BYTES, Bundle, read_manifest, write_bundle
from intsr.errors import BundleError, UsageError

SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def _open_whole(path: Path) -> dict[str, bytes]:
    with Bundle(path) as bundle:
        return {name: bytes(bundle.member(name)) for name in bundle.sizes_bytes()}


def _rewrite(path: Path, change, compression=zipfile.ZIP_STORED) -> None:
    """Write the ZIP again after `change(contents)`, which may edit the mapping of names to bytes."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def test_round_trip(tmp_path, bundle_path, manifest, members):
    contents = {name: file.read_bytes() for name, file in members.items()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert read_manifest(bundle_path) == replace(manifest, sha256=hashes)
    assert _open_whole(bundle_path) == contents
    with Bundle(bundle_path) as bundle:
        assert bundle.sizes_bytes() == {name: len(content) for name, content in contents.items()}
    write_bundle(tmp_path / "again.engine", manifest, members)
    assert (tmp_path / "again.engine").read_bytes() == bundle_path.read_bytes()


@SAME_FOLDER
@given(names=st.lists(st.text("abcdé.", min_size=1, max_size=90), min_size=1, max_size=5, unique=True))
def test_members_are_aligned_whatever_they_are_called(tmp_path, manifest, names):
    for number in range(len(names)):
        (tmp_path / str(number)).write_bytes(bytes([number]) * (number * 37 + 1))
    files = {f"{name}!": tmp_path / str(number) for number, name in enumerate(names)}
    files |= {entry.member: tmp_path / "0" for entry in manifest.networks}
    path = tmp_path / "named.engine"
    write_bundle(path, manifest, files)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with Bundle(path) as bundle:
        for name, (start, end) in bundle._ranges.items():
            assert start % MEMBER_ALIGNMENT_BYTES == 0
            assert whole[start:end] == files[name].read_bytes()


@pytest.fixture(params=["mapped", "copied"])
def in_place(request, monkeypatch) -> bool:
    """Whether members lie in the file, as those of large engines do."""
    if request.param == "mapped":
        monkeypatch.setattr(bundle_module, "COPIED_BYTES", 0)
    return request.param == "mapped"


def test_a_lasting_member_outlives_the_bundle_and_its_file(bundle_path, manifest, members, in_place):
    members["unet.plan"].write_bytes(b"")
    write_bundle(bundle_path, manifest, members)
    with Bundle(bundle_path) as bundle:
        lasting = {name: bundle.lasting_member(name) for name in members}
    bundle_path.unlink()
    for name, file in members.items():
        lasting[name].drop_pages()
        assert bytes(lasting[name].view) == file.read_bytes()


def test_what_is_written_into_a_lasting_member_is_not_written_into_the_file(bundle_path, in_place):
    before = bundle_path.read_bytes()
    with Bundle(bundle_path) as opened:
        view = opened.lasting_member("unet.plan").view
        view[:] = bytes(len(view))
    assert bundle_path.read_bytes() == before


def test_what_is_written_into_the_file_is_not_written_into_a_copy(bundle_path, members, in_place):
    # A small engine is one, a large one where that is asked for.
    with Bundle(bundle_path, copy=in_place) as opened:
        with bundle_path.open("r+b") as file:
            file.write(bytes(bundle_path.stat().st_size))
        lasting = {name: opened.lasting_member(name) for name in members}
        assert not opened.is_used_in_place
        with opened.member("unet.plan") as view:
            assert bytes(view) == members["unet.plan"].read_bytes()
    for name, file in members.items():
        assert bytes(lasting[name].view) == file.read_bytes()


def test_a_file_is_overwritten_or_another_one_takes_its_place(bundle_path, tmp_path):
    with Bundle(bundle_path) as opened:
        identity = opened.identity
    assert not bundle_module.is_overwritten(bundle_path, identity)
    data = bundle_path.read_bytes()
    bundle_path.write_bytes(data[:-1])
    assert bundle_module.is_overwritten(bundle_path, identity)
    # By the old one's number, a new file would be the old one.
    bundle_path.rename(tmp_path / "kept")
    bundle_path.write_bytes(data)
    assert not bundle_module.is_overwritten(bundle_path, identity)
    bundle_path.unlink()
    assert not bundle_module.is_overwritten(bundle_path, identity)


def test_a_flipped_byte_anywhere_is_found_or_harmless(bundle_path):
    # Headers have fields that nobody reads, dates for one: the content must then be what it was.
    whole = bundle_path.read_bytes()
    good_manifest, good_members = read_manifest(bundle_path), _open_whole(bundle_path)
    # The manifest is one long stretch of text under one checksum: some of its bytes will do.
    text = range(whole.index(b"{"), whole.index(b"PK", 10))
    positions = [position for position in range(len(whole)) if position not in text or position % 64 == 0]
    other = bundle_path.with_name("altered.engine")
    found = 0
    for position in positions:
        altered = bytearray(whole)
        altered[position] ^= 0xFF
        other.write_bytes(altered)
        try:
            members = _open_whole(other)
            assert (read_manifest(other), members) == (good_manifest, good_members), position
        except BundleError:
            found += 1
    assert found > len(positions) / 2


def test_a_file_cut_short_anywhere_is_found(bundle_path):
    whole = bundle_path.read_bytes()
    other = bundle_path.with_name("cut.engine")
    for size in (*range(0, len(whole), 31), len(whole) - 1):
        other.write_bytes(whole[:size])
        with pytest.raises(BundleError) as caught:
            Bundle(other)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda contents: contents.pop("unet.plan"), "members"),
        (lambda contents: contents.update(extra=b"x"), "members .*extra"),
        (lambda contents: contents.pop(MANIFEST_NAME), "not a bundle"),
        (lambda contents: contents.update({MANIFEST_NAME: b"\xff"}), "is not valid"),
    ],
)
def test_wrong_contents(bundle_path, change, message):
    _rewrite(bundle_path, change)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle(bundle_path)
    assert str(caught.value).startswith(str(bundle_path))


def test_compressed_members_are_refused(bundle_path):
    _rewrite(bundle_path, lambda contents: None, zipfile.ZIP_DEFLATED)
    assert read_manifest(bundle_path).model == "tiny"
    with pytest.raises(BundleError, match="is compressed; expected stored members"):
        Bundle(bundle_path)


def test_a_manifest_that_unpacks_into_gigabytes_is_not_unpacked(bundle_path, monkeypatch):
    monkeypatch.setattr(bundle_module, "MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(BundleError, match="larger than 1000 bytes"):
        read_manifest(bundle_path)


def test_further_tile_sizes(bundle_path, manifest):
    networks = [asdict(entry) for entry in manifest.networks]
    networks[1]["weights_member"] = "decoder.plan"

    def change_tile(networks):
        def change(contents):
            values = json.loads(contents[MANIFEST_NAME])
            values["tiles"] = [{"tile_px": 8, "overlap_px": 2, "networks": networks}]
            contents[MANIFEST_NAME] = json.dumps(values).encode()

        _rewrite(bundle_path, change)

    change_tile(networks)
    with Bundle(bundle_path, tile_px=8) as bundle:
        assert (bundle.manifest.tile_px, bundle.manifest.overlap_px) == (8, 2)
        assert bundle.manifest.networks[1].weights_member == "decoder.plan"
    with pytest.raises(UsageError, match="--tile: 12 pixels; expected 16 or 8"):
        Bundle(bundle_path, tile_px=12)
    for key in ("member", "weights_member"):
        change_tile([networks[0], networks[1] | {key: "elsewhere"}, networks[2]])
        with pytest.raises(BundleError, match="no member elsewhere"):
            Bundle(bundle_path)


def test_hashes_are_not_asked_for_again_where_the_file_is_the_same(bundle_path, members):
    with Bundle(bundle_path) as bundle:
        identity = bundle.identity
    whole = bytearray(bundle_path.read_bytes())
    whole[whole.index(members["unet.plan"].read_bytes())] ^= 1
    stat = bundle_path.stat()
    bundle_path.write_bytes(whole)
    with Bundle(bundle_path, checked=identity) as bundle, pytest.raises(BundleError, match="altered"):
        bundle.check()
    os.utime(bundle_path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with Bundle(bundle_path, checked=identity) as bundle:
        bundle.check()


def test_what_is_no_bundle_at_all(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        Bundle(tmp_path / "nothing.engine")
    with pytest.raises(UsageError, match="is a folder"):
        Bundle(tmp_path)
    for content in (b"", b"PK", b"text" * 1000):
        (tmp_path / "odd.engine").write_bytes(content)
        with pytest.raises(BundleError, match="not a bundle"):
            Bundle(tmp_path / "odd.engine")


def test_what_ends_the_checking_ends_the_opening(bundle_path, monkeypatch):
    monkeypatch.setattr(Bundle, "drop_pages", Mock(side_effect=MemoryError("no pages")))
    with Bundle(bundle_path) as bundle, pytest.raises(MemoryError, match="no pages"):
        bundle.check()


def test_closing_does_not_wait_for_hashes_that_nobody_wants(bundle_path, monkeypatch):
    begun, closing = threading.Event(), threading.Event()
    digest = Bundle._digest

    def slow(bundle, start, end):
        begun.set()
        assert closing.wait(timeout=60)
        return digest(bundle, start, end)

    monkeypatch.setattr(Bundle, "_digest", slow)
    bundle = Bundle(bundle_path)
    assert begun.wait(timeout=60)
    threading.Timer(0.1, closing.set).start()
    bundle.close()
    assert bundle._problem is None
