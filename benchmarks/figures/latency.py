"""How long from the submit until the picture's bytes are read, on an idle fleet of one node."""

from typing import Any

from benchmarks.clients import POLL_S
from benchmarks.loads import in_turn
from benchmarks.report import Result, Verdict
from benchmarks.stage import Options, Stage, bounded
from benchmarks.stats import Spread

BARE, LEASE, FLEET, FLEET_POLL = "bare websocket client", "bare, HAProxy lease", "fleet", "fleet, polled"
PROXY, PROXY_POLL = "comfy-api-proxy", "comfy-api-proxy, polled"


async def measure(options: Options) -> Result:
    """Measure; about 20 s."""
    rounds = options.some(300, 30)
    # Dispatchers hold the lease of an idle node: who asks for one beside them needs a broker of its own.
    async with Stage(options) as stage, Stage(options) as brokers, bounded(300, "the latency figure"):
        node = await stage.comfyui() if options.comfyui else (await stage.sims(1))[0]
        proxy = await stage.proxy(node)
        fleet = await stage.fleet([node])
        broker = await brokers.fleet([node], dispatchers=0, ready=False)
        await broker.until_up(1)
        ways: dict[str, dict[str, Any]] = {
            BARE: {"kind": "bare", "node": node},
            PROXY: {"kind": "v2", "base": proxy.url, "events": True},
            PROXY_POLL: {"kind": "v2", "base": proxy.url, "events": False},
            LEASE: {
                "kind": "lease",
                "lease": str(broker.settings.lease_socket),
                "direct": str(broker.settings.direct_socket),
            },
            FLEET: {"kind": "v2", "base": fleet.url, "events": True},
            FLEET_POLL: {"kind": "v2", "base": fleet.url, "events": False},
        }
        measured = await in_turn(stage, ways, rounds)
    spread = {name: Spread.of(value["seconds"]) for name, value in measured.items()}
    detours = {name: value["detours"] for name, value in measured.items()}
    ours = min((spread[name] for name in (FLEET, FLEET_POLL)), key=lambda one: one.p50)
    name = min((PROXY, PROXY_POLL), key=lambda one: spread[one].p50)
    theirs = spread[name]
    bare = spread[BARE]
    to_lease_ms = (theirs.p50 - spread[LEASE].p50) * 1000
    order = (BARE, LEASE, PROXY, PROXY_POLL, FLEET, FLEET_POLL)
    kind = "a real ComfyUI on the CPU" if options.comfyui else "a simulated node"
    return Result(
        name="latency",
        title="From submit to bytes read",
        verdicts=[
            Verdict(
                figure="submit → bytes read, p50",
                target="below comfy-api-proxy",
                ours=ours.words_ms(1),
                baseline=f"{name} {theirs.words_ms(1)}; bare {bare.p50 * 1000:.1f} ms",
                ratio=ours.p50 / theirs.p50,
                met=ours.p50 < theirs.p50,
            )
        ],
        columns=["way", "p50 ms", "p99 ms", "least ms", "times bare", "detours"],
        rows=[
            [one, *spread[one].row_ms(), f"{spread[one].p50 / bare.p50:.2f}", str(detours[one])]
            for one in order
        ],
        notes=[
            f"{rounds} trips each over {kind}, the ways in turn, one trip at a time; every graph is new "
            "(EmptyImage 64 x 64 → SaveImage), so that nothing is cached.",
            "All clients use httpx with connections kept open; websockets are opened for each prompt.",
            f"Unless polled (every {POLL_S * 1000:g} ms) v2 clients follow the job's event stream. A detour "
            "is a stream that ended or fell silent before the job's end, after which the client polled.",
            f"The bare client that HAProxy tells its node is {to_lease_ms:.1f} ms faster than {name}. The "
            "rest of the fleet's time goes into what that client leaves out: a record that survives every "
            "process, the queue, a claim that no other dispatcher can make, and the picture's own copy.",
        ],
        data=measured,
        quick=options.quick,
    )
