"""A whole fleet on loopback, asked for everything that its OpenAPI documents describe, and what they do not.

Requests by the documents are drawn, sent and judged by schemathesis, in a process of its own.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fuzz import bodies, inside
from benchmarks.fuzz.inside import Finding, Outcome
from benchmarks.fuzz.target import Target
from benchmarks.people import Users
from benchmarks.stage import Fleet, Options, Stage
from comfy_fleet.settings import SOURCE

ANSWER_S = 30.0
SEVERAL = 400
"""Requests that are drawn for one operation at most; the time ends most runs earlier."""
_TRIES = 20
"""Requests to an operation of which one at least has to succeed."""
_LEAST_S = 20.0
_A_SECOND = 10
"""Requests that are drawn, sent and judged in a second, on a busy machine."""
_SETTINGS: Mapping[str, str] = {"FLEET_LOG_LEVEL": "warning", "FLEET_GENERATE_WORKFLOW": "image_card",
                                  "FLEET_WEBHOOK_ALLOW": "127.0.0.1"}  # fmt: skip
_EXCEPT: Sequence[tuple[str, Mapping[str, str]]] = (
    # OpenAPI 3.0 describes a stream of events only as text.
    ("response_schema_conformance", {"include-path-regex": "/events$"}),
    # A file has a type of its own; clients' generators want one name for all of them.
    ("content_type_conformance", {"include-path-regex": "/content$"}),
    # No schema says that a hash is that of the file, nor what parts a path may have.
    ("positive_data_acceptance", {"include-path": "/api/v2/assets"}),
)
"""Checks that can't hold for some operations."""
_NEVER: Mapping[str, str] = {
    "POST /api/v1/agents/{host}/heartbeat": "takes agents' tokens only: the target heartbeats asks it",
    "POST /api/v1/nodes/{node}/restart": "needs an agent that runs the node",
}
"""Operations that take nothing from anybody here, and why."""
ROLES = ("operator", "user-1")
SURFACES = ("v1", "v2")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What schemathesis is told."""

    fleet: Fleet
    surface: str
    objects: Mapping[str, str]


def fuzz(
    only: str, target: str, *, cases: int, until: float, begin: int, say: Callable[[str], None]
) -> list[Outcome]:
    """Ask a fleet by both documents, as an operator and as a user, and at ComfyUI's own routes.

    Args:
        only: ``api`` or ``bodies``; empty: both.
        target: One of ``api-v1-operator``, ``native-routes`` and so on; empty: all.
        cases: Of all together; by its time, a run may end earlier or later.
        until: Monotonic time at which it should be over.
        begin: The seed.
        say: Told what goes on.
    """
    return asyncio.run(_fuzz(only, target, cases, until, begin, say))


async def _fuzz(
    only: str, target: str, cases: int, until: float, begin: int, say: Callable[[str], None]
) -> list[Outcome]:
    options = Options(bench_python=Path(sys.executable), say=say)
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(Stage(options))
        users = Users.write(stage, 2)
        nodes = await stage.sims(2)
        fleet = await stage.fleet(nodes[:1], env={**_SETTINGS, **users.env}, queue_depth=1000)
        plans: list[tuple[str, Callable[[float, int], Awaitable[Outcome]]]] = []
        if only != "bodies":
            plans += _documents(fleet, users, nodes[1], begin)
        if only != "api":
            own = bodies.targets(fleet.url, fleet.console_url, users.keys["user-1"], users.agent)
            plans += [(one.name, _drawn(one, begin)) for one in stack.enter_context(own)]
        plans = [plan for plan in plans if target in ("", plan[0])]
        outcomes: list[Outcome] = []
        for number, (name, plan) in enumerate(plans):
            say(f"{name} ({number + 1} of {len(plans)})")
            left = len(plans) - number
            seconds = max(_LEAST_S, (until - time.monotonic()) / left)
            before = len(stage.warnings)
            out = await plan(seconds, max(1, cases // left))
            for line in stage.warnings[before:]:
                out.add(Finding(what=f"in the log: {line}"))
            stage.check()
            cases -= out.cases
            outcomes.append(out)
        return outcomes


def _documents(
    fleet: Fleet, users: Users, spare: str, begin: int
) -> list[tuple[str, Callable[[float, int], Awaitable[Outcome]]]]:
    keys = {**users.keys, "operator": users.operator}

    def plan(name: str, surface: str, key: str) -> Callable[[float, int], Awaitable[Outcome]]:
        async def run(seconds: float, cases: int) -> Outcome:
            objects = {
                "url": fleet.console_url,
                "key": key,
                "operator": users.operator,
                "agent": users.agent,
                "node": spare,
            }
            asked = Asked(fleet=fleet, surface=surface, objects=objects)
            seconds = min(seconds, max(_LEAST_S, cases / _A_SECOND))
            return await asyncio.to_thread(_ask, name, asked, fleet.stage.folder, seconds, begin)

        return run

    return [
        (name := f"api-{surface}-{role.partition('-')[0]}", plan(name, surface, keys[role]))
        for surface in SURFACES
        for role in ROLES
    ]


def _drawn(one: Target, begin: int) -> Callable[[float, int], Awaitable[Outcome]]:
    async def run(seconds: float, cases: int) -> Outcome:
        until = time.monotonic() + seconds

        def work() -> Outcome:
            return inside.fuzz(one, cases=cases, until=until, begin=begin, say=lambda _: None)

        return await asyncio.to_thread(work)

    return run


def _ask(name: str, asked: Asked, folder: Path, seconds: float, begin: int) -> Outcome:
    """Let schemathesis ask, and read its report."""
    report, config, counts = (folder / f"{name}.{end}" for end in ("ndjson", "toml", "json"))
    # 503: nobody is there, or it is too much. 502 and 504 only where the document says so: another check.
    expected = '["2xx", "3xx", "4xx", "502", "503", "504"]'
    lines = ["[checks.not_a_server_error]", f"expected-statuses = {expected}"]
    lines += ["[phases.examples]", "fill-missing = true"]
    for check, which in _EXCEPT:
        lines += ["[[operations]]", *(f"{one} = {json.dumps(text)}" for one, text in which.items())]
        lines += [f"checks.{check}.enabled = false"]
    config.write_text("\n".join(lines))
    base = asked.fleet.console_url
    argv = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"),
        *(f"{base}/api/{asked.surface}/openapi.json", "--url", base),
        *("--header", f"Authorization: Bearer {asked.objects['key']}"),
        *("--max-response-time", f"{ANSWER_S:g}", "--request-timeout", f"{ANSWER_S:g}"),
        *("--seed", str(begin), "--max-examples", str(SEVERAL), "--max-time", str(int(seconds))),
        *("--continue-on-failure", "--suppress-health-check", "all"),
        *(
            "--report",
            "ndjson",
            "--report-ndjson-path",
            str(report),
            "--no-color",
            "--generation-database",
            "none",
        ),
    ]
    out = Outcome(name=name, way="schemathesis")
    began = time.monotonic()
    environment = {
        **os.environ,
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(SOURCE),
        "SCHEMATHESIS_HOOKS": "benchmarks.fuzz.asking",
        "FUZZ_OBJECTS": json.dumps({"fleet": dict(asked.objects), "counts": str(counts)}),
    }
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    out.seconds = time.monotonic() - began
    text = done.stdout
    if found := re.search(r"([\d,]+) (?:generated|tested|test cases)", text):
        out.cases = int(found[1].replace(",", ""))
    if counts.exists():
        _count(out, json.loads(counts.read_text()))
    if done.returncode:
        told = text.partition("= FAILURES =")[2] or text + done.stderr
        out.add(Finding(what=told[:20_000], again=f"scripts/fuzz --target {name} --seed {begin}"))
    return out


def _count(out: Outcome, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Note which operations have taken anything; one that takes nothing is hardly tried."""
    allowed = {label: one for label, one in counts.items() if not one.keys() <= {"401", "403"}}
    taken = [label for label, one in allowed.items() if any(status < "4" for status in one)]
    out.taken = f"{len(taken)} of {len(counts)}"
    out.untaken = sorted(allowed.keys() - set(taken))
    for label in out.untaken:
        if label not in _NEVER and sum(counts[label].values()) >= _TRIES:
            out.add(Finding(what=f"{label} never succeeds: {dict(counts[label])}"))
