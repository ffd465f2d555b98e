"""Checks, at the submit, what a request says about where its outputs are to be put."""

from comfy_fleet.domain.errors import BadInput, InvalidOutput, NoRoom, NotFound
from comfy_fleet.domain.stores.named_store import NamedStore
from comfy_fleet.domain.stores.object_key import DEFAULT_KEY, KeyFacts, bound_key
from comfy_fleet.domain.stores.output_plan import OutputAsk, OutputPlan
from comfy_fleet.ports.transfers import Transfers
from comfy_fleet.services.store_book import StoreBook

RETRY_S = 30


class OutputPlanner:
    """Makes plans of what is asked for.

    Args:
        book: The stores.
        transfers: What waits for them.
        spool_bytes: Most bytes that may wait for all stores together when a job is taken; 0: any number.
    """

    def __init__(self, book: StoreBook, transfers: Transfers, *, spool_bytes: int) -> None:
        self._book = book
        self._transfers = transfers
        self._spool_bytes = spool_bytes

    async def plan(self, ask: OutputAsk | None, facts: KeyFacts, *, tenant: str) -> OutputPlan | None:
        """Return where a job's outputs are put; None: only into the fleet's own files.

        Args:
            ask: What the request says; None: nothing.
            facts: What is known of the job.
            tenant: Whose it is.

        Raises:
            InvalidOutput: There is no such store for them, or its key can't be made.
            NoRoom: Too many bytes wait for stores already.
        """
        store = await self._store(ask, tenant)
        if store is None:
            return None
        found = ask or OutputAsk()
        try:
            key = bound_key(found.key or DEFAULT_KEY, facts, prefix_bytes=len(store.prefix.encode()) + 1)
        except BadInput as error:
            raise InvalidOutput(error.message, details=error.details) from None
        await self._check_spool(store)
        return OutputPlan(
            store=store.name,
            key=key,
            template=found.key or "",
            format=found.format or "",
            quality=found.quality or 0,
            width=found.width or 0,
            metadata=found.metadata or "",
            on_conflict=found.on_conflict,
            chosen=ask is not None,
            custom_id=facts.custom_id,
        )

    async def _store(self, ask: OutputAsk | None, tenant: str) -> NamedStore | None:
        if ask is not None and ask.store is not None:
            try:
                return await self._book.usable(ask.store, tenant)
            except NotFound as error:
                raise InvalidOutput(
                    f"output.store: {error.message}", details={**error.details, "field": "output.store"}
                ) from None
        found = await self._book.default(tenant)
        if found is None and ask is not None:
            raise InvalidOutput(
                "output.store: your tenant has no default store, so name one: an operator makes stores "
                "(`fleet store add`)",
                details={"field": "output.store"},
            )
        return found

    async def _check_spool(self, store: NamedStore) -> None:
        if not self._spool_bytes:
            return
        waiting = await self._transfers.waiting_bytes()
        if waiting < self._spool_bytes:
            return
        why = (await self._transfers.traffic([store.name]))[store.name].error
        raise NoRoom(
            f"{waiting} bytes wait for stores already, and FLEET_SPOOL_BYTES is {self._spool_bytes}: try "
            f"again later. Store {store.name}: {why or 'it takes objects, but fewer than come'}",
            retry_after_s=RETRY_S,
        )
