"""A calibration in a process of its own: it has the memory to itself, and one that crashes costs a row alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from intsr.calib.calibrate import Recipe, calibrate
from intsr.calib.calibration.files import save_calibration
from intsr.calib.data.pictures import usable_pictures
from intsr.calib.learn.journal import remove_work
from intsr.calib.models.open import load_model
from intsr.cli.console import tell
from intsr.cli.signals import handle_signals
from intsr.engines.compare.types import Comparison, label
from intsr.errors import CalibrationError, IntsrError
from intsr.runtime.pictures.reader import list_pictures

_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class CalibrationTask:
    """One calibration of a comparison, and the folder that it goes to; what the process says goes beside that."""

    job: Comparison
    recipe: Recipe
    output: Path

    @property
    def log(self) -> Path:
        return self.output.with_name(f"{self.output.name}.log")

    def run(self) -> None:
        """Calibrate, in this process; an interrupted training goes on. Raises what calibrating raises."""
        job, work = self.job, self.output.with_name(f"{self.output.name}.work")
        if job.restart and self.recipe.trains:
            # Forget what an interrupted run has done.
            remove_work(work)
        found = list_pictures(job.calibration_images)
        pictures = usable_pictures(found, job.limit, lambda error: tell(f"skipped: {error}"))
        model = load_model(job.model, **job.weights.arguments)
        calibration = calibrate(model, pictures, self.recipe, work=work)
        save_calibration(calibration, self.output)
        remove_work(work)
        tell(f"{len(calibration.sites)} layers, {len(pictures)} pictures, {calibration.seconds:.1f} s")


def calibrate_in_child(task: CalibrationTask) -> None:
    """Run a task in a process of its own. Any exception here, Ctrl-C too, ends it. Raises CalibrationError."""
    task.output.parent.mkdir(parents=True, exist_ok=True)
    child = get_context("spawn").Process(target=_run, args=(task,))
    child.start()
    try:
        child.join()
    except BaseException as error:
        _end(child, interrupted=isinstance(error, KeyboardInterrupt))
        raise
    if child.exitcode:
        lines = task.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise CalibrationError(f"calibrating {label(task.recipe)}", reason(child.exitcode, lines))


def _run(task: CalibrationTask) -> None:
    """The child: all that it and its libraries say goes into the log."""
    with task.log.open("wb") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    handle_signals()
    try:
        task.run()
    except IntsrError as error:
        sys.exit(str(error))


def _end(child: BaseProcess, interrupted: bool) -> None:
    """End the child, which gets some time to remove its temporary files."""
    # Ctrl-C in a terminal has reached it already.
    if not interrupted:
        child.terminate()
    with suppress(KeyboardInterrupt):
        child.join(_GRACE_S)
    child.kill()
    child.join()


def reason(exit_code: int, lines: Sequence[str]) -> str:
    """Why a child failed, by its exit code (negative for a signal) and the lines of its log."""
    if exit_code == -signal.SIGKILL:
        return "killed (SIGKILL), most likely for want of memory"
    if exit_code < 0:
        return f"crashed ({signal.Signals(-exit_code).name})"
    return lines[-1] if lines else f"ended with code {exit_code}"
