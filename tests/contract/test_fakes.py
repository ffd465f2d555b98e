"""The fakes of the stores, held against the stores: every case runs on both."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.bootstrap import Stores, open_assets
from comfy_fleet.domain.errors import BadInput, Conflict, LeaseLost, NoRoom, NotFound
from comfy_fleet.domain.graphs.inventory import parse
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import Job, JobError, JobEvent, JobStatus, Output, Placement, Progress
from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.domain.nodes.eligibility import Requirements
from comfy_fleet.domain.nodes.memory_need import FamilyMemory
from comfy_fleet.domain.nodes.node import Node, Reading
from comfy_fleet.domain.nodes.pool import Pool
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.estimates import EstimateStore
from comfy_fleet.ports.jobs import Events, JobStore
from comfy_fleet.ports.memory import MemoryStore
from comfy_fleet.ports.nodes import InventoryStore, NodeRegistry, PoolStore
from comfy_fleet.ports.runs import Claim, Refused, RunStore, StoredOutput
from comfy_fleet.settings import Settings
from tests.factories import a_claim, new_job
from tests.fakes.assets import FakeAssetStore
from tests.fakes.comfyui import chunks
from tests.fakes.estimates import FakeEstimateStore
from tests.fakes.memory import MOST_ENDS, FakeMemoryStore
from tests.fakes.nodes import FakeInventoryStore, FakeNodeRegistry, FakePoolStore
from tests.fakes.runs import FakeJobStore, FakeRunStore
from tests.integration.redis_kit import output, stored

ANY = Placement()
BOOM = JobError(code="node_lost", message="gone")


@dataclass(frozen=True, kw_only=True)
class Ports:
    """All stores of one kind.

    Attributes:
        enqueue: Have a job of a class wait.
        outputs: What is committed of a run's job.
        tell: Have something happen to a run's job.
    """

    registry: NodeRegistry
    inventories: InventoryStore
    memory: MemoryStore
    estimates: EstimateStore
    pools: PoolStore
    runs: RunStore
    jobs: JobStore
    events: Events
    enqueue: Callable[[Placement], Awaitable[Job]]
    outputs: Callable[[Claim], Awaitable[Sequence[Output]]]
    tell: Callable[[Claim], Awaitable[None]]


def fake_ports() -> Ports:
    registry = FakeNodeRegistry()
    runs, jobs = FakeRunStore(registry), FakeJobStore()

    async def enqueue(placement: Placement) -> Job:
        runs.queue(1, placement)
        job = runs.queues[placement][-1]
        jobs.held[job.id] = job
        jobs.places[job.id] = sum(len(waiting) for waiting in runs.queues.values())
        return job

    async def outputs(claim: Claim) -> Sequence[Output]:
        return list(runs.runs[claim.run].outputs.values())

    async def tell(claim: Claim) -> None:
        data = {"value": 0.5, "nodes_done": 1, "nodes_total": 2}
        runs.events.tell(JobEvent(job_id=claim.job.id, seq=1, type="progress", run=claim.run, data=data))

    return Ports(
        registry=registry,
        inventories=FakeInventoryStore(registry),
        memory=FakeMemoryStore(),
        estimates=FakeEstimateStore(),
        pools=FakePoolStore(),
        runs=runs,
        jobs=jobs,
        events=runs.events,
        enqueue=enqueue,
        outputs=outputs,
        tell=tell,
    )


def real_ports(stores: Stores) -> Ports:
    async def enqueue(placement: Placement) -> Job:
        new = new_job(placement=placement)
        return (await stores.jobs.submit(new, idempotency=None, depth_limit=100)).job

    async def outputs(claim: Claim) -> Sequence[Output]:
        found = await stores.jobs.get(claim.job.id)
        assert found is not None
        return found.outputs

    async def tell(claim: Claim) -> None:
        await stores.runs.progress(claim, Progress(value=0.5, nodes_done=1, nodes_total=2))

    return Ports(
        registry=stores.nodes,
        inventories=stores.inventories,
        memory=stores.memory,
        estimates=stores.estimates,
        pools=stores.pools,
        runs=stores.runs,
        jobs=stores.jobs,
        events=stores.events,
        enqueue=enqueue,
        outputs=outputs,
        tell=tell,
    )


@pytest.fixture(params=["fake", "real"])
def ports(request: pytest.FixtureRequest) -> Ports:
    if request.param == "fake":
        return fake_ports()
    return real_ports(request.getfixturevalue("stores"))


def node(name: str, port: int = 9000, **fields: Any) -> Node:
    return replace(Node(name=name, url=f"http://127.0.0.1:{port}"), **fields)


# -- nodes and pools ---------------------------------------------------------------------------------------


async def test_nodes_are_found_by_name(ports: Ports) -> None:
    registry = ports.registry
    assert await registry.get("b") is None and await registry.state("b") is None
    second = node("b", 9001, pool="big", weight=7, labels={"kind": "fast"}, added_at=5.0)
    assert await registry.add(second) == second
    await registry.add(node("a"))
    assert await registry.get("b") == second
    assert [one.name for one in await registry.nodes()] == ["a", "b"]
    first, _ = await registry.states()
    assert first == await registry.state("a")
    assert (first.verdict, first.run, first.quarantined, first.reading) == ("new", None, False, Reading())


async def test_a_name_and_a_url_are_one_node_s(ports: Ports) -> None:
    await ports.registry.add(node("a"))
    for other in (node("a", 9001), node("b")):
        with pytest.raises(Conflict):
            await ports.registry.add(other)
    await ports.registry.remove("a")
    await ports.registry.add(node("b"))
    assert [one.name for one in await ports.registry.nodes()] == ["b"]


async def test_a_cordon_is_no_part_of_a_registration(ports: Ports) -> None:
    registry = ports.registry
    await registry.add(node("a", cordoned=True, cordon_reason="old"))
    found = await registry.get("a")
    assert found is not None and (found.cordoned, found.cordon_reason) == (False, "")
    marked = await registry.cordon("a", reason="fans")
    assert (marked.cordoned, marked.cordon_reason) == (True, "fans")
    assert await registry.get("a") == marked
    assert not (await registry.uncordon("a")).cordoned
    assert await registry.get("a") == found


async def test_a_node_that_is_not_there_is_not_found(ports: Ports) -> None:
    registry = ports.registry
    for call in (
        registry.cordon("a", reason="x"),
        registry.uncordon("a"),
        registry.remove("a"),
        registry.want_reading("a"),
    ):
        with pytest.raises(NotFound):
            await call
    await registry.report("a", verdict="up", why="")
    assert not await registry.record_failure("a", kind="gpu", limit=1, reason="x")
    assert await registry.states() == []


async def test_what_was_reported_last_holds(ports: Ports) -> None:
    await ports.registry.add(node("a"))
    for verdict, why in (("up", ""), ("drain", "it is hot"), ("down", "refused")):
        await ports.registry.report("a", verdict=verdict, why=why)
        state = await ports.registry.state("a")
        assert state is not None and (state.verdict, state.why) == (verdict, why)


async def test_failures_of_one_kind_in_a_row_take_a_node_out(ports: Ports) -> None:
    registry = ports.registry
    await registry.add(node("a"))

    async def record_failure(kind: str) -> bool:
        return await registry.record_failure("a", kind=kind, limit=2, reason="quarantined")

    assert [await record_failure(kind) for kind in ("gpu", "oom", "gpu", "gpu")] == [
        False,
        False,
        True,
        False,
    ]
    state = await registry.state("a")
    assert state is not None and state.quarantined
    assert (state.node.cordoned, state.node.cordon_reason) == (True, "quarantined")
    await registry.uncordon("a")
    state = await registry.state("a")
    assert state is not None and not state.quarantined
    assert [await record_failure("gpu") for _ in range(2)] == [False, True]


async def test_whoever_watches_the_registry_hears_of_changes(ports: Ports) -> None:
    changes = ports.registry.changes()
    await anext(changes)
    await ports.registry.add(node("a"))
    async with asyncio.timeout(4):  # sooner than the look that is made now and then
        await anext(changes)
    await changes.aclose()


async def test_what_is_set_for_a_pool_holds_until_nothing_is(ports: Ports) -> None:
    pools = ports.pools
    assert await pools.get("big") == Pool(name="big")
    for name in ("big", "a"):
        await pools.set(Pool(name=name, free_on_oom=False, free_idle_s=5.0))
    assert await pools.get("big") == Pool(name="big", free_on_oom=False, free_idle_s=5.0)
    assert [pool.name for pool in await pools.pools()] == ["a", "big"]
    await pools.set(Pool(name="big"))
    assert [pool.name for pool in await pools.pools()] == ["a"]


async def test_of_a_pool_only_what_is_named_changes(ports: Ports) -> None:
    pools = ports.pools
    await pools.change("big", {"free_on_oom": False})
    await pools.change("big", {"free_idle_s": 5.0})
    await pools.change("big", {})
    assert await pools.get("big") == Pool(name="big", free_on_oom=False, free_idle_s=5.0)
    with pytest.raises(BadInput):
        await pools.change("big", {"free_idle_s": -1.0, "free_on_oom": True})
    await pools.change("big", {"free_on_oom": None})
    assert await pools.pools() == [Pool(name="big", free_idle_s=5.0)]
    await pools.change("big", {"free_idle_s": None})
    assert await pools.pools() == []
    with pytest.raises(BadInput):
        await pools.change("Big", {"free_on_oom": True})


async def test_a_pool_has_its_slot_whatever_is_set_for_it(ports: Ports) -> None:
    pools = ports.pools
    await pools.set(Pool(name="a", free_on_oom=False))
    await pools.place({"a": 2, "b": 1})
    assert await pools.pools() == [Pool(name="a", free_on_oom=False, slot=2), Pool(name="b", slot=1)]
    await pools.set(Pool(name="a", free_on_oom=True))
    await pools.place({"a": 3})
    assert await pools.pools() == [Pool(name="a", free_on_oom=True, slot=3)]


# -- inventories -------------------------------------------------------------------------------------------

HAS = parse({"EmptyImage": {"input": {"required": {}}, "output": ["IMAGE"]}})
TOLD = Reading(comfyui="0.3.64", gpu="Some GPU", device="cuda", vram_bytes=12)


async def test_one_process_reads_a_node(ports: Ports) -> None:
    registry, inventories = ports.registry, ports.inventories
    assert not await inventories.claim("a", ttl_s=20)
    assert await inventories.save("a", HAS, TOLD) == "unknown"
    await registry.add(node("a"))
    await registry.want_reading("a")
    assert await _reading(registry) == Reading(wanted=True)
    assert [await inventories.claim("a", ttl_s=20) for _ in range(2)] == [True, False]
    assert await _reading(registry) == Reading()
    await inventories.unclaim("a", why="it answers nonsense")
    assert await _reading(registry) == Reading(trouble="it answers nonsense")
    assert await inventories.claim("a", ttl_s=20)
    assert await inventories.save("a", HAS, TOLD) == "changed"
    assert await inventories.claim("a", ttl_s=20), "it is read to the end"


async def test_what_a_node_has_is_kept_under_its_hash(ports: Ports) -> None:
    registry, inventories = ports.registry, ports.inventories
    for name, port in (("a", 9000), ("b", 9001)):
        await registry.add(node(name, port))
        assert await inventories.save(name, HAS, TOLD) == "changed"
    assert await inventories.save("a", HAS, TOLD) == "same"
    first, second = await registry.states()
    assert first.reading.inventory == second.reading.inventory != ""
    assert first.reading.read_at >= first.reading.changed_at > 0
    found = first.reading
    assert found == replace(
        TOLD, inventory=found.inventory, read_at=found.read_at, changed_at=found.changed_at
    )
    assert await inventories.load(first.reading.inventory) == HAS
    assert await inventories.load("3-none") is None
    assert await inventories.save("a", parse({}), TOLD) == "changed"
    assert (await registry.states())[0].reading.inventory != first.reading.inventory


async def _reading(registry: NodeRegistry) -> Reading:
    (state,) = await registry.states()
    return state.reading


async def test_needs_are_kept_under_their_key(ports: Ports) -> None:
    needs = Requirements(classes=frozenset({"Rare"}))
    assert await ports.inventories.needs(needs.key) is None
    await ports.inventories.keep_needs(needs)
    assert await ports.inventories.needs(needs.key) == needs
    await ports.inventories.keep_needs(Requirements())
    assert await ports.inventories.needs("") is None


async def test_the_largest_card_that_was_too_small_counts(ports: Ports) -> None:
    sizes = (12, 24, 8)
    found = [await ports.inventories.note_oom("p", size, ttl_s=60) for size in sizes]
    assert found == [12, 24, 24]
    assert await ports.inventories.note_oom("other", 8, ttl_s=60) == 8


# -- estimates ---------------------------------------------------------------------------------------------


async def test_nothing_is_known_of_ends_at_first(ports: Ports) -> None:
    estimates = ports.estimates
    job = await ports.enqueue(ANY)
    assert await estimates.underway(job.id) is None and await estimates.underway("none") is None
    assert await estimates.mean_run_s() is None
    assert await estimates.free_in_s([]) == {} == await estimates.free_in_s(["a", "b"])
    await estimates.note(job.id, "wait0", 5.0)  # nothing is learned before it has ended
    assert not any((await estimates.errors()).values())


# -- memory ------------------------------------------------------------------------------------------------


def ends(known: FamilyMemory) -> dict[str, set[tuple[int, float]]]:
    return {
        "fits": {(one.room, one.pixels) for one in known.fits},
        "fails": {(one.room, one.pixels) for one in known.fails},
    }


async def noted(
    ports: Ports, *runs: tuple[int, float, bool], ttl_s: int = 60, owner: str = "ada"
) -> FamilyMemory:
    for room, pixels, fits in runs:
        work = Workload(family="checkpoints/a", model_bytes=7, pixels=pixels)
        await ports.memory.note(work, owner=owner, room=room, fits=fits, ttl_s=ttl_s)
    return await ports.memory.known("checkpoints/a")


async def test_of_a_family_that_never_ran_nothing_is_known(ports: Ports) -> None:
    assert await ports.memory.known("checkpoints/a") == FamilyMemory()


async def test_ends_that_say_less_than_others_are_dropped(ports: Ports) -> None:
    known = await noted(ports, (24, 4, True), (24, 2, True), (16, 1, True), (12, 1, True), (24, 4, True))
    assert ends(known)["fits"] == {(24, 4), (12, 1)}
    known = await noted(ports, (12, 9, False), (12, 3, False), (16, 8, False), (12, 5, False))
    assert ends(known) == {"fits": {(24, 4), (12, 1)}, "fails": {(12, 3), (16, 8)}}


async def test_a_success_takes_the_place_of_failures_that_it_contradicts(ports: Ports) -> None:
    known = await noted(ports, (12, 2, False), (16, 4, False), (12, 3, True))
    assert ends(known) == {"fits": {(12, 3)}, "fails": {(16, 4)}}


async def test_a_failure_takes_the_place_of_a_success_at_its_second_time(ports: Ports) -> None:
    assert ends(await noted(ports, (12, 3, True), (24, 9, True), (12, 2, False))) == {
        "fits": {(24, 9)},
        "fails": set(),
    }
    assert ends(await noted(ports, (12, 2, False))) == {"fits": {(24, 9)}, "fails": {(12, 2)}}


async def test_an_owner_s_ends_contradict_nobody_else_s(ports: Ports) -> None:
    await noted(ports, (12, 3, True), (8, 2, False))
    await noted(ports, (12, 2, False), owner="bob")
    known = await noted(ports, (8, 4, True), owner="eve")
    assert ends(known) == {"fits": {(12, 3), (8, 4)}, "fails": {(8, 2), (12, 2)}}
    assert {(one.owner, one.room) for one in known.fails} == {("ada", 8), ("bob", 12)}


async def test_a_family_keeps_the_newest_ends(ports: Ports) -> None:
    many = [(10 + number, 1.0 + number, True) for number in range(20)]
    known = await noted(ports, *many)
    assert ends(known)["fits"] == {(room, pixels) for room, pixels, _ in many[-MOST_ENDS:]}


async def test_whether_models_fit_as_a_whole_is_counted_for_all_families(ports: Ports) -> None:
    await noted(ports, (6, 1, False), (6, 0, False), (5, 1, True), (7, 1, True), (9, 1, False))
    known = await ports.memory.known("checkpoints/other")
    assert (known.refused, known.ran, known.fits, known.fails) == (2, 1, (), ())


async def test_an_end_is_forgotten(ports: Ports) -> None:
    await noted(ports, (12, 2, False), ttl_s=1)
    known = await noted(ports, (24, 2, True), ttl_s=60)
    until = asyncio.get_running_loop().time() + 5
    while known.fails and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.05)
        known = await ports.memory.known("checkpoints/a")
    assert ends(known) == {"fits": {(24, 2)}, "fails": set()}


# -- jobs and runs -----------------------------------------------------------------------------------------


async def taken(ports: Ports, *, run: str = "r1", name: str = "a", placement: Placement = ANY) -> Claim:
    got = await attempt(ports, run=run, name=name, placement=placement)
    assert isinstance(got, Claim), got
    return got


async def attempt(
    ports: Ports, *, run: str = "r1", name: str = "a", placement: Placement = ANY
) -> Claim | Refused:
    return await ports.runs.claim(
        node=name, placements=[placement], run=run, token=f"t-{run}", dispatcher="d", ttl_s=60
    )


async def test_a_job_is_claimed_for_a_node_once(ports: Ports) -> None:
    await ports.registry.add(node("a"))
    assert await ports.runs.waiting() == []
    first, second = [await ports.enqueue(ANY) for _ in range(2)]
    (waiting,) = await ports.runs.waiting()
    assert (waiting.placement, waiting.count) == (ANY, 2)
    claim = await taken(ports)
    assert (claim.job.id, claim.node, claim.run, claim.jobs_behind) == (first.id, "a", "r1", 1)
    assert (claim.job.status, claim.attempt, claim.token) == (JobStatus.RUNNING, 0, "t-r1")
    assert await attempt(ports, run="r2") == Refused(why="leased", run="r1")
    (waiting,) = await ports.runs.waiting()
    assert waiting.count == 1
    await ports.registry.add(node("b", 9001))
    assert (await taken(ports, run="r2", name="b")).job.id == second.id
    assert await ports.runs.waiting() == []


async def test_no_job_is_claimed_that_is_not_for_the_node(ports: Ports) -> None:
    assert await attempt(ports) == Refused(why="removed")
    await ports.registry.add(node("a"))
    assert await attempt(ports) == Refused(why="empty")
    await ports.enqueue(Placement(pool="big"))
    assert await attempt(ports) == Refused(why="empty")
    await ports.enqueue(ANY)
    await ports.registry.cordon("a", reason="fans")
    assert await attempt(ports) == Refused(why="cordoned")


async def test_a_node_is_occupied_until_its_run_has_left(ports: Ports) -> None:
    await ports.registry.add(node("a"))
    await ports.enqueue(ANY)
    assert await ports.runs.lease_of("a") is None and not await ports.runs.occupied(["a"])
    claim = await taken(ports)
    assert await ports.runs.lease_of("a") == "r1"
    assert await ports.runs.occupied(["a", "b"]) == {"a"}
    state = await ports.registry.state("a")
    assert state is not None and state.run == "r1"
    with pytest.raises(Conflict):
        await ports.registry.remove("a")
    await ports.runs.left(claim, [])
    assert await ports.runs.lease_of("a") is None and not await ports.runs.occupied(["a"])
    state = await ports.registry.state("a")
    assert state is not None and state.run is None


async def test_a_finished_run_has_no_node_and_no_say(ports: Ports) -> None:
    await ports.registry.add(node("a"))
    await ports.enqueue(ANY)
    claim = await taken(ports)
    end = await ports.runs.finish(claim, JobStatus.SUCCEEDED, error=None, duration_s=1.5)
    assert end is JobStatus.SUCCEEDED
    assert await ports.runs.lease_of("a") is None
    await _has_no_say(ports, claim)


async def test_only_whoever_has_the_token_writes(ports: Ports) -> None:
    await ports.registry.add(node("a"))
    await ports.enqueue(ANY)
    claim = await taken(ports)
    await _has_no_say(ports, replace(claim, token="another"))
    await _has_no_say(ports, a_claim(run="none", node="a"))
    await ports.runs.progress(claim, Progress(value=0.5, nodes_done=1, nodes_total=2))


async def _has_no_say(ports: Ports, claim: Claim) -> None:
    runs = ports.runs
    for call in (
        runs.progress(claim, Progress(value=0.5, nodes_done=1, nodes_total=2)),
        runs.preview(claim, {"node_id": "1"}),
        runs.commit(claim, stored(claim, output())),
        runs.waits(claim, "the disk"),
        runs.left(claim, []),
    ):
        with pytest.raises(LeaseLost):
            await call
    with pytest.raises(LeaseLost):
        await runs.finish(claim, JobStatus.SUCCEEDED, error=None, duration_s=None)
    with pytest.raises(LeaseLost):
        await runs.requeue(claim, counts=True, reason=BOOM)


async def test_a_job_that_is_given_back_is_the_first_again_and_may_move(ports: Ports) -> None:
    await ports.registry.add(node("a"))
    first, _ = [await ports.enqueue(ANY) for _ in range(2)]
    claim = await taken(ports)
    assert await ports.runs.requeue(claim, counts=False, reason=BOOM) is JobStatus.QUEUED
    assert await ports.runs.lease_of("a") is None
    claim = await taken(ports, run="r2")
    assert (claim.job.id, claim.attempt, claim.jobs_behind) == (first.id, 0, 1)
    moved = Placement(without=frozenset({"b"}))
    assert await ports.runs.requeue(claim, counts=True, reason=BOOM, placement=moved) is JobStatus.QUEUED
    claim = await taken(ports, run="r3", placement=moved)
    assert (claim.job.id, claim.attempt, claim.job.placement) == (first.id, 1, moved)


async def test_a_job_ends_with_the_last_attempt_that_counts(ports: Ports) -> None:
    await ports.registry.add(node("a"))
    await ports.enqueue(ANY)
    ends = []
    for number in range(3):
        claim = await taken(ports, run=f"r{number}")
        ends.append(await ports.runs.requeue(claim, counts=True, reason=BOOM))
    assert ends == [JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.FAILED]
    assert await ports.runs.waiting() == []


async def test_the_same_output_twice_is_one(ports: Ports) -> None:
    await ports.registry.add(node("a"))
    await ports.enqueue(ANY)
    claim = await taken(ports)
    first, second = output(0), output(1)
    for one in (first, second, replace(first, asset_id="another")):
        await ports.runs.commit(claim, stored(claim, one))
    assert sorted(await ports.outputs(claim), key=lambda one: one.index) == [first, second]


async def test_a_job_is_read_by_its_id_and_has_a_place_while_it_waits(ports: Ports) -> None:
    await ports.registry.add(node("a"))
    assert await ports.jobs.get("none") is None
    first, second = [await ports.enqueue(ANY) for _ in range(2)]
    found = await ports.jobs.get(second.id)
    assert found is not None and (found.id, found.status) == (second.id, JobStatus.QUEUED)
    assert [await ports.jobs.position(job) for job in (first, second)] == [1, 2]
    assert await ports.jobs.position(replace(first, id="none")) is None
    now = await ports.jobs.snapshot(second.id)
    assert now is not None and (now.job, now.position, now.preview) == (found, 2, None)
    assert await ports.jobs.snapshot("none") is None


async def test_whoever_follows_a_job_hears_of_it_alone(ports: Ports) -> None:
    for name, port in (("a", 9000), ("b", 9001)):
        await ports.registry.add(node(name, port))
        await ports.enqueue(ANY)
    claim, other = await taken(ports), await taken(ports, run="r2", name="b")
    assert not await ports.runs.followed(claim)
    async with ports.events.subscribe(claim.job.id) as events:
        assert await ports.runs.followed(claim) and not await ports.runs.followed(other)
        await ports.tell(other)
        await ports.tell(claim)
        async with asyncio.timeout(10):
            event = await anext(events)
        assert (event.job_id, event.type, event.run) == (claim.job.id, "progress", "r1")
        assert event.data.items() >= {"value": 0.5, "nodes_done": 1, "nodes_total": 2}.items()


# -- outputs -----------------------------------------------------------------------------------------------


@pytest.fixture
def assets(ports: Ports, request: pytest.FixtureRequest, tmp_path: Path) -> AssetStore:
    if isinstance(ports.runs, FakeRunStore):
        return FakeAssetStore(ports.runs)
    return open_assets(Settings(data=tmp_path), request.getfixturevalue("stores"))


@pytest.fixture
def full(ports: Ports, request: pytest.FixtureRequest, tmp_path: Path) -> AssetStore:
    """A store that has no room."""
    if isinstance(ports.runs, FakeRunStore):
        store = FakeAssetStore(ports.runs)
        store.room = 0
        return store
    settings = Settings(data=tmp_path, disk_floor_bytes=10**18)
    return open_assets(settings, request.getfixturevalue("stores"))


@pytest.fixture
async def claim(ports: Ports) -> Claim:
    """A run's."""
    await ports.registry.add(node("a"))
    await ports.enqueue(ANY)
    return await taken(ports)


