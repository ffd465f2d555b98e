"""The workflow store on a real Redis: what is kept, several at once, and what a kill leaves."""

import asyncio
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from comfy_fleet.adapters.redis import workflow_store
from comfy_fleet.adapters.redis.client import FleetRedis, connect
from comfy_fleet.adapters.redis.scripts import SCHEMA
from comfy_fleet.adapters.redis.workflow_store import RedisWorkflowStore
from comfy_fleet.adapters.workflows.catalog import WorkflowCatalog
from comfy_fleet.adapters.workflows.manifest import resolve_content
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import Conflict, Outdated, WorkflowBroken
from comfy_fleet.domain.graphs.stored import Draft, NewVersion, WorkflowChanged, WorkflowContent
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.ports.workflow_store import MAX_VERSIONS
from comfy_fleet.services.stored_workflows import StoredWorkflows
from comfy_fleet.services.workflow_publisher import Publication, WorkflowPublisher
from tests.children import mortal
from tests.integration.redis_kit import add_nodes, claim, submit


@pytest.fixture
async def store(redis: FleetRedis) -> RedisWorkflowStore:
    return RedisWorkflowStore(redis)


def new(text: str, size: int = 0) -> NewVersion:
    filler = random.Random(text).randbytes(size).hex()
    graph = {"1": {"class_type": "Sleep", "inputs": {"text": text, "filler": filler}}}
    return NewVersion(content=WorkflowContent(graph=graph), author="ann")


def at(text: str) -> WorkflowReference:
    return WorkflowReference.parse(text)


async def many(store: RedisWorkflowStore, count: int, start: int = 0) -> list[str]:
    return [
        (await store.publish("w", new(str(n)), expected=None, force=True)).version
        for n in range(start, start + count)
    ]


async def there(store: RedisWorkflowStore) -> set[str]:
    record = await store.record("w")
    assert record is not None
    return {one.version for one in record.versions}


async def consistent(store: RedisWorkflowStore) -> None:
    """Check that every workflow is whole: each version that anything names can be read."""
    for name, production in (await store.names()).items():
        record = await store.record(name)
        assert record is not None and record.production == production
        versions = {one.version for one in record.versions}
        assert set(record.labels.values()) <= versions
        for version in versions:
            content = await store.content(name, version)
            assert content is not None and content.version == version
        history = [one for one in await store.history(name) if one.label == "production"]
        assert history[0].version == production and history[0].author == record.changed_by
        assert [one.before for one in history[:-1]] == [one.version for one in history[1:]]


async def test_a_version_stays_as_long_as_a_live_job_names_it(
    stores: Stores, store: RedisWorkflowStore
) -> None:
    first, second, *_ = await many(store, 3)
    await add_nodes(stores, "g1")
    queued = await submit(stores, owner="ann", workflow="w", workflow_version=first)
    await submit(stores, owner="ben", workflow="other", workflow_version=second)
    await many(store, MAX_VERSIONS, start=3)
    assert first in await there(store) and second not in await there(store)
    running = await claim(stores)
    assert running.job.id == queued.id
    await many(store, 1, start=1000)
    assert first in await there(store)
    await stores.runs.left(running, [])
    await stores.runs.finish(running, JobStatus.SUCCEEDED, error=None, duration_s=1)
    await many(store, 1, start=1001)
    assert first not in await there(store)
    assert len(await there(store)) == MAX_VERSIONS


async def test_what_was_in_production_lately_stays_longer(store: RedisWorkflowStore) -> None:
    first, second, *_ = await many(store, 3)
    await store.label("w", "production", at(f"w@{first}"), author="ann")
    await many(store, MAX_VERSIONS - 2, start=3)
    assert first in await there(store) and second not in await there(store)


async def test_large_versions_make_room_earlier(
    store: RedisWorkflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow_store, "MAX_VERSION_BYTES", 10_000)
    made = [
        (await store.publish("w", new(str(n), size=1500), expected=None, force=True)).version
        for n in range(12)
    ]
    record = await store.record("w")
    assert record is not None
    kept = [one.version for one in record.versions]
    assert kept == made[: -len(kept) - 1 : -1] and 2 < len(kept) < 8
    assert sum(one.size_bytes for one in record.versions) <= 10_000


