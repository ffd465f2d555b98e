"""``multipart/form-data`` with one file, parsed as it arrives: the file is never in memory as a whole."""

from collections.abc import AsyncIterator
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from comfy_fleet.api.body import refuse_encoding
from comfy_fleet.api.errors import HttpError

_MAX_FIELD = 64 * 1024
_MAX_PARTS = 64
_MAX_HEADER = 8 * 1024
_AS_THEY_ARE = ("", "binary", "8bit", "7bit")  # RFC 7578, 4.7: other headers should not be sent


def _bad(message: str, field: str | None = None) -> HttpError:
    return HttpError(422, "invalid_request", message, details={"field": field} if field else None)


def base_name(filename: bytes | None) -> str | None:
    """Return a file's name without the folders that some clients put before it."""
    name = (filename or b"").decode("utf-8", "replace")
    return name.replace("\\", "/").rpartition("/")[2] or None


class UploadedForm:
    """One upload. Read :meth:`file` to its end, then ask for the fields.

    Args:
        request: Its body is read once, here.
        limit: Most bytes of the whole body.
        part: The field that holds the file.

    Raises:
        HttpError: 422 unless the request announces ``multipart/form-data`` with a boundary; 413; 415.
    """

    def __init__(self, request: Request, limit: int, *, part: str = "file") -> None:
        refuse_encoding(request)
        kind, options = parse_options_header(request.headers.get("content-type"))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 256:
            raise _bad("the body must be multipart/form-data with a boundary")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise self._too_large(limit)
        self._request = request
        self._limit = limit
        self._part = part
        self._fields: dict[str, list[str]] = {}
        self._pieces: list[bytes] = []
        self._name: str | None = None
        self._filename: bytes | None = None
        self._value = bytearray()
        self._header = [bytearray(), bytearray()]
        self._headers: dict[bytes, bytes] = {}
        self._parts = 0
        self._files = 0
        self._ended = False
        self._file_type: str | None = None
        self._sent_name: bytes | None = None
        self._misplaced: str | None = None
        callbacks: Any = {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)

    async def file(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the file's part; ends with the body.

        Raises:
            HttpError: 413 or 422.
        """
        size = 0
        async for chunk in self._request.stream():
            size += len(chunk)
            if size > self._limit:
                raise self._too_large(self._limit)
            try:
                self._parser.write(chunk)
            except MultipartParseError as error:
                raise _bad(f"the form can't be read: {error}") from None
            for piece in self._pieces:
                yield piece
            self._pieces.clear()
        if not self._ended:
            raise _bad("the form ends early")
        if not self._files:
            if self._misplaced is not None:
                raise self._stray(self._misplaced)
            part = self._part
            raise _bad(f"{part} is missing: send the bytes in the form's field `{part}`", part)

    @property
    def file_type(self) -> str | None:
        """The content type of the file's part."""
        return self._file_type

    @property
    def file_name(self) -> str | None:
        """The file's name in its part, without folders; None if there is none."""
        return base_name(self._sent_name)

    @property
    def sent_name(self) -> str:
        """The file's name as it was sent, perhaps with folders; empty if there is none."""
        return (self._sent_name or b"").decode("utf-8", "replace")

    def one(self, name: str) -> str | None:
        """Return a field that must not repeat.

        Raises:
            HttpError: 422 if it came more than once.
        """
        values = self._fields.get(name, [])
        if len(values) > 1:
            raise _bad(f"{name} must come only once", name)
        return values[0] if values else None

    def many(self, name: str) -> list[str]:
        """Return all values of a field."""
        return self._fields.get(name, [])

    @staticmethod
    def _too_large(limit: int) -> HttpError:
        return HttpError(413, "payload_too_large", f"the body is larger than {limit} bytes")

    def _stray(self, name: str) -> HttpError:
        message = f"the file came in the field {name[:40]!r}: send it in the field `{self._part}`"
        return _bad(message, self._part)

    # -- the parser's callbacks ---------------------------------------------

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise _bad(f"the form has more than {_MAX_PARTS} parts")
        self._headers.clear()
        self._name = self._filename = None
        self._value.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]
        self._check_header()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header[0]) + len(self._header[1]) > _MAX_HEADER:
            raise _bad("a part's header is too long")

    def _header_end(self) -> None:
        self._headers[bytes(self._header[0]).lower()] = bytes(self._header[1])
        self._header = [bytearray(), bytearray()]

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._filename = options.get(b"filename")
        encoding = self._headers.get(b"content-transfer-encoding", b"").decode("latin-1").strip()
        if encoding.lower() not in _AS_THEY_ARE:
            words = f"Content-Transfer-Encoding {encoding[:40]} is not taken: send the bytes as they are"
            raise _bad(f"{self._name}: {words}", self._name)
        if self._is_file():
            self._file_begins()
        elif self._filename and self._misplaced is None:
            self._misplaced = self._name

    def _is_file(self) -> bool:
        """Whether the part that has begun is a file's."""
        return self._name == self._part

    def _file_begins(self) -> None:
        self._files += 1
        if self._files > 1:
            raise _bad(f"{self._part} must come only once", self._part)
        kind = self._headers.get(b"content-type")
        self._file_type = kind.decode("latin-1") if kind else None
        self._sent_name = self._filename

    def _file_piece(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def _file_ends(self) -> None:
        """Note the end of a file's part."""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file():
            self._file_piece(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD:
            if self._filename:
                raise self._stray(self._name or "")
            raise _bad(f"{self._name} is longer than {_MAX_FIELD} bytes", self._name)

    def _part_end(self) -> None:
        if self._is_file():
            self._file_ends()
        elif self._name:
            try:
                text = self._value.decode()
            except UnicodeDecodeError:
                if self._filename:
                    raise self._stray(self._name) from None
                raise _bad(f"{self._name} is not valid UTF-8", self._name) from None
            self._fields.setdefault(self._name, []).append(text)

    def _end(self) -> None:
        self._ended = True
