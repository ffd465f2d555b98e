"""What will happen, in order of time."""

from heapq import heappop, heappush

# At the same moment, nodes get free before jobs expire.
FREE, UP, DOWN, CANCEL, EXPIRE, LOOK, LOOK_FOR = range(7)
LOOKS = (LOOK, LOOK_FOR)

Event = tuple[float, int, int, object, int]
"""Time, kind, number, what it is about, and a token that tells if it is void."""


class Agenda:
    """A heap of events; those of the same time and kind in the order in which they were added."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.looks = 0
        self._count = 0

    def add(self, time: float, kind: int, what: object, token: int = 0) -> None:
        """Add an event."""
        self._count += 1
        if kind >= LOOK:
            self.looks += 1
        heappush(self.events, (time, kind, self._count, what, token))

    def pop(self) -> Event:
        """Remove the first event."""
        event = heappop(self.events)
        if event[1] >= LOOK:
            self.looks -= 1
        return event

    def changes_something(self) -> bool:
        """Return whether anything is left that may let a waiting job start, or end it; looks apart."""
        return any(event[1] in (FREE, UP, CANCEL, EXPIRE) for event in self.events)
