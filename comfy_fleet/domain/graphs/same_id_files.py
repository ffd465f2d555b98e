"""Words about several files of the editor's whose names become the id of one stored workflow."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from comfy_fleet.domain.errors import Conflict

MOST_FILES = 10
"""Files that a sentence names."""
MOST_SIGNS = 4
"""Signs by which a name that looks like another is told apart."""
_SPACES = re.compile(r"\s+(?=\.|$)")


class SameIdFiles(Conflict):
    """Several files of the owner's have the draft's id; ``details["files"]`` has their names."""

    code = "same_id_files"


def files_left_out(workflow: str, files: Sequence[str], *, draft_of: str) -> SameIdFiles:
    """Return the error for publishing the draft of one of several files of an id unasked."""
    return SameIdFiles(
        f"{same_id_files(workflow, files)} Or say that all but the draft's, {draft_of}, may be left out",
        details={"field": "leave_out_files", "workflow": workflow, "files": list(files)},
    )


def same_id_files(workflow: str, files: Sequence[str]) -> str:
    """Return what is said of several files of one id, and the way out.

    Args:
        workflow: The id.
        files: Their paths below ``workflows/``.
    """
    names = ", ".join(told_apart(files)[:MOST_FILES])
    more = f" and {len(files) - MOST_FILES} more" if len(files) > MOST_FILES else ""
    return f"These files have the same id, {workflow}: {names}{more}. Give all but one of them another name."


def told_apart(names: Sequence[str]) -> list[str]:
    """Return names in their order; those that look like another one have their unusual signs behind them.

    ``Café`` can be written with one sign for its last letter, or with two: nobody sees which.
    """
    looks = [_look(name) for name in names]
    alike = Counter(looks)
    return [name + _signs(name) if alike[look] > 1 else name for name, look in zip(names, looks, strict=True)]


def _look(name: str) -> str:
    """Return a text that two names share if they may look the same."""
    plain = unicodedata.normalize("NFKC", name)
    seen = "".join(sign for sign in plain if sign.isascii() or sign.isalnum())
    return _SPACES.sub("", " ".join(seen.split()))


def _signs(name: str) -> str:
    unusual = [f"U+{ord(sign):04X}" for sign in name if not sign.isascii() or sign == " "]
    more = " …" if len(unusual) > MOST_SIGNS else ""
    return f" (with {' '.join(unusual[:MOST_SIGNS])}{more})" if unusual else " (ASCII without spaces)"
