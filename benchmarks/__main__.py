"""``python -m benchmarks``: measure, show, keep."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import machine, report
from benchmarks.figures import (
    affinity,
    autoscale,
    batches,
    cache,
    changes,
    clock_steps,
    console,
    cpu,
    estimates,
    foreign,
    gpus,
    intake,
    iterate,
    kills,
    latency,
    lists,
    memory,
    merging,
    model_fetch,
    native,
    overload,
    redis_times,
    replicas,
    restarts,
    scaling,
    schedule,
    schedule_memory,
    schedule_shares,
    schedule_speed,
    schedule_waits,
    schedule_wishes,
    sdk,
    sockets,
    staging,
    stores,
    submits,
    takeovers,
    telemetry,
    thousand,
    waiting,
)
from benchmarks.stage import BenchError, Options
from comfy_fleet.cli.exits import Fail
from comfy_fleet.cli.up.programs import find_haproxy
from comfy_fleet.domain.errors import FleetError
from comfy_fleet.settings import SOURCE

FIGURES: Mapping[str, Callable[[Options], Awaitable[report.Result]]] = {
    "latency": latency.measure,
    "native": native.measure,
    "iterate": iterate.measure,
    "sdk": sdk.measure,
    "gpus": gpus.measure,
    "scaling": scaling.measure,
    "cpu": cpu.measure,
    "submits": submits.measure,
    "batches": batches.measure,
    "stores": stores.measure,
    "waiting": waiting.measure,
    "intake": intake.measure,
    "overload": overload.measure,
    "lists": lists.measure,
    "redis-times": redis_times.measure,
    "replicas": replicas.measure,
    "staging": staging.measure,
    "cache": cache.measure,
    "sockets": sockets.measure,
    "foreign": foreign.measure,
    "memory": memory.measure,
    "affinity": affinity.measure,
    "merging": merging.measure,
    "changes": changes.measure,
    "kills": kills.measure,
    "takeovers": takeovers.measure,
    "clock-steps": clock_steps.measure,
    "restarts": restarts.measure,
    "thousand": thousand.measure,
    "telemetry": telemetry.measure,
    "console": console.measure,
    "schedule": schedule.measure,
    "schedule-waits": schedule_waits.measure,
    "schedule-shares": schedule_shares.measure,
    "schedule-wishes": schedule_wishes.measure,
    "schedule-memory": schedule_memory.measure,
    "schedule-speed": schedule_speed.measure,
    "estimates": estimates.measure,
    "autoscale": autoscale.measure,
    "model-fetch": model_fetch.measure,
}
DOCUMENT = SOURCE / "docs" / "benchmarks.md"
KEPT = SOURCE / "docs" / "benchmarks.json"


def bench(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help=f"One of {', '.join(FIGURES)}. Repeatable."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the work, to try it out.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Update docs/benchmarks.md and benchmarks.json.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results to this file.")
    ] = None,
    comfyui: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="COMFYUI_HOME",
            help="Measure latency, native, iterate, staging and restarts with this ComfyUI, not with "
            "simulated nodes.",
        ),
    ] = None,
    comfyui_python: Annotated[
        str | None, typer.Option(metavar="PROGRAM", envvar="COMFYUI_PYTHON", help="ComfyUI's Python.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For estimates: also the jobs of this trace."),
    ] = None,
    bench_python: Annotated[
        Path, typer.Option(metavar="PROGRAM", help="The Python that has comfy-api-proxy.")
    ] = SOURCE / ".venv-bench" / "bin" / "python",
) -> None:
    """Compare the fleet with its alternatives, on this machine, on loopback."""
    console = Console()
    wrong = set(only or ()) - set(FIGURES)
    if wrong:
        console.print(
            f"[red]no figure is called {', '.join(sorted(wrong))}[/]; there are: {', '.join(FIGURES)}"
        )
        raise typer.Exit(2)
    logging.disable(logging.WARNING)
    options = Options(
        # Not resolved: a virtual environment's Python is a link, and knows its environment by its place.
        bench_python=bench_python.absolute(),
        comfyui=comfyui,
        comfyui_python=comfyui_python,
        quick=quick,
        trace=trace,
    )
    facts = machine.describe(options.bench_python, find_haproxy("haproxy"))
    for name, value in facts.items():
        console.print(f"[dim]{name}: {value}[/]", highlight=False)
    console.print()
    results = []
    failed = False
    for name in only or FIGURES:
        try:
            result = asyncio.run(_measure(name, options, facts, console))
        except (BenchError, Fail, FleetError) as error:
            failed = True
            console.print(f"[red]{name}: {error}[/]", highlight=False)
            for note in getattr(error, "__notes__", ()):
                console.print(f"  {note}", highlight=False, markup=False)
            console.print()
            continue
        report.show(console, result)
        results.append(result)
    if json_file:
        report.save(json_file, results)
    if write and results:
        merged = {result.name: result for result in (*report.load(KEPT), *results)}
        ordered = [merged[name] for name in FIGURES if name in merged]
        report.save(KEPT, ordered)
        report.write_document(DOCUMENT, ordered)
        console.print(f"wrote {DOCUMENT.relative_to(SOURCE)} and {KEPT.relative_to(SOURCE)}")
    if failed:
        raise typer.Exit(1)


async def _measure(name: str, options: Options, facts: Mapping[str, str], console: Console) -> report.Result:
    load = machine.load_average()
    at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    with console.status(name) as status:
        said = replace(options, say=lambda line: status.update(f"{name}: {line}"))
        result = await FIGURES[name](said)
    return replace(result, measured_at=at, load=load, machine=facts)


if __name__ == "__main__":
    sys.argv[0] = "scripts/bench"
    typer.run(bench)
