"""RQ's own client, unmodified, and what the fleet does with its jobs; the dispatcher's part is played."""

import asyncio
import json
import pickle
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from rq import Callback, Queue, Repeat
from rq.command import send_shutdown_command, send_stop_job_command
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from comfy_fleet.adapters.redis.rq_inbox import RedisRqInbox
from comfy_fleet.adapters.redis.rq_worker import RqWorker
from comfy_fleet.api.rq_intake import RqIntake
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import JobError, JobStatus, Progress
from comfy_fleet.domain.jobs.rq_entry import RqEntry
from tests.fleet import until
from tests.integration.api_kit import Api, running
from tests.integration.redis_kit import submit
from tests.integration.rq_kit import CARD, RUN, Client, ends, fleet_job, started, status_of
from tests.key_files import write_keys


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, rq_callbacks="mine", max_params_bytes=100_000) as made:
        await made.add_node()
        yield made


@pytest.fixture
def client(redis_port: int) -> Client:
    return Client(redis_port)


async def test_a_job_is_followed_from_its_enqueueing_to_its_return_value(api: Api, client: Client) -> None:
    job = await client.run(meta={"order": 4711}, description="a fox", result_ttl=-1)
    claim = await started(api, client, job.id)
    assert claim.job.owner == "local" and claim.job.workflow == "image_card"
    assert claim.job.timeout_s == 180
    await api.stores.runs.progress(claim, Progress(value=0.5, nodes_done=1, nodes_total=2))

    def meta() -> dict[str, Any]:
        return dict(client.job(job.id).get_meta())

    async def noted() -> bool:
        return "progress" in await client.call(meta)

    await until(noted, what="progress is noted", timeout_s=45)
    found = await client.call(meta)
    assert found["order"] == 4711 and found["progress"]["value"] == 0.5
    assert await client.call(lambda: client.queue.started_job_registry.count) == 1
    await api.output(claim, b"a picture")
    await api.finish(claim)
    await client.becomes(job.id, "finished")
    value = await client.call(lambda: client.job(job.id).return_value())
    assert value is not None
    (output,) = value["outputs"]
    assert value["job_id"] == claim.job.id
    assert (output["name"], output["content_type"]) == ("out_00001_.png", "image/png")
    path = output["url"].split("/", 3)[3]
    assert (await api.client.get(f"/{path}")).content == b"a picture"
    seen = await client.call(lambda: client.job(job.id))
    assert seen.description == "a fox"
    assert seen.started_at and seen.ended_at and seen.started_at <= seen.ended_at
    assert await client.call(client.queue.finished_job_registry.get_job_ids) == [job.id]
    assert await client.call(lambda: client.queue.started_job_registry.count) == 0
    redis: Any = api.stores.redis
    assert not await redis.keys("fleet:inbox:*") or await redis.keys("fleet:inbox:*") == [b"fleet:inbox:turn"]


async def test_what_fails_says_why(api: Api, client: Client) -> None:
    job = await client.run(failure_ttl=60)
    claim = await started(api, client, job.id)
    error = JobError(code="node_execution_error", message="no such sampler")
    await api.stores.runs.finish(claim, JobStatus.FAILED, error=error, duration_s=None)
    assert "node_execution_error: no such sampler" in await client.why(job.id)
    assert await client.call(client.queue.failed_job_registry.get_job_ids) == [job.id]
    assert 0 < await api.stores.redis.ttl(f"rq:job:{job.id}") <= 60


@pytest.mark.parametrize("way", ["cancel", "delete", "empty"])
async def test_a_waiting_job_is_canceled_by_what_rq_offers(api: Api, client: Client, way: str) -> None:
    other = await submit(api.stores)
    job = await client.run()
    job_id = await fleet_job(api, job.id)
    assert await client.call(lambda: client.queue.job_ids) == [job.id]
    actions: dict[str, Callable[[], object]] = {
        "cancel": lambda: client.job(job.id).cancel(),
        "delete": lambda: client.job(job.id).delete(),
        "empty": client.queue.empty,
    }
    await client.call(actions[way])
    await ends(api, job_id, JobStatus.CANCELED)
    assert await status_of(api, other.id) is JobStatus.QUEUED
    if way == "cancel":
        assert await client.status(job.id) == "canceled"


