"""How many values a text of JSON has, before it is parsed."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.api.body import has_more_values

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('ab,[{\\"\n', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(',[{\\"', max_size=3), inner, max_size=4)
    ),
    max_leaves=30,
)


def values(value: Any) -> int:
    if isinstance(value, list):
        return 1 + sum(map(values, value))
    return 1 + sum(map(values, value.values())) if isinstance(value, dict) else 1


@given(VALUES, st.booleans())
def test_exactly_the_texts_beyond_the_limit_are_refused(value: Any, indented: bool) -> None:
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2 if indented else 0)
    count = values(value)
    assert not has_more_values(text, count)
    assert count == 1 or has_more_values(text, count - 2)


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"0," * 1000 + b"0]",
        b"[" + b"[]," * 1000 + b"0]",
        b"[" * 1002 + b"]" * 1002,
        b"{" + b",".join(b'"%d":{}' % number for number in range(1001)) + b"}",
        b"[" + b'"",' * 3000 + b'""]',
        b'["' + b'\\"' * 3000 + b'",' + b"0," * 1000 + b"0]",
        b'["' + b"\\\\" * 3001 + b'",' + b"0," * 1000 + b"0]",
    ],
)
def test_more_values_are_seen_whatever_they_are(text: bytes) -> None:
    orjson.loads(text)
    assert has_more_values(text, 1000)


@pytest.mark.parametrize("inside", [b",", b"[", b"{", b'\\"', b"\\\\", b'\\",', b"\\\\,"])
def test_what_stands_in_a_text_does_not_count(inside: bytes) -> None:
    text = b'{"a":"' + inside * 100_000 + b'","b":[1,2]}'
    orjson.loads(text)
    assert not has_more_values(text, 10)
