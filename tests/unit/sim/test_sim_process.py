"""``fleet sim`` as a process."""

import asyncio
import json
import signal
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from comfy_fleet.cli.app import build
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.up.nodes import fleet
from comfy_fleet.sim import BadFault, SimOptions, nodes
from tests.unit.sim.graphs import picture


async def start(*arguments: str) -> tuple[asyncio.subprocess.Process, dict[str, str]]:
    """Start nodes on free ports and return their URLs by name."""
    process = await asyncio.create_subprocess_exec(
        *fleet("sim", "--port", "0", *arguments), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    urls = {}
    for _ in range(int(arguments[arguments.index("--nodes") + 1]) if "--nodes" in arguments else 1):
        name, url, word = (await process.stdout.readline()).decode().split()
        assert word == "SIMULATED"
        urls[name] = url
    return process, urls


async def test_it_prints_its_nodes_runs_jobs_and_stops(tmp_path: Path) -> None:
    process, urls = await start(
        "--nodes", "3", "--name-prefix", "gpu", "--job-seconds", "0.05", "--data", str(tmp_path)
    )
    assert list(urls) == ["gpu-1", "gpu-2", "gpu-3"]
    async with httpx.AsyncClient() as http:
        for url in urls.values():
            await http.post(f"{url}/prompt", json={"prompt": picture(prefix="x")})
        for name, url in urls.items():
            while (stats := (await http.get(f"{url}/sim/stats")).json())["done"] < 1:
                await asyncio.sleep(0.005)
            assert stats["name"] == name
            assert (tmp_path / name / "output" / "x_00001_.png").exists()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_stop_waits_for_no_job() -> None:
    process, urls = await start("--job-seconds", "3600")
    async with httpx.AsyncClient(base_url=urls["sim-1"]) as http:
        await http.post("/prompt", json={"prompt": picture()})
        while not (await http.get("/queue")).json()["queue_running"]:
            await asyncio.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_crash_may_take_the_process_with_it() -> None:
    process, urls = await start("--faults", json.dumps({"exit_process": True, "crash_mid_run": 1}))
    async with httpx.AsyncClient() as http:
        await http.post(f"{urls['sim-1']}/prompt", json={"prompt": picture()})
    assert await asyncio.wait_for(process.wait(), 5) == 137


async def test_a_wrong_option_is_named(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *fleet("sim", "--faults", '{"nope": 1}'), stderr=asyncio.subprocess.PIPE
    )
    _, complaint = await process.communicate()
    assert process.returncode == Exit.USAGE
    assert b"no fault is called 'nope'" in complaint


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--faults", "nope"], "--faults is not JSON"),
        (["--models", "{none}"], "can't use {none}: No such file"),
        (["--models", "{broken}"], "{broken} is not JSON"),
        (["--object-info", "{none}"], "can't use {none}: No such file"),
        (["--object-info", "{broken}"], "{broken} is not JSON"),
        (["--data", "{broken}/x"], "can't use {broken}/x"),
        (["--comfyui", "0.4"], "no simulated ComfyUI '0.4'; there are: 0.33.0, 0.3.64"),
        (["--port", "65535", "--nodes", "2"], "2 ports from 65535 on end above 65535"),
    ],
)
def test_what_is_wrong_is_named_and_is_no_port_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    places = {"{none}": str(tmp_path / "none"), "{broken}": str(tmp_path / "broken")}
    (tmp_path / "broken").write_text("{ half a fi")

    def filled(text: str) -> str:
        for name, path in places.items():
            text = text.replace(name, path)
        return text

    async def never(options: SimOptions) -> None:
        async with nodes(options):
            pytest.fail("it started")

    monkeypatch.setattr("comfy_fleet.sim.server.serve", lambda options: asyncio.run(never(options)))
    monkeypatch.setattr("comfy_fleet.cli.sim.logging_as", lambda _: None)
    told = CliRunner().invoke(build(), ["sim", "--port", "0", *map(filled, arguments)])
    assert isinstance(told.exception, Fail), told.output
    assert filled(says) in told.exception.message
    assert told.exception.exit is Exit.USAGE


def test_the_command_line_becomes_options(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[SimOptions] = []
    monkeypatch.setattr("comfy_fleet.sim.server.serve", served.append)
    monkeypatch.setattr("comfy_fleet.cli.sim.logging_as", lambda _: None)
    wanted = ["--nodes", "5", "--vram-gib", "80", "--scale", "0.5", "--job-seconds", "1", "--previews"]
    wanted += ["--comfyui", "0.3.64"]
    for arguments in (wanted, []):
        assert CliRunner().invoke(build(), ["sim", *arguments]).exit_code == 0
    options, plain = served
    assert (options.nodes, options.vram_gib, options.previews) == (5, 80.0, True)
    assert options.comfyui == options.node(1).comfyui == "0.3.64"
    assert (options.timing.scale, options.timing.job_s) == (0.5, 1.0)
    assert plain == SimOptions()
    assert CliRunner().invoke(build(), ["sim", "--scale", "-1"]).exit_code == Exit.USAGE


async def test_fifty_nodes_start_in_one_process() -> None:
    async with nodes(SimOptions(nodes=50, port=0)) as started, httpx.AsyncClient() as http:
        assert len({node.port for node in started}) == 50
        assert (await http.get(f"{started[-1].url}/queue")).status_code == 200
        roots = [node.files.root for node in started]
    assert not any(root.exists() for root in roots)


async def test_a_fault_from_the_start_must_exist() -> None:
    with pytest.raises(BadFault):
        async with nodes(SimOptions(port=0, faults={"nope": 1})):
            pass
