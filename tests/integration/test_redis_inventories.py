"""Inventories, needs and what failures taught, on a real Redis."""

import json
import zlib
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from comfy_fleet.adapters.redis.inventories import pack, unpack
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import Conflict, NotFound
from comfy_fleet.domain.graphs import inventory
from comfy_fleet.domain.graphs.file_access import Use
from comfy_fleet.domain.graphs.object_info import Packer
from comfy_fleet.domain.jobs.job import JobError, JobStatus, Placement
from comfy_fleet.domain.nodes.eligibility import GIB, Requirements
from comfy_fleet.domain.nodes.node import Node, NodeState, Reading
from comfy_fleet.ports.runs import Claim, Refused
from tests.factories import new_job
from tests.integration.api_kit import object_info


async def add(stores: Stores, name: str, **fields: Any) -> None:
    await stores.nodes.add(Node(name=name, url=f"http://{name}:8188", **fields))


async def state(stores: Stores, name: str) -> NodeState:
    return next(state for state in await stores.nodes.states() if state.node.name == name)


async def claim(stores: Stores, node: str, *placements: Placement) -> Claim | Refused:
    return await stores.runs.claim(
        node=node, placements=placements, run=str(uuid4()), token="t", dispatcher="d", ttl_s=30
    )


def test_a_real_server_s_classes_are_read_back_whole() -> None:
    old = [{"new_node_id": "LoadImage", "input_mapping": [{"new_id": "image", "old_id": "picture"}]}]
    parsed = inventory.parse(object_info(), replacements={"OldLoader": old})
    digest, packed = pack(parsed)
    back = unpack(packed)
    assert back.classes["OldLoader"].replaced_by == "LoadImage"
    assert back.classes["OldLoader"].checks == {"picture"}
    assert back.classes.keys() == parsed.classes.keys()
    assert back.classes["LoadImage"].files == parsed.classes["LoadImage"].files == {"image": Use.FILE}
    assert [name for name, info in back.classes.items() if info.keeps_graph] == ["PreviewImage"]
    assert back.classes["KSampler"] == parsed.classes["KSampler"]
    assert back.classes["VAELoader"] == parsed.classes["VAELoader"]
    assert pack(back)[0] == digest
    assert len(packed) < 100_000


def test_uploads_don_t_change_the_hash_and_models_do() -> None:
    info = object_info()
    before = pack(inventory.parse(info))[0]
    info["LoadImage"]["input"]["required"]["image"][0].append("new.png")
    shuffled = dict(reversed(info.items()))
    assert pack(inventory.parse(shuffled))[0] == before
    info["VAELoader"]["input"]["required"]["vae_name"][0].append("ae.safetensors")
    assert pack(inventory.parse(info))[0] != before


async def test_alike_nodes_share_one_inventory_until_the_last_is_gone(stores: Stores) -> None:
    one, two = inventory.parse({"A": {}}), inventory.parse({"B": {}})
    digest, other = pack(one)[0], pack(two)[0]
    for name in ("a", "b"):
        await add(stores, name)
        assert await stores.inventories.save(name, one, Reading(comfyui="1.0")) == "changed"
    assert await stores.inventories.save("a", one, Reading(comfyui="1.0")) == "same"
    assert await stores.inventories.save("a", one, Reading(comfyui="1.1")) == "changed"
    assert await stores.inventories.save("nobody", one, Reading()) == "unknown"
    assert await stores.inventories.save("a", two, Reading(vram_bytes=5, gpu="RTX 4090"))
    assert await stores.inventories.load(digest) == one
    await stores.nodes.remove("b")
    assert await stores.inventories.load(digest) is None
    now = (await state(stores, "a")).reading
    assert (now.inventory, now.vram_bytes, now.gpu, now.comfyui) == (other, 5, "RTX 4090", "")
    assert now.read_at >= now.changed_at > 0


def told(info: dict[str, Any]) -> inventory.Inventory:
    """What a node has that answers so."""
    packer = Packer()
    parsed = inventory.parse(info)
    for name, body in info.items():
        packer.add(name, body, parsed.classes[name])
    return replace(parsed, object_info=packer.end())


