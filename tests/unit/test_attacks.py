"""Each attack of the page on attacks names tests that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "attacks.md").read_text()
ROWS = {
    int(cells[0]): cells[1:]
    for line in PAGE.splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split(" | ")]) and cells[0].isdecimal()
}
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
OPEN = {86}
"""Attacks that take too long for a test."""


def test_every_attack_has_a_row_and_a_test() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    assert numbers == list(range(1, 130))
    assert list(ROWS) == numbers and all(len(cells) == 3 for cells in ROWS.values())
    assert {number for number, cells in ROWS.items() if "::test_" not in cells[2]} == OPEN


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_named_test_is_there(path: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), (path, name)
