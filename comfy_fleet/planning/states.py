"""Jobs and nodes while a simulation runs, and the runs that it tells of."""

from dataclasses import dataclass

from comfy_fleet.domain.schedule.waiting_job import WaitingJob
from comfy_fleet.planning.fleet import PlannedNode
from comfy_fleet.planning.node_memory import NodeMemory
from comfy_fleet.planning.trace import TraceJob


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """A run that is over.

    Attributes:
        job: Its job.
        node: Where it ran.
        started: When it started, in seconds.
        load_s: How long it loaded.
        run_s: How long it computed.
        ok: Whether its job succeeded.
    """

    job: TraceJob
    node: str
    started: float
    load_s: float
    run_s: float
    ok: bool


class SimulatedJob:
    """A job between its submit and its end."""

    __slots__ = ("attempts", "canceled", "node", "over", "real", "seen")

    def __init__(self, real: TraceJob, seen: WaitingJob) -> None:
        self.real, self.seen = real, seen
        self.node: SimulatedNode | None = None  # None while it waits
        self.attempts = 0
        self.canceled = self.over = False


class SimulatedPool:
    """What nodes of one pool have in common.

    Attributes:
        idle: Its idle nodes by name, the one that has been idle for the longest first.
        largest: Bytes of its largest card.
        size: How many nodes it has.
    """

    __slots__ = ("idle", "largest", "size")

    def __init__(self) -> None:
        self.idle: dict[str, SimulatedNode] = {}
        self.largest = self.size = 0


class SimulatedNode:
    """A node, and the run on it."""

    __slots__ = (
        "down_at",
        "job",
        "load_s",
        "look",
        "memory",
        "name",
        "oom",
        "planned",
        "pool",
        "run_s",
        "started",
        "token",
        "up",
    )

    def __init__(self, planned: PlannedNode, pool: SimulatedPool) -> None:
        self.planned, self.name, self.memory = planned, planned.node.name, NodeMemory(planned)
        self.pool = pool
        pool.largest = max(pool.largest, planned.node.vram_bytes)
        pool.size += 1
        self.job: SimulatedJob | None = None
        self.token = self.look = 0  # numbers of the run, and of the latest look; earlier ones are void
        self.started = self.load_s = self.run_s = self.down_at = 0.0
        self.oom = False
        self.up = True
