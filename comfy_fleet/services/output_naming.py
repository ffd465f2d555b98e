"""Draw the names of a run's saved files while the files are fetched."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from comfy_fleet.domain.jobs.output_names import NumberGroup, OutputId, SavedFile, number_groups
from comfy_fleet.domain.jobs.outputs import FileRef, OutputItem


class OutputNaming:
    """The names of one run's files: all that are known are drawn in one call, later ones in the next.

    Args:
        draw: Draws names for some files of the run.
    """

    def __init__(
        self, draw: Callable[[Sequence[NumberGroup]], Awaitable[Mapping[OutputId, SavedFile]]]
    ) -> None:
        self._draw = draw
        self._wanted: list[OutputItem] = []
        self._names: dict[OutputId, SavedFile] = {}
        self._drawing: asyncio.Task[None] | None = None

    def want(self, items: Iterable[OutputItem]) -> None:
        """Note outputs that will need names if they are files; in the order in which the node told them."""
        self._wanted += (item for item in items if isinstance(item.source, FileRef))

    def start(self) -> None:
        """Begin to draw the names that are wanted, unless that is under way."""
        if self._wanted:
            self._under_way()

    async def of(self, item: OutputItem) -> SavedFile | None:
        """Return the name of an output that was wanted; None if it is not a file.

        Raises:
            LeaseLost: Another dispatcher has the run.
            StoreDown: No answer; the next call tries again.
        """
        if not isinstance(item.source, FileRef):
            return None
        while item.id not in self._names:
            await asyncio.shield(self._under_way())
        return self._names[item.id]

    def close(self) -> None:
        """Draw nothing more."""
        if self._drawing is not None:
            self._drawing.cancel()

    def _under_way(self) -> asyncio.Task[None]:
        if self._drawing is None or self._drawing.done():
            self._drawing = asyncio.create_task(self._draw_wanted(), name="names of outputs")
            self._drawing.add_done_callback(_seen)
        return self._drawing

    async def _draw_wanted(self) -> None:
        while self._wanted:
            some = list(self._wanted)
            self._names |= await self._draw(number_groups(some))
            del self._wanted[: len(some)]


def _seen(task: asyncio.Task[None]) -> None:
    """Take note of a failure that nobody waits for any more."""
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
