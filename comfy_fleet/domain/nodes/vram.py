"""How much of a GPU's memory other programs hold.

ComfyUI keeps models loaded until it needs the room, so a node that has just run a job looks full and is not.
Only memory that *foreign* processes hold is unavailable: ``available = total - foreign - reserve``. The
memory of the fleet's own nodes is never foreign: nodes on one GPU share one budget.

Foreign memory is the used memory minus our own, not the sum over the foreign processes that are listed: a
process that the driver does not list holds memory, too. Our own is found in this order, node by node:

1. by process, if NVML lists the node's processes with their bytes;
2. else by ComfyUI's count (``torch_vram_total``) plus an allowance for CUDA itself. This is used in
   containers without the host's process ids, and on Windows. Some drivers list a container's process under
   its inner pid with zero bytes; and a pid may belong to another process. Both show as a count far below
   ComfyUI's own;
3. else as zero, if the node does not run, or if another node's processes are listed and its own are not;
4. else it is unknown. Then only bounds can be given, which are often enough.

A node of another agent on the same GPU is not foreign either. Its count arrives a second or two late, and
memory that it has taken since would look foreign. The count comes with the card's total use at that instant;
the smaller of the two uses counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from comfy_fleet.domain.nodes.gpu import Gpu

MIB = 2**20
GIB = 2**30

CONTEXT_BYTES = 512 * MIB
"""What CUDA takes per process on top of PyTorch's count: 0.3 to 0.6 GiB, depending on card and driver."""

STALE_S = 3.0
"""A node's own count is too old after this many seconds: a model may have been loaded since."""


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
    """A node's memory as its ComfyUI reported it, all at one instant.

    Attributes:
        device: What kind of memory it is.
        total: Bytes; None if ComfyUI does not know.
        used: Bytes in use by anybody; None if ComfyUI does not know.
        own: Bytes that this ComfyUI has taken; None if unknown.
        name: The device's name.
        age_s: Seconds since the report.
    """

    device: Device = Device.CARD
    total: int | None = None
    used: int | None = None
    own: int | None = None
    name: str = ""
    age_s: float = 0.0

    @property
    def fresh(self) -> bool:
        """Whether it is recent enough to use."""
        return self.age_s <= STALE_S


@dataclass(frozen=True, kw_only=True)
class MemoryClaim:
    """A fleet node on a GPU.

    Attributes:
        node: Its name.
        pids: Its processes, children included; empty if unknown.
        counted: Its own count; None if it never answered.
        running: False when it is known not to run: then it holds nothing.
        late: Whether the report is another agent's, received through the API.
    """

    node: str
    pids: frozenset[int] = frozenset()
    counted: Counted | None = None
    running: bool = True
    late: bool = False

    @property
    def told(self) -> int | None:
        """The bytes of a card that it counts as its own, if the count is recent."""
        if self.counted is None or self.counted.device is not Device.CARD or not self.counted.fresh:
            return None
        return self.counted.own

    @property
    def elsewhere(self) -> bool:
        """Whether it is known to hold no memory of any card."""
        return not self.running or (self.counted is not None and self.counted.device is Device.HOST)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A GPU's memory by owner, in bytes.

    Attributes:
        total: All of it; None if unknown.
        foreign: What others hold; with ``Source.BOUNDS``, the upper bound; None if unknown.
        own: What each node holds, as far as known.
        source: Where the numbers come from.
        others: The foreign processes that are listed, the largest first, as (pid, name, bytes).
    """

    total: int | None = None
    foreign: int | None = None
    own: Mapping[str, int] = field(default_factory=dict)
    source: Source = Source.NONE
    others: tuple[tuple[int, str, int], ...] = ()

    @property
    def certain(self) -> bool:
        """Whether ``foreign`` is a measurement and not a bound."""
        return self.foreign is not None and self.source is not Source.BOUNDS


def usage(gpu: Gpu | None, claims: Sequence[MemoryClaim], *, context_bytes: int = CONTEXT_BYTES) -> Usage:
    """Work out who holds a GPU's memory.

    Args:
        gpu: What NVML saw; if None or without memory, the nodes' own counts are used.
        claims: All fleet nodes on this GPU, of this or any other agent.
        context_bytes: What a process takes on top of PyTorch's count.
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
        # The node reported used and own at one instant. NVML's number is from another instant, and a model
        # that is loaded in between, at ten gigabytes a second, would look foreign.
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
        # If a node's pid is not listed, any listed process may be the node.
        others=tuple(sorted(others, key=lambda one: -one[2])) if source is Source.PROCESSES else (),
    )


def _listed(claim: MemoryClaim, used: Mapping[int, int | None]) -> int | None:
    """Return a node's bytes by process; None if they are hidden or belong to another process."""
    mine = [used[pid] for pid in claim.pids if pid in used]
    if not mine or any(one is None for one in mine):
        return None
    found = sum(one for one in mine if one is not None)
    if claim.told is not None and found < claim.told // 2:
        return None
    return found or None


def _from_counts(claims: Sequence[MemoryClaim], context_bytes: int) -> Usage:
    counts = {
        claim.node: claim.counted
        for claim in claims
        if claim.running and claim.counted is not None and claim.counted.fresh
    }
    if not counts:
        return Usage()
    newest = min(counts.values(), key=lambda one: one.age_s)
    context = context_bytes if newest.device is Device.CARD else 0
    own = {node: one.own + context for node, one in counts.items() if one.own is not None}
    if newest.device is Device.UNSEEN or newest.used is None or len(own) < len(counts):
        # What others hold is unknown. Never giving the node a job would make it useless, and its own models'
        # memory is no reason to take it out.
        return Usage(total=newest.total, foreign=0, own=own, source=Source.UNSEEN)
    foreign = max(0, newest.used - sum(own.values()))
    source = Source.HOST if newest.device is Device.HOST else Source.STATS
    if any(claim.running and claim.node not in counts for claim in claims):
        source = Source.BOUNDS  # a node that starts, or does not answer, may hold all of the rest
    return Usage(
        total=newest.total,
        foreign=foreign if newest.total is None else min(newest.total, foreign),
        own=own,
        source=source,
    )
