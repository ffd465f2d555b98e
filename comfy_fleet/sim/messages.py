"""HTTP requests and responses as the simulated node's routes see them."""

import json
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True, kw_only=True)
class Request:
    """One HTTP request, body included; header names are lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    peer: str

    def json(self) -> Any:
        """Decode the body."""
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Response:
    """One HTTP response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def encode(value: Any) -> bytes:
    """Encode JSON; numbers that don't fit 64 bits take the slower way."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def json_response(value: Any, status: int = 200) -> Response:
    """Answer with JSON."""
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return Response(status=status, body=encode(value), headers=headers)
