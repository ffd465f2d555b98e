"""Runs of classes that a simulated node does not have: it plays what was recorded of them.

The node gets the classes and, when it comes to run such a graph, sends the recorded frames, writes the files
that they name where the posted prefix says, and remembers them for its history.
"""

import json
import posixpath
from base64 import b64decode
from pathlib import Path
from typing import Any, ClassVar

import pytest

from comfy_fleet.sim import engine
from comfy_fleet.sim.execution import PromptExecution
from comfy_fleet.sim.graph import cache_keys
from tests.contract.test_sim_recordings import HEAD, NEW, read

IMAGE = ["IMAGE", {}]
#: By name: inputs and the type of the output. A recorded server had none of them in its list.
UNLISTED: dict[str, tuple[dict[str, Any], str]] = {
    "EmptyAudio": (
        {"duration": ["FLOAT", {}], "sample_rate": ["INT", {}], "channels": ["INT", {}]},
        "AUDIO",
    ),
    "TestDynamicAsyncGeneration": (
        {"image1": IMAGE, "image2": IMAGE, "num_async_nodes": ["INT", {}], "sleep_duration": ["FLOAT", {}]},
        "IMAGE",
    ),
}
LISTED = ("CreateVideo", "SaveVideo", "SaveAudio", "PreviewAudio")


def write_classes(path: Path) -> Path:
    """Write an ``/object_info`` of the classes."""
    recorded = read(NEW, "GET_object_info")
    found = {name: recorded[name] for name in LISTED}
    for name, (inputs, output) in UNLISTED.items():
        found[name] = {
            **recorded["CreateVideo"],
            "name": name,
            "input": {"required": inputs},
            "input_order": {"required": list(inputs)},
            "output": [output],
            "output_name": [output],
        }
    path.write_text(json.dumps(found))
    return path


def play(patch: pytest.MonkeyPatch, recordings: dict[str, str]) -> None:
    """Have simulated nodes play recordings.

    Args:
        patch: For the time of a test.
        recordings: Names of recordings, with a class by which their graphs are known.
    """
    by_class = {class_type: read(NEW, name) for name, class_type in recordings.items()}
    patch.setattr(PlayedExecution, "recordings", by_class)
    patch.setattr(engine, "PromptExecution", PlayedExecution)


class PlayedExecution(PromptExecution):
    """One prompt's run, which may be a recorded one.

    Attributes:
        recordings: By a class of their graph.
    """

    recordings: ClassVar[dict[str, dict[str, Any]]] = {}

    async def run(self) -> None:
        classes = {node["class_type"] for node in self._item.graph.values()}
        recording = next((one for name, one in self.recordings.items() if name in classes), None)
        await (super().run() if recording is None else self._play(recording))

    async def _play(self, recording: dict[str, Any]) -> None:
        item, memory = self._item, self._memory
        self.keys = cache_keys(item.graph, self._extra)
        memory.client = item.extra_data.get("client_id")
        prompt = recording["http"][0]["request"]["json"]["prompt_id"]
        for frame in json.loads(json.dumps(recording["ws"]).replace(prompt, item.prompt_id)):
            kind, data = frame["text"]["type"], frame["text"]["data"]
            if kind == "executed":
                node = data["node"]
                data["output"] = self._written(node, data["output"], _heads(recording))
                meta = {"node_id": node, "display_node": node, "parent_node": None, "real_node_id": node}
                memory.shown[self.keys[node]] = {"meta": meta, "output": data["output"]}
            if kind.startswith("execution_"):
                self._message(kind, {key: one for key, one in data.items() if key == "nodes"})
            elif kind != "status" and data.get("node", "") is not None:
                self._sockets.send(kind, data, memory.client)
        self.ok = True

    def _written(self, node: str, output: Any, heads: dict[str, bytes]) -> Any:
        """Write the files of an output and return it with their places."""
        prefix = str(self._item.graph[node]["inputs"].get("filename_prefix", ""))
        files = [file for files in output.values() for file in files if isinstance(file, dict)]
        for file in files:
            if file["type"] == "output":
                file["subfolder"] = posixpath.dirname(prefix)
            path = self._machine.files.inside(file["type"], file["subfolder"], file["filename"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(heads.get(file["filename"], b"fLaC").ljust(2 * HEAD, b"\0"))
        return output


def _heads(recording: dict[str, Any]) -> dict[str, bytes]:
    """Return how the files began that were asked for, by name."""
    return {
        exchange["request"]["path"].partition("filename=")[2].partition("&")[0]: b64decode(
            exchange["response"]["body"]["base64_head"]
        )
        for exchange in recording["http"]
        if exchange["request"]["path"].startswith("/view")
    }
