"""A fleet's finished jobs become a trace."""

from typing import Any

import pytest

from comfy_fleet.planning.history import History
from comfy_fleet.planning.trace import header, line_of, read

NODES = [{"name": "n1", "pool": "default", "speed": 1.0}, {"name": "n2", "pool": "big", "speed": 2.0}]


def listed(name: str, at: int, started: int | None, ended: int | None, **more: Any) -> dict[str, Any]:
    """Return a job as the API lists it; times are seconds after noon."""

    def time(seconds: int | None) -> str | None:
        if seconds is None:
            return None
        return f"2026-05-01T12:{seconds // 60:02}:{seconds % 60:02}.000Z"

    usual = {"status": "succeeded", "node": "n1", "workflow": "card", "metadata": None, "priority": 0}
    times = {"created_at": time(at), "started_at": time(started), "completed_at": time(ended)}
    return {"id": name, **usual, **times, **more}


def graph(checkpoint: str, **loras: str) -> dict[str, Any]:
    nodes = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}}}
    for number, lora in loras.items():
        inputs = {"model": ["1", 0], "lora_name": lora, "strength_model": 1.0}
        nodes[number] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    return nodes


def history(**more: Any) -> History:
    def sizes(folder: str) -> Any:
        return {"checkpoints": [{"name": "a.safetensors", "size": 700}, {"name": "x"}, "odd"]}.get(folder, [])

    return History(nodes=NODES, sizes=sizes, unknown_bytes=50, **more)


def test_times_pool_and_models_are_those_of_the_job() -> None:
    found = history()
    found.add(listed("2", 10, 12, 20, node="n2", priority=3), graph("a.safetensors", l="sub\\b.safetensors"))
    found.add(listed("1", 5, 6, 9), graph("a.safetensors"))
    first, second = found.jobs()
    assert [(job.id, job.submitted, job.run_s, job.pool, job.priority) for job in (first, second)] == [
        ("1", 0.0, 3.0, "default", 0),
        ("2", 5.0, 16.0, "big", 3),
    ]
    assert first.models.files == (("checkpoints/a.safetensors", 700),)
    assert second.models.files == (("checkpoints/a.safetensors", 700), ("loras/sub/b.safetensors", 50))
    assert list(read([header(), line_of(first), line_of(second)], "t")) == [first, second]


def test_a_run_that_loaded_models_counts_as_like_ones_that_did_not() -> None:
    found = history()
    for number, (checkpoint, took) in enumerate([("a", 30), ("a", 4), ("a", 6), ("b", 40), ("a", 25)]):
        start = number * 60
        found.add(listed(str(number), start, start, start + took), graph(f"{checkpoint}.safetensors"))
    # The first and the last loaded a; of b there is one run only, with its load.
    assert [job.run_s for job in found.jobs()] == [5.0, 4.0, 6.0, 40.0, 5.0]


def test_a_job_that_was_canceled_would_have_taken_what_like_jobs_take() -> None:
    found = history()
    found.add(listed("1", 0, 0, 8), graph("a.safetensors"))
    found.add(listed("2", 5, None, 9, status="canceled", node=None), graph("a.safetensors"))
    found.add(listed("3", 6, None, 9, status="expired", node=None), graph("new.safetensors"))
    one, two = found.jobs()
    assert (two.id, two.run_s, two.canceled_at, one.canceled_at) == ("2", 8.0, 9.0, None)


@pytest.mark.parametrize(
    ("labels", "owner"),
    [
        ({"team": "red"}, "red"),
        ({"team": "a\x00b"}, "a?b"),
        ({"x": "y"}, "everybody"),
        (None, "everybody"),
        ("text", "everybody"),
    ],
)
def test_a_label_tells_the_owner(labels: Any, owner: str) -> None:
    found = history(owner_label="team")
    found.add(listed("1", 0, 0, 8, metadata=labels), {})
    assert [job.owner for job in found.jobs()] == [owner]


@pytest.mark.parametrize("odd", [None, [], {"1": None}, {"1": {"class_type": "X"}}, {"1": {"inputs": []}}])
def test_an_odd_graph_loads_nothing(odd: Any) -> None:
    found = history()
    found.add(listed("1", 0, 0, 8), odd)
    assert [job.models.files for job in found.jobs()] == [()]


def test_a_job_that_only_warmed_a_node_is_left_out() -> None:
    found = history()
    found.add(listed("1", 5, 6, 9, tier="warming"), graph("a.safetensors"))
    found.add(listed("2", 7, 8, 9, tier="single"), graph("a.safetensors"))
    assert [job.id for job in found.jobs()] == ["2"]


def test_without_jobs_there_is_no_trace() -> None:
    found = history()
    found.add({"id": "1", "created_at": None}, {})
    found.add({"id": "2", "created_at": "yesterday"}, {})
    assert found.jobs() == []
