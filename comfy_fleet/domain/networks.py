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
