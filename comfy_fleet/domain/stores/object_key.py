"""The names that outputs get in stores: templates, and what is put into them.

What is known at the submit is put in there, and checked while somebody can be told; what only an output knows
(its place, its name) follows when it is there, and can't make a name that is refused.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from comfy_fleet.domain.errors import BadInput

DEFAULT_KEY = "{job_id}/{index}-{name}"
MOST_KEY = 1024
"""Bytes of a key together with its store's prefix: S3's limit."""
MOST_VALUE = 255
"""Bytes of a value that is put in: many file systems' limit for a name."""
MOST_TEMPLATE = 1000
OF_JOB = ("job_id", "custom_id", "workflow", "date")
OF_OUTPUT = ("index", "name", "stem", "ext", "node_id")
_LONGEST = {"index": 6, "name": 204, "stem": 200, "ext": 16, "node_id": 100}
"""Bytes of each that are kept at most."""
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f/\\]")


@dataclass(frozen=True, kw_only=True)
class KeyFacts:
    """What is known of a job when it is submitted.

    Attributes:
        custom_id: What its batch calls it; empty: it is in none.
        workflow: The stored workflow; empty: it has a graph of its own.
        labels: Its metadata, if these are labels.
    """

    job_id: str
    created_at: float
    custom_id: str = ""
    workflow: str = ""
    labels: Mapping[str, str] | None = None
    params: Mapping[str, Any] | None = None


def bound_key(template: str, facts: KeyFacts, *, prefix_bytes: int) -> str:
    """Return a template in which everything is filled in that is known at the submit.

    Raises:
        BadInput: It can't be a key, names something that there is not, or a value can't be part of a key. The
            field is ``output.key``.
    """
    if not template or len(template) > MOST_TEMPLATE:
        raise _wrong(f"must have 1 to {MOST_TEMPLATE} characters")
    if not template.isprintable():
        raise _wrong("must have no control characters")
    text, longest = "", 0
    for piece, name in _pieces(template):
        if name is None:
            text += piece.replace("{", "{{").replace("}", "}}")
            longest += len(piece.encode())
        elif name in OF_OUTPUT:
            text += f"{{{name}}}"
            longest += _LONGEST[name]
        else:
            value = _value(name, facts)
            text += value.replace("{", "{{").replace("}", "}}")
            longest += len(value.encode())
    plain = "".join("x" if name else piece for piece, name in _pieces(text))
    _check_path(plain)
    if longest + prefix_bytes > MOST_KEY:
        raise _wrong(
            f"and its store's prefix could have {longest + prefix_bytes} bytes; at most {MOST_KEY} are taken"
        )
    return text


@dataclass(frozen=True, kw_only=True)
class OutputFacts:
    """What is known of an output.

    Attributes:
        index: Its place among those that are stored, from 1.
        extension: The one that its bytes have in the store, without the dot; empty: that of its name.
    """

    index: int
    name: str
    node_id: str
    extension: str = ""


def object_keys(bound: str, outputs: Sequence[OutputFacts]) -> list[str]:
    """Return the keys of a job's outputs, in their order; equal ones are told apart by ``-2``, ``-3``.

    Args:
        bound: What :func:`bound_key` has returned.
        outputs: They.
    """
    taken: set[str] = set()
    keys = []
    for one in outputs:
        key = _free(_filled(bound, one), taken)
        taken.add(key)
        keys.append(key)
    return keys


def _filled(bound: str, output: OutputFacts) -> str:
    stem, _, extension = output.name.rpartition(".")
    if not stem:
        stem, extension = output.name, ""
    extension = output.extension or extension
    shown = {
        "index": str(output.index),
        "stem": _safe(stem, "stem"),
        "ext": _safe(extension, "ext") or "bin",
        "name": _safe(stem, "stem") + (f".{_safe(extension, 'ext')}" if extension else ""),
        "node_id": _safe(output.node_id, "node_id"),
    }
    found = "".join(shown[name] if name else piece for piece, name in _pieces(bound))
    parts = found.split("/")
    return "/".join(part if part.strip(".") else part.replace(".", "_") or "_" for part in parts)


