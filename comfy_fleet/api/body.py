"""Request bodies in, with limits."""

import re
from typing import Any

import orjson
from starlette.requests import Request

from comfy_fleet.api.errors import HttpError

MAX_JSON_BYTES = 16 * 1024 * 1024
"""Most bytes of a JSON body: parsed it takes up to thirty times as much memory, and the loop's time.
Pictures inside a graph fit; larger files are uploaded as assets."""
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


def refuse_encoding(request: Request) -> None:
    """Refuse bodies that have to be unpacked first: a small one could become a very large one.

    Raises:
        HttpError: 415 ``unsupported_media_type``.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise HttpError(
            415,
            "unsupported_media_type",
            f"Content-Encoding {encoding[:40]} is not taken: send the body as it is",
            details={"field": "Content-Encoding"},
            headers={"Accept-Encoding": "identity"},
        )


async def read_body(request: Request, limit: int) -> bytes:
    """Read a whole body of at most ``limit`` bytes.

    Raises:
        HttpError: 413 ``payload_too_large``, before anything is read if the length is announced; 415.
    """
    refuse_encoding(request)
    too_large = HttpError(413, "payload_too_large", f"the body is larger than {limit} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """Read a JSON object of at most ``limit`` bytes and :data:`MAX_JSON_BYTES`.

    Raises:
        HttpError: 413 if it is larger; 415 if it is compressed; 400 if it is no JSON (NaN and invalid UTF-8
            are none), too deep, or no object.
    """
    body = await read_body(request, min(limit, MAX_JSON_BYTES))
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HttpError(400, "invalid_request", f"the body is not JSON: {error}"[:300]) from None
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}.get(
            type(value), "a number"
        )
        raise HttpError(400, "invalid_request", f"the body must be a JSON object, not {kind}")
    return value


def idempotency_key(request: Request) -> str | None:
    """Return the ``Idempotency-Key`` header.

    Raises:
        HttpError: 400 unless it is 1 to 255 printable ASCII characters, or if it came twice.
    """
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise HttpError(
            400,
            "invalid_request",
            "Idempotency-Key must be 1 to 255 printable ASCII characters, and come only once",
            details={"field": "Idempotency-Key"},
        )
    return keys[0]
