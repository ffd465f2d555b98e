"""Figures of the whole fleet, for metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from comfy_fleet.domain.disk_room import Room
from comfy_fleet.domain.nodes.host import HostState
from comfy_fleet.domain.nodes.node import NodeState


@dataclass(frozen=True, kw_only=True)
class PoolQueue:
    """What waits for a pool.

    Attributes:
        pool: The pool that is tried first.
        waiting: How many jobs.
        oldest_s: For how many seconds the oldest of them has waited.
    """

    pool: str
    waiting: int
    oldest_s: float


@dataclass(frozen=True, kw_only=True)
class WebhookBacklog:
    """Messages to webhooks that are not delivered yet.

    Attributes:
        waiting: How many; of very many receivers, those of the first.
        late_s: For how many seconds the first of them has been due at a receiver that does not fail.
        failing: How many receivers fail.
    """

    waiting: int = 0
    late_s: float = 0.0
    failing: int = 0


@dataclass(frozen=True, kw_only=True)
class StoreFigures:
    """What Redis keeps of queue and webhooks, and what it says of itself.

    Attributes:
        queues: What waits, by pool.
        batch_items: Items of batches that wait until the queue has room.
        webhooks: Messages that are not delivered.
        unstored: Bytes of outputs that wait, by store.
        dispatchers: How many live.
        server: Figures out of Redis' ``INFO`` by the name of the metric; empty if its user may not ask.
    """

    queues: Sequence[PoolQueue] = ()
    batch_items: int = 0
    webhooks: WebhookBacklog = WebhookBacklog()
    unstored: Mapping[str, int] = field(default_factory=dict)
    dispatchers: int = 0
    server: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FleetView:
    """The fleet as it is at one moment.

    Attributes:
        nodes: All nodes.
        hosts: All hosts.
        store: Queue, webhooks, dispatchers, and Redis itself.
        errors: What the last estimates' jobs really took over what was estimated, by kind of estimate.
        room: The disk.
        at: Unix seconds of the fleet's time.
        took_s: How long reading all this took.
    """

    nodes: Sequence[NodeState]
    hosts: Sequence[HostState]
    store: StoreFigures
    errors: Mapping[str, Sequence[float]]
    room: Room
    at: float
    took_s: float


class Figures(Protocol):
    """Reads them."""

    async def read(self) -> StoreFigures:
        """Return them as they are now.

        Raises:
            StoreDown: No answer.
        """
