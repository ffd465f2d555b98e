"""What a websocket client is told of its prompts, by a model of a client that believes all that it hears."""

import json
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.jobs import client_messages
from comfy_fleet.domain.jobs.client_messages import ClientMessage, executed, executing, execution_start
from comfy_fleet.domain.jobs.shown_prompt import (
    MOST_HELD_BYTES,
    MOST_HELD_ENDS,
    MOST_HELD_WORDS,
    MOST_WORD_BYTES,
    PromptEnd,
    PromptMessage,
    RecordedResult,
    ShownPrompt,
    Topic,
)

ENDS = ("execution_success", "execution_error", "execution_interrupted")


def said(type_: str, prompt: str, **data: Any) -> ClientMessage:
    return client_messages.message(type_, {"prompt_id": prompt, **data})


def picture(node: str, place: int) -> ClientMessage:
    return ClientMessage(f"{node} {place}".encode(), text=False)


def last_words(prompt: str, type_: str = "execution_success") -> list[ClientMessage]:
    return [said(type_, prompt), client_messages.left(prompt)]


class Client:
    """A client like ComfyUI's editor: it knows one active prompt, and any end ends it.

    Attributes:
        active: The prompt that it takes for the running one.
        progress: The newest progress that it shows.
        results: What it got of each prompt: nodes and pictures.
        ends: How each prompt ended.
    """

    def __init__(self) -> None:
        self.active: str | None = None
        self.node: str | None = None
        self.progress: Any = None
        self.started: list[str] = []
        self.results: list[tuple[str, str]] = []
        self.ends: dict[str, list[str]] = {}
        self.left: list[str] = []

    def take(self, messages: list[ClientMessage]) -> None:
        for one in messages:
            self._take(one)

    def _take(self, one: ClientMessage) -> None:
        if not one.text:
            node, place = one.data.decode().split()
            assert self.active is not None and self.node == node, "a picture comes while its node computes"
            self.results.append((self.active, f"{node} {place}"))
            return
        told = json.loads(one.data)
        type_, data = told["type"], told["data"]
        prompt = data["prompt_id"]
        if type_ == "execution_start":
            self.active, self.node, self.progress = prompt, None, None
            self.started.append(prompt)
        elif type_ in ENDS:
            self.ends.setdefault(prompt, []).append(type_)
            self.active = self.node = self.progress = None
        elif type_ == "executing" and data["node"] is None:
            assert self.ends[prompt], "the end comes first"
            self.left.append(prompt)
            self.active = self.node = self.progress = None
        else:
            assert self.active == prompt, f"{type_} of a prompt that is not the active one"
            if type_ == "executing":
                self.node = data["node"]
            elif type_ == "progress_state":
                self.progress = data["step"]
            elif type_ == "executed":
                self.results.append((prompt, data["node"]))


def run_of(job: int, random: Random) -> list[PromptMessage]:
    """Return what a run of three nodes says; the second sends pictures."""
    run, prompt = f"r{job}", f"p{job}"

    def tell(topic: Topic, message: ClientMessage, key: Any = None) -> PromptMessage:
        return PromptMessage(run, topic, message, key)

    out = [
        tell(Topic.START, execution_start(prompt, 1.0)),
        tell(Topic.CACHED, said("execution_cached", prompt, nodes=[])),
    ]
    for node in ("a", "b", "c"):
        out.append(tell(Topic.EXECUTING, executing(prompt, node), (node, None)))
        for step in range(random.randint(0, 3)):
            out.append(tell(Topic.PROGRESS_STATE, said("progress_state", prompt, step=f"{node}{step}")))
            out.append(tell(Topic.OTHER, said("progress", prompt, value=step)))
        if node == "b":
            out += [tell(Topic.RESULT, picture(node, place), (node, place)) for place in range(2)]
        else:
            out.append(tell(Topic.RESULT, executed(prompt, node, {}), (node, None)))
    return out


def end_of(job: int, random: Random) -> PromptEnd:
    prompt = f"p{job}"
    before = executing(prompt, "b")
    return PromptEnd(
        run=f"r{job}",
        start=execution_start(prompt, 1.0),
        results=[
            RecordedResult(("a", None), executed(prompt, "a", {})),
            *(RecordedResult(("b", place), picture("b", place), before) for place in range(2)),
            RecordedResult(("c", None), executed(prompt, "c", {})),
        ],
        last=last_words(prompt, random.choice(ENDS)),
    )


