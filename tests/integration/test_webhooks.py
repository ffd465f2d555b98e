"""Webhooks: what a job's end writes, what sends it, and what receivers get."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from comfy_fleet.adapters.redis.webhooks import RedisWebhooks
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import LeaseLost
from comfy_fleet.domain.jobs.job import JobError, JobStatus, Placement
from comfy_fleet.domain.webhooks.delivery import DeliveryOutcome, NextStep, PostAnswer
from comfy_fleet.domain.webhooks.webhook import EVENTS, TOLD_USUALLY, Webhook
from tests.conftest import free_port
from tests.factories import GRAPH, picture
from tests.fleet import until
from tests.integration.api_kit import Api, code, running
from tests.integration.redis_kit import add_nodes, claim, submit
from tests.integration.webhook_kit import Receiver, receiver

QUICK = "0.05,0.05,0.05,0.05,0.05,0.05,0.05"


@pytest.fixture
async def shop() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


@pytest.fixture
async def api(redis_port: int, redis: object, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, webhook_allow="127.0.0.1", webhook_backoff_s=QUICK) as started:
        await started.add_node()
        yield started


async def secret(api: Api) -> str:
    found: str = (await api.client.get("/api/v1/webhooks/secret")).json()["secret"]
    return found


async def listed(api: Api, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.client.get("/api/v1/webhooks", params=query)).json()["webhooks"]
    return found


def unsigned(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job without what lets a page read its URLs for a while."""
    unread = re.sub(rb"expires=\d+&signature=\w+&?", b"", orjson.dumps(job))
    plain: dict[str, Any] = orjson.loads(re.sub(rb'[?&]"', b'"', unread))
    for output in plain["outputs"]:
        del output["url_expires_at"]
    return plain


# -- what receivers get ------------------------------------------------------------------------------------


async def test_a_receiver_is_told_the_job_as_get_shows_it(api: Api, shop: Receiver) -> None:
    job = await api.submit(GRAPH, webhook_url=f"{shop.url}/hooks?order=7", metadata={"order": "7"})
    run = await api.claim(job["id"])
    await api.output(run, b"picture")
    await api.finish(run)
    await until(lambda: shop.taken, what="the end is told")
    told = shop.taken[0]
    message = told.verified(await secret(api))
    shown = (await api.client.get(f"/api/v2/jobs/{job['id']}")).json()
    assert message["type"] == "job.succeeded" and message["timestamp"] == shown["completed_at"]
    assert unsigned(message["data"]) == unsigned(shown)
    assert "signature=" in message["data"]["urls"]["events"]  # a page can follow them without a key
    assert shown["cached"] is False and shown["outputs"]
    assert (told.id, told.path) == (f"msg_{job['id']}_succeeded", "/hooks")
    assert len(shop.received) == 1  # the start was not asked for


async def test_starts_are_told_to_who_asks_before_ends(api: Api, shop: Receiver) -> None:
    job = await api.submit(GRAPH, webhook_url=shop.url, webhook_events=list(EVENTS))
    run = await api.claim(job["id"])
    await api.finish(run, JobStatus.FAILED)
    await until(lambda: len(shop.taken) == 2, what="both are told")
    assert [one.message["type"] for one in shop.taken] == ["job.started", "job.failed"]


async def test_a_secret_that_is_renewed_signs_beside_the_one_before(api: Api, shop: Receiver) -> None:
    before = await secret(api)
    answer = (await api.client.post("/api/v1/webhooks/secret/rotate")).json()
    assert answer["secret"] == await secret(api) != before and answer["previous_until"]
    assert (await api.client.post("/api/v1/webhooks/test", json={"url": shop.url})).json()["delivered"]
    for one in (before, answer["secret"]):
        assert shop.taken[0].verified(one)["type"] == "webhook.test"
    sealed = await RedisWebhooks(api.stores.redis, api.stores.events).secrets("local")
    assert sealed and before.removeprefix("whsec_").encode() not in sealed


# -- every face takes it -----------------------------------------------------------------------------------


