"""A ComfyUI process that the agent runs or restarts: start, watch, restart, recycle."""

import asyncio
import logging
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from comfy_fleet.adapters.system.child_processes import RUNS_AGAIN, Child, LogFile
from comfy_fleet.adapters.system.procfs import Used, used
from comfy_fleet.agent.commanded_process import CommandedProcess
from comfy_fleet.agent.node_poller import NodePoller
from comfy_fleet.agent.websocket_monitor import WebsocketMonitor
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.process_end import end_of
from comfy_fleet.domain.nodes.process_supervision import (
    SETTLE_S,
    Look,
    Order,
    ProcessPhase,
    RestartLimits,
    Watch,
    step,
)
from comfy_fleet.logs import json_line
from comfy_fleet.tasks import start

logger = logging.getLogger(__name__)

TICK_S = 0.1
_READ_EVERY_S = 0.5  # how often /proc is read
_READ_RATE = 20 * 2**20  # bytes read from a disk that count as a second of computing
_BUSY_GPU = 5  # percent
_LOG_EVERY_S = 5.0  # how often the log of one that others start is read
# Python's message, with ComfyUI's name of the thread that runs prompts.
_WORKER_DIED = re.compile(r"Exception in thread .*\(prompt_worker\)")


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """A process to run.

    Attributes:
        name: The node's name, also of its log file.
        argv: Program and arguments.
        env: Variables in addition to our own.
        cwd: Folder to run in.
        log: Where its output goes.
        stop_timeout_s: How long it may take to end before it is killed.
    """

    name: str
    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    stop_timeout_s: float = 10.0


