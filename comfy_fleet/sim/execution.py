"""One prompt's execution: order, cache, frames and faults."""

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy_fleet.sim.catalogue import ALWAYS_RUN, CHOICE, COROUTINES, FILE_INPUTS, GROUP, Catalogue, NodeClass
from comfy_fleet.sim.faults import Faults
from comfy_fleet.sim.graph import Schedule, cache_keys, is_link
from comfy_fleet.sim.memory import OutOfMemory
from comfy_fleet.sim.nodes_model import SAMPLERS
from comfy_fleet.sim.nodes_output import WORK, other
from comfy_fleet.sim.run import Call, Clock, DependencyCycle, Interrupted, Machine, PromptRun, Result
from comfy_fleet.sim.sockets import Sockets
from comfy_fleet.sim.values import models_in
from comfy_fleet.sim.wire import WireBehavior

MAX_DEBT_S = 0.005


class GpuFault(Exception):
    """The GPU's context is broken."""


_TYPES = {
    OutOfMemory: "torch.OutOfMemoryError",
    GpuFault: "torch.AcceleratorError",
    DependencyCycle: "graph.DependencyCycleError",
}


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
class PromptMemory:
    """What a node keeps from prompt to prompt.

    Attributes:
        outputs: Results by cache key; only those of the last prompt stay.
        shown: What was sent to clients about them, with the node that made it.
        client: The client that gets the latest prompt's frames.
        last_node: The node that runs.
        clock: The running prompt's time.
        debt: Seconds that the last prompt of a fixed length took too long.
        broken: Whether the GPU's context is: nothing can be computed before a restart.
        log: What the node's page shows of its log.
    """

    outputs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    shown: dict[str, dict[str, Any]] = field(default_factory=dict)
    client: str | None = None
    last_node: str | None = None
    clock: Clock | None = None
    debt: float = 0.0
    broken: bool = False
    log: list[str] = field(default_factory=list)


