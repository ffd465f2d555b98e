"""Says why a stored workflow has no version that somebody names: it never had it, or it is no longer kept."""

from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference, short
from comfy_fleet.ports.workflow_store import MAX_HISTORY, MAX_VERSIONS, WorkflowStore


async def no_version(store: WorkflowStore, wanted: WorkflowReference, *, field: str) -> NotFound:
    """Return the error for a reference that names nothing in the store.

    Args:
        store: Has the history.
        wanted: What was named.
        field: Where it was named: the error's ``details["field"]``, unless the workflow itself is missing.
    """
    name = wanted.name
    if (record := await store.record(name)) is None:
        return NotFound(f"the fleet's store has no workflow {name}", details={"field": "workflow"})
    details = {"field": field, "labels": sorted(record.labels)}
    if dropped := await in_history(store, wanted):
        return NotFound(
            f"version {short(dropped)} of {name} is no longer kept: a workflow has its latest {MAX_VERSIONS} "
            f"versions, fewer if they are large, and those with a label; see `fleet workflow history {name}`",
            details=details,
        )
    return NotFound(
        f"stored workflow {name} has no version {wanted.version or wanted.label}; its labels are "
        f"{', '.join(details['labels'])}, and `fleet workflow history {name}` lists its versions",
        details=details,
    )


async def in_history(store: WorkflowStore, wanted: WorkflowReference) -> str:
    """Return the version that a reference by digits means, kept or not; empty if the history has none."""
    if not wanted.version:
        return ""
    for one in await store.history(wanted.name):
        for version in (one.version, one.before):
            if version.removeprefix("sha256:").startswith(wanted.version):
                return version
    return ""


async def unknown_to_history(store: WorkflowStore, wanted: WorkflowReference) -> bool:
    """Return whether no version in a workflow's whole history begins like this.

    A history begins anew after a removal, and one that is cut off says nothing.
    """
    history = await store.history(wanted.name)
    return 0 < len(history) < MAX_HISTORY and not await in_history(store, wanted)
