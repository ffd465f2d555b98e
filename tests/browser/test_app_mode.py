"""What the editor's App mode marks, as a real editor writes it, is found in the graph that it runs."""

from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.domain.graphs.app_mode import marked_inputs
from tests.browser.chromium import Chromium
from tests.browser.conftest import Servers
from tests.browser.editor import editor
from tests.browser.graphs import EditorGraph

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

MARKED = """(async () => {
  const app = window.app, root = app.rootGraph ?? app.graph;
  const of = (graph, type) => graph._nodes.find((node) => node.type === type);
  if (!of(root, "SaveImage").widgets[0].widgetId) return null;
  root.convertToSubgraph(new Set([of(root, "EmptyImage"), of(root, "ImageScale")]));
  const middle = root._nodes.find((node) => node.isSubgraphNode?.());
  const made = of(middle.subgraph, "EmptyImage");
  const width = made.inputs.find((one) => one.widget?.name === "width");
  middle.subgraph.addInput("size", "INT").connect(width, made);
  root.convertToSubgraph(new Set([middle]));
  const outer = root._nodes.find((node) => node.isSubgraphNode?.());
  const inner = outer.subgraph._nodes.find((node) => node.isSubgraphNode?.());
  if (!outer.widgets.length) {
    outer.subgraph.addInput("Breite", "INT").connect(inner.inputs.find((one) => one.name === "size"), inner);
  }
  outer.widgets[0].value = 99;
  const saved = of(root, "SaveImage").widgets[0];
  saved.value = "marked";
  (root.extra ??= {}).linearData = {
    inputs: [
      [outer.widgets[0].widgetId, outer.widgets[0].name],
      [saved.widgetId, saved.name, {description: "Where"}],
    ],
    outputs: [of(root, "SaveImage").id],
  };
  const {workflow, output} = await app.graphToPrompt();
  return {ui: workflow, graph: output, name: outer.widgets[0].name};
})()"""


def test_marks_of_nodes_and_through_subgraphs_are_found(
    browser: Chromium, servers: Servers, tmp_path: Path
) -> None:
    """The editor itself puts the marked widgets' values where they belong, which shows the places."""
    document = EditorGraph()
    made = document.add("EmptyImage", 64, 64, 1, 255, gives="IMAGE")
    scaled = document.add(
        "ImageScale", "nearest-exact", 32, 48, "disabled", source=made, into="image", gives="IMAGE"
    )
    document.add("SaveImage", "plain", source=scaled, into="images")
    (server,) = servers.take(1)
    with editor(browser, server.url) as opened:
        opened.load(document.write(tmp_path / "marks.json"))
        found: dict[str, Any] | None = opened.page.evaluate(MARKED)
    if found is None:
        pytest.skip("this version of the editor has no App mode")
    graph = found["graph"]
    width, prefix = marked_inputs(found["ui"], graph)
    assert (width.name, prefix.name, prefix.description) == (found["name"], "filename_prefix", "Where")
    ((node, input_),) = width.targets
    assert (graph[node]["class_type"], input_, graph[node]["inputs"][input_]) == ("EmptyImage", "width", 99)
    ((node, input_),) = prefix.targets
    assert graph[node]["inputs"][input_] == "marked"
