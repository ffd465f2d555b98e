"""Names of a run's files, drawn while the files are fetched."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from comfy_fleet.domain.errors import LeaseLost, StoreDown
from comfy_fleet.domain.jobs.job import OutputKind
from comfy_fleet.domain.jobs.output_names import NumberGroup, OutputId, SavedFile
from comfy_fleet.domain.jobs.outputs import FileRef, InlineText, OutputItem
from comfy_fleet.services.output_naming import OutputNaming
from tests.unit.test_collector import World, item, turns


def a_file(index: int, node_id: str = "2") -> OutputItem:
    return OutputItem(
        node_id=node_id,
        key="images",
        index=index,
        name="x.png",
        kind=OutputKind.IMAGE,
        content_type="image/png",
        source=FileRef(filename=f"x_{index + 1:05}_.png"),
    )


class Drawer:
    """Draws names when it may.

    Attributes:
        calls: The places of each call.
        troubles: What the next calls raise, one each.
        gate: What every call waits for.
    """

    def __init__(self) -> None:
        self.calls: list[list[OutputId]] = []
        self.troubles: list[Exception] = []
        self.gate = asyncio.Event()

    async def __call__(self, groups: Sequence[NumberGroup]) -> Mapping[OutputId, SavedFile]:
        places = [id_ for group in groups for id_ in group.files]
        self.calls.append(places)
        await self.gate.wait()
        if self.troubles:
            raise self.troubles.pop(0)
        return {id_: SavedFile(type="output", subfolder="", filename=f"{id_}") for id_ in places}


async def test_what_is_known_is_drawn_in_one_call_and_what_comes_meanwhile_in_the_next() -> None:
    draw = Drawer()
    naming = OutputNaming(draw)
    first, second, third = a_file(0), a_file(1), a_file(0, "3")
    naming.want([first, second])
    naming.start()
    naming.start()
    await turns()
    naming.want([third])
    naming.start()
    draw.gate.set()
    names = await asyncio.gather(*(naming.of(one) for one in (third, second, first)))
    assert [name and name.filename for name in names] == [f"{one.id}" for one in (third, second, first)]
    assert draw.calls == [[first.id, second.id], [third.id]]
    naming.start()
    await turns()
    assert len(draw.calls) == 2


async def test_texts_have_no_name_to_be_drawn() -> None:
    draw = Drawer()
    naming = OutputNaming(draw)
    text = item("a.txt", InlineText("hi"))
    naming.want([text])
    naming.start()
    assert await naming.of(text) is None
    assert draw.calls == []


async def test_a_failure_is_told_and_the_next_question_tries_again() -> None:
    draw = Drawer()
    draw.gate.set()
    draw.troubles = [StoreDown("away"), StoreDown("away")]
    naming = OutputNaming(draw)
    naming.want([a_file(0), a_file(1)])
    for _ in range(2):
        with pytest.raises(StoreDown):
            await naming.of(a_file(1))
    assert await naming.of(a_file(1)) is not None
    assert await naming.of(a_file(0)) is not None
    assert draw.calls == [[a_file(0).id, a_file(1).id]] * 3


async def test_who_no_longer_asks_takes_nothing_from_the_others() -> None:
    draw = Drawer()
    naming = OutputNaming(draw)
    naming.want([a_file(0)])
    gone, stays = (asyncio.create_task(naming.of(a_file(0))) for _ in range(2))
    await turns()
    gone.cancel()
    await turns()
    draw.gate.set()
    assert await stays is not None
    assert gone.cancelled()


async def test_nothing_is_left_behind_when_a_run_is_over() -> None:
    draw = Drawer()
    draw.troubles = [LeaseLost("gone")]
    naming = OutputNaming(draw)
    before = asyncio.all_tasks()
    naming.close()
    naming.want([a_file(0)])
    naming.start()
    await turns()
    naming.close()
    await turns()
    assert asyncio.all_tasks() == before
    naming.start()
    draw.gate.set()
    await turns()
    assert asyncio.all_tasks() == before  # a failure that nobody waits for is no noise, either


async def test_names_are_drawn_while_the_node_is_asked() -> None:
    world = World()
    world.nodes.files = {"a_00001_.png": b"1"}
    world.nodes.slow["a_00001_.png"] = asyncio.Event()
    world.collector.add([item("a_00001_.png")])
    await turns()
    assert world.runs.calls["name_outputs"] == 1
    assert not world.committed
    world.nodes.slow["a_00001_.png"].set()
    assert await world.collector.settled() == []
    (output,) = world.committed
    assert (output.name, output.subfolder, output.saved) == ("a_00001_.png", "", True)


async def test_a_record_and_its_asset_have_the_name_that_was_drawn() -> None:
    world = World()
    world.runs.numbers["output/a_*"] = 41
    world.nodes.files = {"a_00001_.png": b"1"}
    world.collector.add([item("a_00001_.png"), item("b.txt", InlineText("hi"))])
    assert await world.collector.settled() == []
    assert {output.name: output.saved for output in world.committed} == {
        "a_00042_.png": True,
        "b.txt": False,
    }
    assert set(world.assets.outputs) == {"a_00042_.png", "b.txt"}
    assert world.nodes.viewed == ["a_00001_.png"]


async def test_a_run_that_was_lost_commits_nothing_under_a_name() -> None:
    world = World()
    world.nodes.files = {"a_00001_.png": b"1"}
    world.runs.lose("r")
    world.collector.add([item("a_00001_.png")])
    with pytest.raises(LeaseLost):
        await world.collector.settled()
    assert not world.assets.outputs
