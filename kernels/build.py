"""`python -m intsr.kernels.build`: compile the kernels with nvcc, for every GPU generation they are meant for.

One fatbin a source, next to it, with machine code for each architecture and PTX for GPUs of the others.
Register spills in a kernel are an error: they mean that a tile does not fit, and cost more than they seem to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from intsr.errors import BuildError, IntsrError
from intsr.kernels.launches import sources
from intsr.kernels.launches.parameters import SOURCES

# A100, RTX 30, RTX 40 and L40S, H100 and H200, RTX 50.
ARCHITECTURES = (80, 86, 89, 90, 120)
# For GPUs without machine code here, which a driver compiles when it loads the file: 9.0's for B200, GB300 and Thor
# (10.0, 10.3, 11.0), to which PTX of 12.0 does not go back; 12.0's for what comes after RTX 50.
PTX_ARCHITECTURES = (90, 120)
_LANGUAGE = ("-std=c++17", "-O3")
_FLAGS = (*_LANGUAGE, "-Xptxas=-v", "--fatbin")
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True, slots=True)
class KernelReport:
    """Resources of one kernel on one architecture, as ptxas reports them."""

    kernel: str
    architecture: int
    registers: int
    # Local memory, in bytes a thread.
    stack_bytes: int
    spill_bytes: int


def find_nvcc() -> Path:
    """Return $NVCC, else nvcc on PATH, under $CUDA_HOME, or in the package nvidia-cuda-nvcc. Raises BuildError."""
    candidates = [os.environ.get("NVCC"), shutil.which("nvcc")]
    if home := os.environ.get("CUDA_HOME"):
        candidates.append(str(Path(home) / "bin" / "nvcc"))
    spec = util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        candidates += [str(path) for path in sorted(Path(folder).glob("*/bin/nvcc"))]
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    fix = "install the CUDA toolkit 12.8 or newer, or set NVCC to its nvcc"
    raise BuildError("device kernels", "no nvcc", "nvcc on PATH, in $NVCC or under $CUDA_HOME", fix)


def parse_reports(output: str) -> tuple[KernelReport, ...]:
    """Read what `nvcc -Xptxas=-v` prints. Raises BuildError where a kernel's lines are not whole."""
    entries = list(_ENTRY.finditer(output))
    reports = []
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        part = output[entry.end() : following.start() if following else len(output)]
        memory, registers = _MEMORY.search(part), _REGISTERS.search(part)
        if memory is None or registers is None:
            raise BuildError(entry[1], f"no registers or spills reported for sm_{entry[2]}", "ptxas -v's lines")
        stack, stores, loads = (int(value) for value in memory.groups())
        reports.append(KernelReport(entry[1], int(entry[2]), int(registers[1]), stack, stores + loads))
    return tuple(reports)


def check_reports(source: str, reports: Sequence[KernelReport], architectures: Sequence[int]) -> None:
    """Raise BuildError for a kernel that spills or keeps arrays in local memory, or an architecture without any."""
    missing = set(architectures) - {report.architecture for report in reports}
    if missing:
        raise BuildError(f"{source}.cu", f"nothing compiled for sm_{min(missing)}")
    for report in reports:
        if report.spill_bytes or report.stack_bytes:
            got = (
                f"{report.spill_bytes} bytes of spills and {report.stack_bytes} of stack on sm_{report.architecture}"
            )
            raise BuildError(report.kernel, got, "none", "make its tile smaller, or its launch bounds wider")


def nvcc_command(nvcc: Path, source: str, out: Path) -> list[str]:
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    targets += [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in PTX_ARCHITECTURES]
    return [str(nvcc), *_FLAGS, *targets, "-o", str(out), *_source_arguments(source)]


def _source_arguments(source: str) -> list[str]:
    return [f"-I{sources.FOLDER}", str(sources.cuda_path(source))]


def build_source(nvcc: Path, source: str) -> tuple[KernelReport, ...]:
    """Compile, check and put the fatbin in place; a failure leaves the old one. Raises BuildError."""
    with tempfile.TemporaryDirectory(dir=sources.fatbin_path(source).parent) as scratch:
        made = Path(scratch) / "kernels.fatbin"
        reports = parse_reports(_run(nvcc_command(nvcc, source, made), source))
        check_reports(source, reports, ARCHITECTURES)
        made.replace(sources.fatbin_path(source))
    return reports


def ptx_from_source(source: str, architecture: int) -> bytes:
    """Compile cuda/`source`.cu to PTX, which runs on that architecture and every later one. Raises BuildError."""
    nvcc = find_nvcc()
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "kernels.ptx"
        target = f"-arch=compute_{architecture}"
        command = [str(nvcc), *_LANGUAGE, "--ptx", target, "-o", str(made), *_source_arguments(source)]
        _run(command, source)
        return made.read_bytes()


def _run(command: Sequence[str], source: str) -> str:
    """Return what the compiler printed. Raises BuildError with its first complaint."""
    result = subprocess.run(command, capture_output=True, text=True)
    output = result.stdout + result.stderr
    if result.returncode:
        lines = [line for line in output.splitlines() if "error" in line or "fatal" in line.lower()]
        raise BuildError(f"{source}.cu", (lines or output.splitlines() or ["nvcc failed"])[0][:300])
    return output


def main() -> int:
    try:
        nvcc = find_nvcc()
        for source in SOURCES:
            reports = build_source(nvcc, source)
            for kernel in dict.fromkeys(report.kernel for report in reports):
                registers = [f"sm_{r.architecture} {r.registers}" for r in reports if r.kernel == kernel]
                print(f"{kernel}: registers {', '.join(registers)}; no spills")
            print(f"{sources.fatbin_path(source).name}: {sources.fatbin_path(source).stat().st_size} bytes")
    except IntsrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
