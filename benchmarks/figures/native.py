"""What ComfyUI's own interface adds to a job that is submitted over Comfy API v2."""

from typing import Any

from benchmarks.loads import in_turn
from benchmarks.report import Result, Verdict
from benchmarks.stage import Options, Stage, bounded
from benchmarks.stats import Spread, added

BARE, NATIVE, EVENTS, POLLED = "bare, its websocket", "fleet, its websocket", "fleet, v2", "fleet, v2, polled"
TOLD = "fleet, its websocket, no history"
MOST_MS = 1.0


async def measure(options: Options) -> Result:
    """Measure; about 20 s."""
    rounds = options.some(300, 100)
    async with Stage(options) as stage, bounded(300, "the native figure"):
        node = await stage.comfyui() if options.comfyui else (await stage.sims(1))[0]
        fleet = await stage.fleet([node])
        ways: dict[str, dict[str, Any]] = {
            BARE: {"kind": "native", "base": node, "history": True},
            NATIVE: {"kind": "native", "base": fleet.url, "history": True},
            TOLD: {"kind": "native", "base": fleet.url, "history": False},
            EVENTS: {"kind": "v2", "base": fleet.url, "events": True},
            POLLED: {"kind": "v2", "base": fleet.url, "events": False},
        }
        measured = await in_turn(stage, ways, rounds)
    seconds = {name: value["seconds"] for name, value in measured.items()}
    spread = {name: Spread.of(values) for name, values in seconds.items()}
    name = min((EVENTS, POLLED), key=lambda one: spread[one].p50)
    # Trip by trip: what disturbs the machine for a while disturbs both.
    more = {one: added(seconds[one], seconds[name]) for one in (NATIVE, TOLD)}
    added_ms = more[NATIVE].p50 * 1000
    kind = "a real ComfyUI on the CPU" if options.comfyui else "a simulated node"
    return Result(
        name="native",
        title="What ComfyUI's own interface adds",
        verdicts=[
            Verdict(
                figure="added to a job over `/api/v2`, p50",
                target=f"below {MOST_MS:g} ms",
                ours=f"{added_ms:+.2f} ms",
                baseline=f"{name} {spread[name].words_ms(1)}; bare {spread[BARE].p50 * 1000:.1f} ms",
                ratio=spread[NATIVE].p50 / spread[name].p50,
                met=added_ms < MOST_MS,
            )
        ],
        columns=["way", "p50 ms", "p99 ms", "least ms"],
        rows=[[one, *spread[one].row_ms()] for one in ways],
        notes=[
            f"{rounds} trips each over {kind}, the ways in turn, one trip at a time, from the submit until "
            "the picture's bytes are read; every graph is new (EmptyImage 64 x 64 → SaveImage).",
            "A client of ComfyUI's interface keeps one websocket open for all its prompts. It asks the "
            "history for the names of its files, as ComfyUI's example does: one request more than v2 clients "
            f"make. If it takes them from the websocket, {more[TOLD].p50 * 1000:+.2f} ms are added.",
            "v2 clients follow the event stream of each job, or poll. What is added is the median of the "
            "differences, trip by trip.",
        ],
        data=measured,
        quick=options.quick,
    )
