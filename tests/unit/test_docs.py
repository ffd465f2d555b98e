"""What the documents tell people to type, to set, to call and to open: it is there."""

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer.main
from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute, Match

from comfy_fleet.api.app import create_app
from comfy_fleet.api.auth import Keys
from comfy_fleet.cli.app import build
from comfy_fleet.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "haproxy/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK, SETTING = r"\]\(([^)\s]+)\)", r"\bFLEET_[A-Z_]+[A-Z]\b"
ELSEWHERE = {"FLEET_TEST_WORKERS"}  # read by a script, not by the package


CALL = re.compile(
    r"(?:\b(GET|HEAD|POST|PUT|DELETE) +)?(?:https?://[\w.:-]+|\$FLEET)?(/api/v[12](?:/[\w{}.$-]*)*)"
)
INDEX = ROOT / "docs" / "README.md"
DECISIONS = ROOT / "docs" / "adr"


def split(text: str) -> tuple[list[tuple[str, str]], str]:
    """Return a document's code blocks with their language, and the text around them."""
    blocks: list[tuple[str, str]] = []
    prose: list[str] = []
    block: list[str] | None = None
    language = ""
    for line in text.splitlines():
        if (fence := line.strip()).startswith("```"):
            if block is None:
                block, language = [], fence[3:]
            else:
                blocks.append((language, "\n".join(block)))
                block = None
        else:
            (prose if block is None else block).append(line)
    assert block is None, "a code block has no end"
    return blocks, "\n".join(prose)


def commands(text: str) -> list[str]:
    """Return what begins with ``fleet`` in blocks of shell lines and between backticks."""
    blocks, prose = split(text)
    shell = [block for language, block in blocks if language in ("", "sh", "bash")]
    lines = [line for block in shell for line in block.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in re.split(r"\s(?:&&|;|\|)\s", line)]
    for paragraph in re.split(r"\n\s*\n|\n(?=[|*-])", prose):
        parts += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", paragraph)]
    before = r"\s*(?:\$ |\w+=\S* +)*(?:\.venv/bin/)?(?=fleet [a-z])"
    return [part[found.end() :].strip() for part in parts if (found := re.match(before, part))]


def calls(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the calls of the HTTP API that a document names: method, or empty, and path."""
    text = path.read_text()
    for method, place in CALL.findall(text):
        yield method, place.rstrip(".")
    if path.name == "http.md" and path.parent.name == "reference":
        for _, block in split(text.partition("## `/api/v1` in short")[2])[0]:
            # A further path in a line begins where the method's first one is, or below it.
            for line in block.splitlines():
                method = ""
                for word in line.partition("{params")[0].partition("{prompt")[0].split():
                    if word in ("GET", "POST", "DELETE"):
                        method = word
                    elif re.match(r"/(?!drain|resume)[a-z]", word):
                        place = word.partition("?")[0]
                        yield method, place if place.startswith("/api/") else f"/api/v1{place}"


def test_there_is_something_to_look_at() -> None:
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    assert len([line for path in DOCUMENTS for line in commands(path.read_text())]) > 150
    assert len({call for path in DOCUMENTS for call in calls(path)}) > 40
    assert len(re.findall(LINK, text)) > 20
    assert len(set(re.findall(SETTING, text))) > 20


@cache
def whole() -> Any:
    """Return the tree of commands."""
    return typer.main.get_command(build())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_option_exists(path: Path) -> None:
    for line in commands(path.read_text()):
        words = shlex.split(line.replace("...", " "), comments=True)[1:]
        command = whole()
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


def test_shell_blocks_can_be_read_by_a_shell_and_name_scripts_and_options_that_exist() -> None:
    found = set()
    for path in DOCUMENTS:
        text = path.read_text()
        for block in (block for language, block in split(text)[0] if language in ("sh", "bash")):
            read = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
            assert (read.returncode, read.stderr) == (0, ""), (path, block)
        for name, words in re.findall(r"(?<![\w/])scripts/([a-z][\w-]*)((?: [^\s`#|;&]+)*)", text):
            script = ROOT / "scripts" / name
            assert script.exists() or script.with_suffix(".py").exists(), (path, name)
            for option in re.findall(r"(?<= )--[a-z][\w-]*", words):
                found.add((name, option))
                assert option in script.read_text(), (path, name, option)
    assert {("chaos", "--upgrade"), ("chaos", "--back")} <= found


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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_call_that_is_named_exists(path: Path) -> None:
    routes = list(
        all_routes(
            create_app(
                cast(
                    Any,
                    SimpleNamespace(
                        settings=Settings(), keys=Keys.load(Settings()), registry=CollectorRegistry()
                    ),
                )
            )
        )
    )
    for method, place in calls(path):
        if place in ("/api/v1", "/api/v2"):
            continue
        whole = f"{place}x" if place.endswith("/") else place  # the beginning of several
        scope = {"type": "http", "method": method, "path": whole, "root_path": "", "headers": []}
        found = [route.matches(dict(scope))[0] for route in routes]
        assert (Match.FULL in found) or (not method and Match.PARTIAL in found), (method, place)


def all_routes(app: Any) -> Iterator[BaseRoute]:
    """Yield the routes of an application and of those inside it."""
    for inside in (getattr(app, "app", None),):
        if inside is not None:
            yield from all_routes(inside)
    yield from getattr(app, "routes", ())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_is_well_formed(path: Path) -> None:
    for language, block in split(path.read_text())[0]:
        match language:
            case "json":
                json.loads(block)
            case "python":
                compile(block, path.name, "exec")
            case "toml":
                tomllib.loads(block)


def test_the_index_names_every_page() -> None:
    linked = {INDEX.resolve()}
    for index in (INDEX, DECISIONS / "README.md"):
        assert index.resolve() in linked
        linked |= {(index.parent / target).resolve() for target in re.findall(LINK, index.read_text())}
    for path in DOCUMENTS:
        if path.is_relative_to(INDEX.parent):
            assert path in linked, path.relative_to(ROOT)


@pytest.mark.parametrize("path", sorted(DECISIONS.glob("0*.md")), ids=lambda path: path.stem)
def test_every_decision_has_one_form(path: Path) -> None:
    first, second, *_ = lines = path.read_text().splitlines()
    number = int(path.name[:4])
    title = first.removeprefix(f"# {number}. ")
    assert title != first
    assert [line for line in lines if line.startswith("## ")] == [
        "## Context",
        "## Decision",
        "## Consequences",
    ]
    row = next(line for line in (DECISIONS / "README.md").read_text().splitlines() if path.name in line)
    assert row == f"| [{number}]({path.name}) | {title} | {second.removeprefix('Status: ')} |"
    assert re.fullmatch(r"Status: (accepted|superseded by \d+)", second)


def test_the_numbers_that_no_decision_has_are_explained() -> None:
    used = {int(path.name[:4]) for path in DECISIONS.glob("0*.md")}
    text = " ".join((DECISIONS / "README.md").read_text().split())
    (said,) = re.findall(r"The numbers (.*?) were reserved and never used", text)
    gaps = set()
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", said):
        gaps |= set(range(int(first), int(last or first) + 1))
    assert gaps == set(range(1, max(used))) - used
