"""Everybody who uses and attacks a fleet in a soak, in a process of its own.

``python -m benchmarks.soak_clients ARGUMENTS`` with the arguments as a JSON object: ``url`` and ``console``,
``keys`` (by user), ``operator``, ``agent``, ``nodes`` (URLs of simulated ones), ``hooks`` (where webhooks
go), ``jobs``, ``at_once``, ``pace_s`` (least seconds between a visitor's jobs), ``attacks`` (whether
there are any), ``seed``. Once a second it tells as JSON what happened, and ends with the jobs.
"""

import asyncio
import contextlib
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import aiohttp
import orjson
import uvloop

from benchmarks.attacks import Attackers
from benchmarks.hostile_node import HostileProxy
from benchmarks.told import tell
from benchmarks.visits import Diary, Visitor

QUICK, SLOW = 3, 6
"""Attackers that come again at once, and such that stay."""
FAULT_S = (2.0, 8.0)
FAULTS: tuple[dict[str, Any], ...] = (
    {"execution_error": 1},
    {"reject": 1},
    {"close_sockets": 1},
    {"drop_last": 1},
    {"partial": 1},
    {"history_lost": 1},
    {"crash_mid_run": 1, "restart_after_s": 1.0},
)
HOSTILE_S, SOUND_S = 20.0, 10.0
HOSTILE = "hostile"
"""Name of the node that answers badly, and of its pool."""
REST_S = 20.0


class SoakClients:
    """All of them.

    Args:
        told: The arguments, see the module.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self._rng = random.Random(told["seed"])
        self._diary = Diary()
        self._attackers = Attackers(
            url=told["url"],
            console=told["console"],
            key=next(iter(told["keys"].values())),
            agent=told["agent"],
            rng=random.Random(told["seed"] + 1),
        )
        self._begun = 0
        self._faults = 0

    async def run(self) -> None:
        """Work until all jobs have ended."""
        others = [asyncio.create_task(self._tell())]
        if self._told["attacks"]:
            others += [
                asyncio.create_task(self._attackers.run(QUICK, SLOW)),
                asyncio.create_task(self._break_nodes()),
                asyncio.create_task(self._send_hostile_nodes()),
            ]
        visits = [asyncio.create_task(self._visit(number)) for number in range(self._told["at_once"])]
        working = asyncio.create_task(_all(visits))
        # None of the others ends by itself: if one does, it has failed.
        await asyncio.wait([working, *others], return_when=asyncio.FIRST_COMPLETED)
        for task in (working, *others):
            task.cancel()
        results = await asyncio.gather(working, *others, return_exceptions=True)
        self._say()
        for one in results:
            if isinstance(one, Exception):
                raise one

    async def _visit(self, number: int) -> None:
        users = list(self._told["keys"].items())
        user, key = users[number % len(users)]
        connector = aiohttp.TCPConnector(limit=8)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as http:
            visitor = Visitor(
                http,
                url=self._told["url"],
                user=user,
                key=key,
                hooks=self._told["hooks"],
                diary=self._diary,
                rng=self._rng,
            )
            while self._begun < self._told["jobs"]:
                self._begun += 1
                await asyncio.gather(visitor.visit(), asyncio.sleep(self._told["pace_s"]))

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._say()

    def _say(self) -> None:
        diary, self._diary.accepted, self._diary.ended = asdict(self._diary), [], []
        said = {**diary, "attacks": vars(self._attackers.tally), "faults": self._faults}
        tell(said)

    async def _break_nodes(self) -> None:
        """Have nodes fail, each in one way at a time."""
        async with aiohttp.ClientSession() as http:
            while True:
                await asyncio.sleep(self._rng.uniform(*FAULT_S))
                url = f"{self._rng.choice(self._told['nodes'])}/sim/faults"
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.post(url, json=self._rng.choice(FAULTS)) as answer:
                        answer.raise_for_status()
                        self._faults += 1

    async def _send_hostile_nodes(self) -> None:
        """Have a node join that is sound at first and then is not; and have it go again."""
        headers = {"Authorization": f"Bearer {self._told['operator']}"}
        nodes = f"{self._told['console']}/api/v1/nodes"
        async with aiohttp.ClientSession(headers=headers) as http:
            while True:
                async with HostileProxy(self._told["nodes"][0], self._rng) as proxy:
                    body = {"name": HOSTILE, "url": proxy.url, "pool": HOSTILE}
                    with contextlib.suppress(aiohttp.ClientError):
                        async with http.post(nodes, json=body) as answer:
                            await answer.read()
                    await asyncio.sleep(SOUND_S)
                    proxy.bad = True
                    await self._try_hostile(http)
                    with contextlib.suppress(aiohttp.ClientError):
                        async with http.delete(f"{nodes}/{HOSTILE}?force=true") as answer:
                            await answer.read()
                await asyncio.sleep(REST_S)

    async def _try_hostile(self, http: aiohttp.ClientSession) -> None:
        """Submit jobs for the bad node, and cancel those that it has not ended in time."""
        url = f"{self._told['url']}/api/v2/jobs"
        body = {"1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1}}}
        body["2"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
        until = asyncio.get_running_loop().time() + HOSTILE_S
        made = []
        while asyncio.get_running_loop().time() < until:
            with contextlib.suppress(aiohttp.ClientError, KeyError):
                async with http.post(url, json={"workflow": body, "pool": HOSTILE}) as answer:
                    if answer.status == 201:
                        made.append(str((await answer.json())["id"]))
                        self._diary.accepted.append(made[-1])
            await asyncio.sleep(4)
        operator = Visitor(
            http,
            url=self._told["url"],
            user="operator",
            key=self._told["operator"],
            hooks="",
            diary=self._diary,
            rng=self._rng,
        )
        for job_id in made:
            await operator.end(job_id)


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)


def main() -> None:
    """Run what the command line says."""
    uvloop.run(SoakClients(orjson.loads(sys.argv[1])).run())


if __name__ == "__main__":
    main()
