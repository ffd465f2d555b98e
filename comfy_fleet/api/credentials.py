"""What a request shows to say who asks.

The order, if there are several: a key in the path, ``Authorization: Bearer KEY``, ``X-API-Key: KEY``, a bare
key in ``Authorization``: the first of these counts, right or wrong. Without any of them, what a browser or a
proxy sends by itself: whom a trusted proxy names, HTTP Basic, then the cookie of a session; the first that is
right counts.
"""

import base64
import re
from dataclasses import dataclass
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.origins import Origin

COOKIES = {Origin.EDITOR: "fleet_session", Origin.CONSOLE: "fleet_console"}
"""The cookie of each origin's sessions. Cookies don't know ports: each origin looks at its own alone."""
_PATH_KEY = re.compile(rb"/k/([^/]+)(/.*)?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What was shown.

    Attributes:
        key: A key that was certainly meant for the fleet; empty if there is none.
        basic: HTTP Basic's password and user, either of which may be a key; or meant for a proxy.
        session: A session's token; empty if there is none, or several are shown.
        person: Whom a trusted proxy names; empty if none does.
        groups: That person's groups.
        in_header: Whether the key came in a header: no page's script has one to send.
    """

    key: str = ""
    in_header: bool = False
    basic: tuple[str, ...] = ()
    session: str = ""
    person: str = ""
    groups: tuple[str, ...] = ()

    @classmethod
    def of(cls, headers: Headers, origin: Origin, path_key: str = "") -> "Credentials":
        """Return the credentials of a request to an origin.

        Raises:
            HttpError: 400: a header comes twice. A proxy in front may have looked at the other one.
        """
        for name in ("authorization", "x-api-key"):
            if len(set(headers.getlist(name))) > 1:
                raise HttpError(
                    400,
                    "invalid_request",
                    f"{name} comes twice, with different values: send one",
                    details={"field": name},
                )
        authorization = headers.get("authorization", "").strip()
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        bearer = token if scheme.lower() == "bearer" else ""
        bare = "" if token else authorization
        in_header = bearer or headers.get("x-api-key", "").strip() or bare
        return cls(
            key=path_key or in_header,
            in_header=bool(in_header) and not path_key,
            basic=_basic(token) if scheme.lower() == "basic" else (),
            session=only_cookie(headers, COOKIES[origin]),
        )


def shown_cookies(headers: Headers, name: str) -> list[str]:
    """Return the values of all cookies with a name, in the order in which the browser shows them."""
    pairs = "; ".join(headers.getlist("cookie")).split(";")
    return [value for pair in pairs for found, value in cookie_parser(pair).items() if found == name]


def only_cookie(headers: Headers, name: str) -> str:
    """Return a cookie's value; empty without it, and if the name comes twice.

    A script of the editor's origin can set one of the same name for another path or domain. Nobody can tell
    then which of them is the fleet's own.
    """
    values = shown_cookies(headers, name)
    return values[0] if len(values) == 1 else ""


def take_path_key(scope: Scope) -> str:
    """Take the key off a path ``/k/KEY/...`` and return it; empty if there is none.

    From here on the scope has the path behind it: nothing that routes, logs or answers ever sees the key.
    """
    found = _PATH_KEY.fullmatch(scope["raw_path"])
    if found is None:
        return ""
    rest = found[2] or b"/"
    scope["raw_path"], scope["path"] = rest, unquote(rest.decode("latin-1"))
    return unquote(found[1].decode("latin-1"))


def _basic(token: str) -> tuple[str, ...]:
    try:
        user, _, password = base64.b64decode(token, validate=True).decode().partition(":")
    except ValueError:
        return ()
    return tuple(filter(None, (password, user)))
