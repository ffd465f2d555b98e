"""Work in the background, named by an owner and a text: each once, and owners take turns."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from comfy_fleet.tasks import start
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)


class FairWork:
    """Does some work for owners.

    What is asked for again before it has begun is done once. One owner's work is done one after the other.

    Args:
        work: Does one, given the owner and the name.
        at_once: How many are done at the same time.
        each: How many of one owner may wait; the oldest makes room for the next, which is logged.
        name: For the log.
    """

    def __init__(
        self, work: Callable[[str, str], Awaitable[None]], *, at_once: int, each: int, name: str
    ) -> None:
        self._work = work
        self._at_once = at_once
        self._each = each
        self._name = name
        self._waiting: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()
        self._at_work: dict[str, str] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._done = asyncio.Condition()

    def add(self, owner: str, what: str) -> None:
        """Have some work done; returns at once."""
        line = self._waiting.setdefault(owner, OrderedDict())
        line[what] = None
        if len(line) > self._each:
            dropped, _ = line.popitem(last=False)
            logger.warning("too much waits", extra={"work": self._name, "owner": owner, "dropped": dropped})
        if len(self._workers) < self._at_once:
            worker = start(self._run(), name=self._name)
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    def busy(self, owner: str | None = None) -> bool:
        """Return whether something of an owner's, or of anybody's, waits or is being done."""
        if owner is None:
            return bool(self._waiting or self._at_work)
        return owner in self._waiting or owner in self._at_work

    async def settled(self, owner: str | None = None, *, patience_s: float | None = None) -> bool:
        """Wait until nothing of an owner's, or of anybody's, is left; return whether that is so."""
        try:
            async with Timeout(patience_s), self._done:
                await self._done.wait_for(lambda: not self.busy(owner))
        except TimeoutError:
            return False
        return True

    async def _run(self) -> None:
        while (owner := next((one for one in self._waiting if one not in self._at_work), None)) is not None:
            line = self._waiting[owner]
            what, _ = line.popitem(last=False)
            if line:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
            self._at_work[owner] = what
            try:
                await self._work(owner, what)
            except Exception:
                logger.exception("work failed", extra={"work": self._name, "owner": owner})
            finally:
                del self._at_work[owner]
            async with self._done:
                self._done.notify_all()
