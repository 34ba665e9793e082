"""Compiling where nvcc is, and what a selfcheck says."""

import json
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from intsr.cuda import driver
from intsr.cuda.driver import ContextLostError
from intsr.errors import BuildError
from intsr.kernels import build, selfcheck
from intsr.kernels.checks import network as checks
from intsr.kernels.devices.emulated import CUDA_FOLDER, EmulatedDevice
from intsr.kernels.launches.parameters import KERNELS, SOURCES

try:
    NVCC = build.find_nvcc()
except BuildError:
    NVCC = None

LINES = """
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 91 registers, used 1 barriers
ptxas info    : Compiling entry function 'two' for 'sm_120'
ptxas info    : Function properties for two
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 456 bytes cmem[0]
"""


def test_ptxas_lines_are_read():
    one, two = build.parse_reports(LINES)
    assert one == build.KernelReport("one", 90, 91, 0, 0)
    assert two == build.KernelReport("two", 120, 255, 16, 20)
    build.check_reports("x", [one], [90])
    with pytest.raises(BuildError, match="two: 20 bytes of spills and 16 of stack on sm_120"):
        build.check_reports("x", [one, two], [90])
    with pytest.raises(BuildError, match="nothing compiled for sm_86"):
        build.check_reports("x", [one], [86, 90])
    with pytest.raises(BuildError, match="no registers or spills reported"):
        build.parse_reports(LINES.replace("Used 91 registers", ""))


# What defines a kernel, at the beginning of a line.
MACROS = ("INTSR_KERNEL(", "INTSR_PLUGIN_KERNEL(")


def test_every_kernel_is_in_the_source_it_is_said_to_be():
    for source in SOURCES:
        text = (CUDA_FOLDER / f"{source}.cu").read_text()
        named = {line.split("(")[1].split(",")[0] for line in text.splitlines() if line.startswith(MACROS)}
        assert named == {kernel for kernel, (of, _) in KERNELS.items() if of == source}


def test_without_nvcc_there_is_one_line():
    environment = {"PATH": "/nonexistent", "HOME": os.environ.get("HOME", "/")}
    script = (
        "import sys; from intsr.kernels import build; "
        "build.util.find_spec = lambda name: None; sys.exit(build.main())"
    )
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("device kernels: no nvcc;") and result.stderr.count("\n") == 1


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", SOURCES)
def test_nvcc_compiles_every_kernel_without_spills(monkeypatch, tmp_path, source):
    """For all architectures; what ptxas says of registers and spills is checked while building."""
    monkeypatch.setattr(build, "fatbin_path", lambda name: tmp_path / f"{name}.fatbin")
    reports = build.build_source(NVCC, source)
    kernels = {kernel for kernel, (of, _) in KERNELS.items() if of == source}
    assert {(r.kernel, r.architecture) for r in reports} == {(k, a) for k in kernels for a in build.ARCHITECTURES}
    assert all(report.spill_bytes == report.stack_bytes == 0 < report.registers for report in reports)
    image = (tmp_path / f"{source}.fatbin").read_bytes()
    machine_code = {("machine code", architecture) for architecture in build.ARCHITECTURES}
    assert set(fatbin_entries(image)) == machine_code | {("PTX", 90), ("PTX", 120)}


def fatbin_entries(image: bytes) -> list[tuple[str, int]]:
    """(what, architecture) of all that a fatbin holds."""
    magic, _, header_bytes, size_bytes = struct.unpack_from("<IHHQ", image)
    assert magic == 0xBA55ED50 and header_bytes + size_bytes == len(image)
    found, at = [], header_bytes
    while at < len(image):
        kind, _, entry_bytes, payload_bytes = struct.unpack_from("<HHIQ", image, at)
        found.append(({1: "PTX", 2: "machine code"}[kind], *struct.unpack_from("<I", image, at + 28)))
        at += entry_bytes + payload_bytes
    return found


def test_every_gpu_from_8_0_has_machine_code_or_ptx_that_reaches_it(tmp_path):
    """Machine code runs on its own and later minor versions, PTX on every later GPU, none on an earlier one."""
    command = " ".join(build.nvcc_command(tmp_path / "nvcc", "picture", tmp_path / "out", build.ARCHITECTURES))
    # B200, GB300, Thor, DGX Spark, and one to come.
    for gpu in (100, 103, 110, 121, 140):
        reach = [a for a in build.ARCHITECTURES if a // 10 == gpu // 10 and a <= gpu]
        reach += [a for a in (90, 120) if a <= gpu and f"arch=compute_{a},code=compute_{a}" in command]
        assert reach, gpu
    assert "arch=compute_120,code=compute_120" in command


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", SOURCES)
def test_ptx_becomes_machine_code_of_gpus_without_any_here(tmp_path, source):
    """What a driver does on 10.0, 10.3 and 11.0, as far as this nvcc knows them; without spills there, too."""
    known = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    targets = [f"sm_{gpu}" for gpu in (100, 103, 110) if f"sm_{gpu}" in known]
    assert targets
    command = [str(NVCC), *build._FLAGS, f"-gencode=arch=compute_90,code=[{','.join(targets)}]"]
    command += ["-o", str(tmp_path / "out"), str(CUDA_FOLDER / f"{source}.cu")]
    reports = build.parse_reports(build._run(command, source))
    assert {f"sm_{report.architecture}" for report in reports} == set(targets)
    assert all(report.spill_bytes == report.stack_bytes == 0 < report.registers for report in reports)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("libcuda.so.1 not found\nlong story"), "no usable NVIDIA driver (libcuda.so.1 not found)"),
        (ModuleNotFoundError("no", name="cuda"), 'pip install "intsr[gpu]"'),
    ],
)
def test_without_a_gpu_selfcheck_says_so_and_ends_with_3(error, words, monkeypatch, capsys):
    def fail(*arguments):
        raise error

    library = fail if isinstance(error, ImportError) else lambda name: SimpleNamespace(cuDriverGetVersion=fail)
    monkeypatch.setattr(driver, "import_module", library)
    monkeypatch.setattr(driver, "load_backend", lambda *a: (driver.Cuda, driver.import_library("cuda", "GPU", a[2])))
    assert selfcheck.main([]) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err


