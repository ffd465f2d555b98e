"""Settings that are refused where they are read, by the name that the operator wrote."""

import re
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


@pytest.mark.parametrize("url", ["hello", "https://shop.example/" + "x" * 5000])
def test_the_operators_webhook_is_named_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_OPERATOR_WEBHOOK_URL", url)
    with pytest.raises(Fail, match=r"^FLEET_OPERATOR_WEBHOOK_URL: [^:]") as caught:
        load()
    assert "operator_webhook_url" not in str(caught.value)


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
    ("variable", "value"), [("FLEET_FREE_IDLE_S", "600,big"), ("FLEET_FREE_OOM", "1,big=0,big=1")]
)
def test_a_former_setting_that_can_not_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(Fail) as caught:
        load()
    assert caught.value.message.startswith(f"{variable}: ")


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("RETENTION_S", "UPLOAD_RETENTION_S", "AGEING_S", "LEASE_TTL_S")
          for value in ("inf", "1e300", "nan")),
        ("VRAM_NEED_GB", "inf"),
        *((name, "99999999999999999999") for name in ("RATE_LIMIT", "MAX_BODY_BYTES", "QUEUE_DEPTH")),
    ],
)  # fmt: skip
def test_numbers_beyond_all_reckoning_are_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FLEET_{name}", value)
    with pytest.raises(Fail, match=rf"^FLEET_{name}: Input should be (greater|less) than") as caught:
        load()
    assert caught.value.exit is Exit.USAGE


def test_every_number_has_an_upper_end(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, int | float) or name.endswith(("_gb", "_bytes")):
            monkeypatch.setenv(f"FLEET_{name.upper()}", "9" * 40)
            try:
                load()
            except Fail as error:
                found.append(str(error))
            else:
                pytest.fail(f"{name} takes any number")
            monkeypatch.delenv(f"FLEET_{name.upper()}")
    assert len(found) > 40


def test_no_field_has_two_bounds_of_a_kind() -> None:
    """Of two, the type's would count, and the field's own would be silently lost."""
    for name, field in Settings.model_fields.items():
        kinds = [type(one) for one in field.metadata]
        assert len(kinds) == len(set(kinds)), (name, field.metadata)


@pytest.mark.parametrize(("name", "most"), [("PATIENCE_S", "86400"), ("AGEING_S", "10000")])
def test_a_fields_own_bound_counts(name: str, most: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"FLEET_{name}", most)
    load()
    monkeypatch.setenv(f"FLEET_{name}", f"{most}.5")
    with pytest.raises(Fail, match=rf"^FLEET_{name}: Input should be less than or equal to {most}"):
        load()


def test_shares_by_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().weights == {}
    monkeypatch.setenv("FLEET_SHARES", " ada=2, b.o-b_1 = 0.5 ,eve+b@shop.test=3")
    assert load().weights == {"ada": 2.0, "b.o-b_1": 0.5, "eve+b@shop.test": 3.0}


@pytest.mark.parametrize(
    "text",
    [
        *("ada", "ada=", "=2", "ada=0", "ada=0.001", "ada=101", "ada=-1", "ada=nan", "ada=inf", "ada=1e3"),
        *("ada=" + "9" * 400, "a b=1", "ada=2,ada=2", "ada=2;bob=1", "ada=\u0662", "a" * 65 + "=1"),
    ],
)
def test_shares_that_can_not_be_read_are_refused_by_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_SHARES", text)
    with pytest.raises(Fail, match=r"^FLEET_SHARES: ") as caught:
        load()
    assert caught.value.exit is Exit.USAGE


@pytest.mark.parametrize("name", ["FLEET_WEBHOOK_ALLOW", "FLEET_FETCH_ALLOW"])
def test_hosts_that_can_not_be_read_are_refused_by_name_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "127.0.0.1:80-90")
    with pytest.raises(Fail, match=f"^{name}: '127.0.0.1:80-90' is no host"):
        load()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ada", "'ada' must be OWNER=WEIGHT, such as ada=2"),
        ("ada=", "the weight of ada is missing: it must be from 0.01 to 100"),
        ("ada=-1", "the weight of ada is -1: it must be from 0.01 to 100"),
        (
            "\u00e4da=2",
            "'\u00e4da' is no owner: a user's name is 1 to 64 of A-Z a-z 0-9 _ . @ + -",
        ),
        ("ada=2,ada=2", "ada is named twice"),
    ],
)
def test_what_is_wrong_with_shares_is_said(text: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_SHARES", text)
    with pytest.raises(Fail, match=f"^FLEET_SHARES: {re.escape(told)}"):
        load()


@pytest.mark.parametrize("name", ["HOST", "API_HOST", "BROKER_BIND", "AGENT_HOST", "BROKER_HOST"])
@pytest.mark.parametrize("value", ["", " ", "a b", "http://gpu1", "gpu1:80", "::1]", "-gpu1"])
def test_what_is_no_host_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"FLEET_{name}", value)
    with pytest.raises(Fail, match=rf"^FLEET_{name}: .*is neither a host name nor an address; unset it"):
        load()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%eth0", "gpu_1.example.", "*", "g"]
)
def test_hosts(host: str) -> None:
    assert Settings(host=host, broker_bind=host).host == host


