"""What it takes to run a graph again with another last node, beside others' jobs."""

import asyncio
import secrets
from contextlib import AsyncExitStack

from benchmarks.editing import SLEEP, Editor, EditorRun, edited_graph, editor, noise, strange_jobs
from benchmarks.report import Result, Verdict
from benchmarks.stage import Options, Stage, bounded
from benchmarks.stats import median
from comfy_fleet.tasks import start

NODES, STRANGERS, STRANGE_S = 4, 3, 0.7
MOST = 1.10
BARE, FLEET = "bare ComfyUI", "fleet"


async def measure(options: Options) -> Result:
    """Measure; about four minutes."""
    rounds, seconds = options.some(5, 2), float(options.some(10, 2))
    async with Stage(options) as stage, bounded(900, "the iterate figure"), AsyncExitStack() as stack:
        if options.comfyui:
            urls = [await stage.comfyui(f"comfyui-{number}", testing=True) for number in range(NODES + 1)]
        else:
            urls = await stage.sims(NODES + 1)
        bare, *nodes = urls
        fleet = await stage.fleet(nodes)
        await fleet.until_up(NODES)
        ways = {
            BARE: await stack.enter_async_context(editor(bare)),
            FLEET: await stack.enter_async_context(editor(fleet.url)),
        }
        strangers = [start(strange_jobs(fleet.url, seconds=STRANGE_S)) for _ in range(STRANGERS)]
        runs: dict[tuple[str, str], list[tuple[EditorRun, EditorRun]]] = {}
        try:
            for turn in range(rounds):
                for what in ("no file", "LoadImage"):
                    for way, one in ways.items():
                        options.say(f"round {turn + 1} of {rounds}: {way}, {what}")
                        picture = await one.upload(noise()) if what == "LoadImage" else None
                        runs.setdefault((what, way), []).append(await _iterated(one, seconds, picture))
                        for stranger in strangers:
                            if stranger.done():
                                stranger.result()
        finally:
            for stranger in strangers:
                stranger.cancel()
            await asyncio.gather(*strangers, return_exceptions=True)
    return _result(options, runs, seconds)


async def _iterated(one: Editor, seconds: float, picture: str | None) -> tuple[EditorRun, EditorRun]:
    """Run a graph, change its last node, and run it again."""
    drawn = seconds + secrets.randbelow(1000) / 100_000  # like no earlier one
    first = await one.run(edited_graph(drawn, "first", picture=picture))
    return first, await one.run(edited_graph(drawn, "second", picture=picture))


def _result(
    options: Options, runs: dict[tuple[str, str], list[tuple[EditorRun, EditorRun]]], seconds: float
) -> Result:
    kind = "real ComfyUIs on the CPU" if options.comfyui else "simulated nodes"
    rows, verdicts, whole = [], [], {}
    for (what, way), pairs in runs.items():
        again = median([second.seconds for _, second in pairs])
        whole[what, way] = median([first.seconds + second.seconds for first, second in pairs])
        cached = sum(SLEEP in second.cached for _, second in pairs)
        rows.append(
            [f"{way}, {what}", f"{again * 1000:.0f}", f"{whole[what, way]:.2f}", f"{cached} of {len(pairs)}"]
        )
        if way == FLEET:
            ratio = whole[what, FLEET] / whole[what, BARE]
            verdicts.append(
                Verdict(
                    figure=f"`Sleep({seconds:g})` → change the last node → Run, {what}",
                    target=f"the sleep is cached; below {MOST:g} of a bare ComfyUI",
                    ours=f"{whole[what, FLEET]:.2f} s, cached in {cached} of {len(pairs)}",
                    baseline=f"bare {whole[what, BARE]:.2f} s",
                    ratio=ratio,
                    met=ratio < MOST and cached == len(pairs),
                )
            )
    return Result(
        name="iterate",
        title="Running a graph again with another last node",
        verdicts=verdicts,
        columns=["way", "second run, p50 ms", "both runs, p50 s", "sleep cached"],
        rows=rows,
        notes=[
            f"Four {kind}. Three others have one job of {STRANGE_S:g} s each at work all the time. "
            f"{len(next(iter(runs.values())))} rounds, the ways in turn, each from the request until the "
            "picture's bytes are read; SaveImage of 512 x 512, of noise behind LoadImage.",
            "Without the node that has the results, the second run takes as long as the first.",
        ],
        data={
            f"{way}, {what}": [[first.seconds, second.seconds] for first, second in pairs]
            for (what, way), pairs in runs.items()
        },
        quick=options.quick,
    )
