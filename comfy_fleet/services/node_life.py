"""Operations on a node: drain, resume, restart, remove, and restart many in turn.

The waiting functions (:func:`wait_drained`, :func:`roll`) use only :class:`NodeControl`. :class:`NodeLife`
implements it on the fleet's stores; the command line implements it over HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from comfy_fleet.domain.errors import Conflict, NotFound, NotInTime
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.ports.nodes import Hosts, NodeRegistry

logger = logging.getLogger(__name__)

LOOK_S = 0.2
RELEASE_S = 10.0
"""How long a removal waits for a node's jobs to be back in the queue. On a dead node that takes longer; then
its dispatcher finds the node gone."""

ROLLING = "rolling restart"
"""The reason of a node's drain during a roll."""

MISSED_S = 8.0
"""An ordered restart may be too quick for HAProxy's checks; after this time it counts as done."""


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """What the waiting functions need to know about a node.

    Attributes:
        busy: Whether a job needs it, or its outputs are still being fetched.
        cordon: Why it was drained; None if it is not drained.
        verdict: As in :class:`~comfy_fleet.domain.nodes.node.NodeState`.
        starts: How often it has come back.
        managed: Whether its agent can restart its ComfyUI.
        state: Its state in words.
        work: What needs it, in words.
    """

    busy: bool
    cordon: str | None
    verdict: str
    starts: int
    managed: bool
    state: str
    work: str


class NodeControl(Protocol):
    """Reads and controls nodes. Every method raises NotFound or the implementation's equivalent."""

    async def status(self, name: str) -> NodeStatus:
        """Return a node's present state."""

    async def drain(self, name: str, *, reason: str | None = None, requeue: bool = False) -> None:
        """Stop new jobs; see :meth:`NodeLife.drain`."""

    async def resume(self, name: str) -> None:
        """Let jobs come again."""

    async def restart(self, name: str) -> None:
        """Have the agent that runs it restart it."""

    async def refresh(self, name: str) -> bool:
        """Read its inventory now; False if it did not answer."""


class InventoryReader(Protocol):
    """The part of :class:`comfy_fleet.services.inventories.NodeInventories` that is needed here."""

    async def look(self) -> None:
        """Read the nodes now, so that waiting jobs show their present reason."""

    async def refresh(self, name: str) -> bool:
        """Read a node's inventory now; False if it did not answer, or can't be read."""


