"""What no policy can undercut: the least loads, and the best assignment of model sets to nodes.

The best assignment is found by exhaustive search. Each set runs on any group of nodes, each of which loads it
once; its work is split among them as it suits, as if jobs could be cut anywhere. For given groups, Hall's
condition says how soon all can be done: for every group of nodes, what only they can run, and what they load,
must fit into their time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import add, truediv

from comfy_fleet.domain.schedule.model_set import ModelSet
from comfy_fleet.planning.fleet import PlannedNode
from comfy_fleet.planning.trace import TraceJob

MAX_NODES = 6
MAX_SETS = 10
_MOST_TRIES = 300_000
"""Some seconds."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is known of a case.

    Attributes:
        loads: Each set must be loaded at least once.
        makespan_s: No policy is done sooner, counted from the first submit; None: too large a case, or the
            search took too long.
        best_loads: How many loads that best assignment needs.
    """

    loads: int
    makespan_s: float | None = None
    best_loads: int | None = None


def bounds(jobs: Iterable[TraceJob], fleet: Sequence[PlannedNode]) -> Bounds:
    """Return bounds for jobs of one pool; when they are submitted is not looked at.

    Args:
        jobs: All of them.
        fleet: The nodes that can run them; all hold nothing at first.
    """
    work: dict[ModelSet, float] = {}
    longest: dict[ModelSet, float] = {}
    for job in jobs:
        work[job.models] = work.get(job.models, 0.0) + job.run_s
        longest[job.models] = max(longest.get(job.models, 0.0), job.run_s)
    least = sum(1 for models in work if models.files)
    if not work or len(fleet) > MAX_NODES or len(work) > MAX_SETS:
        return Bounds(loads=least)
    found = _Search(work, longest, fleet).best()
    if found is None:
        return Bounds(loads=least)
    return Bounds(loads=least, makespan_s=found[0], best_loads=found[1])


class _Search:
    """Branch and bound over which nodes load which set, the sets with the most work first."""

    def __init__(
        self, work: Mapping[ModelSet, float], longest: Mapping[ModelSet, float], fleet: Sequence[PlannedNode]
    ) -> None:
        self._speeds = [planned.node.speed for planned in fleet]
        self._sets = sorted(work.items(), key=lambda item: (-item[1], item[0].key))
        self._work = [seconds for _, seconds in self._sets]
        # What a load costs on a node, in the work that it could do meanwhile.
        self._costs = [
            [
                planned.node.speed * sum(planned.load_s(size, from_disk=True) for _, size in models.files)
                for planned in fleet
            ]
            for models, _ in self._sets
        ]
        # The longest job of a set runs as a whole, on the node where it is done soonest.
        self._floor = max(
            min((cost + longest[models]) / speed for cost, speed in zip(costs, self._speeds, strict=True))
            for (models, _), costs in zip(self._sets, self._costs, strict=True)
        )
        count = len(fleet)
        self._groups = [
            sum(1 << node for node in group)
            for size in range(1, count + 1)
            for group in combinations(range(count), size)
        ]
        self._group_speeds = [
            sum(speed for node, speed in enumerate(self._speeds) if group >> node & 1)
            for group in self._groups
        ]
        # What falls to each group of nodes alone if a set is run by some hosts.
        self._shares = [
            {hosts: self._share(work, costs, hosts) for hosts in self._groups}
            for work, costs in zip(self._work, self._costs, strict=True)
        ]
        self._left = [0.0] * (len(self._sets) + 1)
        for place in range(len(self._sets) - 1, -1, -1):
            self._left[place] = self._left[place + 1] + min(self._costs[place]) + self._work[place]
        self._alike = all(
            (planned.node.speed, planned.disk_rate, planned.ram_rate)
            == (fleet[0].node.speed, fleet[0].disk_rate, fleet[0].ram_rate)
            for planned in fleet
        )
        self._found = (float("inf"), 0)
        self._tries = 0

    def best(self) -> tuple[float, int] | None:
        """Return the least makespan and how many loads it takes; None if that took too many tries."""
        self._found = self._greedy()
        self._place(0, [0.0] * len(self._groups), 0, 0)
        return self._found if self._tries <= _MOST_TRIES else None

    def _share(self, work: float, costs: Sequence[float], hosts: int) -> list[float]:
        return [
            sum(cost for node, cost in enumerate(costs) if (group & hosts) >> node & 1)
            + (work if not hosts & ~group else 0.0)
            for group in self._groups
        ]

    def _greedy(self) -> tuple[float, int]:
        """Return a first answer: each set on the node that is done with it soonest."""
        done = [0.0] * len(self._speeds)
        for place, work in enumerate(self._work):
            ends = [
                (at + (work + self._costs[place][node]) / self._speeds[node], node)
                for node, at in enumerate(done)
            ]
            end, node = min(ends)
            done[node] = end
        return max(done), len(self._sets)

    def _place(self, place: int, bound: Sequence[float], used: int, loads: int) -> None:
        """Try all groups of hosts for a set.

        Args:
            place: Which set.
            bound: By group of nodes: the work, loads included, that falls to it alone.
            used: Nodes that have something to do.
            loads: How many loads there are so far.
        """
        left = self._left[place + 1]
        for hosts, share in self._shares[place].items():
            if self._alike and not _first_of_its_kind(hosts, used):
                continue
            self._tries += 1
            if self._tries > _MOST_TRIES:
                return
            changed = list(map(add, bound, share))
            ends = max(map(truediv, changed, self._group_speeds))
            least = max(self._floor, ends, (changed[-1] + left) / self._group_speeds[-1])
            count = loads + hosts.bit_count()
            if place + 1 == len(self._sets):
                if (least, count) < self._found:
                    self._found = (least, count)
            elif least <= self._found[0] - 1e-9:
                self._place(place + 1, changed, used | hosts, count)


def _first_of_its_kind(hosts: int, used: int) -> bool:
    """Return whether the unused nodes among some hosts are the first unused ones: others are alike."""
    fresh = hosts & ~used
    free = ~used
    while fresh:
        lowest = free & -free
        if not fresh & lowest:
            return False
        fresh &= ~lowest
        free &= ~lowest
    return True
