"""The order in which nodes are asked for."""

from random import Random

from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes.node import Node, NodeState
from comfy_fleet.domain.nodes.node_order import FASTER, ByShare, Nodes
from comfy_fleet.domain.nodes.weights import drawn

ANY = Placement()


def nodes(**weights: int) -> Nodes:
    return {
        name: NodeState(node=Node(name=name, url=f"http://{name}:1", weight=weight))
        for name, weight in weights.items()
    }


def test_nodes_are_drawn_by_their_shares() -> None:
    able = nodes(a=100, b=50, c=7)
    shares = {name: state.node.share for name, state in able.items()}
    for seed in range(20):
        assert ByShare(Random(seed).random).preferred(ANY, able) == drawn(shares, Random(seed).random)


def test_only_nodes_that_are_much_faster_are_better() -> None:
    able = nodes(slow=10, nearly=int(FASTER * 10) - 1, twice=int(FASTER * 10), fast=100)
    for seed in range(20):
        order = ByShare(Random(seed).random)
        assert order.better(ANY, "slow", [("p", able)]) == {"p": ["fast", "twice"]}
        assert order.better(ANY, "twice", [("p", able)]) == {"p": ["fast"]}
        assert order.better(ANY, "fast", [("p", able)]) == {"p": []}


def test_every_node_of_an_earlier_pool_is_better_than_one_of_a_later() -> None:
    first, second, last = nodes(weak=1, strong=9), nodes(other=5), nodes(slow=10, fast=100)
    better = ByShare(Random(1).random).better(ANY, "slow", [("1", first), ("2", second), ("3", last)])
    assert list(better.items()) == [("1", ["strong", "weak"]), ("2", ["other"]), ("3", ["fast"])]


def test_nodes_that_are_alike_take_turns() -> None:
    able = nodes(slow=1, a=100, b=100)
    order = ByShare(Random(1).random)
    firsts = {order.better(ANY, "slow", [("p", able)])["p"][0] for _ in range(50)}
    assert firsts == {"a", "b"}


def test_of_a_node_that_was_added_just_now_nothing_is_known() -> None:
    better = ByShare(Random(1).random).better(ANY, "new", [("1", nodes(a=1)), ("2", nodes(b=9))])
    assert better == {"1": ["a"]}
