"""The edge's certificates: read from the operator's files, checked, and kept as HAProxy reads them.

HAProxy gets one file for each certificate, named by its content and written beside its configuration. So a
renewed certificate makes another configuration, which is checked and taken like any other; and a renewal that
is only half done, the certificate new and the key still old, changes nothing.
"""

import contextlib
import datetime
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.settings import Settings

if TYPE_CHECKING:  # loaded when it is used: most fleets have no certificate
    from cryptography import x509

SOON_S = 14 * 86400.0
"""A certificate that ends within this time is warned of."""
_MOST_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate with its chain and key.

    Attributes:
        path: The operator's file.
        pem: The chain, then the key.
        names: The host names and addresses that it is for.
        expires_at: When it ends, in seconds since 1970.
    """

    path: Path
    pem: bytes = field(repr=False)
    names: tuple[str, ...]
    expires_at: float

    @property
    def file_name(self) -> str:
        """The name of HAProxy's file."""
        return f"tls-{hashlib.sha256(self.pem).hexdigest()[:16]}.pem"


@dataclass(frozen=True, kw_only=True)
class EdgeCertificates:
    """What each origin shows; both are None without TLS."""

    editor: Certificate | None = None
    console: Certificate | None = None

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files that HAProxy reads, by name."""
        return {one.file_name: one.pem for one in (self.editor, self.console) if one is not None}

    @property
    def by_origin(self) -> Mapping[str, Certificate]:
        """The certificates by the origin that shows them."""
        pairs = {"editor": self.editor, "console": self.console}
        return {origin: one for origin, one in pairs.items() if one is not None}


def edge_certificates(settings: Settings) -> EdgeCertificates:
    """Read both origins' certificates.

    Raises:
        ConfigError: One can't be read, or does not fit its key.
    """
    if settings.tls_cert_file is None:
        return EdgeCertificates()
    names = ("FLEET_TLS_CERT_FILE", "FLEET_TLS_KEY_FILE")
    editor = read_certificate(settings.tls_cert_file, settings.tls_key_file, names=names)
    if settings.console_tls_cert_file is None:
        return EdgeCertificates(editor=editor, console=editor)
    names = ("FLEET_CONSOLE_TLS_CERT_FILE", "FLEET_CONSOLE_TLS_KEY_FILE")
    console = read_certificate(settings.console_tls_cert_file, settings.console_tls_key_file, names=names)
    return EdgeCertificates(editor=editor, console=console)


def certificate_ends(settings: Settings) -> Mapping[str, float]:
    """Return when each origin's certificate ends, in seconds since 1970.

    For processes that need no key, and may not even see the files: what can't be read is left out.
    """
    found = {"editor": settings.tls_cert_file, "console": settings.console_tls_cert_file}
    ends = {}
    for origin, path in found.items():
        if path is not None:
            with contextlib.suppress(ConfigError):
                ends[origin] = _end(_chain(path, _content(path)))
    return ends


def certificate_paths(settings: Settings) -> tuple[Path, ...]:
    """Return the operator's files, whose changes the edge follows."""
    named = (
        *(settings.tls_cert_file, settings.tls_key_file),
        *(settings.console_tls_cert_file, settings.console_tls_key_file),
    )
    return tuple(path for path in named if path is not None)


def stamp(paths: tuple[Path, ...]) -> tuple[object, ...]:
    """Return what is another one once any of the files has been replaced or written."""
    found: list[object] = []
    for path in paths:
        try:
            seen = path.stat()
        except OSError as error:
            found.append(error.errno)
        else:
            found.append((seen.st_ino, seen.st_size, seen.st_mtime_ns))
    return tuple(found)


def read_certificate(
    cert_file: Path, key_file: Path | None, *, names: tuple[str, str] = ("", "FLEET_TLS_KEY_FILE")
) -> Certificate:
    """Read a certificate, its chain and its key.

    Args:
        cert_file: The certificate first, then those that lead to an authority.
        key_file: The key; None: it is in ``cert_file``, too.
        names: The settings that name the two; empty: nothing does.

    Raises:
        ConfigError: A file can't be read, holds none, or the key is another certificate's.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    cert, key_of = (f"{name}: " if name else "" for name in names)
    chain_pem = _content(cert_file, cert)
    chain = _chain(cert_file, chain_pem, cert)
    key_path = key_file or cert_file
    said = key_of if key_file else cert
    key_pem = chain_pem if key_file is None else _content(key_file, said)
    try:
        key = load_pem_private_key(key_pem, password=None)
    except TypeError:
        raise ConfigError(
            f"{said}the key in {key_path} has a password: nobody is there to type it in"
        ) from None
    except ValueError as error:
        more = "" if key_file else f"; if it is in a file of its own, name that: {names[1]}"
        raise ConfigError(f"{said}{key_path} holds no key (PEM){more}") from error
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != chain[0].public_key().public_bytes(*form):
        raise ConfigError(f"{said}the key in {key_path} is not that of the first certificate in {cert_file}")
    pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain)
    pem += key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(
        path=cert_file,
        pem=pem,
        names=_names(chain[0]),
        expires_at=_end(chain),
    )


def expiry_words(expires_at: float, *, now: float) -> str:
    """Return when a certificate ends, for people: ``until 2026-03-01 (in 12 days)``."""
    day = datetime.datetime.fromtimestamp(expires_at, datetime.UTC).date().isoformat()
    days = int((expires_at - now) // 86400)
    if expires_at <= now:
        return f"it ended on {day}"
    return (
        f"until {day} ({'less than a day' if days < 1 else 'in a day' if days == 1 else f'in {days} days'})"
    )


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only this user can ever read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _chain(path: Path, pem: bytes, said: str = "") -> "list[x509.Certificate]":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError(f"{said}{path} holds no certificate (PEM)") from None


def _end(chain: "list[x509.Certificate]") -> float:
    return min(one.not_valid_after_utc for one in chain).timestamp()


def _content(path: Path, said: str = "") -> bytes:
    try:
        with path.open("rb") as file:
            found = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{said}{path} can't be read: {error.strerror}") from error
    if len(found) > _MOST_BYTES:
        raise ConfigError(f"{said}{path} is too large for a certificate")
    return found


def _names(certificate: "x509.Certificate") -> tuple[str, ...]:
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return (
        *found.get_values_for_type(x509.DNSName),
        *map(str, found.get_values_for_type(x509.IPAddress)),
    )
