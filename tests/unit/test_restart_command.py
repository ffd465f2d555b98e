"""Commands that restart ComfyUIs which something else starts."""

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as ws_serve

from comfy_fleet.agent.commanded_process import CommandedProcess, RestartTemplate
from comfy_fleet.agent.websocket_monitor import WebsocketMonitor
from comfy_fleet.cli.agent import beside
from comfy_fleet.cli.exits import Fail
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.process_supervision import RestartLimits

NODES = ("g0=http://127.0.0.1:1@0", "g1=http://127.0.0.1:2@1")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("true 'x", "No closing quotation"),
        ("true {host}", "'{host}'"),
        ("true {name", "'{'"),
        ("true {}", "'{}'"),
        ("{name}", "program itself"),
        ("no-such-program-here {name}", "no program 'no-such-program-here'"),
    ],
)
def test_a_command_that_could_not_work_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RestartTemplate.parse(text)
    assert why in str(refused.value)
    assert "--restart-command" in str(refused.value)


def test_a_name_is_filled_in_as_one_word() -> None:
    made = RestartTemplate.parse("true 'comfyui@{name}' \"a b\" $HOME;x")
    assert made.argv("g0") == ("true", "comfyui@g0", "a b", "$HOME;x")


def test_one_for_all_and_one_for_a_node() -> None:
    found = beside(NODES, {}, {}, ["true {name}", "g1=false x"])
    assert {one.name: one.restart for one in found} == {"g0": ("true", "g0"), "g1": ("false", "x")}
    assert [one.restart for one in beside(NODES, {}, {})] == [(), ()]


@pytest.mark.parametrize(
    ("nodes", "commands", "why"),
    [
        ((), ["true {name}"], "there is none"),
        (NODES, ["true"], "would restart the same for g0, g1"),
        (NODES, ["g7=true"], "no --node is called g7"),
        (NODES, ["true {name}", "false {name}"], "twice"),
        (NODES, ["g0=true", "g0=false"], "twice for g0"),
    ],
)
def test_commands_that_fit_no_node_are_refused(nodes: tuple[str, ...], commands: list[str], why: str) -> None:
    with pytest.raises(Fail) as refused:
        beside(nodes, {}, {}, commands)
    assert why in str(refused.value)


def _process(*argv: str, limit_s: float = 60.0) -> CommandedProcess:
    return CommandedProcess("g0", argv, "http://127.0.0.1:1", limit_s=limit_s, clock=time.monotonic)


async def test_nothing_is_run_before_a_restart_was_decided_on(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    process = _process("touch", str(ran))
    await process.start()
    assert (ran.exists(), process.running) == (False, True)
    await process.stop()
    assert not process.running
    await process.start()
    assert (ran.exists(), process.running) == (True, True)


@pytest.mark.parametrize(
    ("code", "limit_s", "why"),
    [
        ("print('first'); print('last word'); print(); exit(3)", 60.0, "failed with 3: last word"),
        ("import time; time.sleep(600)", 0.2, "took longer than 0.2 s"),
        ("import os; os.kill(os.getpid(), 9)", 60.0, "was ended by signal 9"),
    ],
)
async def test_a_failed_command_is_told_and_run_again(code: str, limit_s: float, why: str) -> None:
    process = _process(sys.executable, "-c", code, limit_s=limit_s)
    await process.stop()
    for _ in range(2):
        with pytest.raises(ConfigError, match=why):
            await process.start()
        assert not process.running


async def test_the_command_gets_no_secret_of_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_AGENT_TOKEN", "secret")
    process = _process("sh", "-c", f"env > {tmp_path / 'env'}")
    await process.stop()
    await process.start()
    assert "FLEET_AGENT_TOKEN" not in (tmp_path / "env").read_text()


async def test_a_start_that_others_order_has_no_time_limit_and_hidden_work_counts() -> None:
    process, limits = _process("true"), RestartLimits(start_s=600, frozen_s=30, hung_s=600)
    assert process.limits(limits).start_s == float("inf")
    assert process.limits(limits).frozen_s == 600
    await process.stop()
    await process.start()
    assert process.limits(limits).start_s == 600
    process.remember(3)
    assert (process.is_new(3), process.is_new(4)) == (False, True)


async def test_a_dead_thread_is_heard_in_what_comfyui_sends_to_its_page() -> None:
    """Python 3.11 writes a traceback's head in pieces, and each of its carets by itself."""
    pieces = ["Exception in thread ", "Thread-7 (prompt_worker)", ":\n", *"^^^^", "\n"]
    entries = [{"t": "2026-01-01", "m": piece} for piece in pieces]

    async def serve(socket: ServerConnection) -> None:
        for message in (
            {"type": "logs", "data": {"entries": entries}},
            {"type": "logs", "data": {"entries": 7}},
        ):
            await socket.send(json.dumps(message))
        await socket.wait_closed()

    heard: asyncio.Queue[str] = asyncio.Queue()
    async with ws_serve(serve, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        monitor = WebsocketMonitor(f"http://127.0.0.1:{port}", "c", on_log=heard.put_nowait)
        listening = asyncio.create_task(monitor.run())
        async with asyncio.timeout(60):
            text = await heard.get()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    assert text == "".join(pieces)