async def test_a_running_job_is_stopped_and_enqueued_again(api: Api, client: Client) -> None:
    job = await client.run()
    claim = await started(api, client, job.id)
    inbox = RedisRqInbox(api.stores.redis)
    own = await submit(api.stores)
    asked = list[str]()

    async def stop(rq_id: str) -> None:  # as a dispatcher does
        asked.append(rq_id)
        if job_id := await inbox.stop(rq_id):
            await api.stores.jobs.request_cancel(job_id)

    worker = RqWorker(api.stores.redis, api.stores.events, "d1", stop=stop)
    listening = asyncio.create_task(worker.listen())
    redis: Any = api.stores.redis
    try:
        await until(lambda: heard(redis), what="the dispatcher listens")
        send_shutdown_command(client.connection, "d1")
        await redis.publish("rq:pubsub:d1", "no json")
        await redis.publish("rq:pubsub:d1", json.dumps({"command": "stop-job", "job_id": own.id}))
        await redis.publish("rq:pubsub:d1", json.dumps({"command": "stop-job", "job_id": 7}))
        await client.call(lambda: send_stop_job_command(client.connection, job.id, JSONSerializer))
        await ends(api, claim.job.id, JobStatus.CANCELING)
    finally:
        listening.cancel()
    assert asked == [own.id, job.id]
    assert await status_of(api, own.id) is JobStatus.QUEUED
    await api.finish(claim)
    await client.becomes(job.id, "stopped")
    await client.call(lambda: client.job(job.id).requeue())
    again = await started(api, client, job.id)
    assert again.job.id != claim.job.id
    assert again.job.params["prompt"] == claim.job.params["prompt"]
    await api.finish(again)
    await client.becomes(job.id, "finished")


async def heard(redis: Any) -> bool:
    return bool((await redis.pubsub_numsub("rq:pubsub:d1"))[0][1])


async def test_jobs_depend_on_each_other_across_queues(api: Api, client: Client) -> None:
    work = client.named("mine")
    before = await client.call(lambda: work.enqueue("builtins.len", "abc"))
    job = await client.run(depends_on=before)
    after = await client.call(lambda: work.enqueue("builtins.len", "abcd", depends_on=job))
    redis: Any = api.stores.redis
    data = await redis.hget(f"rq:job:{after.id}", "data")
    assert [await client.status(one.id) for one in (job, after)] == ["deferred", "deferred"]

    url = api.deps.settings.redis_url
    options = ["worker", "--burst", "--url", url, "--serializer", "rq.serializers.JSONSerializer", "mine"]
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from rq.cli import main; main()", *options, stderr=asyncio.subprocess.PIPE
    )
    _, said = await worker.communicate()
    assert await client.status(before.id) == "finished", said.decode()
    claim = await started(api, client, job.id)
    assert await client.status(after.id) == "deferred"
    await api.finish(claim)
    await client.becomes(after.id, "queued")
    assert await redis.hget(f"rq:job:{after.id}", "data") == data
    assert await client.call(lambda: work.job_ids) == [after.id]
    assert await client.call(lambda: work.deferred_job_registry.count) == 0


async def test_a_callback_runs_on_the_clients_own_workers(api: Api, client: Client) -> None:
    job = await client.run(on_success=Callback("shop.pictures.ready", timeout=30))
    claim = await started(api, client, job.id)
    await api.finish(claim)
    await client.becomes(job.id, "finished")
    (id_,) = await client.call(lambda: client.named("mine").job_ids)
    call = await client.call(lambda: client.job(id_))
    assert (call.func_name, call.timeout, call.origin) == ("shop.pictures.ready", 30, "mine")
    assert call.args == [job.id, None, {"job_id": claim.job.id, "outputs": []}]


REFUSED: dict[str, tuple[Callable[[Client], RqJob], str]] = {
    "another function": (lambda c: c.queue.enqueue("os.system", "true"), "takes 'comfy_fleet.run' alone"),
    "positional": (lambda c: c.queue.enqueue(RUN, "image_card"), "no positional arguments"),
    "no workflow": (lambda c: c.queue.enqueue(RUN), "must have `workflow`"),
    "an unknown workflow": (lambda c: c.queue.enqueue(RUN, kwargs={"workflow": "nothing"}), "nothing"),
    "a long option": (lambda c: c.queue.enqueue(RUN, kwargs={**CARD, "n" * 90_000: 1}), "nnn…"),
    "a long workflow": (lambda c: c.queue.enqueue(RUN, kwargs={"workflow": "w" * 90_000}), "workflow"),
    "a wrong option": (lambda c: c.queue.enqueue(RUN, kwargs={**CARD, "priorty": 1}), "priorty"),
    "a wrong parameter": (
        lambda c: c.queue.enqueue(RUN, kwargs={**CARD, "params": {"size": 1}}),
        "size",
    ),
    "repeat": (
        lambda c: c.queue.enqueue(RUN, kwargs=CARD, repeat=Repeat(times=2)),
        "repeat is not supported",
    ),
    "too much": (
        lambda c: c.queue.enqueue(RUN, kwargs={**CARD, "params": {"prompt": "x" * 200_000}}),
        "FLEET_MAX_PARAMS_BYTES",
    ),
    "pickle": (
        lambda c: Queue("fleet", connection=c.connection).enqueue(RUN, kwargs=CARD),
        "is pickled, which the fleet never reads",
    ),
    "an odd callback": (
        lambda c: c.queue.enqueue(RUN, kwargs=CARD, on_success=Callback("rm -rf /")),
        "on_success must be the name",
    ),
}


