"""The numbers in the names of an owner's files: drawn once, in order, and never again."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfy_fleet.adapters.redis import jobs as job_store
from comfy_fleet.adapters.redis import runs as run_store
from comfy_fleet.adapters.redis.asset_record import dump_asset
from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.adapters.redis.client import FleetRedis, connect
from comfy_fleet.adapters.redis.runs import RedisRunStore
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import LeaseLost
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.jobs.output_names import OutputId, SavedFile, number_groups, place_of
from comfy_fleet.domain.jobs.outputs import OutputItem, find_outputs
from comfy_fleet.ports.runs import Claim, RunStore, StoredOutput
from tests.assets_kit import assets_on
from tests.factories import a_claim, running_job
from tests.integration.redis_kit import (
    BROKEN,
    add_nodes,
    claim,
    forget,
    output,
    past_retention,
    stored,
    submit,
)


def new_id() -> str:
    return str(uuid4())


async def a_run(redis: FleetRedis, *, owner: str = "ann", job: str | None = None) -> Claim:
    """Return a claim of a run that Redis knows."""
    made = a_claim(running_job(id=job or new_id(), owner=owner), run=new_id(), token=uuid4().hex)
    await adopt(redis, made)
    return made


async def adopt(redis: FleetRedis, made: Claim) -> None:
    await redis.hset(f"fleet:run:{made.run}", mapping={"job": made.job.id, "token": made.token})


def saved(
    made: Claim, *names: str, node_id: str = "2", sub: str = "", type_: str = "output"
) -> tuple[OutputItem, ...]:
    """Return the outputs of one node of a graph; names may have a folder."""
    folder = "/".join(part for part in ("fleet", made.job.id, made.run, sub) if part)
    files = [{"filename": name, "subfolder": folder, "type": type_} for name in names]
    return find_outputs(node_id, {"images": files})


async def drawn(runs: RunStore, made: Claim, items: Sequence[OutputItem]) -> list[str]:
    """Return the paths that are drawn for some outputs."""
    found = await runs.name_outputs(made, number_groups(items))
    return [found[item.id].path for item in items]


@pytest.fixture
def runs(redis: FleetRedis) -> RedisRunStore:
    return RedisRunStore(redis)


async def test_an_owners_files_count_up_over_jobs_per_folder_and_prefix(
    redis: FleetRedis, runs: RedisRunStore
) -> None:
    first, second = await a_run(redis), await a_run(redis)
    assert await drawn(runs, first, saved(first, "ComfyUI_00001_.png", "ComfyUI_00002_.png")) == [
        "output/ComfyUI_00001_.png",
        "output/ComfyUI_00002_.png",
    ]
    assert await drawn(runs, second, saved(second, "ComfyUI_00001_.png")) == ["output/ComfyUI_00003_.png"]
    assert await drawn(runs, second, saved(second, "ComfyUI_00001.mp4", node_id="3")) == [
        "output/ComfyUI_00004.mp4"  # whatever the extension
    ]
    assert await drawn(runs, second, saved(second, "ComfyUI_00001_.png", node_id="4", sub="a")) == [
        "output/a/ComfyUI_00001_.png"
    ]
    assert await drawn(runs, second, saved(second, "other_00001_.png", node_id="5")) == [
        "output/other_00001_.png"
    ]
    previews = [
        saved(made, "ComfyUI_temp_abcde_00001_.png", node_id="9", type_="temp") for made in (first, second)
    ]
    assert await drawn(runs, first, previews[0]) == ["temp/ComfyUI_temp_abcde_00001_.png"]
    assert await drawn(runs, second, previews[1]) == ["temp/ComfyUI_temp_abcde_00002_.png"]


async def test_owners_count_for_themselves(redis: FleetRedis, runs: RedisRunStore) -> None:
    ann, bob = await a_run(redis), await a_run(redis, owner="bob")
    for made in (ann, bob):
        assert await drawn(runs, made, saved(made, "x_00001_.png")) == ["output/x_00001_.png"]


async def test_files_that_share_a_number_go_on_sharing_one(redis: FleetRedis, runs: RedisRunStore) -> None:
    for number in (1, 2):
        made = await a_run(redis)
        names = await drawn(runs, made, saved(made, "v_00001.mp4", "v_00001.png", "v_00001-audio.mp4"))
        assert names == [f"output/v_0000{number}{rest}" for rest in (".mp4", ".png", "-audio.mp4")]


async def test_a_batch_with_a_prefix_for_each_picture_counts_on(
    redis: FleetRedis, runs: RedisRunStore
) -> None:
    for numbers in ((1, 2, 3), (2, 3, 4)):
        made = await a_run(redis)
        names = await drawn(runs, made, saved(made, "b_0_00001_.png", "b_1_00002_.png", "b_2_00003_.png"))
        assert names == [f"output/b_{at}_0000{number}_.png" for at, number in enumerate(numbers)]


async def test_a_name_without_a_number_stays_if_it_is_free(redis: FleetRedis, runs: RedisRunStore) -> None:
    found = []
    for name in ("depth.png", "depth.png", "depth_00001_.png", "depth.png"):
        made = await a_run(redis)
        found += await drawn(runs, made, saved(made, name))
    assert found == [
        "output/depth.png",
        "output/depth_00001_.png",
        "output/depth_00002_.png",
        "output/depth_00003_.png",
    ]


async def test_one_file_named_twice_has_one_name(redis: FleetRedis, runs: RedisRunStore) -> None:
    made = await a_run(redis)
    assert await drawn(runs, made, saved(made, "x.png", "x.png", "y_00001_.png", "y_00001_.png")) == [
        *("output/x.png", "output/x.png"),
        *("output/y_00001_.png", "output/y_00001_.png"),
    ]


async def test_a_retry_and_an_adopter_get_the_names_that_were_told(
    redis: FleetRedis, runs: RedisRunStore
) -> None:
    first = await a_run(redis)
    temp = "ComfyUI_temp_{}_00001_.png"
    told = await drawn(runs, first, saved(first, "x_00001_.png"))
    told += await drawn(runs, first, saved(first, temp.format("aaaaa"), node_id="3", type_="temp"))
    adopter = replace(first, token="another")
    await adopt(redis, adopter)
    with pytest.raises(LeaseLost):
        await drawn(runs, first, saved(first, "x_00001_.png"))
    retry = await a_run(redis, job=first.job.id)
    for made in (adopter, retry):  # a retry on another node, which draws other letters
        again = await drawn(runs, made, saved(made, "x_00001_.png"))
        again += await drawn(runs, made, saved(made, temp.format("bbbbb"), node_id="3", type_="temp"))
        assert again == told


async def test_a_retry_that_makes_another_kind_of_file_gets_another_name(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    first = await claim(stores)
    (told,) = await drawn(stores.runs, first, saved(first, "x_00001_.webm"))
    await commit(stores, first, told)
    await stores.runs.requeue(first, counts=False, reason=BROKEN)
    retry = await claim(stores)
    assert await drawn(stores.runs, retry, saved(retry, "x_00001_.mp4")) == ["output/x_00002_.mp4"]
    assert await saved_id(stores, "local", SavedFile.parse(told)) is None


async def test_a_run_of_another_job_gets_no_names(redis: FleetRedis, runs: RedisRunStore) -> None:
    made = await a_run(redis)
    other = replace(made, job=running_job(id=new_id(), owner="bob"))
    with pytest.raises(LeaseLost):
        await drawn(runs, other, saved(other, "x_00001_.png"))
    with pytest.raises(LeaseLost):
        await drawn(runs, replace(made, run=new_id()), saved(made, "x_00001_.png"))
    assert await runs.name_outputs(made, []) == {}


async def test_prefixes_without_end_share_a_counter(
    redis: FleetRedis, runs: RedisRunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_store, "COUNTERS", 5)
    found = []
    for at in range(20):
        made = await a_run(redis)
        found += await drawn(
            runs, made, saved(made, f"p{at}_00001_.png", f"p{at % 3}_00002_.png", f"u{at}.png")
        )
        found += await drawn(runs, made, saved(made, f"p{at}_00001_.png", "p0_00002_.png", node_id="3"))
    assert len(set(found)) == len(found)
    client: Any = redis
    assert await client.hlen("fleet:saved:counts:ann") <= 6
    monkeypatch.setattr(run_store, "COUNTERS", 1000)  # of a later version
    for at in range(20):
        made = await a_run(redis)
        found += await drawn(runs, made, saved(made, f"p{at}_00001_.png", f"u{at}_00001_.png"))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("alike", [False, True], ids=["numbered", "one group"])
async def test_a_run_may_save_any_number_of_files(
    redis: FleetRedis, runs: RedisRunStore, alike: bool
) -> None:
    made = await a_run(redis)
    names = [f"x_00001_.e{at}" if alike else f"x_{at + 1:05}_.png" for at in range(9000)]
    for _ in range(2):
        found = await drawn(runs, made, saved(made, *names))
        assert found == [f"output/{name}" for name in names]


async def test_twenty_jobs_at_once_get_twenty_numbers(redis: FleetRedis, runs: RedisRunStore) -> None:
    claims = [await a_run(redis) for _ in range(20)]
    found = await asyncio.gather(*(drawn(runs, made, saved(made, "ComfyUI_00001_.png")) for made in claims))
    assert sorted(name for (name,) in found) == [f"output/ComfyUI_{n:05}_.png" for n in range(1, 21)]


async def test_somebody_elses_values_in_these_keys_stop_nothing(
    redis: FleetRedis, runs: RedisRunStore
) -> None:
    made = await a_run(redis)
    client: Any = redis
    await client.set(f"fleet:job:{made.job.id}:names", "x")
    await client.set("fleet:saved:counts:ann", "x")
    assert await drawn(runs, made, saved(made, "x_00001_.png")) == ["output/x_00001_.png"]
    await client.hset("fleet:saved:counts:ann", "output/y_*", "many")
    assert await drawn(runs, made, saved(made, "y_00001_.png", node_id="3")) == ["output/y_00001_.png"]


# -- any order of what can happen ------------------------------------------------------------------------

PREFIXES = ("ComfyUI_00001_.png", "ComfyUI_00002_.png", "v_00001.mp4", "v_00001.png", "depth.png", "")
"""What the nodes of each job save; the last is a preview, whose letters are new in every run."""


@dataclass
class Played:
    """One job: its current run, and what was told of its files."""

    owner: str
    job: str = field(default_factory=new_id)
    claim: Claim | None = None
    stale: list[Claim] = field(default_factory=list)
    told: dict[OutputId, str] = field(default_factory=dict)


def made_by_node(made: Claim, node: int, letters: str) -> tuple[OutputItem, ...]:
    count = 2 if node == 2 else 1
    names = PREFIXES[node : node + count]
    if names == ("",):
        return saved(made, f"ComfyUI_temp_{letters}_00001_.png", node_id="5", type_="temp")
    return saved(made, *names, node_id=str(node))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["run", "adopt", "name", "name", "name", "all", "stale"]),
        st.integers(0, 4),
        st.integers(0, len(PREFIXES) - 1),
        st.sampled_from(["aaaaa", "bbbbb"]),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_place_has_one_name_and_no_name_two_places(
    redis_port: int, steps: list[tuple[str, int, int, str]]
) -> None:
    asyncio.run(_play(redis_port, steps))


async def _play(redis_port: int, steps: list[tuple[str, int, int, str]]) -> None:
    redis = connect(f"redis://127.0.0.1:{redis_port}/0")
    try:
        await redis.flushall()
        await _played(redis, steps)
    finally:
        await redis.aclose()


async def _played(redis: FleetRedis, steps: list[tuple[str, int, int, str]]) -> None:
    runs = RedisRunStore(redis)
    jobs = [Played(owner) for owner in ("ann", "ann", "ann", "bob", "bob")]
    for step, which, node, letters in steps:
        job = jobs[which]
        if step == "run" or job.claim is None:
            if job.claim is not None:
                job.stale.append(job.claim)
                await redis.delete(f"fleet:run:{job.claim.run}")
            job.claim = await a_run(redis, owner=job.owner, job=job.job)
        elif step == "adopt":
            job.stale.append(job.claim)
            job.claim = replace(job.claim, token=uuid4().hex)
            await adopt(redis, job.claim)
        elif step == "stale" and job.stale:
            with pytest.raises(LeaseLost):
                await runs.name_outputs(
                    job.stale[-1], number_groups(made_by_node(job.stale[-1], node, letters))
                )
        else:
            nodes = range(len(PREFIXES)) if step == "all" else (node,)
            items = [item for at in nodes for item in made_by_node(job.claim, at, letters)]
            for id_, file in (await runs.name_outputs(job.claim, number_groups(items))).items():
                assert job.told.setdefault(id_, file.path) == file.path
    for owner in ("ann", "bob"):
        given_out = [path for job in jobs if job.owner == owner for path in job.told.values()]
        assert len(set(given_out)) == len(given_out)
        numbers = sorted(int(path[-10:-5]) for path in given_out if path.startswith("output/ComfyUI_"))
        assert numbers == list(range(1, len(numbers) + 1))


# -- asking by name --------------------------------------------------------------------------------------


async def saved_id(stores: Stores, owner: str, file: SavedFile) -> str | None:
    found = await stores.jobs.saved(owner, file)
    return found.id if found is not None else None


async def record(stores: Stores, asset_id: str, name: str, *, owner: str, job_id: str | None = None) -> None:
    """Write an asset's record; there are no bytes."""
    asset = Asset(
        id=asset_id,
        owner=owner,
        hash="blake3:00",
        size_bytes=1,
        content_type="image/png",
        file_path=name,
        path="ab/x",
        created_at=1.0,
        job_id=job_id,
    )
    client: Any = stores.redis
    await client.hset(f"fleet:asset:{asset_id}", mapping=dump_asset(asset))


