"""Precision is settled by the engine and the CPU, and the member is checked before OpenVINO sees it."""

from __future__ import annotations

import gc
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsr.errors import BundleError, EngineMismatchError
from intsr.runtime.backends import packed as packed_module
from intsr.runtime.backends.openvino.backend import resolve_precision
from intsr.runtime.backends.packed import IR_MAGIC, append_weights, pack_member, pack_xml, split_member, unpack_xml
from intsr.runtime.engine import open_engine


@pytest.mark.parametrize(
    ("requested", "quantized", "capabilities", "cpu", "expected"),
    [
        ("auto", True, ["FP32", "BF16"], "", "bf16"),
        ("auto", False, ["FP32", "BF16"], "", "f32"),
        ("auto", True, ["FP32"], "", "f32"),
        ("f32", True, ["FP32", "BF16"], "", "f32"),
        ("bf16", False, ["FP32", "BF16"], "", "bf16"),
        # What each is fast at.
        ("auto", True, ["FP32", "BF16"], "GenuineIntel fpu avx512_bf16 avx512_vnni", "f32"),
        ("bf16", True, ["FP32", "BF16"], "GenuineIntel fpu avx512_bf16 avx512_vnni", "bf16"),
        ("auto", True, ["FP32", "BF16"], "GenuineIntel avx512_bf16 amx_tile amx_bf16", "bf16"),
        ("auto", True, ["FP32", "BF16"], "AuthenticAMD avx512_bf16 avx512_vnni", "bf16"),
    ],
)
def test_precision(requested: str, quantized: bool, capabilities: list[str], cpu: str, expected: str) -> None:
    assert resolve_precision(requested, quantized, capabilities, "x.engine", cpu) == expected


def test_bf16_where_the_cpu_has_none() -> None:
    with pytest.raises(EngineMismatchError, match="use --precision f32"):
        resolve_precision("bf16", True, ["FP32"], "x.engine")


def _mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_weights_are_read_where_they_lie_and_let_go_when_it_is_closed(
    make_engine, photo: np.ndarray, tmp_path: Path, mapped_engines: None
) -> None:
    path = tmp_path / "mapped.engine"
    shutil.copy(make_engine("cpu"), path)
    with open_engine(path) as engine:
        assert _mapped(path)
        expected = engine.upscale(photo)
        # A new file of the same name is another file.
        path.with_suffix(".new").write_bytes(b"x")
        path.with_suffix(".new").replace(path)
        np.testing.assert_array_equal(engine.upscale(photo), expected)
    gc.collect()
    assert not _mapped(path) and not _mapped(tmp_path)


def test_a_bundle_whose_members_are_not_aligned_is_copied(
    make_engine, photo: np.ndarray, tmp_path: Path, mapped_engines: None
) -> None:
    # As other programs write them.
    path, old = make_engine("cpu"), tmp_path / "old.engine"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with open_engine(path) as engine, open_engine(old) as copied:
        assert _mapped(path) and not _mapped(old)
        np.testing.assert_array_equal(copied.upscale(photo), engine.upscale(photo))


def test_the_precision_that_openvino_took_is_told(make_engine) -> None:
    import openvino

    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    asked = ("f32", "bf16") if has_bf16 else ("f32",)
    for bits, precision, expected in (
        ("fp", "auto", ("f32",)),
        ("w8a8", "auto", asked),
        *(("w8a8", precision, (precision,)) for precision in asked),
    ):
        with open_engine(make_engine("cpu", bits=bits), precision=precision) as engine:
            assert engine.precision in expected


@given(xml=st.binary(max_size=200), weights=st.binary(max_size=200), more=st.lists(st.binary(max_size=9)))
def test_member_round_trip(tmp_path_factory: pytest.TempPathFactory, xml: bytes, weights: bytes, more) -> None:
    member, graph, binary = (tmp_path_factory.getbasetemp() / name for name in ("member", "m.xml", "m.bin"))
    graph.write_bytes(xml)
    binary.write_bytes(weights)
    pack_member(IR_MAGIC, graph, binary, member)
    append_weights(member, map(memoryview, more))
    got_xml, got_weights = split_member(IR_MAGIC, memoryview(member.read_bytes()), "member")
    assert (got_xml, bytes(got_weights)) == (xml, b"".join([weights, *more]))


@pytest.mark.parametrize(
    "data", [b"", b"x" * 100, IR_MAGIC + b"\0" * 10, struct.pack("<8sQQ", IR_MAGIC, 9, 9) + b"\0" * 99]
)
def test_other_bytes_are_no_member(data: bytes) -> None:
    with pytest.raises(BundleError):
        split_member(IR_MAGIC, memoryview(data), "member")


@given(st.binary())
def test_xml_round_trip(xml: bytes) -> None:
    assert unpack_xml(memoryview(pack_xml(xml)), "member") == xml
    assert pack_xml(xml) == pack_xml(xml)


def test_other_bytes_are_no_xml(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_xml(b"<layer/>" * 999)
    for data in (b"", b"<net/>", packed[:-1], packed[:20], packed + b"x", packed[:-1] + b"\1"):
        with pytest.raises(BundleError, match="member"):
            unpack_xml(memoryview(data), "member")
    # What would unpack into more than there may be is not unpacked.
    monkeypatch.setattr(packed_module, "MAX_XML_BYTES", 999)
    with pytest.raises(BundleError, match="at most 999 bytes"):
        unpack_xml(memoryview(packed), "member")


def test_what_an_inference_takes_is_known_beforehand_and_then_measured(make_engine) -> None:
    plans = {name: {"inference_bytes_per_element": 1000} for name in ("encoder", "unet", "decoder")}
    with open_engine(make_engine("cpu", build={"plans": plans}), threads=1) as engine:
        opened, expected = engine.resident_bytes_at(0), 3 * 1000 * 3 * 32 * 32
        assert engine.resident_bytes_at(16) - opened == expected
        # Of tiles of half the side, a quarter.
        assert engine.resident_bytes_at(8) - opened == expected // 4
        assert engine.backend.activation_bytes is None
        engine.warm_up()
        measured = engine.backend.activation_bytes
        assert measured is not None and engine.resident_bytes_at(16) - opened == measured
        engine.warm_up()
        assert engine.backend.activation_bytes == measured, "once"
    with open_engine(make_engine("cpu")) as engine:
        assert engine.expected_bytes == 0


def test_who_asks_for_threads_shares_the_machine_and_is_not_bound_to_its_first_cores(make_engine) -> None:
    with open_engine(make_engine("cpu"), threads=1) as engine:
        for network in engine.backend.networks:
            assert network._compiled.get_property("ENABLE_CPU_PINNING") is False
