"""What a ``fleet up`` goes on with if its command line names no nodes: those that the fleet had before."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.cli.exits import Fail
from comfy_fleet.cli.up.nodes import MANAGED, MANAGER, NodePlan
from comfy_fleet.cli.up.plan import Plan, UpOptions
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.domain.text import natural

_SHOWN = 4
_HOW = "simulated ones start only with --nodes N"


def facts(planned: Plan, options: UpOptions) -> dict[str, Any]:
    """Return what the data folder's note keeps for :func:`go_on`.

    Nodes that were given by URL are not in it: Redis has them, with their passwords encrypted.
    """
    home = options.comfyui
    return {
        "node_ports": list(planned.node_ports),
        "sim_args": list(options.sim_args) if planned.node_ports else [],
        "comfyui": home
        and {
            "home": str(home.home),
            "python": home.python,
            "args": list(home.args),
            "custom_nodes": home.custom_nodes,
            "nodes": options.nodes,
        },
    }


def go_on(options: UpOptions, note: Mapping[str, Any]) -> UpOptions:
    """Return options that name the nodes of the last start, unless the given ones name any.

    Args:
        options: What the operator asked for.
        note: The note of the last start; empty at the first one in a folder.

    Raises:
        Fail: The ComfyUI of the last start is not there any more.
    """
    if options.nodes is not None or options.running or options.comfyui or options.sim_args:
        return options
    if isinstance(last := note.get("comfyui"), dict):
        try:
            home = Checkout.find(
                Path(last["home"]),
                python=last["python"],
                args=last["args"],
                custom_nodes=last["custom_nodes"],
            )
        except BadInput as error:
            raise Fail(
                f"the last start was with --comfyui {last['home']}, but {error}",
                hint="name the fleet's nodes: --comfyui DIR, --node URL; --nodes 0 starts none",
            ) from error
        return replace(options, goes_on=True, comfyui=home, nodes=last["nodes"])
    if isinstance(ports := note.get("node_ports"), list):
        return replace(options, goes_on=True, nodes=len(ports), sim_args=note.get("sim_args", []))
    return replace(options, goes_on=True)


def with_registered(planned: Plan, known: Sequence[Node]) -> Plan:
    """Return the plan of a ``fleet up`` that goes on, as the registered nodes want it.

    If any is no simulated one, none of those is started, as they would take its jobs. The nodes that the last
    start was given by URL are served again.

    Args:
        planned: From options of :func:`go_on`.
        known: The registered nodes.
    """
    real = [node for node in known if not node.simulated]
    if not real:
        return planned
    ours = [node for node in real if node.labels.get(MANAGED) == MANAGER]
    by_url = tuple(node for node in ours if node.agent is None)
    nodes = planned.nodes if planned.nodes.joining else NodePlan()
    # Where nothing tells which ComfyUI they were, as in a restored folder, somebody has to name it.
    idle = () if nodes.joining else tuple(node.name for node in ours if node.agent is not None)
    return replace(planned, nodes=nodes + NodePlan(nodes=by_url, idle=idle), node_ports=())


def in_words(planned: Plan, options: UpOptions, known: Sequence[Node]) -> str:
    """Return in a line which nodes a ``fleet up`` goes on with; empty if they are simulated ones.

    Args:
        planned: From :func:`with_registered`.
        options: From :func:`go_on`.
        known: The nodes that are registered now.
    """
    if planned.node_ports:
        return ""
    real = {node.name for node in known if not node.simulated}
    names = sorted(real.union(planned.nodes.joining), key=natural)
    if not names:
        return f"no nodes start, as at the last start: {_HOW}"
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    words = f"the fleet goes on with {shown}"
    if options.comfyui and planned.nodes.joining:
        words += f" (--comfyui {options.comfyui.home}, as at the last start)"
    if planned.nodes.idle:
        words += "; what ran on this machine starts with --comfyui DIR"
    return f"{words}; {_HOW}"
