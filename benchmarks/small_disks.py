"""Small disks of their own, which can be filled and made read-only: they need root."""

import os
import subprocess
from pathlib import Path

SIZE_BYTES = 192 * 1024 * 1024
_BLOCK = bytes(1024 * 1024)


class SmallDisk:
    """A disk in memory at a folder.

    Args:
        folder: Where; it is created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    @classmethod
    def mounted(cls, folder: Path) -> "SmallDisk | None":
        """Mount one; None if this process may not."""
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() != 0:
            return None
        options = f"size={SIZE_BYTES},mode=700"
        done = _run("mount", "-t", "tmpfs", "-o", options, "fleet-chaos", str(folder))
        return cls(folder) if done else None

    def unmount(self) -> None:
        """Take it away, with all that is on it."""
        _run("umount", "--lazy", str(self.folder))

    def fill(self) -> None:
        """Leave no byte free."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while file.write(_BLOCK):
                    pass
            except OSError:
                pass

    def free(self) -> None:
        """Make room again."""
        self._filler.unlink(missing_ok=True)

    def write_protect(self, on: bool) -> bool:
        """Make it read-only, or writable again; return whether that was possible."""
        return _run("mount", "-o", "remount,ro" if on else "remount,rw", str(self.folder))

    def writable(self) -> bool:
        """Return whether a byte can be written, and a tenth of it is free."""
        probe = self.folder / "probe"
        found = os.statvfs(self.folder)
        if found.f_bavail * 10 < found.f_blocks:
            return False
        try:
            probe.write_bytes(b"1")
            probe.unlink()
        except OSError:
            return False
        return True


def _run(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