async def test_alike_nodes_share_one_answer_until_the_last_is_gone(stores: Stores) -> None:
    info = object_info()
    for name in ("a", "b", "c"):
        await add(stores, name)
        await stores.inventories.save(name, told(info), Reading())
    (digest,) = {(await state(stores, name)).reading.object_info for name in "abc"}
    kept = await stores.inventories.object_info(digest)
    assert kept is not None and list(kept) == list(info)
    assert json.loads(kept["KSampler"]) == info["KSampler"]
    assert len(await stores.redis.keys("fleet:object_info:*")) == 2
    await stores.nodes.remove("a")
    info["KSampler"]["description"] = "New words."
    assert await stores.inventories.save("b", told(info), Reading()) == "same"  # nothing a job would need
    assert await stores.inventories.object_info(digest) == kept
    await stores.nodes.remove("c")
    assert await stores.inventories.object_info(digest) is None
    new = (await state(stores, "b")).reading.object_info
    assert new != digest and await stores.inventories.object_info(new)
    await stores.inventories.save("b", replace(told(info), object_info=None), Reading())  # too large now, say
    assert (await state(stores, "b")).reading.object_info == ""
    assert await stores.redis.keys("fleet:object_info:*") == []


async def test_an_answer_that_is_kept_is_not_sent_again(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    call = Scripts.call

    async def counted(self: Scripts, script: str, /, *blobs: Any, **args: Any) -> Any:
        if script == "save_inventory":
            sent.append(len(blobs[1]))
            if len(sent) == 3:  # another process forgets the last node that had it, just now
                await stores.redis.delete(stores.redis.keyspace.object_info(args["told"]))
        return await call(self, script, *blobs, **args)

    monkeypatch.setattr(Scripts, "call", counted)
    await add(stores, "a")
    digest = ""
    for known in (True, True, False, True):
        await stores.inventories.save("a", told(object_info()), Reading())
        digest = (await state(stores, "a")).reading.object_info
        assert bool(digest) == known
    assert [bool(size) for size in sent] == [True, False, False, True]
    assert await stores.inventories.object_info(digest) is not None


async def test_an_answer_that_can_not_be_read_is_none(
    stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    for broken in (b"odd", zlib.compress(b"no tab\n"), zlib.compress(b"x\t{}\n")):
        await stores.redis.set(stores.redis.keyspace.object_info("1-x"), broken)
        assert await stores.inventories.object_info("1-x") is None
    assert "can't be read" in caplog.text


async def test_one_process_reads_a_node_at_a_time(stores: Stores) -> None:
    await add(stores, "a")
    await stores.nodes.want_reading("a")
    assert (await state(stores, "a")).reading.wanted
    assert await stores.inventories.claim("a", ttl_s=30)
    assert not await stores.inventories.claim("a", ttl_s=30)
    assert not (await state(stores, "a")).reading.wanted
    await stores.inventories.save("a", inventory.parse({}), Reading())
    assert await stores.inventories.claim("a", ttl_s=30)
    assert not await stores.inventories.claim("nobody", ttl_s=30)
    with pytest.raises(NotFound):
        await stores.nodes.want_reading("nobody")


async def test_needs_are_kept_by_key(stores: Stores) -> None:
    needs = Requirements(classes=frozenset({"A"}), vram_bytes=GIB, labels=(("gpu", "h100"),))
    await stores.inventories.keep_needs(needs)
    assert await stores.inventories.needs(needs.key) == needs
    assert await stores.inventories.needs("other") is None


async def test_a_node_that_comes_back_is_read_again_and_leaves_quarantine(stores: Stores) -> None:
    await add(stores, "a")
    await stores.nodes.report("a", verdict="up", why="")
    assert not await stores.nodes.record_failure("a", kind="gpu", limit=2, reason="quarantined: 2 faults")
    assert not await stores.nodes.record_failure("a", kind="oom", limit=2, reason="quarantined: 2 faults")
    assert await stores.nodes.record_failure("a", kind="gpu", limit=2, reason="quarantined: 2 faults")
    struck = await state(stores, "a")
    assert struck.node.cordoned and struck.quarantined
    assert struck.node.cordon_reason == "quarantined: 2 faults"
    await stores.nodes.report("a", verdict="down", why="connection refused")
    await stores.nodes.report("a", verdict="drain", why="cordoned")
    back = await state(stores, "a")
    assert not back.node.cordoned and not back.quarantined
    assert back.reading.wanted and back.reading.starts == 1


async def test_an_operator_s_drain_outlives_a_restart(stores: Stores) -> None:
    await add(stores, "a")
    await stores.nodes.cordon("a", reason="maintenance")
    await stores.nodes.started("a")
    assert (await state(stores, "a")).node.cordon_reason == "maintenance"


async def test_a_success_ends_the_row_of_strikes(stores: Stores) -> None:
    await add(stores, "a")
    await stores.nodes.record_failure("a", kind="gpu", limit=2, reason="x")
    await stores.jobs.submit(new_job(), idempotency=None, depth_limit=10)
    got = await claim(stores, "a", Placement())
    assert isinstance(got, Claim)
    await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=1)
    assert not await stores.nodes.record_failure("a", kind="gpu", limit=2, reason="x")


async def test_waiting_jobs_move_on_when_a_card_was_too_small(stores: Stores) -> None:
    await add(stores, "small")
    await add(stores, "large")
    for name, size in (("small", 12), ("large", 24)):
        await stores.inventories.save(name, inventory.parse({}), Reading(vram_bytes=size * GIB))
    jobs = [
        (await stores.jobs.submit(new_job(profile=profile), idempotency=None, depth_limit=10)).job
        for profile in ("big", "big", "other")
    ]
    assert await stores.inventories.note_oom("big", 12 * GIB, ttl_s=60) == 12 * GIB
    assert await stores.inventories.note_oom("big", 8 * GIB, ttl_s=60) == 12 * GIB
    got = await claim(stores, "small", Placement())
    assert isinstance(got, Claim) and got.job.id == jobs[2].id
    assert {waiting.placement.above for waiting in await stores.runs.waiting()} == {12 * GIB}
    larger = await claim(stores, "large", Placement(above=12 * GIB))
    assert isinstance(larger, Claim) and larger.job.id in (jobs[0].id, jobs[1].id)
    assert await stores.jobs.depth() == 1


async def test_what_a_node_still_works_on(stores: Stores) -> None:
    await add(stores, "a")
    job = (await stores.jobs.submit(new_job(), idempotency=None, depth_limit=10)).job
    got = await claim(stores, "a", Placement())
    assert isinstance(got, Claim)
    assert [(work.job, work.phase) for work in (await state(stores, "a")).work] == [(job.id, "claimed")]
    assert await stores.nodes.release("a") == [got.run]
    beat = await stores.runs.beat("d", [got], ttl_s=30)
    assert beat.release == {got.run}
    await stores.runs.left(got, [])
    now = await state(stores, "a")
    assert now.run is None and [work.phase for work in now.work] == ["left"]
    assert await stores.nodes.release("a") == []  # only outputs are missing: it goes on
    with pytest.raises(Conflict):
        await stores.nodes.remove("a")
    await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=1)
    assert (await state(stores, "a")).work == ()
    await stores.nodes.remove("a")


