"""Which URLs of clients' the fleet may call."""

from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from comfy_fleet.domain.errors import ConfigError, OutboundRefused
from comfy_fleet.domain.outbound import (
    MAX_URL,
    AllowedHosts,
    checked_addresses,
    is_public,
    parse_allowed,
    parse_target,
)


@pytest.mark.parametrize(
    ("url", "meant", "host", "port"),
    [
        (
            "https://Images.Shop.test/a b".replace(" ", "%20"),
            "https://images.shop.test/a%20b",
            "images.shop.test",
            443,
        ),
        ("http://shop.test", "http://shop.test/", "shop.test", 80),
        ("http://shop.test:80/x#part", "http://shop.test/x", "shop.test", 80),
        ("https://shop.test.:8443/?a=1&b=%2F", "https://shop.test:8443/?a=1&b=%2F", "shop.test", 8443),
        (
            "https://bücher.test/ü?q=ö",
            "https://xn--bcher-kva.test/%C3%BC?q=%C3%B6",
            "xn--bcher-kva.test",
            443,
        ),
        ("http://８.8.8.8/", "http://8.8.8.8/", "8.8.8.8", 80),
        ("http://[2600::1]:81/", "http://[2600::1]:81/", "2600::1", 81),
        ("http://my_bucket.s3.test/", "http://my_bucket.s3.test/", "my_bucket.s3.test", 80),
    ],
)
def test_a_url_is_taken_apart_once(url: str, meant: str, host: str, port: int) -> None:
    target = parse_target(url)
    assert (target.url, target.host, target.port) == (meant, host, port)
    assert parse_target(target.url) == target


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://shop.test/", "neither http"),
        ("file:///etc/passwd", "neither http"),
        ("//shop.test/", "neither http"),
        ("", "neither http"),
        ("http://ada:secret@shop.test/", "user or password"),
        ("http://@127.0.0.1/", "user or password"),
        ("http://127.0.0.1\\@shop.test/", "backslashes"),
        ("http://shop.test\t/", "blanks"),
        ("http://shop.test/a b", "blanks"),
        ("http://shop.test/\r\nX: y", "blanks"),
        ("http:///x", "names no host"),
        ("http://../", "names no host"),
        ("http://%31%32%37.0.0.1/", "names no host"),
        ("http://shop.test:0/", "port 0"),
        ("http://shop.test:99999/", "not a URL"),
        ("http://[::1/", "not a URL"),
        ("http://[fe80::1%25eth0]/", "names"),
        ("http://127.1/", "four decimal"),
        ("http://2130706433/", "four decimal"),
        ("http://0x7f000001/", "four decimal"),
        ("http://0x7f.0.0.1/", "four decimal"),
        ("http://0177.0.0.1/", "four decimal"),
        ("http://127.0.0.1.:80:80/", "not a URL"),
        ("http://shop.test/" + "a" * MAX_URL, "longer"),
    ],
)
def test_what_is_no_plain_url_is_refused(url: str, why: str) -> None:
    with pytest.raises(OutboundRefused, match=why) as refused:
        parse_target(url)
    assert "secret" not in str(refused.value)


@given(st.text(max_size=60), st.sampled_from(["http://", "https://[", "http:", "HTTP://x@"]))
@example("١.test/", "http://")
def test_any_text_is_taken_apart_or_refused(text: str, scheme: str) -> None:
    try:
        target = parse_target(scheme + text)
    except OutboundRefused:
        return
    assert target.url.isascii()
    assert parse_target(target.url) == target


NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.9.9.9"),
    *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.168.1.1", "198.18.0.1"),
    *("192.0.2.1", "192.88.99.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250"),
    *("240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1"),
    *(
        "64:ff9b::7f00:1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2002:0a00:0001::1",
    ),
    *("2001:0:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:20::1", "2001:db8::1", "3fff::1"),
    *("fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "100::1", "5f00::1", "fe80::1%1"),
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(ip_address(address))


def _passes(url: str, *addresses: str, allow: str = "") -> bool:
    try:
        checked_addresses(parse_target(url), map(ip_address, addresses), parse_allowed("A", allow))
    except OutboundRefused:
        return False
    return True


def test_one_private_address_spoils_the_others() -> None:
    assert _passes("http://shop.test/", "8.8.8.8", "2606:4700::1111")
    assert not _passes("http://shop.test/", "8.8.8.8", "10.0.0.1")
    assert _passes("http://shop.test/", "8.8.8.8", "10.0.0.1", allow="10.0.0.0/24")


def test_low_ports_are_for_other_services() -> None:
    assert _passes("https://shop.test:8443/", "8.8.8.8")
    assert not _passes("http://shop.test:25/", "8.8.8.8")
    assert _passes("http://shop.test:25/", "8.8.8.8", allow="shop.test:25")


@pytest.mark.parametrize(
    ("allow", "url", "address", "passes"),
    [
        ("nas.lan", "http://nas.lan/", "192.168.1.2", True),
        ("NAS.lan", "http://nas.LAN./", "192.168.1.2", True),
        ("nas.lan", "http://evil-nas.lan/", "192.168.1.2", False),
        ("nas.lan:8080", "http://nas.lan:8080/", "192.168.1.2", True),
        ("nas.lan:8080", "http://nas.lan/", "192.168.1.2", False),
        ("*.lan", "http://a.b.lan/", "192.168.1.2", True),
        ("*.lan", "http://lan/", "192.168.1.2", False),
        ("*.lan", "http://evillan/", "192.168.1.2", False),
        ("127.0.0.1:8000", "http://127.0.0.1:8000/", "127.0.0.1", True),
        ("127.0.0.1:8000", "http://[::ffff:127.0.0.1]:8000/", "::ffff:127.0.0.1", True),
        ("127.0.0.1:8000", "http://127.0.0.1:8001/", "127.0.0.1", False),
        ("fd00::/8", "http://[fd00::1]/", "fd00::1", True),
        ("[fd00::]:80", "http://[fd00::]/", "fd00::", True),
        ("10.0.0.0/8", "http://shop.test/", "11.0.0.1", True),
        ("10.0.0.0/8, 192.168.0.0/16", "http://shop.test/", "192.168.7.7", True),
    ],
)
def test_what_an_operator_allows(allow: str, url: str, address: str, passes: bool) -> None:
    assert _passes(url, address, allow=allow) is passes


@pytest.mark.parametrize(
    "entry", ["http://nas.lan", "nas.lan:0", "nas.lan:99999", "10.0.0.1/8", "a b", "*", "::1:x", "1.2"]
)
def test_an_entry_that_is_no_host_is_named(entry: str) -> None:
    with pytest.raises(ConfigError, match="FLEET_FETCH_ALLOW"):
        parse_allowed("FLEET_FETCH_ALLOW", entry)


def test_nothing_is_allowed_by_an_empty_list() -> None:
    assert parse_allowed("A", " , ") == AllowedHosts()


def test_redirects_are_checked_as_the_first_url() -> None:
    target = parse_target("https://shop.test/a/b?token=secret")
    assert target.redirected("../c").url == "https://shop.test/c"
    assert target.redirected("//cdn.test/x").url == "https://cdn.test/x"
    for location in (
        "http://shop.test/",
        "file:///etc/passwd",
        "https://u:p@shop.test/",
        "https://127.1/",
        "https://[/",
    ):
        with pytest.raises(OutboundRefused) as refused:
            target.redirected(location)
        assert "https://shop.test/a/b?… redirects" in str(refused.value)
