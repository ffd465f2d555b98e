"""The workflow store: the same cases against Redis and against the fake."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from comfy_fleet.adapters.redis.workflow_store import RedisWorkflowStore
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import BadInput, Conflict, NotFound
from comfy_fleet.domain.graphs.stored import (
    MAX_NOTE,
    MAX_THUMBNAIL_BYTES,
    Draft,
    MarkedInput,
    NewVersion,
    WorkflowAction,
    WorkflowChanged,
    WorkflowContent,
)
from comfy_fleet.domain.graphs.workflow_names import NameTaken, WorkflowReference
from comfy_fleet.ports.workflow_store import MAX_DRAFTS, MAX_VERSIONS, WorkflowStore
from tests.fakes.workflow_store import FakeWorkflowStore


@pytest.fixture(params=["fake", "real"])
def store(request: pytest.FixtureRequest) -> WorkflowStore:
    if request.param == "fake":
        return FakeWorkflowStore()
    stores: Stores = request.getfixturevalue("stores")
    return RedisWorkflowStore(stores.redis)


def content(text: str = "a", **manifest: Any) -> WorkflowContent:
    return WorkflowContent(
        graph={"1": {"class_type": "Sleep", "inputs": {"text": text}}}, manifest=dict(manifest)
    )


def new(text: str = "a", author: str = "ann", **more: Any) -> NewVersion:
    return NewVersion(content=content(text), author=author, **more)


def at(text: str) -> WorkflowReference:
    return WorkflowReference.parse(text)


async def test_what_is_published_is_in_production(store: WorkflowStore) -> None:
    assert await store.names() == {}
    assert await store.record("w") is None and await store.find(at("w")) is None
    assert await store.version(at("w")) is None and await store.history("w") in ((), [])
    first = await store.publish("w", new(note="the first", ui={"nodes": []}), expected=None)
    assert (first.version, first.before, first.changed) == (content().version, "", True)
    assert await store.names() == {"w": first.version}
    assert await store.find(at("w")) == await store.find(at("w@production")) == first.version
    assert await store.content("w", first.version) == content()
    found = await store.version(at("w"))
    assert found is not None
    assert (found.content, found.ui, found.thumbnail) == (content(), {"nodes": []}, None)
    assert (found.facts.author, found.facts.note) == ("ann", "the first")
    record = await store.record("w")
    assert record is not None
    assert (record.production, record.changed_by, record.labels) == (
        first.version,
        "ann",
        {"production": first.version},
    )
    assert [one.version for one in record.versions] == [first.version]
    assert record.versions[0].labels == ("production",)
    (entry,) = await store.history("w")
    assert (entry.action, entry.author, entry.version, entry.before) == (
        WorkflowAction.PUBLISHED,
        "ann",
        first.version,
        "",
    )


async def test_content_keeps_manifest_and_marks(store: WorkflowStore) -> None:
    marked = (MarkedInput(name="Prompt", targets=(("1", "text"),), description="What to draw"),)
    whole = replace(content(title="T", parameters={"b": {}, "a": {}}), marked=marked)
    assert whole.version != content(title="T", parameters={"b": {}, "a": {}}).version
    done = await store.publish("w", NewVersion(content=whole, author="ann"), expected=None)
    found = await store.content("w", done.version)
    assert found == whole
    assert list(found.manifest["parameters"]) == ["b", "a"]


async def test_of_two_who_start_from_the_same_version_one_is_told(store: WorkflowStore) -> None:
    first = await store.publish("w", new(), expected=None)
    second = await store.publish("w", new("b", author="ben"), expected=first.version)
    assert second.before == first.version
    with pytest.raises(WorkflowChanged) as told:
        await store.publish("w", new("c"), expected=first.version)
    assert told.value.details["changed_by"] == "ben"
    assert told.value.details["production"] == second.version
    assert "ben" in str(told.value)
    with pytest.raises(WorkflowChanged):
        await store.publish("w", new("c"), expected=None)
    assert await store.find(at("w")) == second.version
    forced = await store.publish("w", new("c"), expected=None, force=True)
    assert (forced.before, await store.find(at("w"))) == (second.version, forced.version)


async def test_a_workflow_that_was_removed_meanwhile_is_not_made_again_unasked(store: WorkflowStore) -> None:
    first = await store.publish("w", new(), expected=None)
    assert await store.remove("w", author="ann") and not await store.remove("w", author="ann")
    assert await store.names() == {} and await store.record("w") is None
    assert await store.content("w", first.version) is None
    with pytest.raises(WorkflowChanged, match="removed"):
        await store.publish("w", new("b"), expected=first.version)
    assert (await store.publish("w", new("b"), expected=None)).changed


async def test_the_same_content_is_the_same_version(store: WorkflowStore) -> None:
    first = await store.publish("w", new(), expected=None)
    again = await store.publish("w", new(author="ben", ui={"nodes": [1]}), expected=None)
    assert (again.version, again.changed) == (first.version, False)
    found = await store.version(at("w"))
    assert found is not None and (found.facts.author, found.ui) == ("ann", {"nodes": [1]})
    assert len(await store.history("w")) == 1


async def test_labels_name_versions_and_production_goes_back(store: WorkflowStore) -> None:
    first = await store.publish("w", new(), expected=None)
    entry = await store.label("w", "staging", at("w"), author="ben", note="try it")
    assert (entry.action, entry.version, entry.before) == (WorkflowAction.LABELED, first.version, "")
    second = await store.publish("w", new("b"), expected=first.version)
    assert await store.find(at("w@staging")) == first.version
    assert await store.find(at(f"w@{first.version}")) == first.version
    assert await store.find(at(f"w@{first.version[7:17]}")) == first.version
    assert await store.find(at("w@nothing")) is None
    assert await store.find(at("w@" + "0" * 20)) is None
    back = await store.label(
        "w", "production", at(f"w@{first.version[7:20]}"), author="ben", expected=second.version
    )
    assert (back.action, back.version, back.before) == (
        WorkflowAction.ROLLED_BACK,
        first.version,
        second.version,
    )
    assert await store.names() == {"w": first.version}
    record = await store.record("w")
    assert record is not None and record.changed_by == "ben"
    assert record.labels == {"production": first.version, "staging": first.version}
    assert [one.version for one in record.versions] == [first.version, second.version]
    same = await store.label("w", "production", at("w@staging"), author="ann")
    assert same.before == same.version
    assert [one.action for one in await store.history("w")] == [
        WorkflowAction.ROLLED_BACK,
        WorkflowAction.PUBLISHED,
        WorkflowAction.LABELED,
        WorkflowAction.PUBLISHED,
    ]
    with pytest.raises(WorkflowChanged):
        await store.label("w", "production", at(f"w@{second.version}"), author="ann", expected=second.version)
    assert await store.unlabel("w", "staging", author="ann")
    assert not await store.unlabel("w", "staging", author="ann")
    assert (await store.history("w"))[0].action is WorkflowAction.UNLABELED
    with pytest.raises(Conflict):
        await store.unlabel("w", "production", author="ann")


async def test_a_label_needs_a_version_and_a_name(store: WorkflowStore) -> None:
    with pytest.raises(NotFound):
        await store.label("w", "staging", at("w"), author="ann")
    await store.publish("w", new(), expected=None)
    with pytest.raises(NotFound):
        await store.label("w", "staging", at("w@0000000"), author="ann")
    for bad in ("draft", "Abc", "", "deadbeef", "x" * 33):
        with pytest.raises(BadInput):
            await store.label("w", bad, at("w"), author="ann")


async def test_names_in_the_editor_that_become_one_id_are_told_apart(store: WorkflowStore) -> None:
    first = await store.publish("my_w", new(editor_name="My W"), expected=None)
    with pytest.raises(NameTaken, match=r"'my w' and 'My W'"):
        await store.publish("my_w", new("b", "ben", editor_name="my w"), expected=first.version)
    with pytest.raises(NameTaken, match=r"'my w' and 'My W'"):
        await store.save_draft("ben", "my_w", Draft(graph=content().graph, editor_name="my w"))
    second = await store.publish("my_w", new("b"), expected=first.version)  # by its id
    assert second.changed
    record = await store.record("my_w")
    assert record is not None and record.editor_name == "My W"


async def test_who_removed_a_workflow_is_known_until_it_is_there_again(store: WorkflowStore) -> None:
    first = await store.publish("w", new(), expected=None)
    assert await store.removal("w") is None
    await store.remove("w", author="ben")
    assert not await store.remove("w", author="eve")
    word = await store.removal("w")
    assert word is not None and (word.by, word.version) == ("ben", first.version) and word.at > 0
    with pytest.raises(WorkflowChanged, match="ben has removed stored workflow w") as told:
        await store.publish("w", new("b"), expected=first.version)
    assert told.value.details["changed_by"] == "ben" and told.value.details["production"] is None
    await store.publish("w", new("b"), expected=None)
    assert await store.removal("w") is None


FilesOf = Callable[..., Awaitable[None]]


@pytest.fixture
def files_of(store: WorkflowStore, request: pytest.FixtureRequest) -> FilesOf:
    """Has an owner's graphs in the editor be these."""

    async def made(owner: str, *names: str) -> None:
        if isinstance(store, FakeWorkflowStore):
            store.graphs = {(owner, name) for name in names}
            return
        files = request.getfixturevalue("stores").userdata
        for path in (await files.tree(owner)).files:
            await files.delete(owner, path)
        for name in names:
            await files.save(owner, f"workflows/{name}.json", b"{}", overwrite=True)

    return made


