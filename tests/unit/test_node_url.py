"""What a node's URL may be."""

import pytest

from comfy_fleet.cli.agent import beside
from comfy_fleet.cli.exits import Fail
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.node import Node, Place, parse_place


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
        ("http://h:99999", "no URL"),
        ("http://[::1", "no URL"),
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
def test_a_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadInput, match="user or password") as refused:
        Node(name="a", url=url)
    assert "hunter2" not in f"{refused.value} {refused.value.details}"


def test_what_is_one_comfyui() -> None:
    keys = [
        Node(name="a", url=url).key
        for url in ("http://h:443/x", "https://h/x/", "https://h/y", "https://h", "http://h")
    ]
    assert keys == ["h:443/x", "h:443/x", "h:443/y", "h:443", "h:8188"]


@pytest.mark.parametrize("spec", ["a=https://u:hunter2@h", "a=ftp://u:hunter2@h", "a=u:hunter2@h/x"])
def test_an_agents_option_repeats_no_password(spec: str) -> None:
    with pytest.raises(Fail) as refused:
        beside([spec], {}, {})
    assert "hunter2" not in f"{refused.value.message} {refused.value.hint}"
