"""Work on a node that no run of the fleet explains.

A dispatcher that dies gives its slot back while the GPU still computes; a person may have posted a prompt
past the fleet. ComfyUI runs one prompt at a time, so such a node must get no lease. A prompt counts as an
orphan when it was seen at two looks some time apart and the fleet, asked after the second look, knows no run
of its id. One look is not enough: the record of a run that has just ended goes a moment before its prompt
leaves the queue. A run whose lease has expired still explains its prompt: another dispatcher will adopt it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

APART_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt in a node's queue.

    Attributes:
        id: ``prompt_id``; the run's id, if the fleet posted it.
        running: Whether it runs; else it waits.
        ours: Whether its ``extra_data`` says that the fleet posted it.
    """

    id: str
    running: bool = True
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Sighted:
    """A prompt and since when it was seen.

    Attributes:
        first_at: Monotonic seconds of the first look that saw it.
        last_at: The same of the last one.
        asked_at: When the last answered question about it was sent; None: never.
        explained: What that answer said.
    """

    prompt: Prompt
    first_at: float
    last_at: float
    asked_at: float | None = None
    explained: bool = False

    @property
    def orphan(self) -> bool:
        """Whether no run explains it."""
        return (
            self.asked_at is not None
            and not self.explained
            and self.last_at - self.first_at >= APART_S
            and self.asked_at >= self.first_at + APART_S
        )


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What is known of a node's queue. Every step returns a new value."""

    prompts: Mapping[str, Sighted] = field(default_factory=dict)

    def look(self, prompts: Iterable[Prompt], now: float) -> "Queue":
        """Take in what the queue holds now."""
        seen: dict[str, Sighted] = {}
        for prompt in prompts:
            known = self.prompts.get(prompt.id)
            if known is None:
                seen[prompt.id] = Sighted(prompt=prompt, first_at=now, last_at=now)
            else:
                seen[prompt.id] = replace(known, prompt=prompt, last_at=now)
        return Queue(prompts=seen)

    def told(self, asked: Iterable[str], explained: Iterable[str], asked_at: float) -> "Queue":
        """Take in the fleet's answer to a question about these prompts."""
        known, answered = frozenset(explained), frozenset(asked)
        return Queue(
            prompts={
                id_: replace(one, asked_at=asked_at, explained=id_ in known) if id_ in answered else one
                for id_, one in self.prompts.items()
            }
        )

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.prompts)

    @property
    def orphans(self) -> tuple[Prompt, ...]:
        """Prompts that nobody explains."""
        return tuple(one.prompt for one in self.prompts.values() if one.orphan)


def read_queue(body: Any) -> list[Prompt]:
    """Read ComfyUI's ``GET /queue``: lists of ``[number, id, graph, extra_data, outputs]``.

    Raises:
        ValueError: The answer has another form.
    """
    match body:
        case {"queue_running": list(running), "queue_pending": list(pending)}:
            return [_prompt(row, True) for row in running] + [_prompt(row, False) for row in pending]
        case _:
            raise ValueError("the queue is not {queue_running, queue_pending}")


def _prompt(row: Any, running: bool) -> Prompt:
    match row:
        case [_, str(id_), _, dict(extra), *_]:
            fleet = extra.get("fleet")
            return Prompt(id=id_, running=running, ours=isinstance(fleet, dict) and fleet.get("run") == id_)
        case [_, str(id_), *_]:
            return Prompt(id=id_, running=running)
        case _:
            raise ValueError("a row of the queue has no prompt id")