async def test_names_of_one_owner_become_one_id_only_while_both_files_are_there(
    store: WorkflowStore, files_of: FilesOf
) -> None:
    draft = Draft(graph=content().graph, editor_name="My W")
    await files_of("ann", "My W", "my w")
    await store.save_draft("ann", "my_w", draft)
    first = await store.publish("my_w", new(editor_name="My W"), expected=None)
    renamed = replace(draft, editor_name="my w")
    with pytest.raises(NameTaken):
        await store.save_draft("ann", "my_w", renamed)
    with pytest.raises(NameTaken):
        await store.publish("my_w", new("b", editor_name="my w"), expected=first.version)
    await files_of("ann", "my w")
    assert (await store.save_draft("ann", "my_w", renamed)).editor_name == "my w"
    await store.publish("my_w", new("b", editor_name="my w"), expected=first.version)
    record = await store.record("my_w")
    assert record is not None and record.editor_name == "my w"
    with pytest.raises(NameTaken):  # it is still ann's, not ben's
        await store.save_draft("ben", "my_w", replace(draft, editor_name="MY W"))


async def test_a_draft_goes_with_its_file_but_not_what_it_was_based_on(
    store: WorkflowStore, files_of: FilesOf
) -> None:
    first = await store.publish("w", new(), expected=None)
    await store.save_draft("ann", "w", Draft(graph=content("x").graph, editor_name="w"))
    await store.publish("w", new("b", "ben"), expected=first.version)
    await files_of("ann", "w")
    assert not await store.forget_draft("ann", "w", "w")
    await files_of("ann")
    assert not await store.forget_draft("ann", "w", "W")
    assert await store.forget_draft("ann", "w", "w")
    assert await store.draft("ann", "w") is None and await store.drafts("ann") == {}
    again = await store.save_draft("ann", "w", Draft(graph=content("x").graph, editor_name="w"))
    assert again.base_version == first.version  # so that ben's version is asked about


