"""``multipart/form-data`` with several pictures, each written to disk as it arrives."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from starlette.requests import Request

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.multipart import UploadedForm, base_name
from comfy_fleet.domain.jobs.sniffing import HEAD_BYTES, content_type_of_bytes
from comfy_fleet.ports.assets import AssetStore, Received

MOST_IMAGES = 16
IMAGE, MASK = "image", "mask"
_FILES = {"image": IMAGE, "image[]": IMAGE, "mask": MASK}
_PNG = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPE = 25
_ALPHA = (4, 6)


@dataclass(frozen=True, kw_only=True)
class SentPicture:
    """A picture of a form, stored and without a record yet.

    Attributes:
        field: :data:`IMAGE` or :data:`MASK`.
        name: Its file name, without folders.
        content_type: What its first bytes say.
        transparent: Whether it is a PNG that may have transparent places.
    """

    field: str
    name: str
    content_type: str
    transparent: bool
    received: Received


@dataclass(kw_only=True)
class _File:
    """The part that is being read, or was read last."""

    field: str
    name: str
    head: bytes = b""
    pieces: deque[bytes]
    ended: bool = False


class PicturesForm(UploadedForm):
    """A form with pictures in ``image`` or ``image[]``, and perhaps one in ``mask``.

    Read :meth:`pictures`, then ask for the fields.

    Args:
        request: Its body is read once, here.
        limit: Most bytes of the whole body.
    """

    def __init__(self, request: Request, limit: int) -> None:
        super().__init__(request, limit, part=IMAGE)
        self._chunks = aiter(request.stream())
        self._size = 0
        self._waiting: deque[_File] = deque()
        self._current: _File | None = None
        self._counts = {IMAGE: 0, MASK: 0}

    async def pictures(self, store: AssetStore, stack: AsyncExitStack) -> list[SentPicture]:
        """Store all pictures; what is given no record is deleted when the stack is closed.

        Raises:
            HttpError: 413 or 422.
        """
        found = []
        while True:
            while not self._waiting and not self._ended:
                if not await self._feed():
                    break
            if not self._waiting:
                break
            part = self._waiting.popleft()
            received = await stack.enter_async_context(store.receive(self._bytes(part)))
            if not part.head:
                raise HttpError(
                    422, "invalid_request", f"{part.field} is an empty file", details={"field": part.field}
                )
            found.append(
                SentPicture(
                    field=part.field,
                    name=part.name,
                    content_type=content_type_of_bytes(part.head, part.name),
                    transparent=_may_be_transparent(part.head),
                    received=received,
                )
            )
        while await self._feed():
            pass
        if not self._ended:
            raise HttpError(422, "invalid_request", "the form ends early")
        return found

    def fields(self) -> dict[str, list[str]]:
        """Return all other fields."""
        return self._fields

    async def _feed(self) -> bool:
        """Read one more piece of the body; return False if there is none."""
        chunk = await anext(self._chunks, None)
        if chunk is None:
            return False
        self._size += len(chunk)
        if self._size > self._limit:
            raise self._too_large(self._limit)
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise HttpError(422, "invalid_request", f"the form can't be read: {error}") from None
        return True

    async def _bytes(self, part: _File) -> AsyncIterator[bytes]:
        while True:
            while part.pieces:
                piece = part.pieces.popleft()
                if len(part.head) < HEAD_BYTES:
                    part.head += piece[: HEAD_BYTES - len(part.head)]
                yield piece
            if part.ended:
                return
            if not await self._feed():
                raise HttpError(422, "invalid_request", "the form ends early")

    # -- the parser's callbacks ---------------------------------------------

    def _is_file(self) -> bool:
        return self._name in _FILES

    def _file_begins(self) -> None:
        field = _FILES[self._name or ""]
        self._counts[field] += 1
        if self._counts[IMAGE] > MOST_IMAGES or self._counts[MASK] > 1:
            most = "one mask" if self._counts[MASK] > 1 else f"{MOST_IMAGES} images"
            raise HttpError(
                422, "invalid_request", f"{field}: a request has at most {most}", details={"field": field}
            )
        name = base_name(self._filename) or f"{field}.png"
        self._current = _File(field=field, name=name, pieces=deque())
        self._waiting.append(self._current)

    def _file_piece(self, piece: bytes) -> None:
        if self._current is not None:
            self._current.pieces.append(piece)

    def _file_ends(self) -> None:
        if self._current is not None:
            self._current.ended = True


def _may_be_transparent(head: bytes) -> bool:
    if not head.startswith(_PNG) or len(head) <= _COLOR_TYPE:
        return False
    return head[_COLOR_TYPE] in _ALPHA or b"tRNS" in head
