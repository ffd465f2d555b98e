"""Work on a node that no run of the fleet explains.

When a dispatcher dies, its slot is free while the GPU still computes; and people may post prompts to a node
without the fleet. ComfyUI runs one prompt at a time, so such a node must get no lease. A prompt is an orphan
if it was seen, the fleet was asked and knew no run with its id, and a look that began some time after the
question still saw it. The last look is needed because a run may end between the first look and the question:
then its prompt is gone, too. Without it, every job that ended at such a moment would drain its node. A run
whose lease has expired still explains its prompt: another dispatcher will adopt it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

APART_S = 0.5


MOST_PROMPTS, LONGEST_ID = 500, 200
"""Most prompts of one node's queue in a heartbeat, which must not be longer than the API accepts."""

MOST_SHOWN, SHOWN_S = 16, 2.5
"""How many of the fleet's prompts are reported after they left the queue, and for how many seconds: two
agents may see the same short prompt at different moments."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt in a node's queue.

    Attributes:
        id: ``prompt_id``; the run's id, if the fleet posted it.
        running: Whether it runs; else it waits.
        ours: Whether the fleet posted it, by its ``extra_data``.
    """

    id: str
    running: bool = True
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Sighted:
    """A prompt and when it was seen.

    Attributes:
        last_at: Monotonic seconds when the last look that saw it began.
        denied_at: When the first question was sent to which the answer was that no run explains it; None if a
            run does, or no answer has come.
    """

    prompt: Prompt
    last_at: float
    denied_at: float | None = None

    def told(self, explained: bool, asked_at: float) -> "Sighted":
        """Apply an answer to a question that was sent at ``asked_at``."""
        if explained:
            return replace(self, denied_at=None)
        return self if self.denied_at is not None else replace(self, denied_at=asked_at)

    @property
    def orphan(self) -> bool:
        """Whether no run explains it."""
        return self.denied_at is not None and self.last_at >= self.denied_at + APART_S


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What is known of a node's queue. Every step returns a new value."""

    prompts: Mapping[str, Sighted] = field(default_factory=dict)
    ours: Mapping[str, float] = field(default_factory=dict)
    """The fleet's prompts that are, or just were, in it, and when each was last seen."""

    def look(self, prompts: Iterable[Prompt], now: float) -> "Queue":
        """Apply what the queue held at a look that began at ``now``."""
        seen: dict[str, Sighted] = {}
        for prompt in prompts:
            known = self.prompts.get(prompt.id)
            seen[prompt.id] = replace(
                known or Sighted(prompt=prompt, last_at=now), prompt=prompt, last_at=now
            )
        kept = {id_: at for id_, at in self.ours.items() if now - at <= SHOWN_S and id_ not in seen}
        held = [*kept.items(), *((id_, now) for id_, one in seen.items() if one.prompt.ours)]
        return Queue(prompts=seen, ours=dict(held[-MOST_SHOWN:]))

    def told(self, asked: Iterable[str], explained: Iterable[str], asked_at: float) -> "Queue":
        """Apply the fleet's answer to a question about these prompts."""
        known, answered = frozenset(explained), frozenset(asked)
        told = {
            id_: one.told(id_ in known, asked_at) if id_ in answered else one
            for id_, one in self.prompts.items()
        }
        return replace(self, prompts=told)

    def shown(self, now: float) -> tuple[str, ...]:
        """Return the fleet's prompts that are, or just were, in the queue."""
        return tuple(id_ for id_, at in self.ours.items() if now - at <= SHOWN_S)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.prompts)

    @property
    def orphans(self) -> tuple[Prompt, ...]:
        """Prompts that no run explains."""
        return tuple(one.prompt for one in self.prompts.values() if one.orphan)


def read_queue(body: Any) -> list[Prompt]:
    """Read ComfyUI's ``GET /queue``: lists of ``[number, id, graph, extra_data, outputs]``.

    Raises:
        ValueError: The answer has another form.
    """
    match body:
        case {"queue_running": list(running), "queue_pending": list(pending)}:
            rows = [(row, True) for row in running] + [(row, False) for row in pending]
            return [_prompt(row, runs) for row, runs in rows[:MOST_PROMPTS]]
        case _:
            raise ValueError("the queue is not {queue_running, queue_pending}")


def _prompt(row: Any, running: bool) -> Prompt:
    match row:
        case [_, str(id_), _, dict(extra), *_]:
            fleet = extra.get("fleet")
            ours = isinstance(fleet, dict) and fleet.get("run") == id_
            return Prompt(id=id_[:LONGEST_ID] or "?", running=running, ours=ours)
        case [_, str(id_), *_]:
            return Prompt(id=id_[:LONGEST_ID] or "?", running=running)
        case _:
            raise ValueError("a row of the queue has no prompt id")
