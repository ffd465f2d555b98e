"""Rendering: only checked names get in, and what is missing is told."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.haproxy.config_render import (
    Rendered,
    files,
    quoted,
    quoted_arg,
    read_templates,
    render,
)
from comfy_fleet.adapters.haproxy.server_lines import entries_of, parse_map, pools_of
from comfy_fleet.domain.errors import BadInput, ConfigError
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.settings import Settings, packaged


def make(folder: Path, **more: Any) -> Settings:
    return Settings(data=folder, **more)


def node(name: str = "g1", **more: Any) -> Node:
    return Node(name=name, url=more.pop("url", "http://10.0.0.1:8188"), **more)


def one(folder: Path, *nodes: Node, **more: Any) -> Rendered:
    settings = make(folder, **more)
    return render(settings, nodes, pools_of(nodes, {}, slots=settings.pool_slots))


def forged(**fields: str) -> Node:
    """A node that went around the domain's own checks, as a bug or a stranger's record might."""
    made = node()
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def test_every_server_starts_disabled_and_has_one_slot(tmp_path: Path) -> None:
    text = one(tmp_path, node(), node("g2", pool="video")).broker
    lease = [line.split() for line in text.splitlines() if "maxconn 1 " in line]
    assert [words[1] for words in lease] == ["g1", "g2"]
    for words in lease:
        assert words[-1] == "disabled"
        assert words[words.index("weight") + 1] == "100"
        assert words[words.index("agent-send") + 1] == f"{words[1]}/"
    direct = text[text.index("backend be_direct") : text.index("backend be_pool_1")]
    assert direct.count(" weight 0 ") == 2
    assert "maxconn" not in direct


def test_the_broker_has_one_thread_and_is_never_cut_short(tmp_path: Path) -> None:
    rendered = one(tmp_path)
    assert re.search(r"^    nbthread 1$", rendered.broker, re.MULTILINE)
    assert "hard-stop-after" not in rendered.broker
    assert "server-state-file" not in rendered.broker
    assert rendered.broker.count("timeout tunnel 20s") == 16
    assert rendered.broker.count("{ be_conn_free le 0 }") == 32


def test_pools_stand_in_the_map(tmp_path: Path) -> None:
    rendered = one(tmp_path, node(), node("g2", pool="video"))
    assert rendered.pools == "default be_pool_1\nvideo be_pool_2\n"
    assert parse_map(rendered.pools) == {"default": 1, "video": 2}


@pytest.mark.parametrize("text", ["video", "video be_other", "video be_pool_x", "a b c"])
def test_a_strange_map_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="pool map"):
        parse_map(text)


@pytest.mark.parametrize(
    "value",
    ["g1\n    server evil 1.2.3.4:80", "g1 disabled", "g1#", 'g"1', "", "../g1", "g1/x", "g1\x00", "Ä"],
)
@pytest.mark.parametrize("what", ["name", "pool"])
def test_no_name_can_inject_anything(tmp_path: Path, what: str, value: str) -> None:
    with pytest.raises(BadInput):
        one(tmp_path, forged(**{what: value}))


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("url", "http://h:1 maxconn 0"),
        ("url", "http://h\n:1"),
        ("url", "https://h:1/a b"),
        ("url", "https://h:1/a\nserver x"),
        ("url", "http://h:1/x,y"),
        ("url", "http://h:1/x|y"),
        ("url", "http://h:1/%2e%2e"),
        ("url", "http://h:1/a/../b"),
        ("agent", "h:1 disabled"),
        ("agent", "h:1\n"),
        ("agent", "h#:1"),
    ],
)
def test_no_address_can_inject_anything(tmp_path: Path, what: str, value: str) -> None:
    with pytest.raises(BadInput):
        one(tmp_path, forged(**{what: value}))


def test_unresolved_names_are_left_out_if_addresses_are_given(tmp_path: Path) -> None:
    nodes = [node(url="http://alpha:1"), node("g2", url="http://beta:1"), node("g3", agent="gamma:1")]
    rendered = render(
        make(tmp_path), nodes, {"default": 1}, addresses={"alpha": "10.0.0.9", "127.0.0.1": "127.0.0.1"}
    )
    assert re.findall(r"server (\S+ \S+) check", rendered.broker) == ["g1 10.0.0.9:1"]
    assert "server g2 beta:1" in render(make(tmp_path), nodes, {"default": 1}).broker


def test_a_template_that_names_something_unknown_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    shutil.copytree(packaged("haproxy"), folder)
    with (folder / "edge.cfg.j2").open("a") as file:
        file.write("{{ no_such_thing }}\n")
    with pytest.raises(ConfigError, match="no_such_thing"):
        one(tmp_path, haproxy=folder)
    with pytest.raises(ConfigError, match="unset FLEET_HAPROXY"):
        one(tmp_path, haproxy=tmp_path / "nowhere")
    settings, shipped = make(tmp_path), read_templates(packaged("haproxy"))
    newer = {**shipped, "edge.cfg.j2": "{{ no_such_thing }}"}
    with pytest.raises(ConfigError, match="upgraded while it ran, restart it"):
        render(settings, [], {}, templates=newer)
    assert render(settings, [], {}, templates=shipped) == render(settings, [], {})


def test_paths_are_quoted_or_refused(tmp_path: Path) -> None:
    assert quoted('a b$"\\') == '"a b\\$\\"\\\\"'
    with pytest.raises(ConfigError):
        quoted("a\nb")
    assert quoted_arg("/tmp/a-b_c.map") == "/tmp/a-b_c.map"
    for bad in ("a b", "a,b", "a)b", "a'b", "a\nb"):
        with pytest.raises(ConfigError, match="FLEET_DATA"):
            quoted_arg(bad)
    with pytest.raises(ConfigError, match="too long"):
        files(make(tmp_path / ("x" * 80)))


def test_the_edge_has_no_apostrophe_that_ends_its_bodies(tmp_path: Path) -> None:
    text = one(tmp_path, rate_limit=5).edge
    bodies = [line.split(" string '", 1)[1] for line in text.splitlines() if " string '" in line]
    assert len(bodies) > 3
    assert {body.count("'") for body in bodies} == {1}


def test_the_rate_limit_is_off_unless_set(tmp_path: Path) -> None:
    assert "stick-table" not in one(tmp_path).edge
    assert "gt 7 " in one(tmp_path, rate_limit=7).edge
    assert "sc1_conn_cur gt 9 " in one(tmp_path, connection_limit=9).edge


# ---- slots ---------------------------------------------------------------------------------------------


def test_pools_keep_their_slots() -> None:
    first = pools_of([node(pool="b")], {}, slots=3)
    assert first == {"b": 1}
    second = pools_of([node(pool="a"), node("g2", pool="b")], first, slots=3)
    assert second == {"a": 2, "b": 1}
    assert pools_of([], second, slots=3) == second


def test_idle_pools_give_their_slot_away_only_when_it_is_needed() -> None:
    have = {"old": 1, "b": 2}
    assert pools_of([node(pool="b"), node("g2", pool="new")], have, slots=2) == {"new": 1, "b": 2}


def test_pools_beyond_the_slots_are_missing_and_so_are_their_nodes() -> None:
    nodes = [node("g1", pool="a"), node("g2", pool="b"), node("g3", pool="c")]
    pools = pools_of(nodes, {}, slots=2)
    assert pools == {"a": 1, "b": 2}
    assert [entry.name for entry in entries_of(nodes, pools, agent=("h", 1))] == ["g1", "g2"]


def test_a_slot_that_no_longer_exists_is_given_anew() -> None:
    assert pools_of([node(pool="a")], {"a": 9}, slots=2) == {"a": 1}


def test_a_node_may_have_an_agent_of_its_own() -> None:
    nodes = [replace(node(), agent="10.0.0.7:9"), node("g2")]
    found = entries_of(nodes, {"default": 1}, agent=("127.0.0.1", 8193))
    assert [(entry.agent_host, entry.agent_port) for entry in found] == [("10.0.0.7", 9), ("127.0.0.1", 8193)]
