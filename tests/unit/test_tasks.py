"""Tasks that nobody waits for: what they raise is seen, and loops go on."""

import asyncio
import logging

import pytest

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.tasks import forever, start
from tests.fleet import until


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_task_that_breaks_off_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise ValueError("a defect")

    task = start(broken(), name="x")
    await asyncio.wait({task})
    await asyncio.sleep(0)
    (record,) = caplog.records
    assert record.getMessage() == "task broke off"
    assert vars(record)["task"] == "x"
    assert record.exc_info is not None and "a defect" in str(record.exc_info[1])


async def test_a_task_that_ends_or_is_canceled_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def fine() -> int:
        return 3

    done, canceled = start(fine()), start(asyncio.sleep(60))
    assert await done == 3
    canceled.cancel()
    await asyncio.wait({canceled})
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_a_loop_goes_on_whatever_it_raises(caplog: pytest.LogCaptureFixture) -> None:
    trouble: list[Exception | None] = [ValueError("a defect"), StoreDown("away"), None]
    rounds = 0

    async def loop() -> None:
        nonlocal rounds
        rounds += 1
        if trouble and (error := trouble.pop(0)) is not None:
            raise error

    task = asyncio.create_task(forever(loop, name="x", pause_s=lambda: 0.0))
    await until(lambda: rounds > 5, what="it goes on")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert errors(caplog) == ["loop broke off"], "what is known to happen needs no traceback"
    assert [record.getMessage() for record in caplog.records] == ["loop broke off", "loop waits"]
