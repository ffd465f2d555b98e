"""What operators and authors write: graphs, manifests, values, keys, limits, settings and URLs."""

import contextlib
import json
import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.fuzz import recordings, values
from benchmarks.fuzz.target import Target, right
from comfy_fleet.adapters.workflows.catalog import load_whole
from comfy_fleet.adapters.workflows.manifest import resolve
from comfy_fleet.domain.errors import BadInput, ConfigError, InvalidParameter, OutboundRefused
from comfy_fleet.domain.graphs import (
    app_mode,
    binding,
    breaking_changes,
    editor_graph,
    excerpt,
    graph,
    merging,
    output_count,
    part_sources,
    pixels,
    publish_check,
    reseed,
    structure,
    title_parameters,
    workflow_diff,
    workflow_files,
)
from comfy_fleet.domain.graphs.workflow import Workflow, json_schema
from comfy_fleet.domain.graphs.workflow_names import NAME, slug
from comfy_fleet.domain.jobs.input_fetch import fresh_s, is_url
from comfy_fleet.domain.jobs.trace_context import read_traceparent
from comfy_fleet.domain.moderation import judged_texts, read_judgement
from comfy_fleet.domain.nodes import node
from comfy_fleet.domain.outbound import parse_allowed, parse_target
from comfy_fleet.domain.people import parse_keys
from comfy_fleet.domain.webhooks import webhook
from comfy_fleet.services.signed_urls import Readable, SignedUrls
from comfy_fleet.settings import SOURCE, Settings

_REFUSED = (BadInput, ConfigError, OutboundRefused)


def _graph(value: Any) -> None:
    """Take a graph as a submit does, and use all that reads graphs."""
    with contextlib.suppress(BadInput):
        checked = structure.check(structure.carried(value))
        json.dumps(checked, allow_nan=False).encode()
        graph.asset_references(checked)
        graph.profile(checked)
        graph.upstream(checked, graph.sinks(checked))
        pixels.sampled_pixels(checked)
        output_count.certain_files(checked)
        excerpt.of_graph(checked)
        judged_texts(checked)
        posted = graph.for_run(checked, job_id="j", run_id="r", rerun_nodes=frozenset(checked))
        right(posted.keys() == checked.keys(), "nodes are gone")
        structure.check(posted)
        made = reseed.reseeded(checked, lambda: 7)
        if made is not None:
            structure.check(made.graph)
            reseed.editor_graph_with(value, made.seeds)
        with contextlib.suppress(ValueError):
            structure.check(merging.batched(checked, 2))
        with contextlib.suppress(ConfigError):
            title_parameters.declared(checked)


def _editor_graph(case: tuple[Any, Any]) -> None:
    ui, plain = case
    part_sources.part_sources(ui)
    reseed.editor_graph_with(ui, {("1", "seed"): (1, 2)})
    checked: dict[str, Any] = {}
    with contextlib.suppress(BadInput):
        checked = structure.check(structure.carried(plain))
    app_mode.marked_inputs(ui if isinstance(ui, dict) else None, checked)
    with contextlib.suppress(BadInput):
        editor_graph.signature(ui)
        editor_graph.check_same_graph(checked, ui)
    with contextlib.suppress(BadInput):
        editor_graph.opened_from(editor_graph.stamped(editor_graph.check_editor_graph(ui), "w", "v"))


def _resolved(name: str, plain: Any, manifest: Any) -> Workflow | None:
    if not isinstance(manifest, dict):
        return None
    try:
        return resolve(name, structure.check(structure.carried(plain)), manifest)
    except (BadInput, ConfigError):
        return None


