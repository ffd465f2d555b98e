"""What the figures about memory and lost jobs are made of."""

import json
import tomllib
from pathlib import Path

import pytest

from benchmarks import trace
from benchmarks.operations import audit
from comfy_fleet.domain.graphs.pixels import sampled_pixels


def test_a_seed_draws_the_same_trace_and_another_one_another() -> None:
    first = trace.draw(1, jobs=500, workflows=25, job_s=0.4)
    assert first == trace.draw(1, jobs=500, workflows=25, job_s=0.4)
    assert first != trace.draw(2, jobs=500, workflows=25, job_s=0.4)


@pytest.mark.parametrize("workflows", [25, 500])
def test_needs_are_wrong_by_as_much_as_is_said(workflows: int) -> None:
    drawn = trace.draw(1, jobs=500, workflows=workflows, job_s=0.4)
    assert len(drawn.arrivals) == 500
    per_workflow = [sum(a.workflow == w for a in drawn.arrivals) for w in range(workflows)]
    assert set(per_workflow) == {500 // workflows}
    undeclared = [need for need in drawn.needs if need.declared_gib is None]
    assert len(undeclared) == workflows // 5
    low, high = trace.NEEDS_GIB
    for need in drawn.needs:
        assert low <= need.true_gib <= high
        if need.declared_gib is not None and need.declared_gib < max(trace.CARDS_GIB):
            assert 1 - trace.ERROR - 0.01 <= need.true_gib / need.declared_gib <= 1 + trace.ERROR + 0.01
    errors = [n.true_gib / n.declared_gib - 1 for n in drawn.needs if n.declared_gib]
    assert min(errors) < -0.2
    assert max(errors) > 0.2


def test_jobs_arrive_in_order_at_the_load_that_is_said() -> None:
    drawn = trace.draw(1, jobs=500, workflows=25, job_s=0.4)
    times = [arrival.at_s for arrival in drawn.arrivals]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(500 * 0.4 / 4 / trace.LOAD, rel=0.15)
    assert len({arrival.seed for arrival in drawn.arrivals}) == 500


def test_the_foreign_process_comes_and_goes() -> None:
    held = [trace.foreign(second) for second in range(60)]
    assert held.count(0.0) == 60 - 3 * int(trace.FOREIGN_FOR_S)
    assert set(held) == {0.0, trace.FOREIGN_GIB}


def test_nodes_and_workflows_are_written_as_drawn(tmp_path: Path) -> None:
    drawn = trace.draw(1, jobs=25, workflows=25, job_s=0.4)
    trace.write_models(tmp_path / "models.json", drawn.needs)
    trace.write_workflows(tmp_path / "workflows", drawn.needs)
    sizes = json.loads((tmp_path / "models.json").read_text())["checkpoints"]
    for need in drawn.needs:
        file = trace.graph(need, 7)["1"]["inputs"]["ckpt_name"]
        assert sizes[file] * 1e9 / 2**30 == pytest.approx(need.true_gib)
        manifest = tomllib.loads((tmp_path / "workflows" / need.name / "workflow.toml").read_text())
        assert manifest.get("requires", {}).get("vram_gb") == need.declared_gib


def test_jobs_may_share_models_and_differ_in_their_pictures(tmp_path: Path) -> None:
    drawn = trace.draw(1, jobs=200, workflows=200, job_s=0.4, models=8)
    assert len({need.model for need in drawn.needs}) == 8
    assert len({(need.model, need.width, need.height, need.batch) for need in drawn.needs}) > 190
    low, high = trace.NEEDS_GIB
    for need in drawn.needs:
        pixels = sampled_pixels(trace.graph(need, 1))
        assert need.true_gib == pytest.approx(need.model_gib + pixels * trace.BYTES_PER_PIXEL / 2**30)
        assert low - 0.1 <= need.true_gib <= high + 0.1
    trace.write_models(tmp_path / "models.json", drawn.needs)
    assert len(json.loads((tmp_path / "models.json").read_text())["checkpoints"]) == 8


def test_an_audit_tells_lost_failed_and_doubled_jobs() -> None:
    records: dict[str, dict[str, object]] = {
        "a": {"status": "succeeded", "attempt": 1},
        "b": {"status": "failed"},
        "c": {"status": "running"},
    }
    found = audit(["a", "b", "c", "d"], records, done=3)
    assert (found.lost, found.failed, found.twice, found.counted) == (2, 1, 2, 1)
    assert not found.clean
    assert str(found) == "2 lost, 1 failed, 2 run twice"
    assert audit(["a"], {"a": records["a"]}, done=1).clean
    assert audit(["a"], {"a": records["a"]}, done=0).twice == 0
