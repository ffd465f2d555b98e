"""HAProxy's Runtime API: commands on its control socket, one connection for each."""

import asyncio
import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from comfy_fleet.adapters.haproxy.server_lines import (
    DIRECT,
    SYSTEM_CA,
    Entry,
    join,
    lease_options,
    tls_options,
)
from comfy_fleet.domain.errors import BrokerError
from comfy_fleet.timeouts import Timeout

_TIMEOUT_S = 5.0
_ADMIN_MAINT = 0x01 | 0x02 | 0x20 | 0x40  # forced, inherited, name not resolved (by DNS, at start)
_ADMIN_DRAIN = 0x08 | 0x10  # forced, inherited
_CHECK_ENABLED = 0x04
_AUTHORIZATION = re.compile(r"Basic%20[^\s|]+")
_SESSION = re.compile(r"(0x[0-9a-f]+): .*\bbe=(\S+) srv=(\S+) .*\bage=(\S+)")
_UNITS_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_STATE = (
    *("be_name", "srv_name", "srv_addr", "srv_port", "srv_admin_state", "srv_uweight"),
    *("srv_agent_addr", "srv_agent_port", "srv_agent_state", "srv_use_ssl"),
)
STAT = (
    *("svname", "status", "weight", "scur", "stot", "check_desc", "last_chk"),
    *("agent_status", "agent_desc", "agent_duration", "last_agt"),
)
"""The columns of ``show stat`` that are used here."""


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """One server of one backend, as HAProxy has it now (``show servers state``).

    Attributes:
        backend: Its backend.
        name: Its name.
        host: Its address; empty if HAProxy could not resolve its name.
        port: Its port.
        maint: Whether it is in maintenance.
        drain: Whether an order or an agent has put it into drain.
        weight: Its present weight.
        agent_host: Address of its agent.
        agent_port: Port of its agent; 0 without one.
        asks: Whether its agent-check is on.
        tls: Whether it speaks TLS.
    """

    backend: str
    name: str
    host: str
    port: int
    maint: bool
    drain: bool
    weight: int
    agent_host: str
    agent_port: int
    asks: bool
    tls: bool = False


