from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from intsr.engines.builders.child import build_in_child
from intsr.engines.builders.tensorrt import architecture_from_capability
from intsr.engines.builders.tensorrt import build as build_tensorrt
from intsr.engines.builders.tensorrt_common import (
    PLAN_TAGS,
    Library,
    _config,
    _network_flags,
    _parser_errors,
    _save_timing_cache,
    _set_compute_capabilities,
)
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.errors import BuildError, IntsrError

RTX_TAG, RTX_VERSION = 0x74727476, bytes([1, 7, 1])


def test_a_plan_has_tag_and_version(resblock_build: tuple[BuildReport, Path]) -> None:
    report, path = resblock_build
    head = path.read_bytes()[:32]
    assert int.from_bytes(head[:4], "little") == RTX_TAG and RTX_TAG in PLAN_TAGS
    assert head[24:27] == RTX_VERSION
    assert report.plan_bytes == path.stat().st_size
    assert report.seconds > 0 and report.peak_bytes > report.plan_bytes


def test_an_operator_it_does_not_have_is_named(build_rtx, graphs: ModuleType, tmp_path: Path) -> None:
    onnx_path = graphs.unsupported().save(tmp_path / "network.onnx")
    with pytest.raises(BuildError, match=r"node det_\d+ \(Det\): not supported \[UNSUPPORTED_NODE\]") as caught:
        _build(onnx_path, tmp_path / "out" / "network.plan")
    assert str(caught.value).startswith(str(onnx_path)) and "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_junk_is_refused_before_the_parser_sees_it(build_rtx, tmp_path: Path) -> None:
    onnx_path = tmp_path / "network.onnx"
    onnx_path.write_bytes(b"hello this is not onnx" * 10)
    with pytest.raises(BuildError, match="not an ONNX model"):
        _build(onnx_path, tmp_path / "out" / "network.plan")


def test_too_little_workspace_is_the_builders_own_reason(build_rtx, graphs: ModuleType) -> None:
    with pytest.raises(BuildError, match=r"tensorrt-rtx 1\.7\.1[.\d]* cannot build it: .*within workspace limit"):
        build_rtx(graphs.resblock(16, 8), workspace_bytes=1 << 10)


def test_without_detail_there_is_no_plan(build_rtx, graphs: ModuleType) -> None:
    assert build_rtx(graphs.resblock(16, 8), detailed=False)[0].plan == {}


class TimingCacheConfig:
    """IBuilderConfig's part of it: takes back what it wrote, and nothing else."""

    def __init__(self) -> None:
        self.cache: bytes | None = None

    def create_timing_cache(self, serialized_timing_cache: bytes) -> bytes | None:
        return serialized_timing_cache if serialized_timing_cache in (b"", b"measured") else None

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> SimpleNamespace | None:
        return None if self.cache is None else SimpleNamespace(serialize=lambda: b"measured")


@pytest.mark.parametrize("old", [None, b"measured", b"of another library"])
def test_a_timing_cache_is_read_and_rewritten(tmp_path: Path, old: bytes | None) -> None:
    path, config = tmp_path / "timing.cache", TimingCacheConfig()
    if old is not None:
        path.write_bytes(old)
    options = BuildOptions("tensorrt", detailed=False, timing_cache=path)
    library = Library(SimpleNamespace(), "tensorrt", "11.0", "sm89")
    _config(library, SimpleNamespace(create_builder_config=lambda: config), options)
    assert config.cache == (b"measured" if old == b"measured" else b"")
    _save_timing_cache(config, options)
    assert path.read_bytes() == b"measured"


def test_without_a_timing_cache_none_is_made(tmp_path: Path) -> None:
    config, options = TimingCacheConfig(), BuildOptions("tensorrt", detailed=False)
    library = Library(SimpleNamespace(), "tensorrt", "11.0", "sm89")
    _config(library, SimpleNamespace(create_builder_config=lambda: config), options)
    _save_timing_cache(config, options)
    assert config.cache is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("version", "flags"), [("10.13.0", 0b10), ("11.4.0.106", 0), ("1.7.1", 0)])