@pytest.mark.parametrize("name", ["DATA", "KEYS_FILE", "SECRET_FILE", "WORKFLOWS", "HAPROXY"])
def test_an_empty_path_is_not_the_folder_one_is_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"FLEET_{name}", "")
    with pytest.raises(Fail, match=rf"^FLEET_{name}: it names nothing; unset it, or name a path$"):
        load()


@pytest.mark.parametrize(
    "url",
    ["nope", "gpu1:8188", "ftp://x", "http://", "http://h:0", "http://h:99999", "http://a b", "https://h?q",
     "https://h/#x", "http://[::1", "http://ada:geheim@h/"],
)  # fmt: skip
def test_what_makes_no_urls_is_refused_as_their_base(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_PUBLIC_URL", url)
    with pytest.raises(Fail, match=r"^FLEET_PUBLIC_URL: .*must look like https://HOST") as caught:
        load()
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://pics.example", "http://10.0.0.1:8188/fleet/", "http://[::1]:80"])
def test_bases_of_urls(url: str) -> None:
    assert Settings(public_url=url).public_url == url


def test_an_empty_base_of_urls_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_PUBLIC_URL", "")  # as Compose passes on what is not set
    assert load().public_url is None


@pytest.mark.parametrize(("text", "port"), [("none", None), ("0", 0), ("8200", 8200)])
def test_a_process_serves_metrics_on_a_port_on_any_or_not_at_all(
    text: str, port: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_AGENT_METRICS_PORT", text)
    assert Settings().agent_metrics_port == port


def test_what_is_no_port_for_metrics_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("no", "-1", "65536", ""):
        monkeypatch.setenv("FLEET_DISPATCH_METRICS_PORT", text)
        with pytest.raises(Fail, match=r"^FLEET_DISPATCH_METRICS_PORT: "):
            load()


def test_the_console_is_another_origin_than_the_editors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Fail, match=r"^--console-port: 9000 is the public port"):
        load(port=9000, console_port=9000)
    monkeypatch.setenv("FLEET_PUBLIC_URL", "https://comfy.example")
    for same in (
        "https://comfy.example:443",
        "https://comfy.example/console",
    ):
        monkeypatch.setenv("FLEET_CONSOLE_URL", same)
        with pytest.raises(Fail, match=r"^FLEET_CONSOLE_URL: .*is the same origin as FLEET_PUBLIC_URL"):
            load()
    for other in ("https://console.comfy.example", "https://comfy.example:8443", "http://comfy.example"):
        monkeypatch.setenv("FLEET_CONSOLE_URL", other)
        assert load().console_url == other


_PATHS = sorted(name for name, field in Settings.model_fields.items() if "Path" in str(field.annotation))


@pytest.mark.parametrize("name", _PATHS)
@pytest.mark.parametrize(
    "value", ["a\nb", "\udcff", "x" * 256, "d/" * 2048], ids=["line", "bytes", "name", "path"]
)
def test_what_no_file_is_called_is_refused_by_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FLEET_{name.upper()}", value)
    with pytest.raises(Fail, match=rf"^FLEET_{name.upper()}: .*; use another path$") as caught:
        load()
    assert caught.value.exit is Exit.USAGE


def test_paths_may_be_in_any_language() -> None:
    path = "/srv/früh/" + "ä" * 127
    assert str(Settings(data=path).data) == path


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"\xff", "no text"),
        (b"one\ntwo", "one line"),
        ("é".encode(), "ASCII"),
    ],
    ids=["none", "empty", "binary", "lines", "letters"],
)
def test_a_token_file_that_holds_none_is_refused_by_name(
    content: bytes | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("FLEET_AGENT_TOKEN_FILE", str(path))
    with pytest.raises(Fail, match=rf"FLEET_AGENT_TOKEN_FILE: .*{told}"):
        load()


@pytest.mark.parametrize("token", ["a\nb", "é", "a\x7fb", "\udcff"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_AGENT_TOKEN", token)
    with pytest.raises(Fail, match=r"^FLEET_AGENT_TOKEN: it must be one line of ASCII") as caught:
        load()
    assert token not in str(caught.value)
