"""What one websocket client is told of its prompts, as a pure state machine: messages in, messages out.

ComfyUI runs one prompt at a time, and its clients rely on that: to today's editor, any ``execution_start``
names the active prompt, any ``execution_success`` and any ``executing {node: null}`` ends it, and progress
belongs to it. A fleet runs several prompts of one client at once, so that

- one of them is *shown*: the client gets its messages as they come;
- of the others, what a client must not miss (starts, results) is held back until they are shown, or end;
  and so is what a node of an extension says meanwhile, perhaps a question that it waits with;
- the end of a prompt that ran is told at once, whoever's it is: scripts wait for it. Directly behind the end
  of another prompt, the shown one's ``execution_start``, ``executing`` and newest ``progress_state`` are told
  again;
- the end of a prompt that never began (canceled, expired) waits until the shown one ends or is given back.
  ComfyUI says nothing of a prompt that leaves its queue, and some clients lose the running one by a word of
  another or by a second ``execution_start``.

A result (``executed``, or a picture that exists as a message only) is told once in a run. What was not told
when the prompt ends is taken from the job's record.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from comfy_fleet.domain.jobs.client_messages import ClientMessage, execution_start

MOST_HELD_BYTES = 1024 * 1024
"""Results of a prompt that is not shown which are kept in memory; the rest is told at its end."""

MOST_HELD_WORDS = 16
MOST_WORD_BYTES = 64 * 1024
"""What nodes of extensions say while their prompt is not shown: how many kinds of messages (the
newest of each), and how large."""

MOST_HELD_ENDS = 100
"""Ends of prompts that never began which wait for the shown one's; of more, the oldest is told."""

ResultKey: TypeAlias = tuple[str, int | None]
"""A node of the graph, and a picture's place among those that the node sends; None for ``executed``."""


class Topic(Enum):
    """What a message is about, as far as it matters here."""

    START = auto()
    CACHED = auto()
    EXECUTING = auto()
    PROGRESS_STATE = auto()
    RESULT = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """A message about a prompt that runs, in its client's words.

    Attributes:
        run: The run that it is about.
        key: Which result it tells; of an ``executing``, the node and None; of an extension's own message,
            its type and None.
    """

    run: str
    topic: Topic
    message: ClientMessage
    key: ResultKey | None = None


@dataclass(frozen=True, slots=True)
class RecordedResult:
    """A result as the job's record has it.

    Attributes:
        before: The ``executing`` that a picture's receiver must have got before it.
    """

    key: ResultKey
    message: ClientMessage
    before: ClientMessage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEnd:
    """The end of a prompt, from its job's record.

    Attributes:
        run: Its last run; empty if it never began.
        start: The start of that run, if it was not told. One that never began is told as begun where the
            client takes another for the running one: older editors forget the nodes of that one as soon as
            any prompt leaves the queue.
        results: All of its results.
        last: The messages that tell the end.
    """

    run: str
    start: ClientMessage | None
    results: Sequence[RecordedResult] = ()
    last: Sequence[ClientMessage]


@dataclass(slots=True)
class _Prompt:
    """What has been heard of one prompt's present run."""

    order: int = 0
    run: str = ""
    over: str = ""  # the last run that was given back
    start: ClientMessage | None = None
    started: bool = False  # whether the client was told so
    cached: bool = False
    executing: ClientMessage | None = None
    node: str | None = None  # that computes
    told_executing: ClientMessage | None = None
    state: ClientMessage | None = None
    told: set[ResultKey] = field(default_factory=set)
    held: list[ClientMessage] = field(default_factory=list)
    held_bytes: int = 0
    words: dict[str, ClientMessage] = field(default_factory=dict)  # of extensions' nodes, by type

    def hold(self, one: ClientMessage) -> None:
        self.held.append(one)
        self.held_bytes += len(one.data)

    def in_turn(self, node: str, place: int) -> bool:
        """Return whether a picture follows what its receiver must have got before it."""
        return node == self.node and (place == 0 or (node, place - 1) in self.told)

    def begin(self, run: str, *, order: int = 0) -> None:
        """Forget the earlier run: the next one starts over."""
        self.run, self.order = run, order
        self.start = self.executing = self.told_executing = self.state = None
        self.node, self.started, self.cached = None, False, False
        self.told, self.held, self.held_bytes, self.words = set(), [], 0, {}


