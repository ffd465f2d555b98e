"""What `fleet warm` says of each node."""

from typing import Any

import pytest

from comfy_fleet.cli.warm import outcome, row

NODE = {
    "node": "g1",
    "pool": "default",
    "workflow": "card",
    "models": ["checkpoints/a", "loras/b", "vae/c"],
    "job": "j",
    "loaded": False,
    "why": None,
}


def job(status: str, **more: Any) -> dict[str, Any]:
    return {"status": status, "metrics": {"queue_ms": 1, "execution_ms": 2500}, "error": None, **more}


@pytest.mark.parametrize(
    ("ended", "status", "took", "said"),
    [
        (job("succeeded"), "warm", "2.5s", "ok"),
        (
            job("expired"),
            "skipped",
            "",
            "skipped: it was not idle in time: real jobs went first, or it was not up",
        ),
        (job("canceled"), "skipped", "", "skipped: canceled"),
        (job("failed", error={"message": "no room"}), "failed", "2.5s", "failed: no room"),
        (job("failed", metrics={"queue_ms": 1, "execution_ms": None}), "failed", "", "failed: it failed"),
    ],
)
def test_a_node_with_a_job(ended: dict[str, Any], status: str, took: str, said: str) -> None:
    found = {**NODE, **outcome(NODE, ended)}
    assert found["status"] == status
    assert row(found) == ("g1", "card", "a, b and 1 more", took, said)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"loaded": True}, "ok, it has them"),
        ({"why": "busy; --wait S waits for it"}, "skipped: busy; --wait S waits for it"),
    ],
)
def test_a_node_without_a_job(about: dict[str, Any], said: str) -> None:
    found = {**NODE, "job": None, **about}
    assert row({**found, **outcome(found, None)})[-1] == said
