"""A version of a stored workflow as the files of a folder."""

import io
import zipfile
from collections.abc import Mapping

import orjson

from comfy_fleet.domain.graphs.app_mode import linear_data, marked_inputs
from comfy_fleet.domain.graphs.stored import EditorGraph, WorkflowContent
from comfy_fleet.domain.graphs.workflow_files import EDITOR_FILE, GRAPH_FILE, MANIFEST_FILE, toml_text


def files(content: WorkflowContent, ui: EditorGraph | None) -> Mapping[str, bytes]:
    """Return the files of a folder by name; read from there, it is the same version."""
    if content.marked and marked_inputs(ui, content.graph) != content.marked:
        ui = linear_data(content.marked)  # its graph came without the editor's: the marks were kept
    texts = {
        GRAPH_FILE: orjson.dumps(content.graph, option=orjson.OPT_INDENT_2),
        MANIFEST_FILE: toml_text(content.manifest).encode(),
        EDITOR_FILE: b"" if ui is None else orjson.dumps(ui),
    }
    return {name: text for name, text in texts.items() if text}


def zipped(name: str, content: WorkflowContent, ui: EditorGraph | None) -> bytes:
    """Return the folder as a ZIP, the same bytes each time."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as into:
        for file, text in files(content, ui).items():
            into.writestr(zipfile.ZipInfo(f"{name}/{file}"), text, zipfile.ZIP_DEFLATED)
    return archive.getvalue()
