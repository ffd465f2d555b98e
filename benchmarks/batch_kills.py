"""``python -m benchmarks.batch_kills``: kill a fleet's processes while batches are sent and run again.

Clients send batches, each with an idempotency key, and repeat what was not answered. Meanwhile the API, one
of two dispatchers or a node is killed with SIGKILL, again and again, and started anew. Some batches are
canceled half-way and their items run again. Afterwards every accepted batch must be there once, with each of
its items once, each of which has ended in one job of its own; no item may be in two jobs of a round; and
there must be one message ``batch.completed`` for each round of each batch.
"""

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import uvloop
from aiohttp import web
from rich.console import Console

from benchmarks.clients import trivial_graph
from benchmarks.operations import FINAL
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded
from comfy_fleet.cli.up import ports
from comfy_fleet.cli.up.supervisor import Supervised
from comfy_fleet.domain.backoff import Backoff

NODES, JOB_S = 4, 0.1
QUEUE_DEPTH = 40
"""Small: most of a batch waits until the queue has room."""
CANCELS = 3  # every so-manieth batch is canceled half-way, and what was canceled runs again
GAP_S = (0.3, 2.0)  # from the moment at which all answers again to the next kill
SETTLE_S = 240.0
TRIES_S = 0.3
LOOK_S = 0.5
PATIENCE_S = 20.0


@dataclass(kw_only=True)
class Kills:
    """What came of one round.

    Attributes:
        batches: How many were accepted.
        items: How many they have together.
        kills: How often what was killed.
        again: Batches that were canceled and run again.
        wrong: What must not be.
        took_s: From the first submit to the last end.
    """

    seed: int
    batches: int = 0
    items: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    again: int = 0
    wrong: list[str] = field(default_factory=list)
    took_s: float = 0.0


class Messages:
    """Receives webhooks; ``rounds`` has the ids of messages by batch and round."""

    def __init__(self) -> None:
        (self._port,) = ports.draw(1)
        self.url = f"http://127.0.0.1:{self._port}/hook"
        self.rounds: dict[tuple[str, int], set[str]] = {}
        app = web.Application()
        app.router.add_post("/hook", self._hear)
        self._runner = web.AppRunner(app)

    async def start(self) -> None:
        """Listen."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def stop(self) -> None:
        """Listen no more."""
        await self._runner.cleanup()

    async def _hear(self, request: web.Request) -> web.Response:
        told = (await request.json())["data"]
        place = str(told["id"]), int(told["round"])
        self.rounds.setdefault(place, set()).add(request.headers["webhook-id"])
        return web.Response(status=204)


def batch_kills(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each with a fleet and a seed of its own.")] = 1,
    batches: Annotated[int, typer.Option("--count", min=1, help="Batches in each.")] = 12,
    items: Annotated[int, typer.Option(min=1, help="Items of each batch.")] = 60,
    seed: Annotated[int | None, typer.Option(help="Repeats the choices of an earlier run.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results to this file.")
    ] = None,
) -> None:
    """Kill a fleet's processes while batches are sent, and look whether an item was lost or run twice."""
    console = Console()
    logging.disable(logging.WARNING)
    first = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    done: list[Kills] = []
    for number in range(rounds):
        chosen = first + number
        console.print(f"round {number + 1} of {rounds}: --seed {chosen} chooses the same", highlight=False)
        with console.status("starting a fleet") as status:
            try:
                done.append(uvloop.run(killed(batches, items, chosen, status.update)))
            except BenchError as error:
                console.print(f"[red]{error}[/]", highlight=False)
                raise typer.Exit(1) from None
        one = done[-1]
        console.print(
            f"{one.batches} batches of {one.items} items in {one.took_s:.0f} s; {one.again} canceled and "
            f"run again; killed: {', '.join(f'{name} {count} x' for name, count in one.kills.most_common())}",
            highlight=False,
        )
        console.print(f"[red]{len(one.wrong)} wrong[/]" if one.wrong else "nothing lost, nothing twice")
        for line in one.wrong[:20]:
            console.print(f"  {line}", highlight=False, markup=False)
        if json_file:
            json_file.write_text(json.dumps([asdict(kept) for kept in done], indent=1) + "\n")
    if any(one.wrong for one in done):
        raise typer.Exit(1)


