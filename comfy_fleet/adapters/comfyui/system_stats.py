"""A node's memory as its own ComfyUI reports it: ``GET /system_stats``.

It is the only source without NVML (AMD, Apple, Intel, the CPU, a node known only by its URL), and it shows a
node's own memory where the driver hides processes. The meaning of the numbers depends on the device
(``comfy/model_management.py``, 0.3.64):

=================================  ================================================================
``type``                           what is told
=================================  ================================================================
``cuda`` (AMD's too), npu, mlu     the driver's own figures: other programs show
``xpu``                            free is total less its own: other programs may not show
``cpu``                            the host's memory; what is its own only its host can tell
``mps``                            the host's memory; not even the host tells what the GPU has of it
``privateuseone`` (DirectML)       a constant of 1 GiB: nothing
=================================  ================================================================

``vram_free`` is what the driver has free plus what PyTorch keeps in its cache (``torch_vram_free``), so that
used memory is ``vram_total - (vram_free - torch_vram_free)``; ``torch_vram_total`` is what PyTorch has taken.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from comfy_fleet.adapters.comfyui.direct_node import DirectNode, NodeSession
from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.nodes.vram import Counted, Device

PATH = "/system_stats"
_TIMEOUT_S = 2.0
_NOTHING = ("privateuseone",)


def counted(stats: Mapping[str, Any], *, rss_bytes: int | None = None, age_s: float = 0.0) -> Counted:
    """Read an answer to ``/system_stats``.

    Args:
        stats: The answer.
        rss_bytes: The host memory that the node's processes hold. Only a node that computes in host memory
            needs it, and only the agent on its machine knows it.
        age_s: Seconds since the answer.

    Raises:
        NodeError: It lists no device, or one without numbers.
    """
    device = _first_device(stats)
    kind, name = str(device.get("type") or ""), str(device.get("name") or "")
    if kind in _NOTHING:
        return Counted(device=Device.UNSEEN, name=name, age_s=age_s)
    total, free = _figure(device, "vram_total"), _figure(device, "vram_free")
    if kind in ("cpu", "mps"):
        known = kind == "cpu" and rss_bytes is not None
        return Counted(
            device=Device.HOST if known else Device.UNSEEN,
            total=total,
            used=max(0, total - free),
            own=rss_bytes if known else None,
            name=name,
            age_s=age_s,
        )
    own, cached = _figure(device, "torch_vram_total"), _figure(device, "torch_vram_free")
    used = min(total, max(0, total - (free - cached)))
    blind = kind == "xpu" and used == own
    return Counted(
        device=Device.UNSEEN if blind else Device.CARD,
        total=total,
        used=used,
        own=own,
        name=name,
        age_s=age_s,
    )


class SystemStats:
    """Asks one node, and keeps its last answer with its time."""

    def __init__(
        self,
        url: str,
        session: NodeSession,
        *,
        credentials: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing is asked yet.

        Args:
            url: Base of the ComfyUI, e.g. ``http://127.0.0.1:8188``.
            session: The node's connections; the caller closes them.
            credentials: ``USER:PASSWORD``; empty for none.
            clock: Seconds, monotonic.
        """
        self._node = DirectNode(url, session, credentials=credentials)
        self._clock = clock
        self._stats: Mapping[str, Any] | None = None
        self._at = 0.0
        self.took_s = 0.0

    async def ask(self) -> None:
        """Ask once. The last answer is kept if the node does not answer.

        Raises:
            NodeFault: The answer breaks a limit.
            NodeError: No answer in time, or one that can't be read.
        """
        asked = self._clock()
        stats = await self._node.json(PATH, timeout_s=_TIMEOUT_S)
        if not isinstance(stats, dict):
            raise NodeError(f"that is not a ComfyUI: no JSON object at {PATH}")
        counted(stats)
        # The answer was made some time after the request; the earlier time never makes it seem too recent.
        self._stats, self._at, self.took_s = stats, asked, self._clock() - asked

    @property
    def version(self) -> str:
        """The ComfyUI's version; empty if it never answered."""
        system = (self._stats or {}).get("system")
        return str(system.get("comfyui_version") or "") if isinstance(system, dict) else ""

    def last(self, *, rss_bytes: int | None = None) -> Counted | None:
        """Return the node's last answer, with its age; None if it never answered.

        Args:
            rss_bytes: See :func:`counted`.
        """
        if self._stats is None:
            return None
        return counted(self._stats, rss_bytes=rss_bytes, age_s=max(0.0, self._clock() - self._at))


def _first_device(stats: Any) -> Mapping[str, Any]:
    match stats:
        case {"devices": [dict(device), *_]}:
            return device
        case _:
            raise NodeError(f"{PATH} lists no device")


def _figure(device: Mapping[str, Any], name: str) -> int:
    value = device.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        raise NodeError(f"{PATH}: {name} is {value!r}, not a number of bytes", details={"field": name})
    return int(value)
