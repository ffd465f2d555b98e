"""The node registry in Redis (port :class:`comfy_fleet.ports.NodeRegistry`)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import orjson
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.codec import to_dict
from comfy_fleet.adapters.redis.events import WAKE, RedisEvents
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import Conflict, NotFound
from comfy_fleet.domain.node import AGENT_DRAINS, Node, NodeState

LOOK_AGAIN_S = 5.0  # a lost wake-up must not matter


class RedisNodeRegistry:
    """Nodes, their cordons and what HAProxy says of them."""

    def __init__(self, redis: Redis, events: RedisEvents) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._events = events
        self._scripts = Scripts(redis)

    async def add(self, node: Node) -> Node:
        """Register a node; raises Conflict if its name or URL is taken."""
        static = asdict(node)
        for live in ("cordoned", "cordon_reason"):
            static.pop(live)
        host, port = node.address
        raw = await self._scripts.call(
            "add_node", node.name, f"{host}:{port}", node.pool, orjson.dumps(static)
        )
        answer = raw.decode()
        if answer == "name":
            raise Conflict(
                f"node {node.name} exists already: remove it first, or use another name",
                details={"field": "name", "value": node.name},
            )
        if answer != "ok":
            raise Conflict(
                f"url {node.url} is node {answer} already: one ComfyUI is one node",
                details={"field": "url", "value": node.url, "node": answer},
            )
        return node

    async def get(self, name: str) -> Node | None:
        """Return a node, or None."""
        raw = await self._redis.hget("fleet:nodes", name)
        if raw is None:
            return None
        return read_node(raw, to_dict(await self._redis.hgetall(f"fleet:node:{name}")))

    async def nodes(self) -> Sequence[Node]:
        """Return all nodes by name."""
        return [state.node for state in await self.states()]

    async def states(self) -> Sequence[NodeState]:
        """Return all nodes with what is known of them, by name."""
        static = {name.decode(): raw for name, raw in (await self._redis.hgetall("fleet:nodes")).items()}
        names = sorted(static)
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(f"fleet:node:{name}")
                pipe.get(f"fleet:lease:{name}")
            raw = await pipe.execute()
        runs = [lease.decode() if lease else None for lease in raw[1::2]]
        async with self._redis.pipeline(transaction=False) as pipe:
            for run in runs:
                pipe.hget(f"fleet:run:{run}", "job")
            jobs = await pipe.execute()
        states = []
        for name, live_raw, run, job in zip(names, raw[::2], runs, jobs, strict=True):
            live = to_dict(live_raw)
            states.append(
                NodeState(
                    node=read_node(static[name], live),
                    verdict=live.get("verdict", b"new").decode(),
                    why=_why(live),
                    run=run,
                    job=job.decode() if job else None,
                    done=int(live.get("succeeded", 0)),
                    failed=int(live.get("failed", 0)),
                )
            )
        return states

    async def cordon(self, name: str, *, reason: str) -> Node:
        """Keep new jobs away: no claim for this node succeeds from now on."""
        return await self._mark(name, True, reason)

    async def uncordon(self, name: str) -> Node:
        """Let jobs come again."""
        return await self._mark(name, False, "")

    async def _mark(self, name: str, cordoned: bool, reason: str) -> Node:
        node = await self.get(name)
        if node is None:
            raise _unknown(name)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(f"fleet:node:{name}", mapping={"cordoned": int(cordoned), "cordon_reason": reason})
            pipe.publish(WAKE, "nodes")
            await pipe.execute()
        return replace(node, cordoned=cordoned, cordon_reason=reason)

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Forget a node; raises NotFound, or Conflict while work is on it."""
        answer = (await self._scripts.call("remove_node", name, int(force))).decode()
        if answer == "unknown":
            raise _unknown(name)
        if answer != "ok":
            raise Conflict(
                f"node {name} still works on run {answer}: drain it first, or force",
                details={"node": name, "run": answer},
            )

    async def report(self, name: str, *, verdict: str, why: str) -> None:
        """Record what HAProxy says of a node; forgotten nodes stay forgotten."""
        if await self._redis.hexists("fleet:nodes", name):
            await self._redis.hset(f"fleet:node:{name}", mapping={"verdict": verdict, "why": why})
            if verdict == "up":
                await self._redis.publish(WAKE, "free")

    async def changes(self) -> AsyncIterator[None]:
        """Yield at once, whenever the registry changed, and every few seconds."""
        async with self._events.channel(WAKE) as queue:
            yield
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S):
                        while await queue.get() != b"nodes":
                            pass
                yield


def read_node(raw: bytes, live: Mapping[str, bytes]) -> Node:
    """Return a node from its record and what changes about it."""
    return Node(
        **orjson.loads(raw),
        cordoned=live.get("cordoned") == b"1",
        cordon_reason=live.get("cordon_reason", b"").decode(),
    )


def _why(live: Mapping[str, bytes]) -> str:
    """Return why a node gets no jobs; if HAProxy only knows that its agent said so, the agent knows why."""
    why = live.get("why", b"").decode()
    if why != AGENT_DRAINS or live.get("agent_word") not in (b"drain", b"down"):
        return why
    return live.get("agent_why", b"").decode() or why


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"no node {name!r}: `fleet node ls` shows the nodes", details={"field": "name", "value": name}
    )