async def killed(batches: int, items: int, seed: int, say: Callable[[str], None]) -> Kills:
    """Play one round.

    Raises:
        BenchError: It takes too long.
    """
    rng, made, messages = random.Random(seed), Kills(seed=seed), Messages()
    options = Options(bench_python=Path(sys.executable), say=say, backoff=Backoff(first_s=0.1, longest_s=1.0))
    async with Stage(options) as stage, bounded(2 * batches * items * JOB_S + 2 * SETTLE_S, "this round"):
        await messages.start()
        try:
            sims = await stage.sims_apart(NODES, job_s=JOB_S)
            fleet = await stage.fleet(
                [sim.url for sim in sims],
                dispatchers=2,
                queue_depth=QUEUE_DEPTH,
                env={"FLEET_WEBHOOK_ALLOW": "127.0.0.1", "FLEET_MAX_ATTEMPTS": "20"},
            )
            await fleet.until_up(NODES)
            assert fleet.api is not None
            targets = {
                "fleet api": [fleet.api],
                "a dispatcher": fleet.dispatchers,
                "a node": [sim.child for sim in sims],
            }
            began = time.monotonic()
            killing = asyncio.create_task(kill_on(fleet, targets, rng, made.kills, say))
            try:
                async with asyncio.TaskGroup() as group:
                    sent = [
                        group.create_task(_send(fleet, number, items, messages.url, made))
                        for number in range(batches)
                    ]
            finally:
                killing.cancel()
                await asyncio.gather(killing, return_exceptions=True)
            expected = dict(task.result() for task in sent)
            say("waiting for every end and every message")
            await _settle(expected, messages)
            made.took_s = time.monotonic() - began
            made.batches, made.items = len(expected), len(expected) * items
            await _look(fleet, expected, items, messages, made)
        finally:
            await messages.stop()
    return made


async def kill_on(
    fleet: Fleet,
    targets: Mapping[str, list[Supervised]],
    rng: random.Random,
    kills: Counter[str],
    say: Callable[[str], None],
) -> None:
    """Kill one of the processes after the other until canceled, each once the API answers."""
    async with httpx.AsyncClient(base_url=fleet.url, trust_env=False, timeout=PATIENCE_S) as http:
        while True:
            await answered(http, "GET", "/api/v1/batches")
            await asyncio.sleep(rng.uniform(*GAP_S))
            name = rng.choice(list(targets))
            if pid := rng.choice(targets[name]).pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills[name] += 1
            say(f"{kills.total()} kills")


async def answered(http: httpx.AsyncClient, method: str, path: str, **more: Any) -> httpx.Response:
    """Ask until there is an answer that says something."""
    while True:
        with contextlib.suppress(httpx.HTTPError):
            answer = await http.request(method, path, **more)
            if answer.status_code < 500 and answer.status_code != 429:
                return answer
        await asyncio.sleep(TRIES_S)


