"""One name, one thing."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import comfy_fleet

PACKAGE = Path(comfy_fleet.__file__).parent
ROOT = PACKAGE.parent


def test_no_two_public_classes_share_a_name() -> None:
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for made in ast.parse(path.read_text()).body:
            if isinstance(made, ast.ClassDef) and not made.name.startswith("_"):
                places[made.name].append(str(path.relative_to(PACKAGE)))
    assert len(places) > 300
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_docs_name_files_that_exist() -> None:
    rooms = "domain|ports|services|adapters|agent|api|cli|client|mcp|processes|sim"
    named = re.compile(rf"`(?:comfy_fleet/)?((?:{rooms})/[\w/.-]+)`")
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found = {(page.name, path) for page in pages for path in named.findall(page.read_text())}
    assert len(found) > 40
    assert [(page, path) for page, path in sorted(found) if not (PACKAGE / path).exists()] == []


RETIRED = {
    *("Atlas", "Care", "Due", "Keeper", "Outbox", "Parking", "Pulse", "Reach", "Said", "Seat", "Seated"),
    *("Sightings", "Trash", "Verdict", "Wish", "Wishes", "atlas", "bust", "insist", "outbox", "seats"),
    *("strike", "trash", "wish", "wishes"),
}
"""Words that said less than those of the glossary."""


def test_no_retired_word_names_anything() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = {"name", "id", "arg", "attr", "asname"} & set(node._fields)
            names = {getattr(node, field) for field in named} & RETIRED
            found |= {(str(path.relative_to(PACKAGE)), name) for name in names}
    assert found == set()
