"""The editor ticket: a signed cookie that names the node whose editor a person has.

The edge checks it without asking anybody: ``NODE~EXPIRES~MAC``, where ``EXPIRES`` is in whole seconds since
1970 and ``MAC`` is the HMAC-SHA256 of ``NODE~EXPIRES`` in lower-case hexadecimal. The key is derived from the
fleet's secret, so that API and edge know the same one without telling each other. No node's name
holds a ``~``.

It says that its holder may have that node's editor files, and nothing of who the holder is.
"""

import hashlib
import hmac
import math
import re
from dataclasses import dataclass, field
from typing import Protocol

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.node import NAME

COOKIE = "fleet_editor"
PURPOSE = b"editor ticket"
"""What the key is derived for."""

LIFETIME_S = 7 * 86400.0
"""How long a ticket holds: a page that stays open loads parts of the editor days later."""

MOST_CHARS = 256
_TICKET = re.compile(r"(?P<signed>(?P<node>[^~]+)~(?P<expires>[0-9]{1,12}))~(?P<mac>[0-9a-f]{64})")


class DerivesKeys(Protocol):
    """A secret from which keys for other purposes are derived."""

    def derive(self, purpose: bytes) -> bytes:
        """Return 32 bytes that only who has the secret can know, the same for the same purpose."""


@dataclass(frozen=True)
class EditorTickets:
    """Signs and verifies tickets.

    Args:
        key: 32 bytes that the edge has, too.
    """

    key: bytes = field(repr=False)

    @classmethod
    def under(cls, secret: DerivesKeys) -> "EditorTickets":
        """Return the tickets of the fleet that has this secret."""
        return cls(secret.derive(PURPOSE))

    def sign(self, node: str, *, now: float, lifetime_s: float = LIFETIME_S) -> str:
        """Return a ticket for a node's editor.

        Args:
            node: The node's name.
            now: The time, in seconds since 1970.
            lifetime_s: How long it holds.

        Raises:
            BadInput: No node can have this name.
        """
        if not NAME.fullmatch(node):
            raise BadInput(f"{node[:80]!r} can't be a node's name")
        signed = f"{node}~{math.ceil(now + lifetime_s)}"
        return f"{signed}~{self._mac(signed)}"

    def node(self, ticket: str, *, now: float) -> str | None:
        """Return the node that a ticket names; None if it is forged, broken or has expired.

        Args:
            ticket: The cookie's value, as it came.
            now: The time, in seconds since 1970.
        """
        found = _TICKET.fullmatch(ticket) if len(ticket) <= MOST_CHARS else None
        if found is None or not hmac.compare_digest(found["mac"], self._mac(found["signed"])):
            return None
        return found["node"] if int(found["expires"]) > now and NAME.fullmatch(found["node"]) else None

    def _mac(self, signed: str) -> str:
        return hmac.new(self.key, signed.encode(), hashlib.sha256).hexdigest()
