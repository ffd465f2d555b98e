"""Looks in vain: jobs wait, a node is idle, and none of them is worth its load there now.

Whatever changes is noticed by the next look, so there is one now and then, and at once if a job comes. Many
idle nodes and many placement classes must not make more of them: each class waits its turn, so that one
dispatcher looks about as often, whatever the fleet.
"""

from collections.abc import Callable, Container, Iterable

from comfy_fleet.domain.jobs.job import Placement

PAUSE_S = (0.1, 0.3)
"""How long a class is left alone after a look in vain, if it is the only one; drawn."""
LONGEST_PAUSE_S = 2.0
LEAST_PAUSE_S = 0.05
APART_S = 0.03
REST_S = 1.0
"""How long a node on which a look was in vain is asked after others."""


class VainLooks:
    """Which classes and nodes are left alone for a moment; one for each dispatcher.

    Args:
        now: Monotonic seconds.
        chance: Random numbers from 0 to 1.
    """

    def __init__(self, now: Callable[[], float], chance: Callable[[], float]) -> None:
        self._now = now
        self._chance = chance
        self._until: dict[Placement, float] = {}
        self._groups: dict[Placement, Placement] = {}  # one of the classes that were paused together
        self._resting: dict[Placement, dict[str, float]] = {}
        self._last = float("-inf")
        self._woken = float("-inf")  # when the last class that was woken looks

    def note(self, node: str, placements: Iterable[Placement]) -> None:
        """Note that a look at some classes on a node was in vain."""
        self._last = self._now()
        for one in placements:
            self._resting.setdefault(one, {})[node] = self._last + REST_S

    def pause(self, placements: Iterable[Placement], left_s: float) -> float:
        """Leave classes alone for a moment; return after how many seconds the first is looked at again.

        Args:
            placements: Classes that may use the same nodes, for which a look was in vain, the sought one
                first. A look at one of them is a look at all, so they don't begin at the same moment.
            left_s: When it is worth another look; 0: only when something happens.
        """
        now = self._now()
        placements = tuple(placements)
        soonest, latest = PAUSE_S
        pause_s = soonest + (latest - soonest) * self._chance()
        if left_s > 0:
            pause_s = min(pause_s, max(LEAST_PAUSE_S, left_s))
        others = [one for one, until in self._until.items() if now < until + latest and one not in placements]
        pause_s = min(LONGEST_PAUSE_S, pause_s * (1 + len({self._groups[one] for one in others})))
        for at, one in enumerate(reversed(placements)):
            self._until[one] = now + pause_s + at * APART_S
            self._groups[one] = placements[0]
        return pause_s

    def left_s(self, placement: Placement) -> float:
        """Return for how many seconds a class is still left alone; 0: it is not."""
        return max(0.0, self._until.get(placement, 0.0) - self._now())

    def wake(self, placement: Placement | None = None) -> None:
        """Note a reason to look again, for one class or all: at once, unless the last look was just now."""
        now = self._now()
        if placement is not None:
            self._resting.pop(placement, None)  # the new job may be worth it on any of them
        for one in self._until if placement is None else {placement} & self._until.keys():
            soonest = max(now, max(self._last, self._woken) + PAUSE_S[0])
            if soonest < self._until[one]:
                self._until[one] = self._woken = soonest

    def resting(self, placement: Placement) -> frozenset[str]:
        """Return the nodes on which a look at a class was in vain a moment ago: others are asked first."""
        now, nodes = self._now(), self._resting.get(placement)
        if not nodes:
            return frozenset()
        self._resting[placement] = nodes = {node: until for node, until in nodes.items() if now < until}
        return frozenset(nodes)

    def forget(self, known: Container[Placement]) -> None:
        """Keep only these classes."""
        self._until = {one: until for one, until in self._until.items() if one in known}
        self._groups = {one: self._groups[one] for one in self._until}
        self._resting = {one: nodes for one, nodes in self._resting.items() if one in known}