def test_only_tensorrt_10_must_be_told_to_be_strongly_typed(version: str, flags: int) -> None:
    trt = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1))
    assert _network_flags(trt, version) == flags


def test_all_parser_errors_are_told() -> None:
    def error(text: str, node: str, operator: str) -> SimpleNamespace:
        return SimpleNamespace(
            desc=lambda: text, node_name=lambda: node, node_operator=lambda: operator, code=lambda: "CODE"
        )

    errors = [error("false", "a", "Det"), error("needs 4 inputs", "b", "Conv"), error("bad file", "", "")]
    parser = SimpleNamespace(num_errors=3, get_error=errors.__getitem__)
    assert _parser_errors(parser) == (
        "node a (Det): not supported [CODE]; node b (Conv): needs 4 inputs [CODE]; bad file [CODE]"
    )


@pytest.mark.parametrize(
    ("level", "expected"),
    [("ampere+", "AMPERE_PLUS"), ("same-compute-capability", "SAME_COMPUTE_CAPABILITY"), ("none", "default")],
)
def test_hardware_compatibility_reaches_the_builder(level: str, expected: str) -> None:
    levels = SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS", SAME_COMPUTE_CAPABILITY="SAME_COMPUTE_CAPABILITY")
    trt = SimpleNamespace(HardwareCompatibilityLevel=levels, ProfilingVerbosity=SimpleNamespace(DETAILED=2))
    config = SimpleNamespace(hardware_compatibility_level="default")
    builder = SimpleNamespace(create_builder_config=lambda: config)
    library = Library(trt, "tensorrt", "11.0", "sm89")
    assert _config(library, builder, BuildOptions("tensorrt", hardware_compatibility=level)) is config
    assert config.hardware_compatibility_level == expected
    assert config.profiling_verbosity == 2
    assert config.max_aux_streams == 0


def test_refused_compute_capabilities_are_an_error_not_a_build_for_others() -> None:
    chosen: dict[int, str] = {}

    def set_compute_capability(value: str, index: int) -> bool:
        chosen[index] = value
        return value != "bad"

    trt = SimpleNamespace(ComputeCapability=SimpleNamespace(SM86="86", SM89="89", SM90="bad"))
    library = Library(trt, "tensorrt-rtx", "1.7.1", "sm86,sm89")
    config = SimpleNamespace(set_compute_capability=set_compute_capability)
    _set_compute_capabilities(library, config, (86, 89))
    assert config.num_compute_capabilities == 2 and chosen == {0: "86", 1: "89"}
    for refused in (90, 91):
        with pytest.raises(BuildError, match=f"compute capability {refused} is refused"):
            _set_compute_capabilities(library, config, (refused,))


def test_architecture_says_which_gpus_a_plan_is_for() -> None:
    assert architecture_from_capability((8, 9), "none") == "sm89"
    assert architecture_from_capability((12, 0), "same-compute-capability") == "sm120"
    assert architecture_from_capability((9, 0), "ampere+") == "sm80+"


def test_the_tensorrt_target_says_what_is_missing(tmp_path: Path) -> None:
    for options, message in (
        (BuildOptions("tensorrt", compute_capabilities=(86,)), "cannot be chosen"),
        (BuildOptions("tensorrt"), r"tensorrt is not installed; install it with: pip install \"intsr\[tensorrt\]\""),
    ):
        with pytest.raises(IntsrError, match=message):
            build_tensorrt(tmp_path / "network.onnx", tmp_path / "network.plan", options)


def _build(onnx_path: Path, plan_path: Path) -> BuildReport:
    return build_in_child("intsr.engines.builders.tensorrt_rtx", onnx_path, plan_path, BuildOptions("tensorrt-rtx"))
