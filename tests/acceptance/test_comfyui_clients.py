"""The calls of programs that people use with a ComfyUI: two people at once, with keys and without."""

import asyncio
from itertools import count
from pathlib import Path

import pytest

from tests.acceptance.up import Up
from tests.acceptance.wire import ANN, BOB
from tests.clients.caller import Caller
from tests.clients.graphs import color_of
from tests.clients.published import packages
from tests.clients.relay import CONFIG
from tests.clients.sequences import SEQUENCES

COLORS = count(0x102030, 0x010101)
HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "comfyui-clients.md"


@pytest.mark.parametrize("keys", [("", ""), (ANN, BOB)], ids=["without keys", "with keys"])
@pytest.mark.parametrize("name", SEQUENCES)
async def test_two_people_at_once_get_their_own_pictures(
    name: str, keys: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    up: Up = request.getfixturevalue("keyed" if keys[0] else "fleet")
    people = [Caller(up.url, key) for key in keys]
    wanted = [next(COLORS) for _ in people]
    pictures = await asyncio.gather(
        *(SEQUENCES[name](me, color) for me, color in zip(people, wanted, strict=True))
    )
    assert [color_of(picture) for picture in pictures] == wanted


def test_the_relay_of_the_documents_is_the_one_that_is_tried() -> None:
    shown = CONFIG.format(port=8288, key="KEY", fleet="fleet.example:8188")
    assert f"```haproxy\n{shown}```" in HOWTO.read_text()


def test_the_documents_name_the_versions_that_are_tried() -> None:
    text = HOWTO.read_text()
    for name, version in packages().items():
        if name not in ("ws", "websocket-client"):  # they only carry what others say
            assert f"`{name.partition('[')[0]}` {version}" in text
