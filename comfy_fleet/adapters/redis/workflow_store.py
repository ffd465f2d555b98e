"""The workflow store in Redis (port ``WorkflowStore``): each change is one script."""

import asyncio
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import Complaints, to_dict
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import BadInput, Conflict, NotFound
from comfy_fleet.domain.graphs.stored import (
    MAX_NOTE,
    MAX_THUMBNAIL_BYTES,
    Draft,
    HistoryEntry,
    MarkedInput,
    NewVersion,
    Published,
    Removal,
    VersionFacts,
    WorkflowAction,
    WorkflowContent,
    WorkflowRecord,
    WorkflowVersion,
    changed_meanwhile,
    label_moved,
)
from comfy_fleet.domain.graphs.workflow_names import (
    PRODUCTION,
    WorkflowReference,
    check_label,
    same_id,
    short,
)
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.ports.workflow_store import (
    BASE_KEPT_S,
    MAX_DRAFT_BYTES,
    MAX_DRAFTS,
    MAX_HISTORY,
    MAX_LABELS,
    MAX_VERSION_BYTES,
    MAX_VERSIONS,
    MAX_WORKFLOWS,
)

MAX_PACKED_BYTES = 16 * 1024 * 1024
"""Most bytes of a graph in Redis, compressed: of a version's or a draft's, and again of the editor's form."""
_SMALL = 64 * 1024  # bytes that are packed at once, without a thread
_BAD = (*UNREADABLE, zlib.error)