class ComfyUIProcess:
    """Keeps one ComfyUI running.

    Attributes:
        spec: What is run.
        probe: Its state over HTTP.
        watch: The state of the process.
        used: Its resources at the last look.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        probe: NodePoller,
        *,
        client_id: str,
        limits: RestartLimits | None = None,
        gpu_busy: Callable[[], int | None] = lambda: None,
        on_change: Callable[[], None] = lambda: None,
        turn: Callable[[], bool] = lambda: True,
        commanded: CommandedProcess | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing runs before :meth:`run`.

        Args:
            spec: What to run.
            probe: Polls it over HTTP; the owner runs the probe.
            client_id: For its websocket.
            limits: When it is restarted.
            gpu_busy: Returns how busy its GPU is in percent, if known.
            on_change: Called whenever its phase changes.
            turn: Returns True if it may be recycled now.
            commanded: How it is restarted if something else starts it; None: the agent runs it.
            clock: Seconds, monotonic.
        """
        self.probe = probe
        self.watch = Watch()
        self.used = Used()
        self.spec = spec
        self._limits = limits or RestartLimits()
        self._gpu_busy = gpu_busy
        self._on_change = on_change
        self._turn = turn
        self._clock = clock
        self._monitor = WebsocketMonitor(
            probe.url, client_id, clock=clock, on_log=lambda text: self._note_death(text.splitlines())
        )
        self._client_id = client_id
        self._log_failing = False
        self._log = LogFile(spec.log, on_trouble=self._log_trouble)
        self._commanded = commanded
        self._child: Child | CommandedProcess = commanded or Child(
            spec.name,
            spec.argv,
            env=spec.env,
            cwd=spec.cwd,
            on_line=self._on_line,
            stop_timeout_s=spec.stop_timeout_s,
        )
        self._effort = 0.0
        self._cpu_and_disk = 0.0
        self._read_at: float | None = None
        self._clear_at: float | None = None
        self._failed = ""
        self._broken = ""
        self._down_at: float | None = None

    @property
    def up(self) -> bool:
        """Whether it may get jobs."""
        return self.watch.phase is ProcessPhase.UP

    @property
    def ours(self) -> bool:
        """Whether the agent has started it, and ends it."""
        return self._commanded is None

    @property
    def running(self) -> bool:
        """Whether it lives, as far as that is known."""
        return self._child.running

    @property
    def pid(self) -> int | None:
        """Its process id; None while it does not run, or if that is hidden."""
        return self._child.pid if self._child.running else None

    @property
    def jobs(self) -> int:
        """Prompts that it has finished since its start."""
        return self._monitor.jobs

    def recycle(self, why: str) -> None:
        """Restart it as soon as no run needs it."""
        self._become(self.watch.recycle(why, self._clock()))

    def clear(self, asked_at: float) -> None:
        """Note that no run of the fleet needs it.

        Args:
            asked_at: When the fleet was asked; an answer from before it began to leave says nothing.
        """
        if self.watch.phase is ProcessPhase.LEAVING and asked_at >= self.watch.since + SETTLE_S:
            self._clear_at = asked_at

    async def run(self) -> None:
        """Keep it running until canceled, then end it if it is ours."""
        helpers = [start(self._monitor.run(), name=f"pulse of {self.spec.name}")]
        if self._commanded is not None:
            helpers.append(start(self._follow_log(), name=f"log of {self.spec.name}"))
        try:
            while True:
                await self._tick()
                await asyncio.sleep(TICK_S)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await (self._child.stop() if self._commanded is None else self._commanded.leave())
            self._log.close()

    def kill(self) -> None:
        """End it at once, without asking."""
        self._child.send_signal(signal.SIGKILL)

    async def _tick(self) -> None:
        ready, limits = False, self._limits
        if self._commanded is not None:
            await self._commanded.look()
            limits = self._commanded.limits(limits)
        if self.watch.phase is ProcessPhase.STARTING and self._child.running:
            # A job that ends before the websocket is open would not be counted.
            ready = await self.probe.ready() and self._monitor.open
            if self._commanded is not None and ready:
                ready = self._commanded.is_new(self._monitor.opened)
        watch, order = step(self.watch, self.look(ready), limits)
        self._become(watch)
        match order:
            case Order.START:
                await self._start()
            case Order.STOP:
                await self._child.stop()
            case Order.KILL:
                self._child.send_signal(signal.SIGKILL)
                await self._child.stop()

    async def _start(self) -> None:
        if self._commanded is None:
            await self._child.stop()  # left behind by the last one
        # If it still has its GPU and its port, a second one beside it would be useless.
        if self.ours and self._child.running:
            self.watch = replace(self.watch, why=f"pid {self.pid} hangs in the kernel and can't be ended")
            return
        self.probe.restarted()
        self._monitor.restarted()
        self._effort = self._cpu_and_disk = 0.0
        self._read_at = self._clear_at = None
        self._failed = self._broken = ""
        self.used = Used()
        try:
            if self._commanded is not None:
                self._commanded.remember(self._monitor.opened)
            await self._child.start()
        except ConfigError as error:  # e.g. its Python is being upgraded just now
            self._failed = str(error)

    async def _follow_log(self) -> None:
        """Look for the end of the prompt thread in a log that does not pass through the agent.

        A long traceback pushes its own head out of the part that can be asked for: so it is heard, too.
        """
        heard, asked_at = 0, self._clock()
        while True:
            await asyncio.sleep(TICK_S)
            opened = self._monitor.opened
            if self._monitor.open and opened != heard:
                if await self.probe.subscribe_log(self._client_id):
                    heard = opened
                else:
                    await asyncio.sleep(_LOG_EVERY_S)
            if self._clock() - asked_at < _LOG_EVERY_S:
                continue
            asked_at = self._clock()
            start_ = self.watch.restarts
            if self.watch.phase not in (ProcessPhase.UP, ProcessPhase.LEAVING):
                continue
            lines = await self.probe.log()
            if self.watch.restarts == start_:
                self._note_death(lines)

    def look(self, ready: bool) -> Look:
        """Return its present state, for its supervisor."""
        now = self._clock()
        running = self._child.running
        if running and (self._read_at is None or now - self._read_at >= _READ_EVERY_S):
            self._read_usage(now)
        heard = [at for at in (self.probe.heard_at, self._monitor.heard_at) if at is not None]
        return Look(
            now=now,
            running=running,
            ended="" if running else self._failed or self._how_it_ended(),
            broken=self._broken,
            ready=ready,
            heard_at=max(heard, default=None),
            effort=self._effort,
            rss_bytes=self.used.own_bytes,
            jobs=self._monitor.jobs,
            needed=self.probe.queue.busy or self._clear_at is None,
            turn=self._turn(),
        )

    def _log_trouble(self, error: OSError | None) -> None:
        if error is None:
            logger.warning("log is written again", extra={"node": self.spec.name})
        elif not self._log_failing:
            facts = {"node": self.spec.name, "reason": error.strerror or str(error)}
            logger.error("log can't be written, its lines are lost", extra=facts)
        self._log_failing = error is not None

    def _on_line(self, line: str) -> None:
        if not line.strip():
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")  # ComfyUI's own lines have no time
        fields = {"ts": now, "level": "info", "process": self.spec.name, "logger": "comfyui", "msg": line}
        self._log.write(json_line(fields))
        self._note_death([line])

    def _note_death(self, lines: Iterable[str]) -> None:
        if any(map(_WORKER_DIED.match, lines)):
            self._broken = "the thread that runs its prompts died; its log says why"

    def _read_usage(self, now: float) -> None:
        pid = self._child.pid
        if pid is None:
            return
        self.used = used(pid)
        spent = self.used.cpu_s + self.used.read_bytes / _READ_RATE
        self._effort += max(0.0, spent - self._cpu_and_disk)
        self._cpu_and_disk = spent
        if self._read_at is not None and (self.used.blocked or (self._gpu_busy() or 0) >= _BUSY_GPU):
            self._effort += now - self._read_at
        self._read_at = now

    def _how_it_ended(self) -> str:
        status = self._child.returncode
        if status is None:
            return ""
        reason, words = self._child.reason, end_of(status)
        if status < 0 or reason == words:
            return reason
        return f"ended with {words}: {reason}"

    def _become(self, watch: Watch) -> None:
        before, self.watch = self.watch, watch
        if watch.phase is before.phase:
            return
        if watch.phase is ProcessPhase.WAITING and self._down_at is None:
            self._down_at = self._clock()
        logger.log(
            logging.WARNING if watch.phase is ProcessPhase.WAITING else logging.INFO,
            "comfyui process",
            extra={"node": self.spec.name, "phase": watch.phase.value, "why": watch.why, "pid": self.pid},
        )
        if watch.phase is ProcessPhase.UP and self._down_at is not None:
            after_s = round(self._clock() - self._down_at, 1)
            logger.info(RUNS_AGAIN, extra={"node": self.spec.name, "after_s": after_s})
            self._down_at = None
        self._on_change()
