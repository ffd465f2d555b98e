"""Which traceparent headers are taken; the cases are those of W3C Trace Context."""

import pytest

from comfy_fleet.domain.jobs.trace_context import read_traceparent

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize("flags", ["00", "01", "03", "ff"])
def test_a_sound_one_is_taken_as_it_is(flags: str) -> None:
    assert read_traceparent([f"00-{TRACE}-{PARENT}-{flags}"]) == f"00-{TRACE}-{PARENT}-{flags}"
    assert read_traceparent([f" {GOOD}\t"]) == GOOD


@pytest.mark.parametrize("value", [f"cc-{TRACE}-{PARENT}-ff", f"01-{TRACE}-{PARENT}-03-what-the-future-will"])
def test_a_later_version_is_read_as_far_as_it_is_known(value: str) -> None:
    assert read_traceparent([value]) == GOOD


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        [GOOD, GOOD],
        [f"ff-{TRACE}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-01-more"],
        [f"00-{TRACE}-{PARENT}-01-"],
        [f"01-{TRACE}-{PARENT}-01x"],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [GOOD.upper()],
        [f"00-{TRACE[1:]}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}x-01"],
        [f"00-{TRACE}-{PARENT}-1"],
        [f"00-{TRACE}-{PARENT}-0١"],
        [f"0-{TRACE}-{PARENT}-01"],
        [GOOD + "\n"],
        [f"01-{TRACE}-{PARENT}-01-" + "x" * 10_000],
        ["null"],
    ],
)
def test_anything_else_is_none(headers: list[str]) -> None:
    assert read_traceparent(headers) is None
