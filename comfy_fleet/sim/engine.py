"""Runs prompts one after the other, with ComfyUI's queue, cache, history and frames."""

import asyncio
import heapq
import itertools
import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy_fleet.sim.catalogue import ALWAYS_RUN, COROUTINES, FILE_INPUTS, Catalogue, ClassInfo
from comfy_fleet.sim.faults import Faults
from comfy_fleet.sim.graph import Schedule, cache_keys, is_link
from comfy_fleet.sim.memory import OutOfMemory
from comfy_fleet.sim.nodes_model import SAMPLERS
from comfy_fleet.sim.nodes_output import WORK, other
from comfy_fleet.sim.run import Call, Clock, Interrupted, Machine, Result, Run
from comfy_fleet.sim.sockets import Sockets
from comfy_fleet.sim.wire import Line

logger = logging.getLogger(__name__)

SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")  # never kept in the history
MAX_INTERVALS = 100_000
MAX_DEBT_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Item:
    """A posted prompt."""

    number: float
    prompt_id: str
    graph: dict[str, Any]
    extra_data: dict[str, Any]
    outputs: list[str]

    def as_json(self) -> list[Any]:
        """Return it as ``/queue`` and ``/history`` show it."""
        return [self.number, self.prompt_id, self.graph, self.extra_data, self.outputs]


@dataclass
class Stats:
    """What the node's GPU did; times are seconds since the epoch.

    Attributes:
        since: Start of the account.
        busy_s: Time spent in prompts.
        done: Prompts that succeeded.
        failed: Prompts that ended in an error.
        interrupted: Prompts that were interrupted.
        intervals: Start, end and id of the latest prompts.
    """

    since: float = field(default_factory=time.time)
    busy_s: float = 0.0
    done: int = 0
    failed: int = 0
    interrupted: int = 0
    intervals: deque[tuple[float, float, str]] = field(default_factory=lambda: deque(maxlen=MAX_INTERVALS))


