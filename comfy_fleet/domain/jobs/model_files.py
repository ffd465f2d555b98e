"""The model files that a job loads, as its record names them."""

import hashlib
import re
from collections.abc import Iterable

MOST_FILES = 32
"""Files of one job; of more, the largest count."""
LONGEST_NAME = 300
"""Characters of a file's name, its folder included."""
MOST_BYTES = 256 * 1024**3
"""A file that is said to be larger is taken to be as large as this."""

_UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def usable_files(files: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Return the files that a record can name, sorted, each once with the largest of its sizes in bytes."""
    sizes: dict[str, int] = {}
    for name, size in files:
        if name and len(name) <= LONGEST_NAME and not _UNUSABLE.search(name):
            sizes[name] = max(sizes.get(name, 0), min(max(0, size), MOST_BYTES))
    largest = sorted(sizes.items(), key=lambda file: (-file[1], file[0]))[:MOST_FILES]
    return tuple(sorted(largest))


def set_key(files: Iterable[tuple[str, int]]) -> str:
    """Return the key of a set of files: equal files of equal sizes have equal keys."""
    lines = "\n".join(f"{name}\t{size}" for name, size in sorted(files))
    return hashlib.sha1(lines.encode(), usedforsecurity=False).hexdigest()[:16]
