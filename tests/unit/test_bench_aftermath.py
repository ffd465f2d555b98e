"""What ``scripts/chaos`` finds when nodes tell what they computed."""

from pathlib import Path

import pytest

from benchmarks.aftermath import Spell, jobs_of_runs, overlapping

JOBS = {"a1": "a", "a2": "a", "a3": "a", "b1": "b"}


def spell(run: str, start: float, end: float, node: str = "g1") -> Spell:
    return Spell(run=run, node=node, start=start, end=end)


@pytest.mark.parametrize(
    ("spells", "jobs"),
    [
        ([spell("a1", 0, 1), spell("a2", 1, 2), spell("b1", 0, 2)], []),
        ([spell("a1", 0, 1), spell("a1", 0, 1), spell("nobody", 0, 1)], []),
        ([spell("a2", 0.9, 2, "g2"), spell("a1", 0, 1)], ["a"]),
        ([spell("a1", 0, 9), spell("a2", 1, 2), spell("a3", 3, 4)], ["a", "a"]),
    ],
)
def test_two_runs_of_a_job_at_the_same_time_are_found(spells: list[Spell], jobs: list[str]) -> None:
    assert [line.partition(":")[0] for line in overlapping(spells, JOBS)] == jobs


def test_a_run_s_job_is_read_from_what_it_left_on_its_node(tmp_path: Path) -> None:
    for run in ("a1", "a2"):
        (tmp_path / "sim-1" / "node" / "output" / "fleet" / "a" / run).mkdir(parents=True)
    assert jobs_of_runs([tmp_path / "sim-1"]) == {"a1": "a", "a2": "a"}
