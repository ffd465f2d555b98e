"""Whom a client trusts to say who a server is."""

import re
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from comfy_fleet.domain.errors import ConfigError

_FIRST = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def authorities(url: str, *, ca_file: Path | None = None, own: Path | None = None) -> ssl.SSLContext | bool:
    """Return what httpx checks certificates with (its ``verify``), for a client of one server.

    To load the certificate authorities takes 30 ms of CPU, as much as all else that a command does with the
    answer; a client of ``http://`` that follows no redirect never uses them. It gets a context that trusts
    nobody.

    Args:
        url: The server's.
        ca_file: Trust the certificates in this file (PEM) instead of the public authorities.
        own: The file (PEM) of the server's certificate, if it is known: exactly that one is trusted, whatever
            name it is for. It comes before ``ca_file``.

    Raises:
        ConfigError: A file holds no certificate, or can't be read.
    """
    if urlsplit(url).scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if (file := own or ca_file) is None:
        return True
    try:
        text = file.read_text(encoding="ascii", errors="replace")
        if own is None:
            return ssl.create_default_context(cadata=text)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # The first alone: who has signed it has signed others', too.
        first = _FIRST.search(text)
        context.load_verify_locations(cadata=first[0] if first else "")
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"{file} holds no certificate (PEM)") from None
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror}") from error
    return context
