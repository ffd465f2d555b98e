"""What is fuzzed: a target takes one value, and raises when something is wrong with what came of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st


class Wrong(Exception):
    """Something came out that must not; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader of foreign input.

    Attributes:
        name: As in ``scripts/fuzz --target``.
        group: The part of ``--only`` that it belongs to.
        cases: Draws one value.
        check: Reads it. Whatever it raises is a finding; refusals that are meant it catches itself.
        corpus: Sound inputs, if a value is plain bytes: where atheris is there, it starts from them.
    """

    name: str
    group: str
    cases: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    corpus: Sequence[bytes] = ()


def right(holds: object, what: str) -> None:
    """Raise Wrong unless something holds."""
    if not holds:
        raise Wrong(what)
