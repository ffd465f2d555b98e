"""Files under the names that their clients know: folder, subfolder and name."""

import asyncio

from comfy_fleet.domain.graphs.folders import Folder
from comfy_fleet.domain.jobs.asset import Asset, listed_name
from comfy_fleet.domain.jobs.output_names import SavedFile
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.jobs import JobStore

MAX_LISTED = 4000
"""Most names of one folder that are listed."""


class ClientFiles:
    """Finds and lists an owner's files.

    Args:
        assets: What owners have uploaded.
        jobs: What their jobs have saved.
    """

    def __init__(self, assets: AssetStore, jobs: JobStore) -> None:
        self._assets = assets
        self._jobs = jobs

    async def find(self, owner: str, folder: Folder, path: str) -> Asset | None:
        """Return the owner's newest file with this name.

        Args:
            owner: Whose file it is.
            folder: Where it is.
            path: Its name, after its subfolders.
        """
        uploaded = self._assets.by_path(owner=owner, file_path=path, folder=folder)
        if folder is Folder.INPUT:
            candidates = [await uploaded]
        else:
            candidates = list(await asyncio.gather(self._saved(owner, folder, path), uploaded))
        found = [asset for asset in candidates if asset is not None and asset.owner == owner]
        return max(found, key=lambda asset: asset.created_at, default=None)

    async def _saved(self, owner: str, folder: Folder, path: str) -> Asset | None:
        subfolder, _, name = listed_name(path).rpartition("/")
        file = SavedFile(type=folder.value, subfolder=subfolder, filename=name)
        return await self._jobs.saved(owner, file)

    async def names(self, owner: str, folder: Folder) -> list[str]:
        """Return the names of an owner's files, the newest first.

        Uploads come with their subfolders. Of what jobs saved, only files in no subfolder are listed.
        """
        found = list(await self._assets.uploads(owner=owner, folder=folder, limit=MAX_LISTED))
        if folder is not Folder.INPUT:
            found += await self._jobs.saved_files(owner, folder.value, limit=MAX_LISTED)
            found.sort(key=lambda one: -one[1])
        return list(dict.fromkeys(name for name, _ in found))[:MAX_LISTED]
