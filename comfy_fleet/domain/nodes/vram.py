"""How much of a GPU's memory other programs hold.

ComfyUI keeps models loaded until it needs the room, so a node that has just run a job looks full and is not.
What is really gone is what *foreign* processes hold: ``available = total - foreign - reserve``. Memory of the
fleet's own nodes is never foreign, whichever of them holds it: nodes on one GPU share one budget.

Foreign memory is what is used beyond our own, not the sum of the foreigners that are listed: a process that
the driver does not list holds memory all the same. Our own is found in this order, node by node:

1. by process, if NVML lists the node's processes with their bytes;
2. else as ComfyUI counts it (``torch_vram_total``) plus an allowance for what CUDA itself takes. This is the
   way in containers without the host's process ids, and on Windows. Some drivers list a container's process
   under its inner number with zero bytes; a number may also be another process's. Both are recognised by a
   count far below ComfyUI's own;
3. else nothing, if it does not run, or if another node's processes are listed and its own are not;
4. else it is unknown. Then only bounds can be told, and often they are enough.

A node of another agent on the same GPU is no foreigner either. What it counts arrives a second or two late,
and what it has taken since would look foreign. Its count came with the card's use at that instant: the
smaller use counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from comfy_fleet.domain.nodes.gpu import Gpu

MIB = 2**20
GIB = 2**30

CONTEXT_BYTES = 512 * MIB
"""What CUDA takes for a process beside PyTorch's own count: 0.3 to 0.6 GiB, by card and driver."""

STALE_S = 3.0
"""A node's own count older than this says nothing about now: a model may have been loaded since."""


class Source(StrEnum):
    """Where the numbers come from."""

    PROCESSES = "NVML, by process"
    COUNTED = "NVML, own memory as ComfyUI counts it"
    STATS = "ComfyUI's /system_stats"
    HOST = "the host's memory"
    UNSEEN = "ComfyUI's /system_stats, which can't see other programs here"
    BOUNDS = "own memory partly unknown"
    NONE = "nothing"


class Device(StrEnum):
    """What kind of memory ComfyUI reports."""

    CARD = "a card's own memory"
    HOST = "the host's memory"
    UNSEEN = "only its own"


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A node's memory as its ComfyUI told it, all at one instant.

    Attributes:
        device: What kind of memory it is.
        total: Bytes; None where ComfyUI can't tell.
        used: Bytes of it that anybody uses; None where ComfyUI can't tell.
        own: Bytes that this ComfyUI has taken; None where that can't be told.
        name: The device's name.
        age_s: Seconds since it was told.
    """

    device: Device = Device.CARD
    total: int | None = None
    used: int | None = None
    own: int | None = None
    name: str = ""
    age_s: float = 0.0

    @property
    def fresh(self) -> bool:
        """Whether it still says something about now."""
        return self.age_s <= STALE_S


@dataclass(frozen=True, kw_only=True)
class MemoryClaim:
    """A fleet node on a GPU.

    Attributes:
        node: Its name.
        pids: Its processes, children included; empty if nobody knows them.
        counted: Its own count; None if it never answered.
        running: False when it is known not to run: then it holds nothing.
        late: Whether another agent told of it, by way of the API.
    """

    node: str
    pids: frozenset[int] = frozenset()
    counted: Counted | None = None
    running: bool = True
    late: bool = False

    @property
    def told(self) -> int | None:
        """What it counts as its own of a card, if that is fresh."""
        if self.counted is None or self.counted.device is not Device.CARD or not self.counted.fresh:
            return None
        return self.counted.own

    @property
    def elsewhere(self) -> bool:
        """Whether it is known to hold nothing of any card."""
        return not self.running or (self.counted is not None and self.counted.device is Device.HOST)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A GPU's memory by owner, in bytes.

    Attributes:
        total: All of it; None if unknown.
        foreign: What others hold; with ``Source.BOUNDS`` the most that it can be; None if unknown.
        own: What each node holds, as far as known.
        source: Where this comes from.
        others: The foreign processes that are listed, the largest first, as (pid, name, bytes).
    """

    total: int | None = None
    foreign: int | None = None
    own: Mapping[str, int] = field(default_factory=dict)
    source: Source = Source.NONE
    others: tuple[tuple[int, str, int], ...] = ()

    @property
    def certain(self) -> bool:
        """Whether ``foreign`` is a measurement and no bound."""
        return self.foreign is not None and self.source is not Source.BOUNDS


