"""What a member of a merged prompt sees of it: its own nodes and results, as if it ran alone.

Frames and history of the prompt go in under the id of the run that was posted, and come out under the
member's own run, with the ids of its own graph.
"""

import json
from collections.abc import Mapping
from typing import Any

from comfy_fleet.domain.jobs.batch_part import BatchPart
from comfy_fleet.domain.jobs.frames import parse_binary, with_node
from comfy_fleet.domain.jobs.run_messages import Binary, Frame

_NODE_KEYS = ("node", "node_id")
_OTHER_KEYS = ("display_node", "display_node_id", "parent_node_id", "real_node_id")
_ENDS = frozenset({"execution_error", "execution_interrupted"})
NOT_SPLIT = "BatchNotSplit"
"""The type of the error that a member gets if its pictures can't be told from the others'."""


class MemberView:
    """One member's view.

    Attributes:
        split: Whether its results could be told from the others'.

    Args:
        run: The member's run.
        prompt: The run under whose id the prompt was posted.
        ids: Its own ids by those of the merged graph. None: they are the same, and all nodes are its own.
        part: Which pictures of a batch are its own; None: all that its nodes return.
    """

    def __init__(
        self, *, run: str, prompt: str, ids: Mapping[str, str] | None = None, part: BatchPart | None = None
    ) -> None:
        self._run = run
        self._prompt = prompt
        self._ids = ids
        self._part = part
        self._current: str | None = None
        self.split = True

    def frame(self, frame: Frame | Binary) -> Frame | Binary | None:
        """Return a frame of the prompt as the member sees it; None if it is not about the member."""
        return self._binary(frame) if isinstance(frame, Binary) else self._text(frame)

    def history(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the prompt's history entry with the member's outputs only."""
        made = dict(entry)
        for name in ("outputs", "meta"):
            had = entry.get(name)
            if isinstance(had, Mapping):
                owns = ((self.own(str(node)), value) for node, value in had.items())
                made[name] = {
                    own: self._picked(value) if name == "outputs" else value
                    for own, value in owns
                    if own is not None
                }
        if not self.split:
            made["status"] = {"status_str": "error", "messages": [["execution_error", self._unsplit()]]}
        return made

    def own(self, node: str) -> str | None:
        """Return the member's own id of a node of the merged prompt; None if it is not the member's.

        A node that grew while the prompt ran has the id of the node that it is part of, a dot, and more.
        """
        if self._ids is None:
            return node
        end = len(node)
        while end > 0:
            if (own := self._ids.get(node[:end])) is not None:
                return own + node[end:]
            end = node.rfind(".", 0, end)
        return None

    def _text(self, frame: Frame) -> Frame | None:
        data = dict(frame.data)
        prompt = data.get("prompt_id")
        if prompt is None:
            # Old servers don't say whose progress it is.
            return None if frame.type == "progress" and not self._at_own() else frame
        if prompt != self._prompt:
            return frame
        data["prompt_id"] = self._run
        for key in _NODE_KEYS:
            node = data.get(key)
            if isinstance(node, str):
                if frame.type in ("executing", "progress"):
                    self._current = node
                own = self.own(node)
                if own is None and frame.type not in _ENDS:
                    return None
                data[key] = own if own is not None else node
        self._others(data)
        match frame.type:
            case "execution_cached" if isinstance(data.get("nodes"), list):
                owns = (self.own(node) for node in data["nodes"] if isinstance(node, str))
                data["nodes"] = [own for own in owns if own is not None]
            case "progress_state" if isinstance(data.get("nodes"), Mapping):
                data["nodes"] = self._states(data["nodes"])
            case "executed":
                data["output"] = self._picked(data.get("output"))
            case "execution_success" if not self.split:
                return _frame("execution_error", self._unsplit())
        return _frame(frame.type, data)

    def _states(self, nodes: Mapping[str, Any]) -> dict[str, Any]:
        states = {}
        for node, state in nodes.items():
            if isinstance(state, Mapping):
                if state.get("state") == "running":
                    self._current = node
                own = self.own(node)
                if own is not None:
                    told = {**state, "prompt_id": self._run, "node_id": own}
                    self._others(told)
                    states[own] = told
        return states

    def _others(self, data: dict[str, Any]) -> None:
        for key in _OTHER_KEYS:
            node = data.get(key)
            if isinstance(node, str):
                own = self.own(node)
                data[key] = own if own is not None else node

    def _at_own(self) -> bool:
        mine = self._part is None or self._part.first == 0  # a batch's preview shows its first picture
        return mine and self._current is not None and self.own(self._current) is not None

    def _binary(self, frame: Binary) -> Binary | None:
        read = parse_binary(frame.data)
        node = getattr(read, "node_id", None)
        if node is None:
            return frame if self._at_own() else None
        own = self.own(node)
        if own is None or (self._part is not None and self._part.first > 0):
            return None
        return Binary(with_node(frame.data, own, run=self._run))

    def _picked(self, output: Any) -> Any:
        """Return what of a node's output is the member's."""
        if self._part is None or not isinstance(output, Mapping):
            return output
        part, made = self._part, {}
        for key, value in output.items():
            if key == "animated":
                made[key] = value
            elif isinstance(value, list) and len(value) == part.size:
                made[key] = value[part.first : part.first + part.count]
            else:
                self.split = False
        return made

    def _unsplit(self) -> dict[str, Any]:
        return {
            "prompt_id": self._run,
            "exception_type": NOT_SPLIT,
            "exception_message": "the pictures of a batch of several jobs can't be told apart",
        }


def _frame(type_: str, data: Mapping[str, Any]) -> Frame:
    return Frame(type_, data, json.dumps({"type": type_, "data": data}).encode())
