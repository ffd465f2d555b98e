"""What a request's ``Accept`` takes (RFC 9110, 12.5.1)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_MOST = 64
_TYPE = re.compile(r"([\w!#$&^.+*-]+)/([\w!#$&^.+*-]+)")
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


@dataclass(frozen=True)
class Accepts:
    """Ranges of content types, with their weights; nothing is everything.

    Attributes:
        ranges: By range in lower case, such as ``image/*``: 0 to 1.
    """

    ranges: dict[str, float]

    @classmethod
    def read(cls, headers: Iterable[str]) -> "Accepts":
        """Read the header's lines. What can't be read is left out, as the standard has it."""
        found: dict[str, float] = {}
        for part in ",".join(headers).split(",")[:_MOST]:
            kind, *parameters = (one.strip().lower() for one in part.split(";"))
            weight = next((one[2:].strip() for one in parameters if one.startswith("q=")), "1")
            if _TYPE.fullmatch(kind) and _WEIGHT.fullmatch(weight):
                found[kind] = max(float(weight), found.get(kind, 0.0))
        return cls(found)

    def weight(self, kind: str) -> float:
        """Return how welcome a content type is: by the closest range, 0 to 1."""
        if not self.ranges:
            return 1.0
        family = kind.partition("/")[0]
        return next((self.ranges[one] for one in (kind, f"{family}/*", "*/*") if one in self.ranges), 0.0)

    def names(self, kind: str) -> bool:
        """Return whether a type is named itself, and welcome."""
        return self.ranges.get(kind, 0.0) > 0
