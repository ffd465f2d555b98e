"""Choose a node of a graph by title or by class, so that an edit that renumbers the nodes breaks nothing."""

from collections.abc import Sequence

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.graphs.graph import Graph, is_link
from comfy_fleet.domain.graphs.workflow import Bypass, ParameterTarget, TargetForm


def title_of(node: object) -> str:
    """Return the title that the editor shows for a node; empty where the export has none."""
    meta = node.get("_meta") if isinstance(node, dict) else None
    title = meta.get("title") if isinstance(meta, dict) else None
    return title if isinstance(title, str) else ""


def select(graph: Graph, *, title: str | None = None, class_type: str | None = None) -> str:
    """Return the id of the one node that has this title, this class, or both.

    Raises:
        ConfigError: None does, or several do; ``details`` lists the candidates as ``{node_id, class,
            title}``.
    """
    if title is None and class_type is None:
        raise ConfigError("a selector needs a title or a class")
    found = [
        node_id
        for node_id, node in graph.items()
        if title in (None, title_of(node)) and class_type in (None, node["class_type"])
    ]
    wanted = " and ".join(
        f"{what} {value!r}" for what, value in (("title", title), ("class", class_type)) if value is not None
    )
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"{len(found)} nodes have {wanted}: {_listing(graph, found)}; give the right one a unique title",
            details={"candidates": _candidates(graph, found)},
        )
    raise ConfigError(
        f"no node has {wanted}; the graph has {_listing(graph, list(graph))}",
        details={"candidates": _candidates(graph, list(graph))},
    )


def target(
    graph: Graph,
    *,
    input_: str,
    title: str | None = None,
    class_type: str | None = None,
    form: TargetForm = TargetForm.VALUE,
    replace_link: bool = False,
) -> ParameterTarget:
    """Return the input of the one node that is chosen.

    Args:
        graph: A checked graph.
        input_: The input's name; it must be there, because exports hold every input of a node.
        title: See :func:`select`.
        class_type: See :func:`select`.
        form: Which part of the value goes in.
        replace_link: Whether a value may take the place of a link.

    Raises:
        ConfigError: No such node or input, several nodes, or the input is fed by another node.
    """
    node_id = select(graph, title=title, class_type=class_type)
    return check_target(
        graph, ParameterTarget(node_id=node_id, input=input_, form=form), replace_link=replace_link
    )


def check_target(graph: Graph, target: ParameterTarget, *, replace_link: bool = False) -> ParameterTarget:
    """Return ``target`` if its input exists and holds a value.

    Raises:
        ConfigError: It does not exist, or is a link.
    """
    node = graph[target.node_id]
    inputs = node["inputs"]
    name = f"node {target.node_id} ({node['class_type']})"
    if target.input not in inputs:
        raise ConfigError(
            f"{name} has no input {target.input!r}; it has {', '.join(inputs) or 'none'}",
            details={"candidates": sorted(inputs)},
        )
    if is_link(inputs[target.input]) and not replace_link:
        source = inputs[target.input][0]
        raise ConfigError(
            f"{name}: {target.input!r} comes from node {source} ({graph[source]['class_type']}); "
            "set that node's input instead",
            details={"candidates": [source]},
        )
    return target


def bypass(
    graph: Graph, *, through: Sequence[str], title: str | None = None, class_type: str | None = None
) -> Bypass:
    """Return how to bypass the one node that is chosen.

    Args:
        graph: A checked graph.
        through: For each output slot the input that replaces it.
        title: See :func:`select`.
        class_type: See :func:`select`.

    Raises:
        ConfigError: No such node, several of them, an input that is not a link, or a slot without a
            replacement.
    """
    node_id = select(graph, title=title, class_type=class_type)
    inputs = graph[node_id]["inputs"]
    name = f"node {node_id} ({graph[node_id]['class_type']})"
    for input_ in through:
        if not is_link(inputs.get(input_)):
            raise ConfigError(f"{name} can't be bypassed through {input_!r}: that is not a link")
    for reader, node in graph.items():
        for input_, value in node["inputs"].items():
            if is_link(value) and value[0] == node_id and value[1] >= len(through):
                raise ConfigError(
                    f"{name} can't be bypassed: node {reader} reads its output {value[1]} ({input_}), "
                    "and 'through' names no input for that"
                )
    return Bypass(node_id=node_id, through=tuple(through))


def _candidates(graph: Graph, node_ids: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"node_id": node_id, "class": graph[node_id]["class_type"], "title": title_of(graph[node_id])}
        for node_id in node_ids[:50]
    ]


def _listing(graph: Graph, node_ids: Sequence[str]) -> str:
    shown = [
        f"{node_id} {graph[node_id]['class_type']}"
        + (f" {title_of(graph[node_id])!r}" if title_of(graph[node_id]) else "")
        for node_id in node_ids[:12]
    ]
    more = len(node_ids) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