def test_a_difference_fails_the_check_and_the_command(monkeypatch, capsys):
    def broken(rng, clusters):
        check = checks.pixels_check(rng, 9, 7, True)
        yield check
        wrong = check.expected().copy()
        wrong[3, 2, 1] ^= 1
        yield checks.Check("wrong", "9x7", check.plan, lambda: wrong, checks.EXACT, 1)

    monkeypatch.setattr(selfcheck, "small_checks", broken)
    assert selfcheck.main(["--emulate", "--json", "--seed", "5"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [check["passed"] for check in report["checks"]] == [True, False]
    assert report["seed"] == 5 and report["checks"][1]["max_error"] == 1
    assert "FAIL wrong" in err and err.endswith("2 checks, 1 failed\n")


def test_a_lost_gpu_ends_the_checks_with_the_first_culprit(monkeypatch, capsys):
    """All later ones would fail as well, and say nothing."""

    class Faulty(EmulatedDevice):
        def run(self, plan):
            if plan.launches[0].kernel == "luma_from_unit":
                raise ContextLostError("cuStreamSynchronize", "CUDA_ERROR_ILLEGAL_ADDRESS")
            return super().run(plan)

    def some(rng, clusters):
        yield checks.pixels_check(rng, 9, 7, True)
        yield checks.luma_check(rng, 9, 7)
        yield checks.pixels_check(rng, 9, 7, False)

    monkeypatch.setattr(selfcheck, "small_checks", some)
    monkeypatch.setattr(selfcheck, "open_device", lambda emulate: Faulty())
    assert selfcheck.main(["--emulate", "--json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)["checks"]
    assert [(check["name"], check["context_lost"]) for check in found] == [
        ("pixels from float16", False),
        ("luma", True),
    ]
    assert err.splitlines()[-3:] == [
        "FAIL luma 9x7: cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS",
        "stopped: the GPU's context is lost with luma 9x7; later checks were not run",
        "2 checks, 1 failed",
    ]


def test_infinities_and_wrong_types_never_agree():
    one = np.ones(4, np.float16)
    assert selfcheck.compare(one, np.array([1, 1, np.inf, 1], np.float16)) == (float("inf"), 0.25)
    assert selfcheck.compare(one, one.astype(np.float32)) == (float("inf"), 1.0)
    assert selfcheck.compare(np.array([np.inf], np.float16), np.array([np.inf], np.float16)) == (0.0, 0.0)


def test_rates_follow_from_time_and_work():
    class Timed(EmulatedDevice):
        def milliseconds(self, plan, repeats):
            return 2.0

        def copy_milliseconds(self, size_bytes, repeats):
            return 1.0

    device = Timed()
    check = checks.pixels_check(np.random.default_rng(0), 8, 8, True)
    result = selfcheck.run_check(device, check, selfcheck.Peaks(1e-3, 1.0))
    assert result.gbs == pytest.approx(8 * 8 * 3 * 3 / 2e-3 / 1e9)
    assert result.share_of_peak == pytest.approx(result.gbs / 1e-3) and "of peak" in result.line()
    peaks = selfcheck.measure_peaks(device, 1)
    assert peaks.copy_gbs == pytest.approx(2 * 2**30 / 1e-3 / 1e9)
    assert peaks.int8_tops == pytest.approx(6 * 8 * 8 * 4096 * 8 * 2 * 16 * 8 * 32 / 2e-3 / 1e12)


def test_expected_values_of_the_checks_are_not_constant():
    """A zero-point that clips everything would check nothing."""
    for check in checks.small_checks(np.random.default_rng(2), True):
        expected = check.expected()
        assert expected.size < 8 or len(np.unique(expected)) > 4, (check.name, check.shape)


def test_full_checks_have_work_to_do():
    rng = np.random.default_rng(0)
    check = checks.conv_check(rng, (1, 4, 4, 16), 8)
    assert check.operations == 2 * 4 * 4 * 8 * 16 * 9