class PromptExecution:
    """One prompt's run.

    Args:
        machine: Where it runs.
        catalogue: The node's classes.
        faults: What shall go wrong.
        line: The node's wire.
        sockets: Its clients.
        memory: State that outlives the prompt.
        item: The prompt.
        on_crash: Called when a fault lets the node die.

    Attributes:
        ok: Whether it succeeded.
        interrupted: Whether it was interrupted.
        messages: Its events, for the history.
        keys: The cache key of each node.
    """

    def __init__(
        self,
        machine: Machine,
        catalogue: Catalogue,
        faults: Faults,
        line: WireBehavior,
        sockets: Sockets,
        memory: PromptMemory,
        item: Item,
        on_crash: Callable[[], None],
    ) -> None:
        self._machine = machine
        self._catalogue = catalogue
        self._faults = faults
        self._line = line
        self._sockets = sockets
        self._memory = memory
        self._item = item
        self._on_crash = on_crash
        self.ok = False
        self.interrupted = False
        self.messages: list[list[Any]] = []
        self.keys: dict[str, str] = {}
        self._executed: list[str] = []
        self._progress: dict[str, dict[str, Any]] = {}
        self._first = True

    async def run(self) -> None:
        """Run it to its end, good or bad."""
        memory, graph = self._memory, self._item.graph
        loop = asyncio.get_running_loop()
        clock = memory.clock = Clock(loop.time() - memory.debt)
        memory.client = self._item.extra_data.get("client_id")
        self._message("execution_start", {})
        self.keys = cache_keys(graph, self._extra)
        used = set(self.keys.values())
        memory.outputs = {key: made for key, made in memory.outputs.items() if key in used}
        memory.shown = {key: shown for key, shown in memory.shown.items() if key in used}
        # A model goes with the last output that refers to it. ComfyUI 0.33 keeps it where 128 GiB of RAM are
        # free, which these nodes say they don't have.
        self._machine.vram.keep_only(models_in(memory.outputs.values()))
        self._message("execution_cached", {"nodes": [node_id for node_id in graph if self._cached(node_id)]})
        schedule = Schedule(
            graph,
            self._item.outputs,
            is_output=lambda node_id: self._info(node_id).output_node,
            is_coroutine=lambda node_id: graph[node_id]["class_type"] in COROUTINES,
            is_cached=self._cached,
        )
        samplers = sum(node["class_type"] in SAMPLERS for node in graph.values())
        extra_data = self._item.extra_data
        work = PromptRun(self._machine, clock, graph, extra_data, self._report, self._part, samplers)
        while (node_id := schedule.next()) is not None:
            if not await self._node(work, node_id, last=len(schedule) == 1):
                break
            schedule.done(node_id)
        else:
            self.ok = True
            self._show_again()
            if self._faults.take("drop_last"):
                self._sockets.muted = True
            self._message("execution_success", {})
        if self._executed and self._machine.timing.job_s is not None and self.ok:
            memory.debt = min(max(0.0, loop.time() - clock.due), MAX_DEBT_S)
        memory.last_node = None
        memory.clock = None

    async def _node(self, work: PromptRun, node_id: str, *, last: bool) -> bool:
        """Run one node, or answer it from the cache; return True if it succeeded."""
        memory = self._memory
        info = self._info(node_id)
        if self._cached(node_id):
            self._show(node_id, memory.shown.get(self.keys[node_id], {}).get("output"))
            self._finish(node_id)
            return True
        if self._line.frozen:
            await self._line.opened()
        self._state(node_id, 0.0, 1.0, "running")
        self._send_progress()
        if memory.client is not None:
            memory.last_node = node_id
            self._send("executing", {"node": node_id, "display_node": node_id})
        inputs: dict[str, Any] = {}
        try:
            await self._strike()
            inputs = self._inputs(node_id, info)
            work.clock.check()
            await work.spend(work.machine.timing.node_s)
            function = WORK.get(info.name, other)
            result = await function(work, Call(id=node_id, info=info, inputs=nested(info, inputs)))
            if last and work.machine.timing.job_s is not None:
                await work.clock.until(work.clock.start + work.machine.timing.job_s)
        except Interrupted:
            self.interrupted = True
            details = {"node_id": node_id, "node_type": info.name, "executed": self._executed}
            self._message("execution_interrupted", details, broadcast=True)
            return False
        except DependencyCycle as error:
            self._fail(node_id, info, None, error)
            self.ok = True  # the history's status is "success"; only its messages are right
            return False
        except Exception as error:  # noqa: BLE001 - as in ComfyUI: any error of a node's is the prompt's
            self._fail(node_id, info, inputs, error)
            return False
        self._keep(node_id, result)
        self._finish(node_id)
        self._executed.append(node_id)
        return True

    def _keep(self, node_id: str, result: Result) -> None:
        memory, key = self._memory, self.keys[node_id]
        if result.ui is not None:
            meta = {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
            memory.shown[key] = {"meta": meta, "output": result.ui}
            self._show(node_id, result.ui)
        memory.outputs[key] = result.outputs

    def _show_again(self) -> None:
        """Send what cached nodes in the middle of the graph have shown."""
        for node_id in self._item.graph:
            if node_id not in self._progress and self._cached(node_id) and self._info(node_id).intermediate:
                self._show(node_id, self._memory.shown[self.keys[node_id]]["output"])

    def _show(self, node_id: str, output: Any) -> None:
        if self._memory.client is not None:
            self._send("executed", {"node": node_id, "display_node": node_id, "output": output})

    async def _strike(self) -> None:
        """Trigger the faults that wait for the first node of a prompt."""
        if not self._first:
            return
        self._first = False
        faults = self._faults
        if faults.take("close_sockets"):
            self._sockets.abort()
            await asyncio.sleep(0)
        if faults.take("crash_mid_run"):
            self._on_crash()
            await asyncio.get_running_loop().create_future()  # until the crash cancels this task
        if faults.take("worker_dies"):
            # In pieces, as Python writes it.
            last = ("Exception in thread ", "Thread-1 (prompt_worker)", ":\n")
            self._memory.log += last
            sys.stderr.write("".join(last))
            sys.stderr.flush()
            await asyncio.get_running_loop().create_future()  # until the node stops
        if faults.take("oom"):
            self._machine.vram.unload()
            raise OutOfMemory("Allocation on device 0 failed: asked for by a fault switch.")
        self._memory.broken = faults.take("gpu_fault") or self._memory.broken
        if self._memory.broken:
            raise GpuFault("CUDA error: an illegal memory access was encountered")
        if faults.take("execution_error"):
            raise RuntimeError("Simulated execution error, asked for by a fault switch.")

    def _fail(
        self, node_id: str, info: NodeClass, inputs: Mapping[str, Any] | None, error: Exception
    ) -> None:
        """Report an error of a node, or of nothing that has inputs."""
        kind = _TYPES.get(type(error)) or _type_name(error)
        tip = "The node ran out of GPU memory." if isinstance(error, OutOfMemory) else ""
        shown = None if inputs is None else {name: [_shown(value)] for name, value in inputs.items()}
        details = {
            "node_id": node_id,
            "node_type": info.name,
            "executed": self._executed,
            "exception_message": str(error) if shown is None else f"{error}\n{tip}",
            "exception_type": kind,
            "traceback": [] if shown is None else traceback.format_tb(error.__traceback__)[-1:],
            "current_inputs": [] if shown is None else shown,
            "current_outputs": list(self._item.graph),
        }
        self._message("execution_error", details)

    def _extra(self, node_id: str) -> object:
        """What a node's result depends on in addition to its inputs."""
        node = self._item.graph[node_id]
        name = node["class_type"]
        if name in ALWAYS_RUN:
            return time.time()
        if name in FILE_INPUTS:
            given = node["inputs"].get(FILE_INPUTS[name])
            return self._machine.files.digest(given) if isinstance(given, str) else ""
        return node_id if self._info(node_id).wants_id else ""

    def _info(self, node_id: str) -> NodeClass:
        info = self._catalogue.find(self._item.graph[node_id]["class_type"])
        if info is None:  # checked when it was posted
            raise LookupError(f"class of node {node_id} is gone")
        return info

    def _cached(self, node_id: str) -> bool:
        return self.keys[node_id] in self._memory.outputs

    def _inputs(self, node_id: str, info: NodeClass) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        posted = self._item.graph[node_id]["inputs"]
        for name, (kind, options, _) in info.inputs_for(posted).items():
            given = posted.get(name)
            if is_link(given):
                inputs[name] = self._memory.outputs[self.keys[given[0]]][int(given[1])]
            elif name in posted:
                inputs[name] = given
            elif "default" in options and isinstance(kind, str):
                inputs[name] = options["default"]
        return inputs

    # frames

    async def _report(
        self, call: Call, value: float, maximum: float, image: tuple[str, bytes] | None
    ) -> None:
        if self._line.frozen:
            await self._line.opened()
        self._state(call.id, value, maximum, "running")
        self._send_progress()
        ids = {"node_id": call.id, "prompt_id": self._item.prompt_id, "display_node_id": call.id}
        metadata = {**ids, "parent_node_id": None, "real_node_id": call.id}
        sockets, client = self._sockets, self._memory.client
        if image is not None:
            sockets.send_image(image, metadata, client, modern=True)
        progress = {"value": value, "max": maximum, "prompt_id": self._item.prompt_id, "node": call.id}
        sockets.send("progress", progress, client)
        if image is not None:
            sockets.send_image(image, metadata, client, modern=False)

    def _finish(self, node_id: str) -> None:
        maximum = self._progress.get(node_id, {"max": 1})["max"]
        self._state(node_id, maximum, maximum, "finished")
        self._send_progress()

    def _part(self, call: Call, part: str, *, finished: bool) -> None:
        self._state(part, float(finished), 1.0, "finished" if finished else "running", parent=call.id)
        self._send_progress()
        if finished:
            self._executed.append(part)
        elif self._memory.client is not None:
            self._send("executing", {"node": part, "display_node": call.id})

    def _state(
        self, node_id: str, value: float, maximum: float, state: str, parent: str | None = None
    ) -> None:
        self._progress[node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": self._item.prompt_id,
            "display_node_id": parent or node_id,
            "parent_node_id": parent,
            "real_node_id": parent or node_id,
        }

    def _send_progress(self) -> None:
        data = {"prompt_id": self._item.prompt_id, "nodes": self._progress}
        self._sockets.send("progress_state", data, self._memory.client)

    def _send(self, kind: str, data: dict[str, Any]) -> None:
        self._sockets.send(kind, {**data, "prompt_id": self._item.prompt_id}, self._memory.client)

    def _message(self, kind: str, data: Mapping[str, Any], *, broadcast: bool = False) -> None:
        stamp = int(time.time() * 1000)
        full = {**data, "prompt_id": self._item.prompt_id, "timestamp": stamp}
        self.messages.append([kind, full])
        if self._memory.client is not None or broadcast:
            self._sockets.send(kind, full, self._memory.client)


def nested(info: NodeClass, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs as a class gets them: what belongs to a dynamic one becomes a mapping.

    Raises:
        TypeError: A choice has a value that is not offered, so its class does not get it at all.
    """
    made = {name: value for name, value in inputs.items() if name in info.inputs}
    for name, (kind, _, required) in info.inputs.items():
        if kind == CHOICE:
            if required and name not in inputs:
                raise TypeError(f"{info.name}.execute() missing 1 required positional argument: '{name}'")
            made[name] = {name: inputs.get(name)}
        elif kind == GROUP:
            made[name] = {}
    for name, value in inputs.items():
        top, dot, rest = name.partition(".")
        if dot:
            made[top][rest] = value
    return made


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
