"""A certificate that nobody has signed but itself, for a first try."""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from comfy_fleet.domain.errors import BadInput

_MOST_NAME = 64  # of a common name
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*\.?")


@dataclass(frozen=True, kw_only=True)
class SelfSigned:
    """A certificate and its key, both as PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


def self_signed(names: Sequence[str], *, days: int, now: float) -> SelfSigned:
    """Make a certificate for host names and addresses.

    Args:
        names: At least one, e.g. ``comfy.example`` or ``192.0.2.7``.
        days: How long it is good.
        now: The time, in seconds since 1970.

    Raises:
        BadInput: A name can't be in a certificate.
    """
    alternatives = [_alternative(name) for name in names]
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:_MOST_NAME])])
    begins = datetime.datetime.fromtimestamp(now, datetime.UTC) - datetime.timedelta(minutes=5)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return SelfSigned(
        certificate=made.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        pass
    try:
        host = name.encode("idna").decode("ascii")
    except ValueError as error:
        raise BadInput(f"{name!r} is no host name: {error}", details={"field": "name"}) from error
    if _HOST.fullmatch(host) is None:  # a URL, or a name with a port: no client would find it in there
        raise BadInput(
            f"{name!r} is no host name: it must look like comfy.example.org or 192.0.2.7",
            details={"field": "name"},
        )
    return x509.DNSName(host)
