"""Files on a node's disk while runs stage, end and are taken over, files are sent ahead of runs, and an agent
deletes, in any order."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest

from comfy_fleet.adapters.redis.ahead import RedisAhead
from comfy_fleet.adapters.redis.asset_record import dump_asset
from comfy_fleet.adapters.redis.hosts import RedisHosts
from comfy_fleet.agent.cleaner import Folders, delete
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.nodes.host import Cleanup, Heartbeat, Joining
from comfy_fleet.ports.ahead import NextJob
from comfy_fleet.ports.runs import Claim, StagedInput
from tests.integration.redis_kit import BROKEN, claim, submit

STEPS = 300
OWNERS, CONTENTS = ("ann", "bob"), tuple("abcdefgh")


@dataclass
class Disk:
    """A node's input folder, its agent, and the runs that are on the node.

    Attributes:
        running: The files that each run needs, by run.
        ordered: What the agent was told to delete and may delete at any time.
        found: Whose each place is.
        coming: Files that are being sent ahead, and whose they are.
        came: Where those are that have come and were not used.
        guess: What was to be sent ahead last.
        foreseen: How often a run found a file that was sent ahead.
    """

    stores: Stores
    root: Path
    random: Random
    running: dict[str, tuple[Claim, dict[Path, str]]] = field(default_factory=dict)
    ordered: list[Cleanup] = field(default_factory=list)
    done: list[Cleanup] = field(default_factory=list)
    found: dict[str, tuple[str, str]] = field(default_factory=dict)
    reused: int = 0
    coming: list[tuple[StagedInput, tuple[str, str]]] = field(default_factory=list)
    came: set[str] = field(default_factory=set)
    foreseen: int = 0
    guess: dict[str, tuple[str, str]] = field(default_factory=dict)

    async def begin(self) -> None:
        """A run claims the node, and stages as :mod:`comfy_fleet.services.staging` does."""
        await submit(self.stores)
        run = await claim(self.stores, ttl=60)
        await self.stage(run)

    def wanted(self) -> dict[str, tuple[str, str]]:
        return {
            f"{owner}-{text}": (owner, text)
            for owner in OWNERS
            for text in CONTENTS
            if self.random.random() < 0.2
        }

    async def foresee(self) -> None:
        """Files are to be sent for some job, or for none."""
        wanted = self.guess = self.wanted()
        job = await submit(self.stores, assets=frozenset(wanted)) if self.random.random() < 0.8 else None
        places = await RedisAhead(self.stores.redis).stage_ahead(
            "g1",
            NextJob(id=job.id, asset_ids=[*wanted]) if job is not None else None,
            keep_s=self.random.choice([0.0, 60.0, 60.0]),
            most_bytes=1000,
        )
        self.coming += [(staged, wanted[asset]) for asset, staged in places.items() if staged.new]

    async def arrive(self) -> None:
        """A file is there, or its dispatcher was killed before or after that."""
        if not self.coming:
            return
        staged, whose = self.coming.pop(self.random.randrange(len(self.coming)))
        fate, redis = self.random.random(), self.stores.redis
        # Sending takes less time than its place is kept: without its dispatcher, none comes later.
        if fate < 0.1 or (
            fate < 0.3 and not await redis.hexists("fleet:staged:g1", f"ahead {staged.folders}")
        ):
            return
        file = self.root / "input" / "fleet" / staged.folders / "file.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(whose[1])
        self.came.add(staged.folders)
        if fate >= 0.3:
            await RedisAhead(self.stores.redis).staged_ahead(
                "g1", staged, keep_s=self.random.choice([0.0, 60.0])
            )

    async def stage(self, run: Claim) -> None:
        wanted = self.guess if self.random.random() < 0.8 else self.wanted()
        keep_s = self.random.choice([0.0, 0.0, 0.05])
        places = await self.stores.runs.stage(run, [*wanted], keep_s=keep_s) if wanted else {}
        files = {}
        for asset, staged in places.items():
            whose = wanted[asset]
            assert self.found.setdefault(staged.folders, whose) == whose, (
                "a place is one owner's and content's"
            )
            file = self.root / "input" / "fleet" / staged.folders / "file.png"
            self.reused += file.exists()
            self.foreseen += file.exists() and staged.folders in self.came
            self.came.discard(staged.folders)
            if not file.exists():
                file.parent.mkdir(parents=True)
                file.write_text(whose[1])
            files[file] = whose[1]
        self.running[run.run] = run, files

    async def end(self) -> None:
        """A run ends, or its dispatcher is killed and another one has the job go back."""
        if not self.running:
            return
        run, files = self.running.pop(self.random.choice([*self.running]))
        self.check(files)
        match self.random.randrange(3):
            case 0:
                await self.stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=None)
            case 1:
                await self.stores.runs.requeue(run, counts=False, reason=BROKEN)
            case _:
                await self.stores.runs.hand_over([run])
                (held,) = await self.stores.runs.take_over(dispatcher="d2", ttl_s=60, limit=5)
                self.running[run.run] = held.claim, files

    async def beat(self) -> None:
        """The agent asks what to delete, and tells what it has deleted."""
        said = Heartbeat(host="h1", instance="i", deleted=self.done)
        self.ordered = list((await RedisHosts(self.stores.redis).beat(said, now=time.time())).delete)
        self.done = [one for one in self.done if one in self.ordered]

    async def clean(self) -> None:
        """The agent carries out an order, old or new."""
        if self.ordered:
            order = self.random.choice(self.ordered)
            delete(order, Folders(output=self.root / "output", input=self.root / "input"))
            self.done.append(order)

    async def obey(self) -> None:
        """The agent carries out all orders, and has told so."""
        for _ in range(STEPS):
            await self.beat()
            if not self.ordered:
                return
            self.ordered = [one for one in self.ordered if one not in self.done]
            while self.ordered:
                await self.clean()
                self.ordered = [one for one in self.ordered if one not in self.done]

    async def wait(self) -> None:
        """Time passes."""
        await asyncio.sleep(self.random.choice([0.0, 0.02]))

    def check(self, files: dict[Path, str]) -> None:
        for file, text in files.items():
            assert file.read_text() == text, file

    @property
    def left(self) -> list[Path]:
        return list((self.root / "input" / "fleet").glob("*/*/*"))


@pytest.fixture(params=range(4))
async def disk(request: pytest.FixtureRequest, stores: Stores, tmp_path: Path) -> Disk:
    (tmp_path / "output").mkdir()
    (tmp_path / "input").mkdir()
    joining = Joining(name="g1", url="http://10.0.0.1:8188", agent="10.0.0.1:8193", cleans_up=True)
    await RedisHosts(stores.redis).join("h1", joining, now=1.0)
    redis: Any = stores.redis
    for owner in OWNERS:
        for text in CONTENTS:
            asset = Asset(
                id=f"{owner}-{text}", owner=owner, hash=f"blake3:{text}", size_bytes=1,
                content_type="image/png", file_path=f"{uuid4()}.png", path="x", created_at=1.0,
            )  # fmt: skip
            await redis.hset(stores.redis.keyspace.asset(asset.id), mapping=dump_asset(asset))
    return Disk(stores, tmp_path, Random(request.param))


async def test_no_run_ever_misses_a_file_and_in_the_end_none_is_left(disk: Disk) -> None:
    redis: Any = disk.stores.redis
    for _ in range(STEPS):
        step = disk.random.choice(
            [
                *(disk.begin, *[disk.end] * 3, disk.beat, disk.clean, disk.clean, disk.wait),
                *(disk.foresee, disk.arrive, disk.arrive, disk.arrive),
            ]
        )
        if step == disk.begin and await disk.stores.runs.lease_of("g1") is not None:
            await redis.delete(
                "fleet:lease:g1"
            )  # its prompt has left the node, its outputs are still fetched
        await step()
        for _, files in disk.running.values():
            disk.check(files)
    assert disk.reused, "some run found its file there"
    assert disk.foreseen, "some run found a file that was sent ahead of it"
    while disk.coming:
        await disk.arrive()
    while disk.running:
        await disk.end()
    await disk.obey()
    files = await redis.hkeys("fleet:staged:g1")
    if files:
        await redis.zadd("fleet:staged:g1:ends", dict.fromkeys(files, 0))
    await disk.obey()
    assert disk.left == []
    assert await redis.exists("fleet:staged:g1") == 0
