"""Every list of choices in a class of ``/object_info``, wherever it stands in it, so that it can be changed.

A list is ``[["a", "b"], {...}]`` or ``["COMBO", {"options": ["a", "b"]}]``; ``COMFY_DYNAMICCOMBO_V3`` lists
*branches*, ``{"key": "a", "inputs": {...}}``, with lists inside. Groups hold lists, too, and an output's type
may be one.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.graphs import file_access
from comfy_fleet.domain.graphs.file_access import Use, Uses
from comfy_fleet.domain.graphs.inputs import MAX_NESTING, alike


@dataclass(frozen=True)
class ChoiceList:
    """A list of choices in a class.

    Attributes:
        path: Where it is: names of inputs, and keys of branches.
        upload: Whether it lists uploaded files.
        flags: The options of its input, such as ``image_upload``; empty for an output.
    """

    path: tuple[object, ...]
    upload: bool
    flags: dict[str, Any]
    _holder: Any
    _at: Any
    _declared: list[Any] | None = None

    @property
    def choices(self) -> list[Any]:
        """Its choices, which must not be changed in place."""
        found: list[Any] = self._holder[self._at]
        return found

    def replace(self, choices: list[Any]) -> None:
        """Put other choices into the class."""
        self._holder[self._at] = choices

    def explain(self, text: str) -> None:
        """Add a paragraph to the tooltip of its input; an output has none."""
        if self._declared is None:
            return
        if len(self._declared) == 1:
            self._declared.append({})
        options = self._declared[1]
        if isinstance(options, dict):
            given = options.get("tooltip")
            options["tooltip"] = f"{given}\n\n{text}" if isinstance(given, str) and given else text


def choice_lists(name: str, body: Any) -> Iterator[ChoiceList]:
    """Walk the lists of a class; those inside a replaced one are walked as they are then.

    Args:
        name: The class.
        body: Its description, as JSON is read.

    Raises:
        ValueError: It declares more inputs than any real class does.
    """
    if not isinstance(body, dict):
        return
    yield from _of_group(body.get("input"), ("input",), "", file_access.uses(name, body), 0)
    for part in ("output", "output_name"):
        types = body.get(part)
        for index, kind in enumerate(types) if isinstance(types, list) else ():
            if isinstance(kind, list):
                yield ChoiceList((part, index), upload=False, flags={}, _holder=types, _at=index)


def lists_uploads(name: str, body: bytes) -> bool:
    """Return whether a class, given as JSON, lists uploaded files."""
    try:
        return any(found.upload for found in choice_lists(name, json.loads(body)))
    except (ValueError, RecursionError):
        return False


def choice_keys(choices: Sequence[Any]) -> Sequence[object]:
    """Return for each choice what is equal for equal choices.

    A file's name has one meaning with either kind of slash.
    """
    if set(map(type, choices)) <= {str}:
        together = "".join(choices)
        if "\\" not in together and together.isascii():  # nearly always: nothing has another spelling
            return choices
    return [_key(choice) for choice in choices]


def _key(value: Any) -> object:
    if isinstance(value, str):
        return alike(value)
    if is_branch(value):
        return ("branch", str(value["key"]))
    return ("json", json.dumps(value, sort_keys=True))


def is_branch(value: Any) -> bool:
    """Return whether a choice brings inputs along."""
    return isinstance(value, dict) and "key" in value and isinstance(value.get("inputs"), dict)


def _of_group(
    group: Any, path: tuple[object, ...], prefix: str, uses: Uses, depth: int
) -> Iterator[ChoiceList]:
    if depth > MAX_NESTING or not isinstance(group, dict):
        return
    for part in ("required", "optional"):
        given = group.get(part)
        for name, declared in given.items() if isinstance(given, dict) else ():
            if isinstance(declared, list) and declared:
                yield from _of_input(declared, (*path, name), prefix + name, uses, depth)


def _of_input(
    declared: list[Any], path: tuple[object, ...], name: str, uses: Uses, depth: int
) -> Iterator[ChoiceList]:
    extra = declared[1] if len(declared) > 1 and isinstance(declared[1], dict) else {}
    upload = file_access.use_of(uses, name) is Use.FILE
    if isinstance(declared[0], list):
        yield ChoiceList(path, upload=upload, flags=extra, _holder=declared, _at=0, _declared=declared)
    elif isinstance(extra.get("options"), list):
        yield ChoiceList(path, upload=upload, flags=extra, _holder=extra, _at="options", _declared=declared)
        branches = extra["options"] if is_branch(next(iter(extra["options"]), None)) else ()
        for option in branches:
            if is_branch(option):
                yield from _of_group(
                    option["inputs"], (*path, str(option["key"])), f"{name}.", uses, depth + 1
                )
    yield from _of_group(extra.get("inputs"), (*path, "."), f"{name}.", uses, depth + 1)
    template = extra.get("template")
    if isinstance(template, dict) and isinstance(template.get("input"), dict):
        for given in template["input"].values():
            for member, inner in given.items() if isinstance(given, dict) else ():
                if isinstance(inner, list) and inner:
                    yield from _of_input(inner, (*path, "..", member), f"{name}.", uses, depth + 1)
