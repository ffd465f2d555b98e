"""Keeps other sites' pages out: what a browser sends along by itself must be of no use to them.

A page that somebody opens can make the browser send requests here: across sites, or through the page's own
host name that resolves to this machine. The browser adds what it holds for the fleet (a cookie, a password,
or just its place on a machine that needs no key), and says in ``Origin`` and ``Sec-Fetch-Site`` whose page
asks. Programs send neither, or their own address.
"""

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.host_names import host_name, is_loopback

_DEFAULT_PORT = re.compile(r":(?:80|443)$")
_WEB = frozenset({"http", "https", "ws", "wss"})
_OWN_SITE = frozenset({"same-origin", "none"})  # "none": typed in, or a bookmark


class SiteGuard:
    """Checks requests to one origin by their headers. The fleet's other origin is another site's, too.

    Args:
        needs_key: Whether callers need a key. Without one, only this machine's names are answered.
        url: What the origin is reached by; None if only the request knows.
        names: Further names that the fleet is reached by.
        pages: Origins of other sites whose pages may do what a program with the same key may.
        siblings: Whether pages of other ports and subdomains, which to a browser are of the same site, may
            show what is here. They never may change anything.
    """

    def __init__(
        self,
        *,
        needs_key: bool,
        url: str | None,
        names: Collection[str] = (),
        pages: Collection[str] = (),
        siblings: bool = True,
    ) -> None:
        self._needs_key = needs_key
        parts = urlsplit(url or "")
        self._names = frozenset(filter(None, (parts.hostname, *names)))
        self._public = _authority(parts.netloc.rpartition("@")[2])
        self._pages = frozenset(pages)
        self._foreign = frozenset({"cross-site"} if siblings else {"cross-site", "same-site"})

    def check(self, headers: Headers, *, changing: bool, signed: bool = False) -> None:
        """Refuse malformed and rebound hosts, and what another site's page asks for.

        A page can't forge ``Host``, but it can send ``X-Forwarded-Host`` to the API's own port: both must be
        right.

        Args:
            headers: The request's.
            changing: Whether it may change something, or opens a websocket.
            signed: Whether it reads by a signature alone, which any page may hold.

        Raises:
            HttpError: 400 or 403.
        """
        named = [headers[key] for key in ("x-forwarded-host", "host") if headers.get(key)]
        names = [host_name(host) for host in named]
        if not named or None in names:  # it would appear in URLs
            raise HttpError(400, "invalid_request", "the Host header is not a host name")
        if not self._needs_key and not all(name in self._names or is_loopback(name or "") for name in names):
            raise HttpError(
                403,
                "forbidden",
                "without API keys only loopback names are answered: set FLEET_KEYS_FILE, "
                "or FLEET_PUBLIC_URL to the name that the fleet is reached by",
            )
        origins = [origin.lower() for origin in headers.getlist("origin")]
        if len(origins) == 1 and origins[0] in self._pages:
            return
        sites = headers.getlist("sec-fetch-site")
        if not changing:
            if not signed and not self._foreign.isdisjoint(sites) and not _opened(headers):
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
                    "set FLEET_PUBLIC_URL and FLEET_CONSOLE_URL to the addresses that the browser shows"
                )


def _authority(text: str) -> str:
    # Whether TLS ends here or at a proxy, and so which port is the usual one, only the proxy knows.
    return _DEFAULT_PORT.sub("", text.lower())


def _opened(headers: Headers) -> bool:
    """Return whether somebody followed a link to here."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _foreign(message: str) -> HttpError:
    return HttpError(403, "forbidden", message)
