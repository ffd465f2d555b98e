"""Put a job's input files onto the node that runs it, and their names into its graph."""

import contextlib

from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.graphs import graph as graphs
from comfy_fleet.domain.graphs.file_access import STAGING
from comfy_fleet.domain.jobs.outputs import FileRef
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.comfyui import RunNodes
from comfy_fleet.ports.runs import Claim, RunStore, StagedInput

KEEP_S, KEEP_FOR_EDITOR_S = 60.0, 3600.0
"""How long a file stays on a node after the start of the last run that read it. Who edits a graph comes back
to it after a while, and ComfyUI has its results as long as the file keeps its name."""


class StagingError(Exception):
    """An input could not be put onto the node. ``fatal``: it never will."""

    def __init__(self, message: str, *, fatal: bool) -> None:
        super().__init__(message)
        self.fatal = fatal


async def stage(
    graph: graphs.Graph, claim: Claim, *, runs: RunStore, nodes: RunNodes, assets: AssetStore
) -> dict[graphs.Place, str]:
    """See that the node has every asset that the job needs; return the new values for the graph by place.

    The files are in ``input/fleet/FOLDER/FOLDER/`` under names made from their content: no name from a user
    reaches the node's disk. Nobody else knows the folders, whose names are drawn, and loaders of folders,
    which list ``input/fleet`` and the folders in it, find no file there. As long as a file is in use, the
    same bytes of the same owner have the same name, so that ComfyUI's cache knows them.

    Raises:
        StagingError: A file is gone, the node did not accept it, or its owner was not checked.
        NoRoom: A file can't be read from the fleet's own disk.
        LeaseLost: Another dispatcher has the run.
    """
    places = graphs.asset_places(graph, claim.job.uploads)
    if unchecked := set(places.values()) - set(claim.job.uploads.values()):
        raise StagingError(
            f"asset {min(unchecked)} was not part of the job when it was submitted", fatal=True
        )
    if not places:
        return {}
    wanted = sorted(set(places.values()))
    inputs = await runs.stage(claim, wanted, keep_s=KEEP_FOR_EDITOR_S if claim.job.editor else KEEP_S)
    if gone := set(wanted) - inputs.keys():
        raise StagingError(f"asset {min(gone)} is gone", fatal=True)
    staged = {
        asset_id: await _stage_one(one, claim.node, nodes=nodes, assets=assets)
        for asset_id, one in inputs.items()
    }
    return {place: staged[asset_id] for place, asset_id in places.items()}


async def _stage_one(staged: StagedInput, node: str, *, nodes: RunNodes, assets: AssetStore) -> str:
    ref = _ref_of(staged)
    if staged.new or not await nodes.holds(node, ref, size_bytes=staged.asset.size_bytes):
        ref = await send(staged, node, nodes=nodes, assets=assets)
    return f"{ref.subfolder}/{ref.filename}" if ref.subfolder else ref.filename


def _ref_of(staged: StagedInput) -> FileRef:
    asset = staged.asset
    suffix = "".join(c for c in asset.file_path[-16:].rpartition(".")[2] if c.isalnum())
    name = f"{asset.hash.removeprefix('blake3:')[:32]}.{suffix or 'bin'}"
    return FileRef(name, f"{STAGING}/{staged.folders}", "input")


async def send(staged: StagedInput, node: str, *, nodes: RunNodes, assets: AssetStore) -> FileRef:
    """Put a file onto a node, and return the node's name for it.

    Raises:
        StagingError: It is gone, or the node did not accept it.
        NoRoom: It can't be read from the fleet's own disk.
    """
    asset, ref = staged.asset, _ref_of(staged)
    try:
        content = await assets.open(asset)
        async with contextlib.aclosing(content):
            return await nodes.upload(
                node,
                name=ref.filename,
                subfolder=ref.subfolder,
                content=content,
                content_type=asset.content_type,
                size_bytes=asset.size_bytes,
            )
    except NodeError as error:
        raise StagingError(f"input {asset.file_path} could not be staged: {error}", fatal=False) from error
    except FileNotFoundError as error:
        raise StagingError(f"the bytes of asset {asset.id} are gone", fatal=True) from error
