"""Stored workflows as tools, for the unmodified ``mcp`` client, against a fleet with simulated nodes."""

import asyncio
import base64
import contextlib
import io
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import uvicorn
from blake3 import blake3
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from PIL import Image

from comfy_fleet.client import AsyncFleetClient
from comfy_fleet.mcp.over_http import app_of, key_of
from comfy_fleet.mcp.server import FleetTools
from tests.conftest import free_port
from tests.fleet import until
from tests.integration.sharing_kit import Sharing, sharing
from tests.integration.test_batches import GRAPH, TABLE
from tests.integration.test_input_urls import png, uri
from tests.integration.test_limits import ANN, key_with, limited
from tests.web_site import page, site

NAMED = """
title = "A copy\\u0007"
description = "Copies a picture."
"""


@pytest.fixture
async def world(redis_port: int, redis: Any, tmp_path: Path) -> AsyncIterator[Sharing]:
    options = {"fetch_allow": "127.0.0.1", "fetch_bytes": 1_000_000}
    async with sharing(redis_port, tmp_path, "g1", manifest=NAMED + TABLE, graph=GRAPH, api=options) as made:
        yield made


def stdio(world: Sharing, *options: str, **env: str) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "comfy_fleet", "mcp", "--api", world.api.url, *options],
        env={"PATH": os.environ["PATH"], **env},
    )


@asynccontextmanager
async def over_http(
    url: str, *, keys_needed: bool = False, own_key: str | None = None, look_s: float = 15.0, **more: Any
) -> AsyncIterator[str]:
    """Serve as ``fleet mcp --http`` does, in this event loop."""

    def connect(shown: str | None) -> AsyncFleetClient:
        return AsyncFleetClient(url, shown or "")

    tools = FleetTools(connect, key_of=key_of, own_key=own_key, wait_s=60, most_bytes=500_000, look_s=look_s)
    port = free_port()
    config = uvicorn.Config(
        app_of(tools, keys_needed=keys_needed, **more),
        port=port,
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, what="it serves")
    try:
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.should_exit = True
        await serving


def words(result: CallToolResult) -> str:
    return "\n".join(one.text for one in result.content if one.type == "text")


def pictures(result: CallToolResult) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(one.data))) for one in result.content if one.type == "image"
    ]


async def test_an_agent_finds_tools_runs_one_and_sees_the_picture(world: Sharing, tmp_path: Path) -> None:
    told: list[tuple[float, str | None]] = []

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    async with Client(stdio(world)) as agent:
        tools = {tool.name: tool for tool in (await agent.list_tools()).tools}
        assert tools.keys() == {"noise", "fleet_job", "fleet_cancel", "fleet_status"}
        tool = tools["noise"]
        assert tool.title == "A copy" and (tool.description or "").startswith("Copies a picture.")
        properties = tool.input_schema["properties"]
        assert properties["prefix"] == {"type": "string", "default": "out", "maxLength": 20}
        assert "data: URI" in properties["picture"]["description"]
        assert tool.input_schema["required"] == ["picture"]

        made = await agent.call_tool("noise", {"picture": uri(png(9, 1500))}, progress_callback=heard)
        assert not made.is_error, words(made)
        (shown,) = pictures(made)
        assert (shown.format, shown.size) == ("WEBP", (1024, 1024))
        (link,) = [one for one in made.content if one.type == "resource_link"]
        async with httpx.AsyncClient() as anybody:
            whole = await anybody.get(str(link.uri))
        assert Image.open(io.BytesIO(whole.content)).size == (1500, 1500)
        assert [value for value, _ in told] == sorted({value for value, _ in told}) and told
        job: dict[str, Any] = made.structured_content
        assert job["status"] == "succeeded" and job["outputs"][0]["id"] in words(made)
        assert "SIMULATED" in words(made)

        again = await agent.call_tool("noise", {"picture": job["outputs"][0]["id"], "prefix": None})
        assert not again.is_error and pictures(again)[0].size == (1024, 1024)
        async with site() as web:
            web.pages["/a.png"] = page(png(3))
            fetched = await agent.call_tool("noise", {"picture": web.url("/a.png")})
            assert pictures(fetched)[0].size == (8, 8)
        shown_again = await agent.call_tool("fleet_job", {"job_id": job["job_id"]})
        assert pictures(shown_again)[0].size == (1024, 1024)
        assert "can run" in words(await agent.call_tool("fleet_status", {}))


