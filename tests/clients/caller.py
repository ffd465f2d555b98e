"""Who calls a server, and the ways to say so that programs for ComfyUI have."""

import base64
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """A person at a server.

    Attributes:
        url: The server, e.g. ``http://127.0.0.1:8188``.
        key: The person's key; empty on a server without keys.
    """

    url: str
    key: str = ""

    @property
    def with_path(self) -> str:
        """The server's address with the key in its path."""
        return f"{self.url}/k/{self.key}" if self.key else self.url

    @property
    def bearer(self) -> dict[str, str]:
        """The header that most programs send; none without a key."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def basic(self) -> dict[str, str]:
        """The header of programs that know a name and a password."""
        pair = base64.b64encode(f"me:{self.key}".encode()).decode()
        return {"Authorization": f"Basic {pair}"} if self.key else {}


def socket_url(url: str) -> str:
    """Return a server's address for websockets."""
    return url.replace("http", "ws", 1)
