"""Nodes that are processes of this machine: simulated ones, or ComfyUIs that an agent of their own runs.

They outlive the autoscaler, so that its end ends no job. They are found again by a variable in their
environment, which no process can lose: there is no file that could be missing after a crash.
"""

import asyncio
import hashlib
import itertools
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.agent_token import AgentToken, text_of
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.domain.scaling.orders import ScalingOrder
from comfy_fleet.domain.scaling.scaling_file import ProviderSpec
from comfy_fleet.ports.agent_tokens import AgentTokenStore

MARK = "COMFY_FLEET_NODE"
"""The variable: the folder of the node, which no other fleet's node has."""
MANAGED, MANAGER = "managed-by", "fleet-autoscale"

_END_S = 30.0
_KILL_S = 5.0
_LOOK_S = 0.2


class LocalProvider:
    """Starts and ends processes.

    Args:
        spec: What to start.
        pool: The nodes' pool.
        prefix: With which nodes' names begin.
        data: Folder for their files and logs, absolute, and no other fleet's.
        env: Variables by which an agent finds the fleet.
        tokens: Where agents' tokens are: each gets one for its host alone.
        clock: The fleet's time, Unix seconds.
    """

    def __init__(
        self,
        spec: ProviderSpec,
        *,
        pool: str,
        prefix: str,
        data: Path,
        env: Mapping[str, str],
        tokens: AgentTokenStore,
        clock: Callable[[], Awaitable[float]],
    ) -> None:
        self._spec = spec
        self._pool = pool
        self._prefix = prefix
        self._data = data
        self._env = dict(env)
        self._tokens = tokens
        self._clock = clock
        self._started: dict[str, asyncio.subprocess.Process] = {}

    again = True

    def draw(self, orders: Sequence[ScalingOrder]) -> tuple[str, Mapping[str, str]] | None:
        """Return the first free name, and a port or a GPU."""
        taken = {order.name for order in orders}
        number = next(one for one in itertools.count(1) if f"{self._prefix}-{one}" not in taken)
        name = f"{self._prefix}-{number}"
        if self._spec.simulated:
            return name, {"port": str(_free_port())}
        if number > len(self._spec.gpus):
            return None
        return name, {"gpu": self._spec.gpus[number - 1]}

    async def add(self, order: ScalingOrder) -> Node | None:
        """Start its process, unless it runs."""
        folder = self._data / order.name
        if not await asyncio.to_thread(marked, self._mark(order.name)):
            await self._start(order, folder)
        if not self._spec.simulated:
            return None
        return Node(
            name=order.name,
            url=f"http://127.0.0.1:{order.facts['port']}",
            pool=self._pool,
            simulated=True,
            labels={MANAGED: MANAGER},
        )

    async def _start(self, order: ScalingOrder, folder: Path) -> None:
        env = {**os.environ, **self._env, MARK: self._mark(order.name)}
        if not self._spec.simulated:
            env.pop("FLEET_AGENT_TOKEN_FILE", None)
            env["FLEET_AGENT_TOKEN"] = await self._new_token(order.name)
        try:
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            with (self._data / f"{order.name}.log").open("wb") as log:
                # A session of its own, and no signal at our death: it is not ours to end with us.
                self._started[order.name] = await asyncio.create_subprocess_exec(
                    *self._argv(order, folder),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=env,
                    start_new_session=True,
                )
        except OSError as error:
            raise ConfigError(f"{order.name} can't be started: {error}") from error

    async def remove(self, order: ScalingOrder) -> None:
        """End its processes, and delete its files."""
        mark = self._mark(order.name)
        for pid in await asyncio.to_thread(marked, mark):
            if _leads(pid):  # it ends the others
                _signal(pid, signal.SIGTERM)
        if await _living(mark, _END_S):
            for pid in await asyncio.to_thread(marked, mark):
                _signal(pid, signal.SIGKILL)
            if pids := await _living(mark, _KILL_S):
                raise ConfigError(f"processes of {order.name} can't be ended: {', '.join(map(str, pids))}")
        await self._forget_tokens(order.name)
        if (process := self._started.pop(order.name, None)) is not None:
            await process.wait()
        await asyncio.to_thread(shutil.rmtree, self._data / order.name, ignore_errors=True)
        if not order.failed:  # else it says why
            (self._data / f"{order.name}.log").unlink(missing_ok=True)

    async def _new_token(self, host: str) -> str:
        await self._forget_tokens(host)
        id_ = secrets.token_hex(4)
        text = text_of(host, id_, secrets.token_urlsafe(32))
        digest = hashlib.sha256(text.encode()).hexdigest()
        await self._tokens.add(AgentToken(id=id_, host=host, digest=digest, created_at=await self._clock()))
        return text

    async def _forget_tokens(self, host: str) -> None:
        for token in await self._tokens.tokens():
            if token.host == host:
                await self._tokens.revoke(token.id)

    def _mark(self, name: str) -> str:
        return str(self._data / name)

    def _argv(self, order: ScalingOrder, folder: Path) -> list[str]:
        fleet = [sys.executable, "-m", "comfy_fleet"]
        if self._spec.simulated:
            return [
                *(*fleet, "sim", "--nodes", "1", "--port", order.facts["port"], "--name-prefix", order.name),
                *("--data", str(folder), *self._spec.sim_args),
            ]
        more = [f"--comfyui-args={shlex.join(self._spec.comfyui_args)}"] if self._spec.comfyui_args else []
        return [
            *(*fleet, "agent", "--host", order.name, "--port", "0", "--metrics-port", "none"),
            *("--data", str(folder), "--pool", self._pool, "--label", f"{MANAGED}={MANAGER}"),
            *("--comfyui", self._spec.comfyui, "--gpus", order.facts["gpu"]),
            *(("--python", self._spec.python) if self._spec.python else ()),
            *(("--join", self._spec.join) if self._spec.join else ()),
            *more,
        ]


def marked(mark: str, proc: Path = Path("/proc")) -> list[int]:
    """Return the processes that have this mark, and live."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # somebody else's, or gone
            continue
    return found


async def _living(mark: str, patience_s: float) -> list[int]:
    """Wait until no process has a mark; return those that still have it."""
    for _ in range(int(patience_s / _LOOK_S)):
        if not await asyncio.to_thread(marked, mark):
            break
        await asyncio.sleep(_LOOK_S)
    return await asyncio.to_thread(marked, mark)


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
