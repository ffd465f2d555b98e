"""An operator's file of keys, which only the fleet's user may read."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from comfy_fleet.domain.errors import BadInput, ConfigError
from comfy_fleet.domain.people import AccessKey, parse_keys

MOUNTED = Path("/run/secrets")
"""Where a container gets its secrets: nobody else is in it, and their mode can't always be chosen."""
_MOST_BYTES = 4 * 1024 * 1024


class KeysOnDisk:
    """:class:`comfy_fleet.ports.people.KeysFile`.

    Args:
        path: The file.
        secret: From which keys' ids follow; without one, they must be shown to nobody.
    """

    def __init__(self, path: Path, secret: bytes = b"") -> None:
        self._path = path
        self._secret = secret
        self._seen: tuple[int, ...] | None = None

    def read(self) -> Sequence[AccessKey] | None:
        """See :meth:`comfy_fleet.ports.people.KeysFile.read`."""
        where = f"FLEET_KEYS_FILE: {self._path}"
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_dev, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
            if seen == self._seen:
                return None
            self._seen = seen
            if found.st_mode & 0o077 and not stat.S_ISDIR(found.st_mode) and self._path.parent != MOUNTED:
                raise ConfigError(f"{where} is readable by others: chmod 600 {self._path}")
            with self._path.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
            if len(data) > _MOST_BYTES:
                raise ConfigError(f"{where} is larger than {_MOST_BYTES} bytes")
            return parse_keys(data.decode(), where, secret=self._secret)
        except (OSError, UnicodeDecodeError) as error:
            # Once for each trouble: without a file there is nothing by which to know it again.
            if isinstance(error, OSError) and self._seen == (error.errno or 0,):
                return None
            if isinstance(error, OSError):
                self._seen = (error.errno or 0,)
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            raise ConfigError(f"{where} can't be read: {why}") from error
        except BadInput as error:
            raise ConfigError(error.message) from error
