"""Stored workflows of the folder and of the store, under one name each."""

import json
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.workflows.catalog import WorkflowCatalog
from comfy_fleet.adapters.workflows.manifest import resolve_content
from comfy_fleet.domain.errors import BadInput, NotFound, WorkflowBroken
from comfy_fleet.domain.graphs.stored import Draft, MarkedInput, NewVersion, WorkflowContent
from comfy_fleet.domain.graphs.workflow_names import NameTaken, WorkflowReference
from comfy_fleet.services.stored_workflows import StoredWorkflows
from tests.fakes.workflow_store import FakeWorkflowStore


def content(text: str = "a", **manifest: Any) -> WorkflowContent:
    node = {"class_type": "Sleep", "inputs": {"text": text, "seconds": 1}, "_meta": {"title": "$text"}}
    return WorkflowContent(graph={"1": node}, manifest=dict(manifest))


@pytest.fixture
def store() -> FakeWorkflowStore:
    return FakeWorkflowStore()


@pytest.fixture
def catalog(tmp_path: Path, store: FakeWorkflowStore) -> StoredWorkflows:
    return StoredWorkflows(WorkflowCatalog(tmp_path), store, resolve_content)


def put_folder(tmp_path: Path, name: str, text: str = "kept") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "workflow.json").write_text(json.dumps(content(text).graph))
    return folder


async def publish(store: FakeWorkflowStore, name: str, what: WorkflowContent, **more: Any) -> str:
    new = NewVersion(content=what, author="ann", **more)
    return (await store.publish(name, new, expected=None, force=True)).version


async def test_both_places_are_one_catalog(
    tmp_path: Path, store: FakeWorkflowStore, catalog: StoredWorkflows
) -> None:
    folder = put_folder(tmp_path, "b")
    await publish(store, "a", content(title="A"))
    await publish(store, "c", content())
    assert [one.name for one in await catalog.list()] == ["a", "b", "c"]
    assert (await catalog.get("a", "ann")).title == "A"
    kept = await catalog.find("b", "ann")
    assert (kept.folder, kept.workflow.folder) == (str(folder), str(folder))
    assert (await catalog.find("a", "ann")).folder == ""
    assert await catalog.errors() == {}
    assert (catalog.folder_of("b"), catalog.folder_of("a")) == (str(folder), "")


async def test_the_next_look_sees_what_was_published(
    store: FakeWorkflowStore, catalog: StoredWorkflows
) -> None:
    first = await publish(store, "w", content("1"))
    assert (await catalog.get("w", "ann")).version == first
    second = await publish(store, "w", content("2"))
    assert (await catalog.get("w", "ann")).version == second
    assert (await catalog.get(f"w@{first}", "ann")).graph["1"]["inputs"]["text"] == "1"
    assert (await catalog.get(f"w@{first[7:17]}", "ann")).version == first
    await store.label("w", "production", WorkflowReference.parse(f"w@{first}"), author="ann")
    await store.label("w", "next", WorkflowReference.parse(f"w@{second}"), author="ann")
    assert (await catalog.get("w", "ann")).version == first
    assert (await catalog.get("w@next", "ann")).version == second


async def test_a_version_is_read_once(store: FakeWorkflowStore, catalog: StoredWorkflows) -> None:
    await publish(store, "w", content("1"))
    for _ in range(3):
        await catalog.get("w", "ann")
    assert (store.calls["content"], store.calls["find"]) == (1, 3)


async def test_a_name_in_both_places_is_refused_naming_both(
    tmp_path: Path, store: FakeWorkflowStore, catalog: StoredWorkflows
) -> None:
    folder = put_folder(tmp_path, "w")
    await publish(store, "w", content())
    with pytest.raises(NameTaken) as told:
        await catalog.get("w", "ann")
    assert str(folder) in str(told.value) and "store" in str(told.value)
    assert await catalog.list() == []
    assert str(folder) in str((await catalog.errors())["w"])
    await store.remove("w", author="ann")
    assert (await catalog.get("w", "ann")).folder == str(folder)