class Engine:
    """The part of a node that works.

    Args:
        machine: Its memory, files and speed.
        catalogue: Its node classes.
        faults: What shall go wrong.
        line: Its wire; a node that is frozen does not work either.
        history_limit: Prompts that the history keeps.
        on_crash: Called when a fault lets the node die.
    """

    def __init__(
        self,
        machine: Machine,
        catalogue: Catalogue,
        faults: Faults,
        line: Line,
        history_limit: int,
        on_crash: Callable[[], None],
    ) -> None:
        self.stats = Stats()
        self.sockets = Sockets(faults, self._hello, self.queue_info)
        self.history: dict[str, Any] = {}
        self._machine = machine
        self._catalogue = catalogue
        self._faults = faults
        self._line = line
        self._history_limit = history_limit
        self._on_crash = on_crash
        self._waiting: list[tuple[float, int, Item]] = []
        self._running: Item | None = None
        self._started = 0.0
        self._order = itertools.count()
        self._wake = asyncio.Event()
        self._clock: Clock | None = None
        self._debt = 0.0
        self._flags: dict[str, bool] = {}
        self._outputs: dict[str, tuple[Any, ...]] = {}
        self._shown: dict[str, dict[str, Any]] = {}
        self._client: str | None = None
        self._last_node: str | None = None

    # the queue

    def queue_info(self) -> dict[str, Any]:
        """Return how many prompts are not finished."""
        return {"exec_info": {"queue_remaining": len(self._waiting) + (self._running is not None)}}

    @property
    def running(self) -> list[Item]:
        """The prompt that runs, if any."""
        return [self._running] if self._running is not None else []

    @property
    def pending(self) -> list[Item]:
        """The prompts that wait, in the order of the heap, as ComfyUI lists them."""
        return [item for _, _, item in self._waiting]

    @property
    def running_since(self) -> float | None:
        """Since when the current prompt computes, seconds since the epoch."""
        return self._started if self._running is not None else None

    def put(self, item: Item) -> None:
        """Queue a prompt."""
        heapq.heappush(self._waiting, (item.number, next(self._order), item))
        self.sockets.send_status()
        self._wake.set()

    def delete(self, prompt_id: str) -> None:
        """Remove the first waiting prompt with this id."""
        for place, (_, _, item) in enumerate(self._waiting):
            if item.prompt_id == prompt_id:
                if len(self._waiting) == 1:
                    self.clear_queue()
                else:
                    self._waiting.pop(place)
                    heapq.heapify(self._waiting)
                self.sockets.send_status()
                return

    def clear_queue(self) -> None:
        """Remove all waiting prompts."""
        self._waiting.clear()
        self.sockets.send_status()

    def interrupt(self, prompt_id: str | None) -> None:
        """Stop the running prompt; with an id only if it is that one."""
        if (
            self._running is not None
            and self._clock is not None
            and prompt_id in (None, self._running.prompt_id)
        ):
            self._clock.interrupt()

    def free(self, *, unload_models: bool, free_memory: bool) -> None:
        """Note what to drop once the current prompt is over."""
        if unload_models:
            self._flags["unload_models"] = True
        if free_memory:
            self._flags["free_memory"] = True
        self._wake.set()

    def forget(self) -> None:
        """Drop cached results and loaded models."""
        self._outputs.clear()
        self._shown.clear()
        self._machine.vram.unload()

    # working

    async def run_forever(self) -> None:
        """Work through the queue."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                if self._line.frozen:
                    await self._line.opened()
                await self._take(heapq.heappop(self._waiting)[2])
                self._act_on_flags()
                await asyncio.sleep(0)
            self._act_on_flags()

    def _act_on_flags(self) -> None:
        flags, self._flags = self._flags, {}
        if flags.get("free_memory"):
            self.forget()
        elif flags.get("unload_models"):
            self._machine.vram.unload()

    async def _take(self, item: Item) -> None:
        self._running = item
        self._started = time.time()
        self.sockets.send_status()
        execution = _Execution(self, item)
        try:
            await execution.run()
        finally:
            self._account(item, execution)
        await asyncio.sleep(self._faults.history_lag_s)
        if not self._faults.take("history_lost"):
            self._remember(item, execution)
        self._running = None
        self.sockets.send_status()
        if self._client is not None:
            self.sockets.send("executing", {"node": None, "prompt_id": item.prompt_id}, self._client)
        self.sockets.muted = False

    def _account(self, item: Item, execution: "_Execution") -> None:
        end = time.time()
        self.stats.busy_s += end - self._started
        self.stats.intervals.append((self._started, end, item.prompt_id))
        if execution.ok:
            self.stats.done += 1
        elif execution.interrupted:
            self.stats.interrupted += 1
        else:
            self.stats.failed += 1

    def _remember(self, item: Item, execution: "_Execution") -> None:
        if len(self.history) > self._history_limit:
            self.history.pop(next(iter(self.history)))
        for name in SECRETS:
            item.extra_data.pop(name, None)
        shown = {node_id: self._shown[key] for node_id, key in execution.keys.items() if key in self._shown}
        self.history[item.prompt_id] = {
            "prompt": item.as_json(),
            "outputs": {node_id: entry["output"] for node_id, entry in shown.items()},
            "status": {
                "status_str": "success" if execution.ok else "error",
                "completed": execution.ok,
                "messages": execution.messages,
            },
            "meta": {node_id: entry["meta"] for node_id, entry in shown.items()},
        }

    def _hello(self, client: str) -> list[tuple[str, dict[str, Any]]]:
        if self._client == client and self._last_node is not None:
            return [("executing", {"node": self._last_node})]
        return []


class _Execution:
    """One prompt's run; reaches into its engine's cache and clients."""

    def __init__(self, engine: Engine, item: Item) -> None:
        self.engine = engine
        self.item = item
        self.ok = False
        self.interrupted = False
        self.messages: list[list[Any]] = []
        self.keys: dict[str, str] = {}
        self._executed: list[str] = []
        self._progress: dict[str, dict[str, Any]] = {}
        self._first = True

    async def run(self) -> None:
        engine, graph = self.engine, self.item.graph
        loop = asyncio.get_running_loop()
        clock = engine._clock = Clock(loop.time() - engine._debt)
        engine._client = self.item.extra_data.get("client_id")
        self._message("execution_start", {})
        self.keys = cache_keys(graph, self._extra)
        used = set(self.keys.values())
        engine._outputs = {key: made for key, made in engine._outputs.items() if key in used}
        engine._shown = {key: shown for key, shown in engine._shown.items() if key in used}
        self._message("execution_cached", {"nodes": [node_id for node_id in graph if self._cached(node_id)]})
        schedule = Schedule(
            graph,
            self.item.outputs,
            is_output=lambda node_id: self._info(node_id).output_node,
            is_coroutine=lambda node_id: graph[node_id]["class_type"] in COROUTINES,
            is_cached=self._cached,
        )
        samplers = sum(node["class_type"] in SAMPLERS for node in graph.values())
        work = Run(engine._machine, clock, graph, self.item.extra_data, self._report, samplers)
        while (node_id := schedule.next()) is not None:
            if not await self._node(work, node_id, last=len(schedule) == 1):
                break
            schedule.done(node_id)
        else:
            self.ok = True
            if engine._faults.take("drop_last"):
                engine.sockets.muted = True
            self._message("execution_success", {})
        if self._executed and engine._machine.timing.job_s is not None and self.ok:
            engine._debt = min(max(0.0, loop.time() - clock.due), MAX_DEBT_S)
        engine._last_node = None
        engine._clock = None

    async def _node(self, work: Run, node_id: str, *, last: bool) -> bool:
        """Run one node, or answer it from the cache; tells whether it went well."""
        engine = self.engine
        info = self._info(node_id)
        if self._cached(node_id):
            if engine._client is not None:
                shown = engine._shown.get(self.keys[node_id], {}).get("output")
                self._send("executed", {"node": node_id, "display_node": node_id, "output": shown})
            self._finish(node_id)
            return True
        if engine._line.frozen:
            await engine._line.opened()
        self._state(node_id, 0.0, 1.0, "running")
        self._send_progress()
        if engine._client is not None:
            engine._last_node = node_id
            self._send("executing", {"node": node_id, "display_node": node_id})
        inputs: dict[str, Any] = {}
        try:
            await self._strike()
            inputs = self._inputs(node_id, info)
            work.clock.check()
            await work.spend(work.machine.timing.node_s)
            function = WORK.get(info.name, other)
            result = await function(work, Call(id=node_id, info=info, inputs=inputs))
            if last and work.machine.timing.job_s is not None:
                await work.clock.until(work.clock.start + work.machine.timing.job_s)
        except Interrupted:
            self.interrupted = True
            details = {"node_id": node_id, "node_type": info.name, "executed": self._executed}
            self._message("execution_interrupted", details, broadcast=True)
            return False
        except Exception as error:
            self._fail(node_id, info, inputs, error)
            return False
        self._keep(node_id, result)
        self._finish(node_id)
        self._executed.append(node_id)
        return True

    def _keep(self, node_id: str, result: Result) -> None:
        engine, key = self.engine, self.keys[node_id]
        if result.ui is not None:
            meta = {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
            engine._shown[key] = {"meta": meta, "output": result.ui}
            if engine._client is not None:
                self._send("executed", {"node": node_id, "display_node": node_id, "output": result.ui})
        engine._outputs[key] = result.outputs

    async def _strike(self) -> None:
        """Let the faults happen that wait for the first node of a prompt."""
        if not self._first:
            return
        self._first = False
        faults, engine = self.engine._faults, self.engine
        if faults.take("close_sockets"):
            engine.sockets.abort()
            await asyncio.sleep(0)
        if faults.take("crash_mid_run"):
            engine._on_crash()
            await asyncio.get_running_loop().create_future()  # until the crash cancels this task
        if faults.take("oom"):
            engine._machine.vram.unload()
            raise OutOfMemory("Allocation on device 0 failed: asked for by a fault switch.")
        if faults.take("execution_error"):
            raise RuntimeError("Simulated execution error, asked for by a fault switch.")

    def _fail(self, node_id: str, info: ClassInfo, inputs: Mapping[str, Any], error: Exception) -> None:
        kind = "torch.OutOfMemoryError" if isinstance(error, OutOfMemory) else _type_name(error)
        tip = "The node ran out of GPU memory." if isinstance(error, OutOfMemory) else ""
        details = {
            "node_id": node_id,
            "node_type": info.name,
            "executed": self._executed,
            "exception_message": f"{error}\n{tip}",
            "exception_type": kind,
            "traceback": traceback.format_tb(error.__traceback__)[-1:],
            "current_inputs": {name: [_shown(value)] for name, value in inputs.items()},
            "current_outputs": list(self.item.graph),
        }
        self._message("execution_error", details)

    def _extra(self, node_id: str) -> object:
        """What a node's result depends on besides its inputs."""
        node = self.item.graph[node_id]
        name = node["class_type"]
        if name in ALWAYS_RUN:
            return time.time()
        if name in FILE_INPUTS:
            given = node["inputs"].get(FILE_INPUTS[name])
            return self.engine._machine.files.digest(given) if isinstance(given, str) else ""
        return node_id if self._info(node_id).wants_id else ""

    def _info(self, node_id: str) -> ClassInfo:
        info = self.engine._catalogue.find(self.item.graph[node_id]["class_type"])
        if info is None:  # checked when it was posted
            raise LookupError(f"class of node {node_id} is gone")
        return info

    def _cached(self, node_id: str) -> bool:
        return self.keys[node_id] in self.engine._outputs

    def _inputs(self, node_id: str, info: ClassInfo) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for name, (kind, options, _) in info.inputs.items():
            given = self.item.graph[node_id]["inputs"].get(name)
            if is_link(given):
                inputs[name] = self.engine._outputs[self.keys[given[0]]][int(given[1])]
            elif name in self.item.graph[node_id]["inputs"]:
                inputs[name] = given
            elif "default" in options and isinstance(kind, str):
                inputs[name] = options["default"]
        return inputs

    # frames

    async def _report(
        self, call: Call, value: float, maximum: float, image: tuple[str, bytes] | None
    ) -> None:
        if self.engine._line.frozen:
            await self.engine._line.opened()
        self._state(call.id, value, maximum, "running")
        self._send_progress()
        ids = {"node_id": call.id, "prompt_id": self.item.prompt_id, "display_node_id": call.id}
        metadata = {**ids, "parent_node_id": None, "real_node_id": call.id}
        sockets, client = self.engine.sockets, self.engine._client
        if image is not None:
            sockets.send_image(image, metadata, client, modern=True)
        progress = {"value": value, "max": maximum, "prompt_id": self.item.prompt_id, "node": call.id}
        sockets.send("progress", progress, client)
        if image is not None:
            sockets.send_image(image, metadata, client, modern=False)

    def _finish(self, node_id: str) -> None:
        maximum = self._progress.get(node_id, {"max": 1})["max"]
        self._state(node_id, maximum, maximum, "finished")
        self._send_progress()

    def _state(self, node_id: str, value: float, maximum: float, state: str) -> None:
        self._progress[node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": self.item.prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }

    def _send_progress(self) -> None:
        data = {"prompt_id": self.item.prompt_id, "nodes": self._progress}
        self.engine.sockets.send("progress_state", data, self.engine._client)

    def _send(self, kind: str, data: dict[str, Any]) -> None:
        self.engine.sockets.send(kind, {**data, "prompt_id": self.item.prompt_id}, self.engine._client)

    def _message(self, kind: str, data: Mapping[str, Any], *, broadcast: bool = False) -> None:
        stamp = int(time.time() * 1000)
        full = {**data, "prompt_id": self.item.prompt_id, "timestamp": stamp}
        self.messages.append([kind, full])
        if self.engine._client is not None or broadcast:
            self.engine.sockets.send(kind, full, self.engine._client)


def _type_name(error: Exception) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, tuple) and value and hasattr(value[0], "size"):
        width, height = value[0].size
        return f"tensor of {len(value)} x {height} x {width}"
    return str(value)