async def test_every_face_takes_a_webhook(api: Api, shop: Receiver) -> None:
    hook = {"webhook_url": shop.url, "webhook_events": ["job.canceled"]}
    native = {
        "prompt": picture(4),
        "extra_data": {"fleet": hook, "extra_pnginfo": {"workflow": {"nodes": []}}},
    }
    bodies: dict[str, dict[str, Any]] = {
        "/api/v2/jobs": {"workflow": picture(1), **hook},
        "/api/v1/workflows/image_card/jobs": {"params": {"prompt": "a fox"}, **hook},
        "/api/v1/generate": {"prompt": "a hen", **hook},
        "/api/submit": {"prompt": "a cow", **hook},
        "/prompt": native,
        "/api/prompt": {**native, "prompt": picture(5)},
    }
    ids = []
    for path, body in bodies.items():
        answer = (await api.client.post(path, json=body)).json()
        ids.append(next(answer[name] for name in ("id", "task_id", "prompt_id") if name in answer))
    for job_id in ids:
        await api.client.post(f"/api/v2/jobs/{job_id}/cancel")
    await until(lambda: len(shop.taken) == len(ids), what="all cancels are told")
    assert {one.message["data"]["id"] for one in shop.taken} == {*ids}
    history = (await api.client.get(f"/api/jobs/{ids[-1]}")).text
    assert shop.url not in history  # no node gets it either


async def test_a_job_that_is_submitted_again_tells_as_the_first_did(api: Api, shop: Receiver) -> None:
    events = ["job.started", "job.canceled"]
    first = await api.submit(GRAPH, webhook_url=f"{shop.url}/first", webhook_events=events)
    plain = await api.submit(picture(2))

    async def again(job: dict[str, Any], **body: Any) -> str:
        answer = await api.client.post(f"/api/v1/jobs/{job['id']}/retry", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    as_before = await again(first)
    wants = {
        as_before: ("/first", events),
        await again({"id": as_before}): ("/first", events),
        await again(first, webhook_events=["job.canceled"]): ("/first", ["job.canceled"]),
        await again(first, webhook_url=f"{shop.url}/other"): ("/other", list(TOLD_USUALLY)),
        await again(plain, webhook_url=f"{shop.url}/plain"): ("/plain", list(TOLD_USUALLY)),
        await again(first, webhook_url=None): None,
        await again(plain): None,
    }
    for job_id, wanted in wants.items():
        made = await api.stores.jobs.get(job_id)
        assert made is not None
        hook = made.webhook
        assert (hook and (hook.url.removeprefix(shop.url), list(hook.events))) == wanted
        await api.client.post(f"/api/v2/jobs/{job_id}/cancel")
    told = {f"msg_{job_id}_canceled" for job_id, wanted in wants.items() if wanted}
    await until(lambda: set(shop.counts) == told, what="those that are told of are told")
    refused = await api.client.post(f"/api/v1/jobs/{plain['id']}/retry", json={"webhook_events": events})
    assert code(refused) == (422, "invalid_request") and "webhook_url" in refused.text
    refused = await api.client.post(f"/api/v1/jobs/{first['id']}/retry", json={"webhook_url": "ftp://x"})
    assert refused.json()["error"]["details"]["field"] == "webhook_url"


@pytest.mark.parametrize("hook", [{"webhook_events": ["job.failed"]}, {"webhook_url": "http://10.0.0.1/"}])
async def test_every_face_refuses_what_can_not_be_told(api: Api, hook: dict[str, Any]) -> None:
    field = next(iter(hook))
    for path, body in (
        ("/api/v2/jobs", {"workflow": GRAPH}),
        ("/api/v1/workflows/image_card/jobs", {"params": {"prompt": "a fox"}}),
        ("/api/v1/generate", {"prompt": "a hen"}),
    ):
        answer = await api.client.post(path, json={**body, **hook})
        assert code(answer) == (422, "invalid_request")
        assert answer.json()["error"]["details"]["field"] == field
    answer = await api.client.post("/prompt", json={"prompt": GRAPH, "extra_data": {"fleet": hook}})
    assert answer.status_code == 400 and field in answer.json()["error"]["message"]
    answer = await api.client.post("/prompt", json={"prompt": GRAPH, "extra_data": {"fleet": {"x": 1}}})
    assert answer.status_code == 400 and "webhook_url" in answer.json()["error"]["message"]


# -- every way in which a job ends -------------------------------------------------------------------------


def hooked(**events: Any) -> Webhook:
    return Webhook(url="http://shop.test/", base="http://fleet.test", **events)


async def written(stores: Stores, owner: str = "local") -> list[str]:
    found = await RedisWebhooks(stores.redis, stores.events).messages(owner, failed=False, limit=100)
    return sorted(one.type for one in found)


async def test_each_end_is_written_by_the_script_that_makes_it(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    error = JobError(code="node_lost", message="gone")
    for status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        await submit(stores, webhook=hooked())
        await stores.runs.finish(await claim(stores), status, error=error, duration_s=1)
    await submit(stores, webhook=hooked(), max_attempts=1)
    await stores.runs.requeue(await claim(stores), reason=error, counts=True)  # its last attempt
    canceled = await submit(stores, webhook=hooked())
    await stores.jobs.request_cancel(canceled.id)
    withdrawn = await submit(stores, webhook=hooked())
    await stores.jobs.withdraw("local", [withdrawn.id])
    await submit(stores, webhook=hooked(), deadline_s=0.001)
    await until(lambda: stores.runs.overdue(10), what="it expires")
    await submit(stores)  # has none
    await stores.runs.finish(await claim(stores), JobStatus.SUCCEEDED, error=None, duration_s=1)
    ends = {"failed": 2, "canceled": 2, "expired": 1, "succeeded": 1}
    assert await written(stores) == sorted(
        f"job.{word}" for word, count in ends.items() for _ in range(count)
    )
    client: Any = stores.redis
    assert not await client.exists(stores.redis.keyspace.webhook_jobs)


async def test_a_job_starts_and_ends_once_however_often_it_runs(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores, webhook=hooked(events=EVENTS))
    for _ in range(2):
        lost = JobError(code="node_lost", message="gone")
        await stores.runs.requeue(await claim(stores), reason=lost, counts=False)
    run = await claim(stores)
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1)
    with pytest.raises(LeaseLost):  # a client library that asks twice
        await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1)
    assert await written(stores) == ["job.started", "job.succeeded"]


