"""TLS at the edge: what it speaks, what it refuses, and certificates that change while it runs."""

import asyncio
import datetime
import json
import logging
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from comfy_fleet.adapters.haproxy.certificates import read_certificate
from comfy_fleet.adapters.haproxy.config_render import files
from comfy_fleet.adapters.system.self_signed import self_signed
from comfy_fleet.cli.client import Client
from comfy_fleet.cli.exits import Fail
from tests.conftest import free_port
from tests.integration.edge_kit import LIMIT, Edge, edge_of
from tests.integration.haproxy_kit import eventually, raw_request

LOOK_S = 0.05


def certify(folder: Path, name: str = "fleet", *, host: str = "localhost", days: int = 30) -> dict[str, Any]:
    """Write a certificate and its key; returns the settings that name them."""
    made = self_signed([host, "127.0.0.1"], days=days, now=time.time())
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(made.certificate)
    key.write_bytes(made.key)
    return {"tls_cert_file": certificate, "tls_key_file": key}


def renewed(folder: Path, pair: dict[str, Any], **more: Any) -> dict[str, bytes]:
    """The contents of a later certificate and key for the same files."""
    later = certify(folder, "later", **more)
    return {name: later[name].read_bytes() for name in pair}


async def curl(*argv: str) -> tuple[int, str]:
    """Run curl; returns its exit status and what it prints."""
    running = await asyncio.create_subprocess_exec(
        "curl",
        "-sS",
        "--noproxy",
        "*",
        "--max-time",
        "20",
        *argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, _ = await running.communicate()
    return running.returncode or 0, out.decode(errors="replace")


def shown_names(port: int) -> bytes:
    """The certificate that a new connection is shown (DER)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as secure:
        found = secure.getpeercert(binary_form=True)
    assert found is not None
    return found


def shows(port: int, pem: bytes) -> bool:
    return shown_names(port) == ssl.PEM_cert_to_DER_cert(pem.decode())


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    return certify(tmp_path)


@pytest.fixture
async def edge(tmp_path: Path, pair: dict[str, Any]) -> AsyncIterator[Edge]:
    more: dict[str, Any] = {"plain_port": free_port(), "hsts_s": 300}
    async with edge_of(tmp_path, certificate_look_s=LOOK_S, **pair, **more) as it:
        yield it


@pytest.mark.parametrize("version", ["2", "1.1"])
async def test_both_origins_answer_over_tls_in_both_versions_of_http(
    edge: Edge, pair: dict[str, Any], version: str
) -> None:
    for port in (edge.settings.port, edge.settings.console_port):
        status, out = await curl(
            *("--cacert", str(pair["tls_cert_file"]), f"--http{version}", "-D", "-"),
            *("-H", "X-Forwarded-Proto: http", f"https://localhost:{port}/api/v1/jobs?x=%2F"),
        )
        head, _, body = out.partition("\r\n\r\n")
        assert (status, head.split()[:2]) == (0, [f"HTTP/{version}", "200"])
        assert "strict-transport-security: max-age=300" in head.lower()
        seen = json.loads(body)
        assert seen["target"] == "/api/v1/jobs?x=%2F"
        assert seen["headers"]["x-forwarded-proto"] == "https"
        assert seen["headers"]["x-forwarded-host"] == f"localhost:{port}"


async def test_the_rules_hold_over_http_2(edge: Edge, pair: dict[str, Any]) -> None:
    base = f"https://localhost:{edge.settings.port}"
    ask = (
        "--cacert",
        str(pair["tls_cert_file"]),
        "--http2",
        "--path-as-is",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
    )
    for path in (
        "/metrics",
        "/api/v1/../metrics",
        "/api/v1/%2e%2e/metrics",
        "//queue",
        "/api/v1/a%00b",
        "/queue%2f..",
    ):
        assert await curl(*ask, base + path) == (0, "404"), path
    for header in ("X-Fleet-Origin: console", "Service-Worker: script"):
        status, out = await curl(*ask[:-4], "-D", "-", "-H", header, f"{base}/api/v1/jobs")
        assert status == 0
        assert "403" in out.split("\r\n")[0] if "Service" in header else '"x-fleet-origin": "editor"' in out
    for _ in range(5):
        status, out = await curl(*ask, "--data-binary", "x" * (LIMIT + 1), f"{base}/prompt")
        assert out == "413" or (status and out == "000")  # who still sends may see the end before the answer
        if out == "413":
            break


async def test_what_is_broken_is_not_spoken(edge: Edge) -> None:
    refused = (
        ("--tls-max", "1.1", "--tlsv1.0", "--ciphers", "DEFAULT@SECLEVEL=0"),
        ("--tls-max", "1.2", "--ciphers", "AES128-GCM-SHA256"),  # no forward secrecy
        ("--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES128-SHA256"),  # CBC
    )
    url = f"https://127.0.0.1:{edge.settings.port}/health"
    for options in refused:
        assert (await curl("-k", *options, url))[0] == 35, options  # the handshake failed
    assert await curl("-k", "--tls-max", "1.2", "-o", "/dev/null", url) == (0, "")
    answer = await raw_request(edge.settings.port, "GET", "/health")
    assert answer == b"" or answer.startswith(b"HTTP/1.0 400 ")


async def opened(edge: Edge) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a websocket that echoes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.port, ssl=context)
    asked = (
        "Host: x",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    writer.write("\r\n".join(["GET /ws HTTP/1.1", *asked, "", ""]).encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return reader, writer


async def test_a_renewed_certificate_is_taken_and_cuts_nothing(
    edge: Edge, pair: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await opened(edge)
    port = edge.settings.port
    first = pair["tls_cert_file"].read_bytes()
    assert shows(port, first)
    later = renewed(tmp_path, pair)
    with caplog.at_level(logging.ERROR):
        pair["tls_cert_file"].write_bytes(later["tls_cert_file"])  # a renewal is never at once

        def refused() -> bool:
            return "certificate not taken" in caplog.messages

        await eventually("the certificate does not fit the key yet", refused)
    assert shows(port, first)
    pair["tls_key_file"].write_bytes(later["tls_key_file"])
    await eventually("the new one is shown", lambda: shows(port, later["tls_cert_file"]))
    assert shows(edge.settings.console_port, later["tls_cert_file"])
    assert caplog.messages.count("certificate not taken") == 1
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    writer.close()
    folder = files(edge.settings).folder
    left = [path for path in folder.iterdir() if path.name.startswith("tls-")]
    assert [path.stat().st_mode & 0o777 for path in left] == [0o600]
    assert read_certificate(left[0], None).names == ("localhost", "127.0.0.1")


async def test_a_certificate_that_haproxy_refuses_changes_nothing(
    edge: Edge, pair: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = pair["tls_cert_file"].read_bytes()
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weak")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(weak.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=9))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pair["tls_key_file"].write_bytes(weak.private_bytes(*form))
    pair["tls_cert_file"].write_bytes(made.sign(weak, hashes.SHA256()).public_bytes(form[0]))
    await eventually(
        "HAProxy has refused it",
        lambda: any("HAProxy refuses" in str(vars(one).get("reason")) for one in caplog.records),
    )
    assert shows(edge.settings.port, first)
    later = renewed(tmp_path, pair)
    for setting, path in pair.items():
        path.write_bytes(later[setting])
    await eventually("a good one is taken", lambda: shows(edge.settings.port, later["tls_cert_file"]))


async def test_each_origin_may_have_a_certificate_of_its_own(tmp_path: Path, pair: dict[str, Any]) -> None:
    own = {
        f"console_{name}": path for name, path in certify(tmp_path, "console", host="console.test").items()
    }
    async with edge_of(tmp_path, **pair, **own) as edge:
        assert shows(edge.settings.port, pair["tls_cert_file"].read_bytes())
        assert shows(edge.settings.console_port, own["console_tls_cert_file"].read_bytes())


async def test_the_plain_port_leads_browsers_on_and_tells_programs(edge: Edge) -> None:
    port, plain = edge.settings.port, edge.settings.plain_port
    assert plain is not None
    head = await raw_request(plain, "GET", "/a/b?c=%2F")
    assert head.startswith(b"HTTP/1.1 307 ")
    assert f"location: https://fleet.test:{port}/a/b?c=%2F".encode() in head
    for method, path, *headers in (
        ("POST", "/prompt"),
        ("GET", "/k/secret/queue"),
        ("GET", "/queue", "Authorization: Bearer secret"),
        ("GET", "/queue", "X-API-Key: secret"),
    ):
        told = await raw_request(plain, method, path, *headers)
        assert told.startswith(b"HTTP/1.1 403 ")
        assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "tls_required"
    assert edge.api.requests == []


async def test_what_ends_soon_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with edge_of(tmp_path, certificate_look_s=LOOK_S, **certify(tmp_path, days=3)) as edge:
        await asyncio.sleep(4 * LOOK_S)
        told = [vars(one) for one in caplog.records if one.message == "certificate ends"]
        assert [(one["origin"], one["levelname"]) for one in told] == [
            ("editor", "WARNING"),
            ("console", "WARNING"),
        ]
        assert "in 2 days" in told[0]["good"]
        assert set(edge.broker.controller.certificates.shown.by_origin) == {"editor", "console"}


async def test_a_command_that_speaks_plain_http_is_told_so(tmp_path: Path, pair: dict[str, Any]) -> None:
    async with edge_of(tmp_path, **pair) as edge:
        plain = f"http://127.0.0.1:{edge.settings.port}"

        def ask() -> Fail:
            with Client(plain) as client, pytest.raises(Fail) as refused:
                client.get("/api/v1/health")
            return refused.value

        told = await asyncio.to_thread(ask)
        assert told.hint is not None and f"https://127.0.0.1:{edge.settings.port}" in told.hint
        assert "`fleet up`" not in told.hint
