"""The same graphs on a real ComfyUI and on a fleet whose node it is: its clients hear the same."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.nodes.node import Node
from tests.comfyui_server import ComfyServer
from tests.integration.native.socket_kit import Client, client_of, faced

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(180)]

Graph = dict[str, Any]
Told = list[tuple[str, Any]]


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


@asynccontextmanager
async def both(redis_port: int, server: ComfyServer) -> AsyncIterator[tuple[Client, Client]]:
    """Yield a client of the ComfyUI itself and one of a fleet with it as its only node."""
    async with faced(redis_port) as fleet, client_of(server.url) as bare:
        await fleet.fleet.stores.nodes.add(Node(name="real", url=server.url))
        await fleet.fleet.verdict("real")
        yield bare, await fleet.client()


def node(class_type: str, **inputs: Any) -> Graph:
    return {"class_type": class_type, "inputs": inputs}


def empty(color: int) -> Graph:
    return node("EmptyImage", width=64, height=64, batch_size=1, color=color)


def compared(told: Told) -> list[Any]:
    """Return what must be the same: no ids of prompts, times, numbers of names, progress or queue lengths.

    Results come apart from the rest: on a fleet they wait for their files, while the prompt goes on.
    """
    out: list[Any] = []
    for type_, data in told:
        if type_ in ("progress", "progress_state", "status"):
            continue
        if type_ == "binary":
            out.append(("binary", data[:8], data[8:16]))
            continue
        # What a node was given is written out there, colours included.
        left_out = ("prompt_id", "timestamp", "traceback", "current_inputs", "output")
        fields: Any = {key: value for key, value in data.items() if key not in left_out}
        fields["files"] = [
            {**file, "filename": re.sub(r"_\d{5}_|temp_[a-z]{5}", "_N_", file["filename"])}
            for file in (data.get("output") or {}).get("images", ())
        ]
        shown = json.dumps({**fields, "keys": sorted(data)}, sort_keys=True)
        out.append((type_, shown))
    return [one for one in out if one[0] != "executed"] + [one for one in out if one[0] == "executed"]


async def ran(client: Client, graph: Graph, **more: Any) -> Told:
    return await client.ended(await client.post(graph, **more))


@pytest.mark.parametrize(
    "graph",
    [
        {"1": empty(1), "2": node("SaveImage", images=["1", 0], filename_prefix="fleet")},
        {"1": empty(2), "2": node("SaveImage", images=["1", 0], filename_prefix="sub/x")},
        {
            "1": empty(3),
            "2": node("PreviewImage", images=["1", 0]),
            "3": node("SaveImageWebsocket", images=["1", 0]),
        },
        {
            "1": empty(4),
            "4": empty(5),
            "2": node(
                "TestDynamicAsyncGeneration",
                image1=["1", 0],
                image2=["4", 0],
                num_async_nodes=2,
                sleep_duration=0.1,
            ),
            "3": node("SaveImage", images=["2", 0], filename_prefix="fleet"),
        },
        {
            "1": empty(6),
            "3": node("TestSyncError", value=["1", 0]),
            "2": node("SaveImage", images=["3", 0], filename_prefix="x"),
        },
    ],
    ids=["success", "subfolder", "preview and websocket", "expansion", "error"],
)
async def test_a_prompt_is_told_as_on_the_server_itself(
    redis_port: int, comfyui_server: ComfyServer, graph: Graph
) -> None:
    async with both(redis_port, comfyui_server) as (bare, fleet):
        ours, theirs = await ran(fleet, graph), await ran(bare, recolored(graph))
        assert compared(ours) == compared(theirs)
        names = {type_ for type_, _ in theirs}
        assert {type_ for type_, _ in ours} | {"status"} == names | {"status"}
        states = [data for type_, data in ours if type_ == "progress_state"]
        assert all(state["prompt_id"] == ours[-1][1]["prompt_id"] for state in states)


def recolored(graph: Graph) -> Graph:
    """Return the same graph with other colours: nothing of it is in the cache."""
    other: Graph = json.loads(json.dumps(graph))
    for one in other.values():
        if "color" in one["inputs"]:
            one["inputs"]["color"] += 1000
    return other


async def test_a_cached_rerun_is_told_as_on_the_server_itself(
    redis_port: int, comfyui_server: ComfyServer
) -> None:
    graph = {"1": empty(20), "2": node("PreviewAny", source=["1", 0])}
    async with both(redis_port, comfyui_server) as (bare, fleet):
        await ran(bare, recolored(graph))
        theirs = await ran(bare, recolored(graph))
        await ran(fleet, graph)
        ours = await ran(fleet, graph)
        assert compared(ours) == compared(theirs)
        (cached,) = [data["nodes"] for type_, data in ours if type_ == "execution_cached"]
        assert cached == ["1", "2"] and "executed" in dict(ours)


async def test_an_interruption_is_told_as_on_the_server_itself(
    redis_port: int, comfyui_server: ComfyServer
) -> None:
    graph = {
        "1": empty(30),
        "3": node("TestSleep", value=["1", 0], seconds=20.0),
        "2": node("SaveImage", images=["3", 0], filename_prefix="fleet"),
    }
    found = []
    async with both(redis_port, comfyui_server) as clients:
        for client in clients:
            prompt = await client.post(graph)
            told = await client.until(lambda type_, data: type_ == "executing" and data["node"] == "3")
            await client.http.post("/interrupt", json={"prompt_id": prompt})
            found.append(compared(told + await client.ended(prompt)))
            graph = recolored(graph)
    bare, fleet = found
    assert fleet == bare


async def test_previews_with_metadata_are_told_as_on_the_server_itself(
    redis_port: int, comfyui_server: ComfyServer
) -> None:
    graph = {"1": empty(40), "3": node("SaveImageWebsocket", images=["1", 0])}
    heads = []
    async with both(redis_port, comfyui_server) as clients:
        for client in clients:
            flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
            await client.socket.send(json.dumps(flags))
            assert (await client.next())[0] == "feature_flags"
            told = await ran(client, graph)
            (picture,) = [data for type_, data in told if type_ == "binary"]
            size = int.from_bytes(picture[4:8], "big")
            heads.append((picture[:4], {**json.loads(picture[8 : 8 + size]), "prompt_id": ""}))
            graph = recolored(graph)
    assert heads[0] == heads[1]
