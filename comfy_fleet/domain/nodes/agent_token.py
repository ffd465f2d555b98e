"""Agents' tokens: each is for one host, and only its hash is kept."""

import hashlib
import hmac
import re
from dataclasses import dataclass

from comfy_fleet.domain.nodes.node import NAME, check_name

_FORM = re.compile(rf"agent~(?P<host>{NAME.pattern})~(?P<id>[0-9a-f]{{8}})~(?P<drawn>[A-Za-z0-9_-]{{43}})")
MOST_CHARS = 200


@dataclass(frozen=True, kw_only=True)
class AgentToken:
    """A token that an agent may show.

    Attributes:
        id: What it is called, in lists and to revoke it.
        host: The only host that it speaks for.
        central: Whether it may answer for nodes that have no agent of their own.
        digest: The SHA-256 of the token, in hexadecimal.
        created_at: Unix seconds.
    """

    id: str
    host: str
    central: bool = False
    digest: str
    created_at: float = 0.0

    def is_of(self, shown: "ShownToken") -> bool:
        """Return whether this is the token that was shown."""
        return hmac.compare_digest(self.digest, shown.digest)


@dataclass(frozen=True, kw_only=True)
class ShownToken:
    """What a caller has shown, read but not checked.

    Attributes:
        host: The host that it names.
        id: The id that it names.
        digest: The SHA-256 of all of it, in hexadecimal.
    """

    host: str
    id: str
    digest: str


def text_of(host: str, id_: str, drawn: str) -> str:
    """Return a new token's text.

    Args:
        host: Its host.
        id_: Eight hexadecimal digits.
        drawn: 32 random bytes in URL-safe base64, without padding.

    Raises:
        BadInput: No host can have this name.
    """
    return f"agent~{check_name('host', host)}~{id_}~{drawn}"


def read_shown(text: str) -> ShownToken | None:
    """Read what a caller has shown; None if it has not the form of such a token."""
    found = _FORM.fullmatch(text) if len(text) <= MOST_CHARS else None
    if found is None:
        return None
    return ShownToken(host=found["host"], id=found["id"], digest=hashlib.sha256(text.encode()).hexdigest())
