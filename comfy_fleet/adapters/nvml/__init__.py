"""NVIDIA GPUs, read through NVML with ``nvidia-ml-py``.

:class:`NvmlReader` looks, in whatever thread calls it, and never raises: what can't be read is missing, and
when nothing can be read the answer says why. :class:`NvmlProbe` looks from an event loop without holding it
up, also when the driver hangs, as it does while a GPU falls off its bus.

Memory and processes are read at every look. What changes slowly, or costs more (power, heat, faults), is read
once in ``slow_every_s``. Names and UUIDs are read once. An open reader keeps the driver in use: a driver can
be unloaded, and a GPU be reset, only after :meth:`NvmlReader.close`.

What NVML's functions mean is in NVIDIA's "NVML API Reference Guide".
"""

from comfy_fleet.adapters.nvml.probe import NvmlProbe
from comfy_fleet.adapters.nvml.reader import NvmlReader

__all__ = ["NvmlProbe", "NvmlReader"]
