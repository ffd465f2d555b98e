"""The run machine against a truthful node whose frames come late, twice or never."""

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.jobs.run import Run
from comfy_fleet.domain.jobs.run_messages import (
    AskFailure,
    Binary,
    Collect,
    Frame,
    Opened,
    PostAnswered,
    PostUnknown,
    Report,
)
from comfy_fleet.domain.jobs.run_results import read_history
from tests.unit.run_harness import (
    CANCEL,
    LIMITS,
    RUN,
    World,
    accepted,
    events_of,
    files,
    frame,
    history_of,
    idle,
    recording,
    request_of,
)


def node_script(outcome: str) -> tuple[list[Frame | Binary], dict[str, Any], dict[str, Any]]:
    """A script of frames, its history entry and the request."""
    if outcome == "several":
        return several_outputs()
    name = {"success": "extra_pnginfo", "cached": "cached_rerun", "error": "error_execution"}[outcome]
    record = recording(name)
    run = request_of(record)["prompt_id"]
    script = [event for event in events_of(record) if isinstance(event, Frame) and event.type != "status"]
    if outcome == "error":
        script.append(idle(run))
    return list(script), history_of(record), request_of(record)


def several_outputs() -> tuple[list[Frame | Binary], dict[str, Any], dict[str, Any]]:
    """Four nodes that show something; the last one is cached and keeps silent about it."""
    outputs = {
        "2": {"images": [{"filename": "a.png", "subfolder": "x", "type": "output"}]},
        "3": {"images": [{"filename": "p.png", "subfolder": "", "type": "temp"}], "animated": [False]},
        "4": {"text": ["one", "two"]},
        "5": {"gifs": [{"filename": "v.mp4", "subfolder": "", "type": "output"}]},
    }
    graph: dict[str, Any] = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}}
    graph |= {node: {"class_type": "Show", "inputs": {"images": ["1", 0]}} for node in outputs}
    script: list[Frame | Binary] = [frame("execution_start"), frame("execution_cached", nodes=["5"])]
    states: dict[str, Any] = {}
    for node in ("1", "2", "3", "4"):
        states[node] = {"value": 0, "max": 1, "state": "running"}
        script += [frame("progress_state", nodes=dict(states)), frame("executing", node=node)]
        if node in outputs:
            script.append(frame("executed", node=node, output=outputs[node]))
        states[node] = {"value": 1, "max": 1, "state": "finished"}
        script.append(frame("progress_state", nodes=dict(states)))
    script += [frame("execution_success"), idle()]
    status = {"status_str": "success", "completed": True, "messages": []}
    return script, {"outputs": outputs, "status": status}, {"prompt": graph, "prompt_id": RUN}


@st.composite
def worlds(draw: st.DrawFn, outcome: str = "success") -> World:
    script, history, request = node_script(outcome)
    fates = draw(
        st.lists(
            st.sampled_from([(), (0.0,), (0.0,), (0.0,), (0.0, 0.0), (0.03,), (0.2,), (0.001, 0.4)]),
            min_size=len(script),
            max_size=len(script),
        )
    )
    faults: list[AskFailure | None] = draw(
        st.lists(st.sampled_from([None, None, "unreachable", "error"]), max_size=6)
    )
    run_id = request["prompt_id"]
    unsure = draw(st.booleans())
    run = Run(
        run_id=run_id,
        graph=request["prompt"],
        limits=replace(LIMITS, probe_s=draw(st.sampled_from([0.05, 1.0, 15.0]))),
        now=1000.0,
    )
    world = World(
        run=run,
        run_id=run_id,
        script=script,
        history=history,
        post=PostUnknown("reset") if unsure else accepted(run_id),
        deliver=lambda index: fates[index],
        faults=lambda: faults.pop() if faults else None,
        latency_s=draw(st.sampled_from([0.001, 0.004, 0.03])),
        beat_s=draw(st.sampled_from([0.0, 0.01, 0.5])),
        pending_s=draw(st.sampled_from([0.0, 0.02, 3.0])),
        deaf_s=draw(st.sampled_from([0.0, 0.05, 3.0])),
    )
    closes = draw(st.none() | st.floats(0.001, 2.0))
    if closes is not None:
        world.at(closes, world.close)
    return world


@settings(max_examples=300, deadline=None)
@given(world=st.one_of(worlds(), worlds("cached"), worlds("several"), worlds("several")))
def test_every_disorder_ends_with_the_outputs_of_the_history(world: World) -> None:
    world.feed(Opened())
    log = world.play()
    assert log.verdict.kind == "succeeded"
    assert files(log.left) == files(read_history(world.history).items)
    assert world.state == "absent", "it had left the node"


@settings(max_examples=150, deadline=None)
@given(world=worlds(outcome="error"))
def test_every_disorder_ends_with_the_nodes_error(world: World) -> None:
    world.feed(Opened())
    log = world.play()
    assert log.verdict.kind == "failed"
    assert log.verdict.error is not None
    assert log.verdict.error.node_id == "3"


@settings(max_examples=300, deadline=None)
@given(world=st.one_of(worlds(), worlds("several")), cancel_at=st.floats(0.0, 6.0))
def test_a_cancel_at_any_moment_ends_with_a_free_node(world: World, cancel_at: float) -> None:
    world.at(cancel_at, lambda: world.feed(CANCEL))
    world.feed(Opened())
    log = world.play()
    assert log.verdict.kind in ("succeeded", "canceled")
    assert world.state == "absent", "the node is free"


@settings(max_examples=200, deadline=None)
@given(world=st.one_of(worlds(), worlds("several")), dies_at=st.floats(0.0, 3.0))
def test_a_node_that_dies_at_any_moment_is_noticed(world: World, dies_at: float) -> None:
    world.dies_at = world.now + dies_at
    world.at(dies_at + 0.004, world.close)
    world.feed(Opened())
    log = world.play()
    assert log.verdict.kind in ("succeeded", "lost")
    if log.verdict.kind == "lost" and isinstance(world.post, PostAnswered):
        assert log.verdict.counts
        assert log.verdict.retryable


@settings(max_examples=100, deadline=None)
@given(world=worlds())
def test_a_post_that_never_arrived_is_found_out(world: World) -> None:
    world.post, world.reached = PostUnknown("reset"), False
    world.feed(Opened())
    log = world.play()
    assert (log.verdict.kind, log.verdict.counts) == ("lost", False)
    assert log.of(Report, Collect) == []