class Runtime:
    """Commands to one HAProxy process.

    Every method raises :class:`BrokerError` if HAProxy does not answer, or refuses the command.

    Args:
        socket: Its control socket; nothing is opened before the first command.
        prefix: Begins the names of its backends, see
            :func:`~comfy_fleet.adapters.haproxy.server_lines.prefix_of`; nobody else needs to know it.
    """

    def __init__(self, socket: Path, *, prefix: str = "") -> None:
        self._socket = str(socket)
        self._prefix = prefix
        self._servers: dict[tuple[str, ...], ServerStatus] = {}  # from the last look: most rows stay the same

    async def ask(self, order: str) -> str:
        """Send one command and return the answer, without blank lines around it.

        Raises:
            BrokerError: HAProxy can't be reached, or does not answer.
        """
        try:
            async with Timeout(_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(order.encode() + b"\n")
                    answer = await reader.read(-1)
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise BrokerError(
                f"HAProxy does not answer on {self._socket}: {str(error) or 'timeout'}",
                details={"order": shown(order)},
            ) from error
        return answer.decode(errors="replace").strip()

    async def order(self, order: str, *, expect: str = "") -> None:
        """Send one command that has to succeed.

        Raises:
            BrokerError: HAProxy refused it, or can't be reached.
        """
        answer = await self.ask(order)
        if answer != expect:
            raise BrokerError(
                f"HAProxy refused `{shown(order)}`: {shown(answer) or 'no answer'}",
                details={"order": shown(order), "answer": shown(answer)},
            )

    async def alive(self) -> bool:
        """Return whether the process answers."""
        try:
            return (await self.ask("show info")).startswith("Name: HAProxy")
        except BrokerError:
            return False

    async def pid(self) -> int:
        """Return the id of the process that answers on the socket."""
        facts = dict(
            line.split(": ", 1) for line in (await self.ask("show info")).splitlines() if ": " in line
        )
        return int(facts["Pid"])

    async def servers(self) -> list[ServerStatus]:
        """Return all servers of all backends."""
        lines = (await self.ask("show servers state")).splitlines()
        if len(lines) < 2 or not lines[1].startswith("#"):
            raise BrokerError(
                "HAProxy's `show servers state` is not as expected", details={"lines": lines[:3]}
            )
        fields = _picked(lines[1][1:].split(), _STATE)
        known = self._servers
        self._servers = {}
        servers = []
        for line in lines[2:]:
            if line:
                facts = fields(line.split())
                backend, *others = facts
                server = self._servers[facts] = known.get(facts) or _server(
                    backend.removeprefix(self._prefix), *others
                )
                servers.append(server)
        return servers

    async def stats(self, backend: str) -> list[dict[str, str]]:
        """Return the ``show stat`` rows of a backend's servers, with the columns in :data:`STAT`."""
        rows = csv.reader(
            io.StringIO((await self.ask(f"show stat {self._prefix}{backend} 4 -1")).removeprefix("# "))
        )
        fields = _picked(next(rows, []), STAT)
        return [dict(zip(STAT, fields(row), strict=True)) for row in rows]

    async def add(
        self, entry: Entry, address: str, agent: str, *, vias: Path, ca_file: str = SYSTEM_CA
    ) -> None:
        """Add a server to its lease backend and to the direct one. It gets leases once its agent says ready.

        Args:
            entry: The node.
            address: Its resolved address.
            agent: Its agent's resolved address.
            vias: The map of proxies.
            ca_file: The authorities for its certificate.
        """
        await self.forget(entry.name, vias=vias)  # a node that had this name before
        if entry.via:
            await self.order(f"add map {vias} {entry.name} {entry.via}")
        where = join(address, entry.port)
        direct = self._of(DIRECT, entry.name)
        await self.order(
            f"add server {direct} {where} weight 0{tls_options(entry, ca_file, checked=False)}",
            expect="New server registered.",
        )
        await self.order(f"enable server {direct}")
        options = lease_options(entry, agent) + tls_options(entry, ca_file, checked=True)
        server = self._of(entry.backend, entry.name)
        await self.order(f"add server {server} {where} {options} disabled", expect="New server registered.")
        await self.order(f"enable health {server}")
        await self.order(f"enable agent {server}")

    def _of(self, backend: str, server: str) -> str:
        """Return a server's name in HAProxy."""
        return f"{self._prefix}{backend}/{server}"

    async def forget(self, name: str, *, vias: Path) -> None:
        """Remove a node from the map of proxies, if it is there."""
        await self.ask(f"del map {vias} {name}")

    async def retire(self, server: ServerStatus) -> bool:
        """Remove a server; False while it still has a connection (call again later).

        Maintenance stops new connections and leaves open tunnels alone. The agent-check is turned off,
        because the next ``ready`` would bring the server back.
        """
        name = self._of(server.backend, server.name)
        if not server.maint or server.backend != DIRECT:
            if server.backend != DIRECT:
                await self.order(f"disable agent {name}")
                await self.order(f"disable health {name}")
            await self.order(f"set server {name} state maint")
        answer = await self.ask(f"del server {name}")
        if answer.startswith("Server deleted"):
            return True
        if "still has connections" in answer:
            return False
        raise BrokerError(
            f"HAProxy refused to delete {name}: {answer}", details={"server": name, "answer": answer}
        )

    async def drain(self, server: ServerStatus) -> None:
        """Stop new leases until its agent says ready again.

        The weight is set to 0, too: Lua's sample fetches see weights, but not that a server is draining.
        """
        name = self._of(server.backend, server.name)
        await self.order(f"set server {name} state drain")
        await self.order(f"set weight {name} 0")

    async def open(self, server: ServerStatus, percent: int) -> None:
        """Do what HAProxy does when an agent says ``ready up NN%``, opening the server last.

        Args:
            server: A server in maintenance that waits for its agent's first ready.
            percent: The agent's weight, in percent of the server's own.
        """
        name = self._of(server.backend, server.name)
        await self.order(f"set weight {name} {percent}%")
        await self.order(f"set server {name} agent up")  # else it would be down after maintenance
        await self.order(f"set server {name} state ready")

    async def move(self, server: ServerStatus, address: str, port: int) -> None:
        """Point a server at another address; open connections stay."""
        order = f"set server {self._of(server.backend, server.name)} addr {address} port {port}"
        answer = await self.ask(order)
        if "changed from" not in answer and "no need to change" not in answer:
            raise BrokerError(f"HAProxy refused `{order}`: {answer}", details={"answer": answer})

    async def move_agent(self, server: ServerStatus, address: str, port: int) -> None:
        """Use another agent from now on."""
        await self.order(
            f"set server {self._of(server.backend, server.name)} agent-addr {address} port {port}"
        )

    async def tunnels(self, *, older_than_s: float = 0.0) -> dict[str, list[str]]:
        """Return the sessions that occupy slots, by node, as far as they are at least so old."""
        found: dict[str, list[str]] = {}
        for line in (await self.ask("show sess")).splitlines():
            if match := _SESSION.match(line):
                session, backend, server, age = match.groups()
                if backend.startswith(f"{self._prefix}be_pool_") and _seconds(age) >= older_than_s:
                    found.setdefault(server, []).append(session)
        return found

    async def cut(self, session: str) -> None:
        """End a session; nothing happens if it has ended."""
        await self.ask(f"shutdown session {session}")

    async def map(self, path: Path) -> dict[str, str]:
        """Return the content of a running map."""
        lines = (await self.ask(f"show map {path}")).splitlines()
        return {parts[1]: parts[2] for line in lines if len(parts := line.split()) == 3}

    async def map_pools(self, path: Path, wanted: Mapping[str, str]) -> None:
        """Make the running map from pool to backend equal to ``wanted``."""
        await self.map_all(path, {pool: f"{self._prefix}{backend}" for pool, backend in wanted.items()})

    async def map_all(self, path: Path, wanted: Mapping[str, str]) -> None:
        """Make a running map equal to ``wanted``; neither names nor values hold blanks."""
        have = await self.map(path)
        for name in have.keys() - wanted.keys():
            await self.order(f"del map {path} {name}")
        for name, value in wanted.items():
            if name not in have:
                await self.order(f"add map {path} {name} {value}")
            elif have[name] != value:
                await self.order(f"set map {path} {name} {value}")


def _seconds(age: str) -> int:
    """Read a time as HAProxy shows it: ``59s``, ``1m5s``, ``3d4h``."""
    return sum(int(count) * _UNITS_S[unit] for count, unit in re.findall(r"(\d+)([dhms])", age))


def shown(order: str) -> str:
    """Return a command or an answer with its passwords masked."""
    return _AUTHORIZATION.sub("***", order)


def _picked(columns: Sequence[str], wanted: Sequence[str]) -> Callable[[Sequence[str]], tuple[str, ...]]:
    """Return a function that picks columns out of a row; there may be a thousand rows of a hundred columns.

    Raises:
        BrokerError: A column is missing.
    """
    if missing := set(wanted) - set(columns):
        raise BrokerError(f"HAProxy does not report {', '.join(sorted(missing))}", details={"has": columns})
    return itemgetter(*map(columns.index, wanted))


def _server(
    backend: str,
    name: str,
    address: str,
    port: str,
    admin_state: str,
    weight: str,
    agent_address: str,
    agent_port: str,
    agent_state: str,
    use_ssl: str,
) -> ServerStatus:
    admin = int(admin_state)
    return ServerStatus(
        backend=backend,
        name=name,
        host="" if address == "-" else address,
        port=int(port),
        maint=bool(admin & _ADMIN_MAINT),
        drain=bool(admin & _ADMIN_DRAIN),
        weight=int(weight),
        agent_host="" if agent_address == "-" else agent_address,
        agent_port=int(agent_port),
        asks=bool(int(agent_state) & _CHECK_ENABLED),
        tls=use_ssl == "1",
    )
