"""What Krita AI Diffusion makes of the fleet's messages, by a model of its rules.

It knows one job that is at work, and one or more that wait at the server. A start names the job at work if
that one waits; any other start, also of the one at work, says that none is. Versions from 1.41 on ask for
their pictures on a route that the fleet does not have; what they make of starts and ends holds nevertheless.
"""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.jobs import client_messages
from comfy_fleet.domain.jobs.client_messages import ClientMessage, executed, executing, execution_start
from comfy_fleet.domain.jobs.shown_prompt import (
    PromptEnd,
    PromptMessage,
    RecordedResult,
    ResultKey,
    ShownPrompt,
    Topic,
)

JOBS = 8
LOSS = 0.3
HOW = {"execution_success": "finished", "execution_error": "error", "execution_interrupted": "interrupted"}


class Krita:
    """The plugin: a queue of its own, and a listener.

    Attributes:
        queue: Jobs that it has not submitted yet.
        waiting: Jobs that it takes for waiting at the server.
        active: The job that it takes for being at work.
        reports: What its person was told of each job's end, with the pictures that came with it.
    """

    most_waiting: int
    forgotten: tuple[str, ...]
    """What its person is told of a job of which it lost sight."""

    def __init__(self, jobs: list[str]) -> None:
        self.queue = jobs
        self.waiting: list[str] = []
        self.active: str | None = None
        self.pictures: list[str] = []
        self.reports: dict[str, list[tuple[str, list[str]]]] = {job: [] for job in jobs}

    def submit(self) -> list[str]:
        """Return the jobs that are to be submitted now."""
        more = self.most_waiting - len(self.waiting)
        jobs, self.queue = self.queue[:more], self.queue[more:]
        self.waiting += jobs
        return jobs

    def cancel(self) -> list[str]:
        """Cancel the jobs that wait; return them, for ``POST /queue``."""
        raise NotImplementedError

    def take(self, messages: list[ClientMessage]) -> None:
        for one in messages:
            if one.text:
                told = json.loads(one.data)
                self._take(told["type"], told["data"])
            else:
                self.pictures.append(one.data.decode())

    def _take(self, type_: str, data: dict[str, Any]) -> None:
        prompt = data["prompt_id"]
        if type_ == "execution_start":
            if not self._begin(prompt):
                self.active = None
            else:
                self.pictures = []
        elif type_ == "executed":
            self._concerns(prompt)
        elif type_ in ("execution_error", "execution_interrupted") and self._concerns(prompt):
            self.active = None if self.active == prompt else self.active
            self._report(prompt, HOW[type_])
        elif type_ == "executing" and data["node"] is None and self.active == prompt:
            self.active = None
            self._report(prompt, "finished", self.pictures)

    def _begin(self, prompt: str) -> bool:
        """Take a job for the one at work, if it waits."""
        if prompt not in self.waiting:
            return False
        self.waiting.remove(prompt)
        self.active = prompt
        return True

    def _concerns(self, prompt: str) -> bool:
        """Return whether the listener knows the prompt of a message."""
        raise NotImplementedError

    def _report(self, job: str, how: str, pictures: list[str] | None = None) -> None:
        self.reports[job].append((how, [] if pictures is None else pictures))


class Krita140(Krita):
    """Up to 1.40: it submits all at once. What it has canceled it takes for waiting until it hears more."""

    most_waiting = JOBS
    forgotten = ()

    def cancel(self) -> list[str]:
        return list(self.waiting)

    def _concerns(self, prompt: str) -> bool:
        return prompt == self.active or prompt in self.waiting


class Krita142(Krita):
    """Since 1.42: one waits at most, and any word of it while another is at work interrupts that one."""

    most_waiting = 1
    forgotten = ("interrupted",)

    def cancel(self) -> list[str]:
        jobs, self.waiting = self.waiting, []
        for job in jobs:
            self._report(job, "interrupted")
        return jobs

    def _concerns(self, prompt: str) -> bool:
        return prompt == self.active or self._begin(prompt)

    def _begin(self, prompt: str) -> bool:
        before = self.active
        if not super()._begin(prompt):
            return False
        if before is not None:
            self._report(before, "interrupted")
        return True


