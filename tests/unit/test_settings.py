"""Settings that are refused where they are read, by the name that the operator wrote."""

import pytest

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.processes import load
from comfy_fleet.settings import Settings


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://user:secret@redis.example:6380/1",
        "rediss://redis.example",
        "redis://[::1]:6379/0",
        "unix:///run/redis.sock?db=0",
    ],
)
def test_addresses_of_redis(url: str) -> None:
    assert Settings(redis_url=url).redis_url == url


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "127.0.0.1:6379", "http://127.0.0.1:6379", "redis://", "redis://h:geheim", "redis://h:0",
     "unix://", "redis://[::1"],
)  # fmt: skip
def test_what_is_no_address_of_redis_is_refused_under_its_name(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Fail, match=r"^--redis: .*must look like redis://HOST:PORT/0") as caught:
        load(redis_url=url)
    assert caught.value.exit is Exit.USAGE
    monkeypatch.setenv("FLEET_REDIS_URL", url)
    with pytest.raises(Fail, match=r"^FLEET_REDIS_URL: "):
        load()


def test_a_password_in_a_wrong_address_is_not_shown() -> None:
    with pytest.raises(Fail) as caught:
        load(redis_url="rediz://:geheim@redis.example/0")
    assert "geheim" not in str(caught.value)
