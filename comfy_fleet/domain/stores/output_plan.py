"""Where a job's outputs are put besides the fleet's own files, and what has become of that."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

FORMATS = ("webp", "jpeg", "png")
EXTENSIONS = {"webp": "webp", "jpeg": "jpg", "png": "png"}
_BY_EXTENSION = {"webp": "webp", "jpeg": "jpeg", "jpg": "jpeg", "png": "png"}
MAX_WIDTH = 16_384
JOB_LABEL = "fleetjob"
"""What the id of an object's job is called beside the object."""


@dataclass(frozen=True, kw_only=True)
class OutputAsk:
    """What a request says about it.

    Attributes:
        store: The store's name; None: the tenant's default.
        key: The template of names; None: the usual one.
        format: Of pictures; None: that which the key's end names, or as they are.
        quality: 1 to 100, of WebP and JPEG.
        width: Most pixels of a row.
        metadata: Whether what ComfyUI writes into pictures stays; None: unless they are converted.
        on_conflict: Whether an object that is there is replaced.
    """

    store: str | None = None
    key: str | None = None
    format: str | None = None
    quality: int | None = None
    width: int | None = None
    metadata: Literal["keep", "strip"] | None = None
    on_conflict: Literal["replace", "fail"] = "replace"


@dataclass(frozen=True, kw_only=True)
class OutputPlan:
    """What was made of it, once it was checked.

    Attributes:
        store: The store's name.
        key: The template, in which what was known at the submit is filled in.
        template: The template as it was sent; empty: none was.
        chosen: Whether the request has asked for it at all; else it is the tenant's default.
        custom_id: What the job's batch calls it.
    """

    store: str
    key: str
    template: str = ""
    format: str = ""
    quality: int = 0
    width: int = 0
    metadata: str = ""
    on_conflict: str = "replace"
    chosen: bool = True
    custom_id: str = ""

    def asked(self) -> OutputAsk | None:
        """Return what a job that repeats this one asks for; None: whatever its tenant's default is."""
        if not self.chosen:
            return None
        return OutputAsk(
            store=self.store,
            key=self.template or None,
            format=self.format or None,
            quality=self.quality or None,
            width=self.width or None,
            metadata="keep" if self.metadata == "keep" else "strip" if self.metadata == "strip" else None,
            on_conflict="fail" if self.on_conflict == "fail" else "replace",
        )

    def converts(self, kind: str, content_type: str) -> str:
        """Return the format into which an output of a kind is converted; empty: it stays as it is."""
        if kind != "image":
            return ""
        own = _BY_EXTENSION.get(content_type.partition("/")[2], "")
        wanted = self.format or _BY_EXTENSION.get(self.key.rpartition(".")[2].lower(), "")
        if wanted and wanted != own:
            return wanted
        return (wanted or own) if self.width or self.quality or self.metadata == "strip" else ""


def object_metadata(job_id: str, content_hash: str) -> dict[str, str]:
    """Return what is written beside an output's object, by which it is known again.

    Names and values are such as every kind of store takes.

    Args:
        job_id: Whose output it is.
        content_hash: Of the output as the fleet has it, ``blake3:`` and 64 hexadecimal digits.
    """
    return {JOB_LABEL: job_id, "fleetblake3": content_hash.removeprefix("blake3:")}


class StoreState(StrEnum):
    """Where an output is on its way."""

    WAITING = "waiting"
    STORED = "stored"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """What has become of an output's way into a store.

    Attributes:
        url: Where it is, once it is there.
        error: Why it is not, or not yet.
        signed_url: Where it can be read for a while by whoever has this; None: nobody has asked, or the store
            signs nothing.
    """

    store: str
    key: str
    state: StoreState
    url: str | None = None
    error: str | None = None
    signed_url: str | None = None


OutputPlace = tuple[str, str, int]
"""An output's node, key and index."""
