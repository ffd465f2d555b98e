"""A ComfyUI that something else starts, such as systemd, and that the agent restarts by a command.

The agent never ends it by itself, and never starts one that was stopped: that is up to whatever starts it.
"""

import asyncio
import logging
import math
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from comfy_fleet.adapters.system import procfs
from comfy_fleet.adapters.system.child_processes import Child
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.node import parse_place
from comfy_fleet.domain.nodes.process_supervision import RestartLimits
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

COMMAND_LIMIT_S = 180.0
"""How long a command may take; systemd waits 90 s for a unit that does not end."""

_LOOK_EVERY_S = 1.0
_FIND_EVERY_S = 5.0
_LINE_LIMIT = 300  # characters of the command's output in a reason
_PLACE = "{name}"
_PLACES = re.compile(r"\{[^{}]*\}|[{}]")


@dataclass(frozen=True, kw_only=True)
class RestartTemplate:
    """A command that restarts a node's ComfyUI.

    Attributes:
        words: Program and arguments, run without a shell; ``{name}`` in them becomes the node's name.
    """

    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, what: str = "--restart-command") -> "RestartTemplate":
        """Read a command.

        Args:
            text: As in a shell, with quotes.
            what: Its name in errors.

        Raises:
            ConfigError: It is empty, its quotes don't match, it has another place than ``{name}``, or its
                program is missing.
        """
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise ConfigError(f"{what}: {error}: {text!r}") from error
        if not words:
            raise ConfigError(f"{what} is empty; for example: systemctl restart comfyui@{_PLACE}")
        for place in _PLACES.findall(text):
            if place != _PLACE:
                raise ConfigError(f"{what}: only {_PLACE} can be filled in, not {place!r}: {text!r}")
        if _PLACE in words[0]:
            raise ConfigError(f"{what}: the program itself can't depend on {_PLACE}: {text!r}")
        if shutil.which(words[0]) is None:
            raise ConfigError(f"{what}: there is no program {words[0]!r}; give its whole path")
        return cls(words=words)

    @property
    def for_all(self) -> bool:
        """Whether it names the node, so that it can serve several."""
        return any(_PLACE in word for word in self.words)

    def argv(self, name: str) -> tuple[str, ...]:
        """Return program and arguments for a node."""
        return tuple(word.replace(_PLACE, name) for word in self.words)


class CommandedProcess:
    """Sees whether such a ComfyUI lives, by its port, and restarts it by a command.

    Where its port can't be seen, as behind a proxy, it counts as alive.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        url: str,
        *,
        limit_s: float = COMMAND_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing runs.

        Args:
            name: The node's name.
            argv: The command.
            url: Base of its ComfyUI.
            limit_s: How long the command may take.
            clock: Seconds, monotonic.
        """
        place = parse_place(url)
        self.name = name
        self.returncode: int | None = None
        self._argv = tuple(argv)
        self._port = None if place.proxied else place.port
        self._limit_s = limit_s
        self._clock = clock
        self._pid: int | None = None
        self._sockets: frozenset[str] = frozenset()
        self._looked_at = self._found_at = -math.inf
        self._lost = False
        self._wanted = False  # whether the next start is a restart by the command
        self._ordered = False  # whether the last start was one
        self._opened = -1
        self._command: Child | None = None
        self._told = False

    @property
    def pid(self) -> int | None:
        """Its process id; None if it is unknown."""
        return self._pid

    @property
    def running(self) -> bool:
        """Whether it lives, or may be starting."""
        return not (self._lost or self._wanted)

    @property
    def reason(self) -> str:
        """Why it does not run."""
        return "it was ended or restarted by something else"

    async def look(self) -> None:
        """Look at its port, if that is due."""
        now = self._clock()
        if self._port is None or now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        found = await asyncio.to_thread(procfs.listening, self._port)
        if found is None:
            return
        if self._sockets and self._sockets.isdisjoint(found):
            self._lost, self._pid = True, None
        elif found and not self._lost:
            new = not self._sockets
            self._sockets = found
            if new or (self._pid is None and now - self._found_at >= _FIND_EVERY_S):
                self._found_at = now
                await self._find(self._port)

    async def _find(self, port: int) -> None:
        pid = await asyncio.to_thread(procfs.listener, port)
        self._pid = None if pid == os.getpid() else pid
        if self._pid is None and not self._told:
            self._told = True
            reason = "run the agent as the same user: its memory is unknown, and silence counts much later"
            logger.warning("process can't be seen", extra={"node": self.name, "reason": reason})

    def limits(self, limits: RestartLimits) -> RestartLimits:
        """Return the limits that can be judged now."""
        if not self._ordered:  # who has started it, or will, is not known; nor when
            limits = replace(limits, start_s=math.inf)
        if self._pid is None:  # whether a silent one computes or loads a model is not known
            limits = replace(limits, frozen_s=max(limits.frozen_s, limits.hung_s))
        return limits

    def remember(self, opened: int) -> None:
        """Note how often its websocket was opened before a start."""
        self._opened = opened

    def is_new(self, opened: int) -> bool:
        """Return whether what answers was started since the command: its websocket was opened again."""
        return not self._ordered or opened > self._opened

    async def start(self) -> None:
        """Run the command if a restart was decided on; else wait for what starts it.

        Raises:
            ConfigError: The command failed or took too long; it will run again at the next start.
        """
        self._ordered = self._wanted
        if self._wanted:
            await self._restart()
        self._sockets, self._pid = frozenset(), None
        self._lost = self._wanted = False
        self._looked_at = -math.inf

    async def stop(self) -> None:
        """Decide on a restart: the next start runs the command."""
        self._wanted = True

    def send_signal(self, number: signal.Signals) -> None:
        """Do nothing: the command ends it."""

    async def leave(self) -> None:
        """End a command that still runs; its ComfyUI goes on."""
        if self._command is not None:
            await self._command.stop()

    async def _restart(self) -> None:
        facts = {"node": self.name, "command": shlex.join(self._argv)}
        logger.info("restart command", extra=facts)
        command = self._command = Child(f"restart of {self.name}", self._argv, on_line=lambda _: None)
        failure = await self._failure_of(command)
        self._command = None
        if failure:
            logger.error("restart command failed", extra={**facts, "reason": failure})
            raise ConfigError(f"the command that restarts it {failure}")

    async def _failure_of(self, command: Child) -> str:
        """Run a command, and return how it failed; empty if it did not."""
        try:
            await command.start()
            async with Timeout(self._limit_s):
                status = await command.wait()
        except ConfigError as error:
            return f"can't be run: {error}"
        except TimeoutError:
            await command.stop()
            return f"took longer than {self._limit_s:g} s"
        if not status:
            return ""
        said = next((line.strip() for line in reversed(command.last_lines) if line.strip()), "")
        failed = f"failed with {status}" if status > 0 else f"was ended by signal {-status}"
        return ": ".join(filter(None, (failed, said[:_LINE_LIMIT])))
