"""What frames tell: nodes that grow while running, attribution of pictures, completeness."""

import json
from typing import Any

from comfy_fleet.domain.jobs.frames import Picture
from comfy_fleet.domain.jobs.run import FRAME_OUTPUTS
from comfy_fleet.domain.jobs.run_messages import Frame
from comfy_fleet.domain.jobs.run_transcript import LONGEST_ID, MOST_NODES, RunTranscript
from tests.unit.run_harness import PNG

GRAPH: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    "3": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}},
}


def transcript() -> RunTranscript:
    return RunTranscript("r", GRAPH, FRAME_OUTPUTS)


def frame(type_: str, **data: Any) -> Frame:
    return Frame(type_, {"prompt_id": "r", **data})


def picture(node: str | None = None, prompt: str = "r") -> bytes:
    if node is None:
        return b"\0\0\0\x01\0\0\0\x02" + PNG
    metadata = json.dumps({"node_id": node, "prompt_id": prompt}).encode()
    return b"\0\0\0\x04" + len(metadata).to_bytes(4, "big") + metadata + PNG


def test_whose_frame_it_is() -> None:
    seen = transcript()
    assert seen.mine(frame("x"))
    assert seen.mine(Frame("progress", {"value": 1, "max": 2}))
    assert not seen.mine(Frame("executing", {"node": None}))
    assert not seen.mine(Frame("executing", {"node": None, "prompt_id": "other"}))


def test_a_grown_node_is_shown_as_the_one_it_grew_from() -> None:
    seen = transcript()
    seen.take(frame("executing", node="1.0.7", display_node="1"))
    seen.take(Frame("progress", {"value": 3, "max": 4}))
    assert (seen.meter.snapshot.current_node, seen.meter.snapshot.step) == ("1", 3)
    shown = seen.take_binary(picture())
    assert isinstance(shown, Picture)
    assert shown.node_id == "1"
    seen.take(frame("executed", node="1.0.7", display_node="1", output={"text": ["x"]}))
    assert list(seen.items) == [("1.0.7", "text", 0)]


def test_pictures_go_to_the_node_that_sent_them() -> None:
    seen = transcript()
    seen.take(frame("executing", node="1"))
    assert seen.take_binary(picture("3")) is None, "an output, whoever computes now"
    assert seen.take_binary(picture("3", prompt="other")) is None
    assert list(seen.items) == [("3", "images", 0)]
    seen.take(frame("progress", node="3", value=1, max=2))
    assert seen.take_binary(picture()) is None
    assert len(seen.items) == 2
    assert isinstance(seen.take_binary(picture("2")), Picture)


def test_complete_only_if_nothing_can_be_missing() -> None:
    done = {"1": {"state": "finished"}, "2": {"state": "finished"}}
    frames = [
        frame("execution_start"),
        frame("executing", node="2"),
        frame("executed", node="2", output={"images": [{"filename": "a.png"}]}),
        frame("progress_state", nodes=done),
        frame("execution_success"),
    ]
    for missing in (None, *frames):
        seen = transcript()
        for each in frames:
            if each is not missing:
                seen.take(each)
        without_harm = missing is None or missing.type == "executing"
        assert seen.complete is without_harm, missing


def test_unknown_types_say_nothing() -> None:
    seen = transcript()
    assert not seen.take(frame("new_type", node="1"))
    assert not seen.ended


def test_of_nodes_that_were_made_up_little_is_kept() -> None:
    seen = transcript()
    for number in range(MOST_NODES + 100):
        seen.take(frame("executing", node=f"x{number}", display_node=f"y{number}"))
        seen.take(frame("executed", node=f"x{number}", output={"text": ["a"]}))
    seen.take(frame("executed", node="n" * (LONGEST_ID + 1), output={"text": ["a"]}))
    assert len(seen.items) <= MOST_NODES
    for one in ("1", "2", "3"):  # those that were posted are known all the same
        seen.take(frame("executed", node=one, output={"text": ["b"]}))
        assert (one, "text", 0) in seen.items
    seen.take(frame("execution_start"))
    seen.take(frame("execution_success"))
    assert not seen.complete, "the history knows the others"


def test_more_outputs_than_a_job_may_have_are_not_kept() -> None:
    seen = RunTranscript("r", GRAPH, FRAME_OUTPUTS, most_items=3)
    seen.take(frame("executed", node="2", output={"text": ["aa", "bb", "cc", "dd"]}))
    seen.take(frame("executing", node="3"))
    assert seen.take_binary(picture()) is None
    assert list(seen.items) == [("2", "text", 0), ("2", "text", 1), ("2", "text", 2)]
