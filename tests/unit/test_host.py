"""What goes between an agent and the fleet."""

import pytest

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.host import HOST_LABEL, Cleanup, Joining
from comfy_fleet.domain.nodes.node import Node

ID = "0b9f6a4e-2f6c-4c55-9d67-0d7f5f6f9a11"
OTHER = "1c9f6a4e-2f6c-4c55-9d67-0d7f5f6f9a22"


def test_trash_is_read_as_it_is_written() -> None:
    cleanup = Cleanup(node="g1", job=ID, run=OTHER)
    assert Cleanup.parse(str(cleanup)) == cleanup
    strays = (f"preview3d_{'a' * 32}.glb", f"preview3d_{'0' * 32}.usdz")
    cleanup = Cleanup(node="g1", job=ID, run=OTHER, strays=strays)
    assert Cleanup.parse(str(cleanup)) == cleanup


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"g1 {ID}",
        f"g1 {ID} ..",
        f"g1 ../../etc {ID}",
        f"../x {ID} {ID}",
        f"g1 {ID} {ID} {ID}",
        f"g1 {ID}/.. {ID}",
        f"g1 {ID.upper()}X {ID}",
        f"g1  {ID} {ID}",
        f"g1 {ID} {ID}\n",
        f"g1 {ID} {ID} keep.png",
        f"g1 {ID} {ID} ../preview3d_{'a' * 32}.glb",
        f"g1 {ID} {ID} preview3d_{'a' * 31}.glb",
        f"g1 {ID} {ID} preview3d_{'a' * 32}.glb/x",
    ],
)
def test_what_could_name_another_folder_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Cleanup.parse(text)


def test_what_an_operator_set_stays_unless_the_agent_says_otherwise() -> None:
    joining = Joining(name="n", url="http://h:1", agent="h:2", labels={"gpu": "a"})
    new = joining.applied("h", None, now=3.0)
    assert new == Node(
        name="n",
        url="http://h:1",
        agent="h:2",
        labels={"gpu": "a", HOST_LABEL: "h"},
        added_at=3.0,
        weight_by_gpu=True,
    )
    known = Node(name="n", url="http://old:1", pool="p", weight=7, zone="z", labels={"x": "y"}, added_at=1.0)
    kept = joining.applied("h", known, now=3.0)
    assert (kept.pool, kept.weight, kept.zone, kept.added_at) == ("p", 7, "z", 1.0)
    assert kept.labels == {"x": "y", "gpu": "a", HOST_LABEL: "h"}
    set_ = Joining(name="n", url="http://h:1", agent="h:2", pool="q", weight=9, zone="")
    changed = set_.applied("h", known, now=3.0)
    assert (changed.pool, changed.weight, changed.zone) == ("q", 9, "")
    assert not set_.applied("h", None, now=3.0).weight_by_gpu


def test_an_agent_without_a_word_about_the_editor_keeps_the_registrys() -> None:
    known = Node(name="n", url="http://h:1", editor=True)
    silent = Joining(name="n", url="http://h:1", agent="h:2")
    assert silent.applied("h", known, now=3.0).editor is True
    assert silent.applied("h", None, now=3.0).editor is None
    never = Joining(name="n", url="http://h:1", agent="h:2", editor=False)
    assert never.applied("h", known, now=3.0).editor is False
