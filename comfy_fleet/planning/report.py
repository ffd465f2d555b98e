"""Outcomes as JSON and as rows of a table, policies side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from comfy_fleet.planning.bounds import Bounds
from comfy_fleet.planning.judged_estimates import EstimateQuality
from comfy_fleet.planning.outcome import Outcome
from comfy_fleet.planning.spread import Spread

Row = tuple[str, ...]
MAX_OWNERS = 8
"""Owners whose waits a table shows; those with the most GPU time."""


def to_json(outcomes: Sequence[Outcome], bounds: Bounds | None) -> dict[str, Any]:
    """Return everything that was found, in seconds and bytes."""
    found: dict[str, Any] = {"policies": {outcome.policy: _outcome(outcome) for outcome in outcomes}}
    if bounds is not None:
        found["bounds"] = {
            "loads": bounds.loads,
            "makespan_s": _rounded(bounds.makespan_s),
            "best_assignment_loads": bounds.best_loads,
        }
    return found


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "jobs": outcome.jobs,
        "succeeded": outcome.succeeded,
        "failed": outcome.failed,
        "expired": outcome.expired,
        "canceled": outcome.canceled,
        "starved": outcome.starved,
        "wait_s": _spread(outcome.wait),
        "done_s": _spread(outcome.done),
        "makespan_s": _rounded(outcome.makespan_s),
        "gpu_s": {
            "computing": _rounded(outcome.computing_s),
            "loading": _rounded(outcome.loading_s),
            "idle": _rounded(outcome.idle_s),
            "down": _rounded(outcome.down_s),
        },
        "loads": outcome.loads,
        "disk_reads": outcome.disk_reads,
        "out_of_memory": outcome.out_of_memory,
        "node_failures": outcome.node_failures,
        "finish_by": {"wished": outcome.wished, "met": outcome.met, "share": _rounded(outcome.met_share)},
        "cost": _rounded(outcome.cost),
        "estimates": _quality(outcome.estimates),
        "took_s": _rounded(outcome.took_s),
        "owners": {
            name: {
                "succeeded": owner.jobs,
                "wait_s": _spread(owner.wait),
                "done_s": _spread(owner.done),
                "gpu_s": _rounded(owner.gpu_s),
            }
            for name, owner in sorted(outcome.owners.items())
        },
    }


def _quality(found: EstimateQuality | None) -> dict[str, float | None] | None:
    return None if found is None else {name: _rounded(value) for name, value in asdict(found).items()}


def _spread(spread: Spread | None) -> dict[str, float | None] | None:
    if spread is None:
        return None
    return {name: _rounded(getattr(spread, name)) for name in ("mean", "p50", "p90", "p99", "most")}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def rows(outcomes: Sequence[Outcome], span: Callable[[float | None], str]) -> list[Row]:
    """Return what people compare: a row for each figure, a cell for each policy.

    Figures that say nothing, because nothing of the kind happened under any policy, are left out.

    Args:
        outcomes: One for each policy.
        span: Says a duration in words.
    """

    def each(name: str, cell: Callable[[Outcome], str]) -> Row:
        return (name, *map(cell, outcomes))

    def some(name: str, count: Callable[[Outcome], int]) -> list[Row]:
        if not any(map(count, outcomes)):
            return []
        return [each(name, lambda one: f"{count(one):,}")]

    def gpu(name: str, seconds: Callable[[Outcome], float]) -> Row:
        return each(name, lambda one: _gpu_hours(seconds(one), one.nodes * one.makespan_s))

    found = [
        *(
            each(f"wait {name}", lambda one, name=name: span(_of(one.wait, name)))  # type: ignore[misc]
            for name in ("p50", "p90", "p99")
        ),
        *(
            each(f"submit to end {name}", lambda one, name=name: span(_of(one.done, name)))  # type: ignore[misc]
            for name in ("p50", "p99")
        ),
        each("makespan", lambda one: span(one.makespan_s)),
        gpu("GPU h computing", lambda one: one.computing_s),
        gpu("GPU h loading", lambda one: one.loading_s),
        gpu("GPU h idle", lambda one: one.idle_s),
    ]
    if any(one.down_s for one in outcomes):
        found.append(gpu("GPU h down", lambda one: one.down_s))
    found.append(each("runs that load models", lambda one: f"{one.loads:,}"))
    found += some("out-of-memory attempts", lambda one: one.out_of_memory)
    found += some("runs lost with nodes", lambda one: one.node_failures)
    if any(one.wished for one in outcomes):
        found.append(each("finish_by met", lambda one: _percent(one.met_share)))
    if any(one.estimates for one in outcomes):
        found += [
            each("ended by its p50", lambda one: _percent(one.estimates.by_p50 if one.estimates else None)),
            each("ended by its p90", lambda one: _percent(one.estimates.by_p90 if one.estimates else None)),
            each("p50 off by", lambda one: span(one.estimates.error_s) if one.estimates else ""),
            each("EWMA off by", lambda one: span(one.estimates.ewma_error_s) if one.estimates else ""),
        ]
    found += some("failed", lambda one: one.failed)
    found += some("expired", lambda one: one.expired)
    found += some("canceled", lambda one: one.canceled)
    found += some("never started", lambda one: one.starved)
    if any(one.cost for one in outcomes):
        found.append(each("cost", lambda one: f"{one.cost:,.2f}"))
        found.append(each("cost of 1,000 jobs", _cost_of_jobs))
    return found


def owner_rows(outcomes: Sequence[Outcome], span: Callable[[float | None], str]) -> tuple[list[Row], int]:
    """Return the waits of the owners with the most GPU time, and how many more owners there are.

    Each row: the owner, its jobs, and for each policy p50 and p99.
    """
    used: dict[str, float] = {}
    for outcome in outcomes:
        for name, owner in outcome.owners.items():
            used[name] = used.get(name, 0.0) + owner.gpu_s
    names = sorted(used, key=lambda name: (-used[name], name))
    found = []
    for name in names[:MAX_OWNERS]:
        cells = [name, f"{max(_jobs(outcome, name) for outcome in outcomes):,}"]
        for outcome in outcomes:
            wait = outcome.owners[name].wait if name in outcome.owners else None
            cells += [span(_of(wait, "p50")), span(_of(wait, "p99"))]
        found.append(tuple(cells))
    return found, max(0, len(names) - MAX_OWNERS)


def summary(outcome: Outcome, sizes: Mapping[str, int]) -> str:
    """Return in a sentence what was simulated.

    Args:
        outcome: Any policy's.
        sizes: How many nodes a pool has.
    """
    capacity = outcome.nodes * outcome.makespan_s
    busy = f"; computing alone fills {outcome.computing_s / capacity:.0%}" if capacity else ""
    nodes = f"{outcome.nodes:,} nodes" if outcome.nodes != 1 else "1 node"
    pools = f" in {len(sizes)} pools" if len(sizes) > 1 else ""
    owners = "1 owner" if len(outcome.owners) == 1 else f"{len(outcome.owners):,} owners"
    jobs = f"{outcome.jobs:,} jobs of {owners}" if outcome.jobs != 1 else "1 job"
    return f"{jobs} on {nodes}{pools}{busy}"


def bounds_words(bounds: Bounds, arrivals_s: float, span: Callable[[float | None], str]) -> str:
    """Return the bounds in a sentence.

    Args:
        bounds: What was found.
        arrivals_s: For how long jobs came; an assignment that is done sooner says nothing.
        span: Says a duration in words.
    """
    words = f"no policy can do with fewer than {bounds.loads:,} loads"
    if bounds.makespan_s is not None and bounds.makespan_s > arrivals_s:
        words += f", or be done before {span(bounds.makespan_s)} ({bounds.best_loads} loads)"
    return words


def _of(spread: Spread | None, name: str) -> float | None:
    return None if spread is None else float(getattr(spread, name))


def _jobs(outcome: Outcome, owner: str) -> int:
    return outcome.owners[owner].jobs if owner in outcome.owners else 0


def _gpu_hours(seconds: float, capacity: float) -> str:
    share = f" {seconds / capacity:4.0%}" if capacity else ""
    return f"{seconds / 3600:,.2f}{share}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _cost_of_jobs(outcome: Outcome) -> str:
    return f"{outcome.cost / outcome.succeeded * 1000:,.2f}" if outcome.succeeded else ""
