"""REST: cancel and remove batches."""

import logging

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.audit import audit
from comfy_fleet.api.deps import deps, links, owner, principal
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import read_query
from comfy_fleet.api.v1.batches import own_batch, shown
from comfy_fleet.domain.errors import Conflict
from comfy_fleet.domain.jobs.job_batch import BatchStatus
from comfy_fleet.services.batch_removal import BatchRemoval

logger = logging.getLogger(__name__)


async def cancel_batch(request: Request) -> Response:
    """Items that wait end at once, running ones at their next step. Safe to send again.

    Operators cancel everybody's.
    """
    d = deps(request)
    batch = await own_batch(request, by_operator=True)
    await d.batch_keeper.cancel(batch.id)
    logger.info("batch canceled", extra={"batch_id": batch.id, "by": owner(request)})
    if batch.owner != principal(request).owner:
        await audit(request, "batch.canceled", batch=batch.id, user=batch.owner)
    return json_response(shown(await d.batches.get(batch.id) or batch, links(request)))


class RemoveBatchQuery(BaseModel):
    """What happens to a batch that has not ended."""

    cancel: bool = Field(False, description="Cancel it first, if it has not ended.")


async def remove_batch(request: Request) -> Response:
    """The batch and its jobs are gone at once, and their files go as those of jobs past retention.

    A batch that has not ended is refused, unless `cancel` is set: what of it runs goes at its end.
    """
    d, who = deps(request), owner(request)
    cancel = read_query(request, RemoveBatchQuery).cancel
    batch = await own_batch(request)
    if batch.status is not BatchStatus.COMPLETED:
        if not cancel:
            raise Conflict(
                f"batch {batch.id} is {batch.status}: cancel it first, or add ?cancel=true",
                details={"batch_id": batch.id},
            )
        await d.batch_keeper.cancel(batch.id)
    count = await BatchRemoval(d.batches, d.jobs, d.assets).remove(batch)
    logger.info("batch removed", extra={"batch_id": batch.id, "by": who, "jobs": count})
    return Response(status_code=204)
