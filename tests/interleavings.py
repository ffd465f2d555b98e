"""Random orders of what eight runs of one client's prompts say, and what ComfyUI's editor should show of it.

The messages are made by :class:`comfy_fleet.domain.jobs.shown_prompt.ShownPrompt`. What the editor should
show is worked out independently of it.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

from comfy_fleet.domain.jobs import client_messages
from comfy_fleet.domain.jobs.client_messages import ClientMessage
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.jobs.shown_prompt import (
    PromptEnd,
    PromptMessage,
    RecordedResult,
    ResultKey,
    ShownPrompt,
    Topic,
)
from comfy_fleet.services.job_frames import JobFrames, prompt_end
from tests.factories import running_job

PROMPTS = 8
NODES = ("1", "2", "3")
PICTURES = "2"  # the node that sends its pictures as messages
STEPS = 4
ENDS = ("execution_success", "execution_error", "execution_interrupted")


def said(type_: str, prompt: str, **data: Any) -> ClientMessage:
    return client_messages.message(type_, {"prompt_id": prompt, **data})


def picture(place: int) -> ClientMessage:
    return ClientMessage(struct.pack(">II", 1, 1) + b"\xff\xd8\xff\xd9" + bytes([place]), text=False)


@dataclass
class Script:
    """What happens to one prompt, and what of it matters for the editor."""

    job: str
    prompt: str
    events: list[PromptMessage | PromptEnd | None]  # None: its run is given back
    newest: dict[str, Any] | None = None
    run: str = ""
    began: int = 0


@dataclass
class Interleaving:
    """One random order of eight prompts' events: frames, and after each event what the editor should show."""

    random: Random
    scripts: list[Script] = field(default_factory=list)
    machine: ShownPrompt = field(default_factory=ShownPrompt)
    live: dict[str, bool] = field(default_factory=dict)  # prompts that are not over, and whether they run
    shown: Script | None = None
    active: str | None = None
    before: set[str] = field(default_factory=set)  # whose progress may still stand
    executed: dict[str, set[str]] = field(default_factory=dict)
    ends: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lossy = self.random.random() < 0.3
        for number in range(PROMPTS):
            prompt = str(UUID(int=number << 120 | self.random.getrandbits(112), version=4))
            self.scripts.append(Script(f"job{number}", prompt, list(self._events(number, prompt, lossy))))
            self.live[prompt] = False

    def begin(self) -> dict[str, Any]:
        return {"prompts": {script.prompt: list(NODES) for script in self.scripts}}

    def steps(self) -> Iterator[tuple[list[ClientMessage], dict[str, Any]]]:
        """Yield the messages of each step, and what the editor should show then."""
        left = [script for script in self.scripts if script.events]
        count = 0
        while left:
            script = self.random.choice(left)
            event = script.events.pop(0)
            if not script.events:
                left.remove(script)
            count += 1
            was = self.shown
            told = self._take(script, event, count)
            self._believe(told)
            shown = self.shown
            if (self.machine.shown or "") != (shown.job if shown else ""):
                raise AssertionError(f"{self.machine.shown} is shown instead of {shown and shown.job}")
            if shown is not was:
                self.before |= {was.prompt} if was else set()
            if shown is not None:
                self.active = shown.prompt
                if shown.newest is not None:
                    self.before = set()
            wanted = {
                "step": count,
                "sent": [_brief(one) for one in told],
                "active": self.active,
                "progress_of": sorted({self.active or "", *self.before}),
                "progress": shown.newest if shown else None,
                "nodes": sorted(NODES),
                "executed": sorted(self.executed.get(self.active or "", ())),
                "ends": self.ends,
            }
            yield told, wanted

    def _take(
        self, script: Script, event: PromptMessage | PromptEnd | None, count: int
    ) -> list[ClientMessage]:
        if isinstance(event, PromptMessage):
            if event.run != script.run:
                script.run, script.began, script.newest = event.run, count, None
            if event.topic is Topic.PROGRESS_STATE:
                script.newest = json.loads(event.message.data)["data"]["nodes"]
            self.live[script.prompt] = True
            self.shown = self.shown or script
            return self.machine.heard(script.job, script.prompt, event, 1.0)
        script.run, script.began, script.newest = "", 0, None
        if event is None:
            self.live[script.prompt] = False
            told = self.machine.given_back(script.job)
        else:
            del self.live[script.prompt]
            told = self.machine.ended(script.job, event)
        if self.shown is script:
            running = [(one.began, one) for one in self.scripts if one.began]
            self.shown = min(running, key=lambda pair: pair[0])[1] if running else None
        return told

    def _believe(self, told: list[ClientMessage]) -> None:
        """Note what the editor must know after these messages."""
        for one in told:
            if not one.text:
                continue
            message = json.loads(one.data)
            type_, data = message["type"], message["data"]
            prompt = data["prompt_id"]
            if type_ == "execution_start" and self.active != prompt:
                self.active = prompt
                self.executed.setdefault(prompt, set())
            elif type_ == "executed":
                self.executed.setdefault(prompt, set()).add(data["node"])
            elif type_ in ENDS:
                self.ends.setdefault(prompt, []).append(type_)
                self.before.add(prompt)
                self.active = None

    def _events(self, number: int, prompt: str, lossy: bool) -> Iterator[PromptMessage | PromptEnd | None]:
        random = self.random
        kind = random.choices(("ran", "canceled first", "given back", "unheard"), (64, 16, 16, 4))[0]
        last = random.choice(ENDS)
        run = f"run{number}"
        if kind == "given back":
            told = [one for one in self._run(f"{run}-", prompt) if not (lossy and random.random() < 0.2)]
            yield from told[: random.randint(1, len(told))]
            yield None
        if kind == "canceled first" or (kind == "given back" and random.random() < 0.3):
            job = running_job(status=JobStatus.CANCELED, prompt_id=prompt)
            yield prompt_end(job, {}, JobFrames(prompt), metadata=False, live=None, at=1.0)
            return
        if kind != "unheard":
            for one in self._run(run, prompt):
                if not (lossy and random.random() < 0.2):
                    yield one
        results = [RecordedResult((node, None), client_messages.executed(prompt, node, {})) for node in NODES]
        yield PromptEnd(
            run=run,
            start=client_messages.execution_start(prompt, 1.0),
            results=results if last == "execution_success" else [],
            last=_last(prompt, last),
        )

    def _run(self, run: str, prompt: str) -> Iterator[PromptMessage]:
        def tell(topic: Topic, message: ClientMessage, key: ResultKey | None = None) -> PromptMessage:
            return PromptMessage(run, topic, message, key)

        yield tell(Topic.START, client_messages.execution_start(prompt, 1.0))
        yield tell(Topic.CACHED, said("execution_cached", prompt, nodes=[]))
        states: dict[str, Any] = {}
        for node in NODES:
            yield tell(Topic.EXECUTING, client_messages.executing(prompt, node), (node, None))
            for step in range(self.random.randint(0, STEPS)):
                about = {"value": step, "max": STEPS, "node_id": node, "real_node_id": node}
                more = {"display_node_id": node, "parent_node_id": None, "prompt_id": prompt}
                states = {**states, node: {**about, **more, "state": "running"}}
                yield tell(Topic.PROGRESS_STATE, said("progress_state", prompt, nodes=states))
                yield tell(Topic.OTHER, said("progress", prompt, value=step, max=STEPS, node=node))
            if node == PICTURES:
                for place in range(2):
                    yield tell(Topic.RESULT, picture(place), (node, place))
            yield tell(Topic.RESULT, client_messages.executed(prompt, node, {}), (node, None))
            if node in states:
                states = {**states, node: {**states[node], "state": "finished"}}
                yield tell(Topic.PROGRESS_STATE, said("progress_state", prompt, nodes=states))


def _last(prompt: str, type_: str) -> list[ClientMessage]:
    about: dict[str, Any] = {"timestamp": 1, "node_id": "1", "node_type": "A", "executed": []}
    if type_ == "execution_error":
        about |= {"exception_message": "no", "exception_type": "ValueError", "traceback": []}
        about |= {"current_inputs": {}, "current_outputs": []}
    return [said(type_, prompt, **about), client_messages.left(prompt)]


def _brief(one: ClientMessage) -> str:
    if not one.text:
        return "picture"
    message = json.loads(one.data)
    return f"{message['type']} {message['data']['prompt_id'][:8]} {message['data'].get('node', '')}".strip()