async def test_a_folder_has_one_version_and_no_labels(tmp_path: Path, catalog: StoredWorkflows) -> None:
    folder = put_folder(tmp_path, "w")
    version = (await catalog.get("w", "ann")).version
    assert (await catalog.get(f"w@{version}", "ann")).version == version
    for other in ("w@staging", "w@0000000"):
        with pytest.raises(NotFound, match=str(folder)):
            await catalog.get(other, "ann")


async def test_what_is_not_there_says_what_is(store: FakeWorkflowStore, catalog: StoredWorkflows) -> None:
    await publish(store, "my_w", content())
    with pytest.raises(NotFound, match=r"did you mean my_w\b"):
        await catalog.get("My W", "ann")
    with pytest.raises(NotFound, match="my_w"):
        await catalog.get("other", "ann")
    with pytest.raises(NotFound, match="its labels are production"):
        await catalog.get("my_w@staging", "ann")
    with pytest.raises(NotFound):
        await catalog.get("my_w@0000000", "ann")
    with pytest.raises(BadInput, match="neither a version"):
        await catalog.get("my_w@!", "ann")


async def test_a_draft_is_its_owners_and_has_the_manifest_in_use(
    tmp_path: Path, store: FakeWorkflowStore, catalog: StoredWorkflows
) -> None:
    await publish(store, "w", content(title="T", parameters={"text": {"max_length": 5}}))
    await store.save_draft("ann", "w", Draft(graph=content("mine").graph))
    found = await catalog.find("w@draft", "ann")
    assert found.draft and found.workflow.title == "T"
    assert found.workflow.parameter("text") is not None
    assert (
        found.workflow.version == content("mine", title="T", parameters={"text": {"max_length": 5}}).version
    )
    with pytest.raises(NotFound, match="draft"):
        await catalog.find("w@draft", "ben")
    await store.save_draft("ann", "w", Draft(graph=content("mine").graph, manifest={"title": "Mine"}))
    assert (await catalog.get("w@draft", "ann")).title == "Mine"
    folder = put_folder(tmp_path, "kept")
    (folder / "workflow.toml").write_text('title = "Kept"')
    await store.save_draft("ann", "kept", Draft(graph=content("mine").graph))
    assert (await catalog.get("kept@draft", "ann")).title == "Kept"
    await store.save_draft("ann", "fresh", Draft(graph=content("mine").graph))
    assert (await catalog.get("fresh@draft", "ann")).title == "fresh"


async def test_a_draft_that_can_not_be_used_says_why(
    store: FakeWorkflowStore, catalog: StoredWorkflows
) -> None:
    manifest = {"parameters": {"x": {"target": {"title": "Gone", "input": "text"}}}}
    await store.save_draft("ann", "w", Draft(graph=content().graph, manifest=manifest))
    with pytest.raises(WorkflowBroken, match=r"parameters\.x"):
        await catalog.get("w@draft", "ann")


async def test_a_draft_never_loses_the_limits_of_the_version_in_production(
    tmp_path: Path, store: FakeWorkflowStore, catalog: StoredWorkflows
) -> None:
    graph = content("mine").graph
    await store.save_draft("ann", "w", Draft(graph=graph))
    assert (await catalog.find("w@draft", "ann")).content.manifest == {}  # it is new
    await publish(store, "w", content(of_a_later_version=1))
    with pytest.raises(WorkflowBroken, match=r"your draft of w.*of_a_later_version"):
        await catalog.find("w@draft", "ann")
    folder = put_folder(tmp_path, "v")
    await store.save_draft("ann", "v", Draft(graph=graph))
    assert (await catalog.find("v@draft", "ann")).content.manifest == {}
    await publish(store, "v", content())
    with pytest.raises(NameTaken):
        await catalog.find("v@draft", "ann")
    await store.remove("v", author="ann")
    (folder / "workflow.toml").write_text("title = ")
    other = StoredWorkflows(WorkflowCatalog(tmp_path), store, resolve_content)  # has no last good version
    with pytest.raises(WorkflowBroken, match=r"your draft of v.*limits.*v/workflow\.toml"):
        await other.find("v@draft", "ann")


