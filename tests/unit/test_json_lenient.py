"""JSON from nodes: what the strict reader refuses, and what nobody can read."""

import math

import pytest

from comfy_fleet.adapters.comfyui.json_lenient import decode


@pytest.mark.parametrize("text", ['{"a": [1, "ä"]}', '{"a": [1, "ä"]}'.encode()])
def test_json_is_read(text: str | bytes) -> None:
    assert decode(text) == {"a": [1, "ä"]}


def test_a_node_may_send_what_json_lacks() -> None:
    assert math.isnan(decode('{"loss": NaN}')["loss"])
    assert decode(b"[Infinity]") == [math.inf]


def test_half_a_character_becomes_a_question_mark() -> None:
    assert decode('{"text": ["\\ud83d\\ude42 \\ud800"], "\\udcff": NaN}')["text"] == [
        "\N{SLIGHTLY SMILING FACE} ?"
    ]


@pytest.mark.parametrize("text", ["", "<html>", b"\xff\xfe", '{"a": 1'])
def test_what_is_no_json_is_none(text: str | bytes) -> None:
    assert decode(text) is None
