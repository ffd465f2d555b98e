"""The line in front of a bounded number of places."""

import asyncio
import random
from collections import Counter

import pytest

from comfy_fleet.turns import FairTurns, LineFull, NoTurn, SharedRoom, Turns


async def test_places_are_given_in_order() -> None:
    turns, seen = Turns(1, wait_s=5), []

    async def one(name: int) -> None:
        async with turns:
            seen.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*map(one, range(20)))
    assert seen == list(range(20))


async def test_a_line_that_is_too_long_and_a_wait_that_is_too_long_are_refused() -> None:
    turns = Turns(1, wait_s=0.02, line=1)
    await turns.take()
    waiting = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    with pytest.raises(NoTurn):
        await turns.take()  # at once: one waits already
    with pytest.raises(NoTurn):
        await waiting
    turns.give()
    await turns.take()


async def test_who_is_canceled_takes_no_place_along() -> None:
    turns = Turns(1, wait_s=5)
    await turns.take()
    for _ in range(50):
        gone = asyncio.create_task(turns.take())
        await asyncio.sleep(0)
        turns.give()  # it is the next one's now, and that one is canceled
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        if not gone.cancelled():
            continue
        await turns.take()
    turns.give()
    async with turns:
        pass


def fair(places: int = 1, *, each: int = 1, line: int = 100, wait_s: float = 5) -> FairTurns:
    return FairTurns(places, each=each, line=line, wait_s=wait_s)


async def test_owners_take_turns_however_many_of_one_wait() -> None:
    turns, seen = fair(), []
    await turns.take("first")

    async def one(owner: str) -> None:
        async with turns.of(owner):
            seen.append(owner)
            await asyncio.sleep(0)

    waiting = [asyncio.create_task(one(owner)) for owner in ["a"] * 20 + ["b"] * 3 + ["c"]]
    await asyncio.sleep(0)
    turns.give("first")
    await asyncio.gather(*waiting)
    assert seen == ["a", "b", "c", "a", "b", "a", "b", *["a"] * 17]


async def test_one_owner_never_has_all_places() -> None:
    turns = fair(3, each=2)
    await turns.take("a")
    await turns.take("a")
    third = asyncio.create_task(turns.take("a"))
    await asyncio.sleep(0)
    await asyncio.wait_for(turns.take("b"), 5)
    assert not third.done()
    turns.give("b")
    await asyncio.sleep(0)
    assert not third.done()
    turns.give("a")
    await asyncio.wait_for(third, 5)


async def test_a_line_is_each_owners_own() -> None:
    turns = fair(line=2, wait_s=0.05)
    await turns.take("a")
    waiting = [asyncio.create_task(turns.take("a")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(LineFull):
        await turns.take("a")
    other = asyncio.create_task(turns.take("b"))
    for result in await asyncio.gather(*waiting, other, return_exceptions=True):
        assert isinstance(result, NoTurn) and not isinstance(result, LineFull)
    turns.give("a")
    await turns.take("b")


async def test_no_place_is_lost_or_given_twice_whoever_is_canceled() -> None:
    draw = random.Random(1)
    turns, held = fair(3, each=2, line=5), Counter[str]()

    async def one(owner: str) -> None:
        async with turns.of(owner):
            held[owner] += 1
            try:
                assert held[owner] <= 2 and held.total() <= 3
                for _ in range(draw.randrange(3)):
                    await asyncio.sleep(0)
            finally:
                held[owner] -= 1

    tasks: list[asyncio.Task[None]] = []
    for _ in range(3000):
        tasks.append(asyncio.create_task(one(draw.choice("aaabc"))))
        if draw.random() < 0.5:
            await asyncio.sleep(0)
        if draw.random() < 0.4:
            draw.choice(tasks[-9:]).cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, LineFull | asyncio.CancelledError), result
    for owner in "aab":
        await asyncio.wait_for(turns.take(owner), 5)


def test_a_room_is_shared_and_one_thing_of_any_size_gets_in() -> None:
    room = SharedRoom(100)
    assert room.take("ada", 400)  # else it could never be had
    assert not room.take("bob", 1) and not room.take("ada", 1)
    room.give("ada", 400)
    assert room.take("ada", 30) and room.take("ada", 20) and not room.take("ada", 1)
    assert room.take("bob", 50) and not room.take("carl", 1)
    for owner, size in (("ada", 30), ("bob", 50), ("ada", 20)):
        room.give(owner, size)
    assert room.take("carl", 100)