def _manifest(case: tuple[tuple[Any, Any], Any, Any, dict[str, Any]]) -> None:
    """Resolve two versions of a workflow, compare them, and put values into each."""
    (plain, manifest), other_graph, other_manifest, given = case
    before = _resolved("w", plain, manifest)
    after = _resolved("w", other_graph if other_graph is not None else plain, other_manifest)
    for one in (before, after):
        if one is not None:
            json.dumps(json_schema(one), allow_nan=False).encode()
            _bound(one, given)
            _bound(one, {parameter.name: value for parameter, value in zip(one.parameters, given.values())})  # noqa: B905 - as many as there are
            _bound(one, publish_check.trial_values(one))
    if before is not None and after is not None:
        workflow_diff.differences(before, after)
        breaking_changes.breaking_changes(before, after)
    if before is not None:
        with contextlib.suppress(UnicodeEncodeError, TypeError, ValueError):
            text = workflow_files.toml_text(manifest)
            text.encode()
            again = tomllib.loads(text)
            right(_resolved("w", plain, again) is not None, f"what is exported can't be read: {text[:300]}")


def _bound(one: Workflow, given: Mapping[str, Any]) -> None:
    try:
        bound = binding.bind(one, given, draw_seed=lambda: 5)
    except InvalidParameter as error:
        right(json.dumps(error.details, default=str), "no details")
        return
    with contextlib.suppress(BadInput):
        structure.check(structure.carried(bound.graph))
    excerpt.of_job(bound.graph, one, bound.values)


