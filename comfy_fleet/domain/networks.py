"""Lists of networks, as operators write them."""

import ipaddress

from comfy_fleet.domain.errors import BadInput


def parse_networks(text: str) -> tuple[str, ...]:
    """Read networks and addresses, such as ``10.0.0.0/8, 192.0.2.7, fd00::/8``.

    Returns:
        Each as ``ADDRESS/BITS``, in the order of the text.

    Raises:
        BadInput: One is none, or has bits set behind its length.
    """
    found = []
    for entry in filter(None, map(str.strip, text.split(","))):
        try:
            found.append(str(ipaddress.ip_network(entry)))
        except ValueError as error:
            raise BadInput(
                f"{entry!r} is no network: {error}; write, for example, 10.0.0.0/8, 192.0.2.7 or fd00::/8"
            ) from error
    return tuple(dict.fromkeys(found))


def is_any(host: str) -> bool:
    """Return whether a process that listens there does on all addresses of its machine."""
    return host in ("", "*") or _is(host, "is_unspecified")


def is_loopback(host: str) -> bool:
    """Return whether only programs of the same machine reach what listens there."""
    return host.lower().rstrip(".") == "localhost" or _is(host, "is_loopback")


def _is(host: str, what: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host.strip("[]")), what))
    except ValueError:
        return False