def never_began(prompt: str) -> PromptEnd:
    """Return the end of a prompt that was canceled while it waited."""
    last = last_words(prompt, "execution_interrupted")
    return PromptEnd(run="", start=execution_start(prompt, 1.0), last=last)


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32))
def test_a_client_of_eight_prompts_at_once_sees_one_at_a_time_and_the_end_of_each(seed: int) -> None:
    random = Random(seed)
    machine, client = ShownPrompt(), Client()
    waiting: dict[int, list[PromptMessage | PromptEnd]] = {
        job: [*run_of(job, random), end_of(job, random)] for job in range(8)
    }
    never = {job for job in range(8) if random.random() < 0.2}
    for job in never:
        waiting[job] = [never_began(f"p{job}")]
    newest: dict[int, Any] = {}
    lossy = random.random() < 0.5
    while waiting:
        job = random.choice(list(waiting))
        one = waiting[job].pop(0)
        if isinstance(one, PromptEnd):
            del waiting[job]
            other = machine.shown not in (None, f"j{job}")
            told = machine.ended(f"j{job}", one)
            client.take(told)
            assert not (told and job in never and other), "no word of it disturbs the shown one"
        elif not (lossy and random.random() < 0.3):
            if one.topic is Topic.PROGRESS_STATE:
                newest[job] = json.loads(one.message.data)["data"]["step"]
            client.take(machine.heard(f"j{job}", f"p{job}", one, 1.0))
        shown = None if machine.shown is None else int(machine.shown[1:])
        assert client.active == (None if shown is None else f"p{shown}")
        assert client.progress == (None if shown is None else newest.get(shown))
    assert client.ends.keys() == {f"p{job}" for job in range(8)}
    assert all(len(ends) == 1 for ends in client.ends.values())
    assert sorted(client.left) == sorted(client.ends)
    ran = set(range(8)) - never
    assert set(client.started) == {f"p{job}" for job in ran}
    results = {(f"p{job}", key) for job in ran for key in ("a", "b 0", "b 1", "c")}
    assert sorted(client.results) == sorted(results)  # each once
    for job in ran:
        pictures = [key for prompt, key in client.results if prompt == f"p{job}" and key.startswith("b")]
        assert pictures == ["b 0", "b 1"]


def texts(messages: list[ClientMessage]) -> list[str]:
    """Return types, prompts and nodes."""
    out = []
    for one in messages:
        told = json.loads(one.data)
        node = told["data"].get("node", "")
        out.append(f"{told['type']} {told['data']['prompt_id']} {node}".strip())
    return out


def heard(machine: ShownPrompt, job: str, topic: Topic, one: ClientMessage, **more: Any) -> list[str]:
    told = machine.heard(job, f"p-{job}", PromptMessage(more.pop("run", f"r-{job}"), topic, one, **more), 1.0)
    return texts(told)


def begun(machine: ShownPrompt, job: str, **more: Any) -> list[str]:
    return heard(machine, job, Topic.START, execution_start(f"p-{job}", 1.0), **more)


def test_behind_the_end_of_another_the_shown_one_is_told_again() -> None:
    machine = ShownPrompt()
    assert begun(machine, "a") == ["execution_start p-a"]
    assert begun(machine, "b") == []
    heard(machine, "a", Topic.EXECUTING, executing("p-a", "1"))
    heard(machine, "a", Topic.PROGRESS_STATE, said("progress_state", "p-a"))
    assert heard(machine, "b", Topic.EXECUTING, executing("p-b", "7")) == []
    end = PromptEnd(run="r-b", start=None, last=last_words("p-b"))
    assert texts(machine.ended("b", end)) == [
        "execution_start p-b",
        "execution_success p-b",
        "executing p-b None",
        "execution_start p-a",
        "executing p-a 1",
        "progress_state p-a",
    ]
    assert texts(machine.again()) == ["execution_start p-a", "executing p-a 1", "progress_state p-a"]


def test_when_the_shown_prompt_ends_the_one_that_runs_longest_is_next() -> None:
    machine = ShownPrompt()
    for job in ("a", "b", "c"):
        begun(machine, job)
    heard(machine, "c", Topic.EXECUTING, executing("p-c", "9"))
    heard(machine, "b", Topic.RESULT, executed("p-b", "1", {}), key=("1", None))
    heard(machine, "b", Topic.EXECUTING, executing("p-b", "2"))
    end = PromptEnd(run="r-a", start=None, last=last_words("p-a"))
    assert texts(machine.ended("a", end)) == [
        "execution_success p-a",
        "executing p-a None",
        "execution_start p-b",
        "executed p-b 1",
        "executing p-b 2",
    ]
    assert machine.shown == "b"


