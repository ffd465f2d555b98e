"""People's files in the editor; a graph that is saved is told to whoever makes drafts of them."""

import logging

from comfy_fleet.domain.user_data import UserFile, UserTree, graph_file
from comfy_fleet.ports.editor import EditorSaves
from comfy_fleet.ports.userdata import UserData
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

TELL_S = 2.0
"""Longest time that a save waits for what follows from it."""


class UserFiles:
    """The files of all owners.

    Args:
        store: Where they are.
        saves: Is told of graphs that are saved, if somebody is; a save never fails because of it.
    """

    def __init__(self, store: UserData, saves: EditorSaves | None) -> None:
        self._store = store
        self._saves = saves

    async def tree(self, owner: str) -> UserTree:
        """See :meth:`UserData.tree`."""
        return await self._store.tree(owner)

    async def read(self, owner: str, path: str) -> tuple[UserFile, bytes] | None:
        """See :meth:`UserData.read`."""
        return await self._store.read(owner, path)

    async def save(self, owner: str, path: str, content: bytes, *, overwrite: bool) -> UserFile:
        """See :meth:`UserData.save`."""
        file = await self._store.save(owner, path, content, overwrite=overwrite)
        await self._tell(owner, path, content)
        return file

    async def move(self, owner: str, source: str, dest: str, *, overwrite: bool) -> UserFile | None:
        """See :meth:`UserData.move`. A graph that is renamed counts as saved."""
        file = await self._store.move(owner, source, dest, overwrite=overwrite)
        if file is not None and graph_file(file.path) and file.path != source:
            await self._tell_moved(owner, file.path)
        return file

    async def delete(self, owner: str, path: str) -> bool:
        """See :meth:`UserData.delete`."""
        return await self._store.delete(owner, path)

    async def _tell_moved(self, owner: str, path: str) -> None:
        try:
            found = await self._store.read(owner, path)
        except Exception:
            logger.exception("renamed graph not read", extra={"owner": owner})
            return
        if found is not None:
            await self._tell(owner, path, found[1])

    async def _tell(self, owner: str, path: str, content: bytes) -> None:
        name = graph_file(path)
        if name is None or self._saves is None:
            return
        try:
            async with Timeout(TELL_S):
                await self._saves.saved(owner, name, content)
        except Exception:
            logger.exception("saved graph not told", extra={"owner": owner, "graph": name[:200]})
