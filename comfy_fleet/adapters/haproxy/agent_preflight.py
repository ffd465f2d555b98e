"""Ask the agent of a server that was just added, instead of waiting for HAProxy's first agent-check.

HAProxy first asks a server's agent one whole interval after the server was added. Here the same question is
asked at once, with the same protocol. Only the answer ``ready up NN%`` is used: any other answer HAProxy
hears itself a moment later.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from comfy_fleet.adapters.haproxy.server_lines import Entry
from comfy_fleet.domain.nodes.agent_state import HEAVIEST
from comfy_fleet.tasks import start
from comfy_fleet.timeouts import Timeout

WINDOW_S = 0.5
"""This long after a server was added, HAProxy itself asks (its ``agent-inter``)."""
_PAUSES_S = (0.03, 0.06, 0.12)
_AT_ONCE = 32  # if a thousand nodes join at once, the others are left to HAProxy
_LONGEST = 80  # longest ``ready`` answer, in bytes
_GIVES = re.compile(rb"ready up ([1-9][0-9]{0,2})%\r?\n")


@dataclass(frozen=True, kw_only=True)
class Given:
    """An agent's ``ready``.

    Attributes:
        agent: Address and port of the agent.
        percent: The weight in the answer, in percent of the server's own.
    """

    agent: tuple[str, int]
    percent: int


def given_by(line: bytes) -> int | None:
    """Return the weight in percent of an answer that opens the server; None for any other answer.

    Only the exact form that :func:`comfy_fleet.agent.agent_check_server.line` writes counts: any other is
    left to HAProxy.
    """
    found = _GIVES.fullmatch(line)
    if found is None or int(found[1]) > HEAVIEST:
        return None
    return int(found[1])


class Preflight:
    """Asks in the background and keeps ``ready`` answers until HAProxy itself asks.

    Args:
        on_ready: Called whenever there is something new in :meth:`ready`.
        window_s: How long after the request an answer is of use.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        on_ready: Callable[[], None],
        *,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_ready = on_ready
        self._window_s = window_s
        self._clock = clock
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._given: dict[str, tuple[float, Given]] = {}

    def ask(self, entry: Entry, agent: str) -> None:
        """Begin to ask; an earlier answer about a server of this name is dropped.

        Args:
            entry: The node whose servers were added just now.
            agent: Its agent's resolved address.
        """
        self.forget(entry.name)
        until = self._clock() + self._window_s
        work = self._ask(entry.name, (agent, entry.agent_port), until)
        task = start(work, name=f"first answer {entry.name}")
        self._tasks[entry.name] = task
        task.add_done_callback(lambda done: self._done(entry.name, done))

    @property
    def asking(self) -> frozenset[str]:
        """The nodes whose agents are being asked."""
        return frozenset(self._tasks)

    def forget(self, name: str) -> None:
        """Stop asking about a node and drop its answer."""
        self._given.pop(name, None)
        if task := self._tasks.pop(name, None):
            task.cancel()

    def ready(self) -> Mapping[str, Given]:
        """Return, by node, the ``ready`` answers that HAProxy has not had time to hear itself."""
        now = self._clock()
        self._given = {name: found for name, found in self._given.items() if now < found[0]}
        return {name: given for name, (_, given) in self._given.items()}

    async def stop(self) -> None:
        """Stop asking."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]

    async def _ask(self, name: str, agent: tuple[str, int], until: float) -> None:
        for pause_s in (*_PAUSES_S, None):
            async with self._turns:
                left_s = until - self._clock()
                if left_s <= 0:
                    return
                try:
                    async with Timeout(left_s):
                        answer = await question(name, agent)
                except (OSError, TimeoutError):
                    return
            if (percent := given_by(answer)) is not None:
                self._given[name] = until, Given(agent=agent, percent=percent)
                self._on_ready()
                return
            # An agent that joins learns of its node, and sees it answer, only now: before, it says nothing,
            # or `up`.
            if answer not in (b"", b"up\n") or pause_s is None:
                return
            await asyncio.sleep(pause_s)


async def question(name: str, agent: tuple[str, int]) -> bytes:
    """Put HAProxy's question to an agent and return its answer up to the end of the line.

    Raises:
        OSError: It can't be reached, or broke off.
    """
    reader, writer = await asyncio.open_connection(*agent, limit=_LONGEST)
    try:
        writer.write(f"{name}/".encode())
        try:
            return await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError:
            return b"?"
    finally:
        writer.transport.abort()
