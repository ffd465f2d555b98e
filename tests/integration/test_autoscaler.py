"""The autoscaler on a real Redis, with commands and a stand-in for Docker: nothing twice, nothing leaks."""

import asyncio
import json
import os
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.providers.commands import run_command
from comfy_fleet.adapters.providers.local import marked
from comfy_fleet.adapters.redis.dispatchers import LivingDispatcher
from comfy_fleet.adapters.redis.scaling import RedisScaling
from comfy_fleet.adapters.telemetry.autoscale import AutoscaleFigures
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import BadInput, ConfigError
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.domain.scaling.orders import OrderPhase, PoolBook, ScalingOrder
from comfy_fleet.domain.scaling.scaling_file import read_scaling_file
from comfy_fleet.processes.autoscaler import opened, read_file
from comfy_fleet.services.autoscaler import Autoscaler
from comfy_fleet.settings import Settings
from tests.fleet import until

RULES = """
every_s = 0.2
[pools.default]
minimum = {minimum}
maximum = 3
cool_down_s = 0
boot_s = {boot_s}
more = [{{ when = "backlog", above = 0, for_s = 0.3, add = 1 }}]
fewer = {{ busy_below = 0.5, for_s = 1 }}
least_busy = 0
provider = {provider}
"""
STAND_IN = """#!/bin/sh
echo "$@" >> "{calls}"
{then}
"""


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


class Kit:
    """A program that writes down how it is called, and the settings of a fleet."""

    def __init__(self, stores: Stores, redis_port: int, folder: Path) -> None:
        self.stores = stores
        self.scaling = RedisScaling(stores.redis)
        self.settings = Settings(
            data=folder / "data", redis_url=f"redis://127.0.0.1:{redis_port}/0", autoscale_metrics_port=None
        )
        self.calls_file = folder / "calls"
        self.program = folder / "docker"
        self.does("exit 0")

    def does(self, then: str) -> None:
        self.program.write_text(STAND_IN.format(calls=self.calls_file, then=then))
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    @property
    def commands(self) -> str:
        program = json.dumps(str(self.program))
        return (
            f'{{ kind = "command", add = [{program}, "add", "{{name}}", "{{pool}}"], '
            f'remove = [{program}, "remove", "{{name}}"], limit_s = 5 }}'
        )

    @property
    def swarm(self) -> str:
        return (
            f'{{ kind = "swarm", docker = {json.dumps(str(self.program))}, '
            'services = ["gpu-1", "gpu-2", "gpu-3"] }'
        )

    @asynccontextmanager
    async def autoscaler(
        self, provider: str, *, minimum: int = 1, boot_s: float = 60, dry: bool = False
    ) -> AsyncIterator[Autoscaler]:
        text = RULES.format(minimum=minimum, boot_s=boot_s, provider=provider)
        await LivingDispatcher(self.stores.redis, "d1").beat()
        file = read_scaling_file(text, "autoscale.toml")
        async with opened(self.settings, file, dry=dry) as autoscaler:
            yield autoscaler

    async def book(self) -> PoolBook:
        return (await self.scaling.state()).books.get("default", PoolBook())

    async def orders(self) -> tuple[ScalingOrder, ...]:
        return (await self.book()).orders

    async def joins(self, name: str) -> None:
        """Do what a machine's agent and HAProxy do."""
        node = Node(name=f"{name}-gpu0", url=f"http://{name}:8188", labels={"host": name})
        await self.stores.nodes.add(node)
        await self.stores.nodes.report(node.name, verdict="up", why="")


@pytest.fixture
def kit(stores: Stores, redis_port: int, tmp_path: Path) -> Kit:
    return Kit(stores, redis_port, tmp_path)


async def looking(autoscaler: Autoscaler, condition: Callable[[], Awaitable[Any]], what: str) -> None:
    """Look again and again until something is so."""

    async def looked() -> bool:
        await autoscaler.look()
        return bool(await condition())

    await until(looked, what=what)


async def test_an_order_is_told_once_whoever_is_killed_and_is_removed_if_it_never_comes(kit: Kit) -> None:
    async with kit.autoscaler(kit.commands, boot_s=2) as first:
        await first.look()
        (order,) = await kit.orders()
        await until(lambda: kit.calls, what="the command is run")
        assert kit.calls == [f"add {order.name} default"]
        first.active = False  # as one that is killed: it releases nothing
    await kit.stores.redis.delete(kit.stores.redis.keyspace.autoscaler)
    async with kit.autoscaler(kit.commands, boot_s=2) as second:
        await second.look()
        await second.look()
        assert (await kit.orders()) == (order,) and len(kit.calls) == 1

        async def failed() -> bool:
            return (await kit.book()).failed == 1 and f"remove {order.name}" in kit.calls

        await looking(second, failed, "the order counts as failed and is removed")
        for _ in range(5):
            await second.look()
        book = await kit.book()
        assert [call.split()[0] for call in kit.calls] == ["add", "remove"], "it pauses before the next one"
        assert book.failures == 1 and "pauses for" in book.told