def test_a_run_that_is_given_back_ends_without_a_word_and_the_next_starts_over() -> None:
    machine = ShownPrompt()
    begun(machine, "a")
    heard(machine, "a", Topic.RESULT, executed("p-a", "1", {}), key=("1", None))
    assert machine.given_back("a") == []
    assert begun(machine, "a") == []  # a late one of the run that is over
    assert begun(machine, "a", run="r2") == ["execution_start p-a"]
    again = {"key": ("1", None), "run": "r2"}
    assert heard(machine, "a", Topic.RESULT, executed("p-a", "1", {}), **again) == ["executed p-a 1"]


def test_old_news_of_a_run_that_goes_on_does_not_silence_it() -> None:
    machine = ShownPrompt()
    begun(machine, "a")
    machine.given_back("a")
    machine.runs("a", "r-a")
    assert heard(machine, "a", Topic.EXECUTING, executing("p-a", "1")) == [
        "execution_start p-a",
        "executing p-a 1",
    ]


def test_a_shown_prompt_that_waits_again_makes_way_for_one_that_runs() -> None:
    machine = ShownPrompt()
    begun(machine, "a")
    begun(machine, "b")
    assert texts(machine.given_back("a")) == ["execution_start p-b"]
    assert machine.shown == "b"


def test_what_is_told_again_for_late_listeners_is_told_once() -> None:
    machine = ShownPrompt()
    first = executing("p-a", "1")
    assert begun(machine, "a") == ["execution_start p-a"]
    assert heard(machine, "a", Topic.EXECUTING, first) == ["executing p-a 1"]
    assert begun(machine, "a") == heard(machine, "a", Topic.EXECUTING, first) == []


def ended(machine: ShownPrompt, job: str, *, ran: bool = True) -> list[str]:
    end = PromptEnd(run=f"r-{job}", start=None, last=last_words(f"p-{job}"))
    return texts(machine.ended(job, end if ran else never_began(f"p-{job}")))


def cancel(prompt: str) -> list[str]:
    return [f"execution_interrupted {prompt}", f"executing {prompt} None"]


def success(prompt: str) -> list[str]:
    return [f"execution_success {prompt}", f"executing {prompt} None"]


def test_a_prompt_that_never_began_ends_at_once_where_nothing_is_shown() -> None:
    assert ended(ShownPrompt(), "b", ran=False) == cancel("p-b")


def test_the_end_of_a_prompt_that_never_began_waits_for_the_end_of_the_shown_one() -> None:
    machine = ShownPrompt()
    begun(machine, "a")
    begun(machine, "d")
    assert ended(machine, "b", ran=False) == ended(machine, "c", ran=False) == []
    assert ended(machine, "b", ran=False) == []  # seen twice
    assert list(machine.held_ends) == ["b", "c"]
    again = ["execution_start p-a"]
    assert ended(machine, "d") == ["execution_start p-d", *success("p-d"), *again]  # that is another's end
    assert begun(machine, "e") == []
    told = [*success("p-a"), *cancel("p-b"), *cancel("p-c"), "execution_start p-e"]
    assert ended(machine, "a") == told
    assert list(machine.held_ends) == [] and machine.shown == "e"


def test_the_end_of_a_prompt_that_never_began_is_told_with_a_start_when_the_shown_one_waits_again() -> None:
    machine = ShownPrompt()
    begun(machine, "a")
    assert ended(machine, "b", ran=False) == []
    assert texts(machine.given_back("a")) == ["execution_start p-b", *cancel("p-b")]
    begun(machine, "a", run="r2")
    machine.given_back("a")
    # its client takes it for the running one until it hears of another
    assert ended(machine, "c", ran=False) == ["execution_start p-c", *cancel("p-c")]


def test_a_prompt_that_waits_again_ends_like_one_that_never_began() -> None:
    machine = ShownPrompt()
    begun(machine, "a")
    begun(machine, "b")
    assert texts(machine.given_back("a")) == ["execution_start p-b"]
    assert ended(machine, "a", ran=False) == []
    assert ended(machine, "b") == [*success("p-b"), *cancel("p-a")]


def test_of_many_ends_that_wait_the_oldest_is_told_before_there_are_too_many() -> None:
    machine = ShownPrompt()
    begun(machine, "a")
    for number in range(MOST_HELD_ENDS):
        assert ended(machine, str(number), ran=False) == []
    told = ["execution_start p-0", *cancel("p-0"), "execution_start p-a"]
    assert ended(machine, "one more", ran=False) == told
    assert len(machine.held_ends) == MOST_HELD_ENDS and machine.held_ends[-1] == "one more"


def test_ends_that_wait_are_dropped_where_nobody_is_there_to_be_told() -> None:
    machine = ShownPrompt()
    begun(machine, "a")
    ended(machine, "b", ran=False)
    assert machine.drop_held_ends() == ("b",)
    assert ended(machine, "a") == success("p-a")


