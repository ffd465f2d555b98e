"""Parameters that a graph declares in its nodes' titles.

A title that consists only of such words declares a parameter with each:

- ``$NAME.INPUT`` binds the parameter NAME to that input of the node.
- ``$NAME`` binds it to the input called NAME; else to the one that is usual for NAME (``seed`` →
  ``noise_seed``, ``prompt`` → ``text``); else to the node's only input that is not a link.

So ``$width $height`` on an ``EmptyLatentImage`` declares two. The same NAME at several places is one
parameter with several targets: ``$size.width $size.height`` makes squares. Type and default come from the
value that the export holds.
"""

import re
from typing import Any

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.graphs.file_access import KNOWN, Use
from comfy_fleet.domain.graphs.graph import Graph, is_link
from comfy_fleet.domain.graphs.selector import check_target, title_of
from comfy_fleet.domain.graphs.workflow import Parameter, ParameterTarget, ParameterType

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_WORD = re.compile(r"\$([A-Za-z0-9_-]+)(?:\.([\w.-]+))?")
_USUAL = {
    "seed": ("noise_seed",),
    "prompt": ("text", "prompt", "value", "string"),
    "negative": ("text", "prompt", "value", "string"),
    "negative_prompt": ("text", "prompt", "value", "string"),
    "image": ("image",),
    "video": ("file", "video"),
}
_SEEDS = frozenset({"seed", "noise_seed"})


def declared(graph: Graph) -> tuple[Parameter, ...]:
    """Return the parameters that titles declare, in the graph's order.

    Raises:
        ConfigError: A word can't be read, names no input or more than one, or one parameter has targets of
            different types. ``details["problems"]`` lists all of them.
    """
    found: dict[str, list[tuple[ParameterTarget, ParameterType, Any]]] = {}
    problems: list[str] = []
    for node_id, node in graph.items():
        title = title_of(node).strip()
        if not title.startswith("$"):
            continue
        for word in title.split():
            try:
                name, target = _target(graph, node_id, word)
            except ConfigError as error:
                problems.append(f"title {title!r} of node {node_id}: {error}")
                continue
            value = node["inputs"][target.input]
            found.setdefault(name, []).append(
                (target, type_of(node["class_type"], target.input, value), value)
            )
    for name, places in found.items():
        if len({type_ for _, type_, _ in places}) > 1:
            shown = ", ".join(f"node {t.node_id} {t.input} is a {type_}" for t, type_, _ in places)
            problems.append(f"parameter {name!r} is declared with different types: {shown}")
    if problems:
        raise ConfigError("; ".join(problems), details={"problems": problems})
    return tuple(
        inferred(name, tuple(target for target, _, _ in places), places[0][1], places[0][2])
        for name, places in found.items()
    )


def type_of(class_type: str, input_: str, value: object) -> ParameterType:
    """Return the parameter type that fits an exported value."""
    if KNOWN.get(class_type, {}).get(input_) is Use.FILE:
        return ParameterType.IMAGE if class_type.startswith("LoadImage") else ParameterType.ASSET
    if isinstance(value, bool):
        return ParameterType.BOOLEAN
    if isinstance(value, int):
        return ParameterType.SEED if input_ in _SEEDS else ParameterType.INTEGER
    if isinstance(value, float):
        return ParameterType.NUMBER
    return ParameterType.STRING


def inferred(name: str, targets: tuple[ParameterTarget, ...], type_: ParameterType, value: Any) -> Parameter:
    """Return a parameter with nothing but what the graph says."""
    is_file = type_ in (ParameterType.IMAGE, ParameterType.ASSET)
    return Parameter(
        name=name,
        type=type_,
        targets=targets,
        # A file on the artist's machine, or the seed of the last try, is not a useful default.
        default=None if is_file or type_ is ParameterType.SEED else value,
        required=is_file,
        accept=("image/*",) if type_ is ParameterType.IMAGE else (),
    )


def _target(graph: Graph, node_id: str, word: str) -> tuple[str, ParameterTarget]:
    match = _WORD.fullmatch(word)
    if not match or not NAME.fullmatch(match[1]):
        raise ConfigError(f"{word!r} must look like $name or $name.input, the name in a-z 0-9 _")
    name, wanted = match[1], match[2]
    inputs = graph[node_id]["inputs"]
    values = [input_ for input_, value in inputs.items() if not is_link(value)]
    if wanted is None:
        usual = [input_ for input_ in (name, *_USUAL.get(name, ())) if input_ in values]
        wanted = usual[0] if usual else values[0] if len(values) == 1 else None
    if wanted is None:
        raise ConfigError(
            f"{word} could mean any of {', '.join(values) or 'no input'}; name the input: {word}.INPUT"
        )
    target = check_target(graph, ParameterTarget(node_id=node_id, input=wanted))
    if not isinstance(inputs[wanted], str | int | float):
        raise ConfigError(f"{word}: input {wanted!r} holds neither text nor a number")
    return name, target
