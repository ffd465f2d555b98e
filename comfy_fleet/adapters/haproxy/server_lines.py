"""A node's server lines in HAProxy, for files and for the control socket.

They are made in one place, so that rendered servers and servers added at run time behave the same.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE
from comfy_fleet.domain.nodes.node import Node, authorization, check_name, parse_place

DIRECT = "be_direct"
BASE_WEIGHT = 100
"""Every server's own weight. An agent's answer is a percentage of it and thereby sets the node's weight,
because HAProxy can't change a server's own weight at run time, and an agent's answer overrides any other."""

SYSTEM_CA = "@system-ca"
"""HAProxy's name for the authorities that the machine trusts."""

Endpoint = tuple[str, int]

_MAPPED = re.compile(r"(\S+)\s+(?:[^\s.]+\.)?be_pool_([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What HAProxy needs to know about a node.

    Attributes:
        name: The server's name.
        backend: Its lease backend.
        host: Host name or address of the ComfyUI.
        port: Its port.
        tls: Whether it is reached by TLS.
        via: What a proxy in front of it needs, ``AUTHORITY|PREFIX|AUTHORIZATION``: the ``Host`` header, the
            prefix of every path, and the ``Authorization`` header with its blank as ``%20``. Empty for a
            plain node, which gets none of them.
        agent_host: Host name or address of the agent that answers for it.
        agent_port: That agent's port.
    """

    name: str
    backend: str
    host: str
    port: int
    agent_host: str
    agent_port: int
    tls: bool = False
    via: str = field(default="", repr=False)


def join(host: str, port: int) -> str:
    """Return ``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def literal(host: str) -> str | None:
    """Return an address in its usual spelling, or None for a name that has to be looked up."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def prefix_of(namespace: str) -> str:
    """Return the prefix of HAProxy's proxy names, which distinguishes fleets in its log and metrics."""
    return "" if namespace == DEFAULT_NAMESPACE else f"{namespace}."


def backend_of(slot: int) -> str:
    """Return the lease backend of a pool's slot."""
    return f"be_pool_{slot}"


def lease_options(entry: Entry, agent_address: str) -> str:
    """Return the part of a lease backend's server line after the address.

    ``agent-send`` ends with a slash, which no name contains: the control socket can't carry a newline.

    Args:
        entry: The node.
        agent_address: Host name (files only) or address of its agent.
    """
    return (
        "check inter 2s fastinter 500ms downinter 500ms fall 3 rise 1 "
        f"maxconn 1 weight {BASE_WEIGHT} "
        f"agent-check agent-addr {agent_address} agent-port {entry.agent_port} "
        f"agent-inter 500ms agent-send {entry.name}/"
    )


def tls_options(entry: Entry, ca_file: str, *, checked: bool) -> str:
    """Return the TLS options for a node's server line; empty for a plain node.

    HAProxy checks the certificate against the host name that it requests.

    Args:
        entry: The node.
        ca_file: The authorities for its certificate: a file, or :data:`SYSTEM_CA`.
        checked: Whether the server has a health check.
    """
    if not entry.tls:
        return ""
    check = f" check-ssl check-sni {entry.host}" if checked else ""
    return f" ssl verify required ca-file {ca_file} sni str({entry.host}){check}"


def pools_of(nodes: Iterable[Node], previous: Mapping[str, int], *, slots: int) -> dict[str, int]:
    """Give every pool that has nodes a slot; pools keep their slots.

    Args:
        nodes: All nodes of the fleet.
        previous: Slots given so far; those of pools without nodes are reused only if none is free.
        slots: How many lease backends there are; slots count from 1.

    Returns:
        Slot by pool. A pool is missing if there are more pools than slots.
    """
    wanted = sorted({node.pool for node in nodes})
    kept = {pool: slot for pool, slot in previous.items() if 1 <= slot <= slots}
    for pool in wanted:
        if pool in kept:
            continue
        free = [slot for slot in range(1, slots + 1) if slot not in kept.values()]
        if not free:
            idle = next((other for other in sorted(kept) if other not in wanted), None)
            if idle is None:
                break
            free = [kept.pop(idle)]
        kept[pool] = free[0]
    return kept


def entries_of(
    nodes: Sequence[Node],
    pools: Mapping[str, int],
    *,
    agent: Endpoint,
    credentials: Callable[[str], str] | None = None,
) -> list[Entry]:
    """Return the entries of all nodes whose pool has a slot, by name.

    Args:
        nodes: All nodes of the fleet.
        pools: Slot by pool.
        agent: Host and port of the central agent, for nodes without an agent of their own.
        credentials: Decrypts :attr:`Node.sealed`; without it, three stars replace each password.

    Raises:
        BadInput: A name or an address that can't stand in a configuration.
    """
    entries = []
    for node in sorted(nodes, key=lambda node: node.name):
        check_name("name", node.name)
        check_name("pool", node.pool)
        if node.pool not in pools:
            continue
        place = parse_place(node.url)
        agent_host, agent_port = node.agent_address or agent
        entries.append(
            Entry(
                name=node.name,
                backend=backend_of(pools[node.pool]),
                host=place.host,
                port=place.port,
                tls=place.tls,
                via=_via(node, credentials),
                agent_host=agent_host,
                agent_port=agent_port,
            )
        )
    return entries


def _via(node: Node, credentials: Callable[[str], str] | None) -> str:
    if not node.proxied:
        return ""
    place = parse_place(node.url)
    shown = ""
    if node.sealed:
        opened = "***" if credentials is None else credentials(node.sealed)
        shown = opened if opened in ("", "***") else authorization(opened).replace(" ", "%20")
    return f"{place.authority}|{place.prefix}|{shown}"


def no_editors_of(nodes: Iterable[Node]) -> dict[str, str]:
    """Return the map of the nodes whose editor nobody gets, ``no`` by name."""
    return {check_name("node", node.name): "no" for node in nodes if node.editor is False}


def parse_map(text: str) -> dict[str, int]:
    """Read a rendered map file: slot by pool.

    Raises:
        ConfigError: A line that this project did not write.
    """
    pools: dict[str, int] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        found = _MAPPED.fullmatch(line.strip())
        if not found:
            raise ConfigError(f"line {line!r} of the pool map is not `POOL be_pool_N`; remove the file")
        pools[check_name("pool", found[1])] = int(found[2])
    return pools
