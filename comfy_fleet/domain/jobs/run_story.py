"""What a run saw and what that led to: enough to tell afterwards why it ended as it did.

Whatever comes in is noted, without anything large. What only moves the progress is counted, and so is what
comes again and again while the run waits: a prompt that runs for an hour takes a handful of entries.
"""

from collections import deque
from collections.abc import Sequence

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
"""Of a story that a job keeps with its error; of a longer one the newest lines."""
MOST_FACT = 120

FRAMES = "frames"
_TELLING = frozenset(
    {"execution_start", "execution_success", "execution_error", "execution_interrupted", "execution_cached"}
)
"""Frames that are noted one by one even if nothing follows from them at once."""
_PROGRESS = (Report, ShowPreview)
_FACTS = {
    PostAnswered: "status",
    PostUnknown: "reason",
    SocketClosed: "reason",
    QueueAnswered: "state",
    AskFailed: "kind",
    InterruptSent: "ok",
}
"""The one attribute of an event that tells which of its kind it was."""


class _Entry:
    """One stimulus, or equal ones: ``what`` is its name, its fact, the phase after it, and the actions."""

    __slots__ = ("at", "last_at", "times", "what")

    def __init__(self, at: float, what: tuple[str, object, str, tuple[type, ...]]) -> None:
        self.at = self.last_at = at
        self.times = 1
        self.what = what


class RunStory:
    """The last stimuli of one run.

    Args:
        began_at: When the run began, in the seconds of the clock that :meth:`note` is told.
    """

    def __init__(self, began_at: float) -> None:
        self._began_at = began_at
        self._entries: deque[_Entry] = deque(maxlen=MOST_STIMULI)
        self._last: _Entry | None = None
        self._before: _Entry | None = None

    def note(self, event: Event, at: float, phase: str, actions: Sequence[Action], misread: str) -> None:
        """Note one stimulus.

        Args:
            event: What came in.
            at: When.
            phase: The run's phase after it.
            actions: What followed.
            misread: What it raised; empty if it was understood.
        """
        kind = type(event)
        led: tuple[type, ...] = ()
        if actions and (len(actions) > 1 or not isinstance(actions[0], _PROGRESS)):
            led = tuple(map(type, actions))
        fact: object = misread
        if kind is Binary:
            name = FRAMES
        elif isinstance(event, Frame):
            name = event.type if led or event.type in _TELLING else FRAMES
        else:
            name = kind.__name__
            if kind in _FACTS:
                fact = misread or getattr(event, _FACTS[kind])
            elif isinstance(event, HistoryAnswered):
                fact = misread or ("absent" if event.entry is None else "found")
        what = (name, fact, phase, led)
        # Two back: a question and its answer alternate for as long as the run waits.
        for entry in (self._last, self._before):
            if entry is not None and entry.what == what:
                entry.times += 1
                entry.last_at = at
                return
        self._before, self._last = self._last, _Entry(at, what)
        self._entries.append(self._last)

    def lines(self) -> list[str]:
        """Return the story, a line for each stimulus, the oldest first.

        Such as ``0.004 PostAnswered 200 -> accepted`` or ``0.120..35.402 frames x812 -> running``: seconds
        since the run began, what came and how often, the phase after it, and what was done.
        """
        return [self._line(entry) for entry in self._entries]

    def _line(self, entry: _Entry) -> str:
        name, fact, phase, led = entry.what
        when = f"{entry.at - self._began_at:.3f}"
        if entry.times > 1:
            when = f"{when}..{entry.last_at - self._began_at:.3f}"
            name = f"{name} x{entry.times}"
        told = "" if fact == "" else f" {clip(str(fact), MOST_FACT)}"
        done = f": {', '.join(action.__name__ for action in led)}" if led else ""
        return f"{when} {name}{told} -> {phase}{done}"


def newest(lines: Sequence[str], most: int = MOST_CHARACTERS) -> list[str]:
    """Return the last lines that fit into so many characters, after one that says how many are left out."""
    room, kept = most, len(lines)
    while kept and room >= len(lines[kept - 1]):
        kept -= 1
        room -= len(lines[kept])
    return list(lines) if not kept else [f"({kept} earlier left out)", *lines[kept:]]
