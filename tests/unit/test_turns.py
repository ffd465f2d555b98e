"""The line in front of a bounded number of places."""

import asyncio

import pytest

from comfy_fleet.turns import NoTurn, Turns


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