async def test_what_an_agent_gets_wrong_says_what_to_do(world: Sharing, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(4))
    async with Client(stdio(world)) as agent:
        wrong = await agent.call_tool("noise", {"picture": uri(png()), "prefix": "x" * 21, "promt": "?"})
        assert (
            wrong.is_error and "prefix" in words(wrong) and "20" in words(wrong) and "promt" in words(wrong)
        )
        for path in (str(secret), f"file://{secret}", "../secret.png", f"@{secret}"):
            refused = await agent.call_tool("noise", {"picture": path})
            assert refused.is_error and "picture" in words(refused), path
        nothing = await agent.call_tool("fleet_job", {"job_id": "../../nodes"})
        assert nothing.is_error and "no job" in words(nothing)
        unnamed = await agent.call_tool("fleet_cancel", {})
        assert unnamed.is_error and "job_id is required" in words(unnamed)
        with pytest.raises(MCPError, match="no tool"):
            await agent.call_tool("nothing", {})
        async with site() as web:
            failed = await agent.call_tool("noise", {"picture": web.url("/none.png")})
        assert failed.is_error and "input_not_fetched" in words(failed) and "404" in words(failed)
    kept = await world.client.head(f"/api/v2/assets/by-hash/blake3:{blake3(png(4)).hexdigest()}")
    assert kept.status_code == 404


async def test_a_call_that_is_canceled_cancels_its_job_and_a_long_one_goes_on(world: Sharing) -> None:
    await world.fleet.stores.nodes.cordon("g1", reason="test")
    async with Client(stdio(world, "--wait", "1")) as agent:
        waiting = await agent.call_tool("noise", {"picture": uri(png(1))})
        assert not waiting.is_error and "goes on" in words(waiting)
        first = waiting.structured_content["job_id"]
        status = words(await agent.call_tool("fleet_status", {}))
        assert "No job can run now" in status and "g1 is drained" in status and first in status
        canceled = await agent.call_tool("fleet_cancel", {"job_id": first})
        assert "canceled" in words(canceled)
    async with Client(stdio(world)) as agent:
        call = asyncio.create_task(agent.call_tool("noise", {"picture": uri(png(2))}))

        async def jobs(status: str) -> list[str]:
            found = (await world.client.get(f"/api/v1/jobs?status={status}")).json()["jobs"]
            return [one["id"] for one in found]

        async def is_there() -> bool:
            return len(await jobs("queued")) == 1

        await until(is_there, what="the job waits")
        (second,) = await jobs("queued")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

        async def is_gone() -> bool:
            return second in await jobs("canceled")

        await until(is_gone, what="its job is canceled")


async def test_over_http(world: Sharing, tmp_path: Path) -> None:
    async with over_http(world.api.url, look_s=0.3) as url, AsyncExitStack() as stack:
        for mode in ("auto", "legacy"):
            async with Client(url, mode=mode) as agent:
                made = await agent.call_tool("noise", {"picture": uri(png(6))})
                assert pictures(made)[0].size == (8, 8)
        changed = asyncio.Event()

        async def heard(message: Any) -> None:
            if "list_changed" in str(getattr(message, "method", "")):
                changed.set()

        agent = await stack.enter_async_context(Client(url, mode="legacy", message_handler=heard))
        assert (await agent.list_tools()).tools[0].name == "noise"
        known, number = tmp_path / "workflows" / "noise", 0
        while not changed.is_set():  # what is told before the client listens is lost
            assert number < 60
            number += 1
            shutil.copytree(known, known.with_name(f"other.{number}"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await changed.wait()
        assert {tool.name for tool in (await agent.list_tools()).tools} >= {"noise", "other_1"}
        async with httpx.AsyncClient() as page_:
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
            accept = {"Accept": "application/json, text/event-stream"}
            for headers, status in (
                ({"Origin": "http://evil.example"}, 403),
                ({"Origin": url.removesuffix("/mcp")}, 403),
                ({"Host": "evil.example"}, 421),
            ):
                answer = await page_.post(url, json=body, headers={**accept, **headers})
                assert answer.status_code == status, answer.text
            huge = await page_.post(url, content=b" " * (8 * 1024 * 1024 + 1), headers=accept)
            assert huge.status_code == 413


async def test_each_key_has_its_own_tools_and_sessions(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with limited(redis_port, tmp_path) as api, over_http(api.url, keys_needed=True) as url:
        async with httpx.AsyncClient() as anybody:
            assert (await anybody.post(url, json={})).status_code == 401
        names: dict[str, set[str]] = {}
        eve = await key_with(api, "eve", workflows="image_card")
        for who, key in (("ann", ANN), ("eve", eve)):
            async with (
                httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http,
                Client(streamable_http_client(url, http_client=http)) as agent,
            ):
                names[who] = {tool.name for tool in (await agent.list_tools()).tools}
        assert names["ann"] > names["eve"] == {"image_card", "fleet_job", "fleet_cancel", "fleet_status"}
        hello = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "x", "version": "1"},
            },
        }
        accept = {"Accept": "application/json, text/event-stream"}
        async with httpx.AsyncClient(headers=accept) as raw:
            opened = await raw.post(url, json=hello, headers={"X-API-Key": ANN})
            session = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
            body = {"jsonrpc": "2.0", "id": 2, "method": "ping", "params": {}}
            for key, status in ((eve, 404), (ANN, 200)):
                head = {**session, "Authorization": f"Bearer {key}"}
                assert (await raw.post(url, json=body, headers=head)).status_code == status
