"""Where nodes may be that agents register: HAProxy and others call whatever address a node has.

Operators may register a node anywhere.
"""

import ipaddress
import re
from collections.abc import Collection

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?", re.IGNORECASE)
"""What programs take for an IPv4 address, written as one number or several: ``127.1``, ``0x7f000001``."""


def why_not(host: str, allowed: Collection[str], *, local: bool) -> str:
    """Return why a node or an agent can't be there, in words; empty: it can.

    A name is judged as it is written, not by where it leads.

    Args:
        host: A host's name or address.
        allowed: Networks as ``ADDRESS/BITS``. If there are any, the host must be an address in one of them.
        local: Whether the agent runs on the fleet's own machine.
    """
    address = _address(host)
    if allowed:
        inside = address is not None and any(address in ipaddress.ip_network(one) for one in allowed)
        return "" if inside else f"{host} is in none of the networks of FLEET_NODE_NETWORKS"
    if address is None and _NUMBER.fullmatch(host):
        return f"{host} is an address that is not written as four decimal numbers"
    if address is None:
        name = host.lower().rstrip(".")
        loopback = name == "localhost" or name.endswith(".localhost")
    else:
        loopback = address.is_loopback
        nowhere = (
            address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved
        )
        if nowhere and not loopback:
            return f"{host} is an address that no ComfyUI has; FLEET_NODE_NETWORKS says where nodes may be"
    if loopback and not local:
        return f"{host} is the fleet's own machine, where this agent does not run; name it by its address"
    return ""


def _address(host: str) -> Address | None:
    try:
        found = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found
