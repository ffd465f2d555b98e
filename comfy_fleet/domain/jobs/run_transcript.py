"""What the frames of one run have shown so far.

Frames of other prompts are ignored; unknown types and fields are normal. What is kept is a growing set of
facts, so a frame that comes twice or late changes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from comfy_fleet.domain.jobs.frames import Picture, parse_binary, prompt_of
from comfy_fleet.domain.jobs.outputs import OutputItem, find_outputs, frame_output
from comfy_fleet.domain.jobs.progress import Meter
from comfy_fleet.domain.jobs.raw_ui import RawUi
from comfy_fleet.domain.jobs.run_messages import Frame
from comfy_fleet.domain.jobs.run_results import BLOCKED

MOST_NODES, LONGEST_ID = 20_000, 200
"""Most nodes that are kept though they were not posted: nodes that grow during a run, or made-up ones.
Further ones, and longer ids, are dropped; the history has them."""


class RunTranscript:
    """The facts.

    Attributes:
        frame_nodes: Nodes whose pictures come as binary frames only.
        meter: Progress.
        items: Outputs by their identity, in the order in which they came.
        ui: What the nodes returned for the user interface, unchanged.
        success: ``execution_success`` was seen.
        interrupted: ``execution_interrupted`` was seen.
        error: The data of ``execution_error``.
        idle: The last ``executing {node: null}`` was seen: the prompt has left the node.
        pictured: Node and place of the last binary frame, if it is an output.
    """

    def __init__(
        self,
        run_id: str,
        graph: Mapping[str, Any],
        frame_output_classes: frozenset[str],
        *,
        most_items: int | None = None,
    ) -> None:
        """Begin; at most ``most_items`` outputs are kept."""
        self._id = run_id
        self._most_items = most_items
        self._posted = frozenset(graph)
        self._grown: set[str] = set()
        self._lost = False  # something was not kept
        self.frame_nodes = frozenset(
            id_ for id_, node in graph.items() if _class(node) in frame_output_classes
        )
        self._sinks = _sinks(graph) - self.frame_nodes
        self.meter = Meter(graph)
        self.items: dict[tuple[str, str, int], OutputItem] = {}
        self.ui = RawUi()
        self.success = self.interrupted = self.idle = False
        self.error: Mapping[str, Any] | None = None
        self.pictured: tuple[str, int] | None = None
        self._started = False
        self._begun: set[str] = set()
        self._finished: set[str] = set()
        self._executed: set[str] = set()
        self._current: str | None = None
        self._shown: dict[str, str] = {}

    @property
    def ended(self) -> bool:
        """Whether a frame reported the prompt's end; it leaves the node a moment later."""
        return self.success or self.interrupted or self.error is not None

    @property
    def complete(self) -> bool:
        """Whether no frame of a successful prompt can be missing, so that no history is needed.

        Every node that began must have finished, and every node that nobody reads must have reported its
        outputs; a cached one may not do so.
        """
        return (
            self._started
            and not self._lost
            and self.success
            and bool(self.items)
            and self._begun <= self._finished
            and self._sinks <= self._executed
        )

    def mine(self, frame: Frame) -> bool:
        """Return whether a frame is about this run.

        The websocket is the run's alone, so a `progress` without a prompt (old servers) is its own too.
        """
        prompt = prompt_of(frame)
        return prompt == self._id or (prompt is None and frame.type == "progress")

    def take(self, frame: Frame) -> bool:
        """Note what a frame of this run says; return False for an unknown type."""
        data = frame.data
        match frame.type:
            case "execution_start":
                self._started = True
            case "execution_cached":
                self.meter.cached(_strings(data.get("nodes")))
            case "executing":
                self._executing(data)
            case "progress":
                self._progress(data.get("node"), data)
            case "progress_state":
                self._progress_state(data.get("nodes"))
            case "executed":
                self._outputs(data)
            case "execution_success":
                self.success = True
            case "execution_error":
                # ComfyUI reports a blocked branch with the same type, and goes on.
                if data.get("exception_type") != BLOCKED:
                    self.error = data
            case "execution_interrupted":
                self.interrupted = True
            case _:
                return False
        return True

    def take_ui(self, outputs: object) -> None:
        """Note what nodes returned, from a history entry's ``outputs``."""
        for node, output in outputs.items() if isinstance(outputs, Mapping) else ():
            self.ui.take(str(node), output)

    def take_binary(self, data: bytes | bytearray) -> Picture | None:
        """Keep a picture that is an output; return a preview instead, with its node if known."""
        self.pictured = None
        picture = parse_binary(data)
        if not isinstance(picture, Picture) or picture.prompt_id not in (self._id, None):
            return None
        node = picture.node_id or self._current
        if node is None or node not in self.frame_nodes:
            return replace(picture, node_id=self._shown.get(node, node) if node else None)
        if self._full:
            return None
        index = sum(1 for node_id, _, _ in self.items if node_id == node)
        self.pictured = node, index
        item = frame_output(node, index, picture.content_type, picture.data)
        self.items[item.id] = item
        return None

    @property
    def _full(self) -> bool:
        return self._most_items is not None and len(self.items) >= self._most_items

    def _keeps(self, node: str) -> bool:
        """Return whether facts about a node are kept."""
        if node in self._posted or node in self._grown:
            return True
        if len(node) > LONGEST_ID or len(self._grown) >= MOST_NODES:
            self._lost = True
            return False
        self._grown.add(node)
        return True

    def _executing(self, data: Mapping[str, Any]) -> None:
        node = data.get("node")
        if isinstance(node, str) and self._keeps(node):
            self._begun.add(node)
            self._show(node, data.get("display_node"))
            self._current = node
            self.meter.start(self._shown[node])
        elif node is None:
            self.idle = True

    def _progress(self, node: object, data: Mapping[str, Any]) -> None:
        if isinstance(node, str) and self._keeps(node):
            self._current = node
        self._step(data)

    def _step(self, data: Mapping[str, Any]) -> None:
        value, maximum = data.get("value"), data.get("max")
        if self._current is not None and isinstance(value, int | float) and isinstance(maximum, int | float):
            self.meter.step(self._shown.get(self._current, self._current), value, maximum)

    def _progress_state(self, nodes: object) -> None:
        for node, state in nodes.items() if isinstance(nodes, Mapping) else ():
            if node in self._finished or not isinstance(state, dict) or not self._keeps(node):
                continue
            self._show(node, state.get("display_node_id"))
            if state.get("state") == "finished":
                self._finished.add(node)
                self.meter.done(node)
            elif state.get("state") == "running":
                self._current = node
                self._step(state)

    def _outputs(self, data: Mapping[str, Any]) -> None:
        node = data.get("node")
        if isinstance(node, str) and self._keeps(node):
            self._executed.add(node)
            self.add(find_outputs(node, data.get("output"), run=self._id, most=self._most_items))
            self.ui.take(node, data.get("output"))

    def add(self, items: Iterable[OutputItem]) -> None:
        """Note outputs, up to the limit."""
        for item in items:
            if not self._full:
                self.items.setdefault(item.id, item)

    def _show(self, node: str, display: object) -> None:
        # For a node that another node created while running, the node of the posted graph is shown.
        self._shown[node] = display if isinstance(display, str) and self._keeps(display) else node


def _class(node: object) -> str:
    return str(node.get("class_type", "")) if isinstance(node, Mapping) else ""


def _sinks(graph: Mapping[str, Any]) -> frozenset[str]:
    """Return the nodes that no other node reads."""
    used: set[str] = set()
    for node in graph.values():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        for value in inputs.values() if isinstance(inputs, Mapping) else ():
            if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str):
                used.add(value[0])
    return frozenset(graph) - used


def _strings(value: object) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list | tuple) else []
