"""Put a job's input files onto the node that runs it, and their names into its graph."""

import contextlib

from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.graphs import graph as graphs
from comfy_fleet.domain.graphs.file_access import STAGING
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.comfyui import NodeApi
from comfy_fleet.ports.runs import Claim


class StagingError(Exception):
    """An input could not be put onto the node. ``fatal``: it never will."""

    def __init__(self, message: str, *, fatal: bool) -> None:
        super().__init__(message)
        self.fatal = fatal


async def stage(
    graph: graphs.Graph, claim: Claim, *, nodes: NodeApi, assets: AssetStore
) -> dict[graphs.Place, str]:
    """Upload every asset that the job needs; return the new values for the graph by place.

    The files go into ``input/fleet/JOB/RUN/`` under names made from their content: no name from a user
    reaches the node's disk. Nobody else knows the run's id, and loaders of folders, which list
    ``input/fleet`` and the folders in it, find no file there.

    Raises:
        StagingError: A file is gone, the node did not accept it, or its owner was not checked.
        NoRoom: A file can't be read from the fleet's own disk.
    """
    places = graphs.asset_places(graph, claim.job.uploads)
    if unchecked := set(places.values()) - set(claim.job.uploads.values()):
        raise StagingError(
            f"asset {min(unchecked)} was not part of the job when it was submitted", fatal=True
        )
    staged = {
        asset_id: await _stage_one(asset_id, claim, nodes=nodes, assets=assets)
        for asset_id in sorted(set(places.values()))
    }
    return {place: staged[asset_id] for place, asset_id in places.items()}


async def _stage_one(asset_id: str, claim: Claim, *, nodes: NodeApi, assets: AssetStore) -> str:
    asset = await assets.get(asset_id)
    if asset is None:
        raise StagingError(f"asset {asset_id} is gone", fatal=True)
    suffix = "".join(c for c in asset.file_path[-16:].rpartition(".")[2] if c.isalnum())
    try:
        content = await assets.open(asset)
        async with contextlib.aclosing(content):
            ref = await nodes.upload(
                claim.node,
                name=f"{asset.hash.removeprefix('blake3:')[:32]}.{suffix or 'bin'}",
                subfolder=f"{STAGING}/{claim.job.id}/{claim.run}",
                content=content,
                content_type=asset.content_type,
                size_bytes=asset.size_bytes,
            )
    except NodeError as error:
        raise StagingError(f"input {asset.file_path} could not be staged: {error}", fatal=False) from error
    except FileNotFoundError as error:
        raise StagingError(f"the bytes of asset {asset_id} are gone", fatal=True) from error
    return f"{ref.subfolder}/{ref.filename}" if ref.subfolder else ref.filename
