"""One ``/object_info`` for several nodes: the answer of a ComfyUI that has all that they have together.

The newest ComfyUI's description of a class counts, with the choices of all others added to its lists.
Descriptions and tooltips say where something is, if it is not everywhere. A class that all describe alike
stays as it is, byte for byte.
"""

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias

from comfy_fleet.domain.graphs.choice_lists import ChoiceList, choice_keys, choice_lists, is_branch
from comfy_fleet.domain.graphs.file_access import has_extension

MAX_NODES_NAMED = 8
"""Most nodes that a description names; of further ones it tells the number."""
MAX_CHOICES_NAMED = 12
"""Most choices of which a tooltip says where they are."""
MAX_CHOICES = 100_000
"""Most choices that the lists of one class get from other nodes: hostile nodes may list any number."""
MAX_BYTES = 64 * 1024 * 1024
"""Most bytes of all classes together; classes beyond are left out."""

Loads: TypeAlias = Callable[[bytes], Any]

_VERSION = re.compile(r"(?:sim-)?v?(\d{1,9}(?:\.\d{1,9}){0,5})")
_CONSTANTS = {"Infinity": sys.float_info.max, "-Infinity": -sys.float_info.max}  # and NaN becomes null
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class AlikeNodes:
    """Nodes that give the same answer.

    Attributes:
        digest: The answer's content hash.
        comfyui: The version of ComfyUI; the newest, if they differ.
        nodes: Their names.
    """

    digest: str
    comfyui: str
    nodes: tuple[str, ...]


def version_order(comfyui: str) -> tuple[int, ...]:
    """Return what orders versions of ComfyUI; a version that can't be read comes before all others."""
    found = _VERSION.match(comfyui)
    numbers = [int(part) for part in found[1].split(".")] if found else []
    while numbers and not numbers[-1]:  # 0.33 and 0.33.0 are the same
        numbers.pop()
    return tuple(numbers)


def ranked(answers: Iterable[AlikeNodes]) -> list[AlikeNodes]:
    """Return answers in the order that :class:`ObjectInfoUnion` needs, whatever it is here."""
    return sorted(
        answers,
        key=lambda answer: (version_order(answer.comfyui), len(answer.nodes), answer.digest),
        reverse=True,
    )


class ObjectInfoUnion:
    """Puts answers together one by one, so that never more than one of them has to be in memory.

    Args:
        answers: Those that will come, as :func:`ranked` orders them.
        loads: Reads JSON, and raises ValueError; of hundreds of nodes it reads hundreds of megabytes.
    """

    def __init__(self, answers: Sequence[AlikeNodes], *, loads: Loads = json.loads) -> None:
        self._answers = answers
        self._loads = loads
        self._classes: dict[str, _Class] = {}
        self._came = 0
        self._size = 0

    def add(self, number: int, classes: Mapping[str, bytes]) -> None:
        """Add an answer.

        Args:
            number: Its place among the answers; higher than that of those before.
            classes: Its classes as JSON, see :func:`comfy_fleet.domain.graphs.object_info.unpack`.
        """
        bit = 1 << number
        self._came |= bit
        for name, told in classes.items():
            known = self._classes.get(name)
            if known is not None:
                known.add(told, bit, self._loads)
                continue
            self._size += len(told) + len(name)
            if self._size <= MAX_BYTES:
                self._classes[name] = _Class(name, _strict(told), bit)

    def end(self) -> dict[str, bytes]:
        """Return the classes as JSON."""
        places = _Places(self._answers, self._came)
        return {name: found.merged(places) for name, found in self._classes.items()}


def union(answers: Mapping[AlikeNodes, Mapping[str, bytes]]) -> dict[str, bytes]:
    """Return what answers make together; their order does not matter."""
    order = ranked(answers)
    result = ObjectInfoUnion(order)
    for number, answer in enumerate(order):
        result.add(number, answers[answer])
    return result.end()


# ----------------------------------------------------------------------------------------------------


class _Places:
    """Says in words on which nodes something is. Sets of answers are numbers, a bit for each."""

    def __init__(self, answers: Sequence[AlikeNodes], came: int) -> None:
        self.all = came
        self._nodes = [answer.nodes for answer in answers]

    def words(self, have: int) -> str:
        """Return ``only on a, b`` or ``not on c``, whichever is shorter."""
        on, off = self._named(have), self._named(self.all & ~have)
        return f"only on {_listed(on)}" if len(on) <= len(off) else f"not on {_listed(off)}"

    def _named(self, answers: int) -> list[str]:
        return sorted(
            name for number, names in enumerate(self._nodes) if answers >> number & 1 for name in names
        )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NODES_NAMED
    return ", ".join(names[:MAX_NODES_NAMED]) + (f" and {more} more" if more > 0 else "")


class _List:
    """One list of a class, over all variants of the class. Most choices are the same in all of them.

    Attributes:
        first: The first list that is not empty.
        values: Every choice by what is equal for equal choices, as it is first spelled.
        some: The choices that some variants lack, and the variants that have them.
    """

    def __init__(self) -> None:
        self.first: Sequence[Any] = ()
        self.values: dict[object, Any] = {}
        self.some: dict[object, int] = {}
        self._all: set[object] = set()
        self._variants = 0

    def add(self, choices: Sequence[Any], variant: int, room: int) -> int:
        """Add a variant's list, with at most ``room`` new choices; return how many of these came."""
        if self.first and choices and _brings(self.first) != _brings(choices):
            return 0  # branches and plain choices are no one list
        self.first = self.first or choices
        listed = choice_keys(choices)
        keys = set(listed)
        gone = self._all - keys
        self._all -= gone
        self.some.update(dict.fromkeys(gone, self._variants))
        for key in self.some.keys() & keys:
            self.some[key] |= variant
        new = keys - self.values.keys()
        before = len(self.values)
        for key, value in zip(listed, choices, strict=True) if new else ():
            if key in new and key not in self.values and len(self.values) - before < room:
                self.values[key] = value
                if self._variants:
                    self.some[key] = variant
                else:
                    self._all.add(key)
        self._variants |= variant
        return len(self.values) - before