async def test_what_cannot_be_run_is_failed_with_the_reason_in_exc_info(api: Api, client: Client) -> None:
    made = {name: await client.call(lambda make=make: make(client)) for name, (make, _) in REFUSED.items()}  # type: ignore[misc]
    good = await client.run()
    for name, (_, why) in REFUSED.items():
        told = await client.why(made[name].id)
        assert why in told and len(told) < 5000, name
    await fleet_job(api, good.id)


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


async def test_hostile_entries_end_once_and_stop_nothing(api: Api, client: Client, tmp_path: Path) -> None:
    own = await submit(api.stores)
    redis: Any = api.stores.redis
    bomb, mark = pickle.dumps(Bomb(tmp_path / "made")), "2026-01-01T00:00:00.000000Z"
    hashes: dict[str, dict[str, Any]] = {
        "bomb": {"data": zlib.compress(bomb)},
        "old-bomb": {"data": pickle.dumps(Bomb(tmp_path / "made"), protocol=0)},
        "zip-bomb": {"data": zlib.compress(b" " * 50_000_000)},
        "no-zlib": {"data": b"x\x9cnothing"},
        "not-json": {"data": b"\xff\xfe"},
        "no-list": {"data": b"{}"},
        "deep": {"data": b"[" * 100_000},
        "empty": {"data": b""},
        "no-data": {"description": "x"},
        "meta-bomb": {"data": b"[1]", "meta": bomb, "timeout": "nan", "result_ttl": "x" * 31},
        "long-name": {"data": b"[1]", "success_callback_name": "a" * 4096},
    }
    for id_, fields in hashes.items():
        usual = {"created_at": mark, "origin": "fleet", "status": "queued"}
        await redis.hset(f"rq:job:{id_}", mapping=usual | fields)
    await redis.set("rq:job:a-text", "mine")
    await redis.rpush("rq:job:a-list", "mine")
    odd = [b"\xff\xfe\x00", b"x" * 100_000, "ä".encode(), b"a b", b"", b"*", own.id.encode(), b"nobody"]
    await redis.rpush("rq:queue:fleet", *hashes, "a-text", "a-list", *odd, "bomb")
    good = await client.run()
    await fleet_job(api, good.id)
    for id_ in hashes:
        await until(lambda id_=id_: over(redis, id_), what=f"{id_} is failed", timeout_s=45)  # type: ignore[misc]
        assert await redis.xlen(f"rq:results:{id_}") == 1
    assert await redis.lrange("rq:queue:fleet", 0, -1) == [good.id.encode()]
    assert await status_of(api, own.id) is JobStatus.QUEUED
    assert not (tmp_path / "made").exists()
    assert await redis.get("rq:job:a-text") == b"mine"
    for key in ("wip:fleet", "failed:fleet", "queues", "scheduled:fleet"):
        await redis.delete(f"rq:{key}")
        await redis.set(f"rq:{key}", "of another kind")
    claim = await started(api, client, good.id)
    await redis.xadd(f"rq:results:{good.id}", {"type": 1}, id=f"{2**64 - 1}-{2**64 - 1}")  # used up
    await api.finish(claim)
    await client.becomes(good.id, "finished")
    assert await redis.zscore("rq:finished:fleet", good.id)
    await redis.delete("rq:queue:fleet")
    await redis.set("rq:queue:fleet", "of another kind")
    await until(lambda: gone(redis, "rq:queue:fleet"), what="the inbox can be used again", timeout_s=45)


async def over(redis: Any, id_: str) -> bool:
    return bool(await redis.hget(f"rq:job:{id_}", "status") == b"failed")


