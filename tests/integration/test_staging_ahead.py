"""Files of the next job come to a node while it computes; nothing else does."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from PIL import Image

from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.agent.cleaner import Folders, delete
from comfy_fleet.bootstrap import open_assets
from comfy_fleet.domain.graphs.graph import asset_reference
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.jobs.outputs import FileRef
from comfy_fleet.domain.nodes.host import Cleanup
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.sim import SimTiming
from tests.comfyui_server import ComfyServer
from tests.factories import picture
from tests.fakes.comfyui import chunks
from tests.fleet import Fleet, fleet_of, until

pytestmark = pytest.mark.usefixtures("redis")

LONG = SimTiming(job_s=600.0)


def png(color: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(data, "PNG")
    return data.getvalue()


class Uploads:
    """Files that were sent to nodes; each can be held up.

    Attributes:
        begun: How many were begun, by node.
        done: How many came.
        may: Set unless files are held up.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.done: list[str] = []
        self.may = asyncio.Event()
        self.may.set()
        upload = NodeClient.upload

        async def watched(client: NodeClient, node: str, **rest: Any) -> FileRef:
            self.begun.append(node)
            await self.may.wait()
            ref = await upload(client, node, **rest)
            self.done.append(node)
            return ref

        monkeypatch.setattr(NodeClient, "upload", watched)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> Uploads:
    for name, value in {"LOOK_S": 0.1, "RENEW_S": 0.1, "SOON_S": 0.05, "GAPS_S": (0.01, 0.01)}.items():
        monkeypatch.setattr(f"comfy_fleet.services.staging_ahead.{name}", value)
    return Uploads(monkeypatch)


@asynccontextmanager
async def busy(redis_port: int, **settings: Any) -> AsyncIterator[tuple[Fleet, Job]]:
    """Yield a fleet whose only node computes for a long time, and that job."""
    async with fleet_of(redis_port, "g1", sim={"timing": LONG}, **settings) as fleet:
        await cleaned(fleet)
        first = await fleet.submit(picture(1))
        await runs(fleet, first)
        yield fleet, first


async def cleaned(fleet: Fleet, name: str = "g1") -> None:
    """Have a node's agent delete files."""
    redis: Any = fleet.stores.redis
    await redis.hset(f"fleet:node:{name}", mapping={"host": "central", "cleans": "1"})


async def runs(fleet: Fleet, job: Job) -> None:
    async def running() -> bool:
        stats = await queue(fleet)
        return (await fleet.job(job.id)).status is JobStatus.RUNNING and len(stats["queue_running"]) == 1

    await until(running, what="the node computes")


async def queue(fleet: Fleet) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        found: dict[str, Any] = (await client.get(f"{fleet.sims['g1'].url}/queue")).json()
    return found


async def reads(fleet: Fleet, color: int = 7, **fields: Any) -> Job:
    """Have a job wait that reads a picture of its own."""
    assets = open_assets(fleet.settings, fleet.stores)
    asset, _ = await assets.upload(
        owner="local", chunks=chunks(png(color)), content_type="image/png", file_path=f"{color}.png"
    )
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": asset_reference(asset.id)}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "t"}},
    }
    named = {"assets": frozenset({asset.id}), "uploads": {"1/image": asset.id}}
    return await fleet.submit(graph, **named, **fields)


def there(fleet: Fleet) -> list[str]:
    """Return the files in the node's input folder, without their folders."""
    return [path.name for path in (fleet.sims["g1"].files.root / "input").rglob("*") if path.is_file()]


async def deleted(fleet: Fleet) -> int:
    """Return how many files that graphs read the agent is to delete; other orders are about a job's run."""
    redis: Any = fleet.stores.redis
    jobs = await redis.zrange("fleet:jobs", 0, -1)
    orders = await redis.zrange("fleet:trash:central", 0, -1)
    return sum(order.split()[1] not in jobs for order in orders)


async def stop(fleet: Fleet, job: Job) -> None:
    await fleet.stores.jobs.request_cancel(job.id)


