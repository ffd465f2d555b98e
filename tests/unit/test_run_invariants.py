"""Any events in any order: what holds between a run's phase and its attributes holds after each of them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.jobs.run import Run, RunLimits, RunPhase
from comfy_fleet.domain.jobs.run_messages import (
    AskFailed,
    CancelRequested,
    Event,
    FreeElsewhere,
    HistoryAnswered,
    InterruptSent,
    Opened,
    PostAnswered,
    PostUnknown,
    QueueAnswered,
    SocketClosed,
    Tick,
    Unread,
)
from tests.unit.run_harness import RUN, accepted, frame, idle

LIMITS = RunLimits(silence_s=60, run_s=90)
ERROR = {"exception_type": "X", "exception_message": "boom", "node_id": "1"}
EVENTS: list[Event] = [
    Opened(),
    Tick(),
    Unread(),
    CancelRequested(),
    FreeElsewhere(),
    accepted(RUN),
    PostAnswered(200, {"prompt_id": RUN, "node_errors": {"2": {"errors": [{"type": "x"}]}}}),
    PostAnswered(400, {"error": {"message": "no"}}),
    PostAnswered(503),
    PostUnknown("reset"),
    SocketClosed("reset"),
    SocketClosed("large", limit="a frame is too large"),
    *(InterruptSent(ok) for ok in (True, False)),
    *(QueueAnswered(state) for state in ("running", "pending", "absent")),
    *(AskFailed("queue", kind) for kind in ("unreachable", "node_down", "error", "unusable")),
    *(AskFailed("history", kind) for kind in ("unreachable", "node_down", "error", "unusable")),
    HistoryAnswered(None),
    HistoryAnswered({"outputs": {}, "status": {"status_str": "success", "messages": []}}),
    HistoryAnswered({"status": {"status_str": "error", "messages": [["execution_error", ERROR]]}}),
    frame("execution_start"),
    frame("executing", node="1"),
    frame("executed", node="2", output={"images": [{"filename": "a.png", "type": "output"}]}),
    frame("execution_success"),
    frame("execution_interrupted"),
    frame("execution_error", **ERROR),
    idle(),
]
GRAPHS = [
    {"1": {"class_type": "EmptyImage", "inputs": {}}, "2": {"class_type": saver, "inputs": {"i": ["1", 0]}}}
    for saver in ("SaveImage", "SaveImageWebsocket")
]


@settings(max_examples=600, deadline=None)
@given(
    graph=st.sampled_from(GRAPHS),
    adopted=st.booleans(),
    accepted=st.booleans(),
    events=st.lists(st.tuples(st.sampled_from(EVENTS), st.sampled_from([0.0, 0.01, 2.0, 40.0])), max_size=30),
)
def test_they_hold_whatever_comes(
    graph: dict[str, object], adopted: bool, accepted: bool, events: list[tuple[Event, float]]
) -> None:
    run = Run(run_id=RUN, graph=graph, limits=LIMITS, now=0.0, adopted=adopted, accepted=accepted)
    now = 0.0
    for event, wait_s in [(Opened(), 0.0), *events]:
        now += wait_s
        run.handle(event, now)
        run.validate()


def test_a_run_whose_end_is_unknown_gives_up_though_its_websocket_broke_a_limit() -> None:
    run = Run(run_id=RUN, graph=GRAPHS[0], limits=LIMITS, now=0.0)
    for event in (
        Opened(),
        frame("execution_start"),
        idle(),
        SocketClosed("large", limit="a frame is too large"),
        accepted(RUN),
    ):
        run.handle(event, 0.0)
    now = 0.0
    while run.phase is not RunPhase.DONE:
        at = run.next_tick()
        assert at is not None
        now = max(now, at)
        assert now < 1000, "it would ask for ever"
        run.handle(Tick(), now)
        run.handle(AskFailed("history", "error"), now)
