"""Guarded calls, with real sockets, and with answers of DNS that lie."""

import asyncio
import gzip
import socket
import ssl
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from comfy_fleet.adapters.outbound import guarded_calls
from comfy_fleet.adapters.outbound.guarded_calls import OutboundHttp, SystemLookup
from comfy_fleet.domain.errors import OutboundFailed, OutboundRefused
from comfy_fleet.domain.outbound import parse_allowed
from comfy_fleet.timeouts import Timeout
from tests.stream_server import StreamServer
from tests.tls_proxy import Authority
from tests.web_site import Sends, Site, page
from tests.web_site import site as serving


@pytest.fixture
async def site() -> AsyncIterator[tuple[Site, int]]:
    async with serving() as made:
        yield made, made.port


class Lookups:
    """A resolver that gives each name's answers one after another, the last one for ever."""

    def __init__(self, **names: list[list[str]]) -> None:
        self._names = {name.replace("_", "."): list(answers) for name, answers in names.items()}
        self.asked: dict[str, int] = defaultdict(int)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked[host] += 1
        answers = self._names.get(host)
        if not answers:
            raise OSError("no such name")
        return answers.pop(0) if len(answers) > 1 else answers[0]


def _calls(
    port: int, lookup: Lookups | None = None, allow: str = "", tls: ssl.SSLContext | None = None
) -> OutboundHttp:
    return OutboundHttp(
        allowed=parse_allowed("FLEET_FETCH_ALLOW", allow or f"127.0.0.1:{port}"),
        purpose="test",
        lookup=lookup or Lookups(),
        tls=tls,
    )


async def _get(
    calls: OutboundHttp, url: str, *, most_bytes: int = 1 << 20, within_s: float = 20
) -> tuple[int, bytes]:
    async with calls.get(url, most_bytes=most_bytes, within_s=within_s) as answer:
        return answer.status, await answer.read()


async def test_an_answer_comes_with_its_status_and_headers(site: tuple[Site, int]) -> None:
    pages, port = site
    pages.pages["/x?a=%20b"] = page(head='ETag: "1"\r\nSet-Cookie: a=b\r\n')
    calls = _calls(port)
    async with calls.get(f"http://127.0.0.1:{port}/x?a=%20b", most_bytes=5, within_s=20) as answer:
        assert (answer.status, answer.headers["etag"], await answer.read()) == (200, '"1"', b"hello")
        assert answer.url == f"http://127.0.0.1:{port}/x?…"
    assert await _get(calls, f"http://127.0.0.1:{port}/other") == (404, b"hello")
    assert "Accept-Encoding: identity" in pages.heads[0]
    assert "Cookie" not in pages.heads[1]


async def test_headers_are_ascii_and_a_body_that_nobody_reads_breaks_no_limit(site: tuple[Site, int]) -> None:
    pages, port = site
    calls = _calls(port)
    for head in ("Content-Encoding: gzip\r\n", ""):
        pages.pages["/x"] = page(bytes(100_000), head=f"ETag: \udcff\r\nX-A: b\r\n{head}")
        async with calls.post(f"http://127.0.0.1:{port}/x", b"{}", most_bytes=10, within_s=20) as answer:
            assert (answer.status, answer.headers["x-a"], answer.headers.get("etag")) == (200, "b", None)
        with pytest.raises(OutboundFailed, match=r"more than 10 bytes|Content-Encoding"):
            await _get(calls, f"http://127.0.0.1:{port}/x", most_bytes=10)


async def test_a_post_follows_no_redirect(site: tuple[Site, int]) -> None:
    pages, port = site
    pages.pages["/hook"] = page(b"", status="307 Moved", head=f"Location: http://127.0.0.1:{port}/b\r\n")
    url = f"http://127.0.0.1:{port}/hook"
    async with _calls(port).post(url, b"{}", headers={"X-Y": "z"}, most_bytes=10, within_s=20) as answer:
        assert answer.status == 307
    assert len(pages.heads) == 1
    assert "X-Y: z" in pages.heads[0]
    assert pages.bodies == [b"{}"]


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["::ffff:127.0.0.1"],
        ["::1"],
        ["64:ff9b::7f00:1"],
        ["0.0.0.0"],
    ],
)
async def test_a_name_that_leads_inside_is_refused_unheard(
    site: tuple[Site, int], answers: list[str]
) -> None:
    pages, port = site
    calls = _calls(port, Lookups(evil_test=[answers]), allow="nothing.else")
    with pytest.raises(OutboundRefused, match="not public") as refused:
        await _get(calls, f"http://evil.test:{port}/?secret=1")
    assert not any(text in str(refused.value) for text in ("secret", *answers))
    assert pages.heads == []


async def test_a_name_is_looked_up_once_and_the_checked_address_is_called(site: tuple[Site, int]) -> None:
    """Rebinding: the first answer may be called, the second leads elsewhere."""
    pages, port = site
    pages.pages["/"] = page()
    lookup = Lookups(evil_test=[["127.0.0.1"], ["127.0.0.2"]])
    assert await _get(_calls(port, lookup), f"http://evil.test:{port}/") == (200, b"hello")
    assert lookup.asked == {"evil.test": 1}
    assert f"Host: evil.test:{port}" in pages.heads[0]


