"""Submits at a fixed rate, whatever becomes of them: a load that does not slow down with the server."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

from benchmarks.clients import trivial_graph
from benchmarks.rawhttp import RawAnswer, RawConnection
from benchmarks.told import tell
from comfy_fleet.timeouts import Timeout

ANSWER_S = 30.0
"""A submit that is not answered for so long has failed."""


@dataclass(kw_only=True)
class _Count:
    """What was answered; times in seconds since each submit was due."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    retry_after: Counter[str] = field(default_factory=Counter)
    late_s: float = 0.0


async def flood(url: str, keys: Sequence[str], rate: float, seconds: float) -> dict[str, Any]:
    """Submit trivial jobs, so many a second, by users in turn.

    A submit's time counts from when it was due, so that one which this process or the server held up is no
    shorter for it.

    Returns:
        ``accepted`` and ``refused`` (times in seconds), ``ids`` (of accepted jobs), ``answers`` (by status
        and code), ``wrong`` (what no client should get, as often as it came), ``retry_after`` (seconds, as
        often as they were named), ``late_s`` (the longest time after which a submit was sent too late).
    """
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    host, port = parts.hostname, parts.port
    idle: list[RawConnection] = []
    count = _Count()

    async def one(key: str, due: float) -> None:
        count.late_s = max(count.late_s, time.perf_counter() - due)
        body = orjson.dumps({"workflow": trivial_graph()})
        connection = None
        try:
            async with Timeout(ANSWER_S):
                while idle and idle[-1].ended:
                    idle.pop().abort()
                connection = idle.pop() if idle else await RawConnection.open(host, port)
                answer = await connection.ask(
                    "POST", "/api/v2/jobs", body, {"Authorization": f"Bearer {key}"}
                )
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            count.wrong[f"no answer: {type(error).__name__}"] += 1
            if connection is not None:
                connection.abort()
            return
        idle.append(connection)
        _note(count, answer, time.perf_counter() - due)

    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()
    for number in range(round(rate * seconds)):
        due = began + number / rate
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        task = asyncio.create_task(one(keys[number % len(keys)], due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if number % round(rate) == 0:
            said = {"accepted": len(count.accepted), "answers": dict(count.answers)}
            tell({"done": number, **said})
    await asyncio.gather(*tasks)
    for connection in idle:
        await connection.close()
    return vars(count)


def _note(count: _Count, answer: RawAnswer, took_s: float) -> None:
    if answer.status == 201:
        count.accepted.append(took_s)
        count.ids.append(str(orjson.loads(answer.body)["id"]))
        count.answers["201"] += 1
        return
    try:
        word = f"{answer.status} {orjson.loads(answer.body)['error']['code']}"
    except (ValueError, KeyError, TypeError):
        word = f"{answer.status} {answer.body[:120].decode(errors='replace')}"
    after = answer.headers.get("retry-after", "")
    count.answers[word] += 1
    if answer.status not in (429, 503) or not after.isdecimal() or int(after) < 1:
        count.wrong[f"{word}, Retry-After {after or 'missing'}"] += 1
        return
    count.refused.append(took_s)
    count.retry_after[after] += 1
