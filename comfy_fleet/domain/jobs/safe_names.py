"""Names of files that are harmless on any system."""

import re

_MOST_NAME = 180  # bytes: with a job's id, a number and ".part", file systems take it


def safe_name(name: str) -> str:
    """Return a name that a node or a client has chosen as that of a file: one part of a path, short."""
    last = re.sub(r"[^\w.() -]", "_", name.replace("\\", "/").split("/")[-1]).strip(" ")
    last = re.sub(r"^\.+", "_", last).rstrip(". ")
    if re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", last):
        last = f"_{last}"
    stem, dot, suffix = last.rpartition(".") if "." in last[1:] else (last, "", "")
    room = _MOST_NAME - len(f"{dot}{suffix}".encode())
    if room < 1:
        stem, dot, suffix, room = last, "", "", _MOST_NAME
    return f"{stem.encode()[:room].decode(errors='ignore')}{dot}{suffix}" or "output"


class DistinctNames:
    """Makes equal names distinct: macOS and Windows take both spellings of a letter for one."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def one(self, stem: str, suffix: str) -> str:
        """Return the name, with a number if it is taken.

        Args:
            stem: What it begins with.
            suffix: Its extension with the dot, or nothing.
        """
        number, wanted = self._taken.get(f"{stem}{suffix}".casefold(), 0), f"{stem}{suffix}"
        first = wanted.casefold()
        while wanted.casefold() in self._taken:
            number += 1
            wanted = f"{stem}_{number + 1}{suffix}"
        self._taken[wanted.casefold()] = 0
        self._taken[first] = number
        return wanted
