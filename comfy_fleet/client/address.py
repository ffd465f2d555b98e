"""Where the fleet is, and how a client shows whose it is: from arguments, or from ``FLEET_API_...``."""

import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

USUAL_URL = "http://127.0.0.1:8189"
"""The console of a fleet on this machine: it takes all that the public port takes, and more."""
CONNECT_S = 5.0
_SURFACE = re.compile(r"/api(/v[0-9]{1,2})?$")
_KEY_IN_PATH = re.compile(r"/k/([^/]+)$")


@dataclass(frozen=True)
class FleetAddress:
    """A fleet's address, without secrets, and what shows who asks.

    Attributes:
        url: The base of all paths: ``http://host:8189``, or ``https://host/fleet`` below a prefix.
        headers: What shows the key.
        login: User and password from the URL, for HTTP Basic.
        verify: What checks the fleet's certificate.
    """

    url: str
    headers: dict[str, str] = field(repr=False)
    login: tuple[str, str] | None = field(repr=False)
    verify: ssl.SSLContext | bool = field(repr=False)

    def options(self, timeout_s: float) -> dict[str, Any]:
        """Return what httpx's clients take."""
        return {
            "base_url": self.url,
            "headers": self.headers,
            "auth": self.login,
            "verify": self.verify,
            "timeout": httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
            # No proxy from the environment between this machine and its own fleet.
            "trust_env": urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1"),
        }


def address_of(url: str | None, key: str | None, verify: ssl.SSLContext | bool | str | Path) -> FleetAddress:
    """Return the address that is meant.

    An empty key is none, whatever the environment says. A key in the URL (``http://host/k/KEY``) is sent as
    a header: httpx logs URLs.

    Raises:
        ValueError: The URL is none, the key can't be a header, or a file holds no certificate.
    """
    url = (url or os.environ.get("FLEET_API_URL") or USUAL_URL).rstrip("/")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in ("http", "https") or not host or " " in url:
        raise ValueError(f"the fleet's address is no http(s) URL; it looks like {USUAL_URL}")
    path = _SURFACE.sub("", parts.path)
    if found := _KEY_IN_PATH.search(path):
        path, key = path[: found.start()], key or unquote(found[1])
    if key is None:
        key = os.environ.get("FLEET_API_KEY")
    if key and not (key.isascii() and key.isprintable()):
        raise ValueError("an API key is printable ASCII without line breaks")
    named = f"[{host}]" if ":" in host else host
    clean = urlunsplit((parts.scheme, named if port is None else f"{named}:{port}", path, "", ""))
    login = (unquote(parts.username or ""), unquote(parts.password or "")) if "@" in parts.netloc else None
    header = {} if not key else {"X-API-Key": key} if login else {"Authorization": f"Bearer {key}"}
    return FleetAddress(clean, header, login, _trusted(clean, verify))


def _trusted(url: str, verify: ssl.SSLContext | bool | str | Path) -> ssl.SSLContext | bool:
    if urlsplit(url).scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to load the authorities takes 30 ms, in vain
    if verify is True:
        verify = os.environ.get("FLEET_API_CA_FILE") or True
    if not isinstance(verify, str | Path):
        return verify
    try:
        return ssl.create_default_context(cafile=verify)
    except (ssl.SSLError, OSError) as error:
        raise ValueError(f"{verify} holds no certificate (PEM) that can be read: {error}") from None
