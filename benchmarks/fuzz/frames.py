"""What nodes send: frames of their websockets, and their answers."""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz import recordings, values
from benchmarks.fuzz.node_answers import node_answer, node_answers
from benchmarks.fuzz.recordings import RUN
from benchmarks.fuzz.target import Target, right
from comfy_fleet.adapters.comfyui.answer_limits import MIB, AnswerLimits, decode_within
from comfy_fleet.adapters.comfyui.json_lenient import decode
from comfy_fleet.adapters.comfyui.object_info import ClassReader
from comfy_fleet.adapters.comfyui.system_stats import counted
from comfy_fleet.domain.errors import ConfigError, NodeError, NodeFault
from comfy_fleet.domain.graphs import file_check, graph_problems
from comfy_fleet.domain.graphs.inventory import parse, requirements, spelled
from comfy_fleet.domain.graphs.object_info import unpack
from comfy_fleet.domain.graphs.object_info_union import AlikeNodes, union
from comfy_fleet.domain.jobs import frames
from comfy_fleet.domain.jobs.outputs import InlineBytes, OutputItem
from comfy_fleet.domain.jobs.run import Run, RunLimits
from comfy_fleet.domain.jobs.run_messages import (
    AskFailed,
    Binary,
    CancelRequested,
    Collect,
    Event,
    Finish,
    Frame,
    FreeElsewhere,
    HistoryAnswered,
    InterruptSent,
    Left,
    Opened,
    PostAnswered,
    PostPrompt,
    PostUnknown,
    QueueAnswered,
    Report,
    SocketClosed,
    Tick,
    Unread,
)
from comfy_fleet.domain.jobs.run_results import read_history

LIMITS = RunLimits(silence_s=60, run_s=600, outputs=50)
GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    "3": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}},
}
_SMALL = AnswerLimits(size=MIB)
_LONGEST = 5000  # events until every run must have ended


class Played:
    """A run that is fed events, and what must hold after each."""

    def __init__(self, *, adopted: bool = False) -> None:
        self.run = Run(run_id=RUN, graph=GRAPH, limits=LIMITS, now=0.0, adopted=adopted)
        self.now = 0.0
        self.done = False
        self._posts = 0
        self._value = 0.0
        self._items: set[tuple[str, str, int]] = set()

    def feed(self, event: Event) -> None:
        """Feed one event and look at what comes out."""
        for action in self.run.handle(event, self.now):
            right(not self.done, f"{action} comes after the end")
            match action:
                case PostPrompt():
                    self._posts += 1
                    right(self._posts == 1, "the prompt is posted twice")
                case Report(progress):
                    right(
                        self._value <= progress.value <= 1, f"progress {progress.value} after {self._value}"
                    )
                    self._value = progress.value
                    json.dumps(progress.value, allow_nan=False)
                case Collect(items):
                    for item in items:
                        right(item.id not in self._items, f"{item.id} is collected twice")
                        self._items.add(item.id)
                        _written(item)
                case Left(items):
                    for item in items:
                        _written(item)
                case Finish(verdict):
                    self.done = True
                    right(
                        (verdict.error is None) == (verdict.kind in ("succeeded", "canceled")), str(verdict)
                    )
                    json.dumps(verdict.details, default=str)
        right(not self.run.misread, self.run.misread)

    def end(self) -> None:
        """Let nothing but time and failures come; the run must end."""
        self.feed(SocketClosed("fuzz"))
        self.feed(PostUnknown("fuzz"))
        for _ in range(_LONGEST):
            if self.done:
                return
            due = self.run.next_tick()
            self.now = max(self.now + 0.001, due if due is not None else self.now + 1)
            for event in (Tick(), QueueAnswered("absent"), HistoryAnswered(None), InterruptSent(ok=True)):
                self.feed(event)
        right(self.done, "the run never ends")


def _written(item: OutputItem) -> None:
    if not isinstance(item.source, InlineBytes):
        right(OutputItem.from_json(json.loads(json.dumps(item.to_json()))) == item, f"{item} changes")


def _began() -> Played:
    played = Played()
    for event in (
        Opened(),
        PostAnswered(200, {"prompt_id": RUN, "node_errors": {}}),
        Frame("execution_start", {"prompt_id": RUN}),
    ):
        played.feed(event)
    return played


def _text_frames(data: bytes) -> None:
    played = _began()
    for line in data.split(b"\n")[:50]:
        frame = frames.frame_of(decode(line), raw=line)
        if frame is not None:
            frames.prompt_of(frame)
            played.feed(frame)
    played.end()


def _binary_frame(data: bytes) -> None:
    frames.parse_binary(data)
    frames.without_metadata(frames.with_metadata(data, {"node_id": "2", "prompt_id": RUN}))
    frames.with_prompt(data, RUN.encode(), b"other")
    frames.with_node(data, "3", run=RUN)
    frames.prompt_of(Binary(data))
    played = _began()
    played.feed(Frame("executing", {"prompt_id": RUN, "node": "3"}))
    played.feed(Binary(data))
    played.feed(Frame("execution_success", {"prompt_id": RUN}))
    played.end()


def _disorder(case: tuple[bool, list[tuple[float, Event]]]) -> None:
    adopted, events = case
    played = Played(adopted=adopted)
    for later_s, event in events:
        played.now += later_s
        played.feed(event)
    played.end()


