"""What the documents tell people to type, to set and to open: it is there."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from comfy_fleet.cli.app import build
from comfy_fleet.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "haproxy/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK, SETTING = r"\]\(([^)\s]+)\)", r"\bFLEET_[A-Z_]+[A-Z]\b"
ELSEWHERE = {"FLEET_TEST_WORKERS"}  # read by a script, not by the package


def commands(text: str) -> list[str]:
    """Return what begins with ``fleet`` in blocks of shell lines and between backticks."""
    blocks = re.findall(r"```(?:sh|bash)?\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line.strip() for line in lines if re.match(r"\s*(?:\.venv/bin/)?fleet [a-z]", line)]


def test_there_is_something_to_look_at() -> None:
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    assert len([line for path in DOCUMENTS for line in commands(path.read_text())]) > 60
    assert len(re.findall(LINK, text)) > 20
    assert len(set(re.findall(SETTING, text))) > 20


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_option_exists(path: Path) -> None:
    root: Any = typer.main.get_command(build())
    for line in commands(path.read_text()):
        words = shlex.split(line.replace("...", " "), comments=True)[1:]
        command = root
        while hasattr(command, "commands") and words and re.fullmatch(r"[a-z-]+", words[0]):
            name = words.pop(0)
            assert name in command.commands, line
            command = command.commands[name]
        known = {option: one for one in command.params for option in (*one.opts, *one.secondary_opts)}
        rest = iter(words)
        for word in rest:
            if word == "|":
                break
            name, _, value = word.partition("=")
            if re.match(r"--?[a-z]", name) and name != "--help":
                assert name in known, line
                if not value and not known[name].is_flag:
                    next(rest, None)  # its value may look like an option


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(LINK, path.read_text()):
        place, _, anchor = target.partition("#")
        if "://" in place:
            continue
        there = (path.parent / place).resolve() if place else path
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, target


def test_every_setting_that_is_named_exists() -> None:
    docker = " ".join(path.read_text() for path in (ROOT / "docker").rglob("*") if path.is_file())
    code = " ".join(path.read_text() for path in (ROOT / "comfy_fleet" / "cli").rglob("*.py"))
    known = {f"FLEET_{name.upper()}" for name in Settings.model_fields} | ELSEWHERE
    known |= set(re.findall(r"\bFLEET_[A-Z_]+\b", docker + code))
    for path in DOCUMENTS:
        for name in re.findall(SETTING, path.read_text()):
            assert name in known, (path.name, name)
