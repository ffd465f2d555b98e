"""Jobs that get the result of an equal one, through the API, on real Redis and simulated nodes."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from comfy_fleet.adapters.redis.keys import Keyspace
from tests.integration.sharing_kit import NOISE, Sharing, sharing

KEYS = Keyspace()


async def _twice(world: Sharing, first: dict[str, Any], second: dict[str, Any]) -> tuple[Any, Any]:
    """Submit once, wait for the end, submit again and wait for that end."""
    one = await world.done(await world.submit(**first))
    return one, await world.done(await world.submit(**second))


async def test_an_equal_job_gets_the_same_files_under_names_of_its_own(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1") as world:
        one = await world.done(await world.submit())
        assert not one["cached"]
        two = await world.submit()
        assert (two["status"], two["cached"]) == ("succeeded", True), "it is over when its submit is answered"
        assert two["progress"]["value"] == 1
        assert two["node"] == "g1"
        assert two == await world.job(two) | {"outputs": two["outputs"]}
        assert world.runs == 1
        assert await world.content(one) == await world.content(two)
        assert [o["hash"] for o in one["outputs"]] == [o["hash"] for o in two["outputs"]]
        saved = [[o["name"] for o in job["outputs"] if not o["temporary"]] for job in (one, two)]
        assert saved == [["pic_00001_.png"], ["pic_00002_.png"]]
        ids = {o["id"] for job in (one, two) for o in job["outputs"]}
        assert len(ids) == len(one["outputs"]) + len(two["outputs"]) == 4
        view = {"filename": "pic_00002_.png", "subfolder": "art", "type": "output"}
        assert (await world.client.get("/view", params=view)).content in await world.content(two)
        listed = (await world.client.get("/internal/files/temp")).json()
        assert len(listed) == 2


async def test_what_is_removed_leaves_the_other_one_its_files(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", api={"blob_grace_s": 0.0}) as world:
        one, two = await _twice(world, {}, {})
        before = await world.content(two)
        for output in one["outputs"]:
            assert (await world.client.delete(f"/api/v2/assets/{output['id']}")).status_code == 204
        assert (await world.client.delete(f"/api/v1/jobs/{one['id']}")).status_code == 204
        await world.api.assets.sweep()
        assert await world.content(two) == before
        three = await world.submit()
        assert three["cached"], "the second one's files are as good"
        assert world.runs == 1


@pytest.mark.parametrize("gone", ["files", "job"])
async def test_a_result_whose_files_are_gone_is_computed_again(
    redis_port: int, redis: Any, tmp_path: Path, gone: str
) -> None:
    async with sharing(redis_port, tmp_path, "g1") as world:
        one = await world.done(await world.submit())
        if gone == "files":
            await world.client.delete(f"/api/v2/assets/{one['outputs'][0]['id']}")
        else:
            await world.client.delete(f"/api/v1/jobs/{one['id']}")
        two = await world.done(await world.submit())
        assert not two["cached"]
        assert world.runs == 2
        three = await world.submit()
        assert three["cached"], "the new result counts from now on"


@pytest.mark.parametrize("gone", ["files", "job"])
@pytest.mark.parametrize("left", [0, 1, 2])
async def test_one_copy_that_is_left_is_enough(
    redis_port: int, redis: Any, tmp_path: Path, gone: str, left: int
) -> None:
    async with sharing(redis_port, tmp_path, "g1") as world:
        jobs = [await world.done(await world.submit()) for _ in range(3)]
        before = await world.content(jobs[left])
        for job in jobs[:left] + jobs[left + 1 :]:
            if gone == "files":
                await world.client.delete(f"/api/v2/assets/{job['outputs'][0]['id']}")
            else:
                await world.client.delete(f"/api/v1/jobs/{job['id']}")
        again = await world.submit()
        assert again["cached"]
        assert await world.content(again) == before
        assert world.runs == 1


async def test_a_result_in_many_copies_is_remembered_by_some(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1") as world:
        jobs = [await world.done(await world.submit()) for _ in range(14)]
        (key,) = await world.api.stores.redis.keys(KEYS.result("*", "*"))
        entry = orjson.loads(await world.api.stores.redis.get(key) or b"")
        named = [entry["job"], *entry["copies"]]
        assert named == [job["id"] for job in reversed(jobs)][: len(named)]
        assert len(named) == 9
        for job in jobs[6:]:
            await world.client.delete(f"/api/v1/jobs/{job['id']}")
        assert (await world.submit())["cached"], "the last one that it names"
        assert world.runs == 1


@pytest.mark.parametrize(
    ("first", "second", "cached"),
    [
        ({}, {}, True),
        ({}, {"params": {"seed": 6}}, False),
        ({}, {"params": {"seed": 5, "strength": 0.25}}, False),
        ({"params": {}}, {"params": {}}, False),  # both seeds are drawn
        ({}, {"priority": 5, "metadata": {"a": "b"}, "ttl_s": 60}, True),
        ({}, {"headers": {"Cache-Control": "no-cache"}}, False),
        ({}, {"headers": {"Cache-Control": "max-age=0"}}, False),
        ({}, {"headers": {"Cache-Control": "max-age=60"}}, True),
        ({"headers": {"Cache-Control": "no-cache"}}, {}, True),
        ({"headers": {"Cache-Control": "no-store"}}, {}, False),
        ({}, {"headers": {"Cache-Control": "no-store"}}, False),
    ],
)
async def test_which_jobs_are_equal(
    redis_port: int, redis: Any, tmp_path: Path, first: Any, second: Any, cached: bool
) -> None:
    async with sharing(redis_port, tmp_path, "g1") as world:
        _, two = await _twice(world, first, second)
        assert two["cached"] is cached
        assert world.runs == 2 - cached


async def test_a_drawn_seed_that_is_sent_again_gives_its_picture(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1") as world:
        one = await world.done(await world.submit(params={}))
        two = await world.submit(params={"seed": one["params"]["seed"]})
        assert two["cached"]
        assert await world.content(one) == await world.content(two)


@pytest.mark.parametrize(
    ("manifest", "cached"),
    [
        ('cache = "off"', False),
        ("cache = false", False),
        ('cache = "exact"', True),
        ("cache = true", True),
        ('cache = "any-seed"', True),
    ],
)
async def test_the_author_says_when(
    redis_port: int, redis: Any, tmp_path: Path, manifest: str, cached: bool
) -> None:
    async with sharing(redis_port, tmp_path, "g1", manifest=manifest) as world:
        _, two = await _twice(world, {}, {})
        assert two["cached"] is cached


async def test_any_seed_tells_the_seed_that_the_files_have(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", manifest='cache = "any-seed"') as world:
        one, two = await _twice(world, {"params": {}}, {"params": {}})
        assert two["cached"]
        assert two["params"] == one["params"]
        graphs = [(await world.client.get(f"/api/v2/jobs/{job['id']}/workflow")).json() for job in (one, two)]
        assert graphs[0] == graphs[1]
        other = await world.done(await world.submit(params={"seed": one["params"]["seed"] ^ 1}))
        assert not other["cached"], "who fixes the seed gets that one"
        assert world.runs == 2


async def test_names_with_a_time_in_them_are_not_shared(redis_port: int, redis: Any, tmp_path: Path) -> None:
    graph = {**NOISE, "3": {**NOISE["3"], "inputs": {"images": ["2", 0], "filename_prefix": "%date:yyyy%/a"}}}
    async with sharing(redis_port, tmp_path, "g1", graph=graph) as world:
        _, two = await _twice(world, {}, {})
        assert not two["cached"]


@pytest.mark.parametrize(
    ("setting", "headers", "cached"),
    [
        ("workflows", {}, False),
        ("workflows", {"Cache-Control": "max-age=60"}, True),
        ("all", {}, True),
        ("all", {"Cache-Control": "no-cache"}, False),
        ("off", {"Cache-Control": "max-age=60"}, False),
    ],
)
@pytest.mark.parametrize("face", ["v2", "native"])
async def test_graphs_are_computed_unless_somebody_asks(
    redis_port: int,
    redis: Any,
    tmp_path: Path,
    setting: str,
    headers: dict[str, str],
    cached: bool,
    face: str,
) -> None:
    async with sharing(redis_port, tmp_path, "g1", api={"result_cache": setting}) as world:
        ends = []
        for _ in range(2):
            if face == "v2":
                answer = await world.client.post("/api/v2/jobs", json={"workflow": NOISE}, headers=headers)
                ends.append(await world.done(answer.json()))
            else:
                answer = await world.client.post("/prompt", json={"prompt": NOISE}, headers=headers)
                ends.append(await world.done({"id": answer.json()["prompt_id"]}))
        assert [one["cached"] for one in ends] == [False, cached]
        entries = (await world.client.get("/history")).json()
        told = [dict(entry["status"]["messages"])["execution_cached"]["nodes"] for entry in entries.values()]
        assert sorted(map(bool, told)) == [False, cached]
        shown = [sorted(entry["outputs"]) for entry in entries.values()]
        assert shown == [["3", "4"], ["3", "4"]]


async def test_another_version_of_comfyui_computes_anew(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with sharing(redis_port, tmp_path, "g1") as world:
        await world.done(await world.submit())
        await world.api.stores.redis.hset(KEYS.node("g1"), "comfyui", "9.9.9")
        await world.api.deps.inventories.look()
        two = await world.done(await world.submit())
        assert not two["cached"]
        assert (await world.submit())["cached"], "the new one's result counts from now on"


async def test_a_full_queue_does_not_keep_a_result_back(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with sharing(redis_port, tmp_path, "g1", api={"queue_depth": 1}) as world:
        await world.done(await world.submit())
        await world.api.stores.nodes.cordon("g1", reason="")
        await world.submit(params={"seed": 8})
        refused = await world.client.post("/api/v1/workflows/noise/jobs", json={"params": {"seed": 9}})
        assert refused.status_code == 429
        assert (await world.submit())["cached"]


async def test_a_retry_computes_anew(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with sharing(redis_port, tmp_path, "g1") as world:
        one = await world.done(await world.submit())
        again = await world.client.post(f"/api/v1/jobs/{one['id']}/retry", json={})
        assert again.status_code == 201, again.text
        two = await world.done(again.json())
        assert not two["cached"]
        assert world.runs == 2


async def test_equal_bytes_in_two_folders_have_records_by_their_own_names(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    below = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "below/pic"}}
    graph = {**NOISE, "5": below}
    async with sharing(redis_port, tmp_path, "g1", graph=graph) as world:
        one = await world.done(await world.submit())
        assert len({output["id"] for output in one["outputs"]}) == 2, "two are pic_00001_.png"
        alone = {name: node for name, node in graph.items() if name in "125"}
        answer = await world.client.post("/prompt", json={"prompt": alone})
        await world.done({"id": answer.json()["prompt_id"]})
        two = await world.submit()
        assert two["cached"]
        names = {output["node_id"]: output["name"] for output in two["outputs"]}
        assert (names["3"], names["5"]) == ("pic_00002_.png", "pic_00003_.png")
        for output in two["outputs"]:
            record = (await world.client.get(f"/api/v2/assets/{output['id']}")).json()
            assert record["file_path"] == output["name"]
