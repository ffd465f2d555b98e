"""What may be said of a file that comes in: its name and its type."""

import re

from comfy_fleet.api.errors import HttpError

_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}(;[\x20-\x7e]{1,200})?")


def invalid(field: str, message: str) -> HttpError:
    """Return the 422 for a field."""
    return HttpError(422, "invalid_request", f"{field} {message}", details={"field": field})


def content_type(kind: str, *, field: str = "content_type") -> str:
    """Return a MIME type in small letters.

    Raises:
        HttpError: 422: it is none.
    """
    if not _TYPE.fullmatch(kind):
        raise invalid(field, "must be a MIME type such as image/png")
    return kind.lower()


def file_path(path: str, *, field: str = "file_path") -> str:
    """Return a file's name, which may have folders.

    Raises:
        HttpError: 422: it can't be one.
    """
    parts = path.split("/")
    if (
        not 1 <= len(path.encode("utf-8", "replace")) <= 1024
        or any(part in ("", ".", "..") for part in parts)
        or "\\" in path
        or any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in path)
    ):
        raise invalid(
            field,
            "must be a relative path of at most 1024 bytes without '..', '\\', '//' and control characters",
        )
    return path
