"""A simulated ComfyUI node, for demos, tests, fault injection and capacity planning.

It implements ComfyUI's native API frame for frame, takes the time and memory that a GPU would take, and shows
SIMULATED wherever it could be mistaken for a real one.
"""

from comfy_fleet.sim.faults import ALWAYS, BadFault, Faults
from comfy_fleet.sim.node import SimNode
from comfy_fleet.sim.options import Models, NodeOptions, SimOptions, SimTiming
from comfy_fleet.sim.server import nodes, serve, serve_async

__all__ = [
    "ALWAYS",
    "BadFault",
    "Faults",
    "Models",
    "NodeOptions",
    "SimNode",
    "SimOptions",
    "SimTiming",
    "nodes",
    "serve",
    "serve_async",
]
