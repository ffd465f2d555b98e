"""What people mean who name a version of a stored workflow: by its digits, the first of them, or a label."""

from comfy_fleet.domain.errors import BadInput, NotFound
from comfy_fleet.domain.graphs.stored import no_such_base
from comfy_fleet.domain.graphs.workflow_names import NAME, WorkflowReference
from comfy_fleet.ports.workflow_store import WorkflowStore
from comfy_fleet.services.absent_versions import in_history, no_version, unknown_to_history


class VersionNames:
    """Finds versions in the store.

    Args:
        store: Has them.
    """

    def __init__(self, store: WorkflowStore) -> None:
        self._store = store

    async def began_with(self, name: str, text: str | None) -> str | None:
        """Return the whole version that a draft is said to be based on; it need not be kept any more.

        Raises:
            NotFound: The workflow never had it.
            BadInput: It is no version.
        """
        if text is None:
            return None
        reference = self.reference(name, text, field="base_version")
        if found := await self._store.find(reference) or await in_history(self._store, reference):
            return found
        error = await no_version(self._store, reference, field="base_version")
        error.details["field"] = "base_version"  # also if there is no such workflow
        raise error

    async def base(self, name: str, text: str | None, *, known: bool = True) -> str | None:
        """Return the whole version that a base names; one that is no more stays as it was written.

        Args:
            name: The workflow.
            text: What its caller calls it.
            known: Refuse one that the workflow never had: nothing can have been made from it.

        Raises:
            NotFound: No version has this label.
            WorkflowChanged: The workflow never had it.
            BadInput: It is no version.
        """
        if text is None:
            return None
        reference = self.reference(name, text, field="base_version")
        if found := await self._store.find(reference):
            return found
        if not reference.version:
            raise NotFound(f"no version of {name} has the label {text!r}", details={"field": "base_version"})
        if known and await unknown_to_history(self._store, reference):
            await self._refuse_base(name, reference)
        return await in_history(self._store, reference) or f"sha256:{reference.version}"

    async def _refuse_base(self, name: str, reference: WorkflowReference) -> None:
        if (record := await self._store.record(name)) is None:
            return  # removed, which is told as that
        raise no_such_base(
            name, record.production, by=record.changed_by, at=record.changed_at, base=reference.version
        )

    def reference(self, name: str, which: str, *, field: str = "version") -> WorkflowReference:
        """Return what is meant by a version, the beginning of one, or a label.

        Raises:
            BadInput: It is none of these, or a draft.
        """
        try:
            reference = WorkflowReference.parse(f"{name}@{which}")
        except BadInput as error:
            message = error.message
            if field == "base_version" and NAME.fullmatch(name):  # written without the name
                message = (
                    f"{field}: {which[:80]!r} is neither a version (at least 7 digits of it) nor a label; "
                    "who started from none leaves it out"
                )
            raise BadInput(message, details={"field": field}) from None
        if reference.draft:
            raise BadInput("a draft is no version: publish it first", details={"field": field})
        return reference
