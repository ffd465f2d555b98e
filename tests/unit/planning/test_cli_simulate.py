"""``fleet simulate`` as its user sees it."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import CliRunner

from comfy_fleet.cli.app import build
from comfy_fleet.cli.exits import Fail
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.planning.units import size_range


def fleet(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "comfy_fleet", "simulate", *argv],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )


def test_policies_stand_side_by_side_within_80_columns() -> None:
    told = fleet(
        "-n", "200", "--policy", "fair,fifo,leastconn,swarmui", "--price", "0.8", "--finish-within", "4"
    )
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[0].startswith("200 jobs of 10 owners on 4 nodes; computing alone fills ")
    assert max(map(len, lines)) <= 80
    head = next(line for line in lines if "swarmui" in line)
    assert head.split() == ["fair", "fifo", "leastconn", "swarmui"]
    names = {line.split("  ")[0] for line in lines}
    assert {"wait p50", "wait p99", "makespan", "GPU h computing", "GPU h loading", "GPU h idle"} <= names
    assert {"runs that load models", "finish_by met", "cost", "cost of 1,000 jobs", "owner-1"} <= names
    assert "simulating fifo" in told.stderr


def test_estimates_are_judged_if_that_is_wanted() -> None:
    told = fleet("-n", "300", "--policy", "fair,fifo", "--estimates", "--json")
    found = json.loads(told.stdout)["policies"]
    assert found["fifo"]["estimates"] is None and 250 < found["fair"]["estimates"]["jobs"] < 300
    lines = fleet("-n", "300", "--policy", "fair", "--estimates").stdout.splitlines()
    assert {"ended by its p50", "ended by its p90", "p50 off by", "EWMA off by"} <= {
        line.split("  ")[0] for line in lines
    }


def test_json_has_every_owner_and_nothing_else_on_stdout() -> None:
    told = fleet("-n", "100", "--owners", "12", "--policy", "fifo", "--json", "--weight", "ada=2")
    found = json.loads(told.stdout)
    assert told.stderr.splitlines()[-1] == "--weight: no job is of ada"
    fifo = found["policies"]["fifo"]
    assert sum(owner["succeeded"] for owner in fifo["owners"].values()) == fifo["succeeded"] == 100
    assert found["fleet"] == {"nodes": 4, "pools": {"default": 4}}
    gpu = fifo["gpu_s"]
    assert sum(gpu.values()) == pytest.approx(4 * fifo["makespan_s"], abs=0.01)
    assert found["bounds"]["loads"] <= fifo["loads"]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_saved_trace_gives_the_same_as_the_jobs_that_were_saved(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    saved = fleet("-n", "50", "--seed", "7", "--save-trace", str(path))
    assert (saved.returncode, saved.stdout) == (0, "")
    assert f"50 jobs are in {path}" in saved.stderr
    content = path.read_bytes()
    assert len((gzip.decompress(content) if name.endswith(".gz") else content).splitlines()) == 51
    assert [one.name for one in tmp_path.iterdir()] == [name]
    of_file = json.loads(fleet(str(path), "--policy", "fifo", "--json").stdout)["policies"]["fifo"]
    made = json.loads(fleet("-n", "50", "--seed", "7", "--policy", "fifo", "--json").stdout)["policies"][
        "fifo"
    ]
    assert {**of_file, "took_s": 0} == {**made, "took_s": 0}


def test_a_fleet_comes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(
        '[[nodes]]\ncount = 2\nvram = "24GiB"\n[[nodes]]\ncount = 3\nvram = "80GiB"\npool = "big"\n'
    )
    found = json.loads(fleet("-n", "20", "--fleet", str(path), "--policy", "fifo", "--json").stdout)
    assert found["fleet"] == {"nodes": 5, "pools": {"default": 2, "big": 3}}
    one = json.loads(
        fleet("-n", "20", "--fleet", str(path), "--any-pool", "--policy", "fifo", "--json").stdout
    )
    assert one["fleet"] == {"nodes": 5, "pools": {"default": 5}}


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--nodes", "8x24"], "--nodes, vram: '24' is not the size of a card, such as 24GiB"),
        (["--policy", "best"], "--policy: 'best' is unknown; there are fair, fifo"),
        (["--rate", "often"], "--rate: 'often' is not a number from 0"),
        (["--rate", "0"], "without a rate, --jobs must say how many jobs there are"),
        (["--for", "0s"], "--for must be above 0"),
        (["--set-size", "9GiB-6GiB"], "--set-size: '9GiB-6GiB' is not a range with the least size first"),
        (["--set-size", "5-3GiB"], "--set-size: '5-3GiB' is not a range with the least size first"),
        (["--set-size", "5-3"], "--set-size: '5' is not 0 or a size of at least 1MiB"),
        (["--set-size", "5GiB-"], "--set-size: '' is not a size"),
        (["--set-size", "5GiB-6GiB-7GiB"], "--set-size: '6GiB-7GiB' is not a size"),
        (["--ram", "64"], "--ram: '64' is not 0 or a size of at least 1MiB"),
        (["--beside", "2"], "--beside: '2' is not 0 or a size of at least 1MiB"),
        (["--load", "2/s/8/s"], "--load: '2' is not a rate of at least 1MiB/s"),
        (["--patience", "2d"], "--patience: '2d' is not at most 86400s"),
        (["--rate", "1000/s", "--for", "30d"], "--rate and --for make 2.59e+09 jobs; at most 1e+08"),
        (["--editors", "0.6", "--batches", "0.6"], "--editors and --batches are more than 1 together"),
        (["--load", "2GiB/s"], "--load: '2GiB/s' is not two rates"),
        (["--patience", "soon"], "--patience: 'soon' is not a duration such as 90s"),
        (["--weight", "ada=0"], "--weight ada: '0' is not a number from 0.001"),
        (["--history", "--run", "5s"], "--run is for made-up traces only"),
        (["missing.jsonl"], "can't read missing.jsonl: No such file or directory"),
        (["missing.jsonl", "-n", "5"], "a trace in a file takes neither --history nor --jobs"),
        (["--fleet", "missing.toml"], "can't read missing.toml: No such file or directory"),
        (["--fleet", "a.toml", "--nodes", "1x24GiB"], "the nodes come from --fleet or from --nodes"),
        (
            ["-n", "9", "--save-trace", "/nowhere/t"],
            "can't write /nowhere/t: No such file or directory",
        ),
    ],
)
def test_what_is_wrong_is_said(argv: list[str], why: str) -> None:
    command: Any = typer.main.get_command(build())  # typer has a click of its own
    with pytest.raises((Fail, BadInput)) as found:
        CliRunner().invoke(command, ["simulate", *argv], catch_exceptions=False)
    assert str(found.value).startswith(why)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--sets", "1000000"),
        ("--owners", "1000000"),
        ("--jobs", "1000000000"),
        ("--burst", "inf"),
        ("--burst", "1e300"),
        ("--finish-within", "inf"),
        ("--finish-within", "1e308"),
        ("--price", "inf"),
        ("--price", "1e9"),
    ],
)
def test_what_is_beyond_all_measure_is_refused(flag: str, value: str) -> None:
    command: Any = typer.main.get_command(build())
    told = CliRunner().invoke(command, ["simulate", flag, value])
    assert told.exit_code == 2
    assert re.search(f"{flag}.*(range|less than)", told.output), told.output


def test_a_range_may_have_its_unit_once() -> None:
    assert size_range("3-5GiB", "x") == (3 * 2**30, 5 * 2**30)
    assert size_range("500MB - 2GB", "x") == (5 * 10**8, 2 * 10**9)
    assert size_range("7GiB", "x") == (7 * 2**30, 7 * 2**30)


def test_a_wrong_line_of_a_trace_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"trace": "comfy-fleet", "version": 1}\n{"submitted": 0, "run_s": 1, "tier": "vip"}\n')
    told = fleet(str(path))
    assert told.returncode == 2
    assert f"error: {path}, line 2, tier: 'vip' is not one of editor, single, batch" in told.stderr
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b\x08\x00 no gzip at all")
    assert fleet(str(tmp_path / "broken.gz")).stderr.splitlines()[-1].startswith("error: can't read ")


def test_a_trace_without_jobs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"trace": "comfy-fleet", "version": 1}\n')
    told = fleet(str(path))
    assert (told.returncode, told.stdout) == (2, "")
    assert "there are no jobs in it" in told.stderr
