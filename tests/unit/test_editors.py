"""What two versions of ComfyUI's editor show of eight prompts at once, by models of their rules.

``scripts/check-frontends`` plays the same to their compiled code; the models were compared with it.
"""

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.jobs.client_messages import ClientMessage
from tests.interleavings import ENDS, NODES, Interleaving


class Editor:
    """What both versions do with what a websocket tells them.

    Attributes:
        active: The prompt that it takes for the running one.
        prompts: The prompts that it has queued itself, with the nodes of each and whether they are done.
        states: The newest progress of all nodes.
        ends: How each prompt ended.
    """

    def __init__(self, queued: dict[str, list[str]]) -> None:
        self.active: str | None = None
        self.prompts = {prompt: dict.fromkeys(nodes, False) for prompt, nodes in queued.items()}
        self.states: dict[str, Any] = {}
        self.ends: dict[str, list[str]] = {}

    def take(self, one: ClientMessage) -> None:
        if not one.text:
            return
        message = json.loads(one.data)
        type_, data = message["type"], message["data"]
        if type_ == "execution_start":
            self.active = data["prompt_id"]
            self.prompts.setdefault(data["prompt_id"], {})
        elif type_ == "executed" and self.active is not None:
            self.prompts[self.active][data["node"]] = True
        elif type_ == "progress_state":
            self.states = data["nodes"]
        elif type_ == "executing" and data["node"] is None:
            self.left()
        elif type_ in ENDS:
            self.ends.setdefault(data["prompt_id"], []).append(type_)
            self.ended(data["prompt_id"], type_)

    def left(self) -> None:
        """Take an ``executing`` without a node; whose it is, the editor does not look at."""
        raise NotImplementedError

    def ended(self, prompt: str, type_: str) -> None:
        """Take an end."""
        raise NotImplementedError


class Editor127(Editor):
    """1.27.10, of ComfyUI 0.3.64: ``executing`` without a node is the end, and forgets the active prompt."""

    def left(self) -> None:
        if self.active is not None:
            self.prompts.pop(self.active, None)
        self.active = None

    def ended(self, prompt: str, type_: str) -> None:
        if type_ == "execution_interrupted":
            self.states = {}


class Editor149(Editor):
    """1.49.6, of ComfyUI 0.33.0: any end forgets its prompt, and ends the active one."""

    def left(self) -> None:
        self.active = None

    def ended(self, prompt: str, type_: str) -> None:
        self.states = {}
        self.prompts.pop(prompt, None)
        self.active = None


@pytest.mark.parametrize("version", [Editor127, Editor149])
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_an_editor_shows_one_prompt_at_a_time_and_the_end_of_each(version: type[Editor], seed: int) -> None:
    interleaving = Interleaving(Random(seed))
    editor = version(interleaving.begin()["prompts"])
    for told, wanted in interleaving.steps():
        for one in told:
            editor.take(one)
        assert editor.active == wanted["active"], wanted
        assert {state["prompt_id"] for state in editor.states.values()} <= set(wanted["progress_of"]), wanted
        assert wanted["progress"] is None or editor.states == wanted["progress"], wanted
        if editor.active is not None:
            nodes = editor.prompts[editor.active]
            assert sorted(nodes) == list(NODES), wanted
            assert sorted(node for node in nodes if nodes[node]) == wanted["executed"], wanted
        assert editor.ends == wanted["ends"], wanted
    assert {prompt for prompt, ends in editor.ends.items() if len(ends) == 1} == set(
        interleaving.begin()["prompts"]
    )
