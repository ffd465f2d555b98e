"""Files that a request carries itself, or names by URL, instead of naming one that was uploaded before.

A ``data:`` URI becomes an asset of the owner's while the request is checked. A URL is checked for its form;
the job waits until its file was fetched (:mod:`comfy_fleet.services.input_fetcher`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from blake3 import blake3

from comfy_fleet.domain.errors import BadInput, InvalidParameter, InvalidWorkflow, OutboundRefused
from comfy_fleet.domain.graphs import binding, data_uris, file_check
from comfy_fleet.domain.graphs.file_check import Declared
from comfy_fleet.domain.graphs.graph import Graph, NamedFile, Place, place_name, with_texts
from comfy_fleet.domain.graphs.workflow import FILES, ParameterType, TargetForm, Workflow
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.input_fetch import (
    MAX_URLS,
    FetchedInput,
    InputFetch,
    fits_type,
    is_in_store,
    is_url,
)
from comfy_fleet.domain.jobs.media import UNKNOWN_TYPE
from comfy_fleet.domain.jobs.sniffing import EXTENSIONS, HEAD_BYTES, content_type_of_bytes
from comfy_fleet.domain.limits import ScopedLimits
from comfy_fleet.domain.outbound import AllowedHosts, OutboundTarget, checked_addresses, parse_target
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.fetches import FetchStore
from comfy_fleet.services.store_inputs import StoreInputs

PLACEHOLDER = "00000000-0000-4000-8000-000000000000"
"""Stands for an asset that is not made before all else of a request was checked."""
_OFF_LOOP = 256 * 1024


class InputFiles:
    """Finds or makes the files of a request.

    Args:
        assets: Where files go.
        fetches: Knows what URLs gave a moment ago.
        allowed: Private hosts that may be named; None: no URL may.
        most_bytes: Largest file.
        wake: Called when a job waits for a URL.
        stores: Finds inputs that are in stores.
    """

    def __init__(
        self,
        assets: AssetStore,
        fetches: FetchStore,
        *,
        allowed: AllowedHosts | None,
        most_bytes: int,
        wake: Callable[[], None],
        stores: StoreInputs,
    ) -> None:
        self._assets = assets
        self._fetches = fetches
        self._allowed = allowed
        self._most_bytes = most_bytes
        self.wake = wake
        self._stores = stores

    # -- files in the request itself

    async def stored_params(
        self,
        owner: str,
        workflow: Workflow,
        params: Mapping[str, Any],
        quotas: tuple[ScopedLimits, ...] = (),
    ) -> Mapping[str, Any]:
        """Return parameters with assets' ids in place of ``data:`` URIs.

        Raises:
            InvalidParameter: One of the parameters is not what the workflow takes, or a URI can't be read.
            NoRoom: There is no room.
            StoredTooMuch: A limit of somebody's is used up.
        """
        uris = {
            parameter.name: value
            for parameter in workflow.parameters
            if parameter.type in FILES
            and isinstance(value := params.get(parameter.name), str)
            and data_uris.is_data_uri(value)
        }
        if not uris:
            return params
        _limited(len(uris))
        binding.bind(workflow, {**params, **dict.fromkeys(uris, PLACEHOLDER)}, draw_seed=lambda: 0)
        found = {}
        for name, uri in uris.items():
            try:
                data, content_type = await self._decoded(uri)
            except BadInput as error:
                raise InvalidParameter(
                    f"parameter {name!r} {error.message}",
                    details={"field": f"params.{name}", "parameter": name},
                ) from None
            if (parameter := workflow.parameter(name)) is not None:
                binding.check_file(parameter, content_type=content_type, size_bytes=len(data))
            found[name] = (await self._stored(owner, data, content_type, quotas)).id
        return {**params, **found}

    async def stored_graph(
        self, owner: str, graph: Graph, declared: Declared, quotas: tuple[ScopedLimits, ...] = ()
    ) -> Graph:
        """Return a graph with files' names in place of ``data:`` URIs, in inputs that name files.

        Raises:
            InvalidWorkflow: A URI can't be read, or its file is none that its input takes.
            NoRoom: There is no room.
            StoredTooMuch: A limit of somebody's is used up.
        """
        if not any(
            isinstance(value, str) and data_uris.is_data_uri(value)
            for node in graph.values()
            for value in node["inputs"].values()
        ):
            return graph
        named = [one for one in file_check.named_files(graph, declared) if data_uris.is_data_uri(one.name)]
        _limited(len(named))
        names: dict[Place, str] = {}
        for one in named:
            name = str(one.path[0])
            try:
                data, content_type = await self._decoded(one.name)
                _check_type(file_check.accepted(graph[one.node_id]["class_type"], name), content_type)
            except BadInput as error:
                fault = {"field": name, "reason": "bad_data_uri", "message": f"{name} {error.message}"}
                raise InvalidWorkflow(
                    f"node {one.node_id}: {fault['message']}",
                    details={"field": "workflow", "node_errors": {one.node_id: [fault]}},
                ) from None
            names[one.place] = (await self._stored(owner, data, content_type, quotas)).file_path
        return with_texts(graph, names)

    async def _decoded(self, uri: str) -> tuple[bytes, str]:
        if len(uri) > _OFF_LOOP:
            data = await asyncio.to_thread(data_uris.decode, uri, most_bytes=self._most_bytes)
        else:
            data = data_uris.decode(uri, most_bytes=self._most_bytes)
        return data, content_type_of_bytes(data[:HEAD_BYTES], "")

    async def _stored(
        self, owner: str, data: bytes, content_type: str, quotas: tuple[ScopedLimits, ...]
    ) -> Asset:
        digest = blake3(data).hexdigest()
        async with self._assets.receive(_one(data)) as received:
            asset, _ = await self._assets.keep(
                received,
                owner=owner,
                content_type=content_type,
                file_path=f"data/{digest[:32]}{EXTENSIONS.get(content_type, '')}",
                numbered=True,  # the same bytes are the same asset again
                quotas=quotas,
            )
            return asset

    # -- files that are elsewhere

    async def named(
        self,
        owner: str,
        graph: Graph,
        files: Iterable[NamedFile],
        workflow: Workflow | None,
        values: Mapping[str, Any],
    ) -> dict[str, list[tuple[Place, FetchedInput]]]:
        """Return the inputs of a graph whose value is a URL, by URL.

        Args:
            owner: Whose job it is.
            graph: The graph, with its parameters in place.
            files: Inputs that name files.
            workflow: The stored workflow of which it was made, if it was.
            values: Its parameters.

        Raises:
            OutboundRefused: A URL is not one that is called, or no URL is.
            InvalidWorkflow: There are too many.
        """
        found: dict[Place, tuple[str, FetchedInput, str]] = {}
        for parameter in workflow.parameters if workflow else ():
            url = values.get(parameter.name)
            if parameter.type not in FILES or not isinstance(url, str) or not is_url(url):
                continue
            usual = ("image/*",) if parameter.type is ParameterType.IMAGE else ("*/*",)
            for target in parameter.targets:
                place: Place = (target.node_id, (target.input,))
                inputs = graph.get(target.node_id, {}).get("inputs", {})
                if target.form is TargetForm.VALUE and inputs.get(target.input) == url:
                    takes = FetchedInput(
                        place=place_name(place),
                        accept=tuple(one.lower() for one in parameter.accept) or usual,
                        most_bytes=parameter.max_bytes,
                    )
                    found[place] = url, takes, f"params.{parameter.name}"
        for one in files:
            if is_url(one.name) and one.place not in found:
                accept = file_check.accepted(graph[one.node_id]["class_type"], str(one.path[0]))
                takes = FetchedInput(place=place_name(one.place), accept=accept)
                found[one.place] = one.name, takes, f"workflow.{one.node_id}.inputs.{one.path[0]}"
        by_url: dict[str, list[tuple[Place, FetchedInput]]] = {}
        for place, (url, takes, field) in found.items():
            if url not in by_url:
                await self._check(owner, url, field)
            by_url.setdefault(url, []).append((place, takes))
        _limited(len(by_url))
        return by_url

    async def fresh(self, owner: str, url: str) -> Asset | None:
        """Return what a URL gave a moment ago, if it need not be fetched again."""
        asset_id = await self._fetches.fresh(owner, url)
        asset = await self._assets.get(asset_id) if asset_id else None
        return asset if asset is not None and asset.owner == owner else None

    async def _check(self, owner: str, url: str, field: str) -> None:
        if not is_in_store(url):
            self._target(url, field)
            return
        try:
            await self._stores.check(owner, url)
        except OutboundRefused as error:
            details = {**error.details, "field": field}
            raise OutboundRefused(f"{field}: {error.message}", details=details) from None

    def _target(self, url: str, field: str) -> OutboundTarget:
        if self._allowed is None:
            raise OutboundRefused(
                f"{field}: this fleet fetches no URLs (FLEET_FETCH): upload the file, and name it",
                details={"field": field},
            )
        try:
            target = parse_target(url)
            if target.address is not None:
                checked_addresses(target, [target.address], self._allowed)
        except OutboundRefused as error:
            raise OutboundRefused(f"{field}: {error.message}", details={"field": field}) from None
        return target


def as_fetches(by_url: Mapping[str, Iterable[FetchedInput]]) -> tuple[InputFetch, ...]:
    """Return what a job has to wait for."""
    return tuple(
        InputFetch(url=url, shown=shown_url(url), inputs=tuple(inputs)) for url, inputs in by_url.items()
    )


def shown_url(url: str) -> str:
    """Return a URL without what may be a credential, for messages and logs."""
    return url if is_in_store(url) else parse_target(url).shown


def _check_type(takes: tuple[str, ...], content_type: str) -> None:
    """Refuse what an input does not take; a URI has no name, by which alone some 3D models are known."""
    unmarked = content_type in (UNKNOWN_TYPE, "text/plain") and "model/*" in takes
    if not unmarked and not fits_type(takes, content_type):
        raise BadInput(f"takes {', '.join(takes)}, and this is {content_type}: send a file of such a type")


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _limited(count: int) -> None:
    if count > MAX_URLS:
        raise InvalidWorkflow(
            f"{count} files are given as URLs, a job may have {MAX_URLS}: upload them as assets",
            details={"field": "workflow", "limit": MAX_URLS, "node_errors": {}},
        )
