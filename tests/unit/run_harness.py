"""A node without sockets: plays ComfyUI's side of a run in virtual time, truthfully."""

import heapq
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from comfy_fleet.domain.jobs.outputs import InlineBytes, OutputItem
from comfy_fleet.domain.jobs.run import Run, RunLimits
from comfy_fleet.domain.jobs.run_messages import (
    Action,
    AskFailed,
    AskFailure,
    AskHistory,
    AskQueue,
    Binary,
    CancelRequested,
    Collect,
    DeletePending,
    Event,
    Finish,
    Frame,
    FreeElsewhere,
    HistoryAnswered,
    Interrupt,
    InterruptSent,
    Left,
    LookElsewhere,
    Opened,
    PostAnswered,
    PostPrompt,
    PostUnknown,
    QueueAnswered,
    QueueState,
    Report,
    RunResult,
    SocketClosed,
    Tick,
)

RECORDINGS = Path(__file__).parents[1] / "recordings"
LIMITS = RunLimits(silence_s=600, run_s=3600)
Tell: TypeAlias = Literal["ok", "answer lost", "not heard"]
RUN = "7c6bfcb2-dd89-4093-9184-675cc1c94f75"
CANCEL, CLOSED, TICK = CancelRequested(), SocketClosed("reset"), Tick()
PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)


def recording(name: str) -> dict[str, Any]:
    """One recorded exchange with a real server."""
    value: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text())
    return value


def request_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded body of POST /prompt."""
    value: dict[str, Any] = record["http"][0]["request"]["json"]
    return value


def events_of(record: Mapping[str, Any]) -> list[Frame | Binary]:
    """The recorded frames; of binary ones only the head was recorded."""
    events: list[Frame | Binary] = []
    for entry in record["ws"]:
        if "text" in entry:
            events.append(Frame(entry["text"]["type"], entry["text"]["data"]))
        elif "binary_head_hex" in entry:
            events.append(Binary(bytes.fromhex(entry["binary_head_hex"])))
    return events


def history_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded history entry."""
    run = request_of(record)["prompt_id"]
    value: dict[str, Any] = next(
        call["response"]["body"][run]
        for call in record["http"]
        if call["request"]["path"].startswith("/history/")
    )
    return value


def accepted(run: str) -> PostAnswered:
    return PostAnswered(200, {"prompt_id": run, "number": 1, "node_errors": {}})


@dataclass
class Log:
    """What a run did, sorted."""

    actions: list[Action] = field(default_factory=list)

    def add(self, actions: Iterable[Action]) -> list[Action]:
        new = list(actions)
        self.actions += new
        return new

    def of(self, *types: type) -> list[Any]:
        return [action for action in self.actions if isinstance(action, types)]

    @property
    def collected(self) -> list[OutputItem]:
        return [item for action in self.of(Collect) for item in action.items]

    @property
    def left(self) -> tuple[OutputItem, ...]:
        (action,) = self.of(Left)
        items: tuple[OutputItem, ...] = action.items
        return items

    @property
    def verdict(self) -> RunResult:
        (action,) = self.of(Finish)
        verdict: RunResult = action.verdict
        return verdict

    def check(self) -> None:
        """What holds for every run that is over."""
        verdict = self.verdict
        assert isinstance(self.actions[-1], Finish)
        assert len(self.of(PostPrompt)) <= 1
        ids = [item.id for item in self.collected]
        assert len(ids) == len(set(ids)), "collected twice"
        if verdict.kind == "succeeded":
            assert isinstance(self.actions[-2], Left)
            assert {item.id for item in self.left} == set(ids), "manifest and collected items differ"
        else:
            assert not self.of(Left)
        if verdict.kind in ("succeeded", "canceled"):
            assert verdict.error is None
        else:
            assert verdict.error is not None
        values = [report.progress.value for report in self.of(Report)]
        assert values == sorted(values), "progress fell"
        assert all(0 <= value <= 1 for value in values)
        if verdict.kind == "succeeded":
            assert values[-1] == 1