class ShownPrompt:
    """What one client is told. Jobs are given by their ids, which the client never sees.

    Every method returns what is to be sent, in this order.

    Attributes:
        shown: The job whose prompt is shown, or None.
    """

    def __init__(self) -> None:
        self.shown: str | None = None
        self._prompts: dict[str, _Prompt] = {}
        self._held_ends: dict[str, PromptEnd] = {}  # empty while nothing is shown
        self._active: str | None = None  # the job that the client takes for the running one
        self._count = 0

    @property
    def held_ends(self) -> tuple[str, ...]:
        """The jobs whose end waits for the shown one's, oldest first."""
        return tuple(self._held_ends)

    def holds_end(self, job: str, run: str) -> bool:
        """Return whether a prompt's end is to wait; ``run`` is its last run, empty if it never began."""
        return not run and self.shown not in (None, job)

    def drop_held_ends(self) -> tuple[str, ...]:
        """Forget the ends that wait, since nobody is there to be told; return their jobs, oldest first."""
        dropped = self.held_ends
        self._held_ends = {}
        return dropped

    def told(self, job: str, run: str) -> frozenset[ResultKey]:
        """Return which results of a run were told, or will be without the job's record."""
        prompt = self._prompts.get(job)
        return frozenset(prompt.told) if prompt is not None and prompt.run == run else frozenset()

    def heard(self, job: str, prompt_id: str, heard: PromptMessage, at: float) -> list[ClientMessage]:
        """Take a message of a prompt that runs.

        Args:
            job: The job.
            prompt_id: What the client calls it.
            heard: The message.
            at: The time in Unix seconds.
        """
        prompt = self._prompts.get(job)
        if prompt is None:
            prompt = self._prompts[job] = _Prompt()
        if heard.run == prompt.over:
            return []
        if heard.run != prompt.run:
            self._count += 1
            prompt.begin(heard.run, order=self._count)
        shown = self.shown in (None, job)
        news = _note(prompt, heard, shown=shown)
        if prompt.start is None:  # it got lost, or the client came after it
            prompt.start = execution_start(prompt_id, at)
        if not shown:
            return []
        self.shown = job
        if not prompt.started:
            told = self._told_anew(job)
            return [*told, heard.message] if news and heard.message not in told else told
        if not news:
            return []
        if heard.topic is Topic.EXECUTING:
            prompt.told_executing = heard.message
        return [heard.message]

    def runs(self, job: str, run: str) -> None:
        """Note that a run goes on: what said that it was given back was old news."""
        prompt = self._prompts.get(job)
        if prompt is not None and prompt.over == run:
            prompt.over = ""

    def given_back(self, job: str) -> list[ClientMessage]:
        """Note that a prompt's run ended and the prompt waits again; its client is told of no end."""
        prompt = self._prompts.get(job)
        if prompt is None:
            return []
        if prompt.run:
            prompt.over = prompt.run
        prompt.begin("")
        if self.shown != job:
            return []
        return self._next()

    def ended(self, job: str, end: PromptEnd) -> list[ClientMessage]:
        """Take the end of a prompt; it is forgotten once it is told."""
        if end.last and self.holds_end(job, end.run):
            self._prompts.pop(job, None)
            self._held_ends[job] = end
            if len(self._held_ends) <= MOST_HELD_ENDS:
                return []
            job = next(iter(self._held_ends))
            end = self._held_ends.pop(job)
        out = self._told_end(job, end)
        if self.shown == job:
            return out + self._next()
        return out + self.again() if out else []

    def again(self) -> list[ClientMessage]:
        """Return what shows the shown prompt to a client that has forgotten it."""
        self._active = self.shown
        if self.shown is None:
            return []
        prompt = self._prompts[self.shown]
        return [one for one in (prompt.start, prompt.executing, prompt.state) if one is not None]

    def apart(self, one: ClientMessage) -> list[ClientMessage]:
        """Take a message about a prompt that is no client's: it must not disturb the shown one."""
        return [one] if self.shown is None else []

    def _next(self) -> list[ClientMessage]:
        """Tell the ends that had to wait, and show the prompt that runs for the longest time, if any."""
        self.shown = None
        held, self._held_ends = self._held_ends, {}
        out = [one for job, end in held.items() for one in self._told_end(job, end)]
        running = [(prompt.order, job) for job, prompt in self._prompts.items() if prompt.start is not None]
        if running:
            self.shown = min(running)[1]
            out += self._told_anew(self.shown)
        return out

    def _told_end(self, job: str, end: PromptEnd) -> list[ClientMessage]:
        prompt = self._prompts.pop(job, None) or _Prompt()
        if end.run != prompt.run:
            prompt.begin(end.run)
        prompt.start = prompt.start or end.start
        out: list[ClientMessage] = []
        if not prompt.started and prompt.start is not None and (end.run or self._active not in (None, job)):
            out += self._begun(job, prompt)
        for result in end.results:
            if result.key in prompt.told:
                continue
            if result.before is not None and result.before != prompt.told_executing:
                prompt.told_executing = result.before
                out.append(result.before)
            out.append(result.message)
        out += end.last
        if end.last:
            self._active = None
        return out

    def _begun(self, job: str, prompt: _Prompt) -> list[ClientMessage]:
        """Return a prompt's start, and what was held back."""
        self._active = job
        out = [*([] if prompt.start is None else [prompt.start]), *prompt.held]
        prompt.started, prompt.held, prompt.held_bytes = True, [], 0
        return out

    def _told_anew(self, job: str) -> list[ClientMessage]:
        """Return a prompt's start, what was held back, and where it is now."""
        prompt = self._prompts[job]
        out = self._begun(job, prompt)
        if prompt.executing is not None and prompt.executing != prompt.told_executing:
            prompt.told_executing = prompt.executing
            out.append(prompt.executing)
        if prompt.state is not None:
            out.append(prompt.state)
        out += prompt.words.values()
        prompt.words = {}
        return out


