"""Run the policies that ``fleet simulate`` compares, and print what came out."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfy_fleet.cli.simulate_traces import TraceSource
    from comfy_fleet.planning.bounds import Bounds
    from comfy_fleet.planning.conditions import Conditions
    from comfy_fleet.planning.contenders import Contender
    from comfy_fleet.planning.fleet import PlannedNode
    from comfy_fleet.planning.outcome import Outcome

SIDE_BY_SIDE = 4
"""Policies in one table of figures; more make further tables."""
OWNERS_SIDE_BY_SIDE = 2
MOST_BOUNDED = 20_000
"""Jobs of a case whose best assignment is searched for."""
_SHOWN_EVERY_S = 0.2


def compare(
    source: "TraceSource",
    fleet: "Sequence[PlannedNode]",
    contenders: "Sequence[Contender]",
    conditions: "Conditions",
) -> "list[Outcome]":
    """Simulate each policy, showing progress on stderr."""
    from comfy_fleet.cli.console import span
    from comfy_fleet.cli.watching import progress_bar
    from comfy_fleet.planning.simulation import Simulation

    outcomes: list[Outcome] = []
    with progress_bar(quiet=False) as show:
        for contender in contenders:
            name, began, shown = contender.name, time.perf_counter(), 0.0
            show(f"simulating {name}", None)

            def progress(jobs: int, at: float) -> None:
                nonlocal shown
                now = time.perf_counter()
                if now - shown > _SHOWN_EVERY_S:
                    shown = now
                    show(f"simulating {name}: {jobs:,} jobs, {span(at)}", source.done(jobs))  # noqa: B023

            outcome = Simulation(fleet, contender, conditions).run(source.jobs(), progress)
            outcomes.append(replace(outcome, took_s=time.perf_counter() - began))
    return outcomes


def bounds_of(
    source: "TraceSource", fleet: "Sequence[PlannedNode]", outcomes: "Sequence[Outcome]"
) -> "Bounds | None":
    """Return what no policy can undercut; None for large cases, and where not every job succeeded."""
    from comfy_fleet.planning.bounds import bounds

    if len({planned.pool for planned in fleet}) > 1 or any(one.succeeded < one.jobs for one in outcomes):
        return None
    if outcomes[0].jobs > MOST_BOUNDED:
        return None
    return bounds(source.jobs(), fleet)


def print_json(
    source: "TraceSource",
    fleet: "Sequence[PlannedNode]",
    outcomes: "Sequence[Outcome]",
    bounds: "Bounds | None",
) -> None:
    """Print everything for programs."""
    from comfy_fleet.cli.console import print_json as show
    from comfy_fleet.planning.report import to_json

    facts: dict[str, Any] = {
        "trace": source.about,
        "fleet": {"nodes": len(fleet), "pools": dict(Counter(planned.pool for planned in fleet))},
    }
    show({**facts, **to_json(outcomes, bounds)})


def print_tables(
    fleet: "Sequence[PlannedNode]", outcomes: "Sequence[Outcome]", bounds: "Bounds | None"
) -> None:
    """Print tables for people, at most 80 columns wide."""
    from comfy_fleet.cli.console import span, stdout, table
    from comfy_fleet.planning.report import MAX_OWNERS, bounds_words, owner_rows, rows, summary

    console = stdout()
    console.print(summary(outcomes[0], Counter(planned.pool for planned in fleet)), markup=False)
    for some in _parts(outcomes, SIDE_BY_SIDE):
        console.print()
        console.print(table(("<", *(f">{one.policy}" for one in some)), rows(some, span)))
    if len(outcomes[0].owners) > 1:
        for some in _parts(outcomes, OWNERS_SIDE_BY_SIDE):
            columns = ["<Owner's waits", ">jobs"]
            for one in some:
                columns += [f">{one.policy} p50", ">p99"]
            found, more = owner_rows(some, span)
            console.print()
            console.print(table(columns, found))
            if more:
                console.print(f"(the {MAX_OWNERS} owners with the most GPU time; {more:,} more in --json)")
    if bounds is not None:
        console.print()
        console.print(bounds_words(bounds, outcomes[0].arrivals_s, span), markup=False)


def _parts(outcomes: "Sequence[Outcome]", size: int) -> "list[Sequence[Outcome]]":
    return [outcomes[first : first + size] for first in range(0, len(outcomes), size)]
