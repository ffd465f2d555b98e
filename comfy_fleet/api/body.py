"""Request bodies in, with limits."""

import codecs
import re
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request

from comfy_fleet.api.errors import HttpError
from comfy_fleet.settings import Settings

_NO_NUMBER = re.compile(r"NaN|-?Infinity")
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


@dataclass(frozen=True, kw_only=True)
class JsonLimits:
    """Limits on JSON, which needs up to thirty times its size in memory when parsed, and time of the loop.

    Attributes:
        size: Most bytes of a body.
        values: Most values in it, lists and objects included.
        size_name: The setting for ``size``; empty if there is none.
        values_name: The same for ``values``.
    """

    size: int
    values: int
    size_name: str = ""
    values_name: str = ""


def graph_limits(settings: Settings) -> JsonLimits:
    """Return the limits for bodies with graphs, perhaps with pictures in them, or with a host's nodes."""
    return _limits(settings, settings.max_json_bytes, settings.max_json_values, "JSON")


def params_limits(settings: Settings) -> JsonLimits:
    """Return the limits for all other bodies."""
    return _limits(settings, settings.max_params_bytes, settings.max_params_values, "PARAMS")


def _limits(settings: Settings, size: int, values: int, name: str) -> JsonLimits:
    least = min(size, settings.max_body_bytes)
    return JsonLimits(
        size=least,
        values=values,
        size_name=f"FLEET_MAX_{name}_BYTES" if least == size else "FLEET_MAX_BODY_BYTES",
        values_name=f"FLEET_MAX_{name}_VALUES",
    )


def refuse_encoding(request: Request) -> None:
    """Refuse compressed bodies: a small one could become very large.

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


def json_taken(request: Request) -> bool:
    """Return whether a body may be read as JSON although its type may say something else.

    ComfyUI never looks at the type, and scripts send that of forms. So can a page of another site, without
    asking the browser first; but a browser adds what shows that it is one. ``Sec-Fetch-Mode`` alone does not:
    ``fetch`` in Node sends it and no other, and published clients lose their type on the way.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return True
    return not any(
        name in ("origin", "cookie") or (name.startswith("sec-fetch-") and name != "sec-fetch-mode")
        for name in request.headers
    )


def refuse_type(request: Request) -> None:
    """Refuse JSON that a browser sends as something else: so can pages of other sites, without being asked.

    Raises:
        HttpError: 415 ``unsupported_media_type``.
    """
    if not json_taken(request):
        raise HttpError(
            415,
            "unsupported_media_type",
            "a browser's request, or one with a cookie, must say `Content-Type: application/json`",
            details={"field": "Content-Type"},
        )


async def read_body(request: Request, limit: int, *, name: str = "") -> bytes:
    """Read a whole body of at most ``limit`` bytes; ``name`` is the setting of that limit.

    Raises:
        HttpError: 413 ``payload_too_large``, before anything is read if the length is announced; 415.
    """
    refuse_encoding(request)
    too_large = HttpError(
        413, "payload_too_large", f"the body is larger than {limit} bytes" + (f" ({name})" if name else "")
    )
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


async def read_object(request: Request, limits: JsonLimits, *, any_type: bool = False) -> dict[str, Any]:
    """Read a JSON object within limits.

    Args:
        request: The request.
        limits: Of its body.
        any_type: Whether a browser, too, may send it under any content type.

    Raises:
        HttpError: As :func:`read_json`, 415 if a browser sends it as something else, and 400 if it is not an
            object.
    """
    if not any_type:
        refuse_type(request)
    value = await read_json(request, limits)
    if not isinstance(value, dict):
        raise HttpError(400, "invalid_request", f"the body must be a JSON object, not {kind_of(value)}")
    return value


def kind_of(value: object) -> str:
    """Return what a JSON value that is not an object is, in words."""
    kinds = {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return kinds.get(type(value), "a number")


async def read_json(request: Request, limits: JsonLimits) -> Any:
    """Read any JSON value within limits.

    Raises:
        HttpError: 413 if it is larger or has more values; 415 if it is compressed; 400 if it is not JSON (NaN
            and invalid UTF-8 are not), or too deep.
    """
    body = await read_body(request, limits.size, name=limits.size_name)
    if has_more_values(body, limits.values):
        named = f" ({limits.values_name})" if limits.values_name else ""
        raise HttpError(
            413, "payload_too_large", f"the body has more than {limits.values} JSON values{named}"
        )
    try:
        return orjson.loads(body.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        raise not_json(body, error) from None


def not_json(body: bytes, error: orjson.JSONDecodeError) -> HttpError:
    """Return the error for a body that is not JSON."""
    return HttpError(400, "invalid_request", f"the body is not JSON: {_why(body, error)}"[:300])


def _why(body: bytes, error: orjson.JSONDecodeError) -> str:
    """Return what is wrong with a body, in clearer words than the parser's."""
    # The parser's position counts characters.
    text = body.removeprefix(codecs.BOM_UTF8).decode(errors="replace")
    if found := _NO_NUMBER.match(text, error.pos):
        return f"it holds {found[0]} at character {error.pos}, which is not a number in JSON: leave it out"
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "it is UTF-16: send UTF-8"
    if "infinity" in error.msg:
        return f"the number at character {error.pos} is larger than any that is taken (1.8e308)"
    return str(error)


def has_more_values(body: bytes, most: int) -> bool:
    """Return whether a JSON text has more values, before any of them is created.

    Each value except the outermost is the first of a list or an object, or follows a comma. Counting bytes
    takes milliseconds where parsing and checking takes seconds. Texts must not be counted; they are cut out
    only if they could matter.
    """
    if _marks(body) <= most:
        return False
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # only the ends of texts are left
    if body.count(b'"') > 4 * most:  # a value has at most two texts, its key and itself
        return True
    return _marks(b'"'.join(body.split(b'"')[::2])) > most


def _marks(text: bytes) -> int:
    empty = text.count(b"[]") + text.count(b"{}")
    return text.count(b",") + text.count(b"[") + text.count(b"{") - empty


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
