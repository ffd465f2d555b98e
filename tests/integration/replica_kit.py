"""A primary Redis and its replica, for tests of replication and failover."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis as sync_redis

from comfy_fleet.adapters.system.redis_program import program
from tests.children import mortal
from tests.conftest import free_port


@dataclass
class RedisServer:
    """A server that tests may stop, kill and promote."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def client(self) -> Any:
        """A client; each call opens its own."""
        return sync_redis.Redis(port=self.port)

    def promote(self) -> None:
        """Make a replica the primary, as an operator does."""
        with self.client as client:
            client.replicaof("NO", "ONE")

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(20)


def eventually(check: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a check is true; a connection that fails counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except sync_redis.ConnectionError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def pair(folder: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """Run a primary and a replica that has caught up."""
    servers: list[RedisServer] = []
    try:
        for name in ("primary", "replica"):
            port = free_port()
            (folder / name).mkdir()
            command = [program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder / name)]
            command += ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
            if servers:
                command += ["--replicaof", f"127.0.0.1 {servers[0].port}"]
            with (folder / name / "log").open("wb") as log:
                process = subprocess.Popen(mortal(command), stdout=log, stderr=log)
            servers.append(RedisServer(port=port, process=process))
            with servers[-1].client as client:
                eventually(client.ping)
        primary, replica = servers
        with replica.client as client:
            eventually(lambda: client.info("replication")["master_link_status"] == "up")
        yield primary, replica
    finally:
        for one in servers:
            one.process.kill()
            one.process.wait(20)
