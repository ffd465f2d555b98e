"""A timeout ends what takes too long, also in a task that was canceled, and never hides a cancellation."""

import asyncio

import pytest

from comfy_fleet.timeouts import Timeout


async def test_what_takes_too_long_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with Timeout(0.001) as limit:
            await asyncio.sleep(60)
    assert limit.expired()


async def test_what_is_quick_enough_passes() -> None:
    async with Timeout(60) as limit:
        await asyncio.sleep(0)
    assert not limit.expired()
    async with Timeout(None):
        await asyncio.sleep(0)


async def test_it_is_a_timeout_too_while_a_canceled_task_cleans_up() -> None:
    told: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            try:
                async with Timeout(0.001):
                    await asyncio.sleep(60)
            except TimeoutError:
                told.append("timeout")
            await asyncio.sleep(0)
            told.append("cleaned up")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["timeout", "cleaned up"]


@pytest.mark.parametrize("delay_s", [0.0, 60])
async def test_a_cancellation_is_never_taken_for_a_timeout(delay_s: float) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with Timeout(delay_s):
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with Timeout(60):
            raise ValueError("mine")
