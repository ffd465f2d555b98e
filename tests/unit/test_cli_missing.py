"""The table of ``fleet workflow missing``: in 80 columns, in a pipe, and nothing that a terminal obeys."""

from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest

from comfy_fleet.cli.console import FleetConsole, table
from comfy_fleet.cli.missing import COLUMNS, row

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
URL = "https://huggingface.co/Comfy-Org/z_image_turbo/resolve/main/split_files/vae/ae.safetensors"
FILE: dict[str, Any] = {
    "kind": "file",
    "name": "ae.safetensors",
    "class_type": "VAELoader",
    "input": "vae_name",
    "package": "",
    "version": "",
    "url": URL,
    "folder": "vae",
    "asked": 12,
    "people": 3,
    "first_asked_at": "2026-01-31T11:00:00.000Z",
    "last_asked_at": "2026-01-31T11:59:00.000Z",
    "nodes_with": [],
    "nodes_without": ["gpu1", "gpu2"],
}
CLASS = {
    **FILE,
    "kind": "class",
    "name": "DWPreprocessor",
    "input": "",
    "package": "comfyui_controlnet_aux",
    "version": "1.1.0",
    "url": "",
    "folder": "",
    "asked": 1,
    "people": 1,
}


def printed(*parts: dict[str, Any], width: int | None) -> list[str]:
    console = FleetConsole()
    console.file = StringIO()
    if width is not None:
        console.width = width
    console.print(table(COLUMNS, [row(part, NOW) for part in parts]))
    return console.file.getvalue().splitlines()


def test_only_a_url_is_wider_than_a_terminal() -> None:
    lines = printed(FILE, CLASS, width=80)
    assert [line for line in lines if len(line) > 80 and URL not in line] == []
    assert URL in "\n".join(lines)
    assert any("comfyui_controlnet_aux 1.1.0" in line for line in lines)


def test_a_pipe_gets_one_line_for_each() -> None:
    lines = printed(FILE, CLASS, width=None)
    assert len(lines) == 3
    assert lines[1].split() == ["vae/ae.safetensors", "12", "by", "3", "1m", "none", "has", "it", URL]
    assert lines[2].split()[:2] == ["DWPreprocessor", "1"]


@pytest.mark.parametrize(
    ("having", "lacking", "words"),
    [
        ([], ["a"], "none has it"),
        (["a"], ["b"], "only a"),
        (["a", "b", "c", "d", "e"], ["f"], "only a, b, c and 2 more"),
        (["a"], [], "all have it"),
    ],
)
def test_who_has_it(having: list[str], lacking: list[str], words: str) -> None:
    assert row({**CLASS, "nodes_with": having, "nodes_without": lacking}, NOW)[3] == words


def test_a_hostile_name_obeys_nobody() -> None:
    lines = printed({**FILE, "name": "\x1b[2J[red]x\u202e\ny", "folder": ""}, width=80)
    assert "\x1b" not in "".join(lines)
    assert "[red]x" in "".join(lines)
