"""Made-up fleets: from TOML, from flags, and what is wrong with them."""

import pytest

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.planning.fleet import MAX_NODES, NodeGroup, from_flag, from_toml, planned, rates
from tests.unit.planning.kit import GIB, group

TOML = """
[[nodes]]
count = 2
vram = "24GiB"
ram = "64GiB"
load = "2GiB/s/8GiB/s"
price = 0.79

[[nodes]]
count = 1
vram = "80GiB"
speed = 2.5
pool = "big"
zone = "b"
name = "h100"
"""


def test_groups_of_nodes_come_from_toml() -> None:
    nodes = planned(from_toml(TOML, "fleet.toml"))
    assert [one.node.name for one in nodes] == ["default-24g-1", "default-24g-2", "h100-1"]
    first, _, big = nodes
    assert (first.node.vram_bytes, first.node.ram_bytes, first.price) == (24 * GIB, 64 * GIB, 0.79)
    assert (big.pool, big.node.zone, big.node.speed, big.node.places) == ("big", "b", 2.5, frozenset({"big"}))


def test_a_flag_says_the_same() -> None:
    usual = NodeGroup(ram=32 * GIB, price=0.5)
    assert from_flag("8x24GiB", usual) == NodeGroup(count=8, vram=24 * GIB, ram=32 * GIB, price=0.5)
    assert from_flag("1x80gib, speed=2.5, pool=big, price=3, load=1GiB/s/4GiB/s", usual) == NodeGroup(
        count=1,
        vram=80 * GIB,
        ram=32 * GIB,
        speed=2.5,
        pool="big",
        price=3.0,
        disk_rate=GIB,
        ram_rate=4 * GIB,
    )


def test_a_file_from_disk_goes_through_ram() -> None:
    (node,) = planned([NodeGroup(count=1, disk_rate=2.0 * GIB, ram_rate=8.0 * GIB)])
    assert node.load_s(8 * GIB, from_disk=False) == 1.0
    assert node.load_s(8 * GIB, from_disk=True) == 5.0
    assert 8 * GIB / node.node.disk_rate == pytest.approx(5.0)


def test_rates_are_written_in_a_row() -> None:
    assert rates("500MB/s / 8GiB/s", "load") == (5e8, 8.0 * GIB)


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("8", "--nodes: '8' is not groups such as 8x24GiB"),
        ("x", "--nodes: 'x' is not groups such as 8x24GiB"),
        ("x24GiB", "--nodes: 'x24GiB' is not groups such as 8x24GiB"),
        ("0x24GiB", "--nodes, count: '0' is not a whole number from 1"),
        ("ax24GiB", "--nodes, count: 'a' is not a whole number"),
        ("8x24", "--nodes, vram: '24' is not the size of a card, such as 24GiB"),
        ("8xbig", "--nodes, vram: 'big' is not the size of a card, such as 24GiB"),
        ("8x24GiB,ram", "--nodes: 'ram' is not KEY=VALUE, such as ram=64GiB"),
        ("8x24GiB,cpu=4", "--nodes: cpu is unknown; there are count, vram, ram"),
        ("8x24GiB,speed=0", "--nodes, speed: '0' is not a number from 0.001 to 1000"),
        ("8x24GiB,speed=nan", "--nodes, speed: 'nan' is not a number"),
        ("8x24GiB,load=2GiB/s", "--nodes, load: '2GiB/s' is not two rates"),
        ("8x24GiB,load=0/s/1GiB/s", "--nodes, load: '0' is not a rate of at least 1MiB/s"),
        ("8x24GiB,pool=a b", "--nodes, pool: 'a b' is not a name of 1 to 63 letters"),
        ("8x24GiB,price=-1", "--nodes, price: '-1' is not a number from 0"),
    ],
)
def test_a_wrong_flag_is_explained(flag: str, why: str) -> None:
    with pytest.raises(BadInput) as found:
        from_flag(flag, NodeGroup())
    assert str(found.value).startswith(why)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nodes = [", "f is not TOML"),
        ("", "f needs groups of nodes, each below [[nodes]]"),
        ("nodes = 4", "f needs groups of nodes"),
        ("[fleet]\na = 1", "f: fleet is unknown; groups of nodes stand below [[nodes]]"),
        ("[[nodes]]\nvram = 24", "f, nodes 1, vram: '24' is not the size of a card"),
        ("[[nodes]]\n[[nodes]]\ncount = true", "f, nodes 2, count: 'True' is not a whole number"),
        ("[[nodes]]\nvram = ['24GiB']", "f, nodes 1, vram: "),
    ],
)
def test_a_wrong_file_is_explained(text: str, why: str) -> None:
    with pytest.raises(BadInput) as found:
        from_toml(text, "f")
    assert str(found.value).startswith(why)


def test_a_fleet_has_nodes_but_not_any_number() -> None:
    with pytest.raises(BadInput, match="a fleet has 1 to 100000 nodes, not 0"):
        planned([])
    with pytest.raises(BadInput, match="not 100001"):
        planned([group(MAX_NODES), group(1)])


def test_groups_that_are_called_the_same_count_on() -> None:
    assert [one.node.name for one in planned([group(1), group(2, speed=2.0)])] == [
        "default-24g-1",
        "default-24g-2",
        "default-24g-3",
    ]
