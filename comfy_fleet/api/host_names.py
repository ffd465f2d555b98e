"""Names in ``Host`` headers, and which of them are this machine's own."""

import ipaddress
import re
from functools import lru_cache

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::\d{1,5})?")


def host_name(host: str) -> str | None:
    """Return the name in a ``Host`` header without its port; None if it is not a host."""
    match = _HOST.fullmatch(host)
    return match["name"].lower() if match else None


@lru_cache(256)
def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    name = host.lower().strip("[]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
