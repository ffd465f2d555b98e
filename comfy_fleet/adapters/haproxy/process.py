"""One HAProxy process: start, watch, restart. And a lock that allows one controller per folder."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import orjson

from comfy_fleet.adapters.haproxy.runtime import Runtime
from comfy_fleet.adapters.system import procfs
from comfy_fleet.adapters.system.child_processes import RUNS_AGAIN, Child
from comfy_fleet.adapters.system.folders import locked
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import BrokerError, ConfigError
from comfy_fleet.domain.nodes.process_end import end_of
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 10.0
_POLL_S = 0.02
_RELOAD_AGAIN_S = 3.0
_RELOADS = 3
_LEVELS = {"[ALERT]": logging.WARNING, "[WARNING]": logging.INFO, "[NOTICE]": logging.DEBUG}
_NO_NEWS = "remains in forced drain mode."
"""HAProxy logs this, twice, at every agent-check that drains a server that the controller has drained."""

_ORDERED = "has no server available!"
"""An alert to HAProxy, but normal when an operator drains a pool; a node's trouble shows in its state."""

_BACKOFF = Backoff(first_s=0.1, longest_s=5.0)
_STEADY_S = 30.0  # after this long alive, an end counts as a new failure


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that no second controller works on it.

    Raises:
        ConfigError: Another process holds it.
    """
    lock = folder / "haproxy.lock"
    with locked(lock, who="`fleet haproxy run`", instead="set FLEET_DATA to another folder"):
        yield


class HAProxy:
    """An HAProxy child process with its control socket."""

    def __init__(
        self,
        name: str,
        program: str,
        config: Path,
        socket: Path,
        *,
        reloads: bool,
        on_start: Callable[[], None],
        on_news: Callable[[], None] | None = None,
        prefix: str = "",
    ) -> None:
        """Set up.

        Args:
            name: ``broker`` or ``edge``.
            program: HAProxy.
            config: Its configuration.
            socket: Its Runtime API.
            reloads: Run a master that can replace its worker without closing the port.
            on_start: Called whenever it answers after a start.
            on_news: Called when it says something about itself or its servers, e.g. that one is up.
            prefix: The prefix of its backends' names.
        """
        self.name = name
        self.runtime = Runtime(socket, prefix=prefix)
        self._config = config
        self._pid_file = config.with_suffix(".pid")
        self._reloads = reloads
        self._on_start = on_start
        self._on_news = on_news
        self._renewal = asyncio.Lock()
        mode = ["-W", "-db"] if reloads else ["-db"]
        self._child = Child(
            f"haproxy {name}", [program, *mode, "-f", str(config)], on_line=self.take_line, stop_timeout_s=5.0
        )

    @property
    def pid(self) -> int | None:
        """Process id of the child (with a master: the master's)."""
        return self._child.pid

    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ConfigError: It ended at once, e.g. because a port is taken; the message includes its output.
        """
        await self._child.start()
        self._pid_file.write_text(str(self._child.pid))
        try:
            async with Timeout(_START_TIMEOUT_S):
                while not await self._answers():
                    if not self._child.running:
                        break
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            await self._child.stop()
        if not self._child.running:
            await self._child.wait()
            raise ConfigError(
                f"HAProxy ({self.name}) did not start: {self._why_not()}",
                details={"status": self._child.returncode},
            )
        self._on_start()

    async def _answers(self) -> bool:
        # The socket file of a dead process refuses; one of another program is not ours.
        try:
            pid = await self.runtime.pid()
        except (BrokerError, KeyError, ValueError):
            return False
        return self._reloads or pid == self._child.pid

    async def keep(self) -> NoReturn:
        """Restart it whenever it ends, with growing pauses; runs until canceled."""
        clock = asyncio.get_running_loop().time
        down_at: float | None = None

        def ended(status: int, _crashes: int, _pause_s: float) -> None:
            nonlocal down_at
            down_at = down_at or clock()
            facts = {"haproxy": self.name, "status": end_of(status), "reason": self._child.reason}
            logger.error("haproxy ended", extra=facts)

        def refused(error: ConfigError) -> None:
            logger.error("haproxy not started", extra={"haproxy": self.name, "reason": error.message})

        async def restart() -> None:
            nonlocal down_at
            await self.start()
            after_s = round(clock() - (down_at or clock()), 1)
            logger.info(RUNS_AGAIN, extra={"haproxy": self.name, "after_s": after_s})
            down_at = None

        await self._child.keep(
            restart, backoff=_BACKOFF, steady_s=_STEADY_S, on_end=ended, on_refused=refused
        )

    def reload(self) -> None:
        """Let the master start a worker with the new configuration; the old one ends with its last stream."""
        self._child.send_signal(signal.SIGUSR2)
        logger.info("haproxy reloaded", extra={"haproxy": self.name})

    async def renew(self) -> None:
        """Reload, and wait until another worker answers; callers wait for each other.

        A master misses an order that comes while it still begins after the one before; then it gets it again.

        Raises:
            ConfigError: No other worker came, e.g. because a port is taken; the one before goes on.
        """
        async with self._renewal:
            before = await self._worker()
            self._child.last_lines.clear()  # what it says from here on is why
            for _ in range(_RELOADS):
                self.reload()
                with contextlib.suppress(TimeoutError):
                    async with Timeout(_RELOAD_AGAIN_S):
                        while await self._worker() in (None, before):  # noqa: ASYNC110 - it tells nobody
                            await asyncio.sleep(_POLL_S)
                        return
        reason = self._why_not() or "it does not say why"
        logger.error("haproxy not reloaded", extra={"haproxy": self.name, "reason": reason})
        raise ConfigError(
            f"HAProxy ({self.name}) did not take its new configuration, and goes on with the one before: "
            f"{reason}; mend that, then reload again"
        )

    async def _worker(self) -> int | None:
        """Return the worker's process id; None if it does not answer."""
        with contextlib.suppress(BrokerError, KeyError, ValueError):
            return await self.runtime.pid()
        return None

    async def stop(self) -> None:
        """Stop it at once."""
        await self._child.stop()
        self._pid_file.unlink(missing_ok=True)

    async def stop_stray(self) -> None:
        """Stop the process that an earlier controller left behind, if it is ours.

        The pid file alone proves nothing: the command line must name our configuration.
        """
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return
        if not _is_ours(pid, self._config):
            self._pid_file.unlink(missing_ok=True)
            return
        logger.warning("stray haproxy stopped", extra={"haproxy": self.name, "pid": pid})
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            with contextlib.suppress(TimeoutError):
                async with Timeout(5.0):
                    while _is_ours(pid, self._config):  # noqa: ASYNC110 - not our child: there is nothing to wait on
                        await asyncio.sleep(_POLL_S)
                break
        self._pid_file.unlink(missing_ok=True)

    def _why_not(self) -> str:
        words = [line for line in self._child.last_lines if "ALERT" in line]
        return "; ".join(words[-3:]) or self._child.reason

    def take_line(self, line: str) -> None:
        """Log a line of HAProxy's output, if it matters."""
        if not line.strip() or line.rstrip().endswith(_NO_NEWS):
            return
        extra: dict[str, object] = {"haproxy": self.name}
        if line.startswith("{"):
            try:
                facts = orjson.loads(line)
            except orjson.JSONDecodeError:
                facts = {"line": line}
            logger.info("haproxy request", extra=extra | {key: v for key, v in facts.items() if v != ""})
            return
        if self._on_news is not None:
            self._on_news()
        # HAProxy's warnings include good news: a server that comes up is normal.
        level = next((level for tag, level in _LEVELS.items() if line.startswith(tag)), logging.INFO)
        if line.rstrip().endswith(_ORDERED):
            level = logging.INFO
        logger.log(level, "haproxy says", extra=extra | {"line": line})


def _is_ours(pid: int, config: Path) -> bool:
    argv = procfs.argv(pid)
    return procfs.alive(pid) and "-f" in argv and str(config) in argv
