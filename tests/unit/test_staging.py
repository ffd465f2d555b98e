"""Staging: which files are put onto a node, and when they need not be sent again."""

from dataclasses import replace
from typing import Any, cast

import orjson
import pytest

from comfy_fleet.domain.graphs.graph import asset_reference
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.runs import Claim, StagedInput
from comfy_fleet.services.staging import KEEP_FOR_EDITOR_S, KEEP_S, StagingError, stage
from tests.factories import a_claim
from tests.fakes.comfyui import FakeNodeApi, chunks
from tests.fakes.runs import FakeRunStore

PLACE = ("1", ("image",))
PICTURE = Asset(
    id="a1",
    owner="o",
    hash="blake3:" + "ab" * 32,
    size_bytes=7,
    content_type="image/png",
    file_path="holiday/me.PNG",
    path="p",
    created_at=1.0,
)


class Bytes:
    """The part of the assets' store that staging needs; counts what is read."""

    def __init__(self) -> None:
        self.read = 0

    async def open(self, asset: Asset) -> Any:
        self.read += 1
        return chunks(b"picture")


class World:
    """A node, and a run on it that reads one picture."""

    def __init__(self, **job: Any) -> None:
        self.nodes, self.assets, self.runs = FakeNodeApi(), Bytes(), FakeRunStore()
        self.graph = {"1": {"class_type": "LoadImage", "inputs": {"image": asset_reference("a1")}}}
        base = a_claim(node="g1")
        made = replace(base.job, **{"uploads": {"1/image": "a1"}, **job})
        self.claim: Claim = replace(base, job=made, graph=orjson.dumps(self.graph))
        self.runs.hold(self.claim)
        self.put(new=True)

    def put(self, *, new: bool) -> None:
        self.runs.staged["a1"] = StagedInput(asset=PICTURE, folders="f1/f2", new=new)

    async def stage(self) -> Any:
        store = cast(AssetStore, self.assets)
        return await stage(self.graph, self.claim, runs=self.runs, nodes=self.nodes, assets=store)


async def test_an_asset_that_nobody_looked_at_is_never_staged() -> None:
    world = World(uploads={})
    with pytest.raises(StagingError, match="was not part of the job") as caught:
        await world.stage()
    assert caught.value.fatal
    assert not world.runs.calls["stage"]


async def test_a_file_is_sent_once_as_long_as_the_node_has_it() -> None:
    world = World()
    name = f"fleet/f1/f2/{'ab' * 16}.PNG"
    assert await world.stage() == {PLACE: name}
    assert world.nodes.inputs == {"g1": {name: b"picture"}}
    assert not world.nodes.calls["holds"], "it is new"
    world.put(new=False)
    assert await world.stage() == {PLACE: name}
    assert world.assets.read == world.nodes.calls["upload"] == 1


@pytest.mark.parametrize("left", [b"pict", None])
async def test_a_file_that_the_node_has_lost_or_has_in_part_is_sent_again(left: bytes | None) -> None:
    world = World()
    world.put(new=False)
    name = f"fleet/f1/f2/{'ab' * 16}.PNG"
    if left is not None:
        world.nodes.inputs["g1"] = {name: left}
    assert await world.stage() == {PLACE: name}
    assert world.nodes.inputs["g1"][name] == b"picture"


async def test_an_editor_s_files_stay_longer() -> None:
    for editor, keep_s in (("", KEEP_S), ("e", KEEP_FOR_EDITOR_S)):
        world = World(editor=editor)
        await world.stage()
        assert world.runs.kept_s == [keep_s]


async def test_a_file_that_is_gone_ends_the_run() -> None:
    world = World()
    world.runs.staged.clear()
    with pytest.raises(StagingError, match="asset a1 is gone") as caught:
        await world.stage()
    assert caught.value.fatal


async def test_a_graph_without_files_asks_nobody() -> None:
    world = World(uploads={})
    world.graph = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    assert await world.stage() == {}
    assert not world.runs.calls
