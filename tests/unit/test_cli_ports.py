"""Ports: free ones from the kernel, and who holds a taken one."""

import os
import socket
from pathlib import Path

import pytest

from comfy_fleet.cli.exits import Fail
from comfy_fleet.cli.up import ports


def test_a_listening_port_is_not_free_and_its_holder_is_us() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ports.is_free(port)
        found = ports.holder(port)
        assert found is not None
        assert found.pid == os.getpid()
        assert f"(pid {os.getpid()})" in str(found)
    assert ports.is_free(port)
    assert ports.holder(port) is None


def test_drawn_ports_are_distinct_and_free() -> None:
    drawn = ports.draw(20)
    assert len(set(drawn)) == 20
    assert all(map(ports.is_free, drawn))


def test_kept_ports_are_drawn_by_nobody_else_and_can_be_listened_on() -> None:
    drawn = ports.draw(300)
    with ports.kept(drawn):
        others = set(ports.draw(300)) | set(ports.draw(300)) | set(ports.draw(300))
        assert not others & set(drawn)
        assert ports.is_free(drawn[0])
        with socket.create_server(("127.0.0.1", drawn[0])), ports.kept(drawn[:1]):
            assert not ports.is_free(drawn[0])
    again = {port for _ in range(100) for port in ports.draw(300)}
    assert again & set(drawn)  # without being kept they would have come again


def test_preferred_ports_come_first_unless_they_are_taken() -> None:
    one, two, taken = ports.draw(3)
    with socket.create_server(("127.0.0.1", taken)):
        drawn = ports.draw(3, prefer=[one, taken, one, two])
    assert drawn[:2] == [one, two]
    assert drawn[2] not in (one, two, taken)


def test_a_block_is_consecutive_and_goes_elsewhere_when_one_port_is_taken() -> None:
    block = ports.draw_block(4)
    assert block == list(range(block[0], block[0] + 4))
    with socket.create_server(("127.0.0.1", block[2])):
        other = ports.draw_block(4, prefer=block[0])
    assert block[2] not in other
    assert ports.draw_block(0) == []


def test_an_impossible_block_is_refused() -> None:
    with pytest.raises(Fail, match="free ports in a row"):
        ports.draw_block(70_000)


def test_the_holder_is_named_by_the_script_that_python_runs(tmp_path: Path) -> None:
    for pid, words in (("7", b"/usr/bin/python3\0-m\0http.server\0"), ("8", b"/opt/nginx\0-g\0")):
        (tmp_path / pid / "fd").mkdir(parents=True)
        (tmp_path / pid / "cmdline").write_bytes(words)
        (tmp_path / pid / "fd" / "3").symlink_to(f"socket:[10{pid}]")
    (tmp_path / "net").mkdir()
    row = "  0: 0100007F:{port:04X} 00000000:0000 {state} 0 0 0 0 0 {inode}\n"
    (tmp_path / "net" / "tcp").write_text(
        "header\n"
        + row.format(port=8188, state="0A", inode=107)
        + row.format(port=9000, state="0A", inode=108)
        + row.format(port=9001, state="01", inode=107)
    )
    assert str(ports.holder(8188, tmp_path)) == "python3 http.server (pid 7)"
    assert str(ports.holder(9000, tmp_path)) == "nginx (pid 8)"
    assert ports.holder(9001, tmp_path) is None  # connected, but nobody listens


@pytest.mark.parametrize(
    ("host", "there"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("*", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("::", "::1"),
        ("0::0", "::1"),
        ("10.0.0.7", "10.0.0.7"),
        ("gpu1", "gpu1"),
    ],
)
def test_what_listens_everywhere_is_asked_here(host: str, there: str) -> None:
    assert ports.asked(host) == there
