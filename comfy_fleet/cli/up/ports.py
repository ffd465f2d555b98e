"""Ports: find free ones, and name the process that has a taken one."""

import contextlib
import ipaddress
import secrets
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfy_fleet.adapters.system import procfs
from comfy_fleet.cli.exits import Exit, Fail

_LOWEST, _CLIENTS = 10_240, 32_768
_CLAIM = "\0comfy_fleet.port.{}"  # abstract: of this network namespace, as ports are


@dataclass(frozen=True, kw_only=True)
class PortHolder:
    """A process that listens on a port."""

    pid: int
    program: str

    def __str__(self) -> str:
        return f"{self.program} (pid {self.pid})"


def asked(host: str) -> str:
    """Return the address at which this machine reaches a server on ``host``, which may be a wildcard."""
    if host in ("", "*"):
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        # As servers do: a connection in TIME_WAIT does not block a port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(1)
        except OSError:
            return False
    return True


def unusable(host: str) -> str | None:
    """Return why nothing on this machine can listen on ``host``, whatever the port; None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        try:
            sock.bind((host, 0))
        except OSError as error:
            return error.strerror or str(error)
    return None


def require_free(port: int, host: str = "127.0.0.1") -> None:
    """Check that a server could listen there.

    Raises:
        Fail: It can't; the message names the listener, or the problem with the address.
    """
    if not is_free(port, host):
        if why := unusable(host):
            raise no_such_address(host, why)
        raise Fail(
            f"port {port} is taken by {held_by(port)}",
            hint="use another port: --port N; without one the next that is free is taken",
            code=Exit.REFUSED,
        )


def no_such_address(host: str, why: str) -> Fail:
    """Return the failure for an address that can't be listened on."""
    return Fail(
        f"address {host} can't be used: {why}",
        hint="name an address of this machine: --host ADDRESS, 0.0.0.0 for all",
        code=Exit.USAGE,
    )


def held_by(port: int) -> str:
    """Return the process that listens on a taken port, in words."""
    return str(holder(port) or "a process that this user may not see")


def draw(count: int, *, prefer: Iterable[int] = ()) -> list[int]:
    """Return ``count`` distinct ports that are free on loopback now.

    Args:
        count: How many.
        prefer: Ports to take where they are still free, e.g. those of the last start.
    """
    chosen = [port for port in dict.fromkeys(prefer) if is_free(port)][:count]
    with contextlib.ExitStack() as held:
        while len(chosen) < count:
            sock = held.enter_context(socket.socket())  # stays bound, so that no port comes twice
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
            if port not in chosen:
                chosen.append(port)
    return chosen


@contextlib.contextmanager
def kept(chosen: Iterable[int]) -> Iterator[None]:
    """Reserve loopback ports against programs that let the kernel choose, for the duration of the block.

    Until its server listens, and whenever that server restarts, a port could be given to another program. A
    socket that is bound but does not listen reserves it, and on Linux a server can still listen, because
    servers set SO_REUSEADDR. On other systems nothing is reserved.
    """
    with contextlib.ExitStack() as sockets:
        for port in chosen if sys.platform == "linux" else ():
            sock = sockets.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # taken meanwhile: its server will report it
                sock.bind(("127.0.0.1", port))
        yield


@contextlib.contextmanager
def claimed(port: int) -> Iterator[None]:
    """Claim a public port against other fleets that look for one, for the duration of the block.

    HAProxy listens only a second later, and would silently share the port with another HAProxy. The claim is
    an abstract socket, which ends with this process. It works only on Linux.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # already claimed; then the port was set explicitly
                sock.bind(_CLAIM.format(port))
        yield


def is_claimed(port: int) -> bool:
    """Return whether a fleet has claimed a port."""
    if sys.platform != "linux":
        return False
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.bind(_CLAIM.format(port))
        except OSError:
            return True
    return False


def draw_block(count: int, *, prefer: int | None = None) -> list[int]:
    """Return ``count`` consecutive ports that are free on loopback now.

    They are below those that the kernel gives to clients (Linux: from 32768), whose closed connections block
    ports for a minute.

    Args:
        count: How many.
        prefer: First port to try.

    Raises:
        Fail: The kernel has no such block.
    """
    if count == 0:
        return []
    for attempt in range(100):
        first = prefer if attempt == 0 and prefer else _LOWEST + secrets.randbelow(_CLIENTS - _LOWEST)
        block = range(first, first + count)
        if block.stop <= 65536 and all(is_free(port) for port in block):
            return list(block)
    raise Fail(f"found no {count} free ports in a row", hint="start fewer nodes: --nodes N")


def holder(port: int, proc: Path = Path("/proc")) -> PortHolder | None:
    """Return the process that listens on a TCP port; None if there is none or it is hidden."""
    pid = procfs.listener(port, proc)
    return None if pid is None else PortHolder(pid=pid, program=_program(procfs.argv(pid, proc)))


def _program(argv: Sequence[str]) -> str:
    if not argv:
        return "a process"
    program = Path(argv[0]).name
    # "python3" says little: show its script or module.
    if program.startswith("python") and len(argv) > 1:
        script = argv[argv.index("-m") + 1] if "-m" in argv[:-1] else argv[1]
        return f"{program} {Path(script).name}"
    return program
