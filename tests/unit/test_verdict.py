"""May a node get new jobs?"""

from dataclasses import replace

from comfy_fleet.domain.node import Node
from comfy_fleet.domain.verdict import Facts, Verdict, Word, verdict

NODE = Node(name="g1", url="http://h:1", weight=40)
FRESH = Facts(age_s=0.0, grace_s=10.0)
OLD = Facts(age_s=10.1, grace_s=10.0)


def test_a_node_without_a_cordon_is_ready_with_its_weight() -> None:
    assert verdict(NODE, FRESH) == Verdict(word=Word.READY, weight=40)
    assert verdict(NODE, replace(FRESH, age_s=10.0)).word is Word.READY


def test_a_cordon_drains_however_old_it_is() -> None:
    out = replace(NODE, cordoned=True, cordon_reason="fans")
    assert verdict(out, FRESH) == Verdict(word=Word.DRAIN, why="fans")
    assert verdict(out, OLD).word is Word.DRAIN
    assert verdict(replace(out, cordon_reason=""), FRESH).why == "cordoned"


def test_old_knowledge_neither_gives_nor_takes() -> None:
    told = verdict(NODE, OLD)
    assert told.word is Word.HOLD
    assert "10 s" in told.why