class _Class:
    """A class, and how the nodes differ about it.

    A *variant* is one description of it; a set of variants is a number, too.
    """

    def __init__(self, name: str, body: bytes, answers: int) -> None:
        self._name = name
        self._body = body
        self._hashes = {_hash(body): 0}
        self._answers = [answers]  # by variant
        self._lists: dict[object, _List] = {}  # filled once there is a second variant
        self._room = MAX_CHOICES

    def add(self, told: bytes, answer: int, loads: Loads) -> None:
        """Add what another answer says."""
        if told == self._body:
            self._answers[0] |= answer
            return
        body = _strict(told)
        if body == self._body:
            self._answers[0] |= answer
            return
        variant = self._hashes.setdefault(_hash(body), len(self._answers))
        if variant < len(self._answers):
            self._answers[variant] |= answer
            return
        self._answers.append(answer)
        if variant == 1:
            self._read(self._body, 0, loads)
        self._read(body, variant, loads)

    def _read(self, body: bytes, variant: int, loads: Loads) -> None:
        for found in _lists_of(self._name, body, loads):
            if not found.upload:
                known = self._lists.setdefault(found.path, _List())
                self._room -= known.add(found.choices, 1 << variant, self._room)

    def merged(self, places: _Places) -> bytes:
        """Return it as JSON."""
        have = 0
        for answers in self._answers:
            have |= answers
        where = "" if have == places.all else places.words(have)
        if not where and not self._lists:
            return self._body
        try:
            return self._rewritten(places, where)
        except (ValueError, RecursionError):
            return self._body  # a class that a node describes in an odd way stays as it is

    def _rewritten(self, places: _Places, where: str) -> bytes:
        body = json.loads(self._body)
        if not isinstance(body, dict):
            return self._body
        changed = False
        if where:
            given = body.get("description")
            text = given if isinstance(given, str) else ""
            body["description"] = f"{text}\n\n{_sentence(where)}" if text else _sentence(where)
            changed = True
        for found in choice_lists(self._name, body) if self._lists else ():
            known = self._lists.get(found.path)
            if known is None or found.upload:
                continue
            listed = found.choices or known.first
            have = set(choice_keys(listed))
            added = [value for key, value in known.values.items() if key not in have]
            if added or len(listed) != len(found.choices):
                found.replace(_with(listed, added))
                changed = True
            if known.some:
                found.explain(self._told(known, places))
                changed = True
        return _ENCODER.encode(body).encode() if changed else self._body

    def _told(self, known: _List, places: _Places) -> str:
        """Return in words where the choices are that some nodes lack."""
        partly = (key for key in known.values if key in known.some)
        listed = [
            f"{_label(known.values[key])} ({places.words(self._where(known.some[key]))})"
            for key in itertools.islice(partly, MAX_CHOICES_NAMED)
        ]
        if (more := len(known.some) - MAX_CHOICES_NAMED) > 0:
            listed.append(f"and {more} more")
        return f"Not everywhere: {'; '.join(listed)}."

    def _where(self, variants: int) -> int:
        answers = 0
        for variant, having in enumerate(self._answers):
            if variants >> variant & 1:
                answers |= having
        return answers


def _lists_of(name: str, body: bytes, loads: Loads) -> Iterator[ChoiceList]:
    try:
        yield from choice_lists(name, loads(body))
    except (ValueError, RecursionError):
        return


def _brings(choices: Sequence[Any]) -> bool:
    return bool(choices) and is_branch(choices[0])


def _strict(body: bytes) -> bytes:
    """Return JSON that every reader takes: Python writes numbers into it that JSON does not have."""
    if b"NaN" not in body and b"Infinity" not in body:
        return body
    try:
        return _ENCODER.encode(json.loads(body, parse_constant=_CONSTANTS.get)).encode()
    except (ValueError, RecursionError):
        return body


def _hash(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _label(value: Any) -> str:
    text = value.get("key") if isinstance(value, dict) else value
    return str(text)[:80]


def _with(given: Sequence[Any], added: Sequence[Any]) -> list[Any]:
    """Return a list with further choices, in order where it has one.

    ComfyUI sorts the names of files, but other choices may stand before and behind them (``None``,
    ``pixel_space``).
    """
    files = [value for value in added if has_extension(value)]
    others = [value for value in added if not has_extension(value)]
    result = list(given)
    for some, are_files in ((files, True), (others, False)):
        begin, end = _sorted_part(result, files=are_files)
        if begin == end or not all(isinstance(value, str) for value in some):
            result += sorted(some) if are_files else some
        elif some:
            result[begin:end] = sorted([*result[begin:end], *some])
    return result


def _sorted_part(given: Sequence[Any], *, files: bool) -> tuple[int, int]:
    """Return where the longest sorted part of a list begins and ends.

    Args:
        given: The list.
        files: Whether only files' names count; else the whole list must be sorted texts.
    """
    best, begin = (0, 0), 0
    for index, value in enumerate(given):
        fits = isinstance(value, str) and (not files or has_extension(value))
        if not fits or (index > begin and given[index - 1] > value):
            if not files:
                return (0, 0)
            begin = index if fits else index + 1
        if index + 1 - begin > best[1] - best[0]:
            best = begin, index + 1
    return best
