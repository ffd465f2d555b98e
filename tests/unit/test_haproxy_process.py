"""What HAProxy says becomes lines of our log, if it is news."""

import logging
from pathlib import Path

import pytest

from comfy_fleet.adapters.haproxy.process import HAProxy


@pytest.fixture
def haproxy(tmp_path: Path) -> HAProxy:
    config, control = tmp_path / "broker.cfg", tmp_path / "broker.sock"
    return HAProxy("broker", "haproxy", config, control, reloads=False, on_start=lambda: None)


def said(haproxy: HAProxy, caplog: pytest.LogCaptureFixture, *lines: str) -> list[str]:
    with caplog.at_level(logging.DEBUG):
        for line in lines:
            haproxy.take_line(line)
    return [str(record.__dict__["line"]) for record in caplog.records]


def test_what_it_says_of_its_servers_is_passed_on_as_news(tmp_path: Path) -> None:
    news: list[int] = []
    haproxy = HAProxy(
        "broker",
        "haproxy",
        tmp_path / "broker.cfg",
        tmp_path / "broker.sock",
        reloads=False,
        on_start=lambda: None,
        on_news=lambda: news.append(1),
    )
    for line in ("", '{"client": "a request"}', "Server be_pool_1/g1 remains in forced drain mode."):
        haproxy.take_line(line)
    assert not news
    haproxy.take_line("[WARNING]  (1) : Server be_pool_1/g1 is UP/READY (leaving forced maintenance).")
    assert news == [1]


def test_a_drained_server_is_no_news_at_every_check(
    haproxy: HAProxy, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [
        "Server be_pool_1/g1 enters drain state. 0 active and 0 backup servers left.",
        "[WARNING]  (22838) : CLI : Server be_pool_1/g1 remains in forced drain mode.",
        "Server be_pool_1/g1 remains in forced drain mode.",
        "Server be_pool_1/g1 is UP (leaving forced drain).",
    ]
    assert said(haproxy, caplog, *lines) == [lines[0], lines[3]]
