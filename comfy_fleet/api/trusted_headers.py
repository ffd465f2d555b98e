"""People whom a proxy in front has signed in (oauth2-proxy, Authelia), by headers that only it may send.

The edge drops these headers from everybody but trusted proxies, and shows by a word that it is the edge.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers

from comfy_fleet.domain.edge_word import HEADER
from comfy_fleet.domain.roles import Role

MOST_GROUPS = 200


@dataclass(frozen=True, kw_only=True)
class TrustedHeaders:
    """Which headers say who asks.

    Attributes:
        user: The one with the user's name, in lower case.
        groups: The one with the user's groups, with commas between them; empty for none.
        word: What the edge shows.
        roles: The roles of groups; ``*`` stands for everybody. Without any, everybody may submit.
    """

    user: str
    groups: str
    word: str
    roles: Mapping[str, Role]

    def said(self, headers: Headers) -> tuple[str, tuple[str, ...]]:
        """Return the user and their groups; an empty name if no trusted proxy has said it."""
        names = headers.getlist(self.user)
        if len(names) != 1 or not hmac.compare_digest(
            headers.get(HEADER, "").encode("latin-1"), self.word.encode()
        ):
            return "", ()
        told = headers.get(self.groups, "") if self.groups else ""
        return names[0].strip(), tuple(filter(None, map(str.strip, told.split(","))))[:MOST_GROUPS]