def test_a_job_without_a_record_is_forgotten_without_a_word() -> None:
    machine = ShownPrompt()
    begun(machine, "a")
    assert machine.ended("b", PromptEnd(run="", start=None, last=())) == []
    assert machine.held_ends == ()


def test_a_prompt_of_which_nothing_was_heard_is_told_from_its_record() -> None:
    end = PromptEnd(
        run="r",
        start=execution_start("p", 1.0),
        results=[RecordedResult(("1", None), executed("p", "1", {}))],
        last=last_words("p"),
    )
    told = texts(ShownPrompt().ended("a", end))
    assert told == ["execution_start p", "executed p 1", "execution_success p", "executing p None"]


def test_results_that_are_held_back_take_little_memory_and_the_rest_comes_at_the_end() -> None:
    machine = ShownPrompt()
    begun(machine, "a")
    begun(machine, "b")
    large = {"x": "x" * (MOST_HELD_BYTES // 3)}
    for node in range(9):
        heard(machine, "b", Topic.RESULT, executed("p-b", str(node), large), key=(str(node), None))
    kept = machine.told("b", "r-b")
    assert 0 < len(kept) < 4 and machine.told("b", "another") == frozenset()
    results = [RecordedResult((str(node), None), executed("p-b", str(node), {})) for node in range(9)]
    end = PromptEnd(run="r-b", start=None, results=results, last=last_words("p-b"))
    told = [one for one in texts(machine.ended("b", end)) if one.startswith("executed")]
    assert told == [f"executed p-b {node}" for node in range(9)]


def test_a_picture_waits_for_its_prompts_end_if_its_receiver_can_not_know_its_node() -> None:
    machine = ShownPrompt()
    begun(machine, "a")
    seen = PromptMessage("r-a", Topic.RESULT, picture("b", 0), ("b", 0))
    assert machine.heard("a", "p-a", seen, 1.0) == []
    before = executing("p-a", "b")
    results = [RecordedResult(("b", 0), picture("b", 0), before)]
    told = machine.ended("a", PromptEnd(run="r-a", start=None, results=results, last=last_words("p-a")))
    assert told == [before, picture("b", 0), *last_words("p-a")]


def test_a_message_about_nobodys_prompt_comes_only_while_none_is_shown() -> None:
    machine = ShownPrompt()
    one = said("progress_state", "nobody's")
    assert machine.apart(one) == [one]
    begun(machine, "a")
    assert machine.apart(one) == []


def own(run: str, type_: str, text: str = "?") -> PromptMessage:
    """A message of an extension's own."""
    message = client_messages.message(type_, {"text": text})
    return PromptMessage(run, Topic.OTHER, message, (type_, None))


def test_a_question_waits_until_its_prompt_is_shown() -> None:
    shown = ShownPrompt()

    def computes(run: str, node: str) -> PromptMessage:
        return PromptMessage(run, Topic.EXECUTING, executing(run, node), (node, None))

    shown.heard("a", "a", computes("a", "1"), 1.0)
    assert shown.heard("b", "b", computes("b", "1"), 1.0) == []
    for word in (own("b", "asks", "old"), own("b", "asks"), own("b", "other")):
        assert shown.heard("b", "b", word, 1.0) == []
    large = own("b", "large", "x" * MOST_WORD_BYTES)
    assert shown.heard("b", "b", large, 1.0) == []
    assert shown.heard("a", "a", own("a", "asks"), 1.0) == [own("a", "asks").message]
    told = shown.ended("a", PromptEnd(run="a", start=None, last=last_words("a")))
    assert [one for one in told if one in (own("b", "asks").message, own("b", "other").message)] == [
        own("b", "asks").message,
        own("b", "other").message,
    ]
    assert own("b", "asks", "old").message not in told
    assert large.message not in told


def test_what_a_node_asked_is_over_with_it_and_kinds_are_limited() -> None:
    shown = ShownPrompt()
    shown.heard("a", "a", PromptMessage("a", Topic.EXECUTING, executing("a", "1"), ("1", None)), 1.0)
    shown.heard("b", "b", own("b", "early"), 1.0)
    shown.heard("b", "b", PromptMessage("b", Topic.EXECUTING, executing("b", "2"), ("2", None)), 1.0)
    kinds = [f"kind {number}" for number in range(2 * MOST_HELD_WORDS)]
    for kind in kinds:
        shown.heard("b", "b", own("b", kind), 1.0)
    told = shown.ended("a", PromptEnd(run="a", start=None, last=last_words("a")))
    types = [json.loads(one.data)["type"] for one in told]
    assert [one for one in types if one in ("early", *kinds)] == kinds[:MOST_HELD_WORDS]
