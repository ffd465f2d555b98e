"""The Python client, with and without an event loop, against a fleet with simulated nodes."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from PIL import Image

from comfy_fleet.client import (
    AsyncFleetClient,
    FileConflict,
    FleetClient,
    JobNotSucceeded,
    NothingFound,
    RequestRefused,
    StateConflict,
    StreamEvent,
    WaitExpired,
)
from tests.conftest import free_port
from tests.integration.sharing_kit import Sharing, sharing
from tests.integration.test_batches import GRAPH, TABLE
from tests.integration.test_input_urls import png
from tests.web_site import site

T = TypeVar("T")


@pytest.fixture
async def world(redis_port: int, redis: Any, tmp_path: Path) -> AsyncIterator[Sharing]:
    options = {"fetch_allow": "127.0.0.1", "fetch_bytes": 1_000_000}
    async with sharing(redis_port, tmp_path, "g1", "g2", manifest=TABLE, graph=GRAPH, api=options) as made:
        yield made


@pytest.fixture
async def fleet(world: Sharing) -> AsyncIterator[AsyncFleetClient]:
    async with AsyncFleetClient(world.api.url) as made:
        yield made


async def hold(world: Sharing) -> None:
    for name in world.fleet.sims:
        await world.fleet.stores.nodes.cordon(name, reason="test")


async def let_go(world: Sharing) -> None:
    for name in world.fleet.sims:
        await world.fleet.stores.nodes.uncordon(name)


async def aside(work: Callable[[], T]) -> T:
    """Do what blocks in a thread, as the fleet lives in this one."""
    return await asyncio.to_thread(work)


class LossyDoor:
    """A TCP proxy that loses answers, or cuts what is open, when it is told to."""

    def __init__(self, to: str) -> None:
        self._to = httpx.URL(to)
        self.port = free_port()
        self.lost = 0
        self.losing = 0
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        for writer in self._open:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(self._to.host, self._to.port)
        self._open |= {writer, forth}
        try:
            await asyncio.gather(self._pipe(reader, forth), self._answers(back, writer))
        except OSError:
            pass
        finally:
            for one in (writer, forth):
                one.close()
            self._open -= {writer, forth}

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.losing:
                self.losing -= 1
                self.lost += 1
                break
            writer.write(data)
        writer.close()


@asynccontextmanager
async def lossy(to: str) -> AsyncIterator[LossyDoor]:
    made = LossyDoor(to)
    server = await asyncio.start_server(made.serve, "127.0.0.1", made.port)  # noqa: TID251 - ends with the test
    try:
        yield made
    finally:
        made.cut()
        server.close()


def size_of(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(content)).size


async def test_a_job_from_submit_to_file(world: Sharing, fleet: AsyncFleetClient, tmp_path: Path) -> None:
    told: list[StreamEvent] = []

    async def listen(event: StreamEvent) -> None:
        told.append(event)

    face = tmp_path / "face.png"
    face.write_bytes(png(9))
    job = await fleet.run("noise", {"picture": face, "prefix": "a"}, wait_s=60, on_event=listen)
    assert job["status"] == "succeeded" and job["params"]["prefix"] == "a"
    assert told[-1].name == "status" and told[-1].data["status"] == "succeeded"
    assert [one.data["name"] for one in told if one.name == "output"] == [job["outputs"][0]["name"]]
    (saved,) = await fleet.download(job, tmp_path / "pictures")
    assert saved.name == f"{job['id'][:8]}-a.png" and size_of(saved.read_bytes()) == (8, 8)
    assert await fleet.read(job["outputs"][0]) == saved.read_bytes()
    assert size_of(await fleet.read(job["outputs"][0], format="webp", width=4)) == (4, 4)
    assert await fleet.download(job, tmp_path / "pictures") == [saved]  # it is there, and equal
    saved.write_bytes(b"mine")
    with pytest.raises(FileConflict) as refused:
        await fleet.download(job, tmp_path / "pictures")
    assert refused.value.paths == (saved,) and saved.read_bytes() == b"mine"
    await fleet.download(job, tmp_path / "pictures", replace=True)
    assert size_of(saved.read_bytes()) == (8, 8)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [saved.name]


async def test_everything_without_an_event_loop(world: Sharing, tmp_path: Path) -> None:
    def work() -> None:
        with FleetClient(world.api.url) as fleet:
            assert [one["name"] for one in fleet.workflows()] == ["noise"]
            assert fleet.workflow("noise")["parameters"]["properties"]["prefix"]["maxLength"] == 20
            told: list[str] = []
            job = fleet.submit("noise", {"picture": png(3)}, metadata={"order": "4711"}, priority=3)
            assert job["priority"] == 3 and fleet.job(job["id"])["metadata"] == {"order": "4711"}
            told += [event.name for event in fleet.follow(job, wait_s=60)]
            assert told[-1] == "status"
            ended = fleet.wait(job)
            assert fleet.estimate(job) is None
            assert [one["id"] for one in fleet.jobs(metadata={"order": "4711"})] == [job["id"]]
            assert [one["id"] for one in fleet.jobs(status="failed")] == []
            again = fleet.wait(fleet.retry(job), on_event=lambda event: told.append(event.name))
            assert again["retry_of"] == job["id"]
            with pytest.raises(TypeError, match="AsyncFleetClient"):
                fleet.wait(job, on_event=listen)
            target = tmp_path / "one.png"
            assert fleet.save(ended["outputs"][0], target) == target
            assert fleet.keep(again)["kept"] and not fleet.keep(again, keep=False)["kept"]
            fleet.delete(again)
            with pytest.raises(NothingFound):
                fleet.job(again["id"])
            with io.BytesIO(png(77)) as file:
                asset = fleet.upload(file, name="face.png", tags=["face"])
            assert asset["tags"] == ["face"] and fleet.file(asset["id"])["file_path"] == "face.png"
            assert len(fleet.wait(fleet.submit_graph(_graph(png(5))))["outputs"]) == 1
            fleet.delete_file(asset["id"])
            with pytest.raises(NothingFound):
                fleet.file(asset["id"])

    async def listen(event: StreamEvent) -> None: ...

    await aside(work)


async def test_refusals_name_the_field_and_what_it_takes(fleet: AsyncFleetClient) -> None:
    with pytest.raises(RequestRefused) as refused:
        await fleet.submit("noise", {"picture": png(), "prefix": "x" * 21, "promt": "?"})
    assert refused.value.code == "invalid_parameter" and refused.value.status == 422
    assert [(one.field, one.limit) for one in refused.value.problems] == [
        ("promt", ["picture", "prefix"]),
        ("prefix", 20),
    ]
    with pytest.raises(RequestRefused) as refused:
        await fleet.submit("noise", {"picture": png()}, priority=10_000_000)
    assert [one.field for one in refused.value.problems] == ["priority"]
    with pytest.raises(RequestRefused) as refused:
        await fleet.submit_graph({"1": {"class_type": "NoSuchClass", "inputs": {}}})
    assert [one.field for one in refused.value.problems] == ["node 1: class_type"]
    for wrong in ("../nodes", "", "a/b", "a?b"):
        with pytest.raises(RequestRefused, match="no workflow"):
            await fleet.submit(wrong)
    with pytest.raises(NothingFound):
        await fleet.submit("nothing")
    with pytest.raises(RequestRefused, match="JSON"):
        await fleet.submit("noise", {"picture": float("nan")})


async def test_a_failed_job_says_why_and_one_that_waits_goes_on(
    world: Sharing, fleet: AsyncFleetClient
) -> None:
    async with site() as web:
        with pytest.raises(JobNotSucceeded) as failed:
            await fleet.run("noise", {"picture": web.url("/none.png")}, wait_s=60)
    assert failed.value.code == "input_not_fetched" == failed.value.job["error"]["code"]  # type: ignore[index]
    assert (await fleet.wait(failed.value.job, check=False))["status"] == "failed"
    await hold(world)
    job = await fleet.submit("noise", {"picture": png(1)})
    with pytest.raises(WaitExpired):
        await fleet.wait(job, wait_s=0.5)
    with pytest.raises(StateConflict):
        await fleet.delete(job)
    assert (await fleet.cancel(job))["status"] == "canceled"
    with pytest.raises(JobNotSucceeded) as ended:
        await fleet.wait(job)
    assert ended.value.code == "canceled" and ended.value.error is None


async def test_lost_answers_make_no_second_job(world: Sharing) -> None:
    async with lossy(world.api.url) as door, AsyncFleetClient(door.url) as fleet:
        door.losing = 1
        file = await fleet.upload(png(2))
        assert door.lost == 1 and (await fleet.file(file["id"]))["size_bytes"] == len(png(2))
        door.losing = 1
        first = await fleet.submit("noise", {"picture": file["id"]})
        assert door.lost == 2
        graph = {**GRAPH, "1": {"class_type": "LoadImage", "inputs": {"image": file["file_path"]}}}
        door.losing = 1
        second = await fleet.submit_graph(graph)
        assert door.lost == 3
        door.losing = 1
        third = await fleet.retry(second)
        door.losing = 1
        batch = await fleet.submit_batch("noise", [{"params": {"picture": file["id"]}}])
        assert door.lost == 5
        assert [one["id"] async for one in fleet.batches()] == [batch["id"]]
        (item,) = (await fleet.wait_batch(batch, wait_s=60))["items"]
        ids = [one["id"] async for one in fleet.jobs()]
        assert ids == [item["job_id"], third["id"], second["id"], first["id"]]
        one = await fleet.submit("noise", {"picture": file["id"]}, idempotency_key="order-1")
        assert await fleet.submit("noise", {"picture": file["id"]}, idempotency_key="order-1") == one
        assert len([one async for one in fleet.jobs(page=2)]) == 5


async def test_streams_and_downloads_that_are_cut_go_on(world: Sharing, tmp_path: Path) -> None:
    async with lossy(world.api.url) as door, AsyncFleetClient(door.url) as fleet:
        await hold(world)
        job = await fleet.submit("noise", {"picture": png(2, 400)})
        told = []
        async for event in fleet.follow(job, wait_s=60):
            told.append(event.data.get("status"))
            if len(told) == 1:
                door.cut()
                await let_go(world)
        assert told[0] == "queued" and told[-1] == "succeeded"
        output = (await fleet.job(job))["outputs"][0]
        door.losing = 2
        assert size_of((await fleet.save(output, tmp_path / "one.png")).read_bytes()) == (400, 400)
        assert door.lost == 2


async def test_a_batch_from_dicts_to_files(fleet: AsyncFleetClient, tmp_path: Path) -> None:
    async with site() as web:
        await batches(fleet, tmp_path, web.url("/none.png"))


async def batches(fleet: AsyncFleetClient, tmp_path: Path, nothing: str) -> None:
    items: list[Any] = [
        {"custom_id": f"SKU-{number}", "params": {"picture": png(number), "prefix": "x"}}
        for number in range(3)
    ]
    with pytest.raises(RequestRefused) as refused:
        await fleet.submit_batch("noise", [*items, {"custom_id": "bad", "params": {"prefix": "y" * 30}}])
    assert {one.item for one in refused.value.problems} == {"bad"}
    dead = {"custom_id": "dead", "params": {"picture": nothing}}
    batch = await fleet.submit_batch("noise", [*items, dead], defaults={"metadata": {"shop": "north"}})
    told: list[str] = []
    ended = await fleet.wait_batch(batch, wait_s=60, on_event=lambda event: told.append(event.name))
    assert (ended["counts"]["succeeded"], ended["counts"]["failed"]) == (3, 1)
    assert told[0] == "batch" and told[-1] in ("batch", "item")
    names = [one["custom_id"] async for one in fleet.batch_items(batch, status=["succeeded"])]
    assert names == ["SKU-0", "SKU-1", "SKU-2"]
    saved = await fleet.download_batch(batch, tmp_path / "pictures")
    assert {path.name for path in saved} == {"SKU-0.png", "SKU-1.png", "SKU-2.png", "manifest.csv"}
    assert await fleet.download_batch(batch, tmp_path / "pictures") == saved
    packed = await fleet.save_batch_zip(batch, tmp_path / "all.zip")
    assert packed.read_bytes().startswith(b"PK")
    with pytest.raises(FileConflict):
        await fleet.save_batch_zip(batch, packed)
    again = await fleet.retry_batch(batch)
    assert again["retried"] == 1
    await fleet.wait_batch(batch, wait_s=60)
    assert (await fleet.cancel_batch(batch))["status"] == "completed"
    graphs = await fleet.submit_graph_batch([{"custom_id": "g", "workflow": _graph(png(8))}])
    assert (await fleet.wait_batch(graphs, wait_s=60))["counts"]["succeeded"] == 1


def _graph(picture: object) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": picture}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
