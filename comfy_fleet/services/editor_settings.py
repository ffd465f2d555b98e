"""A person's settings in the editor, kept as ComfyUI keeps them: a file of JSON among their own."""

import asyncio
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import orjson

from comfy_fleet.domain.errors import BadInput, Busy
from comfy_fleet.domain.user_data import SETTINGS_FILE, UserDataFull, UserFileChanged
from comfy_fleet.ports.userdata import UserData
from comfy_fleet.services.large_graphs import LARGE_BYTES, worked

MOST_BYTES = 4 * 1024 * 1024
"""Largest file of settings; a larger one, which was uploaded as a file, counts as unreadable."""
_TRIES = 50


class EditorSettings:
    """The settings of all owners.

    An editor sends many changes at the same time, each of them alone. They are put together here, so that
    none undoes another, in whichever process they arrive.

    Args:
        store: The files.
    """

    def __init__(self, store: UserData) -> None:
        self._store = store
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def all(self, owner: str) -> dict[str, Any]:
        """Return a person's settings; none if their file can't be read, like ComfyUI, or written again."""
        return (await self._read(owner))[0]

    async def change(self, owner: str, changes: Mapping[str, Any]) -> None:
        """Set some settings, and leave the others.

        Raises:
            BadInput: A value can't be written.
            UserDataFull: They would be too large.
            Busy: Other processes change them all the time.
        """
        lock = self._changing.setdefault(owner, asyncio.Lock())
        async with lock:
            for _ in range(_TRIES):
                settings, version = await self._read(owner)
                content = _written({**settings, **changes})
                if content is None:
                    raise BadInput("a setting's value has too many levels")
                if len(content) > MOST_BYTES:
                    raise UserDataFull(f"all settings together would be larger than {MOST_BYTES} bytes")
                try:
                    await self._store.save(owner, SETTINGS_FILE, content, expected=version)
                except UserFileChanged:
                    continue
                return
        raise Busy("others change these settings all the time: try again")

    async def _read(self, owner: str) -> tuple[dict[str, Any], str]:
        found = await self._store.read(owner, SETTINGS_FILE)
        if found is None:
            return {}, ""
        file, content = found
        return await worked(len(content) > LARGE_BYTES, lambda: _settings_in(content)), file.version


def _settings_in(content: bytes) -> dict[str, Any]:
    try:
        settings = orjson.loads(content) if len(content) <= MOST_BYTES else None
    except orjson.JSONDecodeError:
        return {}
    # More levels can be read than written: every answer with them would fail.
    return settings if isinstance(settings, dict) and _written(settings) is not None else {}


def _written(settings: Mapping[str, Any]) -> bytes | None:
    try:
        return orjson.dumps(settings, option=orjson.OPT_INDENT_2)
    except orjson.JSONEncodeError:
        return None
