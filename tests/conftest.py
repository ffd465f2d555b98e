"""Real servers for tests: Redis on a port that the kernel chose."""

import gc
import inspect
import logging
import os
import socket
import ssl
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest
import redis as sync_redis
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # it has no types

from comfy_fleet.adapters.redis.client import FleetRedis, connect
from comfy_fleet.adapters.system.redis_program import program
from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.domain.jobs.run import Run
from comfy_fleet.domain.jobs.run_messages import Action, Event
from comfy_fleet.settings import Settings
from tests.children import mortal
from tests.comfyui_server import ANSWER_S, comfyui_server
from tests.time_limits import limited

__all__ = ["comfyui_server"]  # a fixture


FIXTURES_S = 900.0
"""For all fixtures of a test beside a real ComfyUI, and again for their ends, on a busy machine."""
_ORDER = {"acceptance": 0, "browser": 0, "unit": 2}  # the folders; all others lie between
_LONG = {  # files of theirs that take minutes, mostly of waiting: beside what is busy they cost no time
    *("test_attacks_frames.py", "test_attacks_nodes.py", "test_backup.py", "test_container_commands.py"),
    *("test_dispatcher.py", "test_host_agent.py", "test_iterate.py", "test_job_commands.py"),
    *("test_merged_runs.py", "test_nodes_that_others_run.py", "test_stray_leases.py", "test_up_detached.py"),
    "test_up_starting.py",
}
_SHARERS = {  # files whose tests use the fleets of their folder
    *("test_attacks_access.py", "test_attacks_bodies.py", "test_attacks_fuzz.py", "test_attacks_paths.py"),
    *("test_comfy_sdk.py", "test_comfyui_clients.py", "test_pages.py", "test_pictures.py"),
    *("test_published_clients.py", "test_two_people.py"),
}
_HELD: deque[int] = deque()  # descriptors: nobody closes them at the end but the system


def free_port() -> int:
    """Ask the kernel for a port that is free, as is the one above it, and that it gives to nobody else.

    A socket that is bound and does not listen keeps a port: servers, which set SO_REUSEADDR, may listen there
    all the same. A port that is only looked up is drawn again by another test, or becomes that of somebody's
    connection, before its server listens. The one above is for the console of a fleet that is told one port.
    """
    while True:
        sock, above = socket.socket(), socket.socket()
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
        try:
            above.bind(("127.0.0.1", port + 1))
        except (OSError, OverflowError):  # taken, or there is none
            sock.close()
            above.close()
            continue
        for one in (sock, above):  # only now: two that set it before would both get the port
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _HELD.append(one.detach())
        while len(_HELD) > 300:  # more than any test uses
            os.close(_HELD.popleft())
        return port


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage in the tests that are collected, neither meanwhile nor later.

    They are millions of objects that stay until the end: looking took a third of the time in which they are
    made, in each process, and more of it whenever a test had used much memory.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest tests, and let the limit of one beside a real ComfyUI count from its first line.

    The first test of a file waits until several ComfyUIs and a fleet have started; on a busy machine nothing
    would be left for the test. Its fixtures and their ends have ``FIXTURES_S``.
    """
    tests = Path(__file__).parent
    items.sort(
        key=lambda item: (
            0 if item.path.name in _LONG else _ORDER.get(item.path.relative_to(tests).parts[0], 1)
        )
    )
    for item in items:
        if item.get_closest_marker("comfyui"):
            limit = item.get_closest_marker("timeout")
            seconds = limit.args[0] if limit else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(seconds, func_only=True), append=False)


class ByFileAndFleet(LoadFileScheduling):  # type: ignore[misc]  # as above
    """Gives each file to one process, and those that share fleets to the same, so that each starts once."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return "fleets" if file.parent.name == "acceptance" and file.name in _SHARERS else str(file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFileAndFleet | None:
    """Let files that share fleets stay together where files do."""
    return ByFileAndFleet(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Limit the fixtures of a test beside a real ComfyUI."""
    with _fixtures_limited(item, "what the test needs"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Limit their ends, too."""
    with _fixtures_limited(item, "ending what the test needed"):
        return (yield)


def _fixtures_limited(item: pytest.Item, what: str) -> AbstractContextManager[None]:
    return limited(FIXTURES_S, what) if item.get_closest_marker("comfyui") else nullcontext()


@pytest.fixture(autouse=True, scope="session")
def valid_runs() -> Iterator[None]:
    """Check every run of this process after each event."""
    handle = Run.handle

    def checked(run: Run, event: Event, now: float) -> list[Action]:
        actions = handle(run, event, now)
        run.validate()
        return actions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "handle", checked)
        yield


@pytest.fixture(autouse=True, scope="session")
def loaded_authorities() -> Iterator[None]:
    """Load the public certificate authorities once for httpx and for agents; others add their own."""
    create = ssl.create_default_context
    file = os.environ.get("SSL_CERT_FILE") or certifi.where()  # as httpx chooses
    public = cache(lambda: create(cafile=file))
    machine = cache(lambda *variables: create())

    def known(*args: Any, **options: Any) -> ssl.SSLContext:
        if args or options not in ({"cafile": file}, {"cafile": None}):
            return create(*args, **options)
        if options["cafile"]:
            return public()
        return machine(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", known)
        yield


@pytest.fixture(autouse=True, scope="session")
def patient_httpx() -> Iterator[None]:
    """Let each request of a test that names no limit of its own wait for ``ANSWER_S``."""
    default = inspect.signature(httpx.Client).parameters["timeout"].default
    with pytest.MonkeyPatch.context() as patch:
        for part in ("connect", "read", "write", "pool"):
            patch.setattr(default, part, ANSWER_S)
        yield


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """Take back what a command that ran in this process did to the logs: its stream ends with its test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis of this test process's own."""
    folder = tmp_path_factory.mktemp("redis")
    port = free_port()
    command = [program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--enable-debug-command", "local"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            mortal([*command, "--save", "", "--appendonly", "no"]), stdout=log, stderr=log
        )
    client = sync_redis.Redis(port=port)
    deadline = time.monotonic() + 60
    while True:
        try:
            client.ping()
            break
        except sync_redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    client.close()
    yield port
    server.terminate()
    server.wait(10)


@pytest.fixture
async def redis(redis_port: int) -> AsyncIterator[FleetRedis]:
    """A client on an empty database."""
    client = connect(f"redis://127.0.0.1:{redis_port}/0")
    await client.flushall()
    # Tests make it a replica for a while: for later ones it would be a server that was promoted.
    await client.execute_command("DEBUG", "CHANGE-REPL-ID")
    yield client
    await client.aclose()


@pytest.fixture
async def stores(redis_port: int, redis: object) -> AsyncIterator[Stores]:
    """All stores, on an empty database."""
    async with open_stores(Settings(redis_url=f"redis://127.0.0.1:{redis_port}/0")) as opened:
        yield opened


@pytest.fixture(scope="session")
def comfyui_home() -> Path:
    """The folder of a real ComfyUI; the test is skipped without one."""
    home = os.environ.get("COMFYUI_HOME")
    if not home:
        pytest.skip("COMFYUI_HOME is not set")
    return Path(home)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's, but short: the path of a unix socket may have about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        yield Path(folder)
