"""A job in the form of every surface, for requests and for webhooks."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from comfy_fleet.api import serialize
from comfy_fleet.api.answers import JobAnswer
from comfy_fleet.api.links import Links, Signing
from comfy_fleet.domain.errors import ObjectError
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.principal import DEFAULT_TENANT
from comfy_fleet.domain.stores.output_plan import StoreState
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.stores import ObjectStorage
from comfy_fleet.ports.webhooks import WebhookMessage
from comfy_fleet.services.estimator import Estimator
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.services.signed_urls import SignedUrls
from comfy_fleet.services.store_book import StoreBook
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

SIGNED_WITHIN_S = 2.0
"""Longest time for all of a job: a store that has its credentials from elsewhere may have to ask for them."""
TOLD_S = 86_400.0
"""For how long the URLs in a message to a webhook can be read without a key."""


@dataclass(frozen=True, kw_only=True)
class JobViews:
    """Shows jobs.

    Attributes:
        simulated: Returns True if a node, by name, is simulated.
        signed_urls: Signs URLs.
        objects: Signs those of stores.
        stores: The stores.
        clock: Unix seconds.
    """

    jobs: JobStore
    estimator: Estimator
    inventories: NodeInventories
    simulated: Callable[[str | None], bool]
    signed_urls: SignedUrls
    objects: ObjectStorage
    stores: StoreBook
    clock: Callable[[], float]

    async def shown(self, job: Job, links: Links) -> JobAnswer:
        """Return a job with its place in the queue and its probable end."""
        job, position = await self.signed(job), None
        outlook = await self.estimator.outlook(job)
        if job.status is JobStatus.QUEUED and not job.follows:
            position = await self.jobs.position(job)
            job = replace(job, waiting_for=await self.inventories.waiting_for(job, outlook.waits))
        return serialize.job(
            job, links, queue_position=position, simulated=self.simulated(job.node), end=outlook.end
        )

    async def signed(self, job: Job) -> Job:
        """Return a job whose outputs in a store have URLs that its store has signed, if it can."""
        there = {place: one for place, one in job.stored.items() if one.state is StoreState.STORED}
        if not there:
            return job
        known = await self.stores.all()
        found = dict(job.stored)
        try:
            async with Timeout(SIGNED_WITHIN_S):
                for place, one in there.items():
                    store = known.get(one.store)
                    if store is not None and store.serves(job.tenant or DEFAULT_TENANT):
                        url = await self.objects.signed_url(store, one.key)
                        found[place] = replace(one, signed_url=url)
        except (ObjectError, TimeoutError) as error:
            logger.warning("no signed url", extra={"job_id": job.id, "reason": str(error)})
        return replace(job, stored=found)

    async def told(self, message: WebhookMessage) -> Mapping[str, Any]:
        """Return the data of a message to a webhook: of one about a job, the job as it is now."""
        if not message.job:
            data: dict[str, Any] = orjson.loads(message.data or "{}")
            return data
        job = await self.jobs.get(message.job)
        if job is None or job.removed:
            word = message.type.removeprefix("job.")
            return {"id": message.job, "status": "running" if word == "started" else word}
        signing = Signing(
            urls=self.signed_urls, owner=job.owner, expires_at=min(self.clock() + TOLD_S, job.expires_at)
        )
        return await self.shown(job, Links(message.base, signing))
