"""The node registry in Redis (port :class:`comfy_fleet.ports.nodes.NodeRegistry`)."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis, WrongType
from comfy_fleet.adapters.redis.events import RedisEvents
from comfy_fleet.adapters.redis.job_records import Complaints
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import BadInput, Conflict, NotFound
from comfy_fleet.domain.nodes.node import AGENT_DRAINS, LIVE, Node, NodeState, Reading, Work
from comfy_fleet.domain.nodes.speed import speed_of
from comfy_fleet.domain.nodes.weights import default_weight
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.timeouts import Timeout

SILENT_S = 5  # if the agent was heard since, its end is not why the node is away
LOOK_AGAIN_S = 5.0  # so that a lost wake-up does not matter
MOVING = ("cordoned", "cordon_reason", "gpu", "device", "speed", "speeds")
"""The changing facts about a node that :func:`read_node` needs."""
LONGEST_PAUSE_S = 0.25  # pause between two looks at a registry that changes all the time
CREDIT_S = 1.0  # pauses that may be postponed: one new node is three changes within half a second
Row = list[Any]
"""One node in the answer of ``node_states.lua``."""


class RedisNodeRegistry:
    """Nodes, their cordons and their state in HAProxy."""

    def __init__(self, redis: FleetRedis, events: RedisEvents) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._events = events
        self._scripts = Scripts(redis)
        self._complaints = Complaints()
        self._memo: dict[str, tuple[Row, NodeState]] = {}

    async def add(self, node: Node) -> Node:
        """Register a node; raises Conflict if its name or URL is taken."""
        static = asdict(node)
        for live in LIVE:
            static.pop(live)
        raw = await self._scripts.call(
            "add_node", orjson.dumps(static), node=node.name, url=node.key, pool=node.pool
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

    async def store_id(self) -> str:
        """Return the store's id, which changes if it is emptied."""
        return str((await self._scripts.call("store_id", candidate=uuid4().hex)).decode())

    async def get(self, name: str) -> Node | None:
        """Return a node, or None."""
        state = await self.state(name)
        return None if state is None else state.node

    async def nodes(self) -> Sequence[Node]:
        """Return all nodes by name."""
        return [state.node for state in await self.states()]

    async def state(self, name: str) -> NodeState | None:
        """Return a node with what is known of it, or None."""
        return next(iter(self._read_all(_rows(await self._scripts.call("node_states", names=[name])))), None)

    async def states(self) -> Sequence[NodeState]:
        """Return all nodes with what is known of them, by name."""
        rows = sorted(_rows(await self._scripts.call("node_states")), key=_name)
        states = self._read_all(rows)
        if len(self._memo) > len(states):
            self._memo = {state.node.name: self._memo[state.node.name] for state in states}
        return states

    def _read_all(self, rows: Sequence[Row]) -> list[NodeState]:
        """Return the nodes of rows; one that can't be read is logged and left out."""
        found = []
        for row in rows:
            try:
                found.append(self._read(row))
            except (*UNREADABLE, BadInput) as error:
                self._complaints.about("node", str(row[0]), error)
        return found

    def _read(self, row: Row) -> NodeState:
        """Return a row's node; the same object again if nothing has changed."""
        had = self._memo.get(row[0])
        if had is not None and had[0] == row:
            return had[1]
        name, record, pairs, lease, works = row[0], row[1], row[2] or [], row[3], row[4] or []
        live = dict(zip(pairs[::2], pairs[1::2], strict=True))
        work = tuple(
            sorted(
                (
                    Work(run=run, job=job, phase=phase)
                    for run, job, phase in zip(works[::3], works[1::3], works[2::3], strict=True)
                ),
                key=lambda one: one.run,
            )
        )
        run = lease or None
        state = NodeState(
            node=read_node(record, live),
            verdict=live.get("verdict", "new"),
            why=_why(live),
            run=run,
            job=next((one.job for one in work if one.run == run), None),
            done=int(live.get("succeeded", 0)),
            failed=int(live.get("failed", 0)),
            work=work,
            quarantined=live.get("quarantined") == "1",
            reading=_reading(live),
        )
        self._memo[name] = row, state
        return state

    async def errors(self, name: str) -> Sequence[Mapping[str, Any]]:
        """Return the last errors of jobs on a node, the newest first: at, job, code, message."""
        rows = await self._redis.lrange(self._keys.node_errors(name), 0, 9)
        found = []
        for raw in rows:
            try:
                found.append(dict(orjson.loads(raw)))
            except UNREADABLE as error:
                self._complaints.about("error of node", name, error)
        return found

    async def models(self, name: str) -> Sequence[str]:
        """Return the model files that jobs on a node have used since it started or was freed, latest
        first."""
        raw = await self._redis.get(self._keys.node_models(name))
        return raw.decode().split("\n") if raw else []

    async def cards(self, names: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """Return the model files that are taken to be on nodes' cards; see the port."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hget(self._keys.sched_node(name), "card")
            answers = await pipe.execute(raise_on_error=False)
        found: dict[str, frozenset[str]] = {}
        for name, raw in zip(names, answers, strict=True):
            if isinstance(raw, Exception) and not isinstance(raw, WrongType):
                raise raw
            with contextlib.suppress(*UNREADABLE):
                found[name] = frozenset(str(file) for file, _ in orjson.loads(raw or b"[]"))
        return found

    async def release(self, name: str) -> Sequence[str]:
        """Have a node's jobs given back to the queue; return the runs concerned.

        Runs that only fetch their outputs go on.
        """
        return [raw.decode() for raw in await self._scripts.call("release", node=name)]

    async def started(self, name: str) -> None:
        """Note that a node's ComfyUI was restarted: it is read again, and a quarantine ends.

        Raises:
            NotFound: No such node.
        """
        if not await self._scripts.call("node_started", node=name):
            raise _unknown(name)

    async def want_reading(self, name: str) -> None:
        """Have a node's inventory read again.

        Raises:
            NotFound: No such node.
        """
        if not await self._scripts.call("want_reading", node=name):
            raise _unknown(name)

    async def want_restart(self, name: str) -> None:
        """Have the agent that runs a node restart it, as soon as no job needs it.

        Raises:
            NotFound: No such node.
        """
        if not await self._scripts.call("want_restart", node=name):
            raise _unknown(name)

    async def freed(self, name: str) -> None:
        """Note that a node was told to unload its models; nothing happens if there is no such node."""
        await self._scripts.call("node_freed", node=name)

    async def record_failure(self, name: str, *, kind: str, limit: int, reason: str) -> bool:
        """Count a failure that is the node's fault; with ``limit`` in a row it is cordoned.

        Args:
            name: The node.
            kind: ``oom``, ``gpu``, ``answer`` or ``frame``; each is counted separately, and a success resets
                all.
            limit: How many in a row lead to a cordon.
            reason: The cordon's reason.

        Returns:
            True if it was cordoned now.
        """
        count = await self._scripts.call("record_failure", node=name, kind=kind, limit=limit, reason=reason)
        return int(count) < 0

    async def cordon(self, name: str, *, reason: str) -> Node:
        """Stop new jobs: no claim for this node succeeds from now on."""
        return await self._mark(name, True, reason)

    async def uncordon(self, name: str) -> Node:
        """Allow new jobs again."""
        return await self._mark(name, False, "")

    async def _mark(self, name: str, cordoned: bool, reason: str) -> Node:
        node = await self.get(name)
        if node is None or not await self._scripts.call(
            "cordon", node=name, cordoned=cordoned, reason=reason
        ):
            raise _unknown(name)
        return replace(node, cordoned=cordoned, cordon_reason=reason)

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Forget a node; raises NotFound, or Conflict while work is on it."""
        answer = (await self._scripts.call("remove_node", node=name, force=force)).decode()
        if answer == "unknown":
            raise _unknown(name)
        if answer != "ok":
            raise Conflict(
                f"node {name} still works on run {answer}: drain it first, or force",
                details={"node": name, "run": answer},
            )

    async def report(self, name: str, *, verdict: str, why: str) -> None:
        """Record a node's state as HAProxy reports it; removed nodes stay removed."""
        await self._scripts.call("report_node", node=name, verdict=verdict, why=why)

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yield at once, whenever the registry has changed, and every few seconds.

        A thousand joining nodes count as a few changes: looking takes at most a tenth of the process's time,
        and little of Redis'. The few changes of a single new node are still seen at once.
        """
        clock = asyncio.get_running_loop().time
        owed_s, settled_at = 0.0, clock()  # the pause that past looks have cost and that was not made yet
        async with self._events.channel(self._keys.wake_nodes, most=1) as queue:
            while True:
                began = clock()
                yield
                done = clock()
                owed_s = max(0.0, owed_s - (began - settled_at)) + 9 * (done - began)
                owed_s, settled_at = min(owed_s, CREDIT_S + LONGEST_PAUSE_S), done
                with contextlib.suppress(TimeoutError):
                    async with Timeout(LOOK_AGAIN_S):
                        await queue.get()
                pause_s = owed_s - (clock() - settled_at) - CREDIT_S
                await asyncio.sleep(pause_s)
                if not queue.empty():
                    queue.get_nowait()


def read_node(raw: bytes | str, live: Mapping[str, str]) -> Node:
    """Return a node from its record and its changing facts."""
    static = orjson.loads(raw)
    if static.get("weight_by_gpu") and live.get("gpu"):
        static["weight"] = default_weight(live["gpu"], live.get("device", ""))
    return replace(
        from_fields(Node, static),
        cordoned=live.get("cordoned") == "1",
        cordon_reason=live.get("cordon_reason", ""),
        twin=live.get("twin", ""),
        speed=speed_of(float(live.get("speed") or 0), int(live.get("speeds") or 0)),
    )


def _rows(answer: bytes) -> list[Row]:
    try:
        rows: list[Row] = orjson.loads(answer)
    except ValueError:  # one record is not valid UTF-8
        rows = orjson.loads(answer.decode("utf-8", "replace"))
    return rows or []  # Lua writes an empty list as an empty object


def _name(row: Row) -> str:
    return str(row[0])


def _reading(live: Mapping[str, str]) -> Reading:
    return Reading(
        inventory=live.get("inventory", ""),
        object_info=live.get("object_info", ""),
        comfyui=live.get("comfyui", ""),
        pytorch=live.get("pytorch", ""),
        python=live.get("python", ""),
        gpu=live.get("gpu", ""),
        device=live.get("device", ""),
        vram_bytes=int(live.get("vram", 0)),
        ram_bytes=int(live.get("ram", 0)),
        read_at=float(live.get("read", 0)),
        changed_at=float(live.get("changed", 0)),
        wanted=live.get("wanted") == "1",
        starts=int(live.get("starts", 0)),
        trouble=live.get("unread", ""),
    )


def _why(live: Mapping[str, str]) -> str:
    """Return why a node gets no jobs.

    HAProxy may only know that the agent said so; then the agent has the reason. An agent that says ``up`` has
    not undone its earlier drain. If ComfyUI does not answer HAProxy, an agent that drained it and is still
    alive knows more: that it is starting, or how it ended. It also knows why a new node does not answer. If
    an agent is gone, its ComfyUIs may be gone, too.
    """
    why, seen = live.get("why", ""), live.get("agent_why", "")
    word, verdict = live.get("agent_word"), live.get("verdict", "new")
    if "agent_gone" in live:
        if verdict == "down" and int(live["agent_gone"] or 0) >= SILENT_S:
            return f"agent of {live.get('host', '')} silent for {live['agent_gone']} s ({why})"
    elif verdict == "new" and seen:
        return seen
    if seen and why == AGENT_DRAINS and word in ("drain", "down", "hold"):
        return seen
    speaks = "agent_gone" not in live and live.get("cordoned") != "1"
    if seen and verdict == "down" and word == "drain" and speaks:
        return f"{seen} ({why})"
    return why


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"no node {name!r}: `fleet node ls` shows the nodes", details={"field": "name", "value": name}
    )
