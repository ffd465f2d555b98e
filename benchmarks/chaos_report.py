"""What ``scripts/chaos`` shows: one run, and all runs together."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.aftermath import BROKEN, Findings
from benchmarks.chaos_clients import ACCEPTED, LATER, SILENT, Account, Attempt
from benchmarks.operations import FINAL
from benchmarks.outages import Outages
from benchmarks.stats import Spread

SHOWN = 10
RECENT_S = 5.0
LOST = ("refused", "missing", "unfinished", "unreadable", "unasked")
TWICE = ("twice", "changed", "overlapping")


@dataclass(frozen=True, kw_only=True)
class Submits:
    """What became of tries to submit a job.

    Attributes:
        count: How many.
        accepted: How many were accepted.
        rest: The others, by outcome.
    """

    count: int
    accepted: int
    rest: Mapping[str, int]

    @classmethod
    def of(cls, outcomes: Iterable[str]) -> "Submits":
        """Count them."""
        counted = Counter(outcomes)
        accepted = counted.pop(ACCEPTED, 0)
        return cls(count=accepted + counted.total(), accepted=accepted, rest=dict(counted))

    @property
    def share(self) -> float:
        """The share that was accepted."""
        return self.accepted / self.count if self.count else 1.0

    def words(self) -> str:
        """Return it in a few words."""
        rest = "".join(f", {count} {outcome}" for outcome, count in sorted(self.rest.items()))
        return f"{self.accepted} of {self.count} accepted ({self.share:.2%}){rest}"


def outside_of(outages: Outages, account: Account) -> list[Attempt]:
    """Return the tries while no part was down."""
    return [one for one in account.attempts if not outages.covers(one.start, one.end)]


def inside_of(outages: Outages, account: Account) -> list[Attempt]:
    """Return the tries of which some part was down at least for a moment."""
    return [one for one in account.attempts if outages.covers(one.start, one.end)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run.

    Attributes:
        seed: Repeats its choices.
        jobs: How many were to be submitted.
        account: What clients and nodes told.
        found: What is wrong.
        faults: What happened.
        log: The same in order, each with its time (monotonic seconds).
        outages: When Redis, the broker, the edge or the fleet's disk were down.
        warnings: Errors that processes logged.
        took_s: How long it took.
    """

    seed: int
    jobs: int
    account: Account
    found: Findings
    faults: Counter[str]
    log: Sequence[tuple[float, str]]
    outages: Outages
    warnings: Counter[str]
    took_s: float

    @property
    def outside(self) -> Submits:
        """Tries while no part was down."""
        return self._submits(False)

    @property
    def inside(self) -> Submits:
        """Tries of which some part was down at least for a moment."""
        return self._submits(True)

    def _submits(self, inside: bool) -> Submits:
        attempts = inside_of(self.outages, self.account) if inside else outside_of(self.outages, self.account)
        return Submits.of(one.outcome for one in attempts)

    def unexpected(self) -> list[str]:
        """Return what became of each try that failed while no part was down, and what had happened before."""
        return [
            f"{one.outcome} after {one.end - one.start:.2f} s; before its end: {self._before(one.end)}"
            for one in outside_of(self.outages, self.account)
            if one.outcome != ACCEPTED
        ]

    def _before(self, at: float) -> str:
        events = [*self.log, *((one.end, f"{one.part} well") for one in self.outages.all)]
        before = sorted(event for event in events if at - RECENT_S < event[0] <= at)
        return ", ".join(f"{at - then:.2f} s {what}" for then, what in before) or "nothing"

    def count(self, kinds: Sequence[str]) -> int:
        """Return how many findings there are of some kinds."""
        return sum(len(getattr(self.found, kind)) for kind in kinds)

    def lasted(self) -> dict[str, list[float]]:
        """Return for each part how long it was down each time, in seconds."""
        found: dict[str, list[float]] = {}
        for one in self.outages.all:
            found.setdefault(one.part, []).append(one.end - one.start)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return all of it for a file."""
        return {
            "seed": self.seed,
            "jobs": self.jobs,
            "accepted": len(self.account.accepted),
            "faults": self.faults,
            "findings": vars(self.found),
            "clean": self.found.clean,
            "outside": vars(self.outside) | {"share": self.outside.share},
            "inside": vars(self.inside),
            "outages_s": self.lasted(),
            "unexpected": self.unexpected(),
            "errors": self.warnings,
            "took_s": self.took_s,
        }


def show_run(console: Console, run: Run) -> None:
    """Show one run."""
    account, found = run.account, run.found
    faults = Table(title=f"{run.faults.total()} faults", title_justify="left")
    faults.add_column("what")
    faults.add_column("times", justify="right")
    for name, count in sorted(run.faults.items()):
        faults.add_row(name, str(count))
    console.print(faults)
    table = Table(title=f"{len(account.accepted)} jobs accepted", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    for state, count in sorted(found.states.items()):
        table.add_row(f"ended as {state}" if state in FINAL else f"still {state}", str(count))
    for reason, count in sorted(found.reasons.items()):
        table.add_row(f"  failed: {reason}", str(count))
    table.add_row("runs that faults cost", str(found.again))
    for name in BROKEN:
        count = len(getattr(found, name))
        table.add_row(f"[{'red' if count else 'green'}]{name}[/]", str(count))
    console.print(table)
    took = [at - account.accepted[job] for job, (at, _) in account.ended.items() if job in account.accepted]
    if took:
        spread = Spread.of(took)
        words = f"median {spread.p50:.1f} s, p99 {spread.p99:.1f} s, most {spread.most:.1f} s"
        console.print(f"from accepted to ended: {words}", highlight=False)
    for name in BROKEN:
        for line in getattr(found, name)[:SHOWN]:
            console.print(f"[red]{name}[/] {line}", highlight=False)
    for line, count in run.warnings.most_common(SHOWN):
        console.print(f"[dim]{count} x {line}[/]", highlight=False)
    _show_submits(console, [run])
    for line in run.unexpected()[:SHOWN]:
        console.print(f"[red]outside[/] {line}", highlight=False)
    console.print(
        "[bold green]nothing was lost[/]" if found.clean else "[bold red]something is wrong[/]",
        highlight=False,
    )


def show_summary(console: Console, runs: Sequence[Run]) -> None:
    """Show all runs together."""
    table = Table(title=f"{len(runs)} runs", title_justify="left")
    counted = ("seed", "jobs", "failed", "faults", "lost", "twice", "orphans", "other")
    for name in (*counted, "outside", "down (s)"):
        table.add_column(name, justify="right")
    kinds = (LOST, TWICE, ("orphans",), ("answers", "leftover"))
    for run in runs:
        down = sum(map(sum, run.lasted().values()))
        counts = [str(run.count(one)) for one in kinds]
        submits = f"{run.outside.accepted}/{run.outside.count}"
        head = [str(run.seed), str(len(run.account.accepted)), str(run.found.states["failed"])]
        head += [str(run.faults.total())]
        table.add_row(*head, *counts, submits, f"{down:.0f}")
    head = ["all", str(sum(len(run.account.accepted) for run in runs))]
    head += [str(sum(run.found.states["failed"] for run in runs))]
    head += [str(sum(run.faults.total() for run in runs))]
    counts = [str(sum(run.count(one) for run in runs)) for one in kinds]
    outside = f"{sum(run.outside.accepted for run in runs)}/{sum(run.outside.count for run in runs)}"
    down = sum(sum(map(sum, run.lasted().values())) for run in runs)
    table.add_section()
    table.add_row(*head, *counts, outside, f"{down:.0f}")
    console.print(table)
    faults = Table(title="faults of all runs", title_justify="left")
    faults.add_column("what")
    faults.add_column("times", justify="right")
    for name, count in sorted(sum((run.faults for run in runs), Counter[str]()).items()):
        faults.add_row(name, str(count))
    console.print(faults)
    _show_submits(console, runs)


def _show_submits(console: Console, runs: Sequence[Run]) -> None:
    """Show what became of tries to submit a job, and how long parts were down."""
    for where in ("outside", "inside"):
        parts: list[Submits] = [getattr(run, where) for run in runs]
        rest = sum((Counter(one.rest) for one in parts), Counter[str]())
        together = Submits(
            count=sum(one.count for one in parts), accepted=sum(one.accepted for one in parts), rest=rest
        )
        known = all(one == LATER or one.startswith(SILENT) for one in rest)
        words = together.words() if known else f"[red]{together.words()}[/]"
        console.print(f"submits {where} the outages: {words}", highlight=False)
    lasted: dict[str, list[float]] = {}
    for run in runs:
        for part, times in run.lasted().items():
            lasted.setdefault(part, []).extend(times)
    for part, times in sorted(lasted.items()):
        words = f"{sum(times):.1f} s in all, median {Spread.of(times).p50:.1f} s, most {max(times):.1f} s"
        console.print(f"{part} was down {len(times)} times: {words}", highlight=False)
