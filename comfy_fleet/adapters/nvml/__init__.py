"""NVIDIA GPUs, read through NVML with ``nvidia-ml-py``.

:class:`NvmlReader` reads in the calling thread and never raises: values that can't be read are missing, and
if nothing can be read the result says why. :class:`NvmlProbe` reads from an event loop without blocking it,
even if the driver hangs, as it does while a GPU falls off its bus.

Memory and processes are read each time. Values that change slowly, or cost more (power, heat, faults), are
read once per ``slow_every_s``. Names and UUIDs are read once. An open reader keeps the driver in use: a
driver can be unloaded, and a GPU reset, only after :meth:`NvmlReader.close`.

NVML's functions are described in NVIDIA's "NVML API Reference Guide".
"""

from comfy_fleet.adapters.nvml.probe import NvmlProbe
from comfy_fleet.adapters.nvml.reader import NvmlReader

__all__ = ["NvmlProbe", "NvmlReader"]
