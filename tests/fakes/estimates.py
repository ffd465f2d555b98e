"""What estimates are made of, over dicts."""

from collections.abc import Mapping, Sequence

from comfy_fleet.domain.schedule.standing import Underway
from tests.fakes.base import Fake


class FakeEstimateStore(Fake):
    """:class:`comfy_fleet.ports.estimates.EstimateStore`.

    Attributes:
        runs: How far jobs' runs are.
        free: When nodes are free.
        run_s: How long runs compute.
        learned: Errors by kind.
        noted: First estimates by job: kind and seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, Underway] = {}
        self.free: dict[str, float] = {}
        self.run_s: float | None = None
        self.learned: dict[str, list[float]] = {}
        self.noted: dict[str, tuple[str, float]] = {}

    async def underway(self, job_id: str) -> Underway | None:
        self.answer("underway")
        return self.runs.get(job_id)

    async def free_in_s(self, nodes: Sequence[str]) -> Mapping[str, float]:
        self.answer("free_in_s")
        return {name: self.free[name] for name in nodes if name in self.free}

    async def mean_run_s(self) -> float | None:
        self.answer("mean_run_s")
        return self.run_s

    async def errors(self) -> Mapping[str, Sequence[float]]:
        self.answer("errors")
        return self.learned

    async def note(self, job_id: str, kind: str, end_in_s: float) -> None:
        self.answer("note")
        self.noted.setdefault(job_id, (kind, end_in_s))
