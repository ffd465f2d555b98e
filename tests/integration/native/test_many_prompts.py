"""One client, many prompts at once on several nodes: every file is its own job's."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.clients.caller import Caller
from tests.clients.graphs import color_of, saving
from tests.clients.sequences import Krita
from tests.integration.native.socket_kit import faced

JOBS, NODES = 20, ("g1", "g2", "g3", "g4")


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


async def test_twenty_prompts_on_four_nodes_are_saved_by_their_names(redis_port: int, tmp_path: Path) -> None:
    async with faced(redis_port, *NODES) as face:
        client = await face.client()
        colors = range(0x102030, 0x102030 + JOBS)
        posted = dict(zip([await client.post(saving(color)) for color in colors], colors, strict=True))
        waiting = set(posted)
        while waiting:
            kind, data = await client.next()
            if kind == "executing" and data["node"] is None:
                waiting.discard(data["prompt_id"])

        async def save(prompt_id: str, color: int) -> None:
            entry = (await client.http.get(f"/history/{prompt_id}")).json()[prompt_id]
            (image,) = entry["outputs"]["9"]["images"]
            answer = await client.http.get("/view", params=image)
            assert color_of(answer.content) == color
            (tmp_path / image["filename"]).write_bytes(answer.content)

        await asyncio.gather(*(save(*each) for each in posted.items()))
        saved = sorted(path.name for path in tmp_path.iterdir())  # noqa: ASYNC240
        assert saved == [f"ComfyUI_{number:05}_.png" for number in range(1, JOBS + 1)]
        told = {
            data["prompt_id"]: data["output"]["images"][0]["filename"]
            for kind, data in client.seen
            if kind == "executed"
        }
        assert sorted(told.values()) == saved
        assert {name: color_of((tmp_path / name).read_bytes()) for name in saved} == {
            told[prompt_id]: color for prompt_id, color in posted.items()
        }
        ran = [node for node in face.fleet.sims.values() if list(node.files.root.rglob("*.png"))]
        assert len(ran) > 1, "one node did it all"


async def test_a_program_that_knows_one_running_prompt_works_on_one_node(redis_port: int) -> None:
    async with faced(redis_port, "g1") as face:
        colors = range(0x203040, 0x203046)
        pictures = await Krita(Caller(face.url)).draw(*colors)
        assert [color_of(picture) for picture in pictures] == list(colors)
