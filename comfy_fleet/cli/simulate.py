"""``fleet simulate``: what jobs would take on a made-up fleet, under one policy or another."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from comfy_fleet.cli import simulate_flags as flags
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.parameters import pairs
from comfy_fleet.domain.jobs.job import DEFAULT_POOL

if TYPE_CHECKING:
    from comfy_fleet.cli.simulate_traces import TraceSource

HISTORY = 1000
"""Jobs of the history that are taken."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Fleet")(simulate)


def simulate(
    trace: flags.TracePath = None,
    policy: flags.SchedulingPolicy = None,
    history: flags.History = False,
    save_trace: flags.SaveTrace = None,
    jobs: flags.Jobs = None,
    rate: flags.Rate = None,
    length: flags.Length = None,
    burst: flags.Burst = None,
    owners: flags.Owners = None,
    owner_skew: flags.OwnerSkew = None,
    sets: flags.Sets = None,
    set_size: flags.SetSize = None,
    set_skew: flags.SetSkew = None,
    run: flags.RunTime = None,
    run_spread: flags.RunSpread = None,
    beside: flags.Beside = None,
    editors: flags.Editors = None,
    batches: flags.Batches = None,
    finish_within: flags.FinishWithin = None,
    ttl: flags.Ttl = None,
    nodes: flags.Nodes = None,
    fleet: flags.FleetFile = None,
    ram: flags.Ram = "64GiB",
    load: flags.LoadRates = "2GiB/s/8GiB/s",
    price: flags.Price = 0.0,
    any_pool: flags.AnyPool = False,
    patience: flags.Patience = "60s",
    weight: flags.Weight = None,
    run_error: flags.RunError = 0.2,
    memory_error: flags.MemoryErrors = 0.1,
    gap: flags.GapTime = "5ms",
    fail_every: flags.FailEvery = None,
    repair: flags.Repair = "2m",
    estimates: flags.EstimateEnds = False,
    seed: flags.Seed = 0,
    owner_label: flags.OwnerLabel = None,
    model_size: flags.ModelSize = "6GiB",
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Simulate jobs on a made-up fleet: waits, GPU hours, model loads, out-of-memory attempts, cost.

    The jobs are those of a trace, the fleet's own history, or made up. Nothing runs: no GPU, no node.

    Policies: fair (shares, then warm models: what dispatchers will do), fifo (by rank: what they do now),
    leastconn, round-robin, swarmui, edf (an oracle: it knows run times).

    Example: `fleet simulate -n 2000 --rate 0.4 --nodes 4x24GiB --policy fair,fifo,leastconn`.
    """
    from comfy_fleet.cli import simulate_options, simulate_traces
    from comfy_fleet.cli.console import stderr
    from comfy_fleet.cli.simulate_options import above
    from comfy_fleet.cli.simulate_run import bounds_of, compare, print_json, print_tables
    from comfy_fleet.planning.conditions import Conditions
    from comfy_fleet.planning.contenders import PolicySettings
    from comfy_fleet.planning.estimates import Estimates
    from comfy_fleet.planning.fleet import planned
    from comfy_fleet.planning.registry import contenders
    from comfy_fleet.planning.units import number, seconds, size

    chosen = contenders(flags.POLICIES if policy is None else policy)
    weights = {
        name: number(text, f"--weight {name}", least=0.001, most=1e6)
        for name, text in pairs(weight or [], "--weight").items()
    }
    conditions = Conditions(
        gap_s=seconds(gap, "--gap"),
        mean_up_s=None if fail_every is None else above(fail_every, "--fail-every"),
        repair_s=seconds(repair, "--repair"),
        estimates=Estimates(run_error=run_error, memory_error=memory_error, seed=seed),
        settings=PolicySettings(
            patience_s=simulate_options.patience_s(patience),
            weights={name: value for name, value in weights.items() if not name.startswith("/")},
            tenant_weights={
                name.removeprefix("/"): value for name, value in weights.items() if name.startswith("/")
            },
        ),
        seed=seed,
        estimate_ends=estimates,
    )
    made = {
        "--rate": rate, "--for": length, "--burst": burst, "--owners": owners, "--owner-skew": owner_skew,
        "--sets": sets, "--set-size": set_size, "--set-skew": set_skew, "--run": run,
        "--run-spread": run_spread, "--beside": beside, "--editors": editors, "--batches": batches,
        "--finish-within": finish_within, "--ttl": ttl,
    }  # fmt: skip
    made = {name: value for name, value in made.items() if value is not None}
    if made and (trace is not None or history):
        raise Fail(f"{next(iter(made))} is for made-up traces only", code=Exit.USAGE)
    groups = simulate_options.groups(nodes, fleet, ram=ram, load=load, price=price)
    usual = simulate_options.usual_group(ram=ram, load=load, price=price)
    if trace is not None:
        if history or jobs is not None:
            raise Fail("a trace in a file takes neither --history nor --jobs", code=Exit.USAGE)
        source = simulate_traces.TraceFile(trace).source()
    elif history:
        source, real = _history(api, key, jobs or HISTORY, owner_label, size(model_size, "--model-size"))
        groups = groups or simulate_options.like_nodes(real, usual)
    else:
        source = simulate_traces.made_up(simulate_options.made_up(made, jobs=jobs, seed=seed))
    groups = groups or [usual]
    if any_pool:
        source, groups = source.in_one_pool(), [replace(group, pool=DEFAULT_POOL) for group in groups]
    if save_trace is not None:
        _save(source, save_trace)
        if policy is None:
            return
    made_up_fleet = planned(groups)
    outcomes = compare(source, made_up_fleet, chosen, conditions)
    if not outcomes[0].jobs:
        raise Fail(f"{source.about}: there are no jobs in it", code=Exit.USAGE)
    if unknown := sorted(set(conditions.settings.weights) - set(outcomes[0].owners)):
        stderr().print(f"--weight: no job is of {', '.join(unknown)}", style="yellow", markup=False)
    bounds = bounds_of(source, made_up_fleet, outcomes)
    if json_:
        print_json(source, made_up_fleet, outcomes, bounds)
    else:
        print_tables(made_up_fleet, outcomes, bounds)


def _history(
    api: str, key: str | None, most: int, owner_label: str | None, model_bytes: int
) -> "tuple[TraceSource, list[Mapping[str, Any]]]":
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.simulate_traces import of_history
    from comfy_fleet.cli.watching import progress_bar

    with Client(api, key) as client, progress_bar(quiet=False) as show:
        show("reading the fleet's history", None)
        nodes = client.get("/api/v1/nodes")["nodes"]
        return of_history(
            client, nodes, most=most, owner_label=owner_label, model_bytes=model_bytes, say=show
        ), nodes


def _save(source: "TraceSource", path: Path) -> None:
    from comfy_fleet.cli.console import stderr
    from comfy_fleet.cli.simulate_traces import save
    from comfy_fleet.cli.watching import progress_bar

    with progress_bar(quiet=False) as show:
        count = save(source, path, lambda done: show(f"writing {path}", done))
    stderr().print(f"{count:,} jobs are in {path}", markup=False)
