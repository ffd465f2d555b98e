"""Answers to /object_info as they are kept: one for each owner."""

import asyncio
import gzip
import json

import pytest

from comfy_fleet.domain.errors import Busy
from comfy_fleet.services import object_info_answers
from comfy_fleet.services.object_info_answers import FleetClasses, ObjectInfoAnswers, tag_of

CLASSES = FleetClasses(digest="d", bodies={"A": b"{}"}, uploads=frozenset())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The uploads for which an answer was made."""
    seen: list[tuple[str, ...]] = []
    make = object_info_answers.whole_answer

    def noting(classes: FleetClasses, files: tuple[str, ...]) -> bytes:
        seen.append(tuple(files))
        return make(classes, files)

    monkeypatch.setattr(object_info_answers, "whole_answer", noting)
    return seen


async def ask(answers: ObjectInfoAnswers, owner: str, *files: str) -> None:
    packed = await answers.compressed(owner, tag_of(CLASSES, files), CLASSES, files)
    assert json.loads(gzip.decompress(packed)) == {"A": {}}


async def test_one_owners_uploads_drop_nobody_elses_answer(made: list[tuple[str, ...]]) -> None:
    answers = ObjectInfoAnswers()
    await ask(answers, "bob", "b.png")
    for n in range(100):
        await ask(answers, "ann", f"{n}.png")
    await ask(answers, "bob", "b.png")
    assert made.count(("b.png",)) == 1


async def test_those_without_uploads_share_an_answer_and_the_last_that_asked_are_kept(
    made: list[tuple[str, ...]],
) -> None:
    answers = ObjectInfoAnswers()
    for n in range(40):
        await ask(answers, f"owner{n}")
    assert made == [()]
    for n in range(40):
        await ask(answers, f"owner{n}", f"{n}.png")
    await ask(answers, "owner39", "39.png")
    assert len(made) == 41
    await ask(answers, "owner0", "0.png")
    assert len(made) == 42


async def test_nobody_waits_for_anybody_elses_answers(
    made: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ObjectInfoAnswers()
    working, let_go = asyncio.Event(), asyncio.Event()

    async def in_thread(work: object, classes: FleetClasses, files: tuple[str, ...]) -> bytes:
        if files == ("slow.png",):
            working.set()
            await let_go.wait()
        return object_info_answers.whole_answer(classes, files)

    monkeypatch.setattr(asyncio, "to_thread", in_thread)
    first = asyncio.create_task(ask(answers, "ann", "slow.png"))
    await working.wait()
    waiting = [asyncio.create_task(ask(answers, "ann", f"{n}.png")) for n in range(17)]
    await asyncio.wait_for(ask(answers, "bob", "b.png"), 10)
    with pytest.raises(Busy):
        await waiting[-1]
    let_go.set()
    await asyncio.gather(first, *waiting[:-1])