class RedisWorkflowStore:
    """:class:`comfy_fleet.ports.workflow_store.WorkflowStore`.

    Args:
        redis: A client that returns bytes.
        new_id: Draws an id for each change, by which a script that was sent twice knows itself again.
    """

    def __init__(self, redis: FleetRedis, *, new_id: Callable[[], str] = lambda: str(uuid4())) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._new_id = new_id
        self._complaints = Complaints()

    async def names(self) -> Mapping[str, str]:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.names`."""
        found = await self._redis.hgetall(self._keys.workflows)
        return {name.decode(): version.decode() for name, version in sorted(found.items())}

    async def find(self, reference: WorkflowReference) -> str | None:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.find`."""
        if reference.label == PRODUCTION:  # what nearly every job asks: a plain read will do
            version = await self._redis.hget(self._keys.workflows, reference.name)
            return None if version is None else version.decode()
        answer = await self._scripts.call("find_version", **_which(reference))
        return _only(reference, answer[0])

    async def content(self, name: str, version: str) -> WorkflowContent | None:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.content`."""
        packed = await self._redis.hget(self._keys.workflow_version(name, version), "content")
        return None if packed is None else await self._content(name, packed)

    async def version(self, reference: WorkflowReference) -> WorkflowVersion | None:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.version`."""
        answer = await self._scripts.call("find_version", **_which(reference), whole=True)
        version = _only(reference, answer[0])
        if version is None or len(answer) < 2:
            return None
        raw = to_dict(answer[1])
        content = await self._content(reference.name, raw.get("content", b""))
        if content is None:
            return None
        ui = raw.get("ui", b"")
        return WorkflowVersion(
            facts=_facts(
                version, raw, sum(len(raw.get(part, b"")) for part in ("content", "ui", "thumbnail"))
            ),
            content=content,
            ui=await _unpacked(ui) if ui else None,
            thumbnail=raw.get("thumbnail"),
        )

    async def record(self, name: str) -> WorkflowRecord | None:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.record`."""
        answer = await self._scripts.call("workflow_record", name=name)
        if not answer:
            return None
        production, record = answer[0].decode(), to_dict(answer[1])
        labels = {PRODUCTION: production} | {
            field.removeprefix("label "): value.decode()
            for field, value in sorted(record.items())
            if field.startswith("label ")
        }
        versions = []
        for version, author, at, note, *sizes in answer[2]:
            raw = {"author": author, "at": at, "note": note}
            facts = _facts(version.decode(), raw, sum(sizes))
            names = tuple(label for label, named in labels.items() if named == facts.version)
            versions.append(replace(facts, labels=names, has_ui=sizes[1] > 0, has_thumbnail=sizes[2] > 0))
        return WorkflowRecord(
            name=name,
            production=production,
            changed_by=record.get("by production", b"").decode(),
            changed_at=float(record.get("at production", b"0")),
            labels=labels,
            versions=tuple(versions),
            editor_name=record.get("editor_name", b"").decode(),
        )

    async def history(self, name: str) -> Sequence[HistoryEntry]:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.history`."""
        found = []
        for raw in await self._redis.lrange(self._keys.workflow_history(name), 0, MAX_HISTORY - 1):
            try:
                entry = orjson.loads(raw)
                entry["at"] = float(entry["at"])
                found.append(from_fields(HistoryEntry, entry))
            except UNREADABLE as error:
                self._complaints.about("history of workflow", name, error)
        return found

    async def publish(
        self, name: str, new: NewVersion, *, expected: str | None, force: bool = False
    ) -> Published:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.publish`."""
        if len(new.note) > MAX_NOTE:
            raise BadInput(f"note must have at most {MAX_NOTE} characters", details={"field": "note"})
        if len(new.thumbnail or b"") > MAX_THUMBNAIL_BYTES:
            raise BadInput(
                f"the picture must have at most {MAX_THUMBNAIL_BYTES} bytes", details={"field": "thumbnail"}
            )
        version = await asyncio.to_thread(lambda: new.content.version)
        content, ui = await _packed(_written(new.content)), await _packed(new.ui) if new.ui else b""
        answer = await self._scripts.begin(
            "publish_workflow",
            content,
            ui,
            new.thumbnail or b"",
            name=name,
            version=version,
            expected=expected or "",
            force=force,
            author=new.author,
            note=new.note,
            editor_name=new.editor_name,
            id=self._new_id(),
            most_workflows=MAX_WORKFLOWS,
            most_versions=MAX_VERSIONS,
            most_bytes=MAX_VERSION_BYTES,
            most_history=MAX_HISTORY,
        )
        match answer:
            case [b"ok", at, before]:
                return Published(version=version, at=float(at), before=before.decode())
            case [b"same", at]:
                return Published(version=version, at=float(at), before=version, changed=False)
            case [b"changed", production, by, at]:
                raise changed_meanwhile(
                    name, production=production.decode(), by=by.decode(), at=float(at), base=expected or ""
                )
            case [b"named", other]:
                raise same_id(name, new.editor_name, other.decode())
        raise Conflict(f"there are {MAX_WORKFLOWS} stored workflows already: remove one first")

    async def label(
        self,
        name: str,
        label: str,
        reference: WorkflowReference,
        *,
        author: str,
        note: str = "",
        expected: str | None = None,
    ) -> HistoryEntry:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.label`."""
        which = _which(reference)
        answer = await self._scripts.begin(
            "label_workflow",
            name=name,
            label=check_label(label),
            from_label=which["label"],
            digits=which["digits"],
            author=author,
            note=note[:MAX_NOTE],
            expected=expected,
            id=self._new_id(),
            most_labels=MAX_LABELS,
            most_history=MAX_HISTORY,
        )
        match answer:
            case [b"ok", at, version, before, action]:
                return HistoryEntry(
                    at=float(at),
                    author=author,
                    action=WorkflowAction(action.decode()),
                    version=version.decode(),
                    before=before.decode(),
                    label=label,
                    note=note[:MAX_NOTE],
                )
            case [b"many", count]:
                raise _ambiguous(reference, count)
            case [b"changed", production, by, at]:
                raise label_moved(
                    name,
                    label,
                    version=production.decode(),
                    by=by.decode(),
                    at=float(at),
                    base=expected or "",
                )
            case [b"full"]:
                raise Conflict(f"stored workflow {name} has {MAX_LABELS} labels already: remove one first")
        raise NotFound(
            f"the fleet's store has no version {reference} of a workflow {name}", details={"field": "version"}
        )

    async def unlabel(self, name: str, label: str, *, author: str) -> bool:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.unlabel`."""
        if label == PRODUCTION:
            raise Conflict(
                f"{PRODUCTION} can't be removed, only moved: roll back, or remove the workflow",
                details={"field": "label"},
            )
        answer = await self._scripts.begin(
            "unlabel_workflow",
            name=name,
            label=label,
            author=author,
            id=self._new_id(),
            most_history=MAX_HISTORY,
        )
        return bool(answer[1])

    async def remove(self, name: str, *, author: str) -> bool:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.remove`."""
        answer = await self._scripts.begin(
            "remove_workflow", name=name, author=author, most_removed=MAX_WORKFLOWS
        )
        return bool(answer[1])

    async def removal(self, name: str) -> Removal | None:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.removal`."""
        raw = await self._redis.hget(self._keys.workflows_removed, name)
        if raw is None:
            return None
        try:
            word = orjson.loads(raw)
            return Removal(by=str(word["author"]), at=float(word["at"]), version=str(word["version"]))
        except UNREADABLE as error:
            self._complaints.about("removal of workflow", name, error)
            return None

    async def draft(self, owner: str, name: str) -> Draft | None:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.draft`."""
        raw = to_dict(await self._redis.hgetall(self._keys.draft(owner, name)))
        if not raw.get("content"):
            return None  # there is none, or all that is left is what it was based on
        try:
            content = await _unpacked(raw["content"])
            ui = raw.get("ui", b"")
            return Draft(
                graph=content["graph"],
                manifest=content["manifest"],
                ui=await _unpacked(ui) if ui else None,
                base_version=raw["base"].decode(),
                editor_name=raw["editor_name"].decode(),
                job_id=raw["job"].decode(),
                saved_at=float(raw["at"]),
            )
        except _BAD as error:
            self._complaints.about("draft", f"{owner} {name}", error)
            return None

    async def save_draft(self, owner: str, name: str, draft: Draft) -> Draft:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.save_draft`."""
        answer = await self._scripts.begin(
            "save_draft",
            await _packed({"graph": draft.graph, "manifest": draft.manifest}),
            await _packed(draft.ui) if draft.ui else b"",
            owner=owner,
            name=name,
            editor_name=draft.editor_name,
            base=draft.base_version,
            job=draft.job_id,
            most=MAX_DRAFTS,
            most_bytes=MAX_DRAFT_BYTES,
        )
        if answer[0] == b"named":
            raise same_id(name, draft.editor_name, answer[1].decode())
        return replace(draft, saved_at=float(answer[1]), base_version=answer[2].decode())

    async def rebase_draft(self, owner: str, name: str, version: str, *, saved_at: float) -> bool:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.rebase_draft`."""
        answer = await self._scripts.begin("rebase_draft", owner=owner, name=name, base=version, at=saved_at)
        return bool(answer[1])

    async def forget_draft(self, owner: str, name: str, editor_name: str) -> bool:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.forget_draft`."""
        answer = await self._scripts.begin(
            "forget_draft", owner=owner, name=name, editor_name=editor_name, kept_s=BASE_KEPT_S
        )
        return bool(answer[1])

    async def drafts(self, owner: str) -> Mapping[str, float]:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.drafts`."""
        found = await self._redis.zrevrange(self._keys.drafts(owner), 0, MAX_DRAFTS - 1, withscores=True)
        return {name.decode(): float(at) for name, at in found}

    async def drop_draft(self, owner: str, name: str) -> bool:
        """See :meth:`comfy_fleet.ports.workflow_store.WorkflowStore.drop_draft`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.draft(owner, name))
            pipe.zrem(self._keys.drafts(owner), name)
            gone, _ = await pipe.execute()
        return bool(gone)

    async def _content(self, name: str, packed: bytes) -> WorkflowContent | None:
        try:
            read = await _unpacked(packed)
            return WorkflowContent(
                graph=read["graph"],
                manifest=read["manifest"],
                marked=tuple(
                    MarkedInput(
                        name=one["name"],
                        targets=tuple((node_id, input_) for node_id, input_ in one["targets"]),
                        description=one["description"],
                    )
                    for one in read["marked"]
                ),
            )
        except _BAD as error:
            self._complaints.about("version of workflow", name, error)
            return None


def _written(content: WorkflowContent) -> dict[str, Any]:
    return {
        "graph": content.graph,
        "manifest": content.manifest,
        "marked": [asdict(one) for one in content.marked],
    }


async def _packed(value: Any) -> bytes:
    """Return a value as compressed JSON.

    Raises:
        BadInput: It is no JSON, or too large.
    """
    try:
        text = orjson.dumps(value)
    except (TypeError, ValueError) as error:
        raise BadInput(f"the workflow can't be written as JSON: {error}") from None
    packed = zlib.compress(text) if len(text) <= _SMALL else await asyncio.to_thread(zlib.compress, text)
    if len(packed) > MAX_PACKED_BYTES:
        raise BadInput(
            f"the workflow takes more than {MAX_PACKED_BYTES} bytes, compressed: take large texts or data "
            "out of its nodes"
        )
    return packed


async def _unpacked(packed: bytes) -> Any:
    """Read :func:`_packed` back."""
    if len(packed) <= _SMALL // 4:
        return orjson.loads(zlib.decompress(packed))
    return await asyncio.to_thread(lambda: orjson.loads(zlib.decompress(packed)))


def _facts(version: str, raw: Mapping[str, bytes], size_bytes: int) -> VersionFacts:
    return VersionFacts(
        version=version,
        author=raw.get("author", b"").decode(),
        published_at=float(raw.get("at", b"0")),
        note=raw.get("note", b"").decode(),
        has_ui=bool(raw.get("ui")),
        has_thumbnail=bool(raw.get("thumbnail")),
        size_bytes=size_bytes,
    )


def _which(reference: WorkflowReference) -> dict[str, str]:
    return {"name": reference.name, "label": reference.label, "digits": reference.version}


def _only(reference: WorkflowReference, found: Sequence[bytes]) -> str | None:
    if len(found) > 1:
        raise _ambiguous(reference, len(found))
    return found[0].decode() if found else None


def _ambiguous(reference: WorkflowReference, count: int) -> BadInput:
    return BadInput(
        f"{count} versions of {reference.name} begin with {short(reference.version)}: write more of it",
        details={"field": "workflow"},
    )
