"""Which GPUs this machine has, or why that is not known."""

from comfy_fleet.adapters.nvml import NvmlReader
from comfy_fleet.domain.nodes.gpu import Gpu, Gpus, Memory, Nvml

__all__ = ["Gpu", "Gpus", "Memory", "Nvml", "probe"]


def probe() -> Gpus:
    """Ask NVML once. Never raises."""
    reader = NvmlReader()
    try:
        return reader.read()
    finally:
        reader.close()