async def test_only_what_was_asked_for_is_written(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores, webhook=hooked(events=("job.failed",)))
    await stores.runs.finish(await claim(stores), JobStatus.SUCCEEDED, error=None, duration_s=1)
    assert await written(stores) == []


async def test_an_end_that_an_earlier_version_made_is_told_later(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await submit(stores, webhook=hooked())
    waiting = await submit(stores, webhook=hooked())
    client: Any = stores.redis
    await client.hset(stores.redis.keyspace.job(job.id), mapping={"status": "canceled", "completed": "1"})
    monkeypatch.setattr("comfy_fleet.adapters.redis.webhooks.TENDED_EVERY_S", 0.0)
    webhooks = RedisWebhooks(stores.redis, stores.events)
    assert await webhooks.tend() == 1
    assert await webhooks.tend() == 0
    assert await written(stores) == ["job.canceled"]
    assert await client.zrange(stores.redis.keyspace.webhook_jobs, 0, -1) == [waiting.id.encode()]


async def begun_by_an_earlier_version(stores: Stores) -> str:
    """Have a job run that a version without webhooks has claimed: its record has one field less."""
    job = await submit(stores, webhook=hooked(events=EVENTS))
    client, key = stores.redis, stores.redis.keyspace.job(job.id)
    plain: Any = client
    hook = await plain.hget(key, "webhook")
    await plain.hdel(key, "webhook")
    await claim(stores)
    await plain.hset(key, "webhook", hook)
    assert await written(stores) == []
    return job.id


async def test_a_start_that_an_earlier_version_made_is_told_while_the_job_runs(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_nodes(stores, "g1")
    await submit(stores, webhook=hooked(events=EVENTS), placement=Placement(pool="elsewhere"))  # waits
    job_id = await begun_by_an_earlier_version(stores)
    monkeypatch.setattr("comfy_fleet.adapters.redis.webhooks.TENDED_EVERY_S", 0.0)
    webhooks = RedisWebhooks(stores.redis, stores.events)
    assert [await webhooks.tend() for _ in range(2)] == [0, 0]
    (message,) = await webhooks.messages("local", failed=False, limit=9)
    assert message.id == f"msg_{job_id}_started"
    job = await stores.jobs.get(job_id)
    assert job is not None and message.at == job.started_at


@pytest.mark.parametrize("told_by", ["the end", "an end of the earlier version"])
async def test_a_start_that_an_earlier_version_made_is_told_with_the_end(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, told_by: str
) -> None:
    await add_nodes(stores, "g1")
    job_id = await begun_by_an_earlier_version(stores)
    client: Any = stores.redis
    if told_by == "the end":
        await stores.jobs.request_cancel(job_id)
        (run,) = await client.smembers(stores.redis.keyspace.node_runs("g1"))
        await client.zadd(stores.redis.keyspace.runs, {run: 1})
        (held,) = await stores.runs.take_over(dispatcher="d2", ttl_s=9, limit=9)
        await stores.runs.finish(held.claim, JobStatus.CANCELED, error=None, duration_s=1)
    else:
        end = {"status": "canceled", "completed": "1"}
        await client.hset(stores.redis.keyspace.job(job_id), mapping=end)
        monkeypatch.setattr("comfy_fleet.adapters.redis.webhooks.TENDED_EVERY_S", 0.0)
        assert await RedisWebhooks(stores.redis, stores.events).tend() == 1
    assert await written(stores) == ["job.canceled", "job.started"]
    taken_first = await taken(RedisWebhooks(stores.redis, stores.events))
    assert taken_first == [f"msg_{job_id}_started"]  # the end waits for it


# -- who holds nobody up -----------------------------------------------------------------------------------


async def ended_jobs(stores: Stores, count: int, url: str, **fields: Any) -> list[str]:
    ids = []
    for _ in range(count):
        job = await submit(stores, webhook=Webhook(url=url), **fields)
        await stores.jobs.request_cancel(job.id)
        ids.append(f"msg_{job.id}_canceled")
    return ids


ANY_OWNER: Any = {"each_owner": 1000, "sending": {}}


async def taken(webhooks: RedisWebhooks, **more: Any) -> list[str]:
    limits: dict[str, Any] = {"most": 100, "most_failing": 100, "each": 4, "lease_s": 30, **ANY_OWNER, **more}
    return [one.id for one in await webhooks.take(**limits)]


async def test_a_receiver_gets_a_few_at_a_time_and_hides_no_other(stores: Stores) -> None:
    webhooks = RedisWebhooks(stores.redis, stores.events)
    many = await ended_jobs(stores, 10, "http://slow.test/")
    few = await ended_jobs(stores, 1, "http://quick.test/")
    found = await taken(webhooks)
    assert {*found} == {*many[:4], *few}
    assert await taken(webhooks) == []


async def test_a_message_that_can_not_be_read_is_tried_no_more_and_told_once(
    stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    webhooks, keys = RedisWebhooks(stores.redis, stores.events), stores.redis.keyspace
    broken, whole = await ended_jobs(stores, 2, "http://shop.test/")
    client: Any = stores.redis
    await client.hset(keys.webhook(broken), "at", "soon")
    receiver = (await client.hget(keys.webhook(broken), "receiver")).decode()
    assert await taken(webhooks, lease_s=0.001) == [whole]
    await until(lambda: taken(webhooks, lease_s=0.001), what="the other one is taken again")
    assert await client.zrange(keys.webhook_queue(receiver), 0, -1) == [whole.encode()]
    assert await client.hget(keys.webhook(broken), "state") == b"unreadable"
    told = [record for record in caplog.records if "given up: its record" in record.message]
    assert [vars(record)["webhook"] for record in told] == [broken]


async def test_an_owner_with_many_servers_hides_no_other_owner(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy_fleet.adapters.redis import scripts

    webhooks = RedisWebhooks(stores.redis, stores.events)
    for number in range(6):
        await ended_jobs(stores, 3, f"http://n{number}.eve.test/", owner="eve")
    (other,) = await ended_jobs(stores, 1, "http://ada.test/", owner="ada")
    text = scripts.source("webhooks_take", "fleet").replace("RECEIVERS = 256", "RECEIVERS = 3")
    monkeypatch.setattr(scripts, "source", lambda *_: text)
    sending: Counter[str] = Counter()

    async def told() -> bool:
        found = await webhooks.take(
            most=32, most_failing=16, each=4, each_owner=5, sending=sending, lease_s=30
        )
        sending.update(one.owner for one in found)
        return any(one.id == other for one in found)

    await until(told, what="it is somebody else's turn")
    assert sending == {"eve": 5, "ada": 1}


async def test_what_a_deliverer_took_that_died_is_due_again(stores: Stores) -> None:
    webhooks = RedisWebhooks(stores.redis, stores.events)
    ids = await ended_jobs(stores, 2, "http://slow.test/")
    lost = await webhooks.take(most=9, most_failing=9, each=4, lease_s=0.2, **ANY_OWNER)
    assert [one.id for one in lost] == ids
    found: list[str] = []

    async def again() -> bool:
        found.extend(await taken(webhooks))
        return len(found) == 2

    await until(again, what="both are due again")
    # Who comes back late changes nothing, unless it has delivered.
    failed = NextStep(outcome=DeliveryOutcome.FAILED, error="late")
    assert not await webhooks.sent(lost[0], PostAnswer(status=500), failed, most_age_s=99)
    assert await webhooks.sent(
        lost[1], PostAnswer(status=200), NextStep(outcome=DeliveryOutcome.DELIVERED), most_age_s=99
    )
    states = {one.id: one.state for one in await webhooks.messages("local", failed=False, limit=9)}
    assert states == {ids[0]: "waiting", ids[1]: "delivered"}


async def test_a_receiver_that_fails_gets_one_at_a_time_and_rarely(stores: Stores) -> None:
    webhooks = RedisWebhooks(stores.redis, stores.events)
    await ended_jobs(stores, 5, "http://dead.test/")
    (first,) = await webhooks.take(most=1, most_failing=1, each=4, lease_s=30, **ANY_OWNER)
    failed = NextStep(outcome=DeliveryOutcome.AGAIN, error="accepts no connection", after_s=60, pause_s=0.3)
    await webhooks.sent(first, PostAnswer(error="accepts no connection"), failed, most_age_s=99)
    assert await taken(webhooks) == []
    found: list[str] = []

    async def tried() -> bool:
        assert await taken(webhooks, most_failing=0) == []
        found.extend(await taken(webhooks))
        return bool(found)

    await until(tried, what="it is tried again")
    assert len(found) == 1


async def fail_all(stores: Stores, webhooks: RedisWebhooks, *, pause_s: float, after_s: float) -> int:
    """Fail what can be taken, as a receiver's 503 does; return how many messages that were."""
    step = NextStep(outcome=DeliveryOutcome.AGAIN, error="503", pause_s=pause_s, after_s=after_s)
    found = await webhooks.take(most=9, most_failing=9, each=9, lease_s=30, **ANY_OWNER)
    for one in found:
        assert await webhooks.sent(one, PostAnswer(status=503), step, most_age_s=9999)
    return len(found)


async def test_a_receiver_that_fails_is_tried_though_no_message_is_due_and_that_does_not_count(
    stores: Stores,
) -> None:
    webhooks = RedisWebhooks(stores.redis, stores.events)
    await ended_jobs(stores, 1, "http://away.test/")
    assert await fail_all(stores, webhooks, pause_s=0.1, after_s=3600) == 1
    (first,) = await webhooks.messages("local", failed=False, limit=9)
    for _ in range(2):  # later tries would make it wait for longer

        async def tried() -> bool:
            return await fail_all(stores, webhooks, pause_s=0.1, after_s=9999) == 1

        await until(tried, what="it is tried before its time")
        (again,) = await webhooks.messages("local", failed=False, limit=9)
        assert (again.attempts, again.due_at) == (1, first.due_at)


@pytest.mark.parametrize("away_s", [0, 60])
async def test_a_receiver_that_was_away_gets_what_waits_when_it_is_back(stores: Stores, away_s: int) -> None:
    webhooks = RedisWebhooks(stores.redis, stores.events)
    await ended_jobs(stores, 3, "http://back.test/")
    assert await fail_all(stores, webhooks, pause_s=0.1, after_s=3600) == 3
    (about,) = [key async for key in stores.redis.scan_iter("fleet:webhook:receiver:*")]
    assert await stores.redis.hincrbyfloat(about, "since", -away_s) > 0
    found: list[Any] = []

    async def tried() -> bool:
        found.extend(await webhooks.take(most=9, most_failing=9, each=9, lease_s=30, **ANY_OWNER))
        return bool(found)

    await until(tried, what="it is tried")
    done = NextStep(outcome=DeliveryOutcome.DELIVERED)
    assert await webhooks.sent(found[0], PostAnswer(status=200), done, most_age_s=9999)
    assert len(await taken(webhooks)) == (2 if away_s else 0)


async def test_what_a_receiver_that_is_back_refuses_waits_for_its_time(stores: Stores) -> None:
    webhooks = RedisWebhooks(stores.redis, stores.events)
    await ended_jobs(stores, 2, "http://back.test/")
    assert await fail_all(stores, webhooks, pause_s=0.1, after_s=3600) == 2
    before = {one.id: one.due_at for one in await webhooks.messages("local", failed=False, limit=9)}
    (about,) = [key async for key in stores.redis.scan_iter("fleet:webhook:receiver:*")]
    await stores.redis.hincrbyfloat(about, "since", -60)
    refused = NextStep(outcome=DeliveryOutcome.AGAIN, error="404", after_s=9999)
    seen: set[str] = set()

    async def both() -> bool:
        for one in await webhooks.take(most=9, most_failing=9, each=9, lease_s=30, **ANY_OWNER):
            seen.add(one.id)
            await webhooks.sent(one, PostAnswer(status=404), refused, most_age_s=9999)
        return len(seen) == 2

    await until(both, what="both are tried")
    assert await taken(webhooks) == []
    now = await webhooks.messages("local", failed=False, limit=9)
    assert {one.id: one.due_at for one in now} == before
    assert {one.attempts for one in now} == {1}


async def test_messages_of_a_dead_receiver_end_when_they_are_old(stores: Stores) -> None:
    webhooks = RedisWebhooks(stores.redis, stores.events)
    ids = await ended_jobs(stores, 5, "http://dead.test/")
    (first,) = await webhooks.take(most=1, most_failing=1, each=1, lease_s=30, **ANY_OWNER)
    failed = NextStep(outcome=DeliveryOutcome.FAILED, error="accepts no connection", pause_s=60)
    await webhooks.sent(first, PostAnswer(error="accepts no connection"), failed, most_age_s=0)
    dead = await webhooks.messages("local", failed=True, limit=9)
    assert {one.id for one in dead} == {*ids}
    assert {one.error for one in dead} == {"accepts no connection"}


async def test_messages_that_are_old_because_the_fleet_was_away_are_tried(stores: Stores) -> None:
    webhooks = RedisWebhooks(stores.redis, stores.events)
    ids = await ended_jobs(stores, 5, "http://back.test/")
    failed = NextStep(
        outcome=DeliveryOutcome.AGAIN, error="the receiver answered 503", pause_s=0.01, after_s=60
    )
    await asyncio.sleep(0.3)  # nobody tried any of them meanwhile

    async def fails() -> bool:
        found = await webhooks.take(most=1, most_failing=1, each=1, lease_s=30, **ANY_OWNER)
        for one in found:
            await webhooks.sent(one, PostAnswer(status=503), failed, most_age_s=0.3)
        return bool(found)

    await until(fails, what="one is tried")
    assert await webhooks.messages("local", failed=True, limit=9) == []
    await asyncio.sleep(0.3)  # now it has failed for as long as messages are tried
    await until(fails, what="another one is tried")
    given_up = {one.id for one in await webhooks.messages("local", failed=True, limit=9)}
    assert given_up and given_up < {*ids}


async def test_there_are_never_more_messages_than_are_known(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy_fleet.adapters.redis import scripts

    whole = scripts.whole
    fewer = {
        "WEBHOOKS_LISTED = 1000": "WEBHOOKS_LISTED = 3",
        "WEBHOOKS_WAITING = 20000": "WEBHOOKS_WAITING = 5",
    }

    def shrunk(*args: Any) -> str:
        text = whole(*args)
        for one, other in fewer.items():
            text = text.replace(one, other)
        return text

    monkeypatch.setattr(scripts, "source", lambda name, *more: shrunk(scripts.texts()[name], *more))
    webhooks = RedisWebhooks(stores.redis, stores.events)
    ids = await ended_jobs(stores, 12, "http://dead.test/")
    client: Any = stores.redis
    waiting = await taken(webhooks, each=100)
    assert waiting == ids[-5:]
    assert [one.id for one in await webhooks.messages("local", failed=True, limit=99)] == ids[6:3:-1]
    assert [one.id for one in await webhooks.messages("local", failed=False, limit=99)] == ids[:-4:-1]
    kept = {key async for key in client.scan_iter("fleet:webhook:msg_*")}
    assert len(kept) == 8  # five wait, and three of those given up are listed


# -- what comes of a try -----------------------------------------------------------------------------------


async def test_what_is_not_taken_is_sent_again_under_the_same_id(api: Api, shop: Receiver) -> None:
    shop.answer = lambda _: 204 if len(shop.received) > 3 else 500
    job = await api.submit(GRAPH, webhook_url=shop.url)
    await api.client.post(f"/api/v2/jobs/{job['id']}/cancel")
    await until(lambda: shop.taken, what="it is taken")
    assert {one.id for one in shop.received} == {f"msg_{job['id']}_canceled"}
    assert len(shop.received) == 4

    async def noted() -> bool:
        (row,) = await listed(api)
        return (row["state"], row["attempts"], row["last_status"]) == ("delivered", 4, 204)

    await until(noted, what="that is noted")


async def test_what_else_a_receiver_says_does_not_matter(api: Api, shop: Receiver) -> None:
    shop.answer = lambda _: 200
    shop.body, shop.headers = bytes(100_000), {"Content-Encoding": "gzip"}
    job = await api.submit(GRAPH, webhook_url=shop.url)
    await api.client.post(f"/api/v2/jobs/{job['id']}/cancel")

    async def over() -> bool:
        return [row["state"] for row in await listed(api)] not in ([], ["waiting"])

    await until(over, what="it is told")
    (row,) = await listed(api)
    assert (row["state"], row["attempts"], len(shop.taken)) == ("delivered", 1, 1)


async def test_what_nobody_takes_is_listed_and_sent_again_on_demand(api: Api, shop: Receiver) -> None:
    shop.answer = lambda _: 404
    job = await api.submit(GRAPH, webhook_url=shop.url)
    await api.client.post(f"/api/v2/jobs/{job['id']}/cancel")

    async def given_up() -> bool:
        return bool(await listed(api, failed="true"))

    await until(given_up, what="it is given up")
    (row,) = await listed(api, failed="true")
    assert (row["attempts"], row["error"]) == (8, "the receiver answered 404")
    shop.answer = lambda _: 200
    again = await api.client.post(f"/api/v1/webhooks/{row['id']}/redeliver")
    assert again.status_code == 202 and again.json()["state"] == "waiting"
    await until(lambda: shop.taken, what="it is taken")
    assert shop.taken[0].id == row["id"] == shop.received[0].id
    assert await listed(api, failed="true") == []
    answer = await api.client.post("/api/v1/webhooks/msg_x/redeliver")
    assert code(answer) == (404, "not_found")


async def test_410_ends_the_urls_messages_until_it_takes_a_try(api: Api, shop: Receiver) -> None:
    shop.answer = lambda one: 410 if one.path == "/gone" and one.message["type"] != "webhook.test" else 200

    async def cancel(path: str) -> str:
        job = await api.submit(GRAPH, webhook_url=shop.url + path)
        await api.client.post(f"/api/v2/jobs/{job['id']}/cancel")
        return f"msg_{job['id']}_canceled"

    first = await cancel("/gone")

    async def failed() -> set[str]:
        return {row["id"] for row in await listed(api, failed="true")}

    await until(failed, what="it is given up")
    second, other = await cancel("/gone"), await cancel("/there")
    await until(lambda: shop.taken, what="the other URL of the server is told")
    assert shop.taken[0].id == other and await failed() == {first, second}
    assert len([one for one in shop.received if one.path == "/gone"]) == 1
    tried = (await api.client.post("/api/v1/webhooks/test", json={"url": f"{shop.url}/gone"})).json()
    assert tried["delivered"] and tried["status"] == 200
    shop.answer = lambda _: 200
    third = await cancel("/gone")
    await until(lambda: shop.counts[third], what="it is told again")


async def test_a_job_that_was_removed_is_told_in_short(api: Api, shop: Receiver) -> None:
    shop.answer = lambda _: 500
    job = await api.submit(GRAPH, webhook_url=shop.url)
    await api.client.post(f"/api/v2/jobs/{job['id']}/cancel")
    await until(lambda: shop.received, what="it is tried")
    assert (await api.client.delete(f"/api/v1/jobs/{job['id']}")).status_code == 204
    shop.answer = lambda _: 200
    await until(lambda: shop.taken, what="it is taken")
    assert shop.taken[0].message["data"] == {"id": job["id"], "status": "canceled"}


async def test_a_receiver_that_never_answers_holds_nobody_up(
    api: Api, shop: Receiver, redis_port: int, tmp_path: Path
) -> None:
    async with receiver() as slow:
        slow.held = asyncio.Event()
        for _ in range(12):
            job = await api.submit(GRAPH, webhook_url=slow.url)
            await api.client.post(f"/api/v2/jobs/{job['id']}/cancel")
        job = await api.submit(GRAPH, webhook_url=shop.url)
        await api.client.post(f"/api/v2/jobs/{job['id']}/cancel")
        await until(lambda: shop.taken, what="the other one is told")
        await until(lambda: slow.open == 4, what="the slow one has what it may have")
        slow.held.set()
        await until(lambda: len(slow.taken) == 12, what="it gets the rest")
        assert slow.most_open == 4 and set(slow.counts.values()) == {1}


async def test_nobody_sees_others_messages(redis_port: int, redis: object, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ada ada-key-ada-key-ada\nbob bob-key-bob-key-bob\n")
    keys.chmod(0o600)
    async with running(redis_port, tmp_path / "data", keys_file=keys, webhook_allow="127.0.0.1") as api:
        await api.add_node()
        ada, bob = ({"Authorization": f"Bearer {name}-key-{name}-key-{name}"} for name in ("ada", "bob"))
        body = {"workflow": GRAPH, "webhook_url": f"http://127.0.0.1:{free_port()}/"}
        job = (await api.client.post("/api/v2/jobs", json=body, headers=ada)).json()
        await api.client.post(f"/api/v2/jobs/{job['id']}/cancel", headers=ada)
        (row,) = (await api.client.get("/api/v1/webhooks", headers=ada)).json()["webhooks"]
        assert (await api.client.get("/api/v1/webhooks", headers=bob)).json()["webhooks"] == []
        answer = await api.client.post(f"/api/v1/webhooks/{row['id']}/redeliver", headers=bob)
        assert code(answer) == (404, "not_found")
        secrets = [
            (await api.client.get("/api/v1/webhooks/secret", headers=one)).json() for one in (ada, bob)
        ]
        assert secrets[0]["secret"] != secrets[1]["secret"]
        answer = await api.client.get("/api/v1/webhooks?operator=true", headers=ada)
        assert code(answer) == (403, "forbidden")
