"""A report from beginning to end: measure, draw, write one file."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from intsr.bundle import read_manifest
from intsr.cli.console import Stopwatch
from intsr.engines.report.measure.request import ReportRequest
from intsr.engines.report.page.render import render_page
from intsr.engines.report.plots.style import WHAT
from intsr.engines.report.sections.engines import engine_section
from intsr.engines.report.sections.head import head_of
from intsr.engines.report.sections.pictures import pictures_section
from intsr.errors import UsageError
from intsr.files import atomic_path
from intsr.optional import require


def build_report(request: ReportRequest, output: Path) -> dict[str, Any]:
    """Write the page and return everything it says in numbers and words.

    Raises MissingLibraryError before anything runs; UsageError, ImageError, BundleError, CalibrationError and what
    engines raise.
    """
    check_libraries()
    watch = Stopwatch()
    models = [asdict(read_manifest(path)) for path in request.engines]
    # Engines are called by their file's name: two of one name cannot be told apart.
    twice = next((name for name, count in Counter(path.name for path in request.engines).items() if count > 1), None)
    if twice:
        raise UsageError(twice, "the name of two engines", "names of their own", "rename one")
    with tempfile.TemporaryDirectory(prefix="intsr-report-") as scratch:
        pictures = pictures_section(request, Path(scratch))
    calibration = None
    if request.calibration is not None:
        # The only part that needs the compiler's libraries.
        from intsr.engines.report.sections.calibration import calibration_section

        calibration = calibration_section(request, request.calibration)
    engines = engine_section(request, pictures.facts if pictures else None)
    sections = {"pictures": pictures, "calibration": calibration, "engines": engines}
    facts = {name: section.facts if section else None for name, section in sections.items()}
    head = head_of(facts["pictures"], facts["calibration"], facts["engines"], models)
    # What was not drawn is None to the templates; any other name they ask for and do not find is an error.
    art = {name: defaultdict(lambda: None, section.art if section else {}) for name, section in sections.items()}
    page = render_page({"head": head, **facts, "art": art})
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return {
        "report": str(output),
        "size_bytes": output.stat().st_size,
        "seconds": round(watch.seconds, 2),
        "head": head,
        **{name: value for name, value in facts.items() if value is not None},
    }


def check_libraries() -> None:
    """Raise MissingLibraryError, which names the extra, where a library is not installed."""
    for library in ("jinja2", "matplotlib"):
        require(library, WHAT)
