"""How soon a killed ComfyUI that an agent runs takes jobs again, and how soon its job runs elsewhere."""

import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from benchmarks import standin_comfyui
from benchmarks.operations import all_ended, audit, granted, kill, order, until
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded
from benchmarks.stats import TIMES, Spread, median
from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.adapters.system.child_processes import Child
from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.cli.up import nodes as node_plans
from comfy_fleet.cli.up import ports

KILLS = 4
EXTRA_S = 2.0  # beyond its own start-up
ELSEWHERE_S = 2.0
START_S, JOB_S = 2.0, 1.5  # of the stand-in
UP_S = 120.0
NODES = ("h1-cpu0-0", "h1-cpu0-1")


async def measure(options: Options) -> Result:
    """Measure; about a minute, two with a real ComfyUI."""
    kills = options.some(KILLS, 2)
    elsewhere: list[float] = []
    back: list[float] = []
    ids: list[str] = []
    async with Stage(options) as stage, bounded(600, "the figure of killed ComfyUIs"):
        home = options.comfyui or standin_comfyui.make(stage.folder / "ComfyUI", start_s=START_S, job_s=JOB_S)
        python = options.comfyui_python if options.comfyui else sys.executable
        # Leases are asked for here: nobody else may hold them.
        fleet = await stage.fleet([], ready=False, env={"FLEET_READY_LEASES": "0"})
        argv = ["agent", "--join", fleet.api_url, "--host", "h1", "--port", "0", "--comfyui", str(home)]
        argv += ["--gpus", "cpu", "--per-gpu", str(len(NODES)), "--no-custom-nodes"]
        argv += ["--python", python] if python else []
        await stage.child("agent-h1", node_plans.fleet(*argv), stage=3, env=fleet.env)
        async with (
            httpx.AsyncClient(trust_env=False, timeout=30) as http,
            open_stores(fleet.settings) as stores,
        ):
            options.say("until both ComfyUIs are up")
            await fleet.until_up(len(NODES))
            checkout = Checkout.find(home, python=python, custom_nodes=False)
            starts = []
            for number in range(kills):
                options.say(f"start {number + 1} of {kills} by hand")
                starts.append(await _start(checkout, stage.folder / f"by-hand-{number}", http))
                options.say(f"kill {number + 1} of {kills} of an idle one")
                back.append(await _kill_idle(fleet, stores, NODES[number % len(NODES)]))
                await fleet.until_up(len(NODES))
            for number in range(kills):
                options.say(f"kill {number + 1} of {kills} of one that computes")
                answer = await order(http, "POST", f"{fleet.url}/api/v2/jobs", {"workflow": _graph()})
                ids.append(answer.json()["id"])
                elsewhere.append(await _kill_computing(http, stores, ids[-1]))
                await all_ended(http, fleet.url, ids, within_s=60, tell=lambda _: None)
                await fleet.until_up(len(NODES))
            records = await all_ended(http, fleet.url, ids, within_s=60, tell=lambda _: None)
        stage.check()
    found = audit(ids, records, done=0)
    beyond = [took - start for took, start in zip(back, starts, strict=True)]
    again, moved, late = Spread.of(back), Spread.of(elsewhere), Spread.of(beyond)
    what = "ComfyUI on the CPU" if options.comfyui else f"a stand-in that takes {START_S:g} s to start"
    return Result(
        name="restarts",
        title="A killed ComfyUI under its agent",
        verdicts=[
            Verdict(
                figure="kill -9 of a supervised ComfyUI → takes jobs again, beyond its own start",
                target=f"< {EXTRA_S:g} s, every time",
                ours=late.words(),
                baseline=f"its own start {median(starts):.2f} s",
                ratio=None,
                met=late.most < EXTRA_S,
            ),
            Verdict(
                figure="kill -9 of a supervised ComfyUI → its job computes elsewhere, a node being free",
                target=f"< {ELSEWHERE_S:g} s, every time; 0 lost",
                ours=f"{moved.words()}; {found.lost} lost",
                baseline="ComfyUI's own queue dies with it",
                ratio=None,
                met=moved.most < ELSEWHERE_S and not found.lost and not found.failed,
            ),
        ],
        columns=["what", *TIMES],
        rows=[
            [name, *one.row()]
            for name, one in (
                ("its own start, by hand, until it answers", Spread.of(starts)),
                ("kill → a lease is given on it", again),
                ("the same without the start before it", late),
                ("kill → its job computes on the other one", moved),
            )
        ],
        notes=[
            f"`fleet agent --comfyui` runs two processes of {what}. In turn the same program is started by "
            "hand, beside both, and one of the two is killed while it is idle; leases on it are asked for "
            "every few milliseconds. Each time counts against the start just before it.",
            "Then one is killed while it computes the only job, the other one being free; that the job "
            "computes there is seen in that one's queue.",
        ],
        data={"starts_s": starts, "back_s": back, "elsewhere_s": elsewhere},
        quick=options.quick,
    )


