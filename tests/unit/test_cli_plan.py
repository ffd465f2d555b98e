"""What `fleet up` decides to run, without running it."""

import asyncio
import io
import itertools
import json
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.agent.gpu_places import host_name
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.up import nodes as node_plans
from comfy_fleet.cli.up.last_start import facts, go_on, in_words, with_registered
from comfy_fleet.cli.up.lock import DataLock
from comfy_fleet.cli.up.nodes import NodePlan
from comfy_fleet.cli.up.plan import Plan, UpOptions, plan, public_url
from comfy_fleet.cli.up.programs import OwnRedis
from comfy_fleet.cli.up.roster import keep, reconcile
from comfy_fleet.cli.up.terminal import Terminal
from comfy_fleet.domain.errors import BadInput, ConfigError, Conflict
from comfy_fleet.domain.nodes.gpu import Gpu, Gpus, Nvml
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.settings import Settings
from tests.conftest import free_port
from tests.factories import bare_checkout
from tests.fakes.nodes import FakeNodeRegistry


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", port=free_port())


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    home = bare_checkout(tmp_path, database=True)
    python = home / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    return home


NOW = 1_800_000_000.0
NONE = Gpus(why=Nvml.NO_DRIVER)
TWO = Gpus(why=Nvml.OK, gpus=(Gpu(index=0, uuid="GPU-aa"), Gpu(index=1, uuid="GPU-bb")))


def made(settings: Settings, options: UpOptions, *, gpus: Gpus = NONE, visible: str | None = None) -> Plan:
    return plan(settings, options, gpus=gpus, visible=visible)


