"""Dataclasses from what another version of the fleet stored."""

from dataclasses import asdict
from typing import Any

import pytest

from comfy_fleet.domain.jobs.job import JobError, JobEvent, Output, OutputKind, Progress
from comfy_fleet.domain.nodes.host import GpuAllocation
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.domain.records import UNREADABLE, from_fields

VALUES: list[Any] = [
    Progress(value=0.5, nodes_done=1, nodes_total=2, current_node="3"),
    JobError(code="node_lost", message="gone", details={"a": [1]}),
    Node(name="a", url="http://127.0.0.1:1", labels={"x": "y"}),
    GpuAllocation(gpu="GPU-1", pids=(1, 2), own=5),
    JobEvent(job_id="j", seq=1, type="status", run=None, data={}),
    Output(asset_id="i", node_id="2", key="images", index=0, name="a.png", kind=OutputKind.IMAGE,
           content_type="image/png", size_bytes=3, hash="h"),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_field_of_a_newer_version_is_left_out(value: Any) -> None:
    assert from_fields(type(value), {**asdict(value), "tenant": "t", "another": {"a": 1}}) == value


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_is_broken_is_said(value: Any) -> None:
    whole = asdict(value)
    for name, part in whole.items():
        wrong: object = [1] if isinstance(part, str | int | float | bool) else 7
        if part is not None:
            with pytest.raises(UNREADABLE):
                from_fields(type(value), {**whole, name: wrong})
    nothing: list[Any] = [[], None, "x", {}]
    for raw in nothing:
        with pytest.raises(UNREADABLE):
            from_fields(type(value), raw)


def test_whole_numbers_are_numbers() -> None:
    assert from_fields(Progress, {"value": 1, "nodes_done": 1, "nodes_total": 1}).value == 1
