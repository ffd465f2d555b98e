"""Tells pages that show the fleet that something has changed: they read it anew.

One subscription serves all watchers of a process, and there is none without a watcher. However much happens,
a watcher keeps a few numbers: what it has not taken yet is added up.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.ports.changes import StatusChanges
from comfy_fleet.ports.nodes import NodeRegistry


@dataclass(frozen=True, kw_only=True)
class News:
    """What has happened since the last look.

    Attributes:
        nodes: Whether nodes may have changed.
        statuses: How many jobs have come to each status.
    """

    nodes: bool = False
    statuses: Counter[JobStatus] = field(default_factory=Counter)


class Watcher:
    """Who watches the fleet.

    Args:
        owners: Whose jobs they see; None: everybody's, and the nodes.
    """

    def __init__(self, owners: Collection[str] | None) -> None:
        self._owners = owners
        self._nodes = False
        self._statuses: Counter[JobStatus] = Counter()
        self._came = asyncio.Event()

    def add(self, owner: str, status: JobStatus) -> None:
        """Take a job's status."""
        if self._owners is None or owner in self._owners:
            self._statuses[status] += 1
            self._came.set()

    def touch(self) -> None:
        """Note that nodes may have changed."""
        if self._owners is None:
            self._nodes = True
            self._came.set()

    async def news(self) -> News:
        """Wait until something has happened, and return it."""
        await self._came.wait()
        self._came.clear()
        news = News(nodes=self._nodes, statuses=self._statuses)
        self._nodes, self._statuses = False, Counter()
        return news


class LiveChanges:
    """Tells watchers of this process what happens.

    Args:
        jobs: Each status of a job.
        nodes: The nodes.
    """

    def __init__(self, jobs: StatusChanges, nodes: NodeRegistry) -> None:
        self._jobs = jobs
        self._nodes = nodes
        self._watchers: set[Watcher] = set()
        self._any = asyncio.Event()

    @contextmanager
    def watch(self, owners: Collection[str] | None) -> Iterator[Watcher]:
        """Yield a watcher.

        Args:
            owners: Whose jobs it is told of; None: everybody's, and of nodes.
        """
        watcher = Watcher(owners)
        self._watchers.add(watcher)
        self._any.set()
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            if not self._watchers:
                self._any.clear()

    async def follow_jobs(self) -> None:
        """Tell of jobs, while somebody watches."""
        while True:
            await self._any.wait()
            async with self._jobs.statuses() as statuses:
                async for change in statuses:
                    for watcher in self._watchers:
                        watcher.add(change.owner, change.status)
                    if not self._watchers:
                        break

    async def follow_nodes(self) -> None:
        """Tell of nodes, while somebody watches."""
        while True:
            await self._any.wait()
            async with aclosing(self._nodes.changes()) as changes:
                async for _ in changes:
                    for watcher in self._watchers:
                        watcher.touch()
                    if not self._watchers:
                        break
