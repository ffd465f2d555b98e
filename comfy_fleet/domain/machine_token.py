"""A token by which somebody shows that they may read the fleet's own secret, and so are on its machine.

Whoever can read ``secret.key`` and Redis can do everything anyway. By this token they can do it with the
``fleet`` command: make the first key, or another one when all are lost.
"""

import hashlib
import hmac

PURPOSE = b"tokens of this machine"
"""What the secret of these tokens is derived for."""
GOOD_S = 60.0
_BEGINNING = "fleet-machine"


def machine_token(secret: bytes, now: float) -> str:
    """Return a token that is good for a minute.

    Args:
        secret: Derived from the fleet's own.
        now: Unix seconds.
    """
    at = str(int(now))
    return f"{_BEGINNING}.{at}.{_mac(secret, at)}"


def is_machine_token(shown: str, secret: bytes, now: float) -> bool:
    """Return whether somebody with the secret has made this within the last minute."""
    beginning, _, rest = shown.partition(".")
    at, _, mac = rest.partition(".")
    if not secret or beginning != _BEGINNING or not (at.isascii() and at.isdigit() and len(at) <= 12):
        return False
    if not hmac.compare_digest(_mac(secret, at).encode(), mac.encode("utf-8", "surrogateescape")):
        return False
    return abs(now - int(at)) <= GOOD_S


def _mac(secret: bytes, at: str) -> str:
    return hmac.new(secret, at.encode(), hashlib.sha256).hexdigest()