class Fleet:
    """A fleet with some nodes, and one Krita, whose job ids are the prompts'.

    Attributes:
        ends: How each job ended, in the order of the ends.
        overtaken: Jobs that Krita had at work when the end of another that ran was told.
        too_late: Jobs that Krita took out of the queue when they had left it already.

    Args:
        in_order: Whether no job overtakes the one that is shown.
    """

    def __init__(self, version: type[Krita], random: Random, nodes: int, *, in_order: bool) -> None:
        self.random = random
        self.nodes = nodes
        self.in_order = in_order
        self.krita = version([f"p{number}" for number in range(JOBS)])
        self.machine = ShownPrompt()
        self.queue: list[str] = []
        self.running: dict[str, list[PromptMessage]] = {}
        self.ends: dict[str, str] = {}
        self.overtaken: set[str] = set()
        self.too_late: set[str] = set()
        self.lossy = random.random() < 0.3

    def play(self, *, cancels: bool) -> None:
        """Let everything happen in a random order until all is over."""
        random = self.random
        while True:
            self.queue += self.krita.submit()
            if not self.queue and not self.running:
                break
            ways = ["frame", "frame", "frame", "end", "claim"]
            ways += random.choices(["cancel", "cancel elsewhere", "interrupt"], k=1) if cancels else []
            match random.choice(ways):
                case "claim" if self.queue and len(self.running) < self.nodes:
                    job = self.queue.pop(0)
                    self.running[job] = list(run_of(job))
                case "frame" if self.running:
                    self._frame(random.choice(list(self.running)))
                case "end" if self.running:
                    job = random.choice(list(self.running))
                    if self.in_order and self.machine.shown is not None:
                        job = self.machine.shown
                    whole = not self.running[job]
                    if whole or random.random() < 0.1:
                        self._end(job, "execution_success" if whole else "execution_error")
                case "cancel" if random.random() < 0.2:
                    for job in self.krita.cancel():
                        self._delete(job)
                case "cancel elsewhere" if self.queue:
                    self._delete(self.queue[0])
                case "interrupt" if (shown := self.machine.shown) is not None and random.random() < 0.2:
                    self._end(shown, "execution_interrupted")

    def _frame(self, job: str) -> None:
        if self.running[job]:
            one = self.running[job].pop(0)
            if not (self.lossy and self.random.random() < LOSS):
                self.krita.take(self.machine.heard(job, job, one, 1.0))

    def _delete(self, job: str) -> None:
        """Take a job out of the queue, if it is there."""
        if job in self.queue:
            self.queue.remove(job)
            self._tell(job, "execution_interrupted", run="")
        elif job not in self.krita.waiting:
            self.too_late.add(job)

    def _end(self, job: str, how: str) -> None:
        del self.running[job]
        if self.krita.active not in (None, job):
            self.overtaken.add(str(self.krita.active))
        self._tell(job, how, run=f"r{job}")

    def _tell(self, job: str, how: str, *, run: str) -> None:
        self.ends[job] = how
        last = [client_messages.message(how, {"prompt_id": job}), client_messages.left(job)]
        results = list(results_of(job)) if how == "execution_success" else []
        end = PromptEnd(run=run, start=execution_start(job, 1.0), results=results, last=last)
        self.krita.take(self.machine.ended(job, end))

    def right(self, job: str) -> bool:
        """Return whether Krita has told its person what happened to a job, once, with the job's pictures.

        It adds the frames of jobs that it does not follow to the pictures of the last one.
        """
        if job in self.overtaken:
            wanted: list[tuple[str, list[str]]] = [(word, []) for word in self.krita.forgotten]
        elif job in self.too_late:
            wanted = [("interrupted", [])]
        else:
            how = HOW[self.ends[job]]
            wanted = [(how, [f"{job} 0", f"{job} 1"] if how == "finished" else [])]
        lost = self.overtaken | self.too_late
        return wanted == [
            (how, [one for one in pictures if one.split()[0] not in lost])
            for how, pictures in self.krita.reports[job]
        ]


def results_of(job: str) -> Iterator[RecordedResult]:
    """Return the results of a job: two pictures that come as frames, and a text."""
    for place in range(2):
        one = ClientMessage(f"{job} {place}".encode(), text=False)
        yield RecordedResult(("2", place), one, executing(job, "2"))
    yield RecordedResult(("3", None), executed(job, "3", {"text": [job]}))


def run_of(job: str) -> Iterator[PromptMessage]:
    """Return what a job's run says."""

    def tell(topic: Topic, message: ClientMessage, key: ResultKey | None = None) -> PromptMessage:
        return PromptMessage(f"r{job}", topic, message, key)

    yield tell(Topic.START, execution_start(job, 1.0))
    for node in ("1", "2", "3"):
        yield tell(Topic.EXECUTING, executing(job, node), (node, None))
        yield tell(Topic.OTHER, client_messages.message("progress", {"prompt_id": job, "node": node}))
        for result in results_of(job):
            if result.key[0] == node:
                yield tell(Topic.RESULT, result.message, result.key)


def check(fleet: Fleet) -> None:
    assert len(fleet.ends) == JOBS
    for job, how in fleet.ends.items():
        assert fleet.right(job), (job, how, fleet.krita.reports)


@pytest.mark.parametrize("version", [Krita140, Krita142])
@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_with_one_node_krita_gets_every_picture_whatever_is_canceled(version: type[Krita], seed: int) -> None:
    fleet = Fleet(version, Random(seed), 1, in_order=True)
    fleet.play(cancels=True)
    check(fleet)
    assert not fleet.overtaken


@pytest.mark.parametrize("version", [Krita140, Krita142])
@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), nodes=st.integers(2, 4))
def test_with_several_nodes_krita_gets_every_picture_of_jobs_that_end_in_order(
    version: type[Krita], seed: int, nodes: int
) -> None:
    fleet = Fleet(version, Random(seed), nodes, in_order=True)
    fleet.play(cancels=True)
    check(fleet)
    assert not fleet.overtaken


@pytest.mark.parametrize("version", [Krita140, Krita142])
@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), nodes=st.integers(2, 4))
def test_krita_loses_sight_of_an_overtaken_job_and_takes_all_others_well(
    version: type[Krita], seed: int, nodes: int
) -> None:
    fleet = Fleet(version, Random(seed), nodes, in_order=False)
    fleet.play(cancels=False)
    check(fleet)
