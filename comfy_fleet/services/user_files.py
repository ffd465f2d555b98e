"""People's files in the editor; a graph that is saved is told to whoever makes drafts of them."""

import logging

from comfy_fleet.domain.errors import FleetError
from comfy_fleet.domain.user_data import Moved, UserFile, UserTree, graph_file
from comfy_fleet.ports.editor import MOST_SEEN, EditorSaves
from comfy_fleet.ports.userdata import UserData

logger = logging.getLogger(__name__)


class UserFiles:
    """The files of all owners.

    Args:
        store: Where they are.
        saves: Is told of graphs that are saved, if somebody is.
    """

    def __init__(self, store: UserData, saves: EditorSaves | None) -> None:
        self._store = store
        self._saves = saves

    async def tree(self, owner: str) -> UserTree:
        """See :meth:`UserData.tree`."""
        return await self._store.tree(owner)

    async def has_any(self, owner: str) -> bool:
        """See :meth:`UserData.has_any`."""
        return await self._store.has_any(owner)

    async def read(self, owner: str, path: str) -> tuple[UserFile, bytes] | None:
        """See :meth:`UserData.read`."""
        return await self._store.read(owner, path)

    async def save(self, owner: str, path: str, content: bytes, *, overwrite: bool) -> UserFile:
        """See :meth:`UserData.save`."""
        file = await self._store.save(owner, path, content, overwrite=overwrite)
        await self._tell(owner, path)
        return file

    async def move(self, owner: str, source: str, dest: str, *, overwrite: bool) -> Moved:
        """See :meth:`UserData.move`. A graph that is renamed counts as saved, and its draft follows."""
        moved = await self._store.move(owner, source, dest, overwrite=overwrite)
        if moved.path == source:
            return moved
        if moved.file is not None:
            await self._gone(owner, source, moved.path)
            await self._tell(owner, moved.path)
        else:
            await self._tell_of_folder(owner, source, moved.path)
        return moved

    async def delete(self, owner: str, path: str) -> bool:
        """See :meth:`UserData.delete`. The draft of a graph goes with it."""
        found = await self._store.delete(owner, path)
        if found:
            await self._gone(owner, path)
        return found

    async def _gone(self, owner: str, path: str, to: str = "") -> None:
        name, now = graph_file(path), graph_file(to)
        if name is None or self._saves is None:
            return
        if now is None:
            await self._saves.deleted(owner, name)
        else:
            await self._saves.moved(owner, name, now)

    async def _tell(self, owner: str, path: str) -> None:
        name = graph_file(path)
        if name is not None and self._saves is not None:
            await self._saves.saved(owner, name)

    async def _tell_of_folder(self, owner: str, source: str, dest: str) -> None:
        if self._saves is None:
            return
        try:
            inside = (await self._store.tree(owner)).below(dest)
        except FleetError as error:  # it has been moved all the same
            logger.warning(
                "drafts have not followed", extra={"owner": owner, "folder": source, "error": str(error)}
            )
            return
        names = [(graph_file(f"{source}/{name}"), graph_file(f"{dest}/{name}")) for name in inside]
        await self._saves.folder_moved(owner, {name: now or "" for name, now in names if name is not None})
        new = [now for name, now in names if name is None and now is not None]
        for name in new[:MOST_SEEN]:
            await self._saves.saved(owner, name)
