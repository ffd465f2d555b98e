"""The policies to compare with, each in a case that shows its rule."""

import pytest

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.planning.fleet import planned
from comfy_fleet.planning.registry import CONTENDERS, contenders
from tests.unit.planning.kit import GIB, fleet, group, job, models, simulate

A, B = models("a"), models("b")
N1, N2, N3 = "default-24g-1", "default-24g-2", "default-24g-3"


def test_fifo_takes_whichever_node_is_free() -> None:
    jobs = [job("1", run_s=9.0), job("2", run_s=4.0), job("3"), job("4")]
    found = simulate(jobs, fleet(2))
    assert found.started() == {"1": 0.0, "2": 0.0, "3": 4.0, "4": 9.0}
    assert found.where() == {"1": N1, "2": N2, "3": N2, "4": N1}


def test_fifo_knows_nothing_of_models() -> None:
    jobs = [job(str(n), run_s=1.0, loads=(A, B)[n % 2]) for n in range(6)]
    assert simulate(jobs, fleet(1, vram_gib=12)).outcome.loads == 6


def test_fifo_leaves_a_job_that_needs_more_to_a_larger_card() -> None:
    nodes = planned([group(1, vram_gib=12), group(1)])
    jobs = [job("long", run_s=50.0), job("big", run_s=5.0, memory=20 * GIB), job("small", at=60.0)]
    found = simulate(jobs, nodes)
    # It fails on the small card at once only after the other one has taken its job.
    assert found.where() == {"long": "default-12g-1", "big": N1, "small": N1}


def test_leastconn_pushes_to_the_node_with_the_fewest_jobs() -> None:
    jobs = [
        job("1", run_s=100.0),
        job("2", run_s=1.0),
        job("3", run_s=1.0),
        job("4", at=1.5),
        job("5", at=1.6),
    ]
    found = simulate(jobs, fleet(2), "leastconn")
    # The third goes behind the first: both nodes had one job. It can't leave again.
    assert found.where() == {"1": N1, "2": N2, "3": N1, "4": N2, "5": N2}
    assert found.started()["3"] == 100.0
    assert found.started()["5"] == 11.5


def test_round_robin_takes_turns_whatever_waits() -> None:
    jobs = [job("1", run_s=100.0), *(job(str(n), at=float(n), run_s=0.5) for n in range(2, 8))]
    found = simulate(jobs, fleet(3), "round-robin")
    assert [found.where()[str(n)] for n in range(1, 8)] == [N1, N2, N3, N1, N2, N3, N1]
    assert (found.started()["4"], found.started()["7"]) == (100.0, 100.5)


@pytest.mark.parametrize("policy", ["leastconn", "round-robin"])
def test_a_node_that_dies_loses_its_own_queue_to_the_others(policy: str) -> None:
    jobs = [job(str(number), run_s=20.0) for number in range(20)]
    found = simulate(jobs, fleet(2), policy, mean_up_s=60.0, repair_s=1000.0, max_attempts=50, seed=1)
    assert found.outcome.node_failures > 0
    assert found.outcome.succeeded == 20


def test_edf_takes_the_earliest_deadline_and_gives_up_what_is_too_late() -> None:
    jobs = [
        job("runs", run_s=10.0),
        job("whenever"),
        job("late", run_s=10.0, finish_by=15.0),
        job("loose", run_s=10.0, finish_by=100.0),
        job("tight", run_s=10.0, finish_by=25.0),
    ]
    found = simulate(jobs, fleet(), "edf")
    assert [run.job.id for run in found.runs] == ["runs", "tight", "loose", "whenever", "late"]
    assert (found.outcome.wished, found.outcome.met) == (3, 2)


def test_swarmui_sends_a_request_to_a_backend_that_has_its_model() -> None:
    jobs = [
        job("1", loads=A, run_s=5.0),
        job("2", at=1.0, loads=B, run_s=5.0),
        job("3", at=40.0, loads=B, run_s=5.0),
        job("4", at=41.0, loads=A, run_s=5.0),
    ]
    found = simulate(jobs, fleet(2), "swarmui")
    # 1.5 s of pressure before the first load, as two backends are free; while one loads, only one is.
    assert found.started() == {"1": 1.501, "2": 1.501, "3": 40.0, "4": 41.0}
    assert found.where()["3"] == found.where()["2"] != found.where()["1"] == found.where()["4"]
    assert found.outcome.loads == 2


def test_swarmui_binds_a_second_request_to_a_backend_in_use() -> None:
    jobs = [
        job("1", loads=A, run_s=30.0),
        job("2", at=20.0, loads=A, run_s=30.0),
        job("3", at=20.5, loads=A, run_s=30.0),
    ]
    found = simulate(jobs, fleet(2), "swarmui")
    # The second waits behind the first although a backend is free; for the third one, that loads the model.
    assert found.where() == {"1": N1, "2": N1, "3": N2}
    assert found.started()["2"] == pytest.approx(41.5, abs=0.01)
    assert found.started()["3"] == pytest.approx(20.5)


def test_swarmui_loads_the_model_with_the_most_pressure() -> None:
    jobs = [
        job("1", loads=A, run_s=20.0),
        job("2", loads=A, run_s=20.0),
        job("b", at=16.0, loads=B, run_s=1.0),
        job("c1", at=17.0, loads=models("c"), run_s=1.0),
        job("c2", at=17.5, loads=models("c"), run_s=1.0),
    ]
    found = simulate(jobs, fleet(1), "swarmui")
    order = [run.job.id for run in found.runs]
    assert order == ["1", "2", "c1", "c2", "b"]


def test_policies_are_named_in_a_list() -> None:
    assert [one.name for one in contenders("fifo, edf,fifo")] == ["fifo", "edf"]
    with pytest.raises(BadInput, match=r"--policy: 'sjf' is unknown; there are .*fifo"):
        contenders("fifo,sjf")
    with pytest.raises(BadInput, match="names no policy"):
        contenders(" ,")
    assert all(name == one.name and one.about for name, one in CONTENDERS.items())
