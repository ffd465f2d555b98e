"""The whole fleet's figures as Prometheus reads them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from comfy_fleet.adapters.telemetry.text import FamilyText, Samples
from comfy_fleet.domain.nodes.measures import measured
from comfy_fleet.ports.figures import FleetView

MOST_POOLS = 200
OTHER = "other"


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A metric.

    Attributes:
        name: Its name.
        help: What it says.
        labels: The names of its labels.
        kind: ``gauge`` or ``counter``.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: str = "gauge"


def _shown(name: str, text: str, *labels: str) -> Shown:
    return Shown(name=name, help=text, labels=labels, kind="counter" if name.endswith("_total") else "gauge")


DEPTH = _shown("fleet_queue_depth", "Jobs that wait, by the pool that is tried first.", "pool")
OLDEST = _shown("fleet_queue_oldest_seconds", "For how long the oldest of them has waited.", "pool")
BATCHED = _shown("fleet_batch_items_waiting", "Items of batches that wait until the queue has room.")
NODES = _shown("fleet_nodes", "Nodes by state.", "pool", "state")
BUSY = _shown("fleet_nodes_busy", "Nodes that run a job.", "pool")
ABLE = _shown("fleet_nodes_able", "Nodes that may get jobs.", "pool")
STATE = _shown("fleet_node_state", "1 for the node's present state.", "node", "state")
INFO = _shown(
    "fleet_node_info", "1; its labels say what the node is.", "node", "pool", "host", "gpu", "version"
)
NODE_BUSY = _shown("fleet_node_busy", "1 while a run has the node.", "node")
MEMORY = _shown(
    "fleet_gpu_memory_bytes",
    "The node's card: all of it (total), what the node holds (own), what other programs hold (foreign), "
    "what jobs may use (available).",
    "node",
    "kind",
)
UTILIZATION = _shown("fleet_gpu_utilization", "Share of the time in which a kernel ran, 0 to 1.", "node")
HEAT = _shown("fleet_gpu_temperature_celsius", "The card's temperature.", "node")
POWER = _shown("fleet_gpu_power_watts", "What the card takes.", "node")
FAULTY = _shown("fleet_gpu_faulty", "1 if the card is lost, worn, or needs a reset or a repair.", "node")
ORPHANS = _shown("fleet_node_orphans", "Prompts on the node that no run explains.", "node")
RESTARTS = _shown("fleet_node_restarts", "Restarts of its process since its agent started.", "node")
HOST_MEMORY = _shown("fleet_node_host_memory_bytes", "Main memory that its process holds.", "node")
_MEASURES = {
    UTILIZATION: "utilization",
    HEAT: "temperature_c",
    POWER: "power_w",
    FAULTY: "faulty",
    ORPHANS: "orphans",
    RESTARTS: "restarts",
    HOST_MEMORY: "host_memory",
}
HEARD = _shown("fleet_host_heartbeat_age_seconds", "Since the last heartbeat of the host's agent.", "host")
ERRORS = _shown(
    "fleet_estimate_error_ratio",
    "Real time over the estimated one of the last jobs: half of them (p50), nine of ten (p90) were below.",
    "kind",
    "bound",
)
MESSAGES = _shown("fleet_webhook_messages", "Messages to webhooks that are not delivered yet.")
LATE = _shown("fleet_webhook_late_seconds", "For how long the first of them has been due.")
FAILING = _shown("fleet_webhook_receivers_failing", "Receivers of webhooks that fail.")
UNSTORED = _shown("fleet_store_waiting_bytes", "Outputs that wait for a store.", "store")
DISPATCHERS = _shown("fleet_dispatchers", "Dispatchers that live.")
FREE = _shown("fleet_disk_free_bytes", "Free space on the disk of FLEET_DATA.")
FLOOR = _shown("fleet_disk_floor_bytes", "Free space below which nothing new is taken.")
LOOK = _shown("fleet_figures_seconds", "How long reading these figures took.")
REDIS = {
    "memory_used_bytes": "Memory that Redis' data takes.",
    "memory_resident_bytes": "Memory that Redis' process has.",
    "memory_limit_bytes": "What its data may take; 0: any amount.",
    "clients": "Connections to Redis.",
    "replicas": "Replicas that are connected.",
    "commands_total": "Commands that Redis has carried out.",
    "evicted_keys_total": "Keys that Redis has thrown away for want of memory: jobs are lost if it is not 0.",
    "uptime_seconds": "Since Redis' start.",
    "saves": "1 if Redis' last writes to its disk succeeded.",
}
REDIS_SHOWN = {name: _shown(f"fleet_redis_{name}", text) for name, text in REDIS.items()}
ALL = (
    *(
        DEPTH,
        OLDEST,
        BATCHED,
        NODES,
        BUSY,
        ABLE,
        STATE,
        INFO,
        NODE_BUSY,
        MEMORY,
        UTILIZATION,
        HEAT,
        POWER,
        FAULTY,
    ),
    *(ORPHANS, RESTARTS, HOST_MEMORY, HEARD, ERRORS, MESSAGES, LATE, FAILING, DISPATCHERS, FREE, FLOOR),
    UNSTORED,
    *(LOOK, *REDIS_SHOWN.values()),
)
"""All metrics of the whole fleet."""


class FleetText:
    """Writes the whole fleet's figures."""

    def __init__(self) -> None:
        self._texts = {one: FamilyText(one.name, one.help, one.kind, one.labels) for one in ALL}

    def __call__(self, view: FleetView) -> bytes:
        """Return the text for a scrape."""
        return "".join(self._texts[one](samples) for one, samples in _families(view)).encode()


