"""GPU hosts in Redis: their agents' last heartbeats, and orders for them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import Complaints, to_dict
from comfy_fleet.adapters.redis.nodes import MOVING, read_node
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import BadInput, Conflict, StoreDown
from comfy_fleet.domain.nodes.host import (
    Cleanup,
    GpuAllocation,
    Heartbeat,
    HostState,
    Joining,
    Orders,
    written,
)
from comfy_fleet.domain.nodes.node import LIVE, Node
from comfy_fleet.domain.records import UNREADABLE, from_fields

FRESH_S = 10
"""How long a heartbeat is shown: agents send one every second, less often while the API is in trouble."""
ALLOCATION_S = 60
"""How long a node keeps its place on a GPU without a word: longer than its agent's restart takes."""
MAX_HOSTS = 1000
MOST_NODES = 10_000
"""Of a host, where nobody says less."""
_TRIES = 5


class RedisHosts:
    """Heartbeats in, orders out."""

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._complaints = Complaints()

    async def admit(self, host: str, instance: str) -> None:
        """Make one start of an agent the only one that speaks for its host.

        Raises:
            Conflict: Another one does already.
        """
        if not await self._scripts.call("host_admit", host=host, instance=instance):
            raise _taken(host)

    async def beat(self, beat: Heartbeat, *, now: float) -> Orders:
        """Store a heartbeat and return the orders for its agent.

        Args:
            beat: The heartbeat.
            now: Unix seconds.

        Raises:
            Conflict: Another agent speaks for the host.
        """
        record = {
            "host": beat.host,
            "instance": beat.instance,
            "central": beat.central,
            "version": beat.version,
            "agent": beat.agent,
            "seen_at": now,
            "gpus": list(beat.gpus),
            "gpus_why": beat.gpus_why,
            "nodes": [{**written(asdict(report)), "facts": dict(report.facts)} for report in beat.nodes],
        }
        answer = await self._scripts.call(
            "host_beat",
            orjson.dumps(record),
            host=beat.host,
            instance=beat.instance,
            central=beat.central,
            ttl_s=FRESH_S,
            seat_ttl_s=ALLOCATION_S,
            most_hosts=MAX_HOSTS,
            store=uuid4().hex,
            reports=[
                {
                    "name": report.name,
                    "word": report.readiness,
                    "why": report.reason,
                    "boot": report.boot_id,
                    "freed": report.freed_id,
                    "gpu": report.gpu_allocation.gpu if report.gpu_allocation else "",
                    "seat": _dump_allocation(report.gpu_allocation),
                    "facts": orjson.dumps(dict(report.facts)).decode(),
                    "address": report.address,
                    "runs": list(report.runs),
                }
                for report in beat.nodes
            ],
            seen=list(beat.seen),
            leaving=list(beat.leaving),
            deleted=[str(cleanup) for cleanup in beat.deleted],
        )
        if answer == b"taken":
            raise _taken(beat.host)
        if answer == b"full":
            raise Conflict(
                f"{MAX_HOSTS} hosts have agents already: no more are kept",
                details={"field": "host", "limit": MAX_HOSTS},
            )
        nodes, explained, clear, cleanup, restart, neighbours, store = answer
        return Orders(
            nodes=self._nodes(nodes),
            explained=frozenset(run.decode() for run in explained),
            clear=frozenset(name.decode() for name in clear),
            delete=list(_cleanups(cleanup)),
            restart=frozenset(name.decode() for name in restart),
            neighbours=self._allocations(neighbours),
            store=store.decode(),
        )

    def _nodes(self, rows: Sequence[Sequence[bytes]]) -> list[Node]:
        found = []
        for raw, *live in rows:
            try:
                found.append(_told(raw, live))
            except (*UNREADABLE, BadInput) as error:
                self._complaints.about("node", repr(raw[:80]), error)
        return found

    def _allocations(self, rows: Sequence[Sequence[bytes]]) -> dict[str, GpuAllocation]:
        found = {}
        for name, raw, age in rows:
            try:
                found[name.decode()] = _allocation(raw, float(age))
            except UNREADABLE as error:
                self._complaints.about("GPU allocation of node", repr(name), error)
        return found

    def _record(self, host: str, raw: bytes | None) -> dict[str, Any]:
        try:
            return dict(orjson.loads(raw)) if raw else {}
        except UNREADABLE as error:
            self._complaints.about("host", host, error)
            return {}

    async def join(
        self,
        host: str,
        joining: Joining,
        *,
        now: float,
        most_nodes: int = MOST_NODES,
        most_pools: int = MOST_NODES,
    ) -> Node:
        """Register a host's node, or update its address; cordon, pool and counts stay.

        Args:
            host: The host's name.
            joining: The agent's registration of the node.
            now: Unix seconds.
            most_nodes: How many nodes the host may have.
            most_pools: In how many pools they may be.

        Raises:
            Conflict: The name or the URL belongs to a node that is not this host's, or the host would have
                too many nodes or pools.
            BadInput: A name or address can't be used.
        """
        for _ in range(_TRIES):
            raw = await self._redis.hget(self._keys.nodes, joining.name)
            known = None if raw is None else read_node(raw, {})
            node = joining.applied(host, known, now=now)
            static = asdict(node)
            for live in LIVE:
                static.pop(live)
            answer = (
                await self._scripts.call(
                    "host_join",
                    orjson.dumps(static),
                    raw or b"",
                    host=host,
                    node=node.name,
                    url=node.key,
                    pool=node.pool,
                    cleans_up=joining.cleans_up,
                    most_nodes=most_nodes,
                    most_pools=most_pools,
                )
            ).decode()
            if answer in ("ok", "same"):
                return node
            if answer == "owner":
                raise Conflict(
                    f"node {node.name} is registered already and not host {host}'s: remove it first, "
                    "or give the agent another --host",
                    details={"field": "name", "value": node.name},
                )
            if answer == "nodes":
                raise Conflict(f"a host may have {most_nodes} nodes (FLEET_HOST_NODES)")
            if answer == "pools":
                raise Conflict(f"a host's nodes may be in {most_pools} pools (FLEET_HOST_POOLS)")
            if answer != "changed":
                other = answer.removeprefix("url ")
                raise Conflict(
                    f"url {node.url} is node {other} already: one ComfyUI is one node",
                    details={"field": "url", "value": node.url, "node": other},
                )
        raise StoreDown(f"node {joining.name} changes all the time", retry_after_s=1)

    async def hosts(self) -> Sequence[HostState]:
        """Return all hosts with a recent heartbeat, by name."""
        known = await self._redis.zrange(self._keys.hosts, 0, -1, withscores=True)
        names = [raw.decode() for raw, _ in known]
        records = await self._redis.mget([self._keys.host(name) for name in names]) if names else []
        return sorted(
            (
                HostState(
                    host=name,
                    seen_at=seen_at,
                    alive=record is not None,
                    record=self._record(name, record),
                )
                for name, (_, seen_at), record in zip(names, known, records, strict=True)
            ),
            key=lambda state: state.host,
        )

    async def report(self, node: str) -> Mapping[str, Any] | None:
        """Return an agent's last report on a node, or None if it is too old."""
        raw = await self._redis.get(self._keys.report(node))
        return None if raw is None else dict(orjson.loads(raw))

    async def words(self, node: str) -> tuple[str, str]:
        """Return a node's state in the agent's last report, and why; empty if there is none."""
        live = to_dict(await self._redis.hgetall(self._keys.node(node)))
        return live.get("agent_word", b"").decode(), live.get("agent_why", b"").decode()


def _taken(host: str) -> Conflict:
    return Conflict(
        f"another agent speaks for host {host}: give each its own --host",
        details={"field": "host", "value": host},
    )


def _dump_allocation(allocation: GpuAllocation | None) -> str:
    return "" if allocation is None else orjson.dumps(asdict(allocation)).decode()


def _allocation(raw: bytes, age_s: float) -> GpuAllocation:
    kept = from_fields(GpuAllocation, orjson.loads(raw))
    return replace(kept, age_s=kept.age_s + age_s)


def _told(raw: bytes, live: Sequence[bytes]) -> Node:
    return read_node(raw, dict(zip(MOVING, map(bytes.decode, live), strict=True)))


def _cleanups(rows: Sequence[bytes]) -> Sequence[Cleanup]:
    found = []
    for row in rows:
        try:
            found.append(Cleanup.parse(row.decode()))
        except BadInput:  # ids that are no UUIDs: no folder is ever named by them
            continue
    return found
