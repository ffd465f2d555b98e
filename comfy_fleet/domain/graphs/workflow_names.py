"""Names of stored workflows: references to their versions, labels, and ids made of an editor's names.

A *workflow reference* is ``NAME``, ``NAME@VERSION``, ``NAME@LABEL`` or ``NAME@draft``.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

from comfy_fleet.domain.errors import BadInput, Conflict

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
"""What names of stored workflows look like, in the folder and in the store."""
PRODUCTION = "production"
"""The label of the version that a plain name means."""
DRAFT = "draft"
"""Stands for the caller's own draft; no label may be called so."""
SHORT = 12
"""Digits of a version that people are shown."""
MAX_EDITOR_NAME = 200

_VERSION = re.compile(r"(?:sha256:)?([0-9a-f]{7,64})")
_LABEL = re.compile(r"[a-z][a-z0-9_.-]{0,31}")
_ENDINGS = re.compile(r"(\.app)?\.json$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class WorkflowReference:
    """Which version of which stored workflow.

    Attributes:
        name: The stored workflow.
        version: At least the first seven digits of a version, without ``sha256:``; else empty.
        label: A label; :data:`PRODUCTION` if the reference is a plain name, and empty with ``version`` or
            ``draft``.
        draft: Whether it means the caller's own draft.
    """

    name: str
    version: str = ""
    label: str = ""
    draft: bool = False

    @classmethod
    def parse(cls, text: str) -> "WorkflowReference":
        """Read ``NAME`` or ``NAME@WHICH``.

        Raises:
            BadInput: It is neither.
        """
        name, at, which = text.partition("@")
        if not NAME.fullmatch(name):
            raise BadInput(
                f"{name[:80]!r} is no workflow's name: these are 1 to 63 of a-z 0-9 _ . - and start with a "
                "letter or digit" + (f"; did you mean {slug(name)}?" if slug(name) else ""),
                details={"field": "workflow"},
            )
        if not at:
            return cls(name=name, label=PRODUCTION)
        if which == DRAFT:
            return cls(name=name, draft=True)
        if version := version_digits(which):
            return cls(name=name, version=version)
        if _LABEL.fullmatch(which):
            return cls(name=name, label=which)
        raise BadInput(
            f"{which[:80]!r} is neither a version (at least 7 digits of it), nor a label, nor {DRAFT!r}: "
            f"write {name}@VERSION, {name}@LABEL or {name}@{DRAFT}",
            details={"field": "workflow"},
        )

    def __str__(self) -> str:
        """Return the reference as people write it."""
        which = DRAFT if self.draft else self.version or self.label
        return self.name if which == PRODUCTION else f"{self.name}@{which}"


def version_digits(text: str) -> str:
    """Return the hexadecimal digits of a version, or of its beginning; empty if the text is none."""
    match = _VERSION.fullmatch(text)
    return match[1] if match else ""


def short(version: str) -> str:
    """Return a version as people are shown it."""
    return version.removeprefix("sha256:")[:SHORT]


def check_label(label: str) -> str:
    """Return a label that a version may get.

    Raises:
        BadInput: It can't be one.
    """
    if not _LABEL.fullmatch(label) or label == DRAFT or version_digits(label):
        raise BadInput(
            f"{label[:80]!r} can't be a label: labels are 1 to 32 of a-z 0-9 _ . -, begin with a letter, are "
            f"not {DRAFT!r} and don't look like a version",
            details={"field": "label"},
        )
    return label


def slug(editor_name: str) -> str:
    """Return the id for a name that somebody chose in the editor: ``My Workflow`` becomes ``my_workflow``.

    A name with letters that have no counterpart in a-z gets a few digits of its hash, so that two of them
    differ. Empty only if the name is.
    """
    base = _ENDINGS.sub("", editor_name.strip())
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", base) if not unicodedata.combining(sign))
    lost = any(sign.isalnum() and not sign.isascii() for sign in plain)
    words = re.sub(r"[^a-z0-9.-]+", "_", plain.lower()).strip("_.-")
    digits = hashlib.sha256(unicodedata.normalize("NFC", base).encode("utf-8", "surrogatepass")).hexdigest()
    if not base:
        return ""
    if lost or not words:
        return f"{words[:50].rstrip('_.-') or 'workflow'}_{digits[:8]}"
    return words if len(words) <= 63 else f"{words[:50].rstrip('_.-')}_{digits[:8]}"


class NameTaken(Conflict):
    """Two names become the same id, or one is in two places; the message names both."""

    code = "workflow_name_taken"


def same_id(name: str, editor_name: str, other: str) -> NameTaken:
    """Return the error for two names in the editor that become the same id."""
    return NameTaken(
        f"{editor_name[:80]!r} and {other[:80]!r} both become {name}: give one of them another name",
        details={"field": "editor_name", "workflow": name, "names": [editor_name[:80], other[:80]]},
    )


def in_both(name: str, folder: str) -> NameTaken:
    """Return the error for a name that is in the folder and in the store."""
    return NameTaken(
        f"stored workflow {name} is in two places, {folder} and the fleet's store: move that folder away, "
        f"which leaves the store's; to keep the folder's, then `fleet workflow export {name}` (a removed one "
        f"is gone for good), `fleet workflow rm {name}`, and put the folder back",
        details={"field": "workflow", "workflow": name, "places": [folder, "store"]},
    )


def kept_in_folder(name: str, folder: str) -> NameTaken:
    """Return the error for a change of a workflow that is kept in the folder."""
    return NameTaken(
        f"stored workflow {name} is kept in {folder}: export what you made and put it there; or move that "
        "folder away to keep the workflow in the fleet's store",
        details={"field": "workflow", "workflow": name, "folder": folder},
    )