def after(argv: Sequence[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_without_flags_there_are_three_simulated_nodes(settings: Settings) -> None:
    planned = made(settings, UpOptions())
    assert [node.name for node in planned.nodes.nodes] == ["sim-1", "sim-2", "sim-3"]
    assert all(node.simulated for node in planned.nodes.nodes)
    (process,) = planned.nodes.processes
    assert process.argv[-8:-2] == (
        "--nodes",
        "3",
        "--port",
        str(planned.node_ports[0]),
        "--name-prefix",
        "sim",
    )


def test_internal_ports_differ_and_go_to_the_children(settings: Settings) -> None:
    planned = made(settings, UpOptions(nodes=0))
    names = ("FLEET_PORT", "FLEET_CONSOLE_PORT", "FLEET_API_PORT", "FLEET_AGENT_PORT")
    assert len({planned.env[name] for name in names}) == 4
    assert not {name for name in planned.env if "BROKER" in name}  # it has sockets, and no port
    assert planned.env["FLEET_DATA"] == str(settings.data)
    assert planned.env["FLEET_REDIS_URL"] == f"unix://{settings.data}/redis/redis.sock?db=0"
    assert planned.env["FLEET_HAPROXY_BIN"].startswith("/")


def test_the_next_start_keeps_its_ports(settings: Settings) -> None:
    with DataLock(settings.data) as lock:
        first = made(settings, UpOptions())
        lock.note({"ports": list(first.ports), "node_ports": list(first.node_ports)})
        second = made(settings, UpOptions())
    assert (second.ports, second.node_ports) == (first.ports, first.node_ports)


def test_a_start_that_names_no_nodes_goes_on_with_those_of_the_last(
    settings: Settings, comfyui: Path
) -> None:
    def after_a(last: UpOptions, now: UpOptions = UpOptions()) -> UpOptions:  # noqa: B008
        return go_on(now, json.loads(json.dumps(facts(made(settings, last), last))))

    assert go_on(UpOptions(), {}) == UpOptions(goes_on=True)  # the first one in a folder
    sims = after_a(UpOptions(nodes=2, sim_args=["--job-seconds", "3"]))
    assert (sims.nodes, sims.sim_args) == (2, ["--job-seconds", "3"])
    assert after_a(UpOptions(running=["http://10.0.0.1:8188"])).nodes == 0
    home = Checkout.find(comfyui, python=None, args=["--lowvram"], custom_nodes=False)
    assert after_a(UpOptions(comfyui=home)) == UpOptions(goes_on=True, comfyui=home)
    assert after_a(UpOptions(comfyui=home, nodes=2)).nodes == 2
    for named in (UpOptions(nodes=0), UpOptions(running=["a"]), UpOptions(sim_args=["-x"])):
        assert after_a(UpOptions(comfyui=home), named) == named
    assert go_on(UpOptions(), {"node_ports": [], "ports": [1]}).nodes == 0  # a note of an earlier version
    (comfyui / "main.py").unlink()
    with pytest.raises(Fail, match=r"the last start was with --comfyui .* holds no ComfyUI") as caught:
        after_a(UpOptions(comfyui=home))
    assert "--nodes 0" in str(caught.value.hint)


def test_beside_registered_nodes_no_simulated_one_starts_unasked(settings: Settings, comfyui: Path) -> None:
    plain = UpOptions(goes_on=True)
    first = made(settings, plain)
    assert with_registered(first, first.nodes.nodes) is first  # its own, of an earlier start
    by_url = replace(node("big", 2), sealed="x", cordoned=True)
    theirs, agents = node("theirs", 1, ours=False), replace(node("h-gpu0", 3), agent="10.0.0.1:9")
    known = [*first.nodes.nodes, theirs, by_url, agents]
    planned = with_registered(first, known)
    assert planned.nodes == NodePlan(nodes=(by_url,), idle=("h-gpu0",))
    assert facts(planned, plain)["node_ports"] == []
    words = in_words(planned, plain, known)
    assert words.startswith("the fleet goes on with big, h-gpu0, theirs; what ran on this machine starts ")
    assert words.endswith("; simulated ones start only with --nodes N")
    assert in_words(first, plain, first.nodes.nodes) == ""
    none = made(settings, UpOptions(nodes=0))
    assert in_words(none, plain, []).startswith("no nodes start, as at the last start: ")
    options = UpOptions(goes_on=True, comfyui=Checkout.find(comfyui, python=None))
    again = with_registered(made(settings, options), known)
    assert again.nodes.joining == (f"{host_name()}-cpu0",)
    assert (again.nodes.nodes, again.nodes.idle) == ((by_url,), ())
    assert f"(--comfyui {comfyui}, as at the last start); " in in_words(again, options, known)
    many = [node(f"g{number}", number, ours=False) for number in range(1, 13)]
    words = in_words(with_registered(first, many), plain, many)
    assert "goes on with g1, g2, g3, g4 and 8 more; sim" in words


def test_simulated_nodes_beside_others_are_warned_of(settings: Settings) -> None:
    planned = made(settings, UpOptions(nodes=1, running=["http://10.0.0.1:8188"]))

    def shown(nodes: Sequence[Node]) -> str:
        out = io.StringIO()
        Terminal(Console(file=out, width=200), verbose=False).ready(planned, nodes, 1.0)
        return out.getvalue()

    real, simulated = planned.nodes.nodes
    assert "SIMULATED nodes take jobs, too, and answer them with test pictures" in shown([real, simulated])
    assert "SIMULATED nodes draw test pictures; real ones: --comfyui DIR" in shown([simulated])
    assert "test pictures" not in shown([real])


def test_a_taken_port_is_refused_with_its_holder(settings: Settings) -> None:
    with (
        socket.create_server(("127.0.0.1", settings.port)),
        pytest.raises(Fail, match=rf"port {settings.port} is taken by .*\(pid \d+\)") as caught,
    ):
        made(settings, UpOptions())
    assert caught.value.exit is Exit.REFUSED
    assert "--port" in str(caught.value.hint)


def test_an_agent_runs_a_comfyui_on_every_gpu(settings: Settings, comfyui: Path) -> None:
    home = Checkout.find(comfyui, python=None, args=["--lowvram", "--a b"], custom_nodes=False)
    planned = made(settings, UpOptions(comfyui=home), gpus=TWO)
    assert planned.nodes.nodes == ()
    assert planned.nodes.joining == (f"{host_name()}-gpu0", f"{host_name()}-gpu1")
    (agent,) = planned.nodes.processes
    assert after(agent.argv, "--comfyui") == str(comfyui)
    assert after(agent.argv, "--python") == str(comfyui / "venv/bin/python")
    assert after(agent.argv, "--gpus") == "GPU-aa,GPU-bb"
    assert {"--no-custom-nodes", "--comfyui-args=--lowvram '--a b'"} <= set(agent.argv)
    assert agent.env == {"FLEET_STOP_WAIT_S": "0"}


def test_without_a_gpu_comfyui_runs_on_the_cpu(settings: Settings, comfyui: Path) -> None:
    home = Checkout.find(comfyui, python=None)
    planned = made(settings, UpOptions(comfyui=home, nodes=3))
    assert planned.nodes.joining == tuple(f"{host_name()}-cpu0-{number}" for number in range(3))
    assert after(planned.nodes.processes[0].argv, "--gpus") == "cpu,cpu,cpu"
    assert not planned.node_ports
    assert made(settings, UpOptions(comfyui=home)).nodes.joining == (f"{host_name()}-cpu0",)
    nothing = made(settings, UpOptions(comfyui=home, nodes=0)).nodes
    assert (nothing.joining, nothing.processes) == ((), ())


def test_more_nodes_than_gpus_are_dealt_over_them(settings: Settings, comfyui: Path) -> None:
    home = Checkout.find(comfyui, python=None)
    planned = made(settings, UpOptions(comfyui=home, nodes=3), gpus=TWO, visible="1,GPU-aa")
    assert after(planned.nodes.processes[0].argv, "--gpus") == "1,GPU-aa,1"
    assert planned.nodes.joining == tuple(f"{host_name()}-gpu{name}" for name in ("1-0", "0", "1-1"))
    with pytest.raises(ConfigError, match="no GPU 7"):
        made(settings, UpOptions(comfyui=home), gpus=TWO, visible="7")


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [
        (TWO, None, ["GPU-aa", "GPU-bb"]),
        (TWO, "1", ["1"]),
        (TWO, "", []),
        (TWO, "-1", []),
        (TWO, " 3, 1 ", ["3", "1"]),
        (NONE, "0", []),
    ],
)
def test_visible_gpus(gpus: Gpus, visible: str | None, expected: list[str]) -> None:
    assert node_plans.visible_gpus(gpus, visible) == expected


@pytest.mark.parametrize("python", ["/no/such/python", "surely-no-such-python"])
def test_a_missing_python_is_named(comfyui: Path, python: str) -> None:
    with pytest.raises(BadInput, match=python):
        Checkout.find(comfyui, python=python)


def test_a_folder_without_comfyui_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no ComfyUI"):
        Checkout.find(tmp_path, python=None)


def test_running_nodes_have_names_given_or_made(settings: Settings) -> None:
    planned = made(settings, UpOptions(running=["http://10.0.0.1:8188/", "big=http://10.0.0.2:8188"]))
    assert [(node.name, node.url) for node in planned.nodes.nodes] == [
        ("node-1", "http://10.0.0.1:8188"),
        ("big", "http://10.0.0.2:8188"),
    ]
    assert planned.nodes.processes == ()
    with pytest.raises(BadInput):
        made(settings, UpOptions(running=["https://10.0.0.1"]))


def test_a_long_path_makes_redis_listen_on_loopback(tmp_path: Path) -> None:
    short = OwnRedis.plan(tmp_path, port=1234)
    assert short.url == f"unix://{tmp_path}/redis/redis.sock?db=0"
    deep = tmp_path / ("x" * 80)
    long = OwnRedis.plan(deep, port=1234)
    assert long.url == "redis://127.0.0.1:1234/0"
    assert "--unixsocket" not in long.argv
    for argv in (short.argv, long.argv):
        assert ("--appendonly", "yes") in itertools.pairwise(argv)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::1", "http://[::1]:1")],
)
def test_the_shown_url_can_be_opened_here(host: str, url: str) -> None:
    assert public_url(host, 1) == url


