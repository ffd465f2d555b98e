"""The address of the editor's page, with the stored workflow that somebody means to open there.

On the way there may be a sign-in, on another origin: ``fleet_workflow`` goes along in every address, checked.
"""

from urllib.parse import urlencode

from starlette.requests import Request

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference

OPEN = "fleet_workflow"
"""The field of an address that names the workflow to open; the editor's part of the fleet reads it."""


def opened(request: Request) -> str:
    """Return the workflow reference that a request's address names; empty if there is none."""
    return reference(request.query_params.get(OPEN, ""))


def reference(text: str) -> str:
    """Return a workflow reference as it is; empty if the text is none."""
    try:
        return str(WorkflowReference.parse(text))
    except BadInput:
        return ""


def address(path: str, workflow: str, **fields: str) -> str:
    """Return an address with its query.

    Args:
        path: Without a query.
        workflow: From :func:`opened`.
        fields: Further fields of the query.
    """
    query = urlencode({**fields, **({OPEN: workflow} if workflow else {})})
    return f"{path}?{query}" if query else path