async def test_a_call_whose_answer_was_lost_may_be_made_again(redis: FleetRedis) -> None:
    ids = iter("aabbccddee")
    store = RedisWorkflowStore(redis, new_id=lambda: next(ids))
    first = await store.publish("w", new("1"), expected=None)
    assert await store.publish("w", new("1"), expected=None) == first
    second = await store.publish("w", new("2"), expected=first.version)
    assert await store.publish("w", new("2"), expected=first.version) == second
    entry = await store.label(
        "w", "production", at(f"w@{first.version}"), author="b", expected=second.version
    )
    again = await store.label(
        "w", "production", at(f"w@{first.version}"), author="b", expected=second.version
    )
    assert again == entry and entry.before == second.version
    await store.label("w", "x", at("w"), author="b")
    assert (await store.label("w", "x", at("w"), author="b")).before == ""
    assert await store.unlabel("w", "x", author="b") and await store.unlabel("w", "x", author="b")
    assert len(await store.history("w")) == 5
    await consistent(store)


async def test_large_drafts_make_room_and_the_one_that_is_saved_stays(
    store: RedisWorkflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow_store, "MAX_DRAFT_BYTES", 9_000)

    async def save(owner: str, name: str, size: int) -> None:
        graph = new(name, size=size).content.graph
        await store.save_draft(owner, name, Draft(graph=graph, ui={"nodes": [], "filler": graph}))

    await save("ben", "his", 1500)
    for name in ("a", "b", "a", "c"):  # more than 3 kB each, in both formats
        await save("ann", name, 1500)
    assert list(await store.drafts("ann")) == ["c", "a"]
    assert await store.draft("ann", "b") is None and await store.draft("ann", "a") is not None
    await save("ann", "large", 8000)  # more than all of them may have
    assert list(await store.drafts("ann")) == ["large"]
    assert await store.draft("ann", "large") is not None and list(await store.drafts("ben")) == ["his"]


async def test_a_version_that_can_not_be_read_counts_as_broken_not_as_missing(
    redis: FleetRedis, store: RedisWorkflowStore, tmp_path: Path
) -> None:
    first, second = await many(store, 2)
    graph = new("3").content.graph
    await store.save_draft("ann", "w", Draft(graph=graph))
    await redis.hset(redis.keyspace.workflow_version("w", second), "content", b"half of it")
    catalog = StoredWorkflows(WorkflowCatalog(tmp_path), store, resolve_content)
    for reference in ("w", "w@draft"):
        with pytest.raises(WorkflowBroken, match=r"can't be read.*fleet workflow rollback w"):
            await catalog.find(reference, "ann")
    assert "can't be read" in str(await catalog.error_of("w"))
    assert list(await catalog.errors()) == ["w"]
    publisher = WorkflowPublisher(catalog, store)
    wanted = Publication(graph=graph, author="ann", base_version=second)
    with pytest.raises(WorkflowBroken, match=r"limits.*manifest"):
        await publisher.publish("w", wanted)
    await publisher.publish("w", replace(wanted, manifest={"title": "whole again"}))
    assert (await catalog.get("w", "ann")).title == "whole again"
    assert (await catalog.find("w@draft", "ann")).content.manifest == {"title": "whole again"}
    assert (await catalog.get(f"w@{first}", "ann")).version == first


async def test_there_is_a_limit_to_workflows_and_labels(
    store: RedisWorkflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow_store, "MAX_WORKFLOWS", 2)
    monkeypatch.setattr(workflow_store, "MAX_LABELS", 2)
    for name in ("w", "v"):
        await store.publish(name, new("1"), expected=None)
    with pytest.raises(Conflict, match="2 stored workflows"):
        await store.publish("u", new("1"), expected=None)
    await store.publish("w", new("2"), expected=None, force=True)
    for label in ("a", "b", "a"):
        await store.label("w", label, at("w"), author="ann")
    with pytest.raises(Conflict, match="2 labels"):
        await store.label("w", "c", at("w"), author="ann")


