"""Websocket clients of ComfyUI's own interface: how many frames a second one API process brings them."""

import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.loads import load
from benchmarks.report import Result, Verdict
from benchmarks.stage import _NODES, BenchError, Options, Stage, bounded
from benchmarks.stats import Spread
from comfy_fleet.cli.up import ports
from comfy_fleet.settings import SOURCE

NODES, RATE = 20, 260
IDLE = 1000
TARGET, TARGET_S, TARGET_SOCKETS = 5000, 0.020, 1000
FLEET, BARE = "fleet", "bare nodes"


async def measure(options: Options) -> Result:
    """Measure; about two minutes."""
    seconds = options.some(20, 4)
    nodes, idle = options.some(NODES, 4), options.some(IDLE, 50)
    measured: dict[str, Mapping[str, Any]] = {}
    for name in (BARE, FLEET):
        options.say(name)
        async with Stage(options) as stage, bounded(300, "the figure of sockets"):
            drawn = ports.draw_block(nodes)
            argv = [sys.executable, "-m", "benchmarks.frame_nodes", str(stage.folder), str(RATE)]
            await stage.child("nodes", [*argv, *map(str, drawn)], stage=_NODES, cwd=SOURCE)
            urls = [f"http://127.0.0.1:{port}" for port in drawn]
            for url in urls:
                await stage.until_200(f"{url}/system_stats")
            if name == FLEET:
                fleet = await stage.fleet(urls)
                await fleet.until_up(nodes)
                urls = [fleet.api_url]
            arguments = {"urls": urls, "prompts": nodes, "idle": idle, "seconds": seconds}
            measured[name] = await load("follow", arguments)
            stage.check()
    spread = {name: Spread.of(one["latencies"]) for name, one in measured.items()}
    rate = {name: len(one["latencies"]) / one["wall_s"] for name, one in measured.items()}
    if not rate[BARE]:
        raise BenchError("no frame came from the bare nodes")
    return Result(
        name="sockets",
        title="Frames to websocket clients",
        verdicts=[
            Verdict(
                figure="frames from node to client, one API process",
                target=f"≥ {TARGET}/s, p99 < {TARGET_S * 1000:.0f} ms, {TARGET_SOCKETS} more websockets open",
                ours=f"{rate[FLEET]:.0f}/s, p99 {spread[FLEET].p99 * 1000:.1f} ms",
                baseline=f"bare nodes {rate[BARE]:.0f}/s, p99 {spread[BARE].p99 * 1000:.1f} ms",
                ratio=rate[FLEET] / rate[BARE],
                met=rate[FLEET] >= TARGET
                and spread[FLEET].p99 < TARGET_S
                and measured[FLEET]["sockets"] >= TARGET_SOCKETS,
            )
        ],
        columns=["way", "websockets", "frames/s", "p50 ms", "p99 ms", "least ms"],
        rows=[
            [name, str(one["sockets"]), f"{rate[name]:.0f}", *spread[name].row_ms()]
            for name, one in measured.items()
        ],
        notes=[
            f"{nodes} simulated nodes in one process send {RATE} frames a second each while they run a "
            "prompt, half of them `progress_state` of eight nodes of a graph. As many clients have posted a "
            f"prompt; {idle} more websockets are open. Times are from the node's send to the client's "
            "receipt, by one clock. Nodes, broker, dispatcher, Redis, API and clients share the machine.",
            f"{BARE}: the same clients straight at the nodes.",
        ],
        data={"rate": rate, "p99_s": {name: one.p99 for name, one in spread.items()}},
        quick=options.quick,
    )
