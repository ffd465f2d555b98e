"""Whom a client trusts to say who a server is."""

import ssl
from urllib.parse import urlsplit


def authorities(url: str) -> ssl.SSLContext | bool:
    """Return what httpx checks certificates with (its ``verify``), for a client of one server.

    To load the certificate authorities takes 30 ms of CPU, as much as all else that a command does with the
    answer; a client of ``http://`` that follows no redirect never uses them. It gets a context that trusts
    nobody.
    """
    if urlsplit(url).scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return True
