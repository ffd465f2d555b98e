"""Which public port a fleet takes when others are there already."""

import socket
from collections.abc import Iterator

import pytest

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.up import ports
from comfy_fleet.cli.up.public_port import PublicPort, choose
from comfy_fleet.domain.nodes.node import Node
from tests.conftest import free_port

HERE = "127.0.0.1"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on, with a free one above it."""
    (low, _) = ports.draw_block(2)
    with socket.create_server((HERE, low)):
        yield low


def node(port: int, host: str = HERE) -> Node:
    return Node(name="node-1", url=f"http://{host}:{port}")


def test_a_free_default_is_taken_without_a_word() -> None:
    port = free_port()
    assert choose(port, HERE, named="") == PublicPort(number=port)


def test_a_taken_default_gives_way_to_the_next_free_port(taken: int) -> None:
    chosen = choose(taken, HERE, named="")
    assert chosen.number > taken
    assert ports.is_free(chosen.number)
    assert f"port {taken} is taken by " in chosen.why
    assert f"port {chosen.number}" in chosen.why


@pytest.mark.parametrize("named", ["--port", "FLEET_PORT"])
def test_a_named_port_that_is_taken_is_refused_and_nobody_is_told_to_stop_its_holder(
    taken: int, named: str
) -> None:
    with pytest.raises(Fail, match=f"port {taken} is taken by") as caught:
        choose(taken, HERE, named=named)
    assert caught.value.exit is Exit.REFUSED
    assert "stop" not in str(caught.value.hint)


@pytest.mark.parametrize("host", [HERE, "localhost", "127.0.0.9"])
@pytest.mark.parametrize("runs", [True, False])
def test_a_named_port_that_is_a_nodes_says_so(host: str, runs: bool) -> None:
    port = free_port()
    listening = socket.create_server(("", port)) if runs else socket.socket()
    with listening:
        if host == "127.0.0.9" and not runs:  # another address of this machine, with nothing in the way
            assert choose(port, HERE, named="--port", nodes=[node(port, host)]).number == port
            return
        with pytest.raises(
            Fail, match=rf"--port {port} is the port of --node node-1 \({host}:{port}\)"
        ) as caught:
            choose(port, HERE, named="--port", nodes=[node(port, host)])
    assert caught.value.exit is Exit.USAGE
    assert "stop" not in str(caught.value.hint)


def test_a_fleet_on_all_addresses_meets_every_node_of_this_machine() -> None:
    port = free_port()
    with pytest.raises(Fail, match="is the port of --node"):
        choose(port, "0.0.0.0", named="--port", nodes=[node(port, "127.0.0.9")])


@pytest.mark.parametrize("host", ["192.0.2.7", "no-such-host.invalid"])
def test_a_node_on_another_machine_is_in_nobodys_way(host: str) -> None:
    port = free_port()
    assert choose(port, HERE, named="--port", nodes=[node(port, host)]).number == port
    assert choose(port, HERE, named="", nodes=[node(port, host)]).why == ""


def test_two_fleets_that_start_at_once_take_two_ports() -> None:
    port = free_port()
    with ports.claimed(port):
        other = choose(port, HERE, named="")
        assert other.number > port
        assert f"port {port} is taken by a fleet that starts" in other.why
        with ports.claimed(other.number):
            assert choose(port, HERE, named="").number > other.number
        assert choose(port, HERE, named="--port").number == port
    assert choose(port, HERE, named="").number == port


def test_a_nodes_port_is_left_to_it_also_while_it_is_away() -> None:
    first, second, third = ports.draw_block(3)
    chosen = choose(first, HERE, named="", nodes=[node(first), node(second)])
    assert chosen.number >= third
    assert f"port {first} is that of --node node-1" in chosen.why


def test_the_next_start_keeps_the_port_that_was_taken_instead(taken: int) -> None:
    instead = choose(taken, HERE, named="").number
    again = choose(taken, HERE, named="", kept=instead)
    assert again.number == instead
    assert "stays" in again.why
    assert "--port" not in again.why  # it is not to be had
    free = free_port()
    assert f"--port {free}" in choose(free, HERE, named="", kept=instead).why
    assert choose(free, HERE, named="--port", kept=instead) == PublicPort(number=free)


def test_a_kept_port_that_is_gone_is_not_waited_for(taken: int) -> None:
    free = free_port()
    assert choose(free, HERE, named="", kept=taken) == PublicPort(number=free)
