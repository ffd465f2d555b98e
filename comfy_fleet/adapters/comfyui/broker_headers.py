"""How the fleet's processes reach their broker, what they show it, and how a strange broker answers."""

import hashlib
from collections.abc import Mapping

from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE

NAMESPACE = "X-Fleet-Namespace"
SECRET = "X-Fleet-Secret"  # noqa: S105 - the header's name
REFUSED = "X-Fleet-Refused"
PURPOSE = b"broker"
"""What the broker's secret is derived for from the fleet's."""


def broker_headers(namespace: str, secret: str = "") -> dict[str, str]:
    """Return the headers that every call through the broker has.

    Args:
        namespace: The fleet's. One with its own Redis sends none, and its broker accepts only calls without.
        secret: What a broker's port asks for; its sockets don't.
    """
    headers = {} if namespace == DEFAULT_NAMESPACE else {NAMESPACE: namespace}
    return {**headers, SECRET: secret} if secret else headers


def secret_digest(secret: str) -> str:
    """Return what HAProxy compares; a digest, because the time of a comparison may tell how far it got."""
    return hashlib.sha256(secret.encode()).hexdigest()


def socket_of(url: str) -> str | None:
    """Return the path of ``unix:PATH``; None for any other URL."""
    scheme, _, path = url.partition(":")
    return path if scheme == "unix" else None


def is_another_fleets(headers: Mapping[str, str]) -> bool:
    """Return whether an answer that no node gave is from a broker that is not ours, or does not know us.

    Args:
        headers: The answer's; names are compared without regard to case.
    """
    return headers.get(REFUSED) in ("namespace", "secret")
