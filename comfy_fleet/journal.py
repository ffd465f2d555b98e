"""Entries of the systemd journal, by its native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/)."""

import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")
WAIT_S, PAUSE_S = 0.05, 1.0
"""How long an entry may wait for a journal that takes nothing, and for how long nothing is tried then: no
process of ours stands still for its log."""
_BUFFER_BYTES = 8 * 2**20
_NAME = re.compile(r"[^A-Z0-9_]")
_MOST_NAME = 64


class Journal:
    """Sends entries; one that is not taken is lost, and counted.

    Attributes:
        lost: Entries since the last one that was taken.

    Args:
        path: The journal's socket.
        clock: Seconds.
    """

    def __init__(self, path: Path = SOCKET, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost = 0
        self._path = str(path)
        self._clock = clock
        self._again_at = 0.0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._socket.settimeout(WAIT_S)

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send an entry; return whether it was taken."""
        if self._clock() < self._again_at:
            self.lost += 1
            return False
        data = b"".join(_field(name, value) for name, value in fields.items())
        try:
            try:
                self._socket.sendto(data, self._path)
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
                self._send_large(data)  # EMSGSIZE, or ENOBUFS: it is larger than a datagram may be
        except OSError:
            self.lost += 1
            self._again_at = self._clock() + PAUSE_S
            return False
        self.lost = 0
        return True

    def _send_large(self, data: bytes) -> None:
        """Send an entry as a file in memory that can't be changed any more."""
        file = os.memfd_create("journal-entry", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            with open(file, "wb", closefd=False) as out:
                out.write(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, file.to_bytes(4, "little"))
            self._socket.sendmsg([b""], [rights], 0, self._path)
        finally:
            os.close(file)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def field_name(name: str) -> str:
    """Return a name that the journal takes for one of ours: ``job_id`` is ``COMFY_JOB_ID``.

    systemd has a ``JOB_ID`` of its own, and our settings begin with ``FLEET_``.
    """
    return f"COMFY_{_NAME.sub('_', name.upper())}"[:_MOST_NAME]


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
