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
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.fuzz import bodies, inside
from benchmarks.fuzz.inside import Finding, Outcome
from benchmarks.fuzz.target import Target
from benchmarks.people import Users
from benchmarks.stage import Fleet, Options, Stage

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "ignored_auth"),
    *("response_headers_conformance", "response_schema_conformance"),
)
ANSWER_S = 30.0
SEVERAL = 400
"""Requests that are drawn for one operation at most; the time ends most runs earlier."""
_LEAST_S = 20.0
_A_SECOND = 10
"""Requests that are drawn, sent and judged in a second, on a busy machine."""
_SETTINGS: Mapping[str, str] = {"FLEET_LOG_LEVEL": "warning", "FLEET_GENERATE_WORKFLOW": "image_card"}
_GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}
ROLES = ("operator", "user-1")
SURFACES = ("v1", "v2")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What schemathesis is told."""

    fleet: Fleet
    surface: str
    key: str
    ids: Mapping[str, list[str]]


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
        nodes = await stage.sims(1)
        fleet = await stage.fleet(nodes, env={**_SETTINGS, **users.env}, queue_depth=1000)
        plans: list[tuple[str, Callable[[float, int], Awaitable[Outcome]]]] = []
        if only != "bodies":
            plans += _documents(fleet, users, begin)
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
    fleet: Fleet, users: Users, begin: int
) -> list[tuple[str, Callable[[float, int], Awaitable[Outcome]]]]:
    keys = {**users.keys, "operator": users.operator}

    def plan(name: str, surface: str, key: str) -> Callable[[float, int], Awaitable[Outcome]]:
        async def run(seconds: float, cases: int) -> Outcome:
            ids = await _objects(fleet, users, key)
            asked = Asked(fleet=fleet, surface=surface, key=key, ids=ids)
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


async def _objects(fleet: Fleet, users: Users, key: str) -> dict[str, list[str]]:
    """Make one object of each kind, and return their ids by the documents' names for them."""
    own = {"Authorization": f"Bearer {key}"}
    operator = {"Authorization": f"Bearer {users.operator}"}
    async with httpx.AsyncClient(base_url=fleet.console_url, timeout=60, trust_env=False) as http:
        job = (await http.post("/api/v2/jobs", json={"workflow": _GRAPH}, headers=own)).json()["id"]
        sent = {"file": ("a.png", b"\x89PNG\r\n\x1a\n", "image/png")}
        asset = (await http.post("/api/v2/assets", files=sent, headers=own)).json()
        for path, body in (
            ("tenants", {"name": "studio"}),
            ("users", {"name": "ada", "tenant": "studio"}),
            ("agent-tokens", {"host": "h2"}),
        ):
            await http.post(f"/api/v1/{path}", json=body, headers=operator)
        made = (await http.post("/api/v1/keys", json={"user": "ada"}, headers=operator)).json()
        await http.put("/api/v1/workflows/stored", json={"graph": _GRAPH}, headers=own)
    return {
        "job_id": [job],
        "task_id": [job],
        "asset_id": [asset.get("id", "x")],
        "hash": [asset.get("hash", "x")],
        "workflow": ["stored", "image_card"],
        "node": ["node-1"],
        "pool": ["default"],
        "tenant": ["studio"],
        "user": ["ada"],
        "key": [made.get("id", "x")],
        "key_id": [made.get("id", "x")],
    }


def _ask(name: str, asked: Asked, folder: Path, seconds: float, begin: int) -> Outcome:
    """Let schemathesis ask, and read its report."""
    report, config = folder / f"{name}.ndjson", folder / f"{name}.toml"
    lines = [f"{name} = {json.dumps(values)}" for name, values in asked.ids.items()]
    expected = '["2xx", "3xx", "4xx", "503"]'  # 503: nobody is there, or it is too much; with Retry-After
    config.write_text(
        "\n".join(["[checks.not_a_server_error]", f"expected-statuses = {expected}", "[parameters]", *lines])
    )
    base = asked.fleet.console_url
    argv = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"),
        *(f"{base}/api/{asked.surface}/openapi.json", "--url", base),
        *("--header", f"Authorization: Bearer {asked.key}", "--checks", ",".join(CHECKS)),
        *("--max-response-time", f"{ANSWER_S:g}", "--request-timeout", f"{ANSWER_S:g}"),
        *("--seed", str(begin), "--max-examples", str(SEVERAL), "--max-time", str(int(seconds))),
        # A stream of events ends with its job, which may wait for ever.
        *("--exclude-path-regex", "/events$", "--continue-on-failure", "--suppress-health-check", "all"),
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
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    out.seconds = time.monotonic() - began
    text = done.stdout
    if found := re.search(r"([\d,]+) (?:generated|tested|test cases)", text):
        out.cases = int(found[1].replace(",", ""))
    if done.returncode:
        told = text.partition("= FAILURES =")[2] or text + done.stderr
        out.add(Finding(what=told[:20_000], again=f"scripts/fuzz --target {name} --seed {begin}"))
    return out