async def test_a_node_s_last_errors_are_kept(stores: Stores) -> None:
    await add(stores, "a")
    for number in range(12):
        await stores.jobs.submit(new_job(), idempotency=None, depth_limit=100)
        got = await claim(stores, "a", Placement())
        assert isinstance(got, Claim)
        error = JobError(code="out_of_memory", message=f"no. {number} ü", details={"a": {"b": 1}})
        if number % 2:
            await stores.runs.finish(got, JobStatus.FAILED, error=error, duration_s=None)
        else:
            await stores.runs.requeue(got, counts=False, reason=error)
            again = await claim(stores, "a", Placement())
            assert isinstance(again, Claim)
            await stores.runs.finish(again, JobStatus.SUCCEEDED, error=None, duration_s=1)
    errors = await stores.nodes.errors("a")
    assert len(errors) == 10
    assert errors[0]["message"] == "no. 11 ü" and errors[0]["code"] == "out_of_memory"


async def test_a_weight_that_nobody_set_follows_the_gpu(stores: Stores) -> None:
    await add(stores, "auto", weight_by_gpu=True)
    await add(stores, "fixed", weight=7)
    for name in ("auto", "fixed"):
        reading = Reading(gpu="cuda:0 NVIDIA H100 80GB HBM3 : native", device="cuda")
        await stores.inventories.save(name, inventory.parse({}), reading)
    assert {node.name: node.weight for node in await stores.nodes.nodes()} == {"auto": 200, "fixed": 7}
    await stores.nodes.cordon("fixed", reason="fans")
    assert await stores.nodes.nodes() == [state.node for state in await stores.nodes.states()]
