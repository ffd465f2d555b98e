"""What is known of the request that is being answered."""

from collections.abc import Mapping
from contextvars import ContextVar

in_request: ContextVar[Mapping[str, str]] = ContextVar("in_request", default={})  # noqa: B039 - never changed
"""Fields of every line that is logged meanwhile: ``client``, and ``request_id`` if the edge has named one."""
