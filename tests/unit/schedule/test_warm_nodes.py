"""Which prompt each idle node runs to be warm."""

from collections import Counter

from comfy_fleet.domain.schedule.warm_nodes import CommonPrompt, spread

NODES = [f"g{number}" for number in range(1, 11)]
ALL = frozenset(NODES)


def prompt(name: str, *files: str, work_s: float = 1.0, able: frozenset[str] = ALL) -> CommonPrompt:
    return CommonPrompt(workflow=name, files=frozenset(files), work_s=work_s, able=able)


def counted(
    *prompts: CommonPrompt, idle: list[str] = NODES, cards: dict[str, str] | None = None
) -> Counter[str]:
    held = {node: frozenset({file}) for node, file in (cards or {}).items()}
    return Counter(one.prompt.workflow for one in spread(prompts, idle, held).values())


def test_each_set_is_on_as_many_nodes_as_its_part_of_the_work() -> None:
    assert counted(prompt("a", "A", work_s=70), prompt("b", "B", work_s=30)) == {"a": 7, "b": 3}


def test_a_rare_set_is_on_one_node_while_there_are_enough() -> None:
    assert counted(prompt("a", "A", work_s=999), prompt("b", "B", work_s=1)) == {"a": 9, "b": 1}
    assert counted(prompt("a", "A", work_s=2), prompt("b", "B"), idle=["g1"]) == {"a": 1}


def test_workflows_with_the_same_models_count_together_and_the_most_common_one_runs() -> None:
    rest = prompt("c", "C", work_s=50)
    assert counted(prompt("a", "A", work_s=30), prompt("b", "A", work_s=20), rest) == {"a": 5, "c": 5}


def test_a_node_that_has_a_set_keeps_it_and_busy_ones_count() -> None:
    prompts = [prompt("a", "A"), prompt("b", "B")]
    plan = spread(prompts, ["g1", "g2"], {"g1": frozenset({"B"}), "g2": frozenset({"X"})})
    assert {node: (one.prompt.workflow, one.loaded) for node, one in plan.items()} == {
        "g1": ("b", True),
        "g2": ("a", False),
    }
    assert counted(*prompts, idle=["g2"], cards={"g1": "A", "g2": "X"}) == {"b": 1}


def test_a_node_gets_only_what_it_can_run_and_those_that_can_run_little_are_asked_first() -> None:
    small = prompt("a", "A", able=frozenset({"g1", "g2"}))
    large = prompt("b", "B", able=frozenset({"g2"}))
    plan = spread([small, large], ["g1", "g2", "g3"], {})
    assert {node: one.prompt.workflow for node, one in plan.items()} == {"g1": "a", "g2": "b"}


def test_prompts_without_models_are_for_nodes_that_can_run_no_other() -> None:
    plain = prompt("plain", work_s=1000)
    some = frozenset({"g1", "g2"})
    assert counted(plain, prompt("a", "A", able=some), idle=["g1", "g2", "g3"]) == {"a": 2, "plain": 1}
    assert counted(plain, idle=["g1"]) == {"plain": 1}
    assert counted(idle=["g1"]) == {}
