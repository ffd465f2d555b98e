"""Strategies: odd values, and sound ones of which a few places have been changed."""

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

ODD: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2**31, 2**53, -(2**63), 2**64 - 1, 2**64, 10**25, 0.5, -0.0, 1e308),
        *(float("inf"), float("-inf"), float("nan"), "", " ", "0", "1e999", "\0", "\n", "\ud800", "ß\u202e"),
        *("..", "../../etc/passwd", "C:\\x", "/etc/passwd", "a/b", "http://127.0.0.1:1/", "data:,", "%s{}"),
        *("x" * 300, "__class__", "prompt_id", [], {}, [[]], [None], ["1", 0], ["1", -1], {"": None}),
        {"__type": "core/ASSET", "info": {"id": "x"}},
        {"__value__": ["1", 0]},
    ]
)
SCALARS: st.SearchStrategy[Any] = (
    st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20) | st.booleans() | st.none()
)
JSON: st.SearchStrategy[Any] = st.recursive(
    ODD | SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_PLACE = st.integers(0, 2**16)
_DROP, _TWICE, _DEEP, _RENAME = "drop", "twice", "deep", "rename"
_CHANGES = st.lists(
    st.tuples(_PLACE, st.sampled_from([_DROP, _TWICE, _DEEP, _RENAME, "odd", "odd", "odd"]), ODD | JSON),
    max_size=5,
)
_BYTES = st.lists(
    st.tuples(
        _PLACE,
        st.integers(0, 12),
        st.sampled_from(
            [b"", b"\0", b"\xff" * 4, b"\x80\0\0\0", b'"', b"{", b"[" * 50, b"-1", b"9" * 30, b"\r\n"]
        )
        | st.binary(max_size=8),
    ),
    max_size=6,
)


def changed(corpus: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Draw one of some JSON values, with up to five changes."""
    return st.builds(_changed, st.sampled_from(corpus), _CHANGES)


def changed_bytes(corpus: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Draw one of some byte strings with up to six changes, or any bytes."""
    return st.builds(_spliced, st.sampled_from(corpus), _BYTES) | st.binary(max_size=100)


def changed_json(corpus: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """Draw JSON as bytes, changed as a value or as bytes."""
    texts = [written(value) for value in corpus]
    return changed(corpus).map(written) | changed_bytes(texts)


def written(value: Any) -> bytes:
    """Return JSON as Python writes it, with NaN and half characters."""
    return json.dumps(value).encode()


def _spliced(data: bytes, changes: Sequence[tuple[int, int, bytes]]) -> bytes:
    for place, gone, new in changes:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + gone :]
    return data


def _changed(value: Any, changes: Sequence[tuple[int, str, Any]]) -> Any:
    made = copy.deepcopy(value)
    for place, how, odd in changes:
        places = list(_places(made))
        if not places:
            return odd
        holder, key = places[place % len(places)]
        if how == _DROP:
            del holder[key]
        elif how == _TWICE and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif how == _DEEP:
            holder[key] = [holder[key]] if place % 2 else {"x": holder[key]}
        elif how == _RENAME and isinstance(holder, dict):
            holder[str(odd)[:80]] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(odd)
    return made


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, dict | list):
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            for key in keys:
                yield holder, key
                waiting.append(holder[key])