async def commit(stores: Stores, made: Claim, path: str, asset: Asset | None = None, **fields: Any) -> str:
    """Commit an output under the name that was drawn; return its asset."""
    place = SavedFile.parse(path)
    one = output(
        name=place.filename,
        subfolder=place.subfolder,
        temporary=place.type == "temp",
        saved=True,
        **{"asset_id": new_id(), **fields},
    )
    assert place_of(one) == place
    await stores.runs.commit(
        made, stored(made, one) if asset is None else StoredOutput(output=one, asset=asset)
    )
    return one.asset_id


async def test_a_committed_file_is_found_by_its_name_until_its_job_is_forgotten(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    made = await claim(stores)
    items = saved(made, "x_00001_.png", "x_00002_.png", sub="a")
    names: Mapping[OutputId, SavedFile] = await stores.runs.name_outputs(made, number_groups(items))
    first = names[items[0].id]
    assert await saved_id(stores, "local", first) is None
    asset_id = await commit(stores, made, first.path)
    assert await saved_id(stores, "local", first) == asset_id
    assert await saved_id(stores, "bob", first) is None
    assert await saved_id(stores, "local", replace(first, type="temp")) is None
    assert await saved_id(stores, "local", replace(first, subfolder="")) is None
    assert await saved_id(stores, "local", replace(first, filename="\ud800")) is None
    await commit(stores, made, first.path)  # an adopter's second time changes nothing
    assert await saved_id(stores, "local", first) == asset_id
    await stores.runs.finish(made, JobStatus.SUCCEEDED, error=None, duration_s=1)
    assert await saved_id(stores, "local", first) == asset_id
    await forget(stores, job.id)
    assert await saved_id(stores, "local", first) is None
    client: Any = stores.redis
    keys = {key.decode() for key in await client.keys("fleet:*")}
    assert "fleet:saved:counts:local" in keys
    keys = {key for key in keys if not key.startswith(("fleet:asset:", "fleet:blob:"))}  # another store's
    assert not {key for key in keys if "saved:files" in key or job.id in key}
    await submit(stores)
    later = await claim(stores)
    assert await drawn(stores.runs, later, saved(later, "x_00001_.png", sub="a")) == ["output/a/x_00003_.png"]


async def test_a_retry_replaces_what_a_name_stands_for(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    made = await claim(stores)
    path = "output/x_00001_.png"
    assert await drawn(stores.runs, made, saved(made, "x_00001_.png")) == [path]
    early = await commit(stores, made, path)
    await stores.runs.requeue(made, counts=False, reason=BROKEN)
    assert await saved_id(stores, "local", SavedFile.parse(path)) == early  # until there is another
    retry = await claim(stores)
    assert await drawn(stores.runs, retry, saved(retry, "x_00001_.png")) == [path]
    late = await commit(stores, retry, path)
    assert late != early
    assert await saved_id(stores, "local", SavedFile.parse(path)) == late


async def test_a_model_is_found_in_either_folder(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    made = await claim(stores)
    items = find_outputs("4", {"result": [f"preview3d_{'0' * 32}.glb", None]}, run=made.run)
    (path,) = await drawn(stores.runs, made, items)
    asset_id = await commit(stores, made, path)
    for type_ in ("output", "temp"):
        asked = SavedFile(type=type_, subfolder="", filename=f"preview3d_{'0' * 32}.glb")
        assert await saved_id(stores, "local", asked) == asset_id


async def test_an_output_of_a_version_without_names_is_found_by_its_assets_id(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores)
    made = await claim(stores)
    old = output(asset_id=new_id(), name="ComfyUI_00001_.png")
    await record(stores, old.asset_id, old.name, owner="local", job_id=made.job.id)
    await stores.runs.commit(made, stored(made, old))
    assert await saved_id(stores, "local", place_of(old)) == old.asset_id
    assert await saved_id(stores, "bob", place_of(old)) is None
    assert await saved_id(stores, "local", replace(place_of(old), filename="other.png")) is None
    assert await stores.jobs.saved_files("local", "output", limit=9) == []
    upload = new_id()
    await record(stores, upload, "u.png", owner="local")
    asked = SavedFile(type="output", subfolder=f"asset/{upload}", filename="u.png")
    assert await saved_id(stores, "local", asked) is None


@dataclass
class Saver:
    """Saves files of jobs."""

    stores: Stores
    assets: RedisAssets

    async def job(self, *names: str, owner: str = "ann", sub: str = "", temp: str = "") -> Claim:
        """Run a job that saves these, and a preview."""
        await submit(self.stores, owner=owner)
        made = await claim(self.stores)
        items = saved(made, *names, sub=sub)
        for index, path in enumerate(await drawn(self.stores.runs, made, items)):
            await self.file(made, path, index=index)
        if temp:
            (preview,) = await drawn(self.stores.runs, made, saved(made, temp, node_id="3", type_="temp"))
            await self.file(made, preview, node_id="3")
        await self.stores.runs.commit(made, stored(made, output(node_id="4", name="text_00001.txt")))
        await self.stores.runs.finish(made, JobStatus.SUCCEEDED, error=None, duration_s=1)
        return made

    async def file(self, made: Claim, path: str, **fields: Any) -> str:
        place = SavedFile.parse(path)

        async def content() -> AsyncIterator[bytes]:
            yield new_id().encode()

        asset = await self.assets.put_output(
            owner=made.job.owner,
            job_id=made.job.id,
            chunks=content(),
            name=place.filename,
            content_type="image/png",
            expires_at=2e9,
        )
        return await commit(self.stores, made, path, asset, asset_id=asset.id, **fields)

    async def listed(self, owner: str = "ann", type_: str = "output", limit: int = 100) -> list[str]:
        rows = await self.stores.jobs.saved_files(owner, type_, limit=limit)
        assert [at for _, at in rows] == sorted((at for _, at in rows), reverse=True)
        return [name[2:7] for name, _ in rows]


@pytest.fixture
async def saver(stores: Stores, tmp_path: Path) -> Saver:
    await add_nodes(stores, "g1")
    return Saver(stores=stores, assets=assets_on(stores.redis, tmp_path, clock=stores.clock))


async def test_ones_files_are_listed_the_newest_first(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "WINDOW", 3)
    for owner in ("ann", "ann", "bob", "ann", "ann"):
        await saver.job("x_00001_.png", "x_00002_.png", owner=owner, temp="p_00001_.png")
    await saver.job("x_00001_.png", sub="sub")  # no list has what is in subfolders
    newest_first = [f"{number:05}" for number in range(8, 0, -1)]
    assert await saver.listed() == newest_first
    for limit in (1, 2, 3, 4, 7, 8):
        assert await saver.listed(limit=limit) == newest_first[:limit]
    assert await saver.listed(type_="temp") == ["00004", "00003", "00002", "00001"]
    assert await saver.listed("bob") == ["00002", "00001"]
    assert await saver.listed("nobody") == []


async def test_a_file_leaves_the_list_with_its_bytes_or_its_job(saver: Saver) -> None:
    stores = saver.stores
    first = await saver.job("x_00001_.png", "x_00002_.png", temp="p_00001_.png")
    second = await saver.job("x_00001_.png", "x_00002_.png")
    asset_id = await saved_id(stores, "ann", SavedFile.parse("output/x_00003_.png"))
    assert asset_id is not None
    await saver.assets.delete(owner="ann", asset_id=asset_id)
    assert await saver.listed() == ["00004", "00002", "00001"]
    await stores.jobs.hide("ann", [first.job.id, second.job.id])  # out of ComfyUI's history: files stay
    assert await saver.listed() == ["00004", "00002", "00001"]
    await past_retention(stores, first.job.id)
    await saver.assets.forget_job(first.job.id)
    await stores.runs.forget(first.job.id)
    assert await saver.listed() == ["00004"]
    assert await saver.listed(type_="temp") == []
    await forget(stores, second.job.id)  # also without the other
    client: Any = stores.redis
    assert not await client.keys("fleet:saved:newest:*")


async def test_a_file_that_a_retry_saves_again_is_the_newest(saver: Saver) -> None:
    stores = saver.stores
    await submit(stores, owner="ann")
    made = await claim(stores)
    (path,) = await drawn(stores.runs, made, saved(made, "x_00001_.png"))
    early = await saver.file(made, path)
    await stores.runs.requeue(made, counts=False, reason=BROKEN)
    retry = await claim(stores)
    assert await drawn(stores.runs, retry, saved(retry, "x_00001_.png")) == [path]
    (other,) = await drawn(stores.runs, retry, saved(retry, "x_00001_.png", node_id="5"))
    await saver.file(retry, other, node_id="5")
    await saver.file(retry, path)
    await stores.runs.finish(retry, JobStatus.SUCCEEDED, error=None, duration_s=1)
    assert await saver.listed() == ["00001", "00002"]
    await saver.assets.delete(owner="ann", asset_id=early)  # its name means another one now
    assert await saver.listed() == ["00001", "00002"]


async def test_a_list_of_another_kind_stops_no_output(saver: Saver) -> None:
    client: Any = saver.stores.redis
    await client.set("fleet:saved:newest:ann:output", "somebody's")
    made = await saver.job("x_00001_.png")
    assert await saver.listed() == ["00001"]
    await client.set("fleet:saved:newest:ann:output", "somebody's")
    await past_retention(saver.stores, made.job.id)
    await saver.assets.forget_job(made.job.id)
    await saver.stores.runs.forget(made.job.id)
    assert await saver.stores.jobs.get(made.job.id) is None


async def test_a_list_costs_the_same_however_many_files_there_are(saver: Saver) -> None:
    client: Any = saver.stores.redis
    for start in range(0, 100_000, 10_000):
        many = {f"x_{number:06}_.png": number for number in range(start, start + 10_000)}
        await client.zadd("fleet:saved:newest:ann:output", many)
    await client.config_resetstat()
    assert len(await saver.stores.jobs.saved_files("ann", "output", limit=4000)) == 4000
    calls = {name: about["calls"] for name, about in (await client.info("commandstats")).items()}
    assert calls.pop("cmdstat_zrevrange") <= 4
    assert calls.keys() <= {"cmdstat_config|resetstat", "cmdstat_info"}
