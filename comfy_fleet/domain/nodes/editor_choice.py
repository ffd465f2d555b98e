"""Whose editor a person gets: which nodes may serve ComfyUI's editor, and which of them is asked first."""

from collections.abc import Iterable

from comfy_fleet.domain.graphs.object_info_union import version_order
from comfy_fleet.domain.nodes.node import NodeState


def may_serve(state: NodeState) -> bool:
    """Return whether a node may serve the editor, whether or not it answers now.

    A drained node may: the editor needs no GPU. A simulated one has none.
    """
    return not state.simulated and state.node.editor is not False


def editor_order(states: Iterable[NodeState], kept: str | None = None) -> list[NodeState]:
    """Return the nodes that may serve the editor and seem to answer, in the order in which they are asked.

    Those that somebody has named for it come first, then the newest ComfyUI, then the first name: the same
    order for everybody, for as long as the nodes are the same.

    Args:
        states: The fleet's nodes.
        kept: The node whose editor a person has already: it goes before all others.
    """
    able = [state for state in states if may_serve(state) and state.verdict != "down"]
    able.sort(key=lambda state: state.node.name)
    able.sort(key=lambda state: version_order(state.reading.comfyui), reverse=True)
    able.sort(key=lambda state: (state.node.name != kept, not state.node.editor, state.verdict == "new"))
    return able
