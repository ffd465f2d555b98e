"""Editor tickets: whom they name, and that nobody but the fleet makes or changes one."""

import secrets
from pathlib import Path

import pytest

from comfy_fleet.adapters.system.secret_box import SecretBox
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.services.editor_ticket import EditorTickets

NOW = 1_800_000_000.25
TICKETS = EditorTickets(b"k" * 32)


@pytest.mark.parametrize("name", ["g1", "gpu-1.example.org_0", "a" * 63, "0.1234567890.x"])
def test_a_ticket_names_its_node_until_it_ends(name: str) -> None:
    ticket = TICKETS.sign(name, now=NOW, lifetime_s=60)
    assert TICKETS.node(ticket, now=NOW) == TICKETS.node(ticket, now=NOW + 59) == name
    assert TICKETS.node(ticket, now=NOW + 61) is None


@pytest.mark.parametrize("name", ["", "G1", "a~b", "a b", "-a", "a" * 64, "a\n"])
def test_what_names_no_node_gets_no_ticket(name: str) -> None:
    with pytest.raises(BadInput, match="can't be a node's name"):
        TICKETS.sign(name, now=NOW)


def test_nothing_else_is_a_ticket() -> None:
    good = TICKETS.sign("g1", now=NOW)
    node, expires, mac = good.split("~")
    forged = [
        "",
        "g1",
        f"g2~{expires}~{mac}",
        f"{node}~{int(expires) + 1}~{mac}",
        f"{node}~{expires}~{'0' * 64}",
        f"{node}~{expires}~{mac.upper()}",
        f"{node}~{expires}~{mac}0",
        f"{node}~{expires}~",
        f" {good}",
        f"{good}~{mac}",
        good.replace("~", "."),
        "x" * 5000,
        EditorTickets(b"l" * 32).sign("g1", now=NOW),
    ]
    assert TICKETS.node(good, now=NOW) == "g1"
    assert [ticket for ticket in forged if TICKETS.node(ticket, now=NOW) is not None] == []


def test_a_name_that_no_node_has_is_none_even_if_it_is_signed() -> None:
    ticket = EditorTickets(TICKETS.key).sign("g1", now=NOW)
    assert "k" * 8 not in repr(TICKETS)
    assert TICKETS.node(ticket.replace("g1", "../g1"), now=NOW) is None


def test_the_key_comes_from_the_fleets_secret_and_does_not_tell_it(tmp_path: Path) -> None:
    one, other = tmp_path / "one.key", tmp_path / "other.key"
    box = SecretBox.open(one)
    tickets = EditorTickets.under(box)
    ticket = tickets.sign("g1", now=NOW)
    assert EditorTickets.under(SecretBox.open(one)).node(ticket, now=NOW) == "g1"
    assert EditorTickets.under(SecretBox.open(other)).node(ticket, now=NOW) is None
    purpose = secrets.token_bytes(8)
    assert len({box.derive(purpose), box.derive(purpose + b"x"), tickets.key}) == 3
    assert len(tickets.key) == 32
