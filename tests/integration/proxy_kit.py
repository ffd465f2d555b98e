"""nginx and Caddy, with the very configurations that the documentation ships."""

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from comfy_fleet.adapters.system.self_signed import self_signed
from tests.children import mortal
from tests.conftest import free_port

SHIPPED = Path(__file__).parent.parent.parent / "docs" / "howto" / "proxies"
NAMES = ("comfy.example.org", "www.example.org", "console.example.org")
PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Front:
    """A proxy in front of a fleet.

    Attributes:
        root: Where the fleet is at ``/``.
        below: Where it is below ``/comfy/``, without a ``/`` at the end.
        console: Where its console is.
        trusts: A context that knows the proxy's certificate.
    """

    root: str
    below: str
    console: str
    trusts: ssl.SSLContext


def changed(text: str, changes: Mapping[str, str]) -> str:
    """A shipped configuration with a test's own names, ports and files; each must have stood in it."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextmanager
def proxy(
    kind: str, folder: Path, *, public: int, console: int, changes: Mapping[str, str] | None = None
) -> Iterator[Front]:
    """Run ``nginx`` or ``caddy`` in front of a fleet's two ports.

    Args:
        kind: Which.
        folder: For its files.
        public: The fleet's public port.
        console: The console's.
        changes: More that is another text in this test.
    """
    made = self_signed(["localhost", "127.0.0.1"], days=2, now=time.time())
    certificate, key = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.certificate)
    key.write_bytes(made.key)
    ports = {name: free_port() for name in NAMES}
    text, argv = (_nginx if kind == "nginx" else _caddy)(folder, ports, public, console)
    (folder / f"{kind}.conf").write_text(changed(text, changes or {}))
    log = folder / f"{kind}.log"
    env = {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "HOME": str(folder)}
    with log.open("wb") as out:
        process = subprocess.Popen(mortal(argv), stdout=out, stderr=out, env=env, cwd=folder)
    context = ssl.create_default_context(cafile=str(certificate))
    try:
        _wait(process, [*ports.values()], log)
        at = {name: f"https://localhost:{port}" for name, port in ports.items()}
        yield Front(at[NAMES[0]], f"{at[NAMES[1]]}/comfy", at[NAMES[2]], context)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    assert found, f"{name} is missing: scripts/setup --tests installs it"
    return found


def _nginx(folder: Path, ports: Mapping[str, int], public: int, console: int) -> tuple[str, list[str]]:
    text = (SHIPPED / "nginx.conf").read_text()
    for name, port in ports.items():
        old = f"    listen 443 ssl http2;\n    server_name {name};\n"
        new = f"    listen 127.0.0.1:{port} ssl http2;\n    server_name localhost;\n"
        text = changed(text, {old: new})
    text = changed(
        text,
        {
            "/etc/nginx/tls/": f"{folder}/",
            "127.0.0.1:8188": f"127.0.0.1:{public}",
            "127.0.0.1:8189": f"127.0.0.1:{console}",
        },
    )
    # What Debian's nginx.conf has around it, in a folder of the test's own.
    kept = "".join(
        f"  {name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    around = (
        f"daemon off; pid {folder}/nginx.pid; error_log stderr warn; worker_processes 1;\n"
        f"events {{}}\nhttp {{\n  access_log off;\n{kept}{text}\n}}\n"
    )
    if os.getuid() == 0:
        around = f"user root;\n{around}"
    return around, [_program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]


def _caddy(folder: Path, ports: Mapping[str, int], public: int, console: int) -> tuple[str, list[str]]:
    text = (SHIPPED / "Caddyfile").read_text()
    text = changed(text, {f"\n{name} {{": f"\nhttps://localhost:{port} {{" for name, port in ports.items()})
    text = changed(
        text,
        {
            "/etc/caddy/tls/": f"{folder}/",
            "127.0.0.1:8188": f"127.0.0.1:{public}",
            "127.0.0.1:8189": f"127.0.0.1:{console}",
        },
    )
    # Neither the machine's port 80 nor Caddy's own for its administration.
    around = "{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n}\n"
    config = str(folder / "caddy.conf")
    return around + text, [_program("caddy"), "run", "--config", config, "--adapter", "caddyfile"]


def _wait(process: "subprocess.Popen[bytes]", ports: list[int], log: Path) -> None:
    deadline = time.monotonic() + 60
    for port in ports:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
