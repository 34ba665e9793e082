"""The plugin's launches: sizes, limits, what is refused, and the PTX that TensorRT gets."""

import math
import re
import shutil
import subprocess

import numpy as np
import pytest

from intsr.errors import BuildError, UsageError
from intsr.kernels import build, selfcheck
from intsr.kernels.checks import group_norm_plugin as checks_plugin
from intsr.kernels.devices import emulated as emulate
from intsr.kernels.launches.group_norm_plugin import (
    NUMBERS,
    OPERATORS,
    SHARED_BYTES,
    SOURCE,
    WAYS,
    PluginNorm,
    plugin_launch,
    takes_shape,
)
from intsr.kernels.launches.parameters import KERNELS, PluginParams
from intsr.kernels.tensorrt_plugin import ptx_architecture, ptx_of_kernel

NORM = PluginNorm(32, 1e-6, True)
try:
    NVCC = build.find_nvcc()
except BuildError:
    NVCC = None
# Channels and sides of SD 2.1's norms at a 64x64 latent.
SIZES = [(320, 64), (640, 64), (960, 32), (1920, 32), (2560, 8), (1280, 16), (128, 512), (512, 64)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", ["linear", "last"])
@pytest.mark.parametrize(("channels", "side"), SIZES)
def test_every_norm_of_the_full_model_has_a_launch(channels, side, layout, way):
    launch = plugin_launch((1, channels, side, side), NORM, layout, "codes", way)
    numbers = dict(zip(NUMBERS, launch.numbers, strict=True))
    assert launch.shared_bytes <= SHARED_BYTES and launch.block == 512
    assert min(launch.numbers) >= 0 and launch.kernel in KERNELS
    assert launch.grid[0] == {"block": 1, "cluster": 8, "shared": 4}[way]
    assert launch.cluster == (8 if way == "cluster" else 1)
    pieces = channels * side * side // 8 // launch.grid[1] // launch.grid[0]
    # Everything is held where it fits, else as much as there is room for.
    assert numbers["held"] == pieces or launch.shared_bytes > SHARED_BYTES - 16
    assert np.int32(numbers["epsilon_bits"]).view(np.float32) == np.float32(1e-6)


def test_a_unets_norm_is_read_once_by_a_cluster():
    held = {way: plugin_launch((1, 320, 64, 64), NORM, "linear", "codes", way).numbers[4] for way in WAYS}
    assert held["cluster"] * 8 >= 320 // 32 * 64 * 64 // 8 > held["block"]


@pytest.mark.parametrize(
    ("layout", "blocks"), [("linear", (32, 32, 128, 128, 256, 256)), ("last", (8, 32, 32, 128, 64, 256))]
)
def test_the_documented_share_of_a_gpu_that_a_norm_uses(layout, blocks):
    grids = [
        [math.prod(plugin_launch((1, c, s, s), NORM, layout, "codes", way).grid) for c, s in SIZES]
        for way in ("block", "shared", "cluster")
    ]
    assert tuple(end(grid) for grid in grids for end in (min, max)) == blocks
    document = (build.CUDA_FOLDER.parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8")
    ends = zip(blocks[::2], blocks[1::2], strict=True)
    cells = [str(low) if low == high else f"{low} to {high}" for low, high in ends]
    name = {"linear": "NCHW", "last": "NHWC"}[layout]
    assert f"| {name} | {' | '.join(cells)} |" in document


@pytest.mark.parametrize(
    ("shape", "layout", "words"),
    [
        ((1, 24, 8, 8), "last", r"C % 16 and"),
        ((1, 320, 3, 3), "linear", r"H W % 8"),
        ((1, 330, 8, 8), "linear", "groups 0"),
        ((1, 320, 64), "linear", "shape"),
        ((1, 320, 8, 8), "chw32", "'chw32'"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, layout, words):
    norm = PluginNorm(4 if shape[1] == 24 else 32, 1e-6, True)
    with pytest.raises(UsageError, match=words):
        plugin_launch(shape, norm, layout, "codes")


def test_numbers_out_of_range_are_refused():
    for arguments in ((0, 1e-6, True), (32, 0.0, True), (32, float("inf"), True)):
        with pytest.raises(UsageError, match="positive numbers"):
            PluginNorm(*arguments)
    for ends in ((-129, 127), (3, 3), (0, 128)):
        with pytest.raises(UsageError, match="within int8"):
            PluginNorm(32, 1e-6, True, *ends)
    assert takes_shape((2, 64, 4, 2), 32) and not takes_shape((2, 64, 0, 2), 32)


def test_the_kernels_parameters_are_inputs_numbers_output_in_that_order():
    """As tensorrt.plugin passes them."""
    text = (build.CUDA_FOLDER / f"{SOURCE}.cu").read_text()
    found = re.search(r"cluster name\(\s*\\?\s*((?:.|\n)*?)\) \{", text)
    assert found is not None
    names = [part.split()[-1].lstrip("*") for part in found[1].replace("\\", " ").split(",")]
    assert names == [name for name, *_ in PluginParams._fields_]
    assert tuple(names[5:-1]) == NUMBERS and names[-1] == "out"


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", [80, 90])
def test_ptx_of_one_kernel_assembles_alone_without_spills(architecture, tmp_path):
    ptx = build.ptx_from_source(SOURCE, architecture)
    names = [name for name, (source, _) in KERNELS.items() if source == SOURCE]
    assert len(names) == 8 and ptx.count(b".visible .entry") == 8
    # A GPU has no instruction for these: about a hundred of others each, which one vector had.
    assert not re.findall(rb"\b(?:div|rem)\.[su]64", ptx)
    for name in ("plugin_linear_codes", "plugin_last_codes_cluster"):
        alone = ptx_of_kernel(ptx, name)
        assert alone.count(b".entry") == 1 and len(alone) < len(ptx) / 4
        clustered = b".reqnctapercluster 8, 1, 1" in alone
        assert clustered == (name.endswith("_cluster") and architecture >= 90)
        (tmp_path / "one.ptx").write_bytes(alone)
        target = f"-arch=sm_{architecture}"
        command = [NVCC, "-cubin", target, "-Xptxas=-v", "-o", tmp_path / "one.cubin", tmp_path / "one.ptx"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        (report,) = build.parse_reports(result.stdout + result.stderr)
        assert (report.kernel, report.spill_bytes, report.stack_bytes) == (name, 0, 0)
    with pytest.raises(BuildError, match="no kernel plugin_linear in its PTX"):
        ptx_of_kernel(ptx, "plugin_linear")


def test_ptx_is_for_the_gpu_or_for_all_of_them():
    assert [ptx_architecture(c) for c in ((8, 0), (8, 9), (9, 0), (12, 0))] == [80, 80, 90, 90]
    assert ptx_architecture((9, 0), every_ampere=True) == 80
    assert list(OPERATORS.values()) == ["codes", "halves"]


def test_a_kernel_without_its_barrier_is_noticed(monkeypatch, tmp_path):
    folder = tmp_path / "cuda"
    shutil.copytree(emulate.CUDA_FOLDER, folder)
    text = (folder / f"{SOURCE}.cu").read_text()
    old = "    sync_all<CLUSTER>();\n    if (thread < groups)\n        shared.moments[2 * thread] ="
    assert text.count(old) == 1
    (folder / f"{SOURCE}.cu").write_text(text.replace(old, old.split("\n", 1)[1]))
    monkeypatch.setattr(emulate, "CUDA_FOLDER", folder)
    monkeypatch.setattr(emulate.tempfile, "gettempdir", lambda: str(tmp_path))
    emulate._library.cache_clear()
    try:
        rng = np.random.default_rng(0)
        check = checks_plugin.plugin_check(rng, (1, 64, 8, 5), PluginNorm(32, 1e-5, True), "last", "codes", "cluster")
        assert not selfcheck.run_check(emulate.EmulatedDevice(), check, None).passed
    except BuildError as error:
        pytest.skip(str(error))
    finally:
        emulate._library.cache_clear()


@pytest.mark.parametrize("layout", ["linear", "last"])
def test_blocks_that_share_a_group_give_what_one_block_gives(layout):
    """To the last bit: each adds up the whole group in the same order. Part of it is held, the rest read again."""
    try:
        device = emulate.EmulatedDevice((8, 6))
        shape, norm = (1, 16, 136, 64), PluginNorm(2, 1e-5, True)
        assert plugin_launch(shape, norm, "linear", "codes", "shared").numbers[4] < 136 * 64 // 4
        results = {}
        for way in ("block", "shared"):
            check = checks_plugin.plugin_check(np.random.default_rng(0), shape, norm, layout, "codes", way)
            results[way] = device.download(device.run(check.plan(device)))
    except BuildError as error:
        pytest.skip(str(error))
    np.testing.assert_array_equal(results["shared"], results["block"])
