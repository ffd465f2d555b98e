"""Paths that may be passed on to a node."""

import pytest

from comfy_fleet.domain.node_paths import plain


@pytest.mark.parametrize(
    "path", ["/a", "/extensions/Pack%20A/js/x.y.js", "/chooser/", "/a/.hidden", "/a/..b", "/~x/@y/%25%32"]
)
def test_plain_paths_are_passed_on(path: str) -> None:
    assert plain(path)


@pytest.mark.parametrize(
    "path",
    ["", "a", "/", "//a", "/a//b", "/a/../b", "/a/..", "/./a", "/a/.", "/a\\b", "/a%2fb", "/%2e%2e/a",
     "/a%5Cb", "/a%00", "/a b", "/a?b", "/a#b", "/a\n", "/é", "/%zz", "/" + "a" * 2000, "http://x/y"],
)  # fmt: skip
def test_what_could_mean_another_path_is_not(path: str) -> None:
    assert not plain(path)