async def test_a_question_about_one_name_reads_no_other(
    tmp_path: Path, store: FakeWorkflowStore, catalog: StoredWorkflows
) -> None:
    for name in ("a", "b"):
        await publish(store, name, content())
    await publish(store, "broken", content(of_a_later_version=1))
    folder = put_folder(tmp_path, "kept")
    with pytest.raises(NotFound) as told:
        await catalog.get("A", "ann")
    assert told.value.details["workflows"] == ["a", "b", "broken", "kept"]
    assert "did you mean a?" in str(told.value)
    assert await catalog.error_of("nothing") is None and await catalog.error_of("kept") is None
    assert store.calls["content"] == 0
    assert await catalog.error_of("a") is None
    assert "of_a_later_version" in str(await catalog.error_of("broken"))
    assert store.calls["content"] == 2
    (folder / "workflow.json").write_text("{")
    assert "kept/workflow.json" in str(await catalog.error_of("kept"))
    await publish(store, "kept", content())
    assert str(folder) in str(await catalog.error_of("kept"))


async def test_what_this_version_can_not_read_is_reported(
    store: FakeWorkflowStore, catalog: StoredWorkflows
) -> None:
    await publish(store, "w", content(of_a_later_version=1))
    await publish(store, "good", content())
    with pytest.raises(WorkflowBroken, match="of_a_later_version"):
        await catalog.get("w", "ann")
    assert [one.name for one in await catalog.list()] == ["good"]
    assert "of_a_later_version" in str((await catalog.errors())["w"])


async def test_marked_inputs_are_parameters_and_the_manifest_limits_them(
    store: FakeWorkflowStore, catalog: StoredWorkflows
) -> None:
    graph = {
        "1": {"class_type": "KSampler", "inputs": {"seed": 7, "steps": 20, "cfg": 1.5}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "b"}, "_meta": {"title": "$negative"}},
        "4:1": {"class_type": "CLIPTextEncode", "inputs": {"text": "c"}},
    }
    marked = (
        MarkedInput(name="Steps", targets=(("1", "steps"),), description="How long"),
        MarkedInput(name="text", targets=(("2", "text"),)),
        MarkedInput(name="text", targets=(("3", "text"),)),  # has a parameter already
        MarkedInput(name="text", targets=(("4:1", "text"),)),
        MarkedInput(name="seed", targets=(("1", "seed"),)),
        MarkedInput(name="提示", targets=(("1", "cfg"),)),
    )
    manifest = {"parameters": {"steps": {"min": 1, "max": 50}}}
    await publish(store, "w", WorkflowContent(graph=graph, manifest=manifest, marked=marked))
    found = await catalog.get("w", "ann")
    assert [one.name for one in found.parameters] == [
        "steps",
        "negative",
        "text",
        "text_4_1",
        "seed",
        "input",
    ]
    steps = found.parameters[0]
    assert (steps.minimum, steps.maximum, steps.default, steps.description) == (1, 50, 20, "How long")
    assert found.parameters[4].type.value == "seed"


async def test_a_folder_takes_marks_from_the_editors_graph(tmp_path: Path, catalog: StoredWorkflows) -> None:
    folder = put_folder(tmp_path, "w")
    plain = await catalog.get("w", "ann")
    ui = {"nodes": [{"id": 1, "type": "Sleep"}], "extra": {"linearData": {"inputs": [[1, "seconds"]]}}}
    (folder / "editor.json").write_text(json.dumps(ui))
    found = await catalog.find("w", "ann")
    assert [one.name for one in found.workflow.parameters] == ["text", "seconds"]
    assert found.workflow.version != plain.version and found.ui == ui
    (folder / "editor.json").write_text("[]")
    assert "editor.json" in str((await catalog.errors())["w"])
    assert (await catalog.get("w", "ann")).version == found.workflow.version
