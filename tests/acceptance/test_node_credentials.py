"""Nodes that ask for a user and password: they work, and nothing tells the password."""

import asyncio
import base64
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.comfyui_server import ComfyServer
from tests.conftest import free_port
from tests.factories import picture
from tests.tls_proxy import Proxy

PASSWORDS = {"far": "operator:hunter2@/#% =", "further": "ops:swordfish"}
URL_FORM = {"far": "operator:hunter2%40%2F%23%25%20=", "further": "ops:swordfish"}


@contextmanager
def behind_password(name: str, port: int | None = None) -> Iterator[Proxy]:
    """Serve a node behind a proxy, in a thread of its own: that on ``port``, or else a simulated one."""
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()

    async def serve() -> Proxy:
        options = NodeOptions(name=name, timing=SimTiming(scale=0))
        to = port or (await stack.enter_async_context(SimNode(options, port=free_port()))).port
        proxy = Proxy(to, prefix="/comfy", context=None, credentials=PASSWORDS[name])
        return await stack.enter_async_context(proxy)

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(serve(), loop).result(20)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def with_password(proxy: Proxy, name: str) -> str:
    return proxy.url.replace("://", f"://{URL_FORM[name]}@")


def fleet_says(up: Up, *arguments: str, stdin: str = "") -> str:
    command = [sys.executable, "-m", "comfy_fleet", *arguments, "--api", up.console]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def node(up: Up, name: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{up.console}/api/v1/nodes/{name}").json()
    return found


def runs_a_job(up: Up, color: int) -> str:
    """Run a job; returns its node."""
    answer = httpx.post(f"{up.url}/api/v2/jobs", json={"workflow": picture(color)})
    assert answer.status_code == 201, answer.text
    until = time.monotonic() + 60
    while True:
        job = httpx.get(f"{up.url}/api/v1/jobs/{answer.json()['id']}").json()
        if job["status"] == "succeeded":
            return str(job["node"])
        assert time.monotonic() < until, job
        time.sleep(0.05)


def tells(text: str | bytes) -> list[str]:
    """Return which passwords a text tells, however they are written."""
    read = text if isinstance(text, str) else text.decode("latin-1")
    secrets = [*PASSWORDS.values(), *URL_FORM.values()]
    secrets += [base64.b64encode(value.encode()).decode() for value in PASSWORDS.values()]
    return [secret for secret in [*secrets, "hunter2", "swordfish"] if secret in read]


@pytest.fixture(scope="module")
def proxies() -> Iterator[dict[str, Proxy]]:
    with behind_password("far") as far, behind_password("further") as further:
        yield {"far": far, "further": further}


def test_they_work_and_nothing_tells_the_password(tmp_path: Path, proxies: dict[str, Proxy]) -> None:
    data = tmp_path / "data"
    up = start_fleet(data, "--node", f"far={with_password(proxies['far'], 'far')}")
    try:
        said = fleet_says(
            up,
            *("node", "add", "further", proxies["further"].url, "--credentials", "-", "--wait"),
            stdin=f"{PASSWORDS['further']}\n",
        )
        assert "unencrypted" in said
        fleet_says(up, "node", "drain", "far")
        assert runs_a_job(up, 1) == "further"
        fleet_says(up, "node", "resume", "far")
        fleet_says(up, "node", "drain", "further")
        assert runs_a_job(up, 2) == "far"
        assert (proxies["far"].refused, proxies["further"].refused) == (0, 0)
        for name, proxy in proxies.items():
            assert (node(up, name)["url"], node(up, name)["credentials"]) == (proxy.url, True)
        said += fleet_says(up, "node", "ls") + fleet_says(up, "node", "ls", "--json")
        for name in proxies:
            shown = fleet_says(up, "node", "show", name)
            assert "not shown" in shown
            said += shown + fleet_says(up, "node", "show", name, "--json")
        for path in ("nodes", "nodes?sealed=true", "hosts", "nodes-diff", "openapi.json"):
            said += httpx.get(f"{up.url}/api/v1/{path}").text
        for command in (("haproxy", "render"), ("haproxy", "show", "--pinned"), ("status",), ("doctor",)):
            done = subprocess.run(
                [sys.executable, "-m", "comfy_fleet", *command, "--data", str(data)],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            said += done.stdout + done.stderr
        assert tells(said) == []
        _change(up, proxies)
        for file in data.rglob("*"):
            # The map is what HAProxy reads; `.new` is how it is written.
            if file.is_file() and file.name not in ("nodes.map", "nodes.map.new"):
                with contextlib.suppress(FileNotFoundError):
                    assert tells(file.read_bytes()) == [], file
        assert (data / "run" / "nodes.map").stat().st_mode & 0o077 == 0
        note = json.loads((data / "run" / "up.json").read_text())
        with redis.Redis.from_url(note["settings"]["redis_url"]) as store:
            for key in store.scan_iter():
                assert tells(store.dump(key) or b"") == [], key
    finally:
        stop_fleet(up)
    assert tells((tmp_path / "data.log").read_bytes()) == []
    up = start_fleet(data, "--node", f"far={with_password(proxies['far'], 'far')}")
    try:
        assert node(up, "far")["done"] == 1  # the same password is no reason to register it anew
        assert runs_a_job(up, 3) == "far"
    finally:
        stop_fleet(up)


@pytest.mark.comfyui
def test_a_real_comfyui_behind_a_password(tmp_path: Path, comfyui_server: ComfyServer) -> None:
    with behind_password("far", comfyui_server.port) as proxy:
        up = start_fleet(tmp_path / "data", "--node", f"far={with_password(proxy, 'far')}")
        try:
            assert [runs_a_job(up, color) for color in (4, 5)] == ["far", "far"]
            assert node(up, "far")["comfyui"]
            assert proxy.refused == 0
        finally:
            stop_fleet(up)


def _change(up: Up, proxies: dict[str, Proxy]) -> None:
    """A node's password changes, and it is added anew with the new one."""
    body = {"name": "further", "url": with_password(proxies["further"], "further")}
    taken = httpx.post(f"{up.console}/api/v1/nodes", json=body)
    assert taken.status_code == 409
    assert tells(taken.text) == []
    wrong = {"name": "else", "url": "http://u:hunter2%@h"}
    refused = httpx.post(f"{up.console}/api/v1/nodes", json=wrong)
    assert refused.status_code == 400
    assert refused.json()["error"]["details"]["field"] == "url"
    assert tells(refused.text) == []
    httpx.delete(f"{up.console}/api/v1/nodes/further").raise_for_status()
    bad = body | {"url": proxies["further"].url.replace("://", "://ops:wrong@")}
    assert httpx.post(f"{up.console}/api/v1/nodes", json=bad).status_code == 201
    until = time.monotonic() + 60
    while "refuses its user and password: 401" not in str(node(up, "further")["why"]):
        assert time.monotonic() < until, node(up, "further")
        time.sleep(0.1)
    httpx.delete(f"{up.console}/api/v1/nodes/further").raise_for_status()
