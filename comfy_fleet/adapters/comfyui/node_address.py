"""Checks where a node's URL leads: two URLs of one place are one ComfyUI, and the fleet is not a ComfyUI."""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from comfy_fleet.domain.about import NAME
from comfy_fleet.domain.errors import BadInput, Conflict, NodeError
from comfy_fleet.domain.nodes.node import Node, parse_place
from comfy_fleet.timeouts import Timeout

if TYPE_CHECKING:
    from comfy_fleet.adapters.comfyui.direct_node import DirectNode

RESOLVE_S = 1.0
_ANSWER_S = 0.5
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where connections to them lead


async def check_place(node: Node, registered: Iterable[Node]) -> None:
    """Check that a new node's URL does not lead to a registered node or to the fleet itself.

    If that can't be found out now, because a name does not resolve or nobody answers in time, the URL is
    accepted.

    Args:
        node: The new node.
        registered: The fleet's nodes.

    Raises:
        Conflict: A registered node has the same address and port under another name.
        BadInput: A fleet answers there.
    """
    host, port = node.address
    # A proxy may serve several ComfyUIs at one address, by host name and path.
    others = [
        other
        for other in registered
        if other.address[1] == port and other.name != node.name and not (_proxied(other) or _proxied(node))
    ]
    hosts = {host, *(other.address[0] for other in others)} if others else set()
    is_fleet, found = await asyncio.gather(_is_fleet(node), asyncio.gather(*map(_addresses, hosts)))
    if is_fleet:
        raise BadInput(
            f"url {node.url} is the fleet itself, not a ComfyUI: name the URL of a ComfyUI",
            details={"field": "url", "value": node.url},
        )
    where = dict(zip(hosts, found, strict=True))
    for other in others:
        if both := where[host] & where[other.address[0]]:
            raise Conflict(
                f"url {node.url} is node {other.name} already ({other.url}, address {min(both)}): "
                "one ComfyUI is one node",
                details={"field": "url", "value": node.url, "node": other.name},
            )


async def answers_as_fleet(node: "DirectNode", *, timeout_s: float) -> bool:
    """Return whether a fleet answers instead of a ComfyUI."""
    try:
        told = await node.json("/api/v1/health", timeout_s=timeout_s)
    except NodeError:
        return False
    return isinstance(told, dict) and told.get("name") == NAME


def _proxied(node: Node) -> bool:
    return parse_place(node.url).proxied


async def _is_fleet(node: Node) -> bool:
    if node.sealed:
        return False  # its agent, which knows the password, will report it
    # Command lines need aiohttp for nothing else, and it takes a while to import.
    from comfy_fleet.adapters.comfyui.direct_node import DirectNode, NodeSession

    try:
        async with Timeout(_ANSWER_S), NodeSession(tls=False) as session:
            return await answers_as_fleet(DirectNode(node.url, session), timeout_s=_ANSWER_S)
    except TimeoutError:
        return False


async def _addresses(host: str) -> frozenset[str]:
    """Return the addresses of a host; empty if they can't be found in time."""
    try:
        async with Timeout(RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return frozenset()
    return frozenset(_usual(str(info[4][0])) for info in found)


def _usual(address: str) -> str:
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    text = str(mapped or parsed)
    return _LOOPBACK.get(text, text)
