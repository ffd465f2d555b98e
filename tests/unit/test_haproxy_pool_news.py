"""A pool that loses its last node is news; one that its operator drained is none."""

from dataclasses import replace

import pytest

from comfy_fleet.adapters.haproxy.pool_news import PoolNews
from comfy_fleet.domain.nodes.node import Node

A, B = (Node(name=name, url=f"http://10.0.0.1:{port}") for name, port in (("a", 1), ("b", 2)))


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    found = [(record.msg, getattr(record, "reason", "")) for record in caplog.records]
    caplog.clear()
    return found


def test_a_pool_without_a_node_is_told_once_and_so_is_its_return(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    news = PoolNews()
    news.tell([(A, "new", "is being added"), (B, "down", "refused")])
    assert told(caplog) == []  # it never had one
    news.tell([(A, "up", ""), (B, "down", "refused")])
    news.tell([(A, "up", ""), (B, "up", "")])
    news.tell([(A, "down", "refused"), (B, "up", "")])
    assert told(caplog) == []
    for _ in range(2):
        news.tell([(A, "down", "refused"), (B, "drain", "its GPU is full")])
    assert told(caplog) == [("pool has no node that is up", "a down: refused; b drain: its GPU is full")]
    for _ in range(2):
        news.tell([(A, "up", ""), (B, "down", "refused")])
    assert told(caplog) == [("runs again", "")]


def test_what_an_operator_ordered_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    news = PoolNews()
    news.tell([(A, "up", ""), (B, "up", "")])
    news.tell(
        [(replace(A, cordoned=True), "drain", "by hand"), (replace(B, cordoned=True), "drain", "by hand")]
    )
    news.tell([])
    assert told(caplog) == []
    news.tell([(A, "up", "")])
    news.tell([])  # all of them removed
    assert told(caplog) == []