async def test_a_file_is_there_before_its_run_and_nothing_is_posted_early(
    redis_port: int, uploads: Uploads
) -> None:
    async with busy(redis_port) as (fleet, first):
        job = await reads(fleet)
        await until(lambda: len(there(fleet)) == 1, what="its file is there")
        now = await queue(fleet)
        assert [len(now["queue_running"]), len(now["queue_pending"])] == [1, 0]
        waiting = await fleet.job(job.id)
        assert (waiting.status, waiting.run, waiting.node) == (JobStatus.QUEUED, None, None)
        await until(lambda: uploads.done, what="that is known")
        await stop(fleet, first)
        await runs(fleet, job)
        assert uploads.begun == ["g1"], "the run has found it"
        assert await deleted(fleet) == 0
        await stop(fleet, job)


async def test_it_can_be_switched_off(redis_port: int, uploads: Uploads) -> None:
    async with busy(redis_port, stage_ahead_bytes=0) as (fleet, first):
        job = await reads(fleet)
        await asyncio.sleep(1)
        assert uploads.begun == []
        await stop(fleet, first)
        await runs(fleet, job)
        assert uploads.begun == ["g1"]
        await stop(fleet, job)


@pytest.mark.parametrize("how", ["canceled", "drained", "overtaken"])
async def test_what_was_staged_in_vain_is_deleted(redis_port: int, uploads: Uploads, how: str) -> None:
    async with busy(redis_port) as (fleet, first):
        job = await reads(fleet)
        await until(lambda: uploads.done, what="its file is there")
        match how:
            case "canceled":
                await stop(fleet, job)
            case "drained":
                await fleet.stores.nodes.cordon("g1", reason="")
            case _:
                await fleet.submit(picture(2), priority=5)

        async def ordered() -> bool:
            return await deleted(fleet) == 1

        await until(ordered, what="it is to be deleted")
        await stop(fleet, first)


async def test_a_job_that_was_overtaken_gets_its_file_again(redis_port: int, uploads: Uploads) -> None:
    async with busy(redis_port) as (fleet, first):
        job = await reads(fleet)
        await until(lambda: uploads.done, what="its file is there")
        other = await fleet.submit(picture(2), priority=5)
        await stop(fleet, first)
        await runs(fleet, other)
        await stop(fleet, other)
        await runs(fleet, job)
        await stop(fleet, job)


async def test_a_run_waits_for_its_file_that_is_on_its_way(redis_port: int, uploads: Uploads) -> None:
    async with busy(redis_port) as (fleet, first):
        uploads.may.clear()
        job = await reads(fleet)
        await until(lambda: uploads.begun, what="its file is being sent")
        await stop(fleet, first)

        async def claimed() -> bool:
            return (await fleet.job(job.id)).status is JobStatus.RUNNING

        await until(claimed, what="the job has the node")
        uploads.may.set()
        await runs(fleet, job)
        assert uploads.begun == ["g1"]
        await stop(fleet, job)


async def test_a_run_does_not_wait_for_files_of_another_job(redis_port: int, uploads: Uploads) -> None:
    async with busy(redis_port) as (fleet, first):
        uploads.may.clear()
        job = await reads(fleet)
        await until(lambda: uploads.begun, what="its file is being sent")
        other = await fleet.submit(picture(2), priority=5)
        await stop(fleet, first)
        await runs(fleet, other)
        uploads.may.set()
        await until(
            lambda: len(uploads.done) == 1, what="it is sent again, and was not sent to its end before"
        )
        assert uploads.begun == ["g1", "g1"]
        await stop(fleet, other)
        await runs(fleet, job)
        await stop(fleet, job)


async def test_another_dispatcher_goes_on_where_one_was_killed_while_it_sent(
    redis_port: int, uploads: Uploads
) -> None:
    async with busy(redis_port) as (fleet, first):
        uploads.may.clear()
        job = await reads(fleet)
        await until(lambda: uploads.begun, what="its file is being sent")
        await fleet.dispatchers[0].kill()
        uploads.may.set()
        await fleet.dispatcher("d2")
        await until(lambda: uploads.done, what="it is sent by the other one")
        await stop(fleet, first)
        await runs(fleet, job)
        assert uploads.done == ["g1"]
        await stop(fleet, job)
        redis: Any = fleet.stores.redis
        names = await redis.hkeys("fleet:staged:g1")
        assert len(names) == 2, "what the first one began has a record"