def _history(data: bytes) -> None:
    with contextlib.suppress(NodeFault):
        answer = decode_within(data, _SMALL, what="/history/x")
        for entry in answer.values() if isinstance(answer, dict) else ():
            if isinstance(entry, Mapping):
                for item in read_history(entry, RUN, 50).items:
                    _written(item)
                played = Played(adopted=True)
                played.feed(Opened())
                played.feed(QueueAnswered("absent"))
                played.feed(HistoryAnswered(entry))
                played.end()


def _object_info(data: bytes) -> None:
    async def read() -> None:
        reader = ClassReader(_SMALL)
        for at in range(0, len(data), 1000):
            await reader.take(data[at : at + 1000])
        inventory = (await reader.end()).inventory({"Old": [{"new_node_id": "SaveImage"}]}, "0.3.64")
        packed = reader.packed()
        if packed is not None:
            classes = unpack(packed.packed)
            other = {name: body.replace(b"a", b"b") for name, body in classes.items()}
            merged = union({_ALIKE[0]: classes, _ALIKE[1]: other})
            for body in merged.values():
                json.loads(body)
        _use(inventory)

    with contextlib.suppress(NodeError):
        _LOOP.run(read())


def _classes(body: Any) -> None:
    """Use an answer that came whole: nothing in it may break what reads graphs."""
    with contextlib.suppress(ConfigError):
        _use(parse(body, replacements=body))


def _use(inventory: Any) -> None:
    for graph in (GRAPH, _KNOWN):
        graph_problems.findings(spelled(graph, inventory), inventory)
        requirements(graph, inventory)
        file_check.saves(graph, inventory)
        file_check.reruns(graph, inventory)


def _system_stats(body: Any) -> None:
    for rss in (None, 0, 10**9):
        with contextlib.suppress(NodeError):
            found = counted(body, rss_bytes=rss)
            json.dumps([found.total, found.used, found.own], allow_nan=False)


_LOOP = asyncio.Runner()
_ALIKE = (
    AlikeNodes(digest="1", comfyui="0.3", nodes=("a",)),
    AlikeNodes(digest="2", comfyui="x", nodes=("b",)),
)
_KNOWN = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 2, "model": ["1", 0], "cfg": "x"}},
}
_FRAMES = [frame for frame in recordings.frames() if isinstance(frame, dict)]
_ENTRIES = [entry for body in recordings.answers("/history") for entry in body.values()]
_STATS = recordings.answer("GET_system_stats")
_TEXTS = [b"\n".join(map(values.written, _FRAMES[at : at + 8])) for at in range(0, len(_FRAMES), 8)]
_HISTORIES = [values.written(body) for body in recordings.answers("/history")]
_CLASSES = [{name: body} for name, body in recordings.classes().items()]
_INFOS = [values.written(one) for one in _CLASSES] + [values.written(recordings.classes(8))]
_EVENTS: st.SearchStrategy[Event] = st.one_of(
    values.changed(_FRAMES).map(lambda one: frames.frame_of(decode(values.written(one))) or Tick()),
    values.changed_bytes(recordings.binary_frames()).map(Binary),
    values.changed(_ENTRIES).map(lambda one: HistoryAnswered(one if isinstance(one, dict) else None)),
    st.builds(
        PostAnswered,
        st.sampled_from([200, 400, 500, 503]),
        values.changed([{"prompt_id": RUN, "node_errors": {"1": {"errors": [{"message": "x"}]}}}]).map(
            lambda one: one if isinstance(one, dict) else None
        ),
        st.text(max_size=10),
    ),
    st.builds(QueueAnswered, st.sampled_from(["running", "pending", "absent"])),
    st.builds(
        AskFailed,
        st.sampled_from(["queue", "history"]),
        st.sampled_from(["unreachable", "node_down", "error", "unusable"]),
        st.text(max_size=5),
    ),
    st.sampled_from(
        [
            *(Opened(), Tick(), Unread(), CancelRequested(), FreeElsewhere(), PostUnknown("x")),
            *(SocketClosed("x"), SocketClosed("x", "too large"), InterruptSent(True), InterruptSent(False)),
        ]
    ),
)

TARGETS = [
    Target(
        name="text-frames",
        group="frames",
        cases=values.changed_bytes(_TEXTS)
        | st.lists(values.changed(_FRAMES), max_size=5).map(
            lambda several: b"\n".join(map(values.written, several))
        ),
        check=_text_frames,
        corpus=_TEXTS,
    ),
    Target(
        name="binary-frames",
        group="frames",
        cases=values.changed_bytes(recordings.binary_frames()),
        check=_binary_frame,
        corpus=recordings.binary_frames(),
    ),
    Target(
        name="disorder",
        group="frames",
        cases=st.tuples(st.booleans(), st.lists(st.tuples(st.floats(0, 100), _EVENTS), max_size=20)),
        check=_disorder,
    ),
    Target(
        name="history",
        group="frames",
        cases=values.changed_json(recordings.answers("/history")),
        check=_history,
        corpus=_HISTORIES,
    ),
    Target(
        name="object-info",
        group="frames",
        cases=values.changed_json(_CLASSES),
        check=_object_info,
        corpus=_INFOS,
    ),
    Target(name="classes", group="frames", cases=values.changed(_CLASSES), check=_classes),
    Target(name="system-stats", group="frames", cases=values.changed([_STATS]), check=_system_stats),
    Target(name="node-answers", group="frames", cases=node_answers(), check=node_answer),
]