class NodeLife:
    """Changes nodes in the fleet's stores; a :class:`NodeControl`."""

    def __init__(self, nodes: NodeRegistry, hosts: Hosts, inventories: InventoryReader) -> None:
        self._nodes = nodes
        self._hosts = hosts
        self._inventories = inventories

    async def state(self, name: str) -> NodeState:
        """Return a node; raises NotFound."""
        found = await self._nodes.state(name)
        if found is None:
            raise NotFound(f"no node {name!r}")
        return found

    async def status(self, name: str) -> NodeStatus:
        """Return a node's present state; raises NotFound."""
        found = await self.state(name)
        return NodeStatus(
            busy=_busy(found),
            cordon=(found.node.cordon_reason or "by hand") if found.node.cordoned else None,
            verdict=found.verdict,
            starts=found.reading.starts,
            managed=await self._managed(name),
            state=f"{found.verdict}: {found.why}" if found.why else found.verdict,
            work=", ".join(f"job {work.job}" for work in found.work) or "a job runs",
        )

    async def drain(self, name: str, *, reason: str | None = None, requeue: bool = False) -> None:
        """Stop new jobs; the running one goes on.

        Args:
            name: The node.
            reason: Why; None keeps the present reason.
            requeue: Give its jobs back to the queue at once.

        Raises:
            NotFound: No such node.
        """
        reason = reason or (await self.state(name)).node.cordon_reason or "drained by hand"
        await self._nodes.cordon(name, reason=reason)
        await self._inventories.look()  # jobs that wait for it show that from now on
        if requeue:
            runs = await self._nodes.release(name)
            logger.info("jobs given back", extra={"node": name, "runs": len(runs)})

    async def resume(self, name: str) -> None:
        """Allow new jobs again; ends a quarantine, too. Raises NotFound."""
        await self._nodes.uncordon(name)
        await self._inventories.look()

    async def restart(self, name: str) -> None:
        """Have the agent that runs it restart it, as soon as no job needs it.

        Raises:
            NotFound: No such node.
            Conflict: No agent runs it.
        """
        await self.state(name)
        if not await self._managed(name):
            raise Conflict(
                f"no agent runs node {name}: restart its ComfyUI yourself",
                details={"field": "name", "node": name},
            )
        await self._nodes.want_restart(name)

    async def refresh(self, name: str) -> bool:
        """Read its inventory now; False if it did not answer, or can't be read. Raises NotFound."""
        await self.state(name)
        return await self._inventories.refresh(name)

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Forget a node.

        Args:
            name: The node.
            force: Forget it even while it works: its jobs go back to the queue first.

        Raises:
            NotFound: No such node.
            Conflict: It works, and ``force`` is not set.
        """
        if force and (await self.state(name)).work:
            await self._nodes.cordon(name, reason="is being removed")
            await self._nodes.release(name)
            deadline = time.monotonic() + RELEASE_S
            while (await self.state(name)).work:
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(LOOK_S)
        await self._nodes.remove(name, force=force)

    async def _managed(self, name: str) -> bool:
        return restarted_by_agent(await self._hosts.report(name) or {})


def restarted_by_agent(report: Mapping[str, Any]) -> bool:
    """Return whether a node's agent restarts its ComfyUI, by the agent's report."""
    return bool(report.get("pid") or report.get("phase"))


def _busy(state: NodeState) -> bool:
    return bool(state.run or state.work)


async def wait_drained(control: NodeControl, names: Sequence[str], timeout_s: float) -> None:
    """Wait until no job needs any of these nodes, outputs included.

    Raises:
        NotInTime: One of them still works; the message says on what.
    """
    deadline = time.monotonic() + timeout_s
    for name in names:
        while (node := await control.status(name)).busy:
            await _wait(name, "empty", node.work, deadline, timeout_s)


async def wait_up(control: NodeControl, name: str, timeout_s: float) -> None:
    """Wait until a node can get jobs.

    Raises:
        NotInTime: It can't; the message says why.
    """
    deadline = time.monotonic() + timeout_s
    while (node := await control.status(name)).verdict != "up":
        await _wait(name, "up", node.state, deadline, timeout_s)


async def check_managed(control: NodeControl, names: Sequence[str]) -> None:
    """Check that agents can restart all of these nodes.

    Raises:
        Conflict: One of them has no agent that runs it.
    """
    for name in names:
        if not (await control.status(name)).managed:
            raise Conflict(f"no agent runs node {name}: nothing was restarted", details={"node": name})


async def roll(
    control: NodeControl,
    names: Sequence[str],
    *,
    at_once: int,
    restart: Callable[[str], Awaitable[None]] | None,
    drain_s: float,
    back_s: float,
) -> AsyncIterator[Sequence[str]]:
    """Restart nodes in turn without losing a job; yields each batch once its nodes are back.

    Each is drained and restarted, and gets jobs again as soon as its inventory was read. The first batch of
    which one does not come back ends the roll. A node that somebody else drains keeps that: before its turn,
    it is left out; during its turn, it is not resumed.

    Args:
        control: The nodes.
        names: Their names, in this order.
        at_once: How many in a batch.
        restart: Restarts one; None waits for somebody else to do it.
        drain_s: Longest time for the jobs of a batch to end.
        back_s: Longest time for a batch to come back.

    Raises:
        NotInTime: Jobs did not end (all of the batch get jobs again), or a node did not come back (it stays
            drained; the others of its batch get jobs again).
        Exception: What ``restart`` raises. Its node stays drained; of its batch, those that are not restarted
            yet get jobs again, and the others as soon as they are back. Or: a node can't be asked, e.g.
            because it was removed; then, too, the others of its batch get jobs again.
    """
    for first in range(0, len(names), at_once):
        batch = [
            name for name in names[first : first + at_once] if (await control.status(name)).cordon is None
        ]
        if not batch:
            continue
        await _drain_all(control, batch, drain_s)
        await _restart_all(control, batch, restart, back_s)
        for name in batch:
            if (await control.status(name)).cordon is None:
                await wait_up(control, name, back_s)
        yield batch


async def _drain_all(control: NodeControl, names: Sequence[str], timeout_s: float) -> None:
    """Drain nodes and wait until they are empty; if that fails, all of them get jobs again."""
    try:
        for name in names:
            await control.drain(name, reason=ROLLING)
        await wait_drained(control, names, timeout_s)
    except BaseException:
        await _resume_all(control, names)
        raise


async def _restart_all(
    control: NodeControl,
    names: Sequence[str],
    restart: Callable[[str], Awaitable[None]] | None,
    timeout_s: float,
) -> None:
    """Restart drained nodes and let each get jobs again once it is back."""
    try:
        starts = {name: (await control.status(name)).starts for name in names}
    except BaseException:
        await _resume_all(control, names)
        raise
    begun: list[str] = []

    async def late() -> list[str]:
        return await _wait_back(
            control, {name: starts[name] for name in begun}, timeout_s, ordered=restart is not None
        )

    try:
        for name in names:
            if restart is not None:
                await restart(name)
            begun.append(name)
    except BaseException as error:
        await _resume_all(control, names[len(begun) + 1 :])
        if isinstance(error, Exception):
            with contextlib.suppress(Exception):  # the first error says more
                await late()
        raise
    if missing := await late():
        raise NotInTime(
            f"node{'s' if missing[1:] else ''} {', '.join(missing)} did not come back within {timeout_s:g} s",
            details={"node": missing[0], "nodes": missing},
        )


async def _resume_all(control: NodeControl, names: Sequence[str]) -> None:
    """Undo a drain of a roll. If one node can't be resumed, e.g. because it is being removed, the others
    still are."""
    for name in names:
        with contextlib.suppress(Exception):
            await _resume(control, name)


async def _resume(control: NodeControl, name: str) -> None:
    """Allow new jobs again, unless somebody else has drained the node meanwhile."""
    if (await control.status(name)).cordon == ROLLING:
        await control.resume(name)


async def _wait(name: str, what: str, now: str, deadline: float, timeout_s: float) -> None:
    """Pause before the next look; raises NotInTime if there is no time for one."""
    if time.monotonic() > deadline:
        raise NotInTime(f"node {name} is not {what} after {timeout_s:g} s: {now}", details={"node": name})
    await asyncio.sleep(LOOK_S)


async def _wait_back(
    control: NodeControl, starts: Mapping[str, int], timeout_s: float, *, ordered: bool
) -> list[str]:
    """Wait until nodes have come back and their inventories were read, and let each get jobs again.

    Args:
        control: The nodes.
        starts: How often each had come back before, by name.
        timeout_s: Longest time for all of them; each is checked at least once.
        ordered: Whether the restarts have certainly begun; then one that was not seen was quick.

    Returns:
        The nodes that are not back.

    Raises:
        Exception: One of them can't be asked, e.g. because it was removed; the others were waited for.
    """
    began = time.monotonic()
    late = list(starts)
    broken: list[Exception] = []
    while True:
        last = time.monotonic() - began >= timeout_s
        for name in list(late):
            try:
                node = await control.status(name)
                seen = node.starts > starts[name] or (ordered and time.monotonic() - began > MISSED_S)
                if not (seen and node.verdict != "down" and await control.refresh(name)):
                    continue
                await _resume(control, name)
            except Exception as error:  # noqa: BLE001 - raised below
                broken.append(error)
            late.remove(name)
        if last or not late:
            break
        await asyncio.sleep(LOOK_S)
    if broken:
        raise broken[0]
    return late