async def gone(redis: Any, key: str) -> bool:
    return not await redis.exists(key)


def intake_of(api: Api, inbox: RedisRqInbox) -> RqIntake:
    d = api.deps
    return RqIntake(
        inbox,
        submitter=d.submitter,
        jobs=d.jobs,
        keys=d.keys,
        settings=d.settings,
        signed_urls=d.signed_urls,
        clock=d.clock,
    )


async def test_a_death_between_move_and_record_loses_nothing_and_doubles_nothing(
    redis_port: int, redis: Redis, tmp_path: Path, client: Client
) -> None:
    """Steps of a process that dies: it has taken all, and made the jobs of some; another one goes on."""
    async with running(redis_port, tmp_path, rq_inbox="off") as first:
        await first.add_node()
        made = [await client.run() for _ in range(6)]
        dying = RedisRqInbox(first.stores.redis)
        taken = await dying.take(new=True, most_data=100_000)
        assert [one.id for one in taken.entries] == [job.id for job in made]
        intake = intake_of(first, dying)
        who = first.deps.keys.ring.principal("local", frozenset())
        for entry in taken.entries[:3]:
            await intake.submit(who, entry)
    async with running(redis_port, tmp_path) as second:
        ids = [await fleet_job(second, job.id) for job in made]
        assert ids == [one.job_id for one in taken.entries]
        page = await second.client.get("/api/v1/jobs?limit=100")
        assert sorted(job["id"] for job in page.json()["jobs"]) == sorted(ids)


async def test_entries_wait_and_say_so_until_somebody_is_named(
    redis_port: int, redis: Redis, tmp_path: Path, client: Client
) -> None:
    async with running(redis_port, tmp_path, require_keys=True) as api:
        job = await client.run()
        (note,) = [one for one in await api.deps.notes() if "RQ" in one]
        assert "1 entries wait in RQ's queue fleet" in note and "FLEET_RQ_USER" in note
        assert await client.status(job.id) == "queued"
    async with running(redis_port, tmp_path, rq_inbox="off") as api:
        (note,) = [one for one in await api.deps.notes() if "RQ" in one]
        assert "FLEET_RQ_INBOX is off" in note


async def test_jobs_that_were_taken_are_followed_although_the_inbox_is_off_now(
    redis_port: int, redis: Redis, tmp_path: Path, client: Client
) -> None:
    async with running(redis_port, tmp_path) as api:
        await api.add_node()
        job = await client.run()
        await fleet_job(api, job.id)
    async with running(redis_port, tmp_path, rq_inbox="off") as api:
        other = await client.run()
        await api.finish(await started(api, client, job.id))
        await client.becomes(job.id, "finished")
        assert await client.call(lambda: client.queue.job_ids) == [other.id]
        assert not await redis.exists(f"fleet:inbox:job:{other.id}")


async def test_a_named_user_has_the_jobs_with_their_limits(
    redis_port: int, redis: Redis, tmp_path: Path, client: Client
) -> None:
    keys = write_keys(tmp_path / "keys", "shop a-key-of-the-shop-1\n")
    async with running(
        redis_port, tmp_path, keys_file=keys, rq_user="shop", limits="submit: queued=1"
    ) as api:
        await api.add_node()
        first = await client.run()
        claim_id = await fleet_job(api, first.id)
        made = await api.stores.jobs.get(claim_id)
        assert made and made.owner == "shop"
        second = await client.run()
        third = await client.run({**CARD, "priority": 5000})

        async def told() -> bool:
            return any("RQ's entries wait" in one for one in await api.deps.notes())

        await until(told, what="it is told that entries wait", timeout_s=45)
        assert await client.status(second.id) == "queued"
        await api.stores.jobs.request_cancel(claim_id)
        assert (await api.stores.jobs.get(await fleet_job(api, second.id))) is not None
        await api.stores.jobs.request_cancel(await fleet_job(api, second.id))
        assert "priority 5000 is more than 1000" in await client.why(third.id)


async def test_a_scheduled_job_is_taken_when_it_is_due(api: Api, client: Client) -> None:
    job = await client.call(lambda: client.queue.enqueue_in(timedelta(seconds=1), RUN, kwargs=CARD))
    assert await client.status(job.id) == "scheduled"
    await fleet_job(api, job.id)
    assert await client.status(job.id) == "queued"


