"""Keeps other sites' pages out: what a browser sends along by itself must be of no use to them.

A page that somebody opens can make the browser send requests here: across sites, or through the page's own
host name that resolves to this machine. The browser adds what it holds for the fleet (a cookie, a password,
or just its place on a machine that needs no key), and says in ``Origin`` and ``Sec-Fetch-Site`` whose page
asks. Programs send neither, or their own address.
"""

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from comfy_fleet.api.auth import is_loopback
from comfy_fleet.api.errors import HttpError

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::\d{1,5})?")
_DEFAULT_PORT = re.compile(r":(?:80|443)$")
_WEB = frozenset({"http", "https", "ws", "wss"})
_OWN_SITE = frozenset({"same-origin", "none"})  # "none": typed in, or a bookmark


class SiteGuard:
    """Checks requests by their headers.

    Args:
        needs_key: Whether callers need a key. Without one, only this machine's names are answered.
        public_url: What the fleet is reached by; None if only the request knows.
    """

    def __init__(self, *, needs_key: bool, public_url: str | None) -> None:
        self._needs_key = needs_key
        parts = urlsplit(public_url or "")
        self._public_name = parts.hostname
        self._public = _authority(parts.netloc.rpartition("@")[2])

    def check(self, headers: Headers, *, changing: bool) -> None:
        """Refuse malformed and rebound hosts, and what another site's page asks for.

        A page can't forge ``Host``, but it can send ``X-Forwarded-Host`` to the API's own port: both must be
        right.

        Args:
            headers: The request's.
            changing: Whether it may change something, or opens a websocket.

        Raises:
            HttpError: 400 or 403.
        """
        named = [headers[key] for key in ("x-forwarded-host", "host") if headers.get(key)]
        names = [host_name(host) for host in named]
        if not named or None in names:  # it would appear in URLs
            raise HttpError(400, "invalid_request", "the Host header is not a host name")
        if not self._needs_key and not all(
            name == self._public_name or is_loopback(name or "") for name in names
        ):
            raise HttpError(
                403,
                "forbidden",
                "without API keys only loopback names are answered: set FLEET_KEYS_FILE, "
                "or FLEET_PUBLIC_URL to the name that the fleet is reached by",
            )
        sites = headers.getlist("sec-fetch-site")
        if not changing:
            if "cross-site" in sites and not _opened(headers):
                raise _foreign("other sites' pages can't show what is here")
            return
        if not _OWN_SITE.issuperset(sites):
            raise _foreign("other sites' pages can't change anything here")
        own = {_authority(named[0]), self._public or _authority(named[0])}
        for origin in filter(None, headers.getlist("origin")):
            scheme, _, authority = origin.partition("://")
            if scheme.lower() not in _WEB or _authority(authority) not in own:
                raise _foreign(
                    "requests of other sites' pages are refused; behind a proxy that changes `Host`, "
                    "set FLEET_PUBLIC_URL to the address that the browser shows"
                )


def host_name(host: str) -> str | None:
    """Return the name in a ``Host`` header without its port; None if it is not a host."""
    match = _HOST.fullmatch(host)
    return match["name"].lower() if match else None


def _authority(text: str) -> str:
    # Whether TLS ends here or at a proxy, and so which port is the usual one, only the proxy knows.
    return _DEFAULT_PORT.sub("", text.lower())


def _opened(headers: Headers) -> bool:
    """Return whether somebody followed a link to here."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _foreign(message: str) -> HttpError:
    return HttpError(403, "forbidden", message)
