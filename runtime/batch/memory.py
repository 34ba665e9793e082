"""Which pictures of a batch may be in memory at once: one read, one computed, one finished, where there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from intsr.errors import IntsrError
from intsr.runtime.batch.jobs import Job
from intsr.runtime.batch.memory_budget import MemoryBudget, PictureBytes, picture_parts
from intsr.runtime.pictures.reader import ImageInfo, read_info

if TYPE_CHECKING:
    from intsr.runtime.batch.files import FileOptions
    from intsr.runtime.upscaler import Upscaler

# A picture that is read while another is computed has at most so many pixels; a larger one waits for its turn.
_AHEAD_PX = 24_000_000
# Jobs that are asked about again: one being finished, one computed, one read, rounded.
_REMEMBERED = 4
_NOTHING = PictureBytes(0, 0, 0)


class BatchMemory:
    """Answers what `overlapped` asks: `ahead` and `beside`. A picture that cannot be read takes nothing: its own turn
    will say what is wrong.
    """

    def __init__(self, upscaler: Upscaler, options: FileOptions) -> None:
        self._upscaler, self._options = upscaler, options
        self._budget = MemoryBudget(options.memory_bytes)
        self._known: OrderedDict[int, tuple[Job, int, PictureBytes]] = OrderedDict()

    def ahead(self, job: Job, under_way: Sequence[Job]) -> bool:
        """Whether its pixels fit beside the last of `under_way`, which is computed, and those before, which are being
        finished; and whether it can be computed while that last one is finished.
        """
        if not under_way:
            return True
        size_px, wanted = self._needs(job)
        computed = self._needs(under_way[-1])[1]
        finished = sum(_while_finished(self._needs(other)[1]) for other in under_way[:-1])
        engine = self._upscaler.resident_bytes_at(self._upscaler.tile_px)
        fits = self._budget.fits(engine + wanted.pixels + computed.total + finished)
        return size_px <= _AHEAD_PX and fits and self.beside(job, under_way[-1])

    def beside(self, job: Job, finishing: Job) -> bool:
        """Whether it can be read and computed while that one is being finished."""
        engine = self._upscaler.resident_bytes_at(self._upscaler.tile_px)
        return self._budget.fits(engine + self._needs(job)[1].total + _while_finished(self._needs(finishing)[1]))

    def _needs(self, job: Job) -> tuple[int, PictureBytes]:
        """Pixels of the input, and bytes."""
        if id(job) not in self._known:
            self._known[id(job)] = (job, *self._ask(job))
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[id(job)][1:]

    def _ask(self, job: Job) -> tuple[int, PictureBytes]:
        try:
            info = read_info(job.source)
            return info.width_px * info.height_px, self._parts(job, info)
        except (IntsrError, OSError):
            return 0, _NOTHING

    def _parts(self, job: Job, info: ImageInfo) -> PictureBytes:
        size = self._options.output_size(info.width_px, info.height_px, self._upscaler.upscale_factor)
        return picture_parts(self._upscaler, info, size, job.output, self._options.color_fix)


def _while_finished(needs: PictureBytes) -> int:
    return needs.pixels + needs.finishing