@pytest.fixture
async def idle(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    """A fleet whose own intake does nothing: the test plays several processes that have the turn by turns."""
    async with running(redis_port, tmp_path, rq_inbox="off") as made:
        await made.add_node()
        yield made


async def taken(api: Api, inbox: RedisRqInbox) -> list[RqEntry]:
    """Return what a process takes; it has the turn, as the one before has worked for longer than its own."""
    redis: Any = api.stores.redis
    found: list[RqEntry] = []

    async def turn() -> bool:
        await redis.delete("fleet:inbox:turn")
        answer = await inbox.take(new=True, most_data=100_000)
        found[:] = answer.entries
        return answer.turn

    await until(turn, what="it has the turn")
    return found


async def test_of_two_that_check_an_entry_the_slower_one_changes_nothing(idle: Api, client: Client) -> None:
    """One makes a job of it and one refuses it, as may be when a limit or a workflow changes meanwhile."""
    who = idle.deps.keys.ring.principal("local", frozenset())
    slow_inbox, quick_inbox = RedisRqInbox(idle.stores.redis), RedisRqInbox(idle.stores.redis)
    slow, quick = intake_of(idle, slow_inbox), intake_of(idle, quick_inbox)
    made = [await client.run(), await client.run()]
    first, second = await taken(idle, slow_inbox)
    assert await taken(idle, quick_inbox) == [first, second]
    assert await quick.submit(who, first)
    await slow_inbox.end(first, "failed", checked=True, ttl_s=60, why="too late")
    assert await client.status(made[0].id) == "queued"
    assert await status_of(idle, first.job_id) is JobStatus.QUEUED
    await quick_inbox.end(second, "failed", checked=True, ttl_s=60, why="refused")
    assert await slow.submit(who, second)
    assert await client.status(made[1].id) == "failed"
    assert await idle.stores.jobs.get(second.job_id) is None
    await client.call(lambda: client.job(made[1].id).requeue())
    (anew,) = await taken(idle, quick_inbox)
    assert anew.job_id != second.job_id
    assert await slow.submit(who, second) and await slow.submit(who, anew)
    assert await idle.stores.jobs.get(second.job_id) is None
    assert await status_of(idle, anew.job_id) is JobStatus.QUEUED


@pytest.mark.parametrize("way", ["cancel", "delete"])
async def test_what_its_client_takes_back_while_it_is_checked_becomes_no_job(
    idle: Api, client: Client, way: str
) -> None:
    inbox = RedisRqInbox(idle.stores.redis)
    job = await client.run()
    (entry,) = await taken(idle, inbox)
    await client.call(getattr(client.job(job.id), way))
    assert not await taken(idle, inbox)
    assert await intake_of(idle, inbox).submit(idle.deps.keys.ring.principal("local", frozenset()), entry)
    assert await idle.stores.jobs.get(entry.job_id) is None
    if way == "cancel":
        assert await client.status(job.id) == "canceled"
        assert await client.call(client.queue.canceled_job_registry.get_job_ids) == [job.id]


async def test_the_same_name_again_waits_for_the_first_one_to_end(api: Api, client: Client) -> None:
    """Applications name jobs after orders, and send an order again while the first one still runs."""
    await client.run(job_id="order-1")
    first = await started(api, client, "order-1")
    await client.run({**CARD, "params": {"prompt": "a blue fox"}}, job_id="order-1")
    await ends(api, first.job.id, JobStatus.CANCELING)
    await asyncio.sleep(1)  # the list is looked at meanwhile
    await api.finish(first)

    async def anew() -> bool:
        return await fleet_job(api, "order-1") != first.job.id

    await until(anew, what="the second one is taken", timeout_s=45)
    second = await started(api, client, "order-1")
    assert second.job.params["prompt"] == "a blue fox"
    await api.finish(second)
    await client.becomes("order-1", "finished")


async def test_what_is_read_of_many_jobs_comes_in_portions(stores: Stores) -> None:
    redis: Any = stores.redis
    ids = {f"r{n}" for n in range(90)}
    for id_ in ids:
        await redis.hset(f"rq:job:{id_}", mapping={"created_at": "x", "meta": "x" * 60_000})
        link = {"state": "live", "job": str(uuid4()), "created": "x"}
        await redis.hset(f"fleet:inbox:job:{id_}", mapping=link)
        await redis.zadd("fleet:inbox:live", {id_: 0})
    inbox = RedisRqInbox(redis)
    portions = [await inbox.changes() for _ in range(2)]
    for portion in portions:
        assert sum(len(one.entry.fields["meta"]) for one in portion) < 4_300_000
    assert {one.entry.id for portion in portions for one in portion} == ids