def usage(gpu: Gpu | None, claims: Sequence[MemoryClaim], *, context_bytes: int = CONTEXT_BYTES) -> Usage:
    """Tell who holds a GPU's memory.

    Args:
        gpu: What NVML saw; None, or one without memory, leaves it to the nodes' own counts.
        claims: All fleet nodes on this GPU, of this or any other agent.
        context_bytes: What a process takes beside PyTorch's own count.
    """
    if gpu is None or gpu.memory is None:
        return _from_counts(claims, context_bytes)
    listed = {process.pid: process for process in gpu.processes or ()}
    bytes_by_pid = {pid: process.used for pid, process in listed.items()}
    own = {claim.node: found for claim in claims if (found := _listed(claim, bytes_by_pid)) is not None}
    by_process = {pid for claim in claims if claim.node in own for pid in claim.pids}
    counted: list[MemoryClaim] = []
    for claim in claims:
        if claim.node in own:
            continue
        if claim.elsewhere or (by_process and claim.pids and not claim.told):
            own[claim.node] = 0
        elif claim.counted is not None and claim.told is not None:
            own[claim.node] = claim.told + context_bytes
            counted.append(claim)
    used = gpu.memory.used
    snapshots = [(one.late, one.counted.age_s, one.counted.used) for one in counted if one.counted]
    soon = [(age_s, seen) for late, age_s, seen in snapshots if not late and seen is not None]
    if soon:
        # The node told used and own at one instant. NVML's figure is of another one, and a model that is
        # loaded in between, at ten gigabytes a second, would look like somebody else's.
        used = min(soon)[1]
    used = min([used, *(seen for late, _, seen in snapshots if late and seen is not None)])
    source = Source.COUNTED if counted else Source.PROCESSES
    if len(own) < len(claims):
        source, used = Source.BOUNDS, max(used, gpu.memory.used)
    foreign = min(gpu.memory.total, max(0, used - sum(own.values())))
    others = [
        (process.pid, process.name, process.used)
        for process in listed.values()
        if process.used and process.pid not in by_process
    ]
    return Usage(
        total=gpu.memory.total,
        foreign=foreign,
        own=own,
        source=source,
        # With a node that is not among them by its number, any of them may be the node.
        others=tuple(sorted(others, key=lambda one: -one[2])) if source is Source.PROCESSES else (),
    )


def _listed(claim: MemoryClaim, used: Mapping[int, int | None]) -> int | None:
    """Return a node's bytes by process; None if they are hidden, or are none of its own."""
    mine = [used[pid] for pid in claim.pids if pid in used]
    if not mine or any(one is None for one in mine):
        return None
    found = sum(one for one in mine if one is not None)
    if claim.told is not None and found < claim.told // 2:
        return None
    return found or None


def _from_counts(claims: Sequence[MemoryClaim], context_bytes: int) -> Usage:
    told = {
        claim.node: claim.counted
        for claim in claims
        if claim.running and claim.counted is not None and claim.counted.fresh
    }
    if not told:
        return Usage()
    newest = min(told.values(), key=lambda one: one.age_s)
    context = context_bytes if newest.device is Device.CARD else 0
    own = {node: one.own + context for node, one in told.items() if one.own is not None}
    if newest.device is Device.UNSEEN or newest.used is None or len(own) < len(told):
        # Nobody can tell what others hold. A node that never got a job for that would be of no use, and
        # memory that its own models hold is no reason to take it out.
        return Usage(total=newest.total, foreign=0, own=own, source=Source.UNSEEN)
    foreign = max(0, newest.used - sum(own.values()))
    source = Source.HOST if newest.device is Device.HOST else Source.STATS
    if any(claim.running and claim.node not in told for claim in claims):
        source = Source.BOUNDS  # one that starts, or does not answer, may hold all of the rest
    return Usage(
        total=newest.total,
        foreign=foreign if newest.total is None else min(newest.total, foreign),
        own=own,
        source=source,
    )
