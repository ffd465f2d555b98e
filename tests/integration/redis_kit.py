"""Short words for what tests do with the stores."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import (
    Job,
    JobError,
    Output,
    OutputKind,
    OwnerEvent,
    Placement,
)
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.ports.runs import Claim, Refused, StoredOutput
from tests.factories import new_job

BROKEN = JobError(code="node_lost", message="gone")


async def submit(stores: Stores, **fields: Any) -> Job:
    """Put a job into the queue."""
    return (await stores.jobs.submit(new_job(**fields), idempotency=None, depth_limit=1000)).job


async def add_nodes(stores: Stores, *names: str) -> None:
    """Register nodes by these names."""
    for index, name in enumerate(names):
        await stores.nodes.add(Node(name=name, url=f"http://127.0.0.1:{9000 + index}"))


async def claim(
    stores: Stores, node: str = "g1", placement: Placement | None = None, ttl: float = 5, line: str = ""
) -> Claim:
    """Start the next job on a node, as a dispatcher does."""
    got = await stores.runs.claim(
        node=node,
        placements=[placement or Placement()],
        run=str(uuid4()),
        token=uuid4().hex,
        dispatcher="d1",
        line=line,
        ttl_s=ttl,
    )
    assert isinstance(got, Claim), got
    return got


async def past_retention(stores: Stores, *ids: str) -> None:
    """Let the retention of jobs that are over have ended, and a dispatcher see that."""
    client: Any = stores.redis
    await client.zadd("fleet:expiring", dict.fromkeys(ids, 0))
    assert set(ids) <= set(await stores.runs.forgettable(1000))


async def forget(stores: Stores, *ids: str) -> None:
    """Let jobs that are over be forgotten, without their files."""
    await past_retention(stores, *ids)
    for job_id in ids:
        await stores.runs.forget(job_id)


async def refused(stores: Stores, node: str = "g1") -> Refused:
    """Try the same and return why it was refused."""
    got = await stores.runs.claim(
        node=node, placements=[Placement()], run=str(uuid4()), token="t", dispatcher="d1", ttl_s=5
    )
    assert isinstance(got, Refused)
    return got


@asynccontextmanager
async def wakes(stores: Stores) -> AsyncIterator[list[bytes]]:
    """Yield a list that has, after the block, all that was called out to dispatchers and agents in it."""
    heard: list[bytes] = []
    names = ("fleet:wake", "fleet:wake:nodes")
    async with stores.events.channel(names[0]) as wake, stores.events.channel(names[1]) as nodes:
        yield heard
        for name, queue in zip(names, (wake, nodes), strict=True):
            await stores.redis.publish(name, "the end")
            while (said := await queue.get()) != b"the end":
                heard.append(said)


@asynccontextmanager
async def news_of(stores: Stores, owner: str = "local") -> AsyncIterator[AsyncIterator[OwnerEvent]]:
    """Yield what is told of an owner's jobs, one event after the other."""
    async with stores.events.clients(owner) as feed:

        async def events() -> AsyncIterator[OwnerEvent]:
            while True:
                for told in await feed.news():
                    if isinstance(told, OwnerEvent):
                        yield told

        yield events()


def output(index: int = 0, **fields: Any) -> Output:
    """Return an output with these facts."""
    base = Output(
        asset_id=str(uuid4()),
        node_id="2",
        key="images",
        index=index,
        name="a.png",
        kind=OutputKind.IMAGE,
        content_type="image/png",
        size_bytes=3,
        hash="blake3:00",
    )
    return replace(base, **fields)


def stored(made: Claim, one: Output) -> StoredOutput:
    """Return an output of a run as :meth:`RunStore.commit` takes it; its bytes are nowhere."""
    asset = Asset(
        id=one.asset_id,
        owner=made.job.owner,
        hash=f"blake3:{one.asset_id}",
        size_bytes=one.size_bytes,
        content_type=one.content_type,
        file_path=one.name,
        path=f"blobs/00/{one.asset_id}/00",
        created_at=1e9,
        expires_at=2e9,
        job_id=made.job.id,
    )
    return StoredOutput(output=one, asset=asset)
