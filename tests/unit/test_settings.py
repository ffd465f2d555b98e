"""Settings that are refused where they are read, by the name that the operator wrote."""

from pathlib import Path

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


@pytest.mark.parametrize(("ttl", "beat"), [("5", "30"), ("5", "2.6"), ("1", None)])
def test_a_beat_that_a_lease_does_not_outlast_is_refused(
    ttl: str, beat: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_LEASE_TTL_S", ttl)
    if beat is not None:
        monkeypatch.setenv("FLEET_BEAT_S", beat)
    with pytest.raises(
        Fail, match=rf"FLEET_BEAT_S: .* at most half of FLEET_LEASE_TTL_S \({ttl}\)"
    ) as caught:
        load()
    assert caught.value.exit is Exit.USAGE


@pytest.mark.parametrize(
    "content", [b"", b"no certificate", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n"]
)
def test_a_file_without_certificates_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(content)
    monkeypatch.setenv("FLEET_NODE_CA_FILE", str(path))
    with pytest.raises(Fail, match=r"FLEET_NODE_CA_FILE: .*ca\.pem holds no certificate"):
        load()