def _folder(case: tuple[bytes, bytes, bytes]) -> None:
    """Read a stored workflow from files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "flow"
        folder.mkdir()
        files = (workflow_files.GRAPH_FILE, workflow_files.MANIFEST_FILE, workflow_files.EDITOR_FILE)
        for file, content in zip(files, case, strict=True):
            if content:
                (folder / file).write_bytes(content)
        try:
            found = load_whole(folder)
        except ConfigError as error:
            right("flow" in str(error), f"no file is named: {error}")
        else:
            json.dumps(json_schema(found.workflow), allow_nan=False)


def _manifest_file(data: bytes) -> None:
    graph_text, manifest_text = _FOLDERS[0]
    _folder((graph_text, data, b""))
    _folder((_FOLDERS[-1][0], data, data if data.startswith(b"{") else b""))
    right(graph_text and manifest_text, "no corpus")


def _keys(data: bytes) -> None:
    with contextlib.suppress(BadInput, UnicodeDecodeError):
        for key in parse_keys(data.decode(), "keys", secret=b"s"):
            right(key.user and key.digest, "an empty key")


def _settings(case: dict[str, str]) -> None:
    env = {f"FLEET_{name.upper()}": text for name, text in case.items()}
    with patch.dict(os.environ, env):
        try:
            read = Settings()
        except ValidationError as error:
            right(all(one["loc"] or one["msg"] for one in error.errors()), "an error without words")
            return
        for name in _DERIVED:
            getattr(read, name)


def _words(text: str) -> None:
    """Read what is written in one line: names, URLs, lists, headers."""
    readers: tuple[Callable[[str], object], ...] = (
        parse_target,
        lambda word: parse_allowed("X", word),
        node.parse_url,
        node.split_credentials,
        lambda word: node.check_name("pool", word),
        webhook.checked_url,
        is_url,
        lambda word: fresh_s({"cache-control": word}),
        lambda word: read_traceparent([word, word]),
        lambda word: read_traceparent([word]),
    )
    for read in readers:
        with contextlib.suppress(*_REFUSED):
            read(text)
    name = slug(text)
    right(not name or NAME.fullmatch(name), f"{name!r} is no name")


def _words_of_bytes(data: bytes | str) -> None:
    _words(data if isinstance(data, str) else data.decode("utf-8", "replace"))


def _judgement(value: Any) -> None:
    with contextlib.suppress(ValueError):
        read_judgement(value)
    with contextlib.suppress(BadInput):
        webhook.checked_events(value)
    with contextlib.suppress(*_REFUSED):
        webhook.checked_url(value)


def _signed(case: tuple[dict[str, str], str, str]) -> None:
    query, id_, owner = case
    fault = _URLS.fault(query, Readable.OUTPUT, id_, job="j", owner=owner, now=1000.0)
    right(fault is not None, "a query that nobody signed is taken")


_URLS = SignedUrls(key=b"k" * 32)
_GRAPHS = recordings.graphs()
_FOLDERS = [
    ((folder / "workflow.json").read_bytes(), (folder / "workflow.toml").read_bytes())
    for folder in sorted((SOURCE / "workflows").iterdir())
    if (folder / "workflow.toml").is_file()
]
_STORED = [(json.loads(plain), tomllib.loads(manifest.decode())) for plain, manifest in _FOLDERS]
_TITLED = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "$picture"}},
    "2": {"class_type": "KSampler", "inputs": {"seed": 4, "cfg": 1.5, "on": True, "text": "x"}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}
_RICH = {
    "title": "T",
    "cache": "any-seed",
    "silence_s": 60,
    "parameters": {
        "seed": {"type": "seed", "target": {"class": "KSampler", "input": "seed"}, "role": "seed"},
        "cfg": {
            "type": "number",
            "min": 0,
            "max": 9.5,
            "multiple_of": 0.5,
            "target": {"class": "KSampler", "input": "cfg"},
        },
        "text": {
            "type": "string",
            "max_length": 9,
            "format": "xml",
            "target": {"class": "KSampler", "input": "text"},
        },
        "on": {
            "type": "boolean",
            "default": True,
            "on": {"set": [{"class": "KSampler", "input": "on", "value": 1}], "wrap": {"text": "a {} b"}},
            "off": {"bypass": [{"class": "LoadImage", "through": ["image"]}]},
        },
        "style": {
            "type": "choice",
            "default": "a",
            "choices": {"a": {"value": 1, "wrap": {"text": "{}"}}, "b": {"label": "B"}},
            "target": {"class": "SaveImage", "input": "filename_prefix", "form": "hash"},
        },
        "picture": {"accept": ["image/*"], "max_bytes": 100, "required": False},
    },
    "requires": {
        "comfyui": ">=0.3,<1",
        "vram_gb": 8,
        "pool": "a",
        "spill_to": ["b"],
        "labels": {"x": "y"},
        "models": [{"file": "m.safetensors", "folder": "loras"}],
    },
    "merge": {"mode": "exact", "most": 4, "window_s": 1.5},
}
_PAIRS: list[tuple[Any, Any]] = [*_STORED, (_TITLED, _RICH), (_TITLED, {})]
_MANIFESTS = [manifest for _, manifest in _PAIRS]
_GIVEN = [
    {"prompt": "a cat", "style": "silk", "width": 512, "height": 8.0, "seed": 3},
    {"seed": -1, "cfg": 1.25, "text": "<a>", "on": False, "style": "b", "picture": {"__type": "core/ASSET"}},
    {"picture": "data:image/png;base64,AA==", "cfg": "1", "on": 1, "seed": 2**64},
]
_LINES = [
    *("http://127.0.0.1:8188", "https://user:pass@host.test:1/x?y=1#z", "http://[::1]:8188/", "10.1.0.0/16"),
    *("*.lan:8443,[fd00::1]:80", "max-age=60, private", "name-1", "http://x\\y", "unix:/run/x.sock", "a b"),
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
]
_BYTE_LINES = [line.encode() for line in _LINES]
_KEY_FILES = [
    b"ann aaaaaaaaaaaaaaaaaaaaaaaa\nbob bbbbbbbbbbbbbbbbbbbbbbbbbbbb operator # x\n",
    b"# nothing\n\n",
]
_NAMES = sorted(Settings.model_fields)
_DERIVED = sorted(
    name for name, value in vars(Settings).items() if isinstance(value, property) and name[0] != "_"
)
_WORDS = [
    *(
        "",
        "0",
        "1",
        "-1",
        "1e999",
        "nan",
        "inf",
        "true",
        "x",
        "/tmp",
        "127.0.0.1",
        "0.0.0.0",
        "unix:/x",
        "::1",
    ),
    *("user: submits=10/1s,100/1m live=5; operator: body=1", "ann=2,bob=3", "a=nan", "10.0.0.0/8,fd00::/8"),
    *(
        "http://127.0.0.1:1/x",
        "redis://127.0.0.1:6379/0",
        "redis://[::1/0",
        "https://x.test",
        "@core,-KSampler",
    ),
    *("A.b,C.d", "/my_pack/", "images.test,*.lan:80", "1,2,3", "10s", "5m", "X-User", "operator=ops", "*"),
]

TARGETS = [
    Target(name="graphs", group="manifests", cases=values.changed(_GRAPHS) | values.JSON, check=_graph),
    Target(
        name="editor-graphs",
        group="manifests",
        cases=st.tuples(
            values.changed(recordings.editor_graphs()) | values.JSON, st.sampled_from(_GRAPHS[:3])
        ),
        check=_editor_graph,
    ),
    Target(
        name="manifests",
        group="manifests",
        cases=st.tuples(
            st.sampled_from(_PAIRS),
            st.none() | values.changed([plain for plain, _ in _PAIRS]),
            values.changed(_MANIFESTS),
            values.changed(_GIVEN).map(lambda given: given if isinstance(given, dict) else {}),
        )
        | st.tuples(
            st.tuples(st.just(_TITLED), values.changed([_RICH])),
            st.just(None),
            values.changed([_RICH]),
            values.changed(_GIVEN).map(lambda given: given if isinstance(given, dict) else {}),
        ),
        check=_manifest,
    ),
    Target(
        name="workflow-folders",
        group="manifests",
        cases=st.one_of(
            [
                st.tuples(
                    values.changed_json([json.loads(plain)]),
                    values.changed_bytes([manifest]),
                    st.just(b"") | values.changed_json(recordings.editor_graphs()[:2]),
                )
                for plain, manifest in _FOLDERS
            ]
        ),
        check=_folder,
    ),
    Target(
        name="manifest-files",
        group="manifests",
        cases=values.changed_bytes([manifest for _, manifest in _FOLDERS]),
        check=_manifest_file,
        corpus=[manifest for _, manifest in _FOLDERS],
    ),
    Target(
        name="keys", group="manifests", cases=values.changed_bytes(_KEY_FILES), check=_keys, corpus=_KEY_FILES
    ),
    Target(
        name="settings",
        group="manifests",
        cases=st.dictionaries(
            st.sampled_from(_NAMES),
            st.sampled_from(_WORDS)
            | values.changed_bytes([word.encode() for word in _WORDS])
            .filter(lambda data: b"\0" not in data)
            .map(os.fsdecode),
            min_size=1,
            max_size=4,
        ),
        check=_settings,
    ),
    Target(
        name="words",
        group="manifests",
        cases=st.text(max_size=60)
        | values.changed_bytes(_BYTE_LINES).map(lambda data: data.decode("utf-8", "replace")),
        check=_words_of_bytes,
        corpus=_BYTE_LINES,
    ),
    Target(
        name="judgements",
        group="manifests",
        cases=values.changed([{"allowed": True, "reason": "x"}, ["job.succeeded"], "http://x.test/"]),
        check=_judgement,
    ),
    Target(
        name="signed-urls",
        group="manifests",
        cases=st.tuples(
            st.dictionaries(
                st.sampled_from(["expires", "signature"]),
                st.text(max_size=70) | st.from_regex(r"[0-9]{1,12}|[0-9a-f]{64}", fullmatch=True),
            ),
            st.text(st.characters(codec="utf-8"), max_size=10),
            st.text(st.characters(codec="utf-8"), max_size=10),
        ),
        check=_signed,
    ),
]
