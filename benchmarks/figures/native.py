"""What ComfyUI's own interface adds to a job that is submitted over Comfy API v2."""

from typing import Any

from benchmarks.loads import in_turn
from benchmarks.report import Result, Verdict
from benchmarks.stage import Options, Stage, bounded
from benchmarks.stats import Spread

BARE, NATIVE, EVENTS, POLLED = "bare, its websocket", "fleet, its websocket", "fleet, v2", "fleet, v2, polled"
MOST_MS = 1.0


async def measure(options: Options) -> Result:
    """Measure; about 20 s."""
    rounds = options.some(300, 30)
    async with Stage(options) as stage, bounded(300, "the native figure"):
        node = await stage.comfyui() if options.comfyui else (await stage.sims(1))[0]
        fleet = await stage.fleet([node])
        ways: dict[str, dict[str, Any]] = {
            BARE: {"kind": "native", "base": node},
            NATIVE: {"kind": "native", "base": fleet.url},
            EVENTS: {"kind": "v2", "base": fleet.url, "events": True},
            POLLED: {"kind": "v2", "base": fleet.url, "events": False},
        }
        measured = await in_turn(stage, ways, rounds)
    spread = {name: Spread.of(value["seconds"]) for name, value in measured.items()}
    name = min((EVENTS, POLLED), key=lambda one: spread[one].p50)
    added_ms = (spread[NATIVE].p50 - spread[name].p50) * 1000
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
        rows=[[one, *spread[one].row_ms()] for one in (BARE, NATIVE, EVENTS, POLLED)],
        notes=[
            f"{rounds} trips each over {kind}, the ways in turn, one trip at a time, from the submit until "
            "the picture's bytes are read; every graph is new (EmptyImage 64 x 64 → SaveImage).",
            "A client of ComfyUI's interface keeps one websocket open for all its prompts. v2 clients follow "
            "the event stream of each job, or poll.",
        ],
        data=measured,
        quick=options.quick,
    )
