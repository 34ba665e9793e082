from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from intsr.engines.builders import tensorrt, tensorrt_common, tensorrt_rtx
from intsr.engines.builders.tensorrt import architecture_from_capability
from intsr.engines.builders.tensorrt_common import BuilderLibrary, _parser_errors, config_settings
from intsr.engines.builders.types import BuildOptions, BuildReport
from intsr.errors import BuildError, MissingLibraryError

RTX_TAG, RTX_VERSION = 0x74727476, (1, 7, 1, 116)
# TensorRT's enumerations, each member by its name.
TRT = SimpleNamespace(
    ProfilingVerbosity=SimpleNamespace(DETAILED="DETAILED", LAYER_NAMES_ONLY="LAYER_NAMES_ONLY"),
    MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
    HardwareCompatibilityLevel=SimpleNamespace(
        AMPERE_PLUS="AMPERE_PLUS", SAME_COMPUTE_CAPABILITY="SAME_COMPUTE_CAPABILITY"
    ),
)


def test_a_plan_has_tag_and_version(resblock_build: tuple[BuildReport, Path]) -> None:
    report, path = resblock_build
    head = path.read_bytes()[:32]
    assert int.from_bytes(head[:4], "little") == RTX_TAG
    assert tuple(head[24:28]) == RTX_VERSION
    # What NVIDIA's support matrix says of plans by default; 12.1 and 10.0 are not among them.
    assert report.gpu_architecture == "sm86,sm89,sm120"
    assert (report.library, report.library_version) == ("tensorrt-rtx", ".".join(map(str, RTX_VERSION)))
    assert report.plan_bytes == path.stat().st_size
    assert report.seconds > 0 and report.peak_bytes > report.plan_bytes


def test_an_operator_it_does_not_have_is_named(build_rtx, graphs: ModuleType) -> None:
    with pytest.raises(BuildError, match=r"node det_\d+ \(Det\): not supported \[UNSUPPORTED_NODE\]") as caught:
        build_rtx(graphs.unsupported())
    assert caught.value.where.endswith("network.onnx") and "\n" not in str(caught.value)


def test_too_little_workspace_is_the_builders_own_reason(build_rtx, graphs: ModuleType) -> None:
    with pytest.raises(BuildError, match=r"tensorrt-rtx 1\.7\.1[.\d]* cannot build it: .*within workspace limit"):
        build_rtx(graphs.resblock(16, 8), workspace_bytes=1 << 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hardware_compatibility": "same-compute-capability"}, "its plans run on all RTX GPUs"),
        ({"timing_cache": Path("timing.cache")}, "a timing cache; expected none: it measures no kernels"),
    ],
)
def test_what_rtx_cannot_do_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        tensorrt_rtx.build(Path("network.onnx"), Path("network.plan"), BuildOptions("tensorrt-rtx", **options))


@pytest.mark.parametrize(
    ("target", "library", "extra"), [(tensorrt, "tensorrt", "tensorrt"), (tensorrt_rtx, "tensorrt_rtx", "rtx")]
)
def test_a_missing_library_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, target: ModuleType, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibraryError, match=rf"{library} is not installed; .*intsr\[{extra}\]"):
        target.build(Path("network.onnx"), Path("network.plan"), BuildOptions("cpu"))


def test_bindings_never_reach_the_parent(resblock_build: tuple[BuildReport, Path]) -> None:
    assert not {"tensorrt_rtx", "tensorrt_rtx_bindings"} & set(sys.modules)


class FakePolygraphy:
    """Polygraphy's two loaders over a configuration that takes back what it wrote, and nothing else."""

    def __init__(self) -> None:
        self.cache: bytes | None = None
        self.settings: dict[str, Any] = {}

    def create_config(self, builder: object, network: object, **settings: Any) -> FakePolygraphy:
        self.settings = settings
        old = settings.get("load_timing_cache", io.BytesIO()).read()
        self.cache = old if old in (b"", b"measured") else None
        return self

    def engine_bytes_from_network(self, parsed: object, config: FakePolygraphy) -> bytes:
        assert config is self
        return b"plan"

    def create_timing_cache(self, serialized_timing_cache: bytes) -> bytes:
        return serialized_timing_cache

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.cache = cache

    def get_timing_cache(self) -> SimpleNamespace | None:
        return None if self.cache is None else SimpleNamespace(serialize=lambda: b"measured")


@pytest.mark.parametrize("old", [None, b"measured", b"of another library"])
def test_a_timing_cache_is_read_and_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None
) -> None:
    path, fake = tmp_path / "timing.cache", FakePolygraphy()
    monkeypatch.setattr(tensorrt_common, "require", lambda name, what: fake)
    if old is not None:
        path.write_bytes(old)
    library = BuilderLibrary(TRT, "tensorrt", "11.0", "sm89")
    parsed = (object(), object(), object())
    options = BuildOptions("tensorrt", timing_cache=path)
    assert tensorrt_common._serialized_plan(library, parsed, options) == b"plan"
    assert fake.cache == (b"measured" if old == b"measured" else b"")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"measured"], "and no lock file beside it"


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
    ("options", "expected"),
    [
        ({}, {"profiling_verbosity": "DETAILED"}),
        ({"detailed": False}, {}),
        ({"workspace_bytes": 99}, {"profiling_verbosity": "DETAILED", "memory_pool_limits": {"WORKSPACE": 99}}),
        (
            {"detailed": False, "hardware_compatibility": "same-compute-capability"},
            {"hardware_compatibility_level": "SAME_COMPUTE_CAPABILITY"},
        ),
        (
            {"detailed": False, "hardware_compatibility": "ampere+"},
            {"hardware_compatibility_level": "AMPERE_PLUS"},
        ),
    ],
)
def test_options_reach_the_builder(options: dict[str, Any], expected: dict[str, Any]) -> None:
    always = {"profiling_verbosity": "LAYER_NAMES_ONLY", "max_aux_streams": 0}
    assert config_settings(TRT, BuildOptions("tensorrt", **options)) == always | expected


def test_architecture_says_which_gpus_a_plan_is_for() -> None:
    assert architecture_from_capability((8, 9), "none") == "sm89"
    assert architecture_from_capability((12, 0), "same-compute-capability") == "sm120"
    assert architecture_from_capability((9, 0), "ampere+") == "sm80+"