async def put(store: AssetStore, claim: Claim, content: AsyncIterator[bytes]) -> Asset:
    return await store.put_output(
        owner="o",
        job_id=claim.job.id,
        chunks=content,
        name="a.png",
        content_type="image/png",
        expires_at=9e9,
    )


async def test_an_output_is_stored_with_what_is_said_of_it(
    assets: AssetStore, ports: Ports, claim: Claim
) -> None:
    assert await assets.get("none") is None
    assets.check_room(10, output=True)
    made = await put(assets, claim, chunks(bytes(2500)))
    assert (made.owner, made.job_id, made.file_path) == ("o", claim.job.id, "a.png")
    assert (made.content_type, made.size_bytes, made.expires_at) == ("image/png", 2500, 9e9)
    assert made.hash.startswith("blake3:") and await assets.get(made.id) is None
    one = StoredOutput(output=output(asset_id=made.id), asset=made)
    assert await ports.runs.commit(claim, one) == made == await assets.get(made.id)
    again = await put(assets, claim, chunks(bytes(2500)))
    kept = await ports.runs.commit(claim, StoredOutput(output=output(1, asset_id=again.id), asset=again))
    assert kept.id == made.id
    assert {one.asset_id for one in await ports.outputs(claim)} == {made.id}


async def test_the_last_outputs_are_committed_with_the_end(
    assets: AssetStore, ports: Ports, claim: Claim
) -> None:
    made = await put(assets, claim, chunks(b"1"))
    last = StoredOutput(output=output(asset_id=made.id), asset=made)
    other = replace(claim, token="another")
    with pytest.raises(LeaseLost):
        await ports.runs.finish(other, JobStatus.SUCCEEDED, error=None, duration_s=None, outputs=[last])
    assert await assets.get(made.id) is None
    await ports.runs.finish(claim, JobStatus.SUCCEEDED, error=None, duration_s=None, outputs=[last])
    assert await assets.get(made.id) == made


async def test_what_breaks_off_is_not_stored(assets: AssetStore, claim: Claim) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"1"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await put(assets, claim, broken())


async def test_nothing_is_stored_without_room(full: AssetStore, claim: Claim) -> None:
    with pytest.raises(NoRoom):
        full.check_room(10, output=True)
    with pytest.raises(NoRoom):
        await put(full, claim, chunks(b"1"))
