"""Certificates: made, read, checked; and which of them a client trusts."""

import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from comfy_fleet.adapters.haproxy.certificates import certificate_ends, expiry_words, read_certificate
from comfy_fleet.adapters.system.authorities import authorities
from comfy_fleet.adapters.system.self_signed import self_signed
from comfy_fleet.cli.app import build
from comfy_fleet.cli.doctor_checks import Severity, certificates
from comfy_fleet.domain.errors import BadInput, ConfigError
from comfy_fleet.settings import Settings


def made(folder: Path, name: str = "a", *, days: int = 30, ago_days: float = 0) -> tuple[Path, Path]:
    found = self_signed(["fleet.test", "192.0.2.7", "::1"], days=days, now=time.time() - ago_days * 86400)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(found.certificate)
    key.write_bytes(found.key)
    return certificate, key


def test_what_was_made_is_read(tmp_path: Path) -> None:
    certificate, key = made(tmp_path)
    read = read_certificate(certificate, key)
    assert read.names == ("fleet.test", "192.0.2.7", "::1")
    assert 29 * 86400 < read.expires_at - time.time() < 30 * 86400
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    assert read_certificate(both, None).pem == read.pem
    assert b"PRIVATE" not in repr(read).encode() and "PRIVATE" in read.pem.decode()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda c, k: c.unlink(), "can't be read: No such file"),
        (lambda c, k: c.write_text("x"), "holds no certificate"),
        (lambda c, k: c.write_bytes(k.read_bytes()), "holds no certificate"),
        (lambda c, k: k.write_bytes(c.read_bytes()), "holds no key"),
        (lambda c, k: k.write_bytes(made(k.parent, "b")[1].read_bytes()), "is not that of the first"),
        (lambda c, k: c.write_bytes(b" " * 2**21), "too large"),
    ],
)
def test_what_can_not_be_used_is_told(
    tmp_path: Path, spoil: Callable[[Path, Path], object], told: str
) -> None:
    certificate, key = made(tmp_path)
    spoil(certificate, key)
    with pytest.raises(ConfigError, match=told):
        read_certificate(certificate, key)


def test_a_key_elsewhere_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FLEET_TLS_KEY_FILE"):
        read_certificate(made(tmp_path)[0], None)


@pytest.mark.parametrize(
    ("in_s", "words"),
    [(-1, "ended"), (100, "less than a day"), (100_000, "in a day"), (300_000, "in 3 days")],
)
def test_the_end_in_words(in_s: float, words: str) -> None:
    assert words in expiry_words(1e9 + in_s, now=1e9)


def test_who_needs_no_key_learns_the_end_all_the_same(tmp_path: Path) -> None:
    certificate, key = made(tmp_path)
    key.unlink()
    named = Settings(tls_cert_file=certificate, tls_key_file=key, console_tls_cert_file=tmp_path / "none.pem")
    ends = certificate_ends(named)
    assert ends.keys() == {"editor"} and 29 * 86400 < ends["editor"] - time.time() < 30 * 86400
    assert certificate_ends(Settings()) == {}


@pytest.mark.parametrize("name", ["a..b", "a b", "https://fleet.test", "fleet.test:8188", "", "fleet.test/x"])
def test_no_certificate_for_what_is_no_name(name: str) -> None:
    with pytest.raises(BadInput, match="no host name"):
        self_signed([name], days=1, now=0)


def test_the_command_writes_both_files_once(tmp_path: Path) -> None:
    def run(*more: str) -> tuple[int, str]:
        argv = ["cert", "self-signed", "--data", str(tmp_path), "--name", "fleet.test", *more]
        done = CliRunner().invoke(build(argv), argv)
        return done.exit_code, done.output

    status, told = run()
    assert status == 0
    assert f"FLEET_TLS_CERT_FILE={tmp_path}/tls/cert.pem" in told
    found = read_certificate(tmp_path / "tls/cert.pem", tmp_path / "tls/key.pem")
    assert found.names == ("fleet.test",)
    assert (tmp_path / "tls/key.pem").stat().st_mode & 0o777 == 0o600
    assert run()[0] != 0
    assert read_certificate(tmp_path / "tls/cert.pem", tmp_path / "tls/key.pem") == found
    assert run("--force")[0] == 0
    assert read_certificate(tmp_path / "tls/cert.pem", tmp_path / "tls/key.pem") != found


@pytest.mark.parametrize(
    ("days", "ago_days", "verdict"),
    [(30, 0, Severity.OK), (5, 0, Severity.WARN), (5, 6, Severity.FAIL)],
)
def test_the_doctor_tells_the_end(tmp_path: Path, days: int, ago_days: float, verdict: Severity) -> None:
    certificate, key = made(tmp_path, days=days, ago_days=ago_days)
    (found,) = certificates(Settings(tls_cert_file=certificate, tls_key_file=key))
    assert found.verdict is verdict
    assert "fleet.test" in found.found
    assert bool(found.do) == (verdict is not Severity.OK)


def test_the_doctor_tells_what_can_not_be_read(tmp_path: Path) -> None:
    (found,) = certificates(Settings(tls_cert_file=tmp_path / "none.pem"))
    assert found.verdict is Severity.FAIL and "can't be read" in found.found
    assert certificates(Settings()) == []


def _greets(trusting: ssl.SSLContext, server: tuple[Path, Path], name: str) -> bool:
    """Shake hands in memory."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*server)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname=name)
    there = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (client, there):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True


def test_a_fleets_own_certificate_is_trusted_by_any_name_and_nothing_else(tmp_path: Path) -> None:
    mine, other = made(tmp_path), made(tmp_path, "other")
    chain = tmp_path / "chain.pem"
    chain.write_bytes(mine[0].read_bytes() + other[0].read_bytes())
    own = authorities("https://127.0.0.1", own=chain)
    assert isinstance(own, ssl.SSLContext)
    assert _greets(own, mine, "127.0.0.1")
    assert not _greets(own, other, "127.0.0.1")  # stands in the chain, and is not the server's


def test_an_authoritys_file_vouches_for_the_name_too(tmp_path: Path) -> None:
    mine, other = made(tmp_path), made(tmp_path, "other")
    trusting = authorities("https://fleet.test", ca_file=mine[0])
    assert isinstance(trusting, ssl.SSLContext)
    assert _greets(trusting, mine, "fleet.test")
    assert not _greets(trusting, mine, "127.0.0.1")
    assert not _greets(trusting, other, "fleet.test")
    with pytest.raises(ConfigError, match="no certificate"):
        authorities("https://x", ca_file=mine[1])
    assert authorities("https://x") is True


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"tls_key_file": "k"}, "FLEET_TLS_CERT_FILE"),
        ({"console_tls_cert_file": "c"}, "FLEET_TLS_CERT_FILE"),
        ({"tls_cert_file": "c", "console_tls_key_file": "k"}, "FLEET_CONSOLE_TLS_CERT_FILE"),
        ({"plain_port": 80}, "FLEET_TLS_CERT_FILE"),
        ({"hsts_s": 1}, "FLEET_TLS_CERT_FILE"),
        ({"tls_cert_file": "c", "plain_port": 8188}, "needs its own"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Settings.model_validate(values)