@dataclass
class World:
    """One run against a node that plays a script of frames.

    Attributes:
        run: The machine.
        script: What the node sends, one frame every ``beat_s``; the last is ``executing {node: null}``.
        history: The entry it has once it is over.
        deliver: Says when a frame arrives: delays after it was sent, none if it is lost.
        post: What becomes of the POST: the answer, or PostUnknown with or without the prompt on the node.
        faults: What becomes of a question: None is answered truthfully.
        tells: What becomes of an order to delete.
        free_elsewhere: Whether another node is free.
        began: How often the prompt began.
    """

    run: Run
    run_id: str
    script: Sequence[Frame | Binary]
    history: Mapping[str, Any]
    post: PostAnswered | PostUnknown
    deliver: Callable[[int], Sequence[float]] = lambda _: (0.0,)
    faults: Callable[[], AskFailure | None] = lambda: None
    tells: Callable[[], Tell] = lambda: "ok"
    free_elsewhere: Callable[[], bool] = lambda: False
    reached: bool = True
    pending_s: float = 0.02
    beat_s: float = 0.01
    latency_s: float = 0.004
    deaf_s: float = 0.0
    dies_at: float | None = None
    now: float = 1000.0
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self.state: QueueState = "absent"
        self._entry: Mapping[str, Any] | None = None
        self._generation = 0
        self._started_at = 0.0
        self.began = 0
        self.socket = True

    def at(self, in_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + in_s, next(self._number), what))

    def feed(self, event: Event) -> None:
        for action in self.log.add(self.run.handle(event, self.now)):
            self._carry_out(action)

    def play(self) -> Log:
        """Let time pass until the run is over."""
        for _ in range(20_000):
            if self.log.of(Finish):
                assert self.run.handle(CANCEL, self.now) == []
                self.log.check()
                return self.log
            tick = self.run.next_tick()
            if self._heap and (tick is None or self._heap[0][0] <= tick):
                self.now, _, what = heapq.heappop(self._heap)
                what()
            else:
                assert tick is not None, "the run waits for nothing"
                self.now = max(self.now, tick)
                self.feed(TICK)
        raise AssertionError("the run never ends")

    @property
    def dead(self) -> bool:
        return self.dies_at is not None and self.now >= self.dies_at

    def close(self) -> None:
        if self.socket:
            self.socket = False
            self.feed(CLOSED)

    def _carry_out(self, action: Action) -> None:
        match action:
            case PostPrompt():
                self.at(self.latency_s, self._posted)
            case AskQueue():
                self.at(self.latency_s, lambda: self._ask("queue"))
            case AskHistory():
                self.at(self.latency_s, lambda: self._ask("history"))
            case Interrupt():
                self.at(self.latency_s, self._interrupt)
            case DeletePending():
                self.at(self.latency_s, self._delete)
            case LookElsewhere():
                if self.free_elsewhere():
                    self._reply(FreeElsewhere())
            case _:
                pass

    def _reply(self, event: Event) -> None:
        """Answer whoever has the run now; one that has died by then hears nothing."""
        asker = self.run
        self.at(self.latency_s, lambda: self.feed(event) if self.run is asker else None)

    def _posted(self) -> None:
        clean = isinstance(self.post, PostAnswered) and self.post.status == 200
        if not self.dead and (clean or (isinstance(self.post, PostUnknown) and self.reached)):
            self.state = "pending"
            self.at(self.pending_s, self._start)
        self._reply(self.post)

    def _start(self) -> None:
        if self.state == "pending" and not self.dead:
            self.state = "running"
            self.began += 1
            self._started_at = self.now
            self._generation += 1
            self._send(0, self._generation, self.script, self.history)

    def _send(
        self, index: int, generation: int, script: Sequence[Frame | Binary], entry: Mapping[str, Any]
    ) -> None:
        if generation != self._generation or self.dead:
            return
        if index == len(script) - 1:
            self.state, self._entry = "absent", entry
        frame = script[index]
        for delay in self.deliver(index):
            self.at(delay, lambda: self._arrive(frame))
        if index + 1 < len(script):
            self.at(self.beat_s, lambda: self._send(index + 1, generation, script, entry))

    def _arrive(self, frame: Frame | Binary) -> None:
        if self.socket and not self.dead:
            self.feed(frame)

    def _ask(self, what: str) -> None:
        fault = self.faults()
        if self.dead:
            fault = fault or "node_down"
        answer: Event
        if fault is not None:
            answer = AskFailed(what, fault)
        elif what == "queue":
            answer = QueueAnswered(self.state)
        else:
            answer = HistoryAnswered(self._entry)
        self._reply(answer)

    def _interrupt(self) -> None:
        heard = self.now - self._started_at >= self.deaf_s
        if self.state == "running" and heard and not self.dead:
            self._generation += 1
            data = {"prompt_id": self.run_id, "node_id": "1", "node_type": "X", "executed": []}
            script = [
                Frame("execution_interrupted", data),
                Frame("executing", {"node": None, "prompt_id": self.run_id}),
            ]
            entry = {
                "outputs": {},
                "status": {
                    "status_str": "error",
                    "completed": False,
                    "messages": [["execution_interrupted", data]],
                },
            }
            self._send(0, self._generation, script, entry)
        self._reply(InterruptSent(ok=not self.dead))

    def _delete(self) -> None:
        tell = "not heard" if self.dead else self.tells()
        if self.state == "pending" and tell != "not heard":
            self.state = "absent"
        self._reply(InterruptSent(ok=tell == "ok"))

    def take_over(self, run: Run) -> None:
        """Let another dispatcher go on with the run; answers to the old one get nowhere."""
        self.socket = False
        self.run, self.log = run, Log()
        self.feed(Opened())


def machine(record: Mapping[str, Any], **options: Any) -> Run:
    request = request_of(record)
    return Run(
        run_id=request["prompt_id"],
        graph=request["prompt"],
        limits=options.pop("limits", LIMITS),
        now=0.0,
        **options,
    )


def started(name: str = "success", **options: Any) -> tuple[Run, list[Frame | Binary]]:
    """A run whose POST was accepted, and the frames that would come."""
    record = recording(name)
    run = machine(record, **options)
    assert run.handle(Opened(), 0.0) == [PostPrompt()]
    assert run.handle(accepted(request_of(record)["prompt_id"]), 0.01) == []
    return run, events_of(record)


def tick(run: Run) -> tuple[float, list[Any]]:
    """Let time pass until the run wants to hear of it."""
    at = run.next_tick()
    assert at is not None
    return at, run.handle(TICK, at)


def files(items: Sequence[OutputItem]) -> set[tuple[str, str, int, str]]:
    return {(*item.id, item.name) for item in items if not isinstance(item.source, InlineBytes)}


def idle(run: str = RUN) -> Frame:
    return Frame("executing", {"node": None, "prompt_id": run})


def frame(type_: str, **data: Any) -> Frame:
    return Frame(type_, {"prompt_id": RUN, **data})


def is_idle(event: Frame | Binary) -> bool:
    return isinstance(event, Frame) and event.type == "executing" and event.data["node"] is None
