"""Where a job's client wants to be told what becomes of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from comfy_fleet.domain.errors import BadInput, OutboundRefused
from comfy_fleet.domain.outbound import AllowedHosts, checked_addresses, parse_target

STARTED = "job.started"
ENDS = ("job.succeeded", "job.failed", "job.canceled", "job.expired")
STORED = "job.stored"
"""Nothing of its outputs waits for a store any more; only of jobs whose outputs go to one."""
TOLD_USUALLY = (*ENDS, STORED)
EVENTS = (STARTED, *TOLD_USUALLY)
OPERATOR = ""
"""Whose messages those to the operator's URL are: no owner has this name."""
MOST_URL = 2048
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """A job's webhook.

    Attributes:
        url: Where messages are posted.
        events: What it is told of; some of :data:`EVENTS`.
        base: Base of the URLs in its messages, e.g. ``https://comfy.example.org``.
    """

    url: str
    events: tuple[str, ...] = ENDS
    base: str = ""

    def record(self, owner: str) -> dict[str, str]:
        """Return what a job's record has of it."""
        return {
            "url": self.url,
            "events": " ".join(self.events),
            "base": self.base,
            "receiver": receiver_of(owner, self.url),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Webhook":
        """Return the webhook that :meth:`record` has written; of events only those that are known."""
        events = tuple(one for one in str(record.get("events", "")).split() if one in EVENTS)
        return cls(url=str(record["url"]), events=events, base=str(record.get("base", "")))


def checked_url(value: object, allowed: AllowedHosts | None = None, *, field: str = "webhook_url") -> str:
    """Return a webhook's URL in the form in which it is called.

    Args:
        value: As it was sent.
        allowed: What operators allow besides public addresses; None: where it leads is not checked. Where a
            name leads is checked when it is called.
        field: What it is called, for the message.

    Raises:
        BadInput: It is none that could be posted to.
    """
    if not isinstance(value, str):
        raise BadInput(f"{field} must be a text", details={"field": field})
    try:
        target = parse_target(value)
        if allowed is not None and target.address is not None:
            checked_addresses(target, [target.address], allowed)
    except OutboundRefused as error:
        raise BadInput(
            f"{field}: {error.message}. It must look like https://shop.example.org/hooks/comfy",
            details={"field": field},
        ) from None
    if len(target.url) > MOST_URL:
        raise BadInput(f"{field} is longer than {MOST_URL} characters", details={"field": field})
    return target.url


def checked_events(value: object, *, field: str = "webhook_events") -> tuple[str, ...]:
    """Return what a webhook is told of, each once.

    Raises:
        BadInput: It is no list of events.
    """
    if not isinstance(value, list) or not value or not all(one in EVENTS for one in value):
        raise BadInput(f"{field} must be a list of some of {', '.join(EVENTS)}", details={"field": field})
    return tuple(one for one in EVENTS if one in value)


def receiver_of(owner: str, url: str) -> str:
    """Return the name of an owner's receiver: the URLs of one server are one receiver."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{(parts.hostname or '').lower()}:{parts.port or _PORTS.get(parts.scheme)}"
    return hashlib.sha1(f"{owner}\n{origin}".encode(), usedforsecurity=False).hexdigest()
