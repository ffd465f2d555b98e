"""Numbers in ComfyUI's history: whole, and rising in the order in which jobs enter it.

The editor of ComfyUI 0.3 takes from the history only what has a number above those that it shows; it shows
nothing below 0.
"""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.domain.jobs.job import Job, JobStatus, PromptFields
from comfy_fleet.ports.runs import Claim
from comfy_fleet.settings import Settings
from tests.integration.redis_kit import add_nodes, claim, submit
from tests.older_version import older


async def posted(stores: Stores, prompt_id: str, owner: str = "local", **prompt: object) -> Job:
    fields = PromptFields(prompt_id=prompt_id, **prompt)  # type: ignore[arg-type]
    return await submit(stores, owner=owner, prompt=fields)


async def ended(stores: Stores, run: Claim) -> None:
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=None)


async def history(stores: Stores, owner: str = "local") -> dict[str, float | None]:
    """Return the numbers of the history in its order, by the prompts' ids."""
    jobs = await stores.prompts.load(await stores.prompts.history(owner, 0, -1))
    return {job.prompt_id: job.history_number for job in jobs}


def rising(numbers: dict[str, float | None]) -> bool:
    """Whether an editor that looks after each end lists every job."""
    found = [number for number in numbers.values() if number is not None]
    whole = all(number >= 0 and number.is_integer() for number in found)
    return whole and len(found) == len(numbers) and found == sorted(set(found))


async def test_a_job_that_ends_after_later_ones_gets_the_next_number(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2", "g3")
    for name in ("a", "b", "c"):
        await posted(stores, name)
    runs = [await claim(stores, node) for node in ("g1", "g2", "g3")]
    for run in (runs[0], runs[2], runs[1]):
        await ended(stores, run)
    chosen: dict[str, dict[str, Any]] = {"front": {"front": True}, "half": {"number": 6.5}}
    for name in ("front", "five", "six", "half"):
        await posted(stores, name, **chosen.get(name, {}))
        await ended(stores, await claim(stores))
    await posted(stores, "hers", owner="ada")
    await posted(stores, "huge", number=2.0**53)
    await posted(stores, "last")
    await posted(stores, "very last")
    for _ in range(4):
        await ended(stores, await claim(stores))
    numbers = await history(stores)
    assert list(numbers.items())[:7] == [
        *[("a", 1), ("c", 3), ("b", 4)],
        *[("front", 5), ("five", 6), ("six", 7), ("half", 8)],
    ]
    assert rising(numbers) and len(numbers) == 10
    assert await history(stores, "ada") == {"hers": 1}


async def test_numbers_are_jobs_own_where_ends_come_in_order(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    for number in range(1, 6):
        await posted(stores, str(number))
        await ended(stores, await claim(stores))
    assert await history(stores) == {str(number): number for number in range(1, 6)}


async def test_the_first_of_an_empty_history_is_shown_though_its_number_is_negative(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await posted(stores, "gone")
    await ended(stores, await claim(stores))
    await stores.jobs.hide("local", await stores.prompts.history("local", 0, -1))
    job = await posted(stores, "front", front=True)
    assert job.number < 0
    await ended(stores, await claim(stores))
    assert await history(stores) == {"front": 0}


async def test_jobs_that_end_at_once_have_numbers_of_their_own_below_what_ends_next(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await posted(stores, "ran")
    run = await claim(stores)
    for number in range(20):
        await submit(stores, deadline_s=-1, prompt=PromptFields(prompt_id=f"late {number}"))
    assert await stores.runs.overdue(50) == 20
    await ended(stores, run)
    numbers = await history(stores)
    assert rising(numbers)
    assert len(numbers) == 21 and list(numbers)[-1] == "ran"


async def test_two_processes_give_no_number_twice(stores: Stores, redis_port: int) -> None:
    nodes = [f"g{number}" for number in range(10)]
    await add_nodes(stores, *nodes)
    async with AsyncExitStack() as stack:
        settings = Settings(redis_url=f"redis://127.0.0.1:{redis_port}/0")
        both = [stores, await stack.enter_async_context(open_stores(settings))]
        for number in range(10):
            await posted(both[number % 2], str(number))
        runs = [await claim(both[number % 2], node) for number, node in enumerate(nodes)]
        await asyncio.gather(*(ended(both[number % 2], run) for number, run in enumerate(reversed(runs))))
        seen = [await history(each) for each in both]
    assert rising(seen[0]) and seen[0] == seen[1] and len(seen[0]) == 10


async def test_a_job_that_is_listed_late_goes_on_top_and_stays_where_it_is(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    late = await submit(older(stores))
    run = await claim(older(stores))
    assert await stores.prompts.history("local", 0, -1) == []  # the owner's lists are complete from here on
    await posted(stores, "next")
    await ended(older(stores), run)
    await ended(stores, await claim(stores, "g2"))
    assert list(await history(stores)) == ["next"]
    for _ in range(2):
        await stores.redis.delete("fleet:listed:mended")
        await stores.jobs.lists.mend()
        numbers = await history(stores)
        assert list(numbers) == ["next", late.id]
        assert rising(numbers)


async def test_jobs_from_before_there_were_lists_stand_where_they_ended(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2", "g3")
    first, second = await submit(older(stores)), await submit(older(stores))
    runs = [await claim(older(stores), node) for node in ("g1", "g2")]
    await ended(older(stores), runs[1])
    await ended(older(stores), runs[0])
    await posted(stores, "new")
    await ended(stores, await claim(stores, "g3"))  # it is listed before anybody looks
    numbers = await history(stores)
    assert list(numbers) == [second.id, first.id, "new"]
    assert numbers["new"] == 1


async def test_numbers_go_on_above_entries_that_another_version_listed_in_any_order(stores: Stores) -> None:
    """One that knows the lists, and not these numbers."""
    await add_nodes(stores, "g1", "g2")
    made = [await posted(stores, str(number)) for number in range(1, 5)]
    for job in made[:1]:
        await ended(stores, await claim(stores))
        assert (await history(stores))[job.prompt_id] == 1
    runs = [await claim(stores, node) for node in ("g1", "g2")]
    for run in reversed(runs):  # 3 ends before 2
        await ended(stores, run)
    for job in made[1:3]:
        await stores.redis.hdel(f"fleet:job:{job.id}", "history_number")
    assert await history(stores) == {"1": 1, "3": None, "2": None}
    await posted(stores, "half", number=0.5)
    await ended(stores, await claim(stores))
    await ended(stores, await claim(stores))
    assert list((await history(stores)).items())[3:] == [("half", 4), ("4", 5)]
