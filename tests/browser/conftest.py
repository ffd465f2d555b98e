"""Real ComfyUIs, alone and behind a fleet, and a browser to look at them."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.browser.chromium import Chromium, chromium, program
from tests.comfyui_server import ComfyServer, started_comfyui, wait_until_it_answers

KNOWN_S = 150.0  # for a fleet to know what its nodes have


class Servers:
    """As many ComfyUIs as were asked for, started together."""

    def __init__(self, home: Path, new_folder: Callable[[], Path], stack: ExitStack) -> None:
        self._home = home
        self._new_folder = new_folder
        self._stack = stack
        self._running: list[ComfyServer] = []

    def take(self, count: int) -> list[ComfyServer]:
        """Return so many; those that don't run yet are started."""
        new = [
            self._stack.enter_context(started_comfyui(self._home, self._new_folder()))
            for _ in range(count - len(self._running))
        ]
        for server, process in new:
            wait_until_it_answers(server, process)
        self._running += [server for server, _ in new]
        return self._running[:count]


@dataclass(frozen=True)
class Place:
    """Somewhere with an editor.

    Attributes:
        url: What a person types.
        nodes: How many ComfyUIs there are; 0 if it is one without a fleet.
    """

    url: str
    nodes: int


@pytest.fixture(scope="session")
def servers(comfyui_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Real ComfyUIs."""
    with ExitStack() as stack:
        yield Servers(comfyui_home, lambda: tmp_path_factory.mktemp("comfyui"), stack)


@contextmanager
def fleet_of_real(nodes: list[ComfyServer], data: Path, **env: str) -> Iterator[Up]:
    """Run a fleet of ComfyUIs, named ``real0`` and so on."""
    up = start_fleet(data, *named(nodes), env=env, within_s=KNOWN_S)
    try:
        yield up
    finally:
        stop_fleet(up)


def named(nodes: list[ComfyServer]) -> list[str]:
    """Return the options of ``fleet up`` for ComfyUIs."""
    return [word for number, node in enumerate(nodes) for word in ("--node", f"real{number}={node.url}")]


def wait_until_known(url: str, **headers: str) -> None:
    """Wait until a fleet knows the classes of its nodes."""
    deadline = time.monotonic() + KNOWN_S
    while True:
        known = httpx.get(f"{url}/object_info/FleetSteps", headers=headers, timeout=30)
        if known.status_code == 200 and known.json().get("FleetSteps"):
            return
        assert time.monotonic() < deadline, "the fleet does not know yet what its nodes have"
        time.sleep(0.1)


def no_tour(url: str, **headers: str) -> None:
    """Say that this person has seen the editor's first dialog."""
    answer = httpx.post(f"{url}/settings/Comfy.TutorialCompleted", json=True, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text


def leave_idle(url: str) -> None:
    """End what a test that failed has left at work: the next one would wait for it."""
    deadline = time.monotonic() + KNOWN_S
    httpx.post(f"{url}/queue", json={"clear": True}, timeout=30).raise_for_status()
    while running := httpx.get(f"{url}/queue", timeout=30).json()["queue_running"]:
        assert time.monotonic() < deadline, f"{len(running)} jobs can't be interrupted"
        for _, prompt, *_ in running:
            httpx.post(f"{url}/interrupt", json={"prompt_id": prompt}, timeout=30)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """One browser for a file of tests."""
    if program() is None:
        pytest.skip("Chromium is missing")
    with chromium() as running:
        yield running


@pytest.fixture(scope="module", params=[0, 2, 4], ids=["bare", "two nodes", "four nodes"])
def place(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A bare ComfyUI, and fleets of two and four."""
    count = int(request.param)
    if not count:
        (bare,) = servers.take(1)
        no_tour(bare.url)
        yield Place(bare.url, 0)
        return
    with fleet_of_real(servers.take(count), tmp_path_factory.mktemp("browser") / "data") as up:
        wait_until_known(up.url)
        no_tour(up.url)
        yield Place(up.url, count)
