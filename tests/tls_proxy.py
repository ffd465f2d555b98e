"""A reverse proxy before a node: TLS with a certificate of an authority of its own, a prefix, a password."""

import asyncio
import base64
import contextlib
import datetime
import ssl
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.stream_server import StreamServer

HOST = "localhost"


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """Signs certificates.

    Attributes:
        file: Its own certificate.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("An authority of a test")
        self.file = folder / "ca.pem"
        made = self._certificate(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.file.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _certificate(self, name: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def context(self, host: str) -> ssl.SSLContext:
        """Return a server's context with a certificate for a host."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._certificate(_name(host), key.public_key()).add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False
        )
        pem = self._folder / f"{host}.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        return context


class Proxy:
    """Serves one node below a prefix; whatever else is asked, by path or ``Host``, is a 404.

    Args:
        node_port: Port of the node on loopback.
        prefix: What its paths begin with here.
        context: Speaks TLS with it; None speaks plain HTTP.
        credentials: ``USER:PASSWORD`` without which all is a 401; it may be changed. Empty asks for none.

    Attributes:
        refused: How many requests had another one.
    """

    def __init__(
        self, node_port: int, *, prefix: str, context: ssl.SSLContext | None, credentials: str = ""
    ) -> None:
        self.credentials = credentials
        self.refused = 0
        self._node_port = node_port
        self._prefix = prefix
        self._context = context
        self._server = StreamServer(self._serve, context=context)
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://{HOST}:{self.port}{self._prefix}"

    async def __aenter__(self) -> Self:
        self.port = await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._forward(reader, writer)
        writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, _, rest = (await reader.readuntil(b"\r\n\r\n")).decode().partition("\r\n")
        method, target, version = first.split(" ")
        lines = [line for line in rest.split("\r\n") if line]
        host = next((line[5:].strip() for line in lines if line.lower().startswith("host:")), "")
        if not target.startswith(f"{self._prefix}/") or host != f"{HOST}:{self.port}":
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        told = next((line[14:].strip() for line in lines if line.lower().startswith("authorization:")), None)
        wanted = f"Basic {base64.b64encode(self.credentials.encode()).decode()}" if self.credentials else None
        if told != wanted:
            self.refused += 1
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        lines = [line for line in lines if not line.lower().startswith("authorization:")]
        # One request a connection, unless it becomes a websocket.
        if not any(line.lower().startswith("upgrade:") for line in lines):
            lines = [line for line in lines if not line.lower().startswith("connection:")]
            lines.append("Connection: close")
        node_reader, node_writer = await asyncio.open_connection("127.0.0.1", self._node_port)
        target = target.removeprefix(self._prefix)
        node_writer.write("\r\n".join([f"{method} {target} {version}", *lines, "", ""]).encode())
        there = asyncio.create_task(_copy(reader, node_writer))
        try:
            await _copy(node_reader, writer)
        finally:
            there.cancel()
            await asyncio.gather(there, return_exceptions=True)
            node_writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