async def test_redirects_are_checked_anew(site: tuple[Site, int], caplog: pytest.LogCaptureFixture) -> None:
    pages, port = site
    inside = {
        "/name": f"http://evil.test:{port}/",
        "/address": f"http://[::1]:{port}/",
        "/metadata": "http://169.254.169.254/latest/",
        "/file": "file:///etc/passwd",
        "/user": f"http://a:b@127.0.0.1:{port}/",
    }
    lookup = Lookups(evil_test=[["127.0.0.3"]])
    calls = _calls(port, lookup)
    for path, location in inside.items():
        pages.pages[path] = page(b"", status="302 Found", head=f"Location: {location}\r\n")
        with pytest.raises(OutboundRefused):
            await _get(calls, f"http://127.0.0.1:{port}{path}")
    assert len(pages.heads) == len(inside)
    assert "leads to 127.0.0.3" in caplog.text


async def test_redirects_are_followed_but_not_for_ever(site: tuple[Site, int]) -> None:
    pages, port = site
    pages.pages["/a"] = page(b"", status="302 Found", head=f"Location: http://shop.test:{port}/b\r\n")
    pages.pages["/b"] = page()
    pages.pages["/loop"] = page(b"", status="302 Found", head="Location: /loop\r\n")
    calls = _calls(port, Lookups(shop_test=[["127.0.0.1"]]))
    async with calls.get(
        f"http://127.0.0.1:{port}/a",
        headers={"Authorization": "secret", "If-None-Match": '"1"'},
        most_bytes=10,
        within_s=20,
    ) as answer:
        assert await answer.read() == b"hello"
        assert answer.url == f"http://shop.test:{port}/b"
    assert ["secret" in head for head in pages.heads] == [True, False]
    assert all('If-None-Match: "1"' in head for head in pages.heads)
    with pytest.raises(OutboundFailed, match="more than 5"):
        await _get(calls, f"http://127.0.0.1:{port}/loop")


async def _endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


async def _trickle(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def _silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def _interim(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()


async def _cut(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()


async def _garbage(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("sends", "why"),
    [
        (_endless, "more than 1 MiB"),
        (page(b"", head="Content-Length: 99999999999\r\n"), "HTTP|more than"),
        (page(gzip.compress(bytes(1000)), head="Content-Encoding: gzip\r\n"), "Content-Encoding 'gzip'"),
        (_trickle, "took more than 0.5 s"),
        (_silence, "took more than 0.5 s"),
        (_interim, "HTTP"),
        (_cut, "broke the connection off"),
        (_garbage, "not HTTP"),
    ],
)
async def test_answers_have_limits(site: tuple[Site, int], sends: Sends, why: str) -> None:
    pages, port = site
    pages.pages["/"] = sends
    within_s = 0.5 if sends in (_trickle, _silence) else 30
    with pytest.raises(OutboundFailed, match=why):
        await _get(_calls(port), f"http://127.0.0.1:{port}/", within_s=within_s)


async def test_who_takes_an_answer_gets_their_own_errors_back(site: tuple[Site, int]) -> None:
    pages, port = site
    pages.pages["/"] = page()
    for error in (OSError("disk"), ValueError("x"), TimeoutError("y")):
        with pytest.raises(type(error)) as raised:
            async with _calls(port).get(f"http://127.0.0.1:{port}/", most_bytes=10, within_s=20):
                raise error
        assert raised.value is error


async def test_nobody_answers() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with pytest.raises(OutboundFailed, match="accepts no connection"):
            await _get(_calls(port), f"http://127.0.0.1:{port}/")
    with pytest.raises(OutboundFailed, match="without an address"):
        await _get(_calls(port), "http://nobody.test/")


async def test_proxies_and_passwords_of_the_environment_are_not_used(
    site: tuple[Site, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pages, port = site
    pages.pages["/"] = page()
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ada password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert await _get(_calls(port), f"http://127.0.0.1:{port}/") == (200, b"hello")
    assert "uthorization" not in pages.heads[0]


async def test_certificates_are_checked_by_name(tmp_path: Path) -> None:
    pages = Site()
    pages.pages["/"] = page()
    authority = Authority(tmp_path)
    trusting = ssl.create_default_context(cafile=str(authority.file))
    async with StreamServer(pages.serve, context=authority.context("shop.test")) as server:
        port = server.port
        lookup = Lookups(shop_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])
        calls = _calls(port, lookup, tls=trusting)
        assert await _get(calls, f"https://shop.test:{port}/") == (200, b"hello")
        for url, asks in (("https://other.test", calls), ("https://shop.test", _calls(port, lookup))):
            with pytest.raises(OutboundFailed, match="certificate"):
                await _get(asks, f"{url}:{port}/")


async def test_names_whose_servers_never_answer_keep_others_from_nothing(
    site: tuple[Site, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def resolved(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        if host.startswith("mute"):
            over.wait(60)
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    pages, port = site
    pages.pages["/"] = page()
    calls = OutboundHttp(allowed=parse_allowed("FLEET_FETCH_ALLOW", "*.test"), purpose="test")
    try:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", resolved)
            patched.setattr(guarded_calls, "LOOKUP_S", 0.2)
            for number in range(
                4
            ):  # as many at a time as one owner has places, for as long as a lookup may take
                asked = (_get(calls, f"http://mute{number}{one}.test/") for one in range(8))
                found = await asyncio.gather(*asked, return_exceptions=True)
                assert all("not found within" in str(one) for one in found)
            patched.setattr(guarded_calls, "LOOKUP_S", 20.0)
            assert await _get(calls, f"http://shop.test:{port}/") == (200, b"hello")
    finally:
        over.set()
        calls.close()


async def test_the_machine_resolves_names_in_threads_of_its_own() -> None:
    lookup = SystemLookup()
    try:
        async with Timeout(30):
            assert {ip_address(text).is_loopback for text in await lookup("localhost", 80)} == {True}
            with pytest.raises(socket.gaierror):
                await lookup("nobody.invalid", 80)
    finally:
        lookup.close()
