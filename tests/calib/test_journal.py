"""The work folder: what is there already stays, what a run wrote goes, and one process at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import intsr
from intsr.calib.calibrate import Recipe, identity_of_run
from intsr.calib.learn.block_data import OnDisk
from intsr.calib.learn.journal import CACHE_PREFIX, CURRENT_NAME, RUN_NAME, Journal, remove_work
from intsr.calib.methods import methods
from intsr.calib.models.open import SRModel
from intsr.errors import CalibrationError, UsageError

SETTINGS = {"bits": "w8a8", "threads": 3, "version": "0.1.0", "torch": "2.0", "plan": "Plan()"}


def interrupted(folder: Path) -> None:
    """All that a killed run may leave."""
    journal = Journal(folder, SETTINGS)
    journal.step("unet: a", lambda: {"x": torch.zeros(1)})
    journal.checkpoint("unet: b", {"x": torch.zeros(1)})
    journal.close()
    phase = next(folder.glob("????????????????.pt"))
    for name in (phase.name, CURRENT_NAME, RUN_NAME):
        (folder / f".{name}.abcd_123.part").write_bytes(b"half")
    cache = Path(tempfile.mkdtemp(prefix=CACHE_PREFIX, dir=folder))
    (cache / "0.pt").write_bytes(b"pairs")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_run_did_not_write_is_kept_and_all_else_removed(tmp_path: Path) -> None:
    interrupted(tmp_path / "w")
    remove_work(tmp_path / "w")
    assert not (tmp_path / "w").exists()
    remove_work(tmp_path / "w")
    interrupted(tmp_path / "w")
    own = {"notes.txt", "model.pt", ".hidden.part", "intsr-cache-list.txt"}
    for name in own:
        (tmp_path / "w" / name).write_text("mine")
    remove_work(tmp_path / "w")
    assert names(tmp_path / "w") == own


def test_a_folder_of_something_else_is_neither_used_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("years of work")
    (tmp_path / "current.pt").write_text("a model of somebody else's")
    remove_work(tmp_path)
    with pytest.raises(UsageError, match=r"holds .* and no run\.json; expected .*; move it away") as error:
        Journal(tmp_path, SETTINGS)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == {"notes.txt", "current.pt"}


def test_killed_before_it_began_it_begins(tmp_path: Path) -> None:
    (tmp_path / f".{RUN_NAME}.abcd_123.part").write_bytes(b"half")
    Journal(tmp_path, SETTINGS).close()
    assert names(tmp_path) == {RUN_NAME}


def test_what_a_killed_run_left_is_removed_when_it_goes_on(tmp_path: Path) -> None:
    interrupted(tmp_path)
    journal = Journal(tmp_path, SETTINGS)
    phase = journal._phase_path("unet: a").name
    assert names(tmp_path) == {RUN_NAME, CURRENT_NAME, phase}
    assert journal.step("unet: a", dict)[1] and journal.in_progress("unet: b") is not None
    journal.close()


def test_a_cache_lies_where_that_is_looked_for(tmp_path: Path) -> None:
    class Pairs:
        def batch(self, indices: range) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.ones(len(indices), 1), torch.zeros(len(indices), 1)

    cache = OnDisk(Pairs(), 2, 1, tmp_path)  # type: ignore[arg-type]
    (name,) = names(tmp_path)
    assert name.startswith(CACHE_PREFIX) and len(names(tmp_path / name)) == 2
    assert cache.batch([1, 0])[0].shape == (2, 1)


OTHER_PROCESS = """
import sys
from pathlib import Path
from intsr.calib.learn.journal import Journal, remove_work
from intsr.errors import UsageError
for attempt in (lambda: Journal(Path(sys.argv[1]), {"a": 1}), lambda: remove_work(Path(sys.argv[1]))):
    try:
        attempt()
    except UsageError as error:
        print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be locked there")
def test_one_process_at_a_time(tmp_path: Path) -> None:
    def other() -> list[str]:
        command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()

    journal = Journal(tmp_path, {"a": 1})
    said = other()
    assert len(said) == 2 and all("another process calibrates into it; wait for it" in line for line in said)
    assert names(tmp_path) == {RUN_NAME}
    journal.close()
    assert other() == [] and not tmp_path.exists()


def test_a_journal_that_is_forgotten_or_refused_locks_nothing(tmp_path: Path) -> None:
    Journal(tmp_path, SETTINGS)
    with pytest.raises(CalibrationError) as held:
        Journal(tmp_path, {**SETTINGS, "bits": "w4a4"})
    Journal(tmp_path, SETTINGS).close()
    assert held.value.args


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"threads": 2}, "; set OMP_NUM_THREADS=3, start over with --restart"),
        ({"torch": "2.1"}, "; use the versions that it began with, start over with --restart"),
        ({"bits": "w6a6", "threads": 1}, "; set OMP_NUM_THREADS=3 and give the same settings, start over"),
    ],
)
def test_what_differs_is_named_with_what_can_be_done(tmp_path: Path, changes: dict[str, object], fix: str) -> None:
    Journal(tmp_path, SETTINGS).close()
    with pytest.raises(CalibrationError) as error:
        Journal(tmp_path, SETTINGS | changes)
    (key, value), *_ = changes.items()
    assert f"{key} {value}" in str(error.value) and fix in str(error.value)


def test_a_run_of_a_version_that_did_not_say_so_does_not_go_on(tmp_path: Path) -> None:
    Journal(tmp_path, {"bits": "w8a8", "threads": 3}).close()
    with pytest.raises(CalibrationError, match="versions that it began with"):
        Journal(tmp_path, SETTINGS)
    (tmp_path / RUN_NAME).write_text(json.dumps([1]))
    with pytest.raises(CalibrationError, match="cannot be read"):
        Journal(tmp_path, SETTINGS)


def test_versions_and_plan_are_part_of_what_a_run_is(tiny_model: SRModel, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, recipe = partial(identity_of_run, tiny_model, []), Recipe("lbq")
    before = identity(recipe)
    assert json.loads(json.dumps(before)) == before
    assert before["torch"] == torch.__version__
    monkeypatch.setattr(intsr, "__version__", "99")
    assert identity(recipe)["version"] == "99" != before["version"]
    assert identity(replace(recipe, symmetric=True))["plan"] != before["plan"]
    monkeypatch.setitem(methods(), "lbq", replace(methods()["lbq"], let="none"))
    assert identity(recipe)["plan"] != before["plan"]
