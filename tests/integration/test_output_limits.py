"""Runs whose outputs are too many, too large or never end: a clear end for them, and not felt by others."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from redis.asyncio import Redis

from comfy_fleet.adapters.comfyui.node_client import NODE, NodeClient
from comfy_fleet.adapters.redis.clock import ServerClock
from comfy_fleet.adapters.system.disk import Disk
from comfy_fleet.adapters.telemetry import NullTelemetry
from comfy_fleet.bootstrap import Stores
from comfy_fleet.connections import close
from comfy_fleet.domain.errors import NodeError, OutputGone, OutputLimit, OutputRefused
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.jobs.outputs import FileRef, find_outputs
from comfy_fleet.services import collector
from comfy_fleet.services.collector import Collector, OutputLimits, Sharing
from comfy_fleet.sim import SimTiming
from tests.assets_kit import assets_on
from tests.conftest import free_port
from tests.factories import picture
from tests.fleet import fleet_of, until
from tests.integration.redis_kit import add_nodes, claim, submit

BOMB = gzip.compress(bytes(2**26))
BATCH = {"width": 8, "height": 8, "color": 255}


def batches(size: int, savers: int = 1) -> dict[str, Any]:
    """A graph that makes size × savers pictures."""
    graph: dict[str, Any] = {"1": {"class_type": "EmptyImage", "inputs": {**BATCH, "batch_size": size}}}
    for number in range(savers):
        inputs = {"images": ["1", 0], "filename_prefix": f"t{number}"}
        graph[str(number + 2)] = {"class_type": "SaveImage", "inputs": inputs}
    return graph


def contents(folder: Path) -> list[bytes]:
    """Return what the files below a folder hold."""
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


@pytest.mark.parametrize("graph", [batches(30), batches(4, savers=6)], ids=["at once", "node by node"])
async def test_too_many_outputs_fail_the_job_once_and_under_the_limits_name(
    redis_port: int, graph: dict[str, Any]
) -> None:
    async with fleet_of(redis_port, "g1", max_outputs=20) as fleet:
        failed = await fleet.ended((await fleet.submit(graph)).id)
        assert failed.status is JobStatus.FAILED and failed.error is not None
        assert (failed.error.code, failed.attempt) == ("output_limit", 1)
        assert fleet.sims["g1"].stats.done <= 1
        assert "more than 20 outputs (FLEET_MAX_OUTPUTS)" in failed.error.message
        assert failed.error.details == {"limit": "max_outputs", "value": 20}
        assert len(failed.outputs) <= 20
        good = await fleet.ended((await fleet.submit(batches(20))).id)
        assert (good.status, len(good.outputs)) == (JobStatus.SUCCEEDED, 20)


async def test_a_run_with_too_many_outputs_is_not_computed_to_its_end(redis_port: int) -> None:
    graph = batches(30) | {
        "8": {"class_type": "EmptyImage", "inputs": {**BATCH, "batch_size": 1, "color": 1}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "z"}},
    }
    async with fleet_of(redis_port, "g1", max_outputs=20, sim={"timing": SimTiming(job_s=0.5)}) as fleet:
        failed = await fleet.ended((await fleet.submit(graph)).id)
        assert failed.error is not None and failed.error.code == "output_limit"
        assert (await fleet.ended((await fleet.submit(picture(1))).id)).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("limit", ["max_output_bytes", "max_job_bytes"])
async def test_outputs_that_are_too_large_fail_the_job(redis_port: int, limit: str) -> None:
    settings: dict[str, Any] = {limit: 60}
    async with fleet_of(redis_port, "g1", **settings) as fleet:
        failed = await fleet.ended((await fleet.submit(picture(1))).id)
        assert (failed.status, failed.attempt, failed.outputs) == (JobStatus.FAILED, 1, ())
        assert failed.error is not None and failed.error.details["limit"] == limit
        assert f"larger than 60 B{' together' if 'job' in limit else ''} (FLEET_{limit.upper()})" in (
            failed.error.message
        )
        assert not contents(fleet.settings.files_dir)
        assert fleet.sims["g1"].stats.done == 1


async def test_no_lease_is_renewed_late_because_others_have_much_to_write(redis_port: int) -> None:
    async with fleet_of(
        redis_port, "g1", sim={"timing": SimTiming(job_s=30)}, redis_connections=4, redis_wait_s=0.1
    ) as fleet:
        await fleet.submit(picture(1))
        await until(lambda: fleet.sims["g1"].engine.running, what="the prompt runs")
        (running,) = fleet.dispatchers
        (execution,) = running.dispatcher.flying.values()
        run = execution.claim.run
        redis = Redis.from_url(fleet.settings.redis_url)
        try:
            before: Any = await redis.zscore("fleet:runs", run)
            # Every connection of the pool is taken, for longer than a lease holds.
            pool: Any = fleet.stores.redis
            hogs = [asyncio.create_task(pool.blpop([f"none-{n}"], 4)) for n in range(4)]

            async def renewed() -> bool:
                after: Any = await redis.zscore("fleet:runs", run)
                return bool(after > before + fleet.settings.lease_ttl_s / 2)

            await until(renewed, what="the lease is renewed all the same")
            assert not any(hog.done() for hog in hogs)
            for hog in hogs:
                hog.cancel()
            await asyncio.gather(*hogs, return_exceptions=True)
        finally:
            await redis.aclose()


# -- what one node hands over ----------------------------------------------------------------------


class Hostile:
    """A node that answers ``/view`` as a file's name says; the broker's header is its own."""

    def __init__(self, port: int) -> None:
        self.client = NodeClient(f"http://127.0.0.1:{port}")
        self.sent = 0
        self.asked: list[str] = []
        self.there: set[str] = set()

    async def view(self, request: web.Request) -> web.StreamResponse:
        name = request.query["filename"]
        self.asked.append(name)
        if name.startswith("late") and self.asked.count(name) < 4:
            return web.Response(status=404, headers={NODE: "g1"})
        if ".." in name or name.startswith("gone"):
            return web.Response(status=400 if ".." in name else 404, headers={NODE: "g1"})
        if name == "moved.bin":
            return web.Response(status=302, headers={NODE: "g1", "Location": "/view?filename=there.bin"})
        if name == "packed.bin":
            return web.Response(headers={NODE: "g1", "Content-Encoding": "gzip"}, body=BOMB)
        response = web.StreamResponse(headers={NODE: "g1"})
        if name == "short.bin":
            response.content_length = 100
        if name == "huge.bin":
            response.content_length = 3 * 2**29
        await response.prepare(request)
        piece = b"x" if name == "slow.bin" else bytes(2**16)
        try:
            while name in ("huge.bin", "endless.bin", "slow.bin"):
                await response.write(piece)
                self.sent += len(piece)
                await asyncio.sleep(0.01 if name == "slow.bin" else 0)
            await response.write(b"data")
            if name == "short.bin" and request.transport:
                request.transport.close()
        except ConnectionError:
            pass
        return response


@asynccontextmanager
async def hostile(stores: Stores, folder: Path, **limits: Any) -> AsyncIterator[tuple[Hostile, Collector]]:
    """A run whose outputs a hostile node holds."""
    port = free_port()
    node = Hostile(port)
    app = web.Application()
    app.router.add_get("/view", node.view)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    assert runner.server
    server = await asyncio.get_running_loop().create_server(runner.server, "127.0.0.1", port)
    if not await stores.nodes.nodes():
        await add_nodes(stores, "g1")
    await stores.redis.delete("fleet:lease:g1")
    await submit(stores)
    store = assets_on(stores.redis, folder, clock=ServerClock(stores.redis), disk=Disk(folder, floor_bytes=0))
    async with node.client as nodes:
        collector = Collector(
            await claim(stores, ttl=60),
            runs=stores.runs,
            nodes=nodes,
            assets=store,
            limits=OutputLimits(**limits),
            sharing=Sharing(8),
            telemetry=NullTelemetry(),
        )
        try:
            yield node, collector
        finally:
            collector.cancel()
            await close(server)
            await runner.cleanup()


def named(*names: str, temp: str = "") -> Any:
    files = [{"filename": name, "subfolder": "", "type": "output"} for name in names]
    previews = [{"filename": temp, "subfolder": "", "type": "temp"}] if temp else []
    return find_outputs("7", {"images": files, "previews": previews})


@pytest.mark.parametrize(
    ("name", "limits", "limit"),
    [
        ("huge.bin", {}, "max_output_bytes"),
        ("endless.bin", {"output_bytes": 5_000_000}, "max_output_bytes"),
        ("endless.bin", {"job_bytes": 5_000_000}, "max_job_bytes"),
        ("slow.bin", {"output_s": 4.0}, "output_timeout_s"),
    ],
)
async def test_a_file_without_an_end_is_given_up_and_leaves_nothing(
    stores: Stores, tmp_path: Path, name: str, limits: dict[str, Any], limit: str
) -> None:
    async with hostile(stores, tmp_path, **limits) as (node, outputs):
        outputs.add(named("good.png"))
        assert await outputs.settled() == []
        outputs.add(named("good.png", name))
        (error,) = await outputs.settled()
        assert isinstance(error, OutputLimit) and error.details["limit"] == limit
        assert node.asked.count(name) == 1
        assert node.sent < 64 * 2**20
    assert contents(tmp_path) == [b"data"]


@pytest.mark.parametrize("name", ["short.bin", "moved.bin"])
async def test_what_breaks_off_or_is_elsewhere_is_not_taken(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(collector, "FETCH_GAP_S", 0.01)
    async with hostile(stores, tmp_path) as (node, outputs):
        outputs.add(named("good.png", name))
        (error,) = await outputs.settled()
        assert isinstance(error, NodeError)
        assert set(node.asked) == {"good.png", name}  # never where it was sent
    assert contents(tmp_path) == [b"data"]


async def test_what_is_packed_is_kept_as_it_is(stores: Stores, tmp_path: Path) -> None:
    async with hostile(stores, tmp_path, output_bytes=2 * len(BOMB)) as (_, outputs):
        outputs.add(named("packed.bin"))
        assert await outputs.settled() == []
    assert contents(tmp_path) == [BOMB]


async def test_not_yet_never_and_does_not_matter_are_told_apart(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "LATE_S", 1.0)
    async with hostile(stores, tmp_path) as (node, outputs):
        outputs.add(named("good.png", "late.png", temp="gone.png"))
        assert await outputs.settled() == []
        assert node.asked.count("late.png") == 4
    async with hostile(stores, tmp_path) as (node, outputs):
        outputs.add(named("a..b.png", "good.png"))
        (error,) = await outputs.settled()
        assert isinstance(error, OutputRefused) and "'a..b.png'" in str(error)
        assert node.asked.count("a..b.png") == 1
    async with hostile(stores, tmp_path) as (node, outputs):
        outputs.add(named(temp="gone.png"))
        (error,) = await outputs.settled()
        assert isinstance(error, OutputGone)  # the preview is all that there is


async def test_a_text_of_any_length_stays_out_of_the_records(stores: Stores, tmp_path: Path) -> None:
    async with hostile(stores, tmp_path) as (_, outputs):
        items = find_outputs("7", {"text": ["x" * 3_000_000]})
        outputs.add(items)
        assert await outputs.settled() == []
        largest = 0
        async for key in stores.redis.scan_iter("*"):
            largest = max(largest, await stores.redis.memory_usage(key) or 0)
        assert largest < 100_000


async def test_a_local_error_in_mid_stream_is_not_the_nodes(stores: Stores, tmp_path: Path) -> None:
    async with hostile(stores, tmp_path) as (node, _):
        ref = FileRef("good.png")
        with pytest.raises(OSError, match="ours") as caught:  # noqa: PT012 - in mid-stream
            async with node.client.view("g1", ref) as content:
                async for _ in content.chunks:
                    raise OSError("ours")
        assert not isinstance(caught.value, NodeError)
