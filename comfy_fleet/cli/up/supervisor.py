"""Keep child processes running: start, restart with back-off, write their logs, stop in order."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from comfy_fleet.adapters.system.child_processes import RUNS_AGAIN, Child, LogFile
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.process_end import end_of
from comfy_fleet.logs import json_line
from comfy_fleet.tasks import start

BACKOFF = Backoff(first_s=0.2, longest_s=10.0)
STEADY_S = 20.0  # after a child has run this long, pauses start over at the first
_LOUD = ("warning", "error", "critical")


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """A child to keep running.

    Attributes:
        name: Name of the process and of its log file.
        argv: Program and arguments.
        env: Variables in addition to our own.
        ours: Whether it gets our own ``FLEET_*``, see
            :class:`~comfy_fleet.adapters.system.child_processes.Child`.
        cwd: Folder to run in.
        stop_timeout_s: How long it may take to end before it is killed.
        stage: Stages are stopped from the highest to the lowest.
        ready: Part of the log line that shows that it works.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False
    cwd: Path | None = None
    stop_timeout_s: float = 10.0
    stage: int = 0
    ready: str | None = None


class LogTrouble:
    """Reports once that log files can't be written, however many there are, and once that they can again."""

    def __init__(self, say: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._say = say
        self._failing = False

    def of(self, error: OSError | None) -> None:
        """Note a log file's error, or None if it can be written again; others can be, too, then."""
        failing = error is not None
        if failing == self._failing:
            return
        self._failing = failing
        if error is None:
            self._say("logs", log_fields("logs", "warning", "logs are written again"))
        else:
            reason = error.strerror or str(error)
            self._say(
                "logs", log_fields("logs", "error", "logs can't be written, lines are lost", reason=reason)
            )


class Supervised:
    """One child that is restarted whenever it ends on its own.

    Attributes:
        spec: What to run.
        crashes: How often it ended on its own without having run steadily in between.
        reason: Why it ended the last time, in words.
    """

    def __init__(
        self,
        spec: ChildSpec,
        *,
        logs: Path,
        echo: Callable[[str, Mapping[str, Any]], None],
        trouble: LogTrouble | None = None,
        backoff: Backoff = BACKOFF,
    ) -> None:
        """Set up; nothing runs before :meth:`start`.

        Args:
            spec: What to run.
            logs: Folder for its log file.
            echo: Called with the process's name and the fields of every line that it logs.
            trouble: Called when its log file can't be written.
            backoff: Pauses before it is restarted.
        """
        self.spec = spec
        self.crashes = 0
        self.reason = ""
        self._down_at: float | None = None
        self._backoff = backoff
        self._echo = echo
        trouble = trouble or LogTrouble(echo)
        self._log = LogFile(logs / f"{spec.name}.log", on_trouble=trouble.of)
        self._child = Child(
            spec.name,
            spec.argv,
            env=spec.env,
            ours=spec.ours,
            cwd=spec.cwd,
            on_line=self._line,
            stop_timeout_s=spec.stop_timeout_s,
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None while it does not run."""
        return self._child.pid if self._child.running else None

    async def start(self) -> None:
        """Start it, and restart it whenever it ends.

        Raises:
            ConfigError: The program can't be run.
        """
        await self._child.start()
        kept = self._child.keep(
            self._child.start,
            backoff=self._backoff,
            steady_s=STEADY_S,
            on_end=self._ended,
            on_refused=self._refused,
        )
        self._task = start(kept, name=f"watch {self.spec.name}")

    def kill(self) -> None:
        """End it at once, without asking; :meth:`stop` still has to be awaited."""
        self._child.send_signal(signal.SIGKILL)

    async def stop(self) -> None:
        """End it for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._child.stop()
        self._log.close()

    def _ended(self, status: int, crashes: int, pause_s: float) -> None:
        self.reason, self.crashes = self._child.reason, crashes
        self._down_at = self._down_at or asyncio.get_running_loop().time()
        facts = {"status": end_of(status), "reason": self.reason, "again_in_s": pause_s}
        self._write(log_fields(self.spec.name, "error", "ended by itself", **facts))

    def _refused(self, error: ConfigError) -> None:
        self._write(log_fields(self.spec.name, "error", str(error)))

    def _line(self, line: str) -> None:
        if not line.strip():
            return
        self._write(parse_line(self.spec.name, line))
        if self._down_at is not None and self.spec.ready is not None and self.spec.ready in line:
            after_s = round(asyncio.get_running_loop().time() - self._down_at, 1)
            self._down_at = None
            self._write(log_fields(self.spec.name, "info", RUNS_AGAIN, after_s=after_s))

    def _write(self, fields: dict[str, Any]) -> None:
        self._log.write(json_line(fields))
        self._echo(self.spec.name, fields)


async def stop_all(children: Sequence[Supervised]) -> None:
    """Stop children stage by stage, from the highest to the lowest; all of one stage together."""
    for stage in sorted({child.spec.stage for child in children}, reverse=True):
        await asyncio.gather(*(child.stop() for child in children if child.spec.stage == stage))


def parse_line(process: str, line: str) -> dict[str, Any]:
    """Return a log line's fields: our processes write JSON, others (Redis, ComfyUI) write text."""
    return own_fields(line) or log_fields(process, "info", line)


def own_fields(line: str) -> dict[str, Any] | None:
    """Return the fields of a line from one of our processes; None for any other line."""
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            value = orjson.loads(line)
            if isinstance(value, dict) and isinstance(value.get("msg"), str):
                return value
    return None


def is_loud(fields: Mapping[str, Any]) -> bool:
    """Return whether a line belongs on the terminal."""
    return fields.get("level") in _LOUD or fields.get("msg") == RUNS_AGAIN


def log_fields(process: str, level: str, message: str, **more: object) -> dict[str, Any]:
    """Return the fields of a line that is logged now."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"ts": now, "level": level, "process": process, "logger": "fleet.up", "msg": message, **more}
