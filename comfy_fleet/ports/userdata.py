"""People's files in the editor."""

from typing import Protocol

from comfy_fleet.domain.user_data import Moved, UserFile, UserTree


class UserData(Protocol):
    """The files of all owners. Nobody's path leads to another one's files.

    Every change is made whole or not at all, however many processes write at once. Every call may raise
    StoreDown.
    """

    async def tree(self, owner: str) -> UserTree:
        """Return the records of all files and folders of an owner."""

    async def has_any(self, owner: str) -> bool:
        """Return whether an owner has a file or a folder."""

    async def read(self, owner: str, path: str) -> tuple[UserFile, bytes] | None:
        """Return a file and its content, which belong together; None if there is none."""

    async def save(
        self,
        owner: str,
        path: str,
        content: bytes,
        *,
        overwrite: bool = True,
        expected: str | None = None,
    ) -> UserFile:
        """Write a file, and make the folders that its path goes through.

        Args:
            owner: Whose it is.
            path: Below their folder, in its shortest form.
            content: Its bytes.
            overwrite: Whether it may replace a file.
            expected: The version that it replaces, empty for none; None: any.

        Raises:
            UserFileExists: There is one, and it may not be replaced.
            UserFileChanged: The version is another.
            UserDataFull: It does not fit.
            BadUserPath: It can't have this path: there is a folder, or the path goes through a file.
        """

    async def move(self, owner: str, source: str, dest: str, *, overwrite: bool = True) -> Moved:
        """Give a file, or a folder with all that is in it, another path.

        If there is a folder at that path, it moves into the folder.

        Raises:
            NotFound: There is no source.
            UserFileExists: There is something at the new path, and it may not be replaced.
            UserDataFull: Its new folders are too many.
            BadUserPath: It can't have the new path.
        """

    async def delete(self, owner: str, path: str) -> bool:
        """Delete a file, or a folder that is empty; return False if there is none.

        Raises:
            BadUserPath: It is a folder with files.
        """
