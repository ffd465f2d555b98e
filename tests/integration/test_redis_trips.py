"""How often Redis is asked, one question after the other, where somebody waits for the answer."""

from typing import Any

import pytest
from redis.asyncio.client import Pipeline

from comfy_fleet.adapters.redis.asset_record import dump_asset
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import JobStatus, PromptFields
from comfy_fleet.domain.jobs.output_names import SavedFile
from comfy_fleet.ports.jobs import JobSnapshot
from tests.integration.redis_kit import add_nodes, claim, submit


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the fleet's clients ask Redis from now on: an entry for each round trip."""
    asked: list[str] = []
    command, pipeline = FleetRedis.execute_command, Pipeline.execute

    async def one(self: FleetRedis, *args: Any, **options: Any) -> Any:
        asked.append(str(args[0]))
        return await command(self, *args, **options)

    async def several(self: Any, raise_on_error: bool = True) -> Any:
        asked.append("pipeline")
        return await pipeline(self, raise_on_error)

    monkeypatch.setattr(FleetRedis, "execute_command", one)
    monkeypatch.setattr(Pipeline, "execute", several)
    return asked


async def ended(stores: Stores, *, ui: str, **fields: Any) -> str:
    await add_nodes(stores, "g1")
    job = await submit(stores, **fields)
    run = await claim(stores)
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=None, ui=ui)
    return job.id


async def test_an_end_is_told_after_one_look(stores: Stores, trips: list[str]) -> None:
    job_id = await ended(stores, ui='{"2": {"text": ["a"]}}')
    trips.clear()
    job, ui = await stores.jobs.with_ui(job_id)
    assert len(trips) == 1
    assert job == await stores.jobs.get(job_id) and ui == {"2": {"text": ["a"]}}


async def test_a_stream_begins_with_one_look(stores: Stores, trips: list[str]) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    read = await stores.jobs.get(job.id)
    assert read is not None
    trips.clear()
    now = await stores.jobs.snapshot(job.id)
    assert (now, len(trips)) == (JobSnapshot(job=read, position=1), 1)
    run = await claim(stores)
    await stores.runs.preview(run, {"node_id": "1"})
    trips.clear()
    now = await stores.jobs.snapshot(job.id)
    assert len(trips) == 1
    assert now == JobSnapshot(job=await stores.jobs.get(job.id) or job, preview={"node_id": "1"})
    assert now.job.status is JobStatus.RUNNING and now.job.run == run.run


async def test_a_stream_begins_whatever_somebody_has_put_in_the_place_of_the_queue(stores: Stores) -> None:
    job = await submit(stores)
    client: Any = stores.redis
    await client.set("fleet:queued", "mine")  # upkeep puts it right
    await client.rpush(f"fleet:job:{job.id}:preview", "mine")
    assert await stores.jobs.snapshot(job.id) == JobSnapshot(job=job, position=None)


async def test_one_entry_of_the_history_takes_one_look(stores: Stores, trips: list[str]) -> None:
    job_id = await ended(stores, ui='{"2": {"text": [NaN]}}', prompt=PromptFields(prompt_id="mine"))
    await stores.prompts.ended_prompt("local", "other", or_job_id=False)  # now Redis has the script
    trips.clear()
    found = await stores.prompts.ended_prompt("local", "mine", or_job_id=False)
    assert len(trips) == 1
    assert found is not None and found[0] == await stores.jobs.get(job_id)
    assert str(found[1].ui) == "{'2': {'text': [nan]}}"


async def test_a_saved_file_is_found_by_name_after_one_look(stores: Stores, trips: list[str]) -> None:
    file = SavedFile(type="output", subfolder="", filename="x_00001_.png")
    assert await stores.jobs.saved("local", file) is None  # now Redis has the script
    asset = Asset(
        id="asset-1",
        owner="local",
        hash="blake3:00",
        size_bytes=1,
        content_type="image/png",
        file_path=file.filename,
        path="ab/x",
        created_at=1.0,
    )
    client: Any = stores.redis
    await client.hset(stores.redis.keyspace.asset(asset.id), mapping=dump_asset(asset))
    await client.hset(stores.redis.keyspace.saved_files("local"), file.path, asset.id)
    trips.clear()
    assert await stores.jobs.saved("local", file) == asset
    assert len(trips) == 1


@pytest.mark.parametrize("key", ["job_outputs", "job_ui", "job_extra", "graph"])
async def test_an_ended_prompt_is_read_beside_values_of_a_wrong_kind(stores: Stores, key: str) -> None:
    job_id = await ended(stores, ui='{"2": {"text": ["a"]}}', extra_data={"preview_method": "auto"})
    job = await stores.jobs.get(job_id)
    assert job is not None
    name = getattr(stores.redis.keyspace, key)(job.graph_hash if key == "graph" else job_id)
    await stores.redis.delete(name)
    await stores.redis.sadd(name, "somebody else's")
    found = await stores.prompts.ended_prompt("local", job_id, or_job_id=True)
    assert found is not None and found[0].id == job_id
    content = found[1]
    assert bool(content.graph) is (key != "graph")
    assert bool(content.extra_data) is (key != "job_extra")
    assert bool(content.ui) is (key != "job_ui")
    assert (await stores.jobs.with_ui(job_id))[1] == content.ui
