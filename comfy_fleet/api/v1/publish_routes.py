"""The table of drafts, their checks, and publishing."""

from comfy_fleet.api.endpoint import Endpoint
from comfy_fleet.api.v1 import publish_answers, publishing

TABLE = (
    Endpoint(
        method="POST",
        path="/api/v1/workflows/{workflow}/check",
        operation="check_draft",
        handler=publishing.check_draft,
        summary="Check and test a draft",
        tag="workflows",
        body=publishing.CheckBody,
        body_required=False,
        answers={200: publish_answers.PublishCheckAnswer},
        errors=(409,),
    ),
    Endpoint(
        method="POST",
        path="/api/v1/workflows/{workflow}/publish",
        operation="publish_draft",
        handler=publishing.publish,
        summary="Publish a checked draft",
        tag="workflows",
        body=publishing.PublishDraftBody,
        answers={200: publish_answers.PublishedAnswer},
        errors=(409,),
        console=True,
    ),
    Endpoint(
        method="GET",
        path="/api/v1/workflows/{workflow}/editor-graph",
        operation="editor_graph",
        handler=publishing.editor_graph,
        summary="Open a stored workflow in the editor",
        tag="workflows",
        answers={200: publish_answers.EditorGraphAnswer},
        errors=(409,),
    ),
    Endpoint(
        method="GET",
        path="/api/v1/drafts",
        operation="list_drafts",
        handler=publishing.list_drafts,
        summary="List your drafts",
        tag="workflows",
        answers={200: publish_answers.DraftListAnswer},
    ),
    Endpoint(
        method="POST",
        path="/api/v1/drafts",
        operation="save_editor_draft",
        handler=publishing.save_editor_draft,
        summary="Hand over the graph that is open in the editor",
        tag="workflows",
        body=publishing.EditorDraftBody,
        answers={201: publish_answers.SavedDraftAnswer},
        errors=(409,),
    ),
)
