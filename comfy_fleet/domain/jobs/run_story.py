"""What a run saw and what that led to: enough to explain afterwards why it ended as it did.

Every event is noted, without its large parts. Events that only move the progress, or that repeat while the
run waits, are counted: a prompt that runs for an hour takes a handful of entries.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

from comfy_fleet.domain.jobs.run_messages import (
    Action,
    AskFailed,
    Binary,
    Event,
    Frame,
    HistoryAnswered,
    InterruptSent,
    PostAnswered,
    PostUnknown,
    QueueAnswered,
    Report,
    ShowPreview,
    SocketClosed,
)
from comfy_fleet.domain.text import clip

MOST_STIMULI = 200
MOST_CHARACTERS = 6000
"""Characters of the story that a job keeps with its error; of a longer one, the newest lines."""
MOST_FACT = 120

FRAMES = "frames"
_TELLING = frozenset(
    {"execution_start", "execution_success", "execution_error", "execution_interrupted", "execution_cached"}
)
"""Frames that get an entry each, even if nothing follows from them at once."""
_PROGRESS = frozenset({Report, ShowPreview})
_FACTS = {
    PostAnswered: "status",
    PostUnknown: "reason",
    SocketClosed: "reason",
    QueueAnswered: "state",
    AskFailed: "kind",
    InterruptSent: "ok",
    HistoryAnswered: "entry",
}
"""For each event, the one attribute that is noted."""


_Entry: TypeAlias = list[Any]
"""One event, or several equal ones: (name, fact, phase after it, actions), first and last time, count."""
_NONE: _Entry = [None, 0.0, 0.0, 0]


class RunStory:
    """The last events of one run.

    Args:
        began_at: When the run began, in the seconds of the clock that :meth:`note` is told.
    """

    def __init__(self, began_at: float) -> None:
        self._began_at = began_at
        self._entries: deque[_Entry] = deque(maxlen=MOST_STIMULI)
        self._last = self._before = _NONE

    def note(self, event: Event, at: float, phase: str, actions: Sequence[Action], misread: str) -> None:
        """Note one event.

        Args:
            event: What came in.
            at: When.
            phase: The run's phase after it.
            actions: What followed.
            misread: The exception it raised; empty if it was understood.
        """
        kind = type(event)
        led: tuple[type, ...] = ()
        if actions and (len(actions) > 1 or type(actions[0]) not in _PROGRESS):
            led = tuple(map(type, actions))
        name, fact = kind.__name__, misread
        if kind is Binary:
            name = FRAMES
        elif isinstance(event, Frame):
            # A time limit may act on any frame, whose name may be anything that a node sends.
            name = clip(event.type, MOST_FACT) if led or event.type in _TELLING else FRAMES
        elif not misread and kind in _FACTS:
            fact = getattr(event, _FACTS[kind])
            if kind is HistoryAnswered:
                fact = "absent" if fact is None else "found"
        if fact != "":
            fact = clip(str(fact), MOST_FACT)
        what = (name, fact, phase, led)
        # Looks two entries back: a question and its answer alternate while the run waits.
        for entry in (self._last, self._before):
            if entry[0] == what:
                entry[2] = at
                entry[3] += 1
                return
        self._before, self._last = self._last, [what, at, at, 1]
        self._entries.append(self._last)

    def lines(self) -> list[str]:
        """Return the story, a line for each event, the oldest first.

        Examples: ``0.004 PostAnswered 200 -> accepted``, ``0.120..35.402 frames x812 -> running``. That is:
            seconds since the run began, the event and how often it came, the phase after it, and the actions.
        """
        return [self._line(entry) for entry in self._entries]

    def _line(self, entry: _Entry) -> str:
        (name, fact, phase, led), at, last_at, times = entry
        when = f"{at - self._began_at:.3f}"
        if times > 1:
            when = f"{when}..{last_at - self._began_at:.3f}"
            name = f"{name} x{times}"
        told = f" {fact}" if fact else ""
        done = f": {', '.join(action.__name__ for action in led)}" if led else ""
        return f"{when} {name}{told} -> {phase}{done}"


def newest(lines: Sequence[str], most: int = MOST_CHARACTERS) -> list[str]:
    """Return the last lines that fit into this many characters, after one that says how many are left out."""
    room, kept = most, len(lines)
    while kept and room >= len(lines[kept - 1]):
        kept -= 1
        room -= len(lines[kept])
    return list(lines) if not kept else [f"({kept} earlier left out)", *lines[kept:]]
