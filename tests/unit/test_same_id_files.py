"""Names of files that become one id, as people are shown them."""

import pytest

from comfy_fleet.domain.graphs.same_id_files import MOST_FILES, same_id_files, told_apart


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["Red Cat.json", "red cat.json"], ["Red Cat.json", "red cat.json"]),
        (["a b.json", "a_b.json"], ["a b.json", "a_b.json"]),
        (["\ufb01g.json", "fig.json"], ["\ufb01g.json (with U+FB01)", "fig.json (ASCII without spaces)"]),
        (["a b.json", "a  b.json"], ["a b.json (with U+0020)", "a  b.json (with U+0020 U+0020)"]),
        (
            ["a\u2764.json", "a\u2764\ufe0f.json"],
            ["a\u2764.json (with U+2764)", "a\u2764\ufe0f.json (with U+2764 U+FE0F)"],
        ),
        (
            ["a", "a" + "\ufe0f" * 9],
            ["a (ASCII without spaces)", "a" + "\ufe0f" * 9 + " (with" + " U+FE0F" * 4 + " …)"],
        ),
    ],
)
def test_names_that_look_alike_are_shown_with_what_differs(names: list[str], shown: list[str]) -> None:
    assert told_apart(names) == shown


def test_a_sentence_names_only_some_of_many_files() -> None:
    said = same_id_files("a", [f"a{'_' * count}.json" for count in range(MOST_FILES + 3)])
    assert said.count(".json") == MOST_FILES and " and 3 more. Give" in said
