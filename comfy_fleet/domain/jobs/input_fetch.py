"""Files that a job names by URL: fetched for it before it may start."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from comfy_fleet.domain.jobs.asset import Asset

MAX_URLS = 32
"""Most URLs that one job may name."""
FRESH_S, MOST_FRESH_S = 10.0, 3600.0
"""For how long a fetched file is used again without asking, at least, and at most if its server says so."""
KEEP_S = 24 * 3600.0
"""For how long it is remembered what a URL gave, so that its server can say that nothing has changed."""
RETRY_S = (2.0, 8.0)
"""Pauses before another try, where one may help."""
ERROR = "input_not_fetched"
"""Code of the error of a job whose input could not be fetched."""

_URL = re.compile(r"\s*(?:https?:|(?:s3|az|gs|store)://)", re.IGNORECASE)
_AGAIN = frozenset({408, 425, 429})
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=([0-9]{1,9})\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class FetchedInput:
    """Where a fetched file goes.

    Attributes:
        place: ``NODE_ID/INPUT``, as in :attr:`comfy_fleet.domain.jobs.job.NewJob.uploads`.
        accept: MIME types that it takes, such as ``image/*``; ``*/*`` is everything but a web page.
        most_bytes: Largest file; None: as large as any.
    """

    place: str
    accept: tuple[str, ...] = ("*/*",)
    most_bytes: int | None = None

    def fits(self, asset: Asset) -> bool:
        """Return whether it takes a file; one that it does not take fails a job in ``end_fetch.lua``."""
        small_enough = self.most_bytes is None or asset.size_bytes <= self.most_bytes
        return small_enough and fits_type(self.accept, asset.content_type)


@dataclass(frozen=True, kw_only=True)
class InputFetch:
    """A URL whose file a job needs.

    Attributes:
        url: It.
        shown: The same without its query, for messages.
        inputs: Where the file goes.
    """

    url: str
    shown: str
    inputs: tuple[FetchedInput, ...]


def fits_type(accept: Iterable[str], kind: str) -> bool:
    """Return whether an input takes files of a MIME type.

    Args:
        accept: What it takes, see :attr:`FetchedInput.accept`.
        kind: The type.
    """
    return any(
        pattern == kind
        or (pattern == "*/*" and kind != "text/html")
        or (pattern.endswith("/*") and pattern != "*/*" and kind.startswith(pattern[:-1]))
        for pattern in accept
    )


def is_url(text: str) -> bool:
    """Return whether a file's name in a graph or a parameter is meant as a URL.

    One that is misspelt (``http:/x``, a blank in front) is one, too: it is refused with what is wrong, and
    not looked for on a node.
    """
    return _URL.match(text) is not None


def is_in_store(url: str) -> bool:
    """Return whether a URL, as :func:`is_url` knows it, names an object in a store of the fleet's."""
    return url.lstrip()[:4].lower() != "http"


def may_succeed_later(status: int) -> bool:
    """Return whether an HTTP status is one that another try may change."""
    return status in _AGAIN or status >= 500


def fresh_s(headers: Mapping[str, str]) -> float:
    """Return for how many seconds a file may be used again without asking, by its ``Cache-Control``."""
    said = headers.get("cache-control", "")
    if "no-store" in said.lower() or "no-cache" in said.lower():
        return FRESH_S
    found = _MAX_AGE.search(said)
    return FRESH_S if found is None else min(MOST_FRESH_S, max(FRESH_S, float(found[1])))