async def test_with_two_dispatchers_each_job_runs_once_with_its_own_file(
    redis_port: int, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.staging_ahead.LEAD_S", 0.02)
    async with fleet_of(redis_port, "g1", "g2", sim={"timing": SimTiming(job_s=0.4)}) as fleet:
        for name in fleet.sims:
            await cleaned(fleet, name)
        await fleet.dispatcher("d2")
        jobs = [await reads(fleet, color) for color in range(16)]
        await until(lambda: len(uploads.done) >= 6, what="some files are there")
        await fleet.dispatchers[0].kill()
        for job in jobs:
            assert (await fleet.ended(job.id, timeout_s=60)).status is JobStatus.SUCCEEDED
        assert len(jobs) <= sum(sim.stats.done for sim in fleet.sims.values()) <= len(jobs) + 2
        # Whatever is there has a name that ends, or an order to delete it.
        redis: Any = fleet.stores.redis
        orders = {tuple(order.split()[1:3]) for order in await redis.zrange("fleet:trash:central", 0, -1)}
        for name, sim in fleet.sims.items():
            names = await redis.hgetall(f"fleet:staged:{name}")
            assert names.keys() == {*await redis.zrange(f"fleet:staged:{name}:ends", 0, -1)}
            known = orders | {tuple(folders.split(b"/")) for folders in names.values()}
            root = sim.files.root / "input" / "fleet"
            for path in root.rglob("*.png"):
                assert tuple(part.encode() for part in path.relative_to(root).parts[:2]) in known


@pytest.mark.comfyui
@pytest.mark.timeout(240)
async def test_a_real_comfyui_gets_a_file_while_it_computes(
    redis_port: int, uploads: Uploads, comfyui_server: ComfyServer
) -> None:
    files = comfyui_server.folder / "input" / "fleet"
    before = set(files.rglob("*.png"))  # other tests use this ComfyUI, too
    async with fleet_of(redis_port) as fleet:
        await fleet.stores.nodes.add(Node(name="g1", url=comfyui_server.url, added_at=time.time()))
        await cleaned(fleet)
        await fleet.verdict("g1")
        busy_ = {
            **picture(int(time.time()) % 0xFFFFFF),
            "3": {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": 10.0}},
        }
        busy_["2"]["inputs"]["images"] = ["3", 0]
        first = await fleet.submit(busy_)
        await until(lambda: fleet.dispatchers[0].dispatcher.flying, what="the node computes", timeout_s=60)
        job = await reads(fleet)
        await until(lambda: uploads.done, what="its file is there")
        assert [(await fleet.job(one.id)).status for one in (first, job)] == [
            JobStatus.RUNNING,
            JobStatus.QUEUED,
        ]
        for one in (first, job):
            assert (await fleet.ended(one.id, timeout_s=60)).status is JobStatus.SUCCEEDED
        assert uploads.begun == ["g1"]
        # The next one is canceled: what was sent for it goes.
        again = await fleet.submit({**busy_, "1": picture(1)["1"]})
        await until(lambda: fleet.dispatchers[0].dispatcher.flying, what="the node computes", timeout_s=60)
        other = await reads(fleet, color=8)
        await until(lambda: len(uploads.done) == 2, what="its file is there")
        assert len({*files.rglob("*.png")} - before) == 2
        await stop(fleet, other)
        await until(lambda: deleted(fleet), what="it is to be deleted")
        redis: Any = fleet.stores.redis
        for order in await redis.zrange("fleet:trash:central", 0, -1):
            folders = Folders(output=comfyui_server.folder / "output", input=files.parent)
            delete(Cleanup.parse(order.decode()), folders)
        assert len({*files.rglob("*.png")} - before) == 1
        await fleet.ended(again.id, timeout_s=60)
