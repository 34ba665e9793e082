"""What a selfcheck finds, says and returns."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from intsr.cuda import driver
from intsr.errors import BuildError, EngineMismatchError
from intsr.kernels import selfcheck
from intsr.kernels.checks import picture
from intsr.kernels.devices.emulated import EmulatedDevice, find_cpp_compiler

try:
    find_cpp_compiler()
    NO_COMPILER = ""
except BuildError as found:
    NO_COMPILER = str(found)
needs_compiler = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "-")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("libcuda.so.1 not found\nlong story"), "no usable NVIDIA driver (libcuda.so.1 not found)"),
        (ModuleNotFoundError("no", name="cuda"), 'pip install "intsr[gpu]"'),
    ],
)
def test_without_a_gpu_it_says_so_and_ends_with_3(error, words, monkeypatch, capsys):
    def fail(*arguments):
        raise error

    library = fail if isinstance(error, ImportError) else lambda name: SimpleNamespace(cuDriverGetVersion=fail)
    monkeypatch.setattr(driver, "import_module", library)
    monkeypatch.setattr(driver, "load_backend", lambda *a: (driver.Cuda, driver.import_library("cuda", "GPU", a[2])))
    assert selfcheck.main([]) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err


@needs_compiler
def test_a_difference_fails_the_check_and_the_command(monkeypatch, capsys):
    def broken(rng, clusters, full):
        check = picture.pixels_check(rng, 9, 7)
        yield check
        wrong = check.expected().copy()
        wrong[3, 2, 1] ^= 1
        yield replace(check, name="wrong", reference=lambda planes: wrong)

    monkeypatch.setattr(selfcheck, "all_checks", broken)
    assert selfcheck.main(["--emulate", "--json", "--seed", "5"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [check["passed"] for check in report["checks"]] == [True, False]
    assert report["seed"] == 5 and report["checks"][1]["max_error"] == 1
    assert "FAIL wrong" in err and err.endswith("2 checks, 1 failed\n")


@needs_compiler
@pytest.mark.parametrize("lost", [False, True])
def test_a_lost_gpu_ends_the_checks_with_the_first_culprit(lost, monkeypatch, capsys):
    """All later ones would fail as well, and say nothing; a check that fails for itself is one of many."""

    class Faulty(EmulatedDevice):
        failed = False

        def upload(self, array):
            if lost and self.failed:
                raise EngineMismatchError("GPU", "CUDA_ERROR_ILLEGAL_ADDRESS")
            return super().upload(array)

        def run(self, plan):
            if plan.launches[0].kernel == "luma_from_unit":
                self.failed = True
                raise EngineMismatchError("GPU", "CUDA_ERROR_ILLEGAL_ADDRESS")
            return super().run(plan)

    def some(rng, clusters, full):
        yield picture.pixels_check(rng, 9, 7)
        yield picture.luma_check(rng, 9, 7)
        yield picture.clip_check(rng, 9, 7)

    monkeypatch.setattr(selfcheck, "all_checks", some)
    monkeypatch.setattr(selfcheck, "open_device", lambda emulate: Faulty())
    assert selfcheck.main(["--emulate", "--json"]) == 1
    out, err = capsys.readouterr()
    checks = [(check["name"], check["context_lost"]) for check in json.loads(out)["checks"]]
    assert checks == [("pixels", False), ("luma", lost), ("clip", False)][: 3 - lost]
    assert "FAIL luma 9x7: GPU: CUDA_ERROR_ILLEGAL_ADDRESS\n" in err
    stopped = "stopped: the GPU's context is lost with luma 9x7; later checks were not run\n"
    assert (stopped in err) == lost and err.endswith(f"{3 - lost} checks, 1 failed\n")


def test_infinities_and_wrong_types_never_agree():
    one = np.ones(4, np.float16)
    assert selfcheck.compare(one, np.array([1, 1, np.inf, 1], np.float16)) == (float("inf"), 0.25)
    assert selfcheck.compare(one, one.astype(np.float32)) == (float("inf"), 1.0)
    assert selfcheck.compare(np.array([np.inf], np.float16), np.array([np.inf], np.float16)) == (0.0, 0.0)


@needs_compiler
def test_rates_follow_from_time_and_work():
    class Timed(EmulatedDevice):
        def milliseconds(self, plan, repeats):
            return 2.0

        def copy_milliseconds(self, size_bytes, repeats):
            return 1.0

    device, rng = Timed(), np.random.default_rng(0)
    check = picture.pixels_check(rng, 8, 8)
    result = selfcheck.run_check(device, check, 1e-3)
    assert result.gbs == pytest.approx(8 * 8 * 3 * 5 / 2e-3 / 1e9)
    assert result.share_of_peak == pytest.approx(result.gbs / 1e-3) and "of peak" in result.line()
    assert selfcheck.measure_peak(device) == pytest.approx(2 * 2**30 / 1e-3 / 1e9)


def test_expected_values_of_the_checks_are_not_constant():
    """A zero-point that clips everything would check nothing."""
    for check in selfcheck.all_checks(np.random.default_rng(2), True, full=False):
        expected = check.expected()
        assert expected.size < 8 or len(np.unique(expected)) > 4, (check.name, check.shape)
