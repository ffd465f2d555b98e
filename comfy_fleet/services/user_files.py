"""People's files in the editor; a graph that is saved is told to whoever makes drafts of them."""

from comfy_fleet.domain.user_data import Moved, UserFile, UserTree, graph_file
from comfy_fleet.ports.editor import EditorSaves
from comfy_fleet.ports.userdata import UserData


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
        """See :meth:`UserData.move`. Drafts of graphs follow them."""
        moved = await self._store.move(owner, source, dest, overwrite=overwrite)
        if moved.path != source and self._saves is not None:
            await self._saves.moved(owner)
        return moved

    async def delete(self, owner: str, path: str) -> bool:
        """See :meth:`UserData.delete`. The draft of a graph goes with it."""
        found = await self._store.delete(owner, path)
        name = graph_file(path)
        if found and name is not None and self._saves is not None:
            await self._saves.deleted(owner, name)
        return found

    async def _tell(self, owner: str, path: str) -> None:
        name = graph_file(path)
        if name is not None and self._saves is not None:
            await self._saves.saved(owner, name)