@pytest.mark.parametrize(
    ("running", "what"),
    [
        (["a=http://10.0.0.1:1", "a=http://10.0.0.1:2"], "name a"),
        (["a=http://10.0.0.1:1", "b=http://10.0.0.1:1/"], "URL http://10.0.0.1:1"),
        (["sim-2=http://10.0.0.1:1"], "name sim-2"),
    ],
)
def test_nodes_that_are_one_are_refused_before_anything_starts(
    settings: Settings, running: list[str], what: str
) -> None:
    with pytest.raises(Fail, match=what) as caught:
        made(settings, UpOptions(nodes=2, running=running))
    assert caught.value.exit is Exit.USAGE


def test_what_the_api_would_refuse_is_refused_before_anything_starts(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="API keys are needed"):
        made(settings.model_copy(update={"host": "0.0.0.0"}), UpOptions())
    with pytest.raises(ConfigError, match=r"FLEET_KEYS_FILE: .*/none can't be read"):
        made(settings.model_copy(update={"keys_file": settings.data / "none"}), UpOptions())
    with pytest.raises(ConfigError, match=r"FLEET_KEYS_FILE: .* can't be read: Is a directory"):
        made(settings.model_copy(update={"keys_file": Path("/")}), UpOptions())
    with pytest.raises(ConfigError, match=r"workflows, .*/none, can't be read: .*; set FLEET_WORKFLOWS"):
        made(settings.model_copy(update={"workflows": settings.data / "none"}), UpOptions())


