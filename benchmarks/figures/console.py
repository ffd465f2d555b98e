"""How soon the console shows a large fleet, and how soon a page shows what has happened."""

import asyncio
import time
from contextlib import ExitStack
from statistics import median
from uuid import uuid4

import orjson
from blake3 import blake3

from benchmarks.report import Result, Verdict
from benchmarks.stage import Fleet, Options, Stage, bounded
from comfy_fleet.domain.jobs.job import NewJob, Placement
from tests.browser.chromium import Chromium, chromium
from tests.browser.page import Page

NODES, JOBS = 300, 10_000
LOADS, EVENTS = 15, 20
PAINT_S, EVENT_S = 1.0, 0.5
PAGES = ("overview", "nodes", "queue", "jobs")
NODE = "node-1"
_PAINT = (
    "performance.getEntriesByType('paint').find((one) => one.name === 'first-contentful-paint')?.startTime"
)
_WATCH = """(() => {
  const word = () => document.querySelector('#node-%(node)s .pill').textContent;
  const before = word();
  window.__changed = 0;
  new MutationObserver((_, observer) => {
    if (word() === before) return;
    window.__changed = Date.now();
    observer.disconnect();
  }).observe(document.getElementById('live'), {childList: true, subtree: true, characterData: true});
})()"""


async def measure(options: Options) -> Result:
    """Measure; some minutes, most of them to start the nodes."""
    nodes, jobs = options.some(NODES, 30), options.some(JOBS, 1_000)
    async with Stage(options) as stage, bounded(1800, "the figure of the console"):
        fleet = await stage.fleet(await stage.sims(nodes), queue_depth=10_000_000)
        await _wait_there(options, fleet, jobs)
        with ExitStack() as stack:
            browser = await asyncio.to_thread(stack.enter_context, chromium())
            paints = {
                path: [await asyncio.to_thread(_paint, browser, fleet, path) for _ in range(LOADS)]
                for path in PAGES
            }
            seen = await _events(browser, fleet)
        stage.check()
    slowest = max(median(one) for one in paints.values())
    return Result(
        name="console",
        title="The console of a large fleet",
        verdicts=[
            Verdict(
                figure=f"first paint with {nodes} nodes and {jobs:,} jobs, the slowest page's median",
                target=f"< {PAINT_S:g} s",
                ours=f"{slowest * 1000:.0f} ms",
                baseline="",
                ratio=None,
                met=slowest < PAINT_S,
            ),
            Verdict(
                figure="from a drain to the changed page, median",
                target=f"< {EVENT_S:g} s",
                ours=f"{median(seen) * 1000:.0f} ms",
                baseline="",
                ratio=None,
                met=median(seen) < EVENT_S,
            ),
        ],
        columns=["what", "median ms", "slowest ms"],
        rows=[
            [name, f"{median(times) * 1000:.0f}", f"{max(times) * 1000:.0f}"]
            for name, times in [*paints.items(), ("an event", seen)]
        ],
        notes=[f"Headless Chromium on the same machine, through the edge; {LOADS} loads of each page."],
    )


async def _wait_there(options: Options, fleet: Fleet, count: int) -> None:
    """Queue jobs for a pool that has no nodes."""
    graph = orjson.dumps({"1": {"class_type": "EmptyImage", "inputs": {"color": 1}}})
    async with fleet.stores() as stores:
        for done in range(0, count, 500):
            options.say(f"{done:,} of {count:,} jobs are queued")
            made = (
                NewJob(
                    id=str(uuid4()),
                    owner="local",
                    graph=graph,
                    graph_hash=f"blake3:{blake3(graph).hexdigest()}",
                    created_at=time.time(),
                    expires_in_s=86_400.0,
                    placement=Placement(pool="nowhere"),
                )
                for _ in range(min(500, count - done))
            )
            await asyncio.gather(
                *(stores.jobs.submit(one, idempotency=None, depth_limit=10_000_000) for one in made)
            )


def _paint(browser: Chromium, fleet: Fleet, path: str) -> float:
    """Return after how many seconds a page that the browser has never seen shows something."""
    with browser.page() as page:
        page.goto(f"{fleet.console_url}/console/{path}")
        page.until(_PAINT, what="something is painted")
        return float(page.evaluate(_PAINT)) / 1000


async def _events(browser: Chromium, fleet: Fleet) -> list[float]:
    """Return after how many seconds a page shows that a node was drained, or that it may have jobs again."""
    found = []

    def opened(page: Page) -> None:
        page.goto(f"{fleet.console_url}/console/nodes?q={NODE}")
        page.see("#link-state", "live")

    with browser.page() as page:
        await asyncio.to_thread(opened, page)
        async with fleet.stores() as stores:
            for number in range(EVENTS):
                await asyncio.to_thread(page.evaluate, _WATCH % {"node": NODE})
                began = time.time()
                if number % 2:
                    await stores.nodes.uncordon(NODE)
                else:
                    await stores.nodes.cordon(NODE, reason="measured")
                await asyncio.to_thread(page.until, "window.__changed", what="the page has changed")
                found.append(float(await asyncio.to_thread(page.evaluate, "window.__changed")) / 1000 - began)
                await asyncio.sleep(0.7)
    return found