async def test_processes_that_publish_at_once_make_one_line(redis: FleetRedis, redis_port: int) -> None:
    clients = [connect(f"redis://127.0.0.1:{redis_port}/0") for _ in range(4)]
    processes = [RedisWorkflowStore(one) for one in clients]
    told = won = 0
    try:
        for number in range(10):
            base = await processes[0].find(at("w"))
            texts = [f"{number} {index}" for index in range(8)]
            for result in await asyncio.gather(
                *(processes[n % 4].publish("w", new(text), expected=base) for n, text in enumerate(texts)),
                return_exceptions=True,
            ):
                if isinstance(result, WorkflowChanged):
                    told += 1
                    assert result.details["changed_by"] == "ann"
                else:
                    assert not isinstance(result, BaseException)
                    won += 1
                    assert result.before == (base or "")
        assert (won, told) == (10, 70)
        await consistent(processes[0])
    finally:
        for one in clients:
            await one.aclose()


async def test_a_version_of_the_fleet_that_is_older_than_the_layout_changes_nothing(
    redis: FleetRedis, store: RedisWorkflowStore
) -> None:
    first = await store.publish("w", new("1"), expected=None)
    await redis.set(redis.keyspace.schema, SCHEMA + 1)
    for change in (
        store.publish("w", new("2"), expected=first.version),
        store.label("w", "x", at("w"), author="ann"),
        store.unlabel("w", "x", author="ann"),
        store.remove("w", author="ann"),
        store.save_draft("ann", "w", Draft(graph=new("2").content.graph)),
    ):
        with pytest.raises(Outdated):
            await change
    assert await store.names() == {"w": first.version}


WRITER = """
import asyncio, sys
from comfy_fleet.adapters.redis.client import connect
from comfy_fleet.adapters.redis.workflow_store import RedisWorkflowStore
from comfy_fleet.domain.graphs.stored import Draft
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference
from tests.integration.test_workflow_store import new

async def main():
    store, start = RedisWorkflowStore(connect(sys.argv[1])), int(sys.argv[2])
    for n in range(10**6):
        made = new(f"{start} {n}", size=3000)
        done = await store.publish("w", made, expected=None, force=True)
        await asyncio.gather(
            store.label("w", "x", WorkflowReference.parse(f"w@{done.version}"), author="ann"),
            store.save_draft("ann", "w", Draft(graph=made.content.graph, ui={"nodes": [n]})),
            store.publish(f"v{n % 5}", made, expected=None, force=True),
            store.remove(f"v{(n + 2) % 5}", author="ann"),
        )
        if n == 5:
            print("well under way", flush=True)

asyncio.run(main())
"""


async def test_a_process_that_is_killed_leaves_whole_workflows(
    redis: FleetRedis, redis_port: int, store: RedisWorkflowStore
) -> None:
    for start in range(4):
        url = f"redis://127.0.0.1:{redis_port}/0"
        writer = subprocess.Popen(
            mortal([sys.executable, "-c", WRITER, url, str(start)]),
            stdout=subprocess.PIPE,
            env=dict(os.environ),
        )
        assert writer.stdout is not None
        try:
            assert await asyncio.to_thread(writer.stdout.readline) == b"well under way\n"
        finally:
            writer.kill()
            writer.wait()
            writer.stdout.close()
        await consistent(store)
        draft = await store.draft("ann", "w")
        assert draft is not None and draft.graph["1"]["inputs"]["text"].startswith(f"{start} ")
        for name in set(await store.names()) - {"w"}:
            assert await store.version(at(name)) is not None


async def test_a_removed_workflow_leaves_nothing_but_the_word_of_it(
    redis: FleetRedis, store: RedisWorkflowStore
) -> None:
    await many(store, 3)
    await store.label("w", "x", at("w"), author="ann")
    await store.save_draft("ann", "w", Draft(graph=new("2").content.graph))
    await store.remove("w", author="ann")
    await store.drop_draft("ann", "w")
    kept = {redis.keyspace.schema.encode(), redis.keyspace.workflows_removed.encode()}
    assert set(await redis.keys("*")) <= kept
