"""Says what to do about a save that is no draft."""

from comfy_fleet.domain.graphs.same_id_files import same_id_files
from comfy_fleet.ports.editor import SavedGraph
from comfy_fleet.services.drafts import Drafts, run_it_once


async def unrun_message(drafts: Drafts, owner: str, saved: SavedGraph) -> str:
    """Return what is said of a save without a draft: it was never run, or its id is another file's, too.

    Args:
        drafts: Know the owner's files.
        owner: Whose save it is.
        saved: What :meth:`Drafts.unrun` has found.
    """
    files = await drafts.files(owner, saved.workflow)
    if len(files) > 1:  # to run it makes no draft, whose id the other one has
        return same_id_files(saved.workflow, files)
    return run_it_once(saved.file, saved.workflow)


async def why_no_draft(drafts: Drafts, owner: str, workflow: str) -> str:
    """Return what is said of an owner's save of a stored workflow without a draft; empty if there is none."""
    unrun = await drafts.unrun(owner, workflow)
    return await unrun_message(drafts, owner, unrun) if unrun is not None else ""
