"""JSON of few values that would take far more memory than it has bytes."""

from collections.abc import AsyncIterator

import pytest

from comfy_fleet.adapters.comfyui.answer_limits import AnswerLimits, decoded, read_body
from comfy_fleet.domain.errors import NodeFault

LIMITS = AnswerLimits(size=2**20, setting="FLEET_SOME_BYTES")
LONG = b"x" * (900 * 1024)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "' + LONG[: 750 * 1024] + b'", "b": "x"}',
        b'{"a": NaN, "b": "' + LONG[: 750 * 1024] + b'"}',
        '{"a": "ü'.encode() + LONG[: 550 * 1024] + b'"}',
        '{"a": "\N{CJK UNIFIED IDEOGRAPH-4E00}'.encode() + LONG[: 550 * 1024] + b'"}',
        '{"a": "\N{SLIGHTLY SMILING FACE}'.encode() + LONG[: 380 * 1024] + b'"}',
        b'{"a": NaN, "b": "\\ud83d\\ude42' + LONG[: 250 * 1024] + b'"}',
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
@pytest.mark.parametrize("what", ["/history", "/object_info for class 'A'"])
async def test_what_takes_several_times_as_much_is_the_nodes_fault(body: bytes, what: str) -> None:
    with pytest.raises(NodeFault, match=f"{what} came with .*FLEET_SOME_BYTES") as found:
        await decoded(bytearray(body), LIMITS, what=what)
    assert found.value.details["limit"] == "FLEET_SOME_BYTES"


async def test_the_cost_of_values_is_counted_with_that_of_texts() -> None:
    texts, values = LONG[: 400 * 1024], b"[]," * 7_500
    assert await decoded(b'["' + texts + b'"]', LIMITS, what="/history")
    assert await decoded(b"[" + values + b"[]]", LIMITS, what="/history")
    with pytest.raises(NodeFault, match=r"/history came with .*of values .*FLEET_SOME_BYTES"):
        await decoded(b"[" + values * 3 + b"[]]", LIMITS, what="/history")
    with pytest.raises(NodeFault, match=r"/history came with .*of values .*FLEET_SOME_BYTES"):
        await decoded(b"[" + values + b'"' + texts + b'"]', LIMITS, what="/history")


@pytest.mark.parametrize("what", ["/system_stats", "/node_replacements", "/object_info/PreviewImage"])
async def test_little_is_read_of_what_is_always_small(what: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 65536

    with pytest.raises(NodeFault, match=f"{what} answered with more than 1 MiB$"):
        await read_body({}, chunks(), AnswerLimits(), what=what)
    assert len(await read_body({}, chunks(), AnswerLimits(), what="/queue")) == 100 * 65536


async def test_long_texts_that_nobody_reads_cost_nothing() -> None:
    text = '"' + "\N{SLIGHTLY SMILING FACE}".join(["x" * 70_000, '\\\\\\"' * 200_000, "x" * 300_000]) + '"'
    body = f'{{"rows": [[1, "a\\"b", {text}, {text[:1000]}", ["{{"]]]}}'.encode()
    with pytest.raises(NodeFault):
        await decoded(body, LIMITS, what="/queue")
    found = await decoded(body, LIMITS, what="/queue", brief=True)
    assert found == {"rows": [[1, 'a"b', "", "x" * 999, ["{"]]]}