@pytest.mark.parametrize(
    ("lists", "named"),
    [
        ({"allow_from": "10.0.0.0/8"}, "FLEET_ALLOW_FROM=10.0.0.0/8,127.0.0.1"),
        ({"allow_from": "127.0.0.1", "console_allow_from": "::1"}, "CONSOLE_ALLOW_FROM=::1/128,127.0.0.1"),
        ({"allow_from": "10.0.0.0/8", "console_allow_from": "127.0.0.0/8"}, ""),
        ({"allow_from": "10.0.0.0/8", "host": "localhost"}, "FLEET_ALLOW_FROM=10.0.0.0/8,127.0.0.1"),
    ],
)
def test_who_is_served_must_have_this_machine_among_them(
    settings: Settings, lists: dict[str, str], named: str
) -> None:
    asked = Settings(**{**settings.model_dump(), **lists})
    if not named:
        assert made(asked, UpOptions()).settings.allow_from == "10.0.0.0/8"
        return
    with pytest.raises(Fail) as refused:
        made(asked, UpOptions())
    assert (refused.value.exit, named in str(refused.value.hint)) == (Exit.USAGE, True)


def test_an_address_that_is_not_here_is_no_taken_port(settings: Settings) -> None:
    with pytest.raises(Fail, match=r"address 192\.0\.2\.1 can't be used") as caught:
        made(settings.model_copy(update={"host": "192.0.2.1"}), UpOptions())
    assert caught.value.exit is Exit.USAGE


def nodes_of(registry: FakeNodeRegistry) -> dict[str, Node]:
    return {name: state.node for name, state in registry.held.items()}


def node(name: str, port: int, *, ours: bool = True) -> Node:
    labels = {node_plans.MANAGED: node_plans.MANAGER} if ours else {}
    return Node(name=name, url=f"http://127.0.0.1:{port}", labels=labels)


async def test_nodes_of_the_last_start_are_kept_moved_or_removed() -> None:
    registry = FakeNodeRegistry(
        [node("same", 1), node("moved", 2), node("gone", 3), node("theirs", 4, ours=False)]
    )
    await reconcile(registry, [node("same", 1), node("moved", 20), node("new", 5)], now=NOW)
    urls = {name: held.url.rsplit(":", 1)[1] for name, held in nodes_of(registry).items()}
    assert urls == {"same": "1", "moved": "20", "new": "5", "theirs": "4"}
    assert {name for name, held in nodes_of(registry).items() if held.added_at == NOW} == {"moved", "new"}


async def test_what_an_agent_will_register_stays_with_its_cordon() -> None:
    registry = FakeNodeRegistry([replace(node("h-gpu0", 1), cordoned=True), node("h-gpu1", 2)])
    await reconcile(registry, [], ["h-gpu0"], now=NOW)
    assert {name: held.cordoned for name, held in nodes_of(registry).items()} == {"h-gpu0": True}


async def test_a_cordon_moves_with_its_node() -> None:
    registry = FakeNodeRegistry([replace(node("a", 1), cordoned=True, cordon_reason="new driver")])
    await reconcile(registry, [node("a", 2)], now=NOW)
    held = nodes_of(registry)["a"]
    assert (held.url, held.cordoned, held.cordon_reason) == ("http://127.0.0.1:2", True, "new driver")


async def test_the_cordon_of_a_twin_stays_where_it_was() -> None:
    registry = FakeNodeRegistry([replace(node("a", 1), cordoned=True, cordon_reason="is node b", twin="b")])
    await reconcile(registry, [node("a", 2)], now=NOW)
    assert not nodes_of(registry)["a"].cordoned


async def test_a_name_that_somebody_else_uses_is_refused() -> None:
    with pytest.raises(Conflict):
        await reconcile(FakeNodeRegistry([node("a", 1, ours=False)]), [node("a", 2)], now=NOW)


async def test_an_emptied_store_gets_its_nodes_back_and_a_removed_one_stays_removed() -> None:
    ours = [node("a", 1), node("b", 2)]
    registry = FakeNodeRegistry(ours)
    said: list[tuple[str, str]] = []

    async def clock() -> float:
        return NOW

    keeping = asyncio.create_task(
        keep(registry, ours, (), lambda *words: said.append(words), every_s=0.001, clock=clock)
    )

    async def looked() -> None:
        for _ in range(5):
            await asyncio.sleep(0.002)

    try:
        await looked()
        await registry.remove("b", force=True)  # an operator's wish
        registry.down = True
        await looked()
        registry.down = False
        await looked()
        assert set(registry.held) == {"a"}
        registry.held.clear()
        registry.store = "second"
        async with asyncio.timeout(10):
            while not said:
                await looked()
        assert set(registry.held) == {"a", "b"}
        assert nodes_of(registry)["b"].added_at == NOW
        registry.held.clear()
        await registry.add(node("a", 9, ours=False))
        registry.store = "third"
        async with asyncio.timeout(10):
            while len(said) < 2:
                await looked()
        assert said[1] == ("nodes not registered again", "node a exists already")
    finally:
        keeping.cancel()
