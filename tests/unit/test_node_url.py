"""What a node's URL may be."""

import pytest

from comfy_fleet.cli.agent import beside
from comfy_fleet.cli.exits import Fail
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.node import (
    Node,
    Place,
    authorization,
    parse_place,
    split_credentials,
    with_credentials,
)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://h", Place(host="h", port=8188, tls=False, prefix="", authority="h:8188")),
        ("http://[::1]:9/", Place(host="::1", port=9, tls=False, prefix="", authority="[::1]:9")),
        ("https://h.example", Place(host="h.example", port=443, tls=True, prefix="", authority="h.example")),
        (
            "https://h:8443/a/b-1~c/",
            Place(host="h", port=8443, tls=True, prefix="/a/b-1~c", authority="h:8443"),
        ),
        (
            "http://10.0.0.1/x",
            Place(host="10.0.0.1", port=8188, tls=False, prefix="/x", authority="10.0.0.1:8188"),
        ),
    ],
)
def test_a_url_leads_somewhere(url: str, place: Place) -> None:
    assert parse_place(url) == place


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://h", "neither http nor https"),
        ("h:8188", "neither http nor https"),
        ("http://", "no host"),
        ("http://h:99999", "not a URL"),
        ("http://h:0", "port 0"),
        ("https://h:0/x", "port 0"),
        ("http://[::1", "not a URL"),
        ("http://h/a?b", "query"),
        ("http://h/a#", "fragment"),
        ("http://h/a b", "blanks"),
        ("http://h/a\tb", "control"),
        ("http://h/a//b", "path"),
        ("http://h/../b", "path"),
        ("http://h/%41", "path"),
        ("http://h/a;b", "path"),
        ("http://h/a|b", "path"),
        ("http://h/\u00e9", "path"),
        ("https://10.0.0.1", "host name"),
        ("https://[::1]:8443", "host name"),
    ],
)
def test_a_refusal_says_why(url: str, why: str) -> None:
    with pytest.raises(BadInput, match=why) as refused:
        parse_place(url)
    assert refused.value.details["field"] == "url"


@pytest.mark.parametrize(
    "url",
    [
        *("http://u:hunter2@h", "https://hunter2@h/x", "ftp://u:hunter2@h"),
        # Where no host or port can be made out, or the password itself looks like the end of the host.
        *("https://u:hunter2@h:99999/x", "https://u:hunter2@h:80a", "https://u:hunter2@[::1"),
        *("https:/u:hunter2@h", "u:hunter2@h", "https://u:a/hunter2@h", "https://u:a?hunter2@h"),
        *("https://u:a#hunter2@h", "https://u:hunter2 @h", "https://u:hunter2\n@h"),
    ],
)
def test_a_password_in_a_nodes_own_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadInput, match="user and password") as refused:
        Node(name="a", url=url)
    assert "hunter2" not in f"{refused.value} {refused.value.details}"


def test_what_is_one_comfyui() -> None:
    keys = [
        Node(name="a", url=url).key
        for url in ("http://h:443/x", "https://h/x/", "https://h/y", "https://h", "http://h")
    ]
    assert keys == ["h:443/x", "h:443/x", "h:443/y", "h:443", "h:8188"]


@pytest.mark.parametrize(
    ("url", "clean", "credentials"),
    [
        ("http://h:1/x", "http://h:1/x", ""),
        ("https://u:p@h/x", "https://h/x", "u:p"),
        ("https://u@h", "https://h", "u:"),
        ("https://u:@h", "https://h", "u:"),
        ("https://a%40b:%3A%2F%25%20@h", "https://h", "a@b::/% "),
        ("https://u:p@ss:w@rd@h:8443/", "https://h:8443/", "u:p@ss:w@rd"),
        ("https://\u00fc:%C3%A9@h", "https://h", "\u00fc:\u00e9"),
    ],
)
def test_user_and_password_are_split_off(url: str, clean: str, credentials: str) -> None:
    assert split_credentials(url) == (clean, credentials)
    assert split_credentials(with_credentials(clean, credentials)) == (clean, credentials)


def test_the_header_is_that_of_rfc_7617() -> None:
    assert authorization("Aladdin:open sesame") == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert authorization("test:123\u00a3") == "Basic dGVzdDoxMjPCow=="


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://:hunter2@h", "USER:PASSWORD"),
        ("https://@h", "USER:PASSWORD"),
        ("https://u:hunter2%@h", "write % as %25"),
        ("https://u:hunter2%zz@h", "write % as %25"),
        ("https://u:hunter2%ff@h", "UTF-8"),
        ("https://u%3Ab:hunter2@h", "colon"),
        ("https://u:hunter2%0A@h", "control"),
        ("https://u:hunter2\n@h", "control"),
        (f"https://u:hunter2{'x' * 512}@h", "512"),
    ],
)
def test_a_password_that_cannot_be_used_is_not_repeated(url: str, why: str) -> None:
    with pytest.raises(BadInput, match=why) as refused:
        split_credentials(url)
    assert "hunter2" not in f"{refused.value} {refused.value.details}"


@pytest.mark.parametrize(
    ("spec", "url", "credentials", "gpu"),
    [
        ("a=http://10.0.0.7:8188", "http://10.0.0.7:8188", "", None),
        ("a=http://10.0.0.7:8188@1", "http://10.0.0.7:8188", "", "1"),
        ("a=http://10.0.0.7:8188@GPU-1a2b-3c", "http://10.0.0.7:8188", "", "GPU-1a2b-3c"),
        ("a=https://u:p=@h.example/x@MIG-1a", "https://h.example/x", "u:p=", "MIG-1a"),
        ("a=https://u:p@h.example@cpu", "https://h.example", "u:p", "cpu"),
        ("a=https://u:p@0@localhost:1", "https://localhost:1", "u:p@0", None),
    ],
)
def test_an_agents_option(spec: str, url: str, credentials: str, gpu: str | None) -> None:
    (found,) = beside([spec], {}, {})
    assert (found.url, found.credentials, found.gpu) == (url, credentials, gpu)
    assert credentials == "" or credentials not in repr(found)


@pytest.mark.parametrize(
    "spec",
    [
        *("a=https://u:hunter2@h", "a=ftp://u:hunter2@h", "a=u:hunter2@h/x"),
        *("http://u:hunter2=@h.example", "a=http://10.0.0.7:8188@gpu-hunter2".replace("hunter2", "x")),
    ],
)
def test_an_agents_option_repeats_no_password(spec: str) -> None:
    with pytest.raises(Fail) as refused:
        beside([spec], {}, {})
    assert "hunter2" not in f"{refused.value.message} {refused.value.hint}"