async def test_old_versions_go_but_not_those_that_a_label_names(store: WorkflowStore) -> None:
    made = [await store.publish("w", new("0"), expected=None)]
    await store.label("w", "kept", at("w"), author="ann")
    for number in range(1, MAX_VERSIONS + 3):
        made.append(await store.publish("w", new(str(number)), expected=made[-1].version))
    record = await store.record("w")
    assert record is not None and len(record.versions) == MAX_VERSIONS
    there = {one.version for one in record.versions}
    assert made[0].version in there and made[3 + 1].version in there
    assert {made[1].version, made[2].version, made[3].version}.isdisjoint(there)
    assert await store.content("w", made[1].version) is None


async def test_drafts_are_each_persons_own(store: WorkflowStore) -> None:
    first = await store.publish("w", new(), expected=None)
    graph = content("mine").graph
    saved = await store.save_draft("ann", "w", Draft(graph=graph, ui={"nodes": []}, job_id="j1"))
    assert (saved.base_version, saved.saved_at > 0) == (first.version, True)
    assert await store.draft("ann", "w") == saved
    assert await store.draft("ben", "w") is None and await store.drafts("ben") == {}
    await store.publish("w", new("b"), expected=first.version)
    again = await store.save_draft("ann", "w", Draft(graph=graph, manifest={"title": "T"}))
    assert again.base_version == first.version  # the author still has not seen the other one
    assert (await store.draft("ann", "w")) == again
    moved = await store.save_draft("ann", "w", Draft(graph=graph, base_version="sha256:" + "1" * 64))
    assert moved.base_version == "sha256:" + "1" * 64
    assert (await store.save_draft("ann", "brand_new", Draft(graph=graph))).base_version == ""
    assert list(await store.drafts("ann")) == ["brand_new", "w"]
    assert await store.drop_draft("ann", "w") and not await store.drop_draft("ann", "w")
    assert list(await store.drafts("ann")) == ["brand_new"] and await store.draft("ann", "w") is None


async def test_a_draft_is_based_on_what_was_published_of_it_unless_it_was_saved_again(
    store: WorkflowStore,
) -> None:
    saved = await store.save_draft("ann", "w", Draft(graph=content().graph))
    version = "sha256:" + "2" * 64
    assert not await store.rebase_draft("ann", "w", version, saved_at=saved.saved_at - 1)
    assert not await store.rebase_draft("ben", "w", version, saved_at=saved.saved_at)
    draft = await store.draft("ann", "w")
    assert draft is not None and draft.base_version == ""
    assert await store.rebase_draft("ann", "w", version, saved_at=draft.saved_at)
    assert await store.draft("ann", "w") == replace(draft, base_version=version)
    assert (await store.save_draft("ann", "w", Draft(graph=content("b").graph))).base_version == version


async def test_the_oldest_draft_makes_room(store: WorkflowStore) -> None:
    for number in range(MAX_DRAFTS + 1):
        await store.save_draft("ann", f"w{number}", Draft(graph=content().graph))
    found = await store.drafts("ann")
    assert len(found) == MAX_DRAFTS and "w0" not in found and f"w{MAX_DRAFTS}" in found
    assert await store.draft("ann", "w0") is None


@pytest.mark.parametrize(
    "more", [{"note": "n" * (MAX_NOTE + 1)}, {"thumbnail": b"x" * (MAX_THUMBNAIL_BYTES + 1)}]
)
async def test_what_is_too_large_is_refused(stores: Stores, more: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        await RedisWorkflowStore(stores.redis).publish("w", new(**more), expected=None)