async def test_a_command_that_fails_is_reported_with_its_last_line(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    kit.does("echo no quota left >&2; [ $1 = remove ]")
    async with kit.autoscaler(kit.commands) as autoscaler:

        async def failed() -> bool:
            return (await kit.book()).failed == 1

        await looking(autoscaler, failed, "the order has failed")
        (line,) = [one for one in caplog.records if one.message == "ordered node failed"]
        assert "failed with 1: no quota left" in line.__dict__["reason"]

        async def removed() -> bool:
            return any(call.startswith("remove") for call in kit.calls)

        await looking(autoscaler, removed, "what it may have left is removed")


async def test_a_removal_that_fails_is_tried_again_and_its_node_stays_drained(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.autoscaler.RETRY_S", 0.5)
    monkeypatch.setattr("comfy_fleet.domain.scaling.orders.REJOIN_S", 0.5)
    async with kit.autoscaler(kit.commands, minimum=1) as autoscaler:
        await autoscaler.look()
        (order,) = await kit.orders()
        await kit.joins(order.name)
        await looking(autoscaler, lambda: _phase(kit, OrderPhase.READY), "it is ready")
        kit.does("[ -e ok ]; exit 3")
    async with kit.autoscaler(kit.commands, minimum=0) as autoscaler:

        async def twice() -> bool:
            return len([call for call in kit.calls if call.startswith("remove")]) >= 2

        await looking(autoscaler, twice, "its removal is tried again")
        (state,) = await kit.stores.nodes.states()
        assert state.node.cordoned and state.node.cordon_reason.startswith("autoscale")
        kit.does("exit 0")

        async def gone() -> bool:
            return not await kit.stores.nodes.nodes() and not await kit.orders()

        await looking(autoscaler, gone, "it is gone")
    assert (await kit.book()).removed == 1


async def _phase(kit: Kit, phase: OrderPhase) -> bool:
    return any(order.phase is phase for order in await kit.orders())


async def test_of_two_one_is_active_and_the_other_follows(kit: Kit) -> None:
    async with kit.autoscaler(kit.commands) as first, kit.autoscaler(kit.commands) as second:
        assert await first.look() and not await second.look()
        assert await first.look() and not await second.look()
        await first.close()
        assert await second.look() and not await first.look()
        assert len(await kit.orders()) == 1
    assert len([call for call in kit.calls if call.startswith("add")]) == 1


async def test_one_that_has_lost_its_turn_stores_nothing(kit: Kit) -> None:
    assert await kit.scaling.hold("a", ttl_s=5)
    assert await kit.scaling.save("a", "default", PoolBook(told="mine"), ())
    await kit.scaling.release("a")
    assert await kit.scaling.hold("b", ttl_s=5)
    assert not await kit.scaling.hold("a", ttl_s=5)
    assert not await kit.scaling.save("a", "default", PoolBook(told="late"), ())
    await kit.scaling.release("a")
    assert (await kit.scaling.state()).holder == "b"
    assert (await kit.book()).told == "mine"


async def test_each_node_of_a_swarm_is_a_service_that_is_scaled_to_one_and_back(kit: Kit) -> None:
    # A stand-in: it was not run against a real Swarm.
    async with kit.autoscaler(kit.swarm, minimum=2) as autoscaler:
        await autoscaler.look()
        await until(lambda: len(kit.calls) == 2, what="both are ordered")
        assert sorted(kit.calls) == [f"service scale --detach gpu-{number}=1" for number in (1, 2)]
        for number in (1, 2):
            await kit.joins(f"gpu-{number}")

        async def ready() -> bool:
            return [order.phase for order in await kit.orders()] == [OrderPhase.READY] * 2

        await looking(autoscaler, ready, "both are ready")
    async with kit.autoscaler(kit.swarm, minimum=1) as autoscaler:

        async def one() -> bool:
            return len(await kit.stores.nodes.nodes()) == 1

        await looking(autoscaler, one, "one is gone")
        (left,) = await kit.stores.nodes.nodes()
        gone = {"gpu-1-gpu0": "gpu-2", "gpu-2-gpu0": "gpu-1"}[left.name]
        assert kit.calls[2:] == [f"service scale --detach {gone}=0"]


async def test_a_dry_run_changes_nothing(kit: Kit) -> None:
    async with kit.autoscaler(kit.commands, minimum=2, dry=True) as autoscaler:
        assert await autoscaler.look() and await autoscaler.look()
        (report,) = autoscaler.reports
    assert report.words == ("default: +2 (0 ready, 0 boot, 0 others; 0 busy, 0 wait): 0 of at least 2 nodes")
    assert kit.calls == [] and (await kit.scaling.state()).books == {}
    assert (await kit.scaling.state()).holder == ""


async def test_a_record_that_cant_be_read_is_left_alone(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    books = kit.stores.redis.keyspace.autoscale_books
    await kit.stores.redis.hset(books, "default", b'{"orders": 7}')
    async with kit.autoscaler(kit.commands) as autoscaler:
        assert await autoscaler.look()
        assert list(autoscaler.reports) == []
    assert await kit.stores.redis.hget(books, "default") == b'{"orders": 7}'
    assert "autoscale record can't be read" in caplog.messages
    assert kit.calls == []


async def test_without_a_dispatcher_no_rule_holds(kit: Kit) -> None:
    async with kit.autoscaler(kit.commands, minimum=0) as autoscaler:
        await kit.stores.redis.delete(*await kit.stores.redis.keys("fleet:dispatcher*"))
        await autoscaler.look()
        assert [report.decision.why for report in autoscaler.reports] == ["the fleet can't be read"]


async def test_what_metrics_show(kit: Kit) -> None:
    async with kit.autoscaler(kit.commands) as autoscaler:
        await autoscaler.look()
        await autoscaler.look()
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for metric in AutoscaleFigures(lambda: autoscaler.active, autoscaler.counted).collect()
            for sample in metric.samples
        }
    assert found["fleet_autoscale_active",] == 1
    assert found["fleet_autoscale_nodes", "default", "booting"] == 1
    assert found["fleet_autoscale_changes_total", "default", "up"] == 1
    assert found["fleet_autoscale_failures_total", "default"] == 0


async def test_a_command_has_a_limit_of_time_and_none_of_the_fleets_variables(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLEET_AGENT_TOKEN", "secret")
    kit.does(f"env > {tmp_path}/env")
    await run_command([str(kit.program), "; touch", "$(x)"], limit_s=30)
    assert kit.calls == ["; touch $(x)"], "no shell reads it"
    assert "FLEET_" not in (tmp_path / "env").read_text()
    kit.does(f"echo $$ > {tmp_path}/pid; exec sleep 600")
    with pytest.raises(ConfigError, match=r"took longer than 0\.5 s"):
        await run_command([str(kit.program)], limit_s=0.5)
    pid = int((tmp_path / "pid").read_text())
    await until(lambda: not _lives(pid), what="it is ended")
    kit.does("i=0; while [ $i -lt 20000 ]; do echo 01234567890123456789012345678; i=$((i+1)); done; exit 9")
    with pytest.raises(ConfigError) as raised:
        await run_command([str(kit.program)], limit_s=60)
    assert len(raised.value.message) < 700
    with pytest.raises(ConfigError, match="can't run"):
        await run_command(["/nonexistent"], limit_s=5)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def sleeping_comfyui(folder: Path) -> Path:
    home = folder / "ComfyUI"
    (home / "comfy").mkdir(parents=True)
    (home / "main.py").write_text("import time; time.sleep(600)")
    (home / "comfy" / "cli_args.py").touch()
    return home


async def test_an_agent_of_a_local_comfyui_gets_a_token_of_its_own(kit: Kit, tmp_path: Path) -> None:
    home = sleeping_comfyui(tmp_path)
    mark = str(kit.settings.data.resolve() / "autoscale" / "fleet" / "auto-default-1")
    join = 'gpus = ["cpu", "cpu", "cpu"], join = "http://127.0.0.1:9"'
    local = f'{{ kind = "local", comfyui = "{home}", {join} }}'
    log = Path(f"{mark}.log")
    try:
        async with kit.autoscaler(local) as autoscaler:
            await autoscaler.look()
            await until(lambda: text_of(log).count("child started"), what="ComfyUI is started")
        running = {pid: text_of(Path(f"/proc/{pid}/environ")) for pid in marked(mark)}
        assert len(running) >= 2, "they outlive the autoscaler"
        (token,) = await kit.stores.agent_tokens.tokens()
        assert token.host == "auto-default-1" and not token.central
        having = [text for text in running.values() if "FLEET_AGENT_TOKEN=agent~auto-default-1~" in text]
        assert len(having) == 1, "the agent has it, and ComfyUI does not"
        async with kit.autoscaler(local, minimum=0, boot_s=1) as autoscaler:

            async def gone() -> bool:
                return not marked(mark) and not await kit.stores.agent_tokens.tokens()

            await looking(autoscaler, gone, "it is given up, since it never took jobs")
        assert text_of(log), "it says why"
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_a_file_that_others_may_change_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "autoscale.toml"
    file.write_text("[pools.default]\nmaximum = 1\nprovider = { kind = 'local', simulated = true }\n")
    file.chmod(0o644)
    assert read_file(file).pools["default"].rules.maximum == 1
    file.chmod(mode)
    with pytest.raises(BadInput, match="others than root and the fleet's user may change it"):
        read_file(file)


@pytest.mark.parametrize("content", [None, b"\xff", b"#" * 1_000_001])
def test_a_file_that_cant_be_read_says_why(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "autoscale.toml"
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o644)
    with pytest.raises(BadInput, match=r"can't be read|has more than"):
        read_file(file)


async def test_a_pool_that_left_the_file_is_told_once(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    await kit.scaling.hold("x", ttl_s=5)
    order = ScalingOrder(name="n", asked_at=1.0)
    await kit.scaling.save("x", "former", PoolBook(orders=(order,)), ())
    await kit.scaling.release("x")
    async with kit.autoscaler(kit.commands) as autoscaler:
        await autoscaler.look()
        await asyncio.sleep(0)
        await autoscaler.look()
    assert caplog.messages.count("pool is no longer in the file, and has nodes") == 1
