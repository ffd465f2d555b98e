"""Prefixes of extensions' routes: what can be opened, and which paths that opens."""

import pytest

from comfy_fleet.cli.exits import Fail
from comfy_fleet.cli.processes import load
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.extension_routes import opened_by, parse_prefixes
from comfy_fleet.settings import Settings


def test_prefixes_stand_once_and_without_api() -> None:
    assert parse_prefixes(" /chooser, /api/easyuse ,/chooser/,,/api/chooser") == ("/chooser", "/easyuse")
    assert parse_prefixes("") == ()
    assert Settings(extension_routes="/api/etn/image").extension_prefixes == ("/etn/image",)


@pytest.mark.parametrize(
    "text",
    ["chooser", "/", "/api", "/api/", "/a/../b", "/.", "/a//b", "/a b", "/a%2fb", "/a?", "/é", '/a"b', "/a$b",
     "/" + "a" * 65, "/a" * 7, ",".join(f"/p{number}" for number in range(33))],
)  # fmt: skip
def test_what_is_no_prefix_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput):
        parse_prefixes(text)
    monkeypatch.setenv("FLEET_EXTENSION_ROUTES", text)
    with pytest.raises(Fail, match=r"^FLEET_EXTENSION_ROUTES: "):
        load()


def test_a_prefix_opens_whole_segments() -> None:
    prefixes = ("/chooser", "/etn/image")
    for path in ("/chooser", "/chooser/a/b", "/api/chooser", "/api/etn/image/1"):
        assert opened_by(prefixes, path) == (prefixes[0] if "chooser" in path else prefixes[1])
    for path in ("/", "/chooserx", "/api", "/etn", "/etn/images", "/x/chooser", "/api/api/chooser"):
        assert opened_by(prefixes, path) is None
