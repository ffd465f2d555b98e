"""JSON of few values that would take far more memory than it has bytes."""

import pytest

from comfy_fleet.adapters.comfyui.answers import AnswerLimits, decoded
from comfy_fleet.domain.errors import NodeFault

LIMITS = AnswerLimits(size=2**20, setting="FLEET_SOME_BYTES")
LONG = b"x" * (900 * 1024)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "' + LONG + b'", "b": "x"}',
        b'{"a": NaN, "b": "' + LONG[: 600 * 1024] + b'"}',
        '{"a": "ü'.encode() + LONG + b'"}',
        '{"a": "\N{CJK UNIFIED IDEOGRAPH-4E00}'.encode() + LONG[: 600 * 1024] + b'"}',
        '{"a": "\N{SLIGHTLY SMILING FACE}'.encode() + LONG[: 300 * 1024] + b'"}',
    ],
)
async def test_what_takes_little_more_than_its_bytes_is_read(body: bytes) -> None:
    assert await decoded(bytearray(body), LIMITS, what="/history")


@pytest.mark.parametrize(
    "body",
    [
        '{"a": "\N{SLIGHTLY SMILING FACE}'.encode() + LONG + b'"}',
        b'{"a": "\\ud83d\\ude42' + LONG + b'"}',
        b'{"a": "\\u4e00' + LONG + b'"}',
        b'{"b": NaN, "a": "' + LONG + b'"}',
        LONG + "\N{SLIGHTLY SMILING FACE}".encode(),
    ],
)
@pytest.mark.parametrize("what", ["/history", "/object_info"])
async def test_what_takes_several_times_as_much_is_the_nodes_fault(body: bytes, what: str) -> None:
    with pytest.raises(NodeFault, match=f"{what} came with .*FLEET_SOME_BYTES") as found:
        await decoded(bytearray(body), LIMITS, what=what)
    assert found.value.details["limit"] == "FLEET_SOME_BYTES"


async def test_many_short_names_may_hold_any_character() -> None:
    body = b'{"classes": [' + b", ".join([b'"\\ud83d\\ude42 Load", "Save"'] * 30_000) + b"]}"
    assert len(body) * 5 > LIMITS.size * 2
    assert len((await decoded(body, LIMITS, what="/object_info"))["classes"]) == 60_000
