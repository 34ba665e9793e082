"""The page's sections: what is said and shown of pictures, a calibration, engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Section:
    """One part of the page."""

    # Numbers and words, also for --json.
    facts: dict[str, Any]
    # Drawings and pictures, for the page alone.
    art: dict[str, Any] = field(default_factory=dict)
