"""One simulated node: a port, and an engine that can be made to fail."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from comfy_fleet.sim.app import App
from comfy_fleet.sim.catalogue import Catalogue
from comfy_fleet.sim.engine import Engine, Stats
from comfy_fleet.sim.faults import BadFault, Faults
from comfy_fleet.sim.files import SimFiles
from comfy_fleet.sim.memory import Vram
from comfy_fleet.sim.messages import Request, Response
from comfy_fleet.sim.model_files import FolderModels
from comfy_fleet.sim.options import Models, NodeOptions, builtin_models, read_json
from comfy_fleet.sim.pictures import Painter
from comfy_fleet.sim.run import Machine, temporary_suffix
from comfy_fleet.sim.wire import SimServer, Socket

logger = logging.getLogger(__name__)

HEADERS = {"Server": "comfy-fleet-sim", "X-Comfy-Simulated": "1"}
EXIT_CODE = 137  # of a process that a fault ends: what a killed one has


class SimNode:
    """A simulated ComfyUI in this event loop.

    ``async with SimNode(NodeOptions(name="gpu-1")) as node: ...``

    Args:
        options: Its size, speed and model files; everything by default when None.
        host: Where it listens.
        port: Its port; 0 lets the kernel choose, and a restart keeps what was chosen.

    Attributes:
        options: As given.
        faults: What shall go wrong; may be changed at any time.
        vram: Its memory.
        files: Its folders.
        models: Its model files by folder.
    """

    def __init__(self, options: NodeOptions | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.options = options or NodeOptions()
        self.host = host
        self.port = port
        self.faults = Faults()
        self.vram = Vram(self.options.vram_bytes, self.options.foreign_bytes)
        self.files = SimFiles(self.options.folder)
        self.models: Models = builtin_models() if self.options.models is None else self.options.models
        if self.options.models_folder is not None:
            self.models = FolderModels(self.models, self.options.models_folder)
        extra = self.options.object_info
        self.catalogue = Catalogue(
            self.options.version,
            self.models,
            self.files.list_uploaded,
            None if extra is None else read_json(extra),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._worker: asyncio.Task[None] | None = None
        self._ended = False
        self._server = SimServer(self._handle, self._on_socket, HEADERS)
        self._boot()

    @property
    def calls(self) -> int:
        """How many of its connections have a request that is not answered yet."""
        return self._server.calls

    @property
    def websockets(self) -> int:
        """How many websockets to it are open."""
        return self._server.websockets

    @property
    def name(self) -> str:
        """Its name."""
        return self.options.name

    @property
    def url(self) -> str:
        """``http://HOST:PORT``."""
        return f"http://{self.host}:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether its port is open."""
        return self._server.listening

    @property
    def frozen(self) -> bool:
        """Whether it accepts connections but answers nothing."""
        return self._server.line.frozen

    @property
    def stats(self) -> Stats:
        """What its GPU did; survives crashes."""
        return self.engine.stats

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _boot(self, stats: Stats | None = None) -> None:
        """Create what a restart of ComfyUI loses: queue, history, cache, loaded models."""
        self.vram.unload()
        options = self.options
        machine = Machine(
            name=options.name,
            files=self.files,
            vram=self.vram,
            painter=Painter(options.name, stamp=options.stamp),
            timing=options.timing,
            models=self.models,
            previews=options.previews,
            preview_suffix=temporary_suffix(),
        )
        self.engine = Engine(
            machine, self.catalogue, self.faults, self._server.line, options.history_limit, self._die
        )
        if stats is not None:
            self.engine.stats = stats
        self.app = App(self)

    async def start(self) -> None:
        """Open the port and begin to work."""
        self.port = await self._server.listen(self.host, self.port)
        self._worker = asyncio.get_running_loop().create_task(self.engine.run_forever())
        self._worker.add_done_callback(self._worker_ended)

    async def stop(self) -> None:
        """Stop for good: drop all connections and remove temporary files."""
        self._ended = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._halt()
        self.files.close()

    async def crash(self, restart_after_s: float | None = None) -> None:
        """Die as a killed process does: the port closes, sockets and memory are gone.

        Args:
            restart_after_s: Come back after this many seconds, empty; None: stay dead until
                :meth:`restart`.
        """
        if self.faults.exit_process:
            logger.warning("simulated crash ends the process", extra={"node": self.name})
            os._exit(EXIT_CODE)
        await self._halt()
        if restart_after_s is not None:
            self._spawn(self._restart_later(restart_after_s))

    async def restart(self) -> None:
        """Come back after a crash, or crash and come back at once."""
        await self._halt()
        if not self._ended:
            self._boot(self.engine.stats)
            await self.start()

    def freeze(self) -> None:
        """Accept connections, but answer nothing, not even pings."""
        self._server.line.freeze()

    def thaw(self) -> None:
        """Go on, including requests that came meanwhile."""
        self._server.line.thaw()

    def slow(self, *, delay_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        """Delay every response and frame, and limit what each connection writes; 0 is off."""
        self._server.line.delay_s = delay_s
        self._server.line.bytes_per_s = bytes_per_s

    async def set_faults(self, values: Mapping[str, Any]) -> None:
        """Switch faults, as ``POST /sim/faults`` does.

        Beside the fields of :class:`~comfy_fleet.sim.faults.Faults` there are ``crash`` (true: now),
        ``freeze`` (true, false, or seconds), ``slow`` (``{"delay_s", "bytes_per_s"}``),
        ``foreign_gib`` (memory that another process holds) and ``clear`` (true: all off, first).

        Raises:
            BadFault: A name or a value is wrong; nothing is changed then.
        """
        left = dict(values)
        clear, crash = left.pop("clear", False), left.pop("crash", False)
        freeze, foreign = left.pop("freeze", None), left.pop("foreign_gib", None)
        slow = left.pop("slow", None)
        if not isinstance(freeze, bool | int | float | None) or not isinstance(foreign, int | float | None):
            raise BadFault("freeze takes true, false or seconds; foreign_gib takes a number")
        if slow is not None and (
            not isinstance(slow, dict)
            or not set(slow) <= {"delay_s", "bytes_per_s"}
            or not all(isinstance(value, int | float) and value >= 0 for value in slow.values())
        ):
            raise BadFault('slow takes {"delay_s": SECONDS, "bytes_per_s": NUMBER}')
        if clear:
            Faults().update(left)  # checks before anything is changed
            self.clear_faults()
        self.faults.update(left)
        if slow is not None:
            self.slow(**slow)
        if foreign is not None:
            self.vram.foreign = int(foreign * 2**30)
        if freeze is not None:
            self.freeze() if freeze else self.thaw()
            if freeze and not isinstance(freeze, bool):
                self._spawn(self._thaw_later(float(freeze)))
        if crash:
            self._die()

    def clear_faults(self) -> None:
        """Switch everything off and answer again."""
        self.faults.clear()
        self.slow()
        self.thaw()
        self.vram.foreign = self.options.foreign_bytes

    def describe_faults(self) -> dict[str, Any]:
        """Return all switches as JSON."""
        line = self._server.line
        return {
            **self.faults.as_json(),
            "freeze": line.frozen,
            "slow": {"delay_s": line.delay_s, "bytes_per_s": line.bytes_per_s},
            "foreign_gib": self.vram.foreign / 2**30,
        }

    def describe_stats(self) -> dict[str, Any]:
        """Return what the GPU did as JSON; a prompt that still runs counts up to now."""
        stats, now = self.stats, time.time()
        since = self.engine.running_since
        return {
            "name": self.name,
            "simulated": True,
            "since": stats.since,
            "now": now,
            "busy_s": stats.busy_s + (0.0 if since is None else now - max(since, stats.since)),
            "done": stats.done,
            "failed": stats.failed,
            "interrupted": stats.interrupted,
            "queue_remaining": self.engine.queue_info()["exec_info"]["queue_remaining"],
            "models_loaded": self.vram.models,
            "loads": self.vram.loads[0],
            "loaded_bytes": self.vram.loads[1],
            "intervals": list(stats.intervals),
        }

    def reset(self) -> None:
        """Reset the account and forget history, cache, loaded models and faults; files stay."""
        self.engine.stats = Stats()
        self.engine.history.clear()
        self.engine.forget()
        self.vram.loads = (0, 0)
        self.clear_faults()

    async def _handle(self, request: Request) -> Response:
        return await self.app(request)

    def _on_socket(self, socket: Socket) -> None:
        self.engine.sockets.add(socket)

    def _die(self) -> None:
        self._spawn(self.crash(self.faults.restart_after_s))

    async def _halt(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        await self._server.close()
        self._server.line.thaw()

    async def _restart_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.restart()

    async def _thaw_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.thaw()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("simulated node stopped working", exc_info=error, extra={"node": self.name})
