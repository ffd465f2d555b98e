"""An upload that comes in parts and may be resumed: what is known of it, and the words of tus about it."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

from comfy_fleet.domain.errors import BadInput

MOST_METADATA = 4096
"""Characters of the metadata of one upload."""

_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,128}")


@dataclass(frozen=True, kw_only=True)
class ResumableUpload:
    """A file on its way in.

    Attributes:
        length: Bytes of the whole file.
        offset: How many of them are on the disk for good.
        metadata: What its client said of it, as it was sent.
        file_path: The name that its asset will have.
        created_at: Unix seconds.
        expires_at: Unix seconds; each part that comes puts it off.
        asset_id: The asset that it became; empty until then.
    """

    id: str
    owner: str
    length: int
    offset: int
    metadata: str
    file_path: str
    content_type: str
    created_at: float
    expires_at: float
    asset_id: str = ""

    @property
    def whole(self) -> bool:
        """Whether all bytes are here."""
        return self.offset == self.length


def read_metadata(text: str) -> Mapping[str, str]:
    """Return what ``Upload-Metadata`` says: names, each with a text in base64, or with nothing.

    Raises:
        BadInput: It is no such list, is too long, or names something twice.
    """
    if len(text) > MOST_METADATA:
        raise _wrong(f"is longer than {MOST_METADATA} characters")
    found: dict[str, str] = {}
    for pair in text.split(",") if text.strip() else ():
        key, _, value = pair.strip().partition(" ")
        if not _KEY.fullmatch(key):
            raise _wrong("must be names with values in base64, with commas between: `filename YS5wbmc=`")
        if key in found:
            raise _wrong(f"names {key[:40]!r} twice")
        try:
            found[key] = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            raise _wrong(f"has a value for {key[:40]!r} that is not UTF-8 in base64") from None
    return found


def _wrong(what: str) -> BadInput:
    return BadInput(f"Upload-Metadata {what}", details={"field": "Upload-Metadata"})
