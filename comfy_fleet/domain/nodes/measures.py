"""What agents measured of nodes and their GPUs, out of their hosts' heartbeats."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.nodes.gpu_assessment import FATAL_XIDS
from comfy_fleet.domain.nodes.host import HostState

_FAULTS = ("lost", "reset_pending", "remap_failed", "recovery", "ecc_uncorrected")

_TOO_LARGE = 2**53


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What an agent measured of a node; None: it did not, or said what can be no measurement.

    Attributes:
        memory_total: Bytes of its GPU, or of its part of one.
        memory_own: Bytes of that which the node holds.
        memory_fleet: Bytes which all nodes of the fleet on that GPU hold.
        memory_foreign: Bytes which other programs hold.
        memory_available: Bytes which jobs may use.
        utilization: Share of the time in which a kernel ran, 0 to 1.
        temperature_c: The GPU's temperature in degrees Celsius.
        power_w: What the GPU takes, in watts.
        faulty: Whether the GPU is lost, worn, or needs a reset or a repair.
        orphans: Prompts on the node that no run explains.
        restarts: Restarts of its process since its agent started.
        host_memory: Bytes of main memory that its process holds.
    """

    memory_total: float | None = None
    memory_own: float | None = None
    memory_fleet: float | None = None
    memory_foreign: float | None = None
    memory_available: float | None = None
    utilization: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    faulty: bool | None = None
    orphans: int | None = None
    restarts: float | None = None
    host_memory: float | None = None


def measured(hosts: Iterable[HostState], names: Iterable[str]) -> Mapping[str, Measures]:
    """Return what is known of these nodes, by name: agents may say anything of any others."""
    wanted, found = set(names), dict[str, Measures]()
    for host in hosts:
        cards = _cards(host)
        for report in _maps(host.record.get("nodes")):
            name = report.get("name")
            if not isinstance(name, str) or name not in wanted or name in found:
                continue
            facts = _map(report.get("facts"))
            vram, orphans = _map(facts.get("vram")), facts.get("orphans")
            card = cards.get(str(_map(report.get("seat")).get("gpu") or facts.get("gpu")), {})
            used = _number(card.get("utilisation"))
            found[name] = Measures(
                memory_total=_number(vram.get("total")),
                memory_own=_number(vram.get("own")),
                memory_fleet=_number(vram.get("own_all")),
                memory_foreign=_number(vram.get("foreign")),
                memory_available=_number(vram.get("available")),
                utilization=None if used is None else used / 100,
                temperature_c=_number(card.get("temperature_c")),
                power_w=_number(card.get("power_w")),
                faulty=_faulty(card) if card else None,
                orphans=len(orphans) if isinstance(orphans, list) else None,
                restarts=_number(facts.get("restarts")),
                host_memory=_number(facts.get("host_memory_bytes")),
            )
    return found


def _cards(host: HostState) -> dict[str, Mapping[str, Any]]:
    """Return a host's cards by UUID and by index, MIG instances by UUID."""
    cards: dict[str, Mapping[str, Any]] = {}
    for card in _maps(host.record.get("gpus")):
        for name in (card.get("index"), card.get("uuid")):
            cards[str(name)] = card
        for instance in _maps(card.get("instances")):
            # An instance has no sensors of its own.
            cards[str(instance.get("uuid"))] = {
                **card,
                **{name: value for name, value in instance.items() if value is not None},
            }
    return cards


def _faulty(card: Mapping[str, Any]) -> bool:
    xids = card.get("xids")
    return any(card.get(name) for name in _FAULTS) or (
        isinstance(xids, list) and not FATAL_XIDS.isdisjoint(xid for xid in xids if isinstance(xid, int))
    )


def _maps(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _TOO_LARGE else None