def _note(prompt: _Prompt, heard: PromptMessage, *, shown: bool) -> bool:
    """Return whether a message is news: what is told again for late listeners is not."""
    one = heard.message
    match heard.topic:
        case Topic.START:
            if prompt.start is not None:
                return False
            prompt.start = one
        case Topic.CACHED:
            if prompt.cached:
                return False
            prompt.cached = True
            if not shown:
                prompt.hold(one)
        case Topic.EXECUTING:
            node = None if heard.key is None else heard.key[0]
            if prompt.executing == one or (node is not None and node == prompt.node):
                return False
            prompt.executing, prompt.node = one, node
            prompt.words = {}  # what the one before had to say is over
        case Topic.PROGRESS_STATE:
            prompt.state = one
        case Topic.RESULT if heard.key is not None:
            node, place = heard.key
            if heard.key in prompt.told:
                return False
            if place is not None and not prompt.in_turn(node, place):
                return False  # something got lost before it: it is told at the end
            if not shown:
                if prompt.held_bytes + len(one.data) > MOST_HELD_BYTES:
                    return False
                if place is not None and prompt.executing not in (None, prompt.told_executing):
                    prompt.told_executing = prompt.executing
                    prompt.hold(prompt.executing)
                prompt.hold(one)
            prompt.told.add(heard.key)
        case Topic.OTHER if heard.key is not None and not shown:
            known = heard.key[0] in prompt.words or len(prompt.words) < MOST_HELD_WORDS
            if known and len(one.data) <= MOST_WORD_BYTES:
                prompt.words[heard.key[0]] = one
    return True
