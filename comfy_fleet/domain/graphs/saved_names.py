"""Names under which nodes save: placeholders that the editor fills in, and names that every file system
accepts.

Facts (ComfyUI 0.3.64 and 0.33): the server fills in :data:`SERVER_TOKENS`. The editor fills in
``%date:yyyy-MM-dd%`` and ``%Node.input%`` before it posts a graph; a graph from elsewhere still has them.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

SERVER_TOKENS = frozenset(
    f"%{name}%"
    for name in ("width", "height", "year", "month", "day", "hour", "minute", "second", "batch_num")
)

_LONGEST = 1000  # no file name needs more, and each token searches the graph
_LONGEST_NAME = 200  # bytes; file systems allow 255, and a number may be put in
_TOKEN = re.compile(r"%([^%]+)%")
_KEPT = re.compile("(" + "|".join(sorted(SERVER_TOKENS)) + ")")
_DATE_PART = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
_ILLEGAL_IN_VALUE = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
# Beside what a system refuses: what turns a line of text around, or ends it.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*%\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]')
# Behind a name, this says in which of ComfyUI's folders the file is.
_ANNOTATION = re.compile(r"\[(input|output|temp)\]$")
# ``GET /view`` refuses every file whose name has two dots in a row, wherever they are.
_DOTS = re.compile(r"\.{2,}")
# Windows takes these for devices, whatever extension follows.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\.|$)", re.IGNORECASE)


def expanded(text: str, graph: Mapping[str, Mapping[str, Any]], at: datetime | None) -> str:
    """Fill in a text's placeholders as the editor does; unknown ones stay.

    Args:
        text: The text.
        graph: Where ``%Node.input%`` looks: by class first, then by title.
        at: The time of ``%date:...%``; None leaves it.
    """

    def filled(match: re.Match[str]) -> str:
        words = match[1].split(".")
        if len(words) != 2:
            wanted = words[0].removeprefix("date:")
            return match[0] if wanted == words[0] or at is None else _date(wanted, at)
        for key in (lambda node: node["class_type"], _title):
            for node in graph.values():
                if key(node) == words[0]:
                    value = node["inputs"].get(words[1])
                    known = isinstance(value, str | int | float)
                    return _ILLEGAL_IN_VALUE.sub("_", _shown(value)[:_LONGEST]) if known else match[0]
        return match[0]

    return _TOKEN.sub(filled, text) if "%" in text and len(text) <= _LONGEST else text


def safe_path(original: str) -> str:
    """Make a relative path that stays in its folder, on Windows and on Linux.

    At most 160 characters, and 160 bytes a name. Of the tokens only the server's own keep their ``%``.
    """
    parts = []
    for part in original.replace("\\", "/").split("/"):
        pieces = _KEPT.split(part)
        pieces[::2] = [_UNSAFE.sub("_", piece) for piece in pieces[::2]]
        # File systems allow names of 255 bytes, and a counter and an extension follow.
        short = "".join(pieces).strip()[:80].encode()[:160].decode(errors="ignore")
        if name := _harmless(short):
            parts.append(name)
    while len("/".join(parts)) > 160:
        parts.pop(0)
    return "/".join(parts) or "output"


def safe_file_name(original: str) -> str:
    """Make a file's name that stays in its folder, on Windows and on Linux: at most 200 bytes, none empty.

    The extension is kept. It does not begin with a dot: saved in a home folder, it replaces no settings.
    """
    name = _UNSAFE.sub("_", original.replace("\\", "/").rpartition("/")[2]).strip()
    if len(name.encode()) > _LONGEST_NAME:
        dot = max(name.rfind("."), len(name) - 16)
        extension = name[dot:] if name[dot:].isascii() and name[dot] == "." else ""
        name = name.encode()[: _LONGEST_NAME - len(extension)].decode(errors="ignore") + extension
    name = _harmless(name)
    return _ANNOTATION.sub(r"_\1_", f"_{name[1:]}" if name.startswith(".") else name) or "output"


# ----------------------------------------------------------------------------------------------------


def _harmless(name: str) -> str:
    # Windows drops dots and blanks at the end of a name, and ".." consists of nothing else.
    if not (name := name.rstrip(". ")):
        return ""
    name = _DOTS.sub("_", name)
    return f"_{name}" if _DEVICE.match(name) else name


def _date(wanted: str, at: datetime) -> str:
    numbers = {"d": at.day, "M": at.month, "h": at.hour, "m": at.minute, "s": at.second}

    def part(match: re.Match[str]) -> str:
        text = match[0]
        if text[0] == "y":
            return {"yy": f"{at.year:04}"[2:], "yyyy": f"{at.year:04}"}.get(text, text)
        return str(numbers[text[0]]).rjust(len(text), "0")

    return _DATE_PART.sub(part, wanted)


def _title(node: Mapping[str, Any]) -> object:
    meta = node.get("_meta")
    return meta.get("title") if isinstance(meta, dict) else None


def _shown(value: object) -> str:
    # As JavaScript writes it: 1.0 is 1, and True is true.
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