def _safe(text: str, kind: str) -> str:
    """Return a text that an output brings, as a part of a key."""
    text = _UNSAFE.sub("_", unicodedata.normalize("NFC", text)).strip(" ")
    return text.encode()[: _LONGEST[kind]].decode(errors="ignore")


def _free(key: str, taken: Collection[str]) -> str:
    folder, slash, name = key.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    if not stem:
        stem, dot, extension = name, "", ""
    number = 1
    while key in taken:
        number += 1
        key = f"{folder}{slash}{stem}-{number}{dot}{extension}"
    return key


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """Return a template's literal texts, with None, and its placeholders by name.

    Raises:
        BadInput: A brace is alone.
    """
    pieces: list[tuple[str, str | None]] = []
    end = 0
    for found in _PIECE.finditer(template):
        if found.start() > end:
            pieces.append((template[end : found.start()], None))
        end = found.end()
        whole = found.group()
        if whole in ("{{", "}}"):
            pieces.append((whole[0], None))
        elif found.group(1) is None:
            raise _wrong(f"has a single {whole!r}: write {whole * 2!r} for one that is meant as such")
        else:
            pieces.append(("", found.group(1)))
    if end < len(template):
        pieces.append((template[end:], None))
    return pieces


def _value(name: str, facts: KeyFacts) -> str:
    kind, dot, inner = name.partition(".")
    found: object
    if dot and kind == "metadata":
        found = (facts.labels or {}).get(inner)
        if found is None:
            raise _wrong(f"names {{{name[:80]}}}, and the job's metadata has no {inner[:80]!r}")
    elif dot and kind == "params":
        params = facts.params or {}
        if inner not in params:
            known = ", ".join(sorted(params)[:20]) or "none"
            raise _wrong(f"names {{{name[:80]}}}, and the job's parameters are: {known}")
        found = params[inner]
    elif name == "job_id":
        found = facts.job_id
    elif name == "custom_id":
        if not facts.custom_id:
            raise _wrong("names {custom_id}, which only an item of a batch has")
        found = facts.custom_id
    elif name == "workflow":
        if not facts.workflow:
            raise _wrong("names {workflow}, and the job has a graph of its own")
        found = facts.workflow
    elif name == "date":
        found = datetime.fromtimestamp(facts.created_at, UTC).date().isoformat()
    else:
        may = ", ".join(f"{{{one}}}" for one in ("metadata.NAME", "params.NAME", *OF_JOB, *OF_OUTPUT))
        raise _wrong(f"names {{{name[:80]}}}, which there is not. There are {may}")
    return _checked_value(name, found)


def _checked_value(name: str, found: object) -> str:
    if isinstance(found, bool):
        text = "true" if found else "false"
    elif isinstance(found, str | int | float):
        text = str(found)
    else:
        raise _wrong(f"names {{{name[:80]}}}, which is no text and no number")
    text = unicodedata.normalize("NFC", text)
    if not text.strip(" .") or _UNSAFE.search(text) or not text.isprintable():
        raise _wrong(
            f"names {{{name[:80]}}}, whose value {text[:60]!r} can't be a part of a name: it must not be "
            "empty or only of dots, or have slashes or control characters"
        )
    if len(text.encode()) > MOST_VALUE:
        raise _wrong(f"names {{{name[:80]}}}, whose value is longer than {MOST_VALUE} bytes")
    return text


def _check_path(plain: str) -> None:
    if not plain.isprintable() or "\\" in plain:
        raise _wrong("must have no control characters and no backslashes")
    if unicodedata.normalize("NFC", plain) != plain:
        raise _wrong("must be in Unicode's normal form NFC")
    parts = plain.split("/")
    if any(not part.strip(" ") or part in (".", "..") for part in parts):
        raise _wrong("must be names with single slashes between them: no / at its ends, no . and ..")


def _wrong(what: str) -> BadInput:
    return BadInput(f"output.key {what}", details={"field": "output.key"})
