"""People with keys, at the console and in the editor."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.acceptance.up import Up
from tests.browser.conftest import fleet_of_real, no_tour, wait_until_known
from tests.browser.page import Page
from tests.comfyui_server import ComfyServer
from tests.key_files import write_keys

ANN, EVE, OPS = "ann-key-0123456789abcdef", "eve-key-0123456789abcdef", "ops-key-0123456789abcdef"
_KEYS = f"ann {ANN} artist\neve {EVE}\nops {OPS} admin\n"
_AGENTS = "agent-token-0123456789abcdef"


@contextmanager
def fleet_of_people(nodes: list[ComfyServer], folder: Path) -> Iterator[Up]:
    """Run a fleet for Ann, an artist, Eve, who only runs things, and an operator."""
    keys = folder / "keys"
    write_keys(keys, _KEYS)
    with fleet_of_real(nodes, folder / "data", FLEET_KEYS_FILE=str(keys), FLEET_AGENT_TOKEN=_AGENTS) as up:
        wait_until_known(up.url, **{"X-API-Key": ANN})
        no_tour(up.url, **{"X-API-Key": ANN})
        yield up


def client_of(up: Up, key: str) -> httpx.Client:
    """Return an HTTP client that shows a key."""
    return httpx.Client(base_url=up.url, headers={"X-API-Key": key}, timeout=60)


def signing_in(url: str, key: str) -> Callable[[Page], None]:
    """Return what signs a person in, in an empty page: the editor sends them to the console and back."""

    def sign_in(page: Page) -> None:
        page.goto(f"{url}/")
        page.click("input[name=key]")
        page.type(key)
        page.press("Enter")
        page.until("!!document.querySelector('#vue-app')", what="the editor is served")

    return sign_in
