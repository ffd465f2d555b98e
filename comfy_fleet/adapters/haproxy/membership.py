"""The steps that make a running HAProxy agree with the registry. Pure: no socket, no clock.

The controller can only stop leases; only an agent's ``ready`` allows them. The controller may hear the first
``ready`` before HAProxy does, and then passes it on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from comfy_fleet.adapters.haproxy.agent_preflight import Given
from comfy_fleet.adapters.haproxy.runtime import ServerStatus
from comfy_fleet.adapters.haproxy.server_lines import DIRECT, Entry
from comfy_fleet.domain.nodes.node import AGENT_DRAINS, Node


@dataclass(frozen=True, kw_only=True)
class ServerTarget:
    """A node as it should be in HAProxy.

    Attributes:
        entry: Its servers.
        addresses: The addresses of its host name, the preferred one first; empty while it does not resolve.
        agent_addresses: The same for its agent.
        drain: Whether it must not get leases, whatever its agent says.
    """

    entry: Entry
    addresses: tuple[str, ...]
    agent_addresses: tuple[str, ...]
    drain: bool = False


@dataclass(frozen=True, kw_only=True)
class Retire:
    """Take a server out, as soon as its last connection is gone."""

    server: ServerStatus


@dataclass(frozen=True, kw_only=True)
class Add:
    """Add both servers of a node."""

    entry: Entry
    address: str
    agent: str


@dataclass(frozen=True, kw_only=True)
class Move:
    """Point a server at another address or port."""

    server: ServerStatus
    address: str
    port: int


@dataclass(frozen=True, kw_only=True)
class MoveAgent:
    """Point a server at another agent."""

    server: ServerStatus
    address: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Drain:
    """Stop new leases."""

    server: ServerStatus


@dataclass(frozen=True, kw_only=True)
class Open:
    """Pass on a ``ready`` that HAProxy has not heard yet."""

    server: ServerStatus
    percent: int


@dataclass(frozen=True, kw_only=True)
class Forget:
    """Remove a node from the map of proxies, which may contain its password."""

    name: str


Step = Retire | Add | Move | MoveAgent | Drain | Open | Forget
_NOTHING: Mapping[str, Given] = {}
_PLAIN: Mapping[str, str] = {}


def plan(
    targets: Mapping[str, ServerTarget],
    servers: Iterable[ServerStatus],
    given: Mapping[str, Given] = _NOTHING,
    vias: Mapping[str, str] = _PLAIN,
) -> list[Step]:
    """Return the steps from HAProxy's state to the wanted one.

    A node that changes its pool is first retired from the old one: two entries would be two slots. The same
    holds for a node that left and came back before its last connection was gone, and for one that is now
    reached in another way. Its direct server goes last, because the lease's holder still needs it; then its
    entry in the map.

    Args:
        targets: The wanted nodes, by name.
        servers: The present servers of all lease backends and of the direct one.
        given: ``ready`` answers from agents of new servers, by name.
        vias: HAProxy's map of proxies, see :attr:`Entry.via`.
    """
    lease: dict[str, list[ServerStatus]] = {}
    direct: dict[str, ServerStatus] = {}
    for server in servers:
        if server.backend == DIRECT:
            direct[server.name] = server
        else:
            lease.setdefault(server.name, []).append(server)
    steps: list[Step] = []
    for name, found in lease.items():
        target = targets.get(name)
        for server in found:
            if target is None or _leaving(server) or _elsewhere(target.entry, server, vias):
                steps.append(Retire(server=server))
            else:
                steps += _corrections(target, server) or _opening(target, server, given.get(name))
    for name, server in direct.items():
        target = targets.get(name)
        if target is not None and name in lease:
            steps += _moves(target, server)
        elif name not in lease:
            # Also one of a new node's two servers without the other: both are made again.
            steps.append(Retire(server=server))
    steps += [
        Forget(name=name)
        for name, via in vias.items()
        if name not in lease
        and name not in direct
        and ((target := targets.get(name)) is None or target.entry.via != via)
    ]
    steps += [
        Add(entry=target.entry, address=target.addresses[0], agent=target.agent_addresses[0])
        for name, target in targets.items()
        if name not in lease and name not in direct and target.addresses and target.agent_addresses
    ]
    return steps


def _leaving(server: ServerStatus) -> bool:
    """Return whether a server is retiring: its node has come back since and gets a new one."""
    return server.maint and not server.asks


def _elsewhere(entry: Entry, server: ServerStatus, vias: Mapping[str, str]) -> bool:
    """Return whether a server must be replaced because no command could correct it."""
    return (server.backend, server.tls, vias.get(entry.name, "")) != (entry.backend, entry.tls, entry.via)


def _corrections(target: ServerTarget, server: ServerStatus) -> list[Step]:
    steps = _moves(target, server)
    agent = (server.agent_host, server.agent_port)
    wanted = [(address, target.entry.agent_port) for address in target.agent_addresses]
    if wanted and agent not in wanted:
        steps.append(MoveAgent(server=server, address=wanted[0][0], port=wanted[0][1]))
    # In maintenance it waits for its agent's first ready: there is nothing to stop yet.
    if target.drain and not server.maint and not (server.drain and server.weight == 0):
        steps.append(Drain(server=server))
    return steps


def _opening(target: ServerTarget, server: ServerStatus, given: Given | None) -> list[Step]:
    """Return the step for a ``ready``: only for a server that waits for this agent's first answer.

    A server out of maintenance has heard its agent itself, perhaps with another answer by now.
    """
    if given is None or target.drain or not server.maint:
        return []
    if given.agent != (server.agent_host, server.agent_port):
        return []
    return [Open(server=server, percent=given.percent)]


def _moves(target: ServerTarget, server: ServerStatus) -> list[Step]:
    wanted = [(address, target.entry.port) for address in target.addresses]
    if not wanted or (server.host, server.port) in wanted:
        return []
    return [Move(server=server, address=wanted[0][0], port=wanted[0][1])]


_NO_ANSWER = ("SOCKERR", "L4TOUT", "L4CON", "L7TOUT", "L7RSP")


def agent_silent(row: Mapping[str, str]) -> str:
    """Return how the agent failed to answer, from a ``show stat`` row; empty if it answers."""
    status = row.get("agent_status", "").removeprefix("* ")
    if status not in _NO_ANSWER:
        return ""
    reason = row.get("agent_desc", "") or status
    return f"{reason}: {row['last_agt']}" if row.get("last_agt") else reason


def silence_s(row: Mapping[str, str]) -> float:
    """Return how long the last check of the agent took, from a ``show stat`` row.

    If the process is gone, it fails at once. If it hangs, the check takes its whole timeout.
    """
    taken_ms = row.get("agent_duration", "")
    return int(taken_ms) / 1000 if taken_ms.isdecimal() else 0.0


def verdict_of(node: Node, row: Mapping[str, str], *, silent: bool) -> tuple[str, str]:
    """Return a node's state in HAProxy, in the fleet's words.

    Args:
        node: The node.
        row: Its ``show stat`` row in its lease backend.
        silent: Whether its agent has been silent for too long.

    Returns:
        ``up``, ``drain``, ``down`` or ``new``, and the reason.
    """
    status = row.get("status", "")
    if status.startswith("MAINT"):
        # An agent that does not know the node gives no answer.
        unasked = row.get("agent_status", "").endswith("L7RSP")
        why = "agent not asked yet" if unasked else agent_silent(row)
        return "new", f"waits for its first answer ({why})" if why else "waits for its first answer"
    if status.startswith("DOWN"):
        return "down", _why_down(row)
    if node.cordoned:
        return "drain", f"cordoned: {node.cordon_reason}" if node.cordon_reason else "cordoned"
    if status.startswith(("DRAIN", "NOLB")):
        return "drain", f"agent is silent ({agent_silent(row)})" if silent else AGENT_DRAINS
    return "up", ""


def _why_down(row: Mapping[str, str]) -> str:
    if "agent" in row.get("status", ""):
        answer = row.get("last_agt", "")
        return answer[answer.find("(") + 1 : answer.rfind(")")] if "(" in answer else "its agent says down"
    parts: Sequence[str] = (row.get("check_desc", ""), row.get("last_chk", ""))
    return ": ".join(part for part in parts if part) or "health check failed"