async def _send(fleet: Fleet, number: int, items: int, hook: str, made: Kills) -> tuple[str, int]:
    """Send a batch until it is accepted; cancel and repeat some; return its id and its number of rounds."""
    rows = [{"custom_id": f"{number}-{item}", "workflow": trivial_graph()} for item in range(items)]
    async with httpx.AsyncClient(base_url=fleet.url, trust_env=False, timeout=PATIENCE_S) as http:
        answer = await answered(
            http,
            "POST",
            "/api/v2/batches",
            json={"items": rows, "webhook_url": hook},
            headers={"Idempotency-Key": f"kills-{number}"},
        )
        if answer.status_code != 201:
            raise BenchError(f"a batch was refused: {answer.text[:300]}")
        batch_id = answer.json()["id"]
        path = f"/api/v1/batches/{batch_id}"
        rounds = 1
        if number % CANCELS == 0:
            await _until(http, path, lambda found: found["counts"]["succeeded"] > 0)
            await answered(http, "POST", f"{path}/cancel")
            await _until(http, path, lambda found: found["status"] == "completed")
            again = await answered(
                http,
                "POST",
                f"{path}/retry",
                json={"statuses": ["canceled", "failed"]},
                headers={"Idempotency-Key": f"kills-{number}-again"},
            )
            if again.status_code != 200:
                raise BenchError(f"a retry was refused: {again.text[:300]}")
            if again.json()["round"] == 2:
                made.again += 1
                rounds = 2
        await _until(http, path, lambda found: found["status"] == "completed")
    return batch_id, rounds


async def _until(http: httpx.AsyncClient, path: str, there: Callable[[dict[str, Any]], bool]) -> None:
    while True:
        if there((await answered(http, "GET", path, params={"limit": 0})).json()):
            return
        await asyncio.sleep(LOOK_S)


async def _settle(expected: Mapping[str, int], messages: Messages) -> None:
    until = time.monotonic() + SETTLE_S
    while len(messages.rounds) < sum(expected.values()):
        if time.monotonic() > until:
            break
        await asyncio.sleep(LOOK_S)
    await asyncio.sleep(2 * LOOK_S)  # one too many would come now


async def _look(
    fleet: Fleet, expected: Mapping[str, int], items: int, messages: Messages, made: Kills
) -> None:
    """Compare what is there with what was accepted."""
    async with httpx.AsyncClient(base_url=fleet.url, trust_env=False, timeout=PATIENCE_S) as http:
        listed = await pages(http, "/api/v1/batches", "batches")
        if strange := {one["id"] for one in listed} ^ expected.keys():
            made.wrong.append(f"batches that nobody knows of, or that are lost: {', '.join(strange)}")
        jobs = await pages(http, "/api/v1/jobs", "jobs")
        by_item = Counter((job["batch_id"], job["custom_id"]) for job in jobs)
        current: set[str] = set()
        for batch_id, rounds in expected.items():
            found = await pages(http, f"/api/v1/batches/{batch_id}", "items")
            for name, count in Counter(one["custom_id"] for one in found).items():
                if count != 1:
                    made.wrong.append(f"batch {batch_id}: item {name} is there {count} times")
            if len(found) != items:
                made.wrong.append(f"batch {batch_id}: {len(found)} of {items} items")
            for one in found:
                current.add(one["job_id"])
                count = by_item[batch_id, one["custom_id"]]
                if one["status"] != "succeeded" or not 1 <= count <= rounds:
                    made.wrong.append(f"batch {batch_id}: {one['custom_id']} {one['status']}, {count} jobs")
            for round_ in range(1, rounds + 1):
                told = messages.rounds.pop((batch_id, round_), set())
                if len(told) != 1:
                    made.wrong.append(f"batch {batch_id}: {len(told)} messages of round {round_}")
        made.wrong += [f"a message of round {place[1]} of batch {place[0]}" for place in messages.rounds]
        for job in jobs:
            if job["status"] not in FINAL:
                made.wrong.append(f"job {job['id']} is {job['status']}")
            elif job["id"] not in current and job["status"] == "succeeded":
                made.wrong.append(f"job {job['id']} has succeeded and is nobody's: an item was run twice")


async def pages(http: httpx.AsyncClient, path: str, name: str) -> list[dict[str, Any]]:
    """Return all of a listing."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        asked = {"limit": 100, **({} if cursor is None else {"cursor": cursor})}
        page = (await answered(http, "GET", path, params=asked)).json()
        found += page[name]
        if (cursor := page["next_cursor"]) is None:
            return found


if __name__ == "__main__":
    sys.argv[0] = "scripts/chaos --batches"
    typer.run(batch_kills)
