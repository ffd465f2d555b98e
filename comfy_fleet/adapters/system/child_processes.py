"""Child processes that never outlive their parent, with their output taken line by line.

A child gets its own session, so that Ctrl-C on the terminal reaches only the parent, which then stops its
children in the right order. On Linux the kernel also sends the child a signal when the parent dies
(``PR_SET_PDEATHSIG``), so that even ``kill -9`` of the parent leaves nothing behind. The signal is tied to
the *thread* that forked: start children from a thread that lives as long as the process.
"""

import asyncio
import contextlib
import ctypes
import errno
import io
import itertools
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.process_end import reason_of
from comfy_fleet.tasks import start
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LINE_LIMIT = 64 * 1024  # a longer line is cut into pieces of this size
_KILLED_S = 5.0  # a process that lives this long after SIGKILL hangs in the kernel (a driver, a dead disk)
RUNS_AGAIN = "runs again"  # what is logged of whatever had ended by itself, with `after_s`
LOG_BYTES = 20 * 2**20
_LOOK_S = 0.1  # how late an end may be noticed if a grandchild holds the child's pipe
_DRAIN_S = 1.0  # how long to go on reading after the child's end, if a grandchild holds its pipe


def strangers(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a process which is not the fleet's may have."""
    ours = ("FLEET_", "OTEL_")  # the latter may hold a collector's password
    return {name: value for name, value in environ.items() if not name.upper().startswith(ours)}


class Child:
    """One child process.

    Attributes:
        name: Its name in logs.
        argv: Program and arguments; never goes through a shell.
        last_lines: The end of its output, to explain why it died.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        ours: bool = False,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_timeout_s: float = 10.0,
    ) -> None:
        """Set up; nothing runs before :meth:`start`.

        Args:
            name: Its name in logs.
        argv: Program and arguments.
        env: Variables in addition to this process's own.
        ours: Whether it is a process of the fleet's. No other one gets ``FLEET_*`` of this process's: they
            hold tokens and passwords, and ComfyUI's custom nodes are other people's code.
        cwd: Folder to run in.
        on_line: Called with every line of its stdout and stderr; by default they are logged.
        stop_signal: The signal that asks it to end; the kernel also sends it when this process dies.
        stop_timeout_s: How long it may take to end before it is killed.
        """
        self.name = name
        self.argv = tuple(argv)
        self.last_lines: deque[str] = deque(maxlen=20)
        self._env = dict(env or {})
        self._ours = ours
        self._cwd = cwd
        self._on_line = on_line or self._log_line
        self._stop_signal = stop_signal
        self._stop_timeout_s = stop_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id, even after its end; None before the first start."""
        return self._process.pid if self._process else None

    @property
    def returncode(self) -> int | None:
        """Its exit status (negative: the signal that ended it), or None while it runs or never ran."""
        return self._process.returncode if self._process else None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it. A child that has ended can be started again.

        Raises:
            ConfigError: The program is missing or can't be run.
            RuntimeError: It is running already.
        """
        if self.running:
            raise RuntimeError(f"{self.name} runs already as pid {self.pid}")
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**(os.environ if self._ours else strangers(os.environ)), **self._env},
                cwd=self._cwd,
                start_new_session=True,
                preexec_fn=dies_with_parent(self._stop_signal),
            )
        except OSError as error:
            raise ConfigError(
                f"{self.name}: can't run {self.argv[0]!r}: {error.strerror or error}; "
                "install it or name another program in the settings",
                details={"program": self.argv[0]},
            ) from error
        self._pump = start(self._read(self._process), name=f"output of {self.name}")
        logger.info("child started", extra={"child": self.name, "pid": self.pid})

    async def keep(
        self,
        restart: Callable[[], Awaitable[None]],
        *,
        backoff: Backoff,
        steady_s: float,
        on_end: Callable[[int, int, float], None],
        on_refused: Callable[[ConfigError], None],
    ) -> NoReturn:
        """Restart it whenever it ends on its own, with growing pauses; until canceled.

        Args:
            restart: Starts it; raises ConfigError if that is impossible now, e.g. during an upgrade.
            backoff: The pauses.
            steady_s: After this long alive, an end counts as a new failure.
            on_end: Called with its exit status, how often it ended without living that long, and the pause in
                seconds that follows.
            on_refused: Called with the reason why it was not started; it is tried again after a pause.
        """
        clock = asyncio.get_running_loop().time
        crashes = 0
        while True:
            since = clock()
            status = await self.wait()
            crashes = 1 if clock() - since >= steady_s else crashes + 1
            pause_s = backoff.pause_s(crashes)
            on_end(status, crashes, pause_s)
            await asyncio.sleep(pause_s)
            for failures in itertools.count(crashes + 1):
                try:
                    await restart()
                    break
                except ConfigError as error:
                    on_refused(error)
                await asyncio.sleep(backoff.pause_s(failures))

    async def wait(self) -> int:
        """Wait for its end and return its exit status.

        Raises:
            RuntimeError: It was never started.
        """
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        status = await _end(self._process)
        await self._finish_reading()
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self) -> int | None:
        """Ask it to end, kill it if that takes too long, and return its exit status.

        Other processes of its group are killed, too. Never waits for long: a process that hangs in the kernel
        survives even SIGKILL.

        Returns:
            None if it was never started, or can't be ended; then it still counts as running.
        """
        if self._process is None:
            return None
        if self.running:
            self.send_signal(self._stop_signal)
            try:
                async with Timeout(self._stop_timeout_s):
                    await _end(self._process)
            except TimeoutError:
                logger.warning("child killed", extra={"child": self.name, "pid": self.pid})
                self._kill_group()
        try:
            async with Timeout(_KILLED_S):
                status = await _end(self._process)
        except TimeoutError:
            logger.error("child can't be ended", extra={"child": self.name, "pid": self.pid})
            return None
        self._kill_group()
        await self._finish_reading()
        logger.info("child stopped", extra={"child": self.name, "status": status})
        return status

    def _kill_group(self) -> None:
        # The group's id stays reserved while any member lives, so this can't reach another process.
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        rest = b""
        while process.stdout and (chunk := await process.stdout.read(_LINE_LIMIT)):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(line)
            if len(rest) >= _LINE_LIMIT:
                self._take(rest)
                rest = b""
        if rest:
            self._take(rest)

    def _take(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip("\r")
        self.last_lines.append(line)
        self._on_line(line)

    async def _finish_reading(self) -> None:
        if self._pump is None:
            return
        await asyncio.wait({self._pump}, timeout=_DRAIN_S)
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)

    def _log_line(self, line: str) -> None:
        if line:
            logger.info("child says", extra={"child": self.name, "line": line})

    @property
    def reason(self) -> str:
        """Why it ended, in words; empty while it runs or never ran."""
        return "" if self.returncode is None else reason_of(self.returncode, self.last_lines)


async def _end(process: asyncio.subprocess.Process) -> int:
    """Wait for a process's end; asyncio's own wait goes on for as long as anybody holds its pipe."""
    # One wait for all looks: the transport keeps each that was canceled until the process ends.
    ended = asyncio.ensure_future(process.wait())
    try:
        while process.returncode is None:
            await asyncio.wait({ended}, timeout=_LOOK_S)
    finally:
        ended.cancel()
    return process.returncode


class LogFile:
    """A file with the last 20 to 40 MiB of a child's output, the older part as ``NAME.1``.

    Lines that can't be written, e.g. on a full disk, are lost; the child goes on.

    Args:
        path: The file; created with the first line.
        on_trouble: Called with the error of every line that can't be written, and with None once one can be
            again.
    """

    def __init__(self, path: Path, *, on_trouble: Callable[[OSError | None], None] | None = None) -> None:
        self._path = path
        self._on_trouble = on_trouble or (lambda _: None)
        self._file: io.FileIO | None = None
        self._size = 0
        self._failing = False

    def write(self, line: str) -> None:
        """Add a line."""
        try:
            self._append(f"{line}\n".encode(errors="backslashreplace"))
        except OSError as error:
            self._failing = True
            self._on_trouble(error)
        else:
            if self._failing:
                self._failing = False
                self._on_trouble(None)

    def close(self) -> None:
        """Close it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, data: bytes) -> None:
        if self._file is not None and self._size + len(data) > LOG_BYTES:
            self.close()
            with contextlib.suppress(FileNotFoundError):  # somebody took it away
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        if self._file is None:
            self._file = io.FileIO(self._path, "ab")  # unbuffered: a crash loses no line
            self._size = self._file.seek(0, io.SEEK_END)
        written = self._file.write(data) or 0
        if written < len(data):
            self._file.truncate(self._size)  # no half lines
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written


def dies_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Return the function that a child runs between fork and exec to get a signal when its parent dies.

    For ``preexec_fn``. None where the kernel has no such thing.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork: the child must not allocate or lock
    parent = os.getpid()

    def bind() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # the parent died before prctl could matter
            os._exit(1)

    return bind
