"""Print what `coverage json` has written, summed up by folder."""

import json
import sys
from collections import Counter
from pathlib import Path

COUNTS = ("num_statements", "missing_lines", "num_branches", "missing_branches")


def folder_of(path: Path) -> str:
    """Return the folder of the package to which a module counts."""
    parents = path.parts[1:-1]
    deep = 2 if parents and parents[0] in ("adapters", "domain") else 1
    return "/".join(parents[:deep]) or "."


def share(counts: Counter[str]) -> float:
    """Return the percentage of lines and branches that were run, as coverage.py counts it."""
    all_ = counts["num_statements"] + counts["num_branches"]
    return 100 * (1 - (counts["missing_lines"] + counts["missing_branches"]) / all_) if all_ else 100.0


def main() -> None:
    """Print the table."""
    folders: dict[str, Counter[str]] = {}
    for name, facts in json.loads(Path(sys.argv[1]).read_text())["files"].items():
        counts = folders.setdefault(folder_of(Path(name)), Counter())
        counts.update({count: facts["summary"][count] for count in COUNTS})
    total: Counter[str] = sum(folders.values(), Counter())
    print(f"{'folder':24}{'lines':>8}{'missed':>8}{'branches':>10}{'missed':>8}{'run':>8}")
    for name, counts in [*sorted(folders.items()), ("all", total)]:
        lines, missed, branches, half = (counts[count] for count in COUNTS)
        print(f"{name:24}{lines:8}{missed:8}{branches:10}{half:8}{share(counts):7.1f}%")


if __name__ == "__main__":
    main()