def _graph() -> dict[str, Any]:
    """A graph that computes for a second or two on a CPU, and is never equal to an earlier one."""
    picture = {"width": 1024, "height": 1024, "batch_size": 1, "color": uuid4().int % (1 << 24)}
    graph: dict[str, Any] = {"1": {"class_type": "EmptyImage", "inputs": picture}}
    for number in range(2, 6):
        inputs = {"image": [str(number - 1), 0], "blur_radius": 31, "sigma": 10.0}
        graph[str(number)] = {"class_type": "ImageBlur", "inputs": inputs}
    graph["6"] = {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "bench/kill"}}
    return graph


async def _start(checkout: Checkout, folder: Path, http: httpx.AsyncClient) -> float:
    """Start the program once by hand; return how long it takes until it answers, and end it."""
    (port,) = ports.draw(1)
    launch = checkout.launch(port=port, folder=folder, gpu=None)
    child = Child("by-hand", launch.argv, env=launch.env, cwd=launch.cwd, on_line=lambda _: None)
    began = time.monotonic()
    await child.start()
    try:

        async def answers() -> bool:
            with suppress(httpx.HTTPError):
                url = f"http://127.0.0.1:{port}/object_info/PreviewImage"
                return (await http.get(url)).status_code == 200
            return False

        return await until("it answers", answers, within_s=UP_S) - began
    finally:
        await child.stop()


async def _kill_idle(fleet: Fleet, stores: Stores, node: str) -> float:
    """Kill an idle node; return after how many seconds HAProxy gives a lease on it again."""
    kill(await _pid(stores, node))
    killed_at = time.monotonic()

    async def noticed() -> bool:
        return not await granted(fleet, node)

    await until(f"no lease is given on {node}", noticed)
    return await until(f"{node} takes jobs again", partial(granted, fleet, node), within_s=UP_S) - killed_at


async def _kill_computing(http: httpx.AsyncClient, stores: Stores, job_id: str) -> float:
    """Kill the node that computes a job; return after how many seconds another one computes it."""
    first = await _computes(http, stores, job_id, but=None)
    kill(await _pid(stores, first))
    killed_at = time.monotonic()
    await _computes(http, stores, job_id, but=first)
    return time.monotonic() - killed_at


async def _pid(stores: Stores, node: str) -> int:
    pid = (await stores.hosts.report(node) or {}).get("pid")
    if pid is None:
        raise BenchError(f"the agent does not say which process {node} is")
    return int(pid)


async def _computes(http: httpx.AsyncClient, stores: Stores, job_id: str, *, but: str | None) -> str:
    """Wait until a job computes, on another node than the given one; return the node."""
    urls = {state.node.name: state.node.url for state in await stores.nodes.states()}
    found: list[str] = []

    async def there() -> bool:
        job = await stores.jobs.get(job_id)
        if job is None or job.run is None or job.node in (None, but):
            return False
        with suppress(httpx.HTTPError):
            queue = (await http.get(f"{urls[str(job.node)]}/queue")).json()
            found[:] = [str(job.node)]
            return any(item[1] == job.run for item in queue["queue_running"])
        return False

    await until("the job computes", there)
    return found[0]
