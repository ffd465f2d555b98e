"""The part of ``/api/v1``'s table about batches."""

from comfy_fleet.api.batch_requests import BatchQuery, WorkflowBatchBody
from comfy_fleet.api.endpoint import EVENTS, Endpoint
from comfy_fleet.api.v1 import batch_answers, batches

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "For 24 h, the same key with the same body gets the same answer again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}

TABLE = (
    Endpoint(
        method="POST",
        path="/api/v1/workflows/{workflow}/batches",
        operation="create_batch",
        handler=batches.create_batch,
        summary="Run a stored workflow many times",
        tag="batches",
        parameters=(IDEMPOTENCY_KEY,),
        query=BatchQuery,
        body=WorkflowBatchBody,
        answers={201: batch_answers.MadeBatchAnswer},
        errors=(409,),
    ),
    Endpoint(
        method="GET",
        path="/api/v1/batches",
        operation="list_batches",
        handler=batches.list_batches,
        summary="List batches",
        tag="batches",
        query=batches.BatchesQuery,
        answers={200: batch_answers.BatchPageAnswer},
    ),
    Endpoint(
        method="GET",
        path="/api/v1/batches/{batch}",
        operation="get_batch",
        handler=batches.get_batch,
        summary="Show a batch and its items",
        tag="batches",
        query=batches.BatchItemsQuery,
        answers={200: batch_answers.BatchDetailAnswer},
    ),
    Endpoint(
        method="GET",
        path="/api/v1/batches/{batch}/events",
        operation="batch_events",
        handler=batches.batch_events,
        summary="Follow a batch",
        tag="batches",
        answers={200: None},
        kind=EVENTS,
        events={"batch": batch_answers.BatchAnswer, "item": batch_answers.ItemEventAnswer},
    ),
    Endpoint(
        method="GET",
        path="/api/v1/batches/{batch}/outputs.zip",
        operation="batch_outputs",
        handler=batches.batch_outputs,
        summary="Download what a batch has made",
        tag="batches",
        answers={200: None},
        kind="application/zip",
    ),
    Endpoint(
        method="POST",
        path="/api/v1/batches/{batch}/cancel",
        operation="cancel_batch",
        handler=batches.cancel_batch,
        summary="Cancel a batch",
        tag="batches",
        answers={200: batch_answers.BatchAnswer},
        at_once=True,
    ),
    Endpoint(
        method="POST",
        path="/api/v1/batches/{batch}/retry",
        operation="retry_batch",
        handler=batches.retry_batch,
        summary="Run items of a batch again",
        tag="batches",
        parameters=(IDEMPOTENCY_KEY,),
        body=batches.RetryBatchBody,
        body_required=False,
        answers={200: batch_answers.RetriedBatchAnswer},
        errors=(409,),
    ),
)
