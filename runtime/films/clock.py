"""Times of a stream that go back, as where recordings were joined or packets damaged, made to rise."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

# A time that is this much earlier than the one before is no jitter: the clock began anew.
_BEGAN_ANEW_S = Fraction(1, 2)


@dataclass(slots=True)
class RisingClock:
    """time_base: seconds a unit. step: units between two of its times, where nothing else is known."""

    time_base: Fraction
    step: int
    _offset: int = 0
    _last: int | None = None

    def rising(self, time: int) -> int:
        """Return the time, later than all before: what follows a clock that began anew moves with it."""
        time += self._offset
        if self._last is not None and time <= self._last:
            later = self._last + 1
            if (self._last - time) * self.time_base >= _BEGAN_ANEW_S:
                later = self._last + self.step
                self._offset += later - time
            time = later
        self._last = time
        return time

    def after_last(self) -> int:
        """Return the time of what has none."""
        return self.rising(-self._offset if self._last is None else self._last + self.step - self._offset)
