"""The words by which a person knows a job again in a list: the beginning of its prompt's text."""

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from comfy_fleet.domain.graphs.graph import Graph, is_link
from comfy_fleet.domain.graphs.workflow import ParameterType, Workflow
from comfy_fleet.domain.text import clip

MOST = 120
"""Characters of an excerpt."""
_LOOKED_AT = 2000  # most nodes of a graph that are looked at
_READ = 4 * MOST
_TEXTS = ("text", "prompt", "text_g", "t5xxl", "clip_l", "positive", "positive_prompt", "string", "value")


def of_job(graph: Graph, workflow: Workflow | None, values: Mapping[str, Any]) -> str:
    """Return a job's excerpt, one line of at most :data:`MOST` characters; empty if it has no text.

    Of a stored workflow it is the prompt, or the first text, among its parameters. Of any other graph it is
    the text that the first sampler's ``positive`` comes from, else the first text of a node.

    Args:
        graph: A checked graph.
        workflow: The stored workflow of which it was made.
        values: The parameters bound into it, by name.
    """
    if workflow is not None:
        texts = [one.name for one in workflow.parameters if one.type is ParameterType.STRING]
        for name in (workflow.name_for("prompt"), *texts, "prompt"):
            if found := _line(values.get(name)):
                return found
    return of_graph(graph)


def of_graph(graph: Graph) -> str:
    """Return a graph's excerpt; see :func:`of_job`."""
    starts = (
        node["inputs"]["positive"][0]
        for node in islice(graph.values(), _LOOKED_AT)
        if is_link(node["inputs"].get("positive"))
    )
    if (start := next(starts, None)) is not None and (found := _first(graph, _before(graph, start))):
        return found
    return _first(graph, islice(graph, _LOOKED_AT))


def _before(graph: Graph, start: str) -> Iterable[str]:
    """Yield a node and those that it reads, the nearest first."""
    waiting, seen = deque([start]), {start}
    for _ in range(_LOOKED_AT):
        if not waiting:
            return
        node_id = waiting.popleft()
        if node_id not in graph:
            continue
        yield node_id
        for value in graph[node_id]["inputs"].values():
            if is_link(value) and value[0] not in seen:
                seen.add(value[0])
                waiting.append(value[0])


def _first(graph: Graph, node_ids: Iterable[str]) -> str:
    for node_id in node_ids:
        inputs = graph[node_id]["inputs"]
        for name in _TEXTS:
            if found := _line(inputs.get(name)):
                return found
    return ""


def _line(value: object) -> str:
    return clip(" ".join(value[:_READ].split()), MOST) if isinstance(value, str) else ""
