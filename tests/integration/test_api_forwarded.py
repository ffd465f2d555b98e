"""What the API makes of the edge's word: links, cookies, and the lines of its log."""

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.networks import parse_networks
from comfy_fleet.logs import JsonFormatter
from comfy_fleet.settings import Settings
from comfy_fleet.tasks import start
from tests.integration.api_kit import Api, running
from tests.key_files import write_keys

KEY = "ann-key-0123456789"
AUTH = {"Authorization": f"Bearer {KEY}"}
EDGE = {
    "X-Fleet-Origin": "editor",
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "comfy.example",
    "X-Forwarded-Prefix": "/comfy/",
    "X-Request-Id": "r-7",
}


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    write_keys(keys, f"ann {KEY}\n")
    async with running(redis_port, tmp_path, keys_file=keys) as it:
        yield it


async def test_links_lead_through_the_proxy(api: Api) -> None:
    async def front(**headers: str) -> str:
        return (await api.client.get("/", headers={**EDGE, **headers})).text

    assert "https://comfy.example/comfy</p>" in await front()
    assert "https://comfy.example</p>" in await front(**{"X-Forwarded-Prefix": "//evil.example"})


async def test_a_public_url_comes_before_what_a_proxy_says(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path, public_url="https://known.example/c/") as api:
        assert "https://known.example/c</p>" in (await api.client.get("/", headers=EDGE)).text


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(line) for line in caplog.text.splitlines() if line.startswith("{")]


async def test_a_requests_lines_name_it_and_its_client(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter("api"))
    caplog.set_level(logging.INFO)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    console = {**EDGE, **form, "X-Fleet-Origin": "console"}
    assert (await api.client.post("/login", content=f"key={KEY}", headers=console)).status_code == 303
    # Whoever comes to the API's own port says nothing that counts.
    own = {**form, "X-Forwarded-For": "203.0.113.66", "X-Request-Id": "forged"}
    assert (await api.client.post("/login", content=f"key={KEY}", headers=own)).status_code == 303
    told = [(one.get("request_id"), one["client"]) for one in lines(caplog) if one["msg"] == "signed in"]
    assert told == [("r-7", "203.0.113.9"), (None, "127.0.0.1")]


async def test_what_goes_on_after_a_request_does_not_name_it(caplog: pytest.LogCaptureFixture) -> None:
    from comfy_fleet.request_context import in_request

    caplog.handler.setFormatter(JsonFormatter("api"))
    caplog.set_level(logging.INFO)

    async def work() -> None:
        logging.getLogger("x").info("later")

    in_request.set({"request_id": "r-7"})
    await start(work())
    logging.getLogger("x").info("now")
    assert [("request_id" in one) for one in lines(caplog)] == [False, True]


def test_networks_are_read() -> None:
    assert parse_networks(" 10.0.0.0/8, 192.0.2.7,,fd00::/8,10.0.0.0/8 ") == (
        *("10.0.0.0/8", "192.0.2.7/32", "fd00::/8"),
    )
    for text in ("10.0.0.1/8", "localhost", "10.0.0.0/8 192.0.2.7", "1.2.3.4;}"):
        with pytest.raises(BadInput, match="is no network"):
            parse_networks(text)


@pytest.mark.parametrize(
    "values",
    [
        {"trusted_proxies": "x"},
        {"allow_from": "10.0.0.1/8"},
        {"trusted_user_header": "Remote User"},
        {"trusted_user_header": "Authorization"},
        {"trusted_groups_header": "X-Forwarded-For"},
        {"trusted_groups_header": "x\r\ny: z"},
    ],
)
def test_settings_that_can_not_be_right_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"is no|meaning of its own"):
        Settings.model_validate(values)