def _families(view: FleetView) -> Iterable[tuple[Shown, Samples]]:
    store = view.store
    pools = _pools(view)

    def pool(name: str) -> str:
        return name if name in pools else OTHER

    depth, oldest = Counter(dict.fromkeys(pools, 0)), dict.fromkeys(pools, 0.0)
    for queue in store.queues:
        depth[pool(queue.pool)] += queue.waiting
        oldest[pool(queue.pool)] = max(oldest.get(pool(queue.pool), 0.0), queue.oldest_s)
    yield DEPTH, (((name,), count) for name, count in depth.items())
    yield OLDEST, (((name,), seconds) for name, seconds in oldest.items())
    yield BATCHED, [((), store.batch_items)]
    states = [(one, one.state) for one in view.nodes]
    counted = Counter((pool(one.node.pool), state) for one, state in states)
    yield NODES, counted.items()
    busy, able = Counter(dict.fromkeys(pools, 0)), Counter(dict.fromkeys(pools, 0))
    for one, state in states:
        busy[pool(one.node.pool)] += one.run is not None
        able[pool(one.node.pool)] += state == "up"
    yield BUSY, (((name,), count) for name, count in busy.items())
    yield ABLE, (((name,), count) for name, count in able.items())
    yield STATE, (((one.node.name, state), 1) for one, state in states)
    yield (
        INFO,
        (
            (
                (
                    one.node.name,
                    pool(one.node.pool),
                    one.node.labels.get("host", ""),
                    one.reading.gpu[:80],
                    one.reading.comfyui[:40],
                ),
                1,
            )
            for one, _ in states
        ),
    )
    yield NODE_BUSY, (((one.node.name,), int(one.run is not None)) for one, _ in states)
    yield from _of_hosts(view)
    yield ERRORS, _errors(view.errors)
    yield UNSTORED, (((name,), size) for name, size in store.unstored.items())
    yield MESSAGES, [((), store.webhooks.waiting)]
    yield LATE, [((), store.webhooks.late_s)]
    yield FAILING, [((), store.webhooks.failing)]
    yield DISPATCHERS, [((), store.dispatchers)]
    yield FREE, [((), view.room.free_bytes)]
    yield FLOOR, [((), view.room.floor_bytes)]
    yield LOOK, [((), round(view.took_s, 6))]
    for name, shown in REDIS_SHOWN.items():
        if name in store.server:
            yield shown, [((), store.server[name])]


def _pools(view: FleetView) -> set[str]:
    """Return the pools that are named: those with nodes first, as clients may name any."""
    found = dict.fromkeys(one.node.pool for one in view.nodes)
    found |= dict.fromkeys(queue.pool for queue in view.store.queues)
    return set(list(found)[:MOST_POOLS])


def _of_hosts(view: FleetView) -> Iterable[tuple[Shown, Samples]]:
    found = measured(view.hosts, (one.node.name for one in view.nodes))
    kinds = (
        ("total", "memory_total"),
        ("own", "memory_own"),
        ("foreign", "memory_foreign"),
        ("available", "memory_available"),
    )
    yield (
        MEMORY,
        (
            ((name, kind), value)
            for name, one in found.items()
            for kind, field in kinds
            if (value := getattr(one, field)) is not None
        ),
    )
    for shown, field in _MEASURES.items():
        values = ((name, getattr(one, field)) for name, one in found.items())
        yield shown, (((name,), +value) for name, value in values if value is not None)  # + makes 1 of True
    yield HEARD, [((host.host,), round(max(0.0, view.at - host.seen_at), 3)) for host in view.hosts]


def _errors(errors: Mapping[str, Sequence[float]]) -> Samples:
    for kind, ratios in errors.items():
        if ratios:
            ordered = sorted(ratios)
            for bound, share in (("p50", 0.5), ("p90", 0.9)):
                yield (kind, bound), ordered[min(len(ordered) - 1, int(share * len(ordered)))]
