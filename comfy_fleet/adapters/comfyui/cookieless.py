"""HTTP clients for nodes: what one sets as a cookie is neither kept nor sent again, to it or to another."""

from http.cookiejar import DefaultCookiePolicy

import httpx


def cookieless(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """Return the client, which from now on takes and sends no cookies."""
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
    return client
