"""The Chinese README keeps step with the English one: the same headings, commands, links and names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s*#.*")


def headings(text: str) -> list[int]:
    """Return the levels of its headings."""
    return [len(found) for found in re.findall(r"^(#+) ", _FENCE.sub("", text), re.MULTILINE)]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return its blocks of code: language and lines, without what a comment says in either language."""
    blocks = ((language, body.splitlines()) for language, body in _FENCE.findall(text))
    return [(language, [_COMMENT.sub("", line) for line in lines]) for language, lines in blocks]


def links(text: str) -> list[str]:
    """Return what it links to, but for the other README, sorted."""
    found = re.findall(r"\]\(([^)]+)\)", text)
    return sorted(one for one in found if not one.startswith("README"))


def inline_code(text: str) -> list[str]:
    """Return what it sets as code between its blocks, sorted: settings, paths and commands."""
    return sorted(re.findall(r"`([^`\n]+)`", _FENCE.sub("", text).replace("\n", " ")))


@pytest.mark.parametrize("told_by", [headings, commands, links, inline_code], ids=lambda part: part.__name__)
def test_both_say_the_same(told_by: object) -> None:
    assert callable(told_by)
    assert told_by(CHINESE) == told_by(ENGLISH)


def test_each_leads_to_the_other() -> None:
    assert "](README.zh-CN.md)" in ENGLISH
    assert "](README.md)" in CHINESE
    assert len(re.findall(r"[\u4e00-\u9fff]", CHINESE)) > 500
