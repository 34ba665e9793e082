"""Compiling the kernels where nvcc is."""

import os
import struct
import subprocess
import sys

import pytest

from intsr.errors import BuildError
from intsr.kernels import build
from intsr.kernels.launches import sources
from intsr.kernels.launches.parameters import KERNELS, SOURCES

try:
    NVCC = build.find_nvcc()
except BuildError:
    NVCC = None
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")

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
# What defines a kernel, at the beginning of a line.
MACROS = ("INTSR_KERNEL(", "INTSR_PLUGIN_KERNEL(")


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


def test_every_kernel_is_in_the_source_it_is_said_to_be():
    for source in SOURCES:
        text = sources.cuda_path(source).read_text()
        named = {line.split("(")[1].split(",")[0] for line in text.splitlines() if line.startswith(MACROS)}
        assert named == {kernel for kernel, (of, _) in KERNELS.items() if of == source}


def test_without_nvcc_there_is_one_line():
    environment = {"PATH": "/nonexistent", "HOME": os.environ.get("HOME", "/")}
    environment |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    script = (
        "import sys; from intsr.kernels import build; "
        "build.util.find_spec = lambda name: None; sys.exit(build.main())"
    )
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == ""
    assert (
        result.stderr.startswith("device kernels: no nvcc; expected nvcc on PATH") and result.stderr.count("\n") == 1
    )


def test_every_gpu_from_8_0_has_machine_code_or_ptx_that_reaches_it(tmp_path):
    """Machine code runs on its own and later minor versions, PTX on every later GPU, none on an earlier one."""
    command = " ".join(build.nvcc_command(tmp_path / "nvcc", "picture", tmp_path / "out"))
    # B200, GB300, Thor, DGX Spark, and one to come.
    for gpu in (100, 103, 110, 121, 140):
        reach = [a for a in build.ARCHITECTURES if a // 10 == gpu // 10 and a <= gpu]
        reach += [a for a in (90, 120) if a <= gpu and f"arch=compute_{a},code=compute_{a}" in command]
        assert reach, gpu


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


@needs_nvcc
@pytest.mark.kernels
@pytest.mark.parametrize("source", SOURCES)
def test_nvcc_compiles_every_kernel_without_spills(monkeypatch, tmp_path, source):
    """For all architectures; what ptxas says of registers and spills is checked while building."""
    monkeypatch.setattr(sources, "fatbin_path", lambda name: tmp_path / f"{name}.fatbin")
    reports = build.build_source(NVCC, source)
    kernels = {kernel for kernel, (of, _) in KERNELS.items() if of == source}
    assert {(r.kernel, r.architecture) for r in reports} == {(k, a) for k in kernels for a in build.ARCHITECTURES}
    assert all(report.spill_bytes == report.stack_bytes == 0 < report.registers for report in reports)
    image = (tmp_path / f"{source}.fatbin").read_bytes()
    machine_code = {("machine code", architecture) for architecture in build.ARCHITECTURES}
    assert set(fatbin_entries(image)) == machine_code | {("PTX", 90), ("PTX", 120)}


@needs_nvcc
@pytest.mark.kernels
@pytest.mark.parametrize("source", SOURCES)
def test_ptx_becomes_machine_code_of_gpus_without_any_here(tmp_path, source):
    """What a driver does on 10.0, 10.3 and 11.0, as far as this nvcc knows them; without spills there, too."""
    known = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    targets = [f"sm_{gpu}" for gpu in (100, 103, 110) if f"sm_{gpu}" in known]
    assert targets
    command = [str(NVCC), *build._FLAGS, f"-gencode=arch=compute_90,code=[{','.join(targets)}]"]
    command += ["-o", str(tmp_path / "out"), *build._source_arguments(source)]
    reports = build.parse_reports(build._run(command, source))
    assert {f"sm_{report.architecture}" for report in reports} == set(targets)
    assert all(report.spill_bytes == report.stack_bytes == 0 < report.registers for report in reports)
