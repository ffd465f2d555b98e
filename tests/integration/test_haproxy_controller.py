"""The controller's own life: files, strays, a second controller, a taken port, kill -9."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from comfy_fleet.adapters.haproxy.config_apply import apply, check
from comfy_fleet.adapters.haproxy.config_render import Rendered, files, render
from comfy_fleet.adapters.haproxy.controller import Controller
from comfy_fleet.adapters.haproxy.process import only_one
from comfy_fleet.adapters.haproxy.server_lines import pools_of
from comfy_fleet.domain.errors import ConfigError, FleetError
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.settings import Settings, packaged
from tests.fakes.nodes import FakeNodeRegistry
from tests.integration.haproxy_kit import TinyNode, eventually, make_settings, running


def many(count: int) -> list[Node]:
    return [
        Node(
            name=f"n{number}",
            url=f"http://10.0.{number // 250}.{number % 250 + 1}:8188",
            pool=f"pool{number % 4}",
        )
        for number in range(count)
    ]


def rendered(settings: Settings, nodes: list[Node]) -> Rendered:
    return render(settings, nodes, pools_of(nodes, {}, slots=settings.pool_slots))


@pytest.mark.parametrize("count", [0, 1, 300])
def test_haproxy_accepts_what_is_rendered_without_a_warning(tmp_path: Path, count: int) -> None:
    settings = make_settings(tmp_path, rate_limit=50, connection_limit=50)
    places = files(settings)
    apply(rendered(settings, many(count)), places, program="haproxy")
    for path in (places.broker, places.edge):
        assert check("haproxy", path) == ""
        assert path.stat().st_mode & 0o077 == 0
    assert places.broker.read_text().count("server n") == 2 * count


def test_ipv6_is_accepted(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, host="::1", broker_bind="::1", api_host="::1")
    nodes = [Node(name="six", url="http://[::1]:8188", agent="[::1]:9000")]
    places = files(settings)
    apply(rendered(settings, nodes), places, program="haproxy")
    assert check("haproxy", places.broker) == ""


async def test_a_name_that_does_not_resolve_stops_only_its_own_node(tmp_path: Path) -> None:
    async with TinyNode("g1") as node:
        registry = FakeNodeRegistry(
            [
                Node(name="g1", url=f"http://localhost:{node.port}"),
                Node(name="lost", url="http://no-such-host.invalid:8188"),
                Node(name="mute", url=node.url, agent="no-such-agent.invalid:9000"),
            ]
        )
        async with running(tmp_path, registry) as fleet:
            await fleet.told("g1", "up")
            await fleet.told("lost", "down")
            await fleet.told("mute", "down")
            assert "no-such-host.invalid" in registry.told["lost"][1]
            assert "no-such-agent.invalid" in registry.told["mute"][1]
            assert await fleet.grants(nodes="lost mute g1") == "g1"


def test_a_rejected_file_is_kept_and_the_good_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(tmp_path)
    places = files(settings)
    good = rendered(settings, many(1))
    assert apply(good, places, program="haproxy") == {"broker.cfg", "edge.cfg"}
    assert apply(good, places, program="haproxy") == frozenset()
    bad = Rendered(broker=good.broker + "\nnonsense here\n", edge=good.edge + "#\n", pools="x be_pool_1\n")
    with pytest.raises(ConfigError, match="nonsense"):
        apply(bad, places, program="haproxy")
    assert places.broker.read_text() == good.broker
    assert places.edge.read_text() == good.edge
    assert places.pools.read_text() == good.pools
    assert "nonsense here" in (places.folder / "broker.cfg.rejected").read_text()
    assert any(
        record.getMessage() == "configuration rejected" and "nonsense" in record.__dict__["reason"]
        for record in caplog.records
    )
    assert not list(places.folder.glob("*.new"))


def test_what_a_killed_process_was_writing_does_not_stay(tmp_path: Path) -> None:
    places = files(make_settings(tmp_path))
    good = rendered(make_settings(tmp_path), many(1))
    apply(good, places, program="haproxy")
    (places.folder / "nodes.map.new").write_text("gone h||Basic%20dTpw\n")
    apply(good, places, program="haproxy")
    assert not list(places.folder.glob("*.new"))


def test_a_missing_haproxy_is_told(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with pytest.raises(ConfigError, match="apt-get install haproxy"):
        apply(rendered(settings, []), files(settings), program="no-such-haproxy")


async def test_everything_stops_and_nothing_is_left(tmp_path: Path) -> None:
    async with running(tmp_path, FakeNodeRegistry()) as fleet:
        pids = [fleet.controller.broker.pid, fleet.controller.edge.pid]
        for pid in pids:
            assert pid is not None
            os.kill(pid, 0)
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not list(fleet.settings.run_dir.glob("*.pid"))


@pytest.mark.parametrize("turns", range(5))
async def test_a_stop_that_comes_with_news_is_not_lost(tmp_path: Path, turns: int) -> None:
    async with running(tmp_path, FakeNodeRegistry()) as fleet:
        fleet.registry.announce()
        for _ in range(turns):  # so many turns of the loop lie between the two
            await asyncio.sleep(0)
        fleet.stop.set()
        done, _ = await asyncio.wait({fleet.task}, timeout=20)
        assert done, "it steers on for good"


async def test_a_verdict_is_told_when_haproxy_has_it_and_not_at_the_next_look(tmp_path: Path) -> None:
    registry = FakeNodeRegistry()
    registry.every_s = 600
    async with TinyNode("g1") as node, running(tmp_path, registry, poll_s=600) as fleet:
        await registry.add(Node(name="g1", url=node.url))
        await fleet.told("g1", "up")
        await node.__aexit__()
        await fleet.told("g1", "down")


async def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    slow = tmp_path / "slow-haproxy"
    go = tmp_path / "go"
    slow.write_text(f'#!/bin/sh\nuntil [ -e {go} ]; do sleep 0.05; done\nexec haproxy "$@"\n')
    slow.chmod(0o755)
    controller = Controller(settings.model_copy(update={"haproxy_bin": str(slow)}), FakeNodeRegistry(many(1)))
    writing = asyncio.create_task(controller.run(asyncio.Event()))
    new = settings.run_dir / "broker.cfg.new"
    await eventually("it writes", new.exists)
    writing.cancel()
    go.touch()
    await asyncio.gather(writing, return_exceptions=True)
    assert not new.exists() and (settings.run_dir / "edge.cfg").exists()


async def test_the_next_start_needs_no_registry(tmp_path: Path) -> None:
    async with TinyNode("g1") as node:
        registry = FakeNodeRegistry()
        settings = make_settings(tmp_path)
        async with running(tmp_path, registry, settings=settings) as fleet:
            await registry.add(Node(name="g1", url=node.url, pool="video"))
            await fleet.told("g1", "up")
            await eventually("the file follows", lambda: "server g1" in files(settings).broker.read_text())
        registry.down = True
        registry.put("g1", verdict="new")
        async with running(tmp_path, registry, settings=settings) as fleet:
            assert (await fleet.call("g1")).json()["node"] == "g1"
            assert await fleet.refused(pool="video") == (503, "busy", "1")  # no agent has said ready
            registry.down = False
            await fleet.told("g1", "up")
            assert await fleet.grants(pool="video", nodes="g1") == "g1"


async def test_a_taken_port_is_told_in_haproxys_words(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with (
        socket.create_server(("127.0.0.1", settings.port)),
        pytest.raises(ConfigError, match=rf"edge.*{settings.port}"),
    ):
        async with running(tmp_path, FakeNodeRegistry(), settings=settings):
            pass
    assert not list(settings.run_dir.glob("*.pid"))


async def test_two_controllers_never_work_on_one_folder(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with (
        only_one(settings.run_dir.absolute()),
        pytest.raises(ConfigError, match=f"pid {os.getpid()}"),
    ):
        async with running(tmp_path, FakeNodeRegistry(), settings=settings):
            pass


async def test_a_stray_broker_is_stopped_but_a_stranger_is_not(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    places = files(settings)
    apply(rendered(settings, []), places, program="haproxy")
    stray = subprocess.Popen(
        ["haproxy", "-db", "-f", str(places.broker)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        await eventually("the stray holds the port", settings.lease_socket.exists)
        places.broker.with_suffix(".pid").write_text(str(stray.pid))
        places.edge.with_suffix(".pid").write_text(str(stranger.pid))
        async with running(tmp_path, FakeNodeRegistry(), settings=settings) as fleet:
            assert stray.wait(5) is not None
            assert stranger.poll() is None
            assert await fleet.refused() == (404, "pool", "")
    finally:
        for process in (stray, stranger):
            process.kill()
            process.wait(5)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _opens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def test_a_killed_controller_takes_haproxy_along_and_another_takes_over(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    code = (
        "import asyncio, sys\n"
        "from comfy_fleet.adapters.haproxy.controller import Controller\n"
        "from comfy_fleet.settings import Settings\n"
        "from tests.fakes.nodes import FakeNodeRegistry\n"
        "async def main():\n"
        "    settings = Settings.model_validate_json(sys.argv[1])\n"
        "    controller = Controller(settings, FakeNodeRegistry())\n"
        "    task = asyncio.create_task(controller.run(asyncio.Event()))\n"
        "    await controller.ready.wait()\n"
        "    print(controller.broker.pid, controller.edge.pid, flush=True)\n"
        "    await task\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, settings.model_dump_json()], stdout=subprocess.PIPE, text=True
    ) as controller:
        assert controller.stdout is not None
        pids = [int(pid) for pid in (await asyncio.to_thread(controller.stdout.readline)).split()]
        assert len(pids) == 2
        os.kill(controller.pid, signal.SIGKILL)
    await eventually(
        "nothing listens", lambda: not _opens(settings.lease_socket) and not _listens(settings.port)
    )
    async with running(tmp_path, FakeNodeRegistry(), settings=settings) as fleet:
        assert await fleet.refused() == (404, "pool", "")


async def test_the_edge_reloads_and_the_broker_does_not(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    async with TinyNode("g1") as node:
        registry = FakeNodeRegistry([Node(name="g1", url=node.url)])
        async with running(tmp_path, registry, settings=settings) as fleet:
            await fleet.told("g1", "up")
            _, tunnel = await fleet.lease()
            worker = await fleet.controller.edge.runtime.pid()
            assert not await fleet.controller.reload_edge()
            places = files(settings)
            places.edge.write_text(places.edge.read_text() + "# edited\n")
            assert await fleet.controller.reload_edge()

            async def new_worker() -> bool:
                try:
                    return await fleet.controller.edge.runtime.pid() != worker
                except (OSError, FleetError):
                    return False

            await eventually("a new worker answers", new_worker)
            await tunnel.ping()
            assert await fleet.refused() == (503, "busy", "1")


async def test_a_reload_that_fails_is_given_up_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(packaged("haproxy"), templates)
    settings = make_settings(tmp_path).model_copy(update={"haproxy": templates})
    taken = socket.create_server(("127.0.0.1", 0))  # no check of a file finds that
    with caplog.at_level(logging.INFO):
        async with running(tmp_path, FakeNodeRegistry(), settings=settings) as fleet:
            edge = fleet.controller.edge
            worker = await edge.runtime.pid()
            with (templates / "edge.cfg.j2").open("a") as file:
                file.write(f"\nfrontend more\n    bind 127.0.0.1:{taken.getsockname()[1]}\n")
            with pytest.raises(ConfigError, match=r"goes on with the one before: .*cannot bind"):
                await fleet.controller.reload_edge()
            said = [record.getMessage() for record in caplog.records]
            assert 1 < said.count("haproxy reloaded") < 10
            assert said.count("haproxy not reloaded") == 1
            assert await edge.runtime.pid() == worker
            taken.close()
            # The file is the same: still the edge has not taken it.
            results = await asyncio.gather(fleet.controller.reload_edge(), edge.renew())
            assert results[0] is True
            assert await edge.runtime.pid() != worker
            assert not await fleet.controller.reload_edge()


async def test_an_upgrade_in_its_place_leaves_a_running_fleet_as_it_was_until_its_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(packaged("haproxy"), templates)
    settings = make_settings(tmp_path).model_copy(update={"haproxy": templates})

    def written(name: str) -> bool:
        return f"server {name} " in files(settings).broker.read_text()

    async with TinyNode("g1") as first, TinyNode("g2") as second, TinyNode("g3") as third:
        registry = FakeNodeRegistry([Node(name="g1", url=first.url)])
        async with running(tmp_path, registry, settings=settings) as fleet:
            await fleet.told("g1", "up")
            for name in ("broker.cfg.j2", "edge.cfg.j2"):
                with (templates / name).open("a") as file:
                    file.write("{{ what_only_the_next_version_gives }}\n")
            for node in (second, third):
                await registry.add(Node(name=node.name, url=node.url))
                await fleet.told(node.name, "up")
                await eventually("the file follows", partial(written, node.name))
                with pytest.raises(ConfigError, match="what_only_the_next_version_gives"):
                    await fleet.controller.reload_edge()
    assert {record.getMessage() for record in caplog.records if record.levelname == "ERROR"} == {
        "configuration not rendered"  # by the reload
    }


async def test_the_monitor_answers_on_its_socket(tmp_path: Path) -> None:
    async with running(tmp_path, FakeNodeRegistry()) as fleet:
        for path in (files(fleet.settings).broker_monitor, files(fleet.settings).edge_monitor):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(b"GET /metrics?scope=frontend HTTP/1.0\r\n\r\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            assert b"haproxy_frontend_http_requests_total" in answer
            assert path.stat().st_mode & 0o077 == 0


async def test_a_small_limit_on_open_files_does_not_stop_it(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    wrapper = tmp_path / "few-files"
    wrapper.write_text('#!/bin/sh\nulimit -n 1024\nexec haproxy "$@"\n')
    wrapper.chmod(0o755)
    few = settings.model_copy(update={"haproxy_bin": str(wrapper)})
    async with running(tmp_path, FakeNodeRegistry(), settings=few) as fleet:
        assert await fleet.refused() == (404, "pool", "")
