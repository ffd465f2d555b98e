"""Owners' weights, as an operator writes them."""

import re
from collections.abc import Mapping

from comfy_fleet.domain.errors import BadInput

LEAST, MOST = 0.01, 100.0
_OWNER = re.compile(r"[A-Za-z0-9_.@+-]{1,64}")
_NUMBER = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?")


def parse_weights(text: str) -> Mapping[str, float]:
    """Return weights by owner from ``OWNER=WEIGHT,...``.

    Raises:
        BadInput: A part can't be read, a weight is out of its limits, or an owner comes twice.
    """
    found: dict[str, float] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        owner, equals, word = (one.strip() for one in part.partition("="))
        if not equals:
            raise BadInput(f"{part[:80]!r} must be OWNER=WEIGHT, such as ada=2, with commas between")
        if not _OWNER.fullmatch(owner):
            raise BadInput(f"{owner[:80]!r} is no owner: a user's name is 1 to 64 of A-Z a-z 0-9 _ . @ + -")
        if not _NUMBER.fullmatch(word) or not LEAST <= float(word) <= MOST:
            raise BadInput(
                f"the weight of {owner} is {word[:80] or 'missing'}: it must be from {LEAST:g} to {MOST:g}"
            )
        if owner in found:
            raise BadInput(f"{owner} is named twice")
        found[owner] = float(word)
    return found
