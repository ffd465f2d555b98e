"""The workflow store in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from comfy_fleet.domain.errors import BadInput, Conflict, NotFound
from comfy_fleet.domain.graphs.stored import (
    Draft,
    HistoryEntry,
    NewVersion,
    Published,
    Removal,
    VersionFacts,
    WorkflowAction,
    WorkflowContent,
    WorkflowRecord,
    WorkflowVersion,
    changed_meanwhile,
)
from comfy_fleet.domain.graphs.workflow_names import (
    PRODUCTION,
    WorkflowReference,
    check_label,
    same_id,
    short,
)
from comfy_fleet.ports.workflow_store import MAX_DRAFTS, MAX_VERSIONS
from tests.fakes.base import Fake


@dataclass
class _Kept:
    labels: dict[str, str] = field(default_factory=dict)
    versions: dict[str, WorkflowVersion] = field(default_factory=dict)
    history: list[HistoryEntry] = field(default_factory=list)
    editor_name: str = ""


class FakeWorkflowStore(Fake):
    """Stored workflows.

    Attributes:
        now: Unix seconds; a test sets it.
        live: The versions that live jobs name.
        graphs: Owners' graphs in the editor: owner and name, without its ending.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.live: set[str] = set()
        self.graphs: set[tuple[str, str]] = set()
        self._removed: dict[str, Removal] = {}
        self._bases: dict[tuple[str, str], str] = {}
        self._kept: dict[str, _Kept] = {}
        self._drafts: dict[str, dict[str, Draft]] = {}

    async def names(self) -> Mapping[str, str]:
        self.answer("names")
        return {name: kept.labels[PRODUCTION] for name, kept in sorted(self._kept.items())}

    async def find(self, reference: WorkflowReference) -> str | None:
        self.answer("find")
        kept = self._kept.get(reference.name, _Kept())
        if not reference.version:
            return kept.labels.get(reference.label)
        found = [v for v in kept.versions if v.removeprefix("sha256:").startswith(reference.version)]
        if len(found) > 1:
            raise BadInput(f"{len(found)} versions begin with {short(reference.version)}")
        return found[0] if found else None

    async def content(self, name: str, version: str) -> WorkflowContent | None:
        self.answer("content")
        found = self._kept.get(name, _Kept()).versions.get(version)
        return found.content if found else None

    async def version(self, reference: WorkflowReference) -> WorkflowVersion | None:
        version = await self.find(reference)
        return None if version is None else self._kept[reference.name].versions[version]

    async def record(self, name: str) -> WorkflowRecord | None:
        self.answer("record")
        if (kept := self._kept.get(name)) is None:
            return None
        latest = next(one for one in kept.history if one.label == PRODUCTION)
        names = {v: tuple(k for k, named in kept.labels.items() if named == v) for v in kept.versions}
        return WorkflowRecord(
            name=name,
            production=kept.labels[PRODUCTION],
            changed_by=latest.author,
            changed_at=latest.at,
            labels=dict(kept.labels),
            versions=tuple(
                replace(one.facts, labels=names[v]) for v, one in reversed(list(kept.versions.items()))
            ),
            editor_name=kept.editor_name,
        )

    async def history(self, name: str) -> Sequence[HistoryEntry]:
        self.answer("history")
        return tuple(self._kept.get(name, _Kept()).history)

    async def publish(
        self, name: str, new: NewVersion, *, expected: str | None, force: bool = False
    ) -> Published:
        self.answer("publish")
        kept, version = self._kept.get(name, _Kept()), new.content.version
        before = kept.labels.get(PRODUCTION, "")
        if before and new.editor_name and self._taken(kept, new.author, new.editor_name):
            raise same_id(name, new.editor_name, kept.editor_name)
        if before != version and not force and before != (expected or ""):
            latest = next((one for one in kept.history if one.label == PRODUCTION), None)
            gone = self._removed.get(name)
            raise changed_meanwhile(
                name,
                production=before,
                by=latest.author if latest else gone.by if gone else "",
                at=latest.at if latest else gone.at if gone else 0,
                base=expected or "",
            )
        known = kept.versions.pop(version, None)
        facts = VersionFacts(version=version, author=new.author, published_at=self.now, note=new.note)
        made = known or WorkflowVersion(facts=facts, content=new.content)
        ui, thumbnail = new.ui or made.ui, new.thumbnail or made.thumbnail
        facts = replace(made.facts, has_ui=ui is not None, has_thumbnail=thumbnail is not None)
        kept.versions[version] = replace(made, facts=facts, ui=ui, thumbnail=thumbnail)
        kept.editor_name = new.editor_name or kept.editor_name
        self._kept[name] = kept
        if before == version:
            return Published(version=version, at=self.now, before=version, changed=False)
        self._removed.pop(name, None)
        self._set(kept, WorkflowAction.PUBLISHED, PRODUCTION, version, author=new.author, note=new.note)
        for old in list(kept.versions):
            if len(kept.versions) > MAX_VERSIONS and old not in {*kept.labels.values(), *self.live}:
                del kept.versions[old]
        return Published(version=version, at=self.now, before=before)

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
        self.answer("label")
        check_label(label)
        version = await self.find(reference)
        if (kept := self._kept.get(name)) is None or version is None:
            raise NotFound(f"no version {reference}")
        before = kept.labels.get(label, "")
        action = WorkflowAction.ROLLED_BACK if label == PRODUCTION else WorkflowAction.LABELED
        if before == version:
            return HistoryEntry(
                at=self.now, author=author, action=action, version=version, before=before, label=label
            )
        if expected is not None and before != expected:
            latest = next((one for one in kept.history if one.label == label), None)
            raise changed_meanwhile(
                name,
                production=before,
                by=latest.author if latest else "",
                at=latest.at if latest else 0,
                base=expected,
            )
        if label == PRODUCTION:
            kept.versions[version] = kept.versions.pop(version)
        return self._set(kept, action, label, version, author=author, note=note)

    async def unlabel(self, name: str, label: str, *, author: str) -> bool:
        self.answer("unlabel")
        if label == PRODUCTION:
            raise Conflict("production can only be moved")
        kept = self._kept.get(name, _Kept())
        if (version := kept.labels.pop(label, None)) is None:
            return False
        entry = HistoryEntry(
            at=self.now,
            author=author,
            action=WorkflowAction.UNLABELED,
            version=version,
            before=version,
            label=label,
        )
        kept.history.insert(0, entry)
        return True

    async def remove(self, name: str, *, author: str) -> bool:
        self.answer("remove")
        if (kept := self._kept.pop(name, None)) is None:
            return False
        self._removed[name] = Removal(by=author, at=self.now, version=kept.labels[PRODUCTION])
        return True

    async def removal(self, name: str) -> Removal | None:
        self.answer("removal")
        return self._removed.get(name)

    async def draft(self, owner: str, name: str) -> Draft | None:
        self.answer("draft")
        return self._drafts.get(owner, {}).get(name)

    async def save_draft(self, owner: str, name: str, draft: Draft) -> Draft:
        self.answer("save_draft")
        mine, kept = self._drafts.setdefault(owner, {}), self._kept.get(name, _Kept())
        before = mine.get(name)
        known = before.editor_name if before else ""
        if draft.editor_name and known != draft.editor_name and (owner, known) in self.graphs:
            raise same_id(name, draft.editor_name, known)
        if draft.editor_name and self._taken(kept, owner, draft.editor_name):
            raise same_id(name, draft.editor_name, kept.editor_name)
        forgotten = self._bases.pop((owner, name), kept.labels.get(PRODUCTION, ""))
        started = before.base_version if before else forgotten
        saved = replace(
            draft,
            saved_at=self.now,
            base_version=draft.base_version or started,
            editor_name=draft.editor_name or (before.editor_name if before else ""),
        )
        mine.pop(name, None)
        mine[name] = saved
        while len(mine) > MAX_DRAFTS:
            del mine[next(iter(mine))]
        return saved

    async def drafts(self, owner: str) -> Mapping[str, float]:
        self.answer("drafts")
        return {name: one.saved_at for name, one in reversed(self._drafts.get(owner, {}).items())}

    async def rebase_draft(self, owner: str, name: str, version: str, *, saved_at: float) -> bool:
        self.answer("rebase_draft")
        kept = self._drafts.get(owner, {})
        draft = kept.get(name)
        if draft is None or draft.saved_at != saved_at:
            return False
        kept[name] = replace(draft, base_version=version)
        return True

    async def forget_draft(self, owner: str, name: str, editor_name: str) -> bool:
        self.answer("forget_draft")
        mine = self._drafts.get(owner, {})
        draft = mine.get(name)
        if draft is None or draft.editor_name != editor_name or (owner, editor_name) in self.graphs:
            return False
        self._bases[owner, name] = mine.pop(name).base_version
        return True

    async def drop_draft(self, owner: str, name: str) -> bool:
        self.answer("drop_draft")
        return self._drafts.get(owner, {}).pop(name, None) is not None

    def _taken(self, kept: _Kept, owner: str, editor_name: str) -> bool:
        """Return whether the workflow has another name, which is not one that the owner has given up."""
        if kept.editor_name in ("", editor_name):
            return False
        own = any(one.facts.author == owner for one in kept.versions.values())
        return not own or (owner, kept.editor_name) in self.graphs

    def _set(
        self, kept: _Kept, action: WorkflowAction, label: str, version: str, *, author: str, note: str
    ) -> HistoryEntry:
        entry = HistoryEntry(
            at=self.now,
            author=author,
            action=action,
            version=version,
            before=kept.labels.get(label, ""),
            label=label,
            note=note,
        )
        kept.labels[label] = version
        kept.history.insert(0, entry)
        return entry
