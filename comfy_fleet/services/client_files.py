"""Files under the names that their clients know: folder, subfolder and name."""

from comfy_fleet.domain.graphs.folders import Folder
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.ports.assets import AssetStore

MAX_LISTED = 4000
"""Most names of one folder that are listed."""


class ClientFiles:
    """Finds and lists an owner's files.

    Args:
        assets: What owners have uploaded.
    """

    def __init__(self, assets: AssetStore) -> None:
        self._assets = assets

    async def find(self, owner: str, folder: Folder, path: str) -> Asset | None:
        """Return the owner's newest file with this name.

        Args:
            owner: Whose file it is.
            folder: Where it is.
            path: Its name, after its subfolders.
        """
        return await self._assets.by_path(owner=owner, file_path=path, folder=folder)

    async def names(self, owner: str, folder: Folder) -> list[str]:
        """Return the names of an owner's files with their subfolders, the newest first."""
        uploads = await self._assets.uploads(owner=owner, folder=folder, limit=MAX_LISTED)
        return [name for name, _ in uploads]
