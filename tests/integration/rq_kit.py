"""Words for what an application does with RQ's own client, unmodified."""

import asyncio
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import redis as sync_redis
from rq import Queue
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.ports.runs import Claim
from tests.fleet import until
from tests.integration.api_kit import Api

T = TypeVar("T")
CARD = {"workflow": "image_card", "params": {"prompt": "a red fox"}}
RUN = "comfy_fleet.run"


class Client:
    """What an application does with RQ, on a thread as RQ's client blocks."""

    def __init__(self, port: int, **user: Any) -> None:
        self.connection = sync_redis.Redis(port=port, **user)
        self.queue = self.named("fleet")

    def named(self, name: str) -> Queue:
        return Queue(name, connection=self.connection, serializer=JSONSerializer)

    def job(self, id_: str) -> RqJob:
        return RqJob.fetch(id_, connection=self.connection, serializer=JSONSerializer)

    async def run(self, kwargs: dict[str, Any] | None = None, **options: Any) -> RqJob:
        job: RqJob = await self.call(lambda: self.queue.enqueue(RUN, kwargs=kwargs or CARD, **options))
        return job

    async def call(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def status(self, id_: str) -> str:
        return str((await self.call(lambda: self.job(id_).get_status())).value)

    async def becomes(self, id_: str, status: str) -> None:
        async def there() -> bool:
            return await self.status(id_) == status

        await until(there, what=f"{id_} is {status}", timeout_s=45)

    async def why(self, id_: str) -> str:
        await self.becomes(id_, "failed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # RQ's own, about this name
            return str(await self.call(lambda: self.job(id_).exc_info))


async def fleet_job(api: Api, rq_id: str) -> str:
    """Return the job in the fleet, once there is one."""
    redis: Any = api.stores.redis
    found = b""

    async def there() -> bool:
        nonlocal found
        state, found = await redis.hmget(f"fleet:inbox:job:{rq_id}", "state", "job")
        return bool(state == b"live")

    await until(there, what="it is taken", timeout_s=45)
    return found.decode()


async def started(api: Api, client: Client, rq_id: str, node: str = "g1") -> Claim:
    claim = await api.claim(await fleet_job(api, rq_id), node)
    await client.becomes(rq_id, "started")
    return claim


async def status_of(api: Api, job_id: str) -> JobStatus:
    job = await api.stores.jobs.get(job_id)
    assert job is not None
    return job.status


async def ends(api: Api, job_id: str, status: JobStatus) -> None:
    async def over() -> bool:
        return await status_of(api, job_id) is status

    await until(over, what=f"it is {status}", timeout_s=45)
