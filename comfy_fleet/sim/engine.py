"""A node's queue and history: prompts run one after the other."""

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from comfy_fleet.sim.catalogue import Catalogue
from comfy_fleet.sim.execution import Item, PromptExecution, PromptMemory
from comfy_fleet.sim.faults import Faults
from comfy_fleet.sim.run import Machine
from comfy_fleet.sim.sockets import Sockets
from comfy_fleet.sim.wire import WireBehavior

SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")  # never kept in the history
MAX_INTERVALS = 100_000
LAG_STEP_S = 0.05


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
        faults: The fault switches.
        line: Its wire; a frozen node does not work either.
        history_limit: Prompts that the history keeps.
        on_crash: Called when a fault lets the node die.
    """

    def __init__(
        self,
        machine: Machine,
        catalogue: Catalogue,
        faults: Faults,
        line: WireBehavior,
        history_limit: int,
        on_crash: Callable[[], None],
    ) -> None:
        self.stats = Stats()
        self.sockets = Sockets(faults, self._hello, self.queue_info, catalogue.version.features)
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
        self._memory = PromptMemory()
        self._flags: dict[str, bool] = {}

    # the queue

    def queue_info(self) -> dict[str, Any]:
        """Return how many prompts are not finished."""
        return {"exec_info": {"queue_remaining": len(self._waiting) + (self._running is not None)}}

    @property
    def log(self) -> list[str]:
        """What its log says."""
        return self._memory.log

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
            and self._memory.clock is not None
            and prompt_id in (None, self._running.prompt_id)
        ):
            self._memory.clock.interrupt()

    @property
    def debt_s(self) -> float:
        """By how much the last prompts took too long; the next ones take that much less."""
        return self._memory.debt

    def free(self, *, unload_models: bool, free_memory: bool) -> None:
        """Note what to drop once the current prompt is over."""
        if unload_models:
            self._flags["unload_models"] = True
        if free_memory:
            self._flags["free_memory"] = True
        self._wake.set()

    def forget(self) -> None:
        """Drop cached results and loaded models."""
        self._memory.outputs.clear()
        self._memory.shown.clear()
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
        execution = PromptExecution(
            self._machine,
            self._catalogue,
            self._faults,
            self._line,
            self.sockets,
            self._memory,
            item,
            self._on_crash,
        )
        try:
            await execution.run()
        finally:
            self._account(item, execution)
        await self._lag()
        if not self._faults.take("history_lost"):
            self._remember(item, execution)
        self._running = None
        self.sockets.send_status()
        if self._memory.client is not None:
            self.sockets.send("executing", {"node": None, "prompt_id": item.prompt_id}, self._memory.client)
        self.sockets.muted = False

    async def _lag(self) -> None:
        """Let the history lag behind, until the switch is turned off."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.sleep(0)
        while (left := start + self._faults.history_lag_s - loop.time()) > 0:  # noqa: ASYNC110 - it may change
            await asyncio.sleep(min(left, LAG_STEP_S))

    def _account(self, item: Item, execution: PromptExecution) -> None:
        end = time.time()
        self.stats.busy_s += end - self._started
        self.stats.intervals.append((self._started, end, item.prompt_id))
        if execution.ok:
            self.stats.done += 1
        elif execution.interrupted:
            self.stats.interrupted += 1
        else:
            self.stats.failed += 1

    def _remember(self, item: Item, execution: PromptExecution) -> None:
        if len(self.history) > self._history_limit:
            self.history.pop(next(iter(self.history)))
        for name in SECRETS:
            item.extra_data.pop(name, None)
        shown = {
            node_id: self._memory.shown[key]
            for node_id, key in execution.keys.items()
            if key in self._memory.shown
        }
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
        if self._memory.client == client and self._memory.last_node is not None:
            return [("executing", {"node": self._memory.last_node})]
        return []
