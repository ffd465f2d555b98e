"""Choose the public port and the console's: those that were set, else the defaults or the next free ones."""

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.up import ports

if TYPE_CHECKING:  # every command imports this module
    from comfy_fleet.domain.nodes.node import Node

USUAL_CONSOLE_URL = "http://127.0.0.1:8189"
_NEXT = 100  # ports to try before the kernel is asked for one


@dataclass(frozen=True, kw_only=True)
class PublicPort:
    """The port that was chosen.

    Attributes:
        number: The port.
        why: Why it is not the default, in words; empty if it is, or if it was set.
    """

    number: int
    why: str = ""


def choose(
    port: int, host: str, *, named: str, nodes: Sequence["Node"] = (), kept: int | None = None
) -> PublicPort:
    """Choose the public port.

    Args:
        port: The port that was set, or the default.
        host: Where the fleet listens.
        named: What set the port, ``--port`` or ``FLEET_PORT``; empty if nothing did, so that another will do.
        nodes: ComfyUIs that already run: their ports are never used, even while they are away.
        kept: The port that the last start used instead of the default: clients know it by now.

    Raises:
        Fail: The address can't be used, or the named port is taken.
    """
    if named:
        require_no_nodes(port, host, nodes, named=named)
        ports.require_free(port, host)
        return PublicPort(number=port)
    if why := ports.unusable(host):
        raise ports.no_such_address(host, why)
    node = _node_at(port, host, nodes)
    free = _suits(port, host, nodes)
    if kept is not None and kept != port and _suits(kept, host, nodes):
        back = f"; `fleet up --port {port}` takes {port} again" if free else ""
        return PublicPort(number=kept, why=f"the fleet stays at port {kept}, as at the last start{back}")
    if free:
        return PublicPort(number=port)
    starts = ports.is_free(port, host)  # and another process has claimed it
    holder = "a fleet that starts" if starts else ports.held_by(port)
    taken = f"is that of {_words(node)}" if node else f"is taken by {holder}"
    number = next_free(port, host, nodes)
    return PublicPort(number=number, why=f"port {port} {taken}; the fleet takes port {number}")


def choose_console(
    port: int,
    host: str,
    *,
    public: int,
    named: str,
    nodes: Sequence["Node"] = (),
    kept: int | None = None,
) -> PublicPort:
    """Choose the console's port.

    Args:
        port: The port that was set, or the default.
        host: Where the fleet listens.
        public: The public port.
        named: What set the port, ``FLEET_CONSOLE_PORT``; empty if nothing did. Then it is the one above the
            public port, or the next that is free.
        nodes: ComfyUIs that already run.
        kept: The port of the last start, if it was another.

    Raises:
        Fail: The named port is taken, or is the public one.
    """
    if named:
        if port == public:
            raise Fail(f"{named} {port} is the public port: the console needs its own", code=Exit.USAGE)
        return choose(port, host, named=named, nodes=nodes)
    usual = public + 1
    if kept not in (None, public, usual) and _suits(kept, host, nodes):
        return PublicPort(number=kept)
    if usual < 65536 and _suits(usual, host, nodes):
        return PublicPort(number=usual)
    return PublicPort(number=next_free(min(usual, 65535), host, nodes))


def require_no_nodes(port: int, host: str, nodes: Sequence["Node"], *, named: str) -> None:
    """Check that no node has a port of the fleet.

    Args:
        port: The fleet's port.
        host: Where the fleet listens.
        nodes: ComfyUIs that already run, or may.
        named: What set the port, for the message.

    Raises:
        Fail: One has.
    """
    if node := _node_at(port, host, nodes):
        raise Fail(
            f"{named} {port} is the port of {_words(node)}: the fleet needs its own",
            hint="another port for the fleet: --port N; without one it takes the next that is free",
            code=Exit.USAGE,
        )


def next_free(port: int, host: str, nodes: Sequence["Node"] = ()) -> int:
    """Return the next port above ``port`` that is free and not a node's."""
    above = range(port + 1, min(port + 1 + _NEXT, 65536))
    found = next((number for number in above if _suits(number, host, nodes)), None)
    return ports.draw(1)[0] if found is None else found


def _suits(port: int, host: str, nodes: Sequence["Node"]) -> bool:
    return _node_at(port, host, nodes) is None and ports.is_free(port, host) and not ports.is_claimed(port)


def _node_at(port: int, host: str, nodes: Sequence["Node"]) -> "Node | None":
    """Return the node whose ComfyUI has the port on this machine, or would have it if it ran."""
    return next((node for node in nodes if node.address[1] == port and _in_the_way(node, host)), None)


def _in_the_way(node: "Node", host: str) -> bool:
    name, port = node.address
    here = [address for address in _addresses(name) if ports.unusable(str(address)) is None]
    if not here:
        return False  # another machine's
    ours = _addresses(ports.asked(host))
    everywhere = host in ("", "*") or any(address.is_unspecified for address in _addresses(host))
    # A ComfyUI that listens on all addresses blocks the port, under whatever host name.
    return everywhere or bool({*here} & {*ours}) or not ports.is_free(port, host)


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    with contextlib.suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    return []


def _words(node: "Node") -> str:
    host, port = node.address
    return f"--node {node.name} ({f'[{host}]' if ':' in host else host}:{port})"
