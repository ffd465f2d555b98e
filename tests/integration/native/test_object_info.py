"""``/object_info``: what the nodes have together, as one ComfyUI would say it."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.services.fleet_object_info import FleetObjectInfo
from comfy_fleet.services.inventories import NodeInventories
from tests.fleet import until
from tests.integration.api_kit import Api, object_info, running
from tests.key_files import write_keys

PATHS = ["/object_info", "/api/object_info"]


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        yield started


def loader(*files: str) -> dict[str, Any]:
    return {
        "input": {"required": {"ckpt_name": [list(files), {}]}},
        "output": ["MODEL"],
        "description": "Loads.",
        "output_node": True,
    }


LOAD_IMAGE = {"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}, "output": ["IMAGE"]}


async def nodes(api: Api, **told: Mapping[str, Any]) -> None:
    """Register nodes with their classes, and wait until the API knows them."""
    for name, classes in told.items():
        api.info.serve(name, classes)
        await api.add_node(name, info=False)
    await until(lambda: api.deps.inventories.known >= set(told), what="all nodes are read")


async def classes(api: Api, path: str = "/object_info") -> Any:
    answer = await api.client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


@pytest.mark.parametrize("path", PATHS)
async def test_one_nodes_answer_is_the_answer(api: Api, path: str) -> None:
    info = object_info()
    await nodes(api, gpu1=info)
    found = await classes(api, path)
    assert list(found) == list(info)
    unlike = [name for name in info if found[name] != info[name]]
    assert set(unlike) <= {
        "LoadImage",
        "LoadImageMask",
        "LoadImageOutput",
        "LoadAudio",
        "LoadVideo",
        "Load3D",
    }
    assert await classes(api, f"{path}/KSampler") == {"KSampler": info["KSampler"]}
    assert await classes(api, f"{path}/Nothing") == {}


async def test_different_nodes_make_one_answer(api: Api) -> None:
    await nodes(
        api, gpu1={"L": loader("a.pt"), "Only": {"input": {}, "output": []}}, gpu2={"L": loader("b.pt")}
    )
    found = await classes(api)
    assert found["L"]["input"]["required"]["ckpt_name"][0] == ["a.pt", "b.pt"]
    assert found["Only"]["description"] == "Only on gpu1."
    assert await classes(api, "/api/object_info/L") == {"L": found["L"]}


async def test_nodes_that_are_down_or_drained_stay_and_removed_ones_do_not(api: Api) -> None:
    await nodes(api, gpu1={"A": loader("a.pt")}, gpu2={"B": loader("b.pt")})
    await api.stores.nodes.report("gpu1", verdict="down", why="restarts")
    await api.stores.nodes.cordon("gpu2", reason="maintenance")
    assert set(await classes(api)) == {"A", "B"}
    await api.stores.nodes.remove("gpu1")

    async def gone() -> bool:
        return set(await classes(api)) == {"B"}

    await until(gone, what="the removed node's class is gone")


async def test_it_is_sent_once_as_long_as_it_stays_the_same(api: Api) -> None:
    await nodes(api, gpu1=object_info())
    first = await api.client.get("/object_info", headers={"Accept-Encoding": "gzip"})
    assert first.headers["content-encoding"] == "gzip"
    plain = await api.client.get("/object_info", headers={"Accept-Encoding": "gzip;q=0, identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == first.json()
    assert "Accept-Encoding" in plain.headers["vary"]
    tag = first.headers["etag"]
    assert plain.headers["etag"] == tag
    for sent in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*"):
        again = await api.client.get("/api/object_info", headers={"If-None-Match": sent})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    other = await api.client.get("/object_info", headers={"If-None-Match": '"x"'})
    assert other.status_code == 200
    async with api.client.stream("GET", "/object_info", headers={"Accept-Encoding": "gzip"}) as raw:
        packed = b"".join([chunk async for chunk in raw.aiter_raw()])
    assert json.loads(gzip.decompress(packed)) == first.json()
    assert len(packed) < len(plain.content) / 4


async def test_a_change_on_a_node_changes_the_answer_and_its_tag(api: Api) -> None:
    await nodes(api, gpu1={"L": loader("a.pt")})
    tag = (await api.client.get("/object_info")).headers["etag"]
    api.info.serve("gpu1", {"L": loader("a.pt", "new.pt")})
    await api.stores.nodes.want_reading("gpu1")

    async def changed() -> bool:
        answer = await api.client.get("/object_info", headers={"If-None-Match": tag})
        return answer.status_code == 200 and "new.pt" in answer.text

    await until(changed, what="the new file is there")


async def test_asking_for_classes_has_the_nodes_looked_at_again_but_not_each_time(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    now = 1_000_000.0
    async with running(redis_port, tmp_path) as api:
        known = NodeInventories(api.stores.nodes, api.stores.inventories, api.info, clock=lambda: now)
        shown = FleetObjectInfo(known, api.stores.inventories, clock=lambda: now)
        await nodes(api, gpu1={"L": loader("a.pt")})
        await known.look()
        now = known.states["gpu1"].reading.read_at + 1
        assert b"a.pt" in (await shown.classes()).bodies["L"]
        api.info.serve("gpu1", {"L": loader("new.pt")})
        asked = len(api.info.asked)
        now += 3
        assert b"new.pt" not in (await shown.classes()).bodies["L"]
        now += 5
        both = await asyncio.gather(*(shown.classes() for _ in range(10)))
        assert all(b"new.pt" in one.bodies["L"] for one in both)
        assert len(api.info.asked) == asked + 1


async def test_a_node_that_hangs_holds_nobody_up_for_long(api: Api) -> None:
    await nodes(api, gpu1={"L": loader("a.pt")})
    api.info.hangs = True
    await api.stores.nodes.want_reading("gpu1")
    assert "L" in await asyncio.wait_for(classes(api), 60)


async def test_without_an_answer_of_any_node_it_says_so(api: Api) -> None:
    answer = await api.client.get("/object_info")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    api.info.serve("gpu1", {"L": loader("a.pt")})
    api.info.early["gpu1"] = 2
    await api.add_node("gpu1", info=False, up=False)
    assert set(await classes(api)) == {"L"}  # the first answer is waited for


async def test_lists_of_uploads_hold_the_callers_own_files(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, "ann key-of-ann-0123456789\nbob key-of-bob-0123456789\n")
    async with running(redis_port, tmp_path, keys_file=keys) as api:
        await nodes(api, gpu1={"LoadImage": LOAD_IMAGE, "L": loader("a.pt")})
        ann, bob = ({"Authorization": f"Bearer key-of-{name}-0123456789"} for name in ("ann", "bob"))

        async def shown(who: dict[str, str], path: str) -> list[str]:
            answer = await api.client.get(path, headers=who)
            found: list[str] = answer.json()["LoadImage"]["input"]["required"]["image"][0]
            return found

        before = (await api.client.get("/object_info", headers=ann)).headers["etag"]
        for name in ("b.png", "a.png", "notes.txt"):
            files = {"image": (name, name.encode(), "image/png")}
            assert (await api.client.post("/upload/image", files=files, headers=ann)).status_code == 200
        for path in ("/object_info", "/api/object_info/LoadImage"):
            assert await shown(ann, path) == ["a.png", "b.png"]
            assert await shown(bob, path) == []
        after = await api.client.get("/object_info", headers=ann)
        assert after.headers["etag"] != before
        assert (await api.client.get("/object_info", headers=bob)).headers["etag"] == before


async def test_lists_of_uploads_do_not_show_what_lies_on_the_nodes(api: Api) -> None:
    await nodes(api, gpu1={"LoadImage": LOAD_IMAGE})
    for path in ("/object_info", "/object_info/LoadImage"):
        found = await classes(api, path)
        assert found["LoadImage"]["input"]["required"]["image"] == [[], {"image_upload": True}]
