"""ComfyUI's HTTP API on a named node, through the broker's direct frontend.

Every call has the header ``X-Fleet-Node: NAME``, and so has every answer from a node: an answer without it is
HAProxy's own. Errors of HAProxy and nodes become the fleet's here:

==================================  ===============  ==================================
what happens                        a question       anything else
==================================  ===============  ==================================
HAProxy does not answer             ``unreachable``  NodeError
HAProxy is another fleet's          ``unreachable``  NodeError
HAProxy answers 503 by itself       ``node_down``    NodeError
node too slow, 5xx, not JSON        ``error``        NodeError
its answer breaks a limit           ``unusable``     NodeFault
404 from it on ``/view``            (none)           OutputGone
400, 403 from it on ``/view``       (none)           OutputRefused
==================================  ===============  ==================================
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlencode

import aiohttp
import orjson
from aiohttp.client_exceptions import UnixClientConnectorError
from yarl import URL

from comfy_fleet.adapters.comfyui.answer_limits import PLAIN, AnswerLimits, decoded, read_body
from comfy_fleet.adapters.comfyui.broker_headers import broker_headers, is_another_fleets, socket_of
from comfy_fleet.adapters.comfyui.head_limits import Connector, SocketConnector, TooManyHeads
from comfy_fleet.adapters.comfyui.object_info import ClassReader
from comfy_fleet.adapters.comfyui.raw_calls import raw_call
from comfy_fleet.adapters.comfyui.upload_form import UploadForm
from comfy_fleet.domain.errors import NodeError, NodeFault, OutputGone, OutputRefused
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.jobs.outputs import FileRef
from comfy_fleet.domain.jobs.run_messages import (
    AskFailed,
    AskFailure,
    HistoryAnswered,
    PostAnswered,
    PostUnknown,
    QueueAnswered,
)
from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE
from comfy_fleet.ports.assets import Content
from comfy_fleet.ports.comfyui import RawAnswer

logger = logging.getLogger(__name__)

_CHUNK = 256 * 1024
NODE = "X-Fleet-Node"
JOB = "X-Fleet-Job"
_JSON = {"Content-Type": "application/json"}
_ANOTHER_FLEETS = "the broker at FLEET_DIRECT_PORT, or its secret, is another fleet's"

# The broker is near: a connection that it does not accept in two seconds, it won't accept at all.
_CONNECT_S = 2.0
# A model load can block a node's event loop for a minute. A question gives up earlier and is asked again. A
# POST must not give up: it would not be known if the prompt has arrived. HAProxy limits the time to an
# answer's head (its `timeout server`), AnswerLimits the time from there to its end.
_ASK = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=10.0)
_SEND = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=60.0)
_KEEPALIVE_S = 3.0  # HAProxy closes idle connections after five seconds; ours must be closed earlier
_HISTORY = "/history/"
_TEXT_LIMIT = 2000
_BROKEN = (aiohttp.ClientError, TimeoutError, OSError)


class _Answer(NamedTuple):
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    content: bytes | bytearray


class NodeClient:
    """ComfyUI's API on all nodes; see :class:`comfy_fleet.ports.comfyui.NodeApi`.

    ``async with NodeClient(settings.direct_url) as nodes: ...``

    On aiohttp, because every job makes two calls here: a call costs 0.1 ms of CPU, a fifth of httpx's.

    Args:
        url: ``unix:PATH`` or ``http://HOST:PORT`` of the broker's direct frontend.
        limits: How much of an answer is read.
        on_fault: Called for every node whose answer breaks a limit.
        namespace: The namespace that the broker must have.
        secret: What the broker's port asks for.
    """

    def __init__(
        self,
        url: str,
        *,
        limits: AnswerLimits | None = None,
        on_fault: Callable[[str, NodeFault], None] = lambda node, fault: None,
        namespace: str = DEFAULT_NAMESPACE,
        secret: str = "",
    ) -> None:
        self._headers = {**PLAIN, "User-Agent": "comfy-fleet", **broker_headers(namespace, secret)}
        self._socket = socket_of(url)
        self._url = url.rstrip("/") if self._socket is None else "http://localhost"
        self._limits = limits or AnswerLimits()
        self._on_fault = on_fault
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._open()
        return self

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=(
                    Connector(limit=0, keepalive_timeout=_KEEPALIVE_S)
                    if self._socket is None
                    else SocketConnector(self._socket, limit=0, keepalive_timeout=_KEEPALIVE_S)
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=_ASK,
                headers=self._headers,
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # What a run needs -------------------------------------------------------------------------------------

    async def post_prompt(
        self,
        node: str,
        *,
        graph: Mapping[str, Any],
        run: str,
        job: str,
        extra_data: Mapping[str, Any] | None = None,
        targets: Sequence[str] = (),
    ) -> PostAnswered | PostUnknown:
        """Post a graph under the run's id. Never raises because of the node or the broker."""
        message: dict[str, Any] = {
            "prompt": graph,
            "client_id": run,
            "prompt_id": run,
            "extra_data": {**(extra_data or {}), "fleet": {"job": job, "run": run}},
        }
        if targets:
            message["partial_execution_targets"] = list(targets)
        body = orjson.dumps(message)
        headers = {NODE: node, JOB: job, "Content-Type": "application/json"}
        try:
            response = await self._send("POST", "/prompt", headers, data=body, patience=_SEND)
            answer = await self._decoded(response, node, "/prompt")
        except NodeFault as error:
            return PostUnknown(error.message)
        except _BROKEN as error:
            return PostUnknown(_words(error))
        if NODE not in response.headers:
            if response.status in (502, 504):
                # HAProxy lost the node meanwhile, or got no answer from it.
                return PostUnknown(f"the broker answered {response.status}")
            if is_another_fleets(response.headers):
                # No node has refused the prompt: the run waits until its own broker answers again.
                facts = {"job_id": job, "run_id": run, "node": node, "reason": _ANOTHER_FLEETS}
                logger.error("prompt not posted", extra=facts)
                return PostUnknown(_ANOTHER_FLEETS)
        return PostAnswered(
            response.status,
            answer if isinstance(answer, dict) else None,
            response.content[:_TEXT_LIMIT].decode(errors="replace"),
        )

    async def queue_state(self, node: str, run: str) -> QueueAnswered | AskFailed:
        """Ask where the run is. Never raises because of the node or the broker."""
        answer = await self._ask(node, "queue", "/queue", brief=True)
        if isinstance(answer, AskFailed):
            return answer
        running, pending = answer.get("queue_running"), answer.get("queue_pending")
        if not isinstance(running, list) or not isinstance(pending, list):
            return AskFailed("queue", "error")
        if _holds(running, run):
            return QueueAnswered("running")
        return QueueAnswered("pending" if _holds(pending, run) else "absent")

    async def history(self, node: str, run: str) -> HistoryAnswered | AskFailed:
        """Ask for the run's history entry. Never raises because of the node or the broker."""
        answer = await self._ask(node, "history", f"{_HISTORY}{run}")
        if isinstance(answer, AskFailed):
            return answer
        entry = answer.get(run)
        return HistoryAnswered(entry if isinstance(entry, dict) else None)

    async def interrupt(self, node: str, run: str) -> bool:
        """Interrupt this run and no other; False if the node could not be reached."""
        return await self._tell(node, "/interrupt", {"prompt_id": run})

    async def delete_pending(self, node: str, run: str) -> bool:
        """Delete this run from the node's queue; False if the node could not be reached."""
        return await self._tell(node, "/queue", {"delete": [run]})

    @asynccontextmanager
    async def view(self, node: str, ref: FileRef) -> AsyncIterator[Content]:
        """Stream a file. Exceptions of the caller pass through unchanged.

        Raises:
            OutputGone: The node has no such file.
            OutputRefused: The node hands out no file with such a name or folder.
            NodeError: The node could not be reached, or broke off; also while reading.
        """
        params = {"filename": ref.filename, "subfolder": ref.subfolder, "type": ref.type}
        facts = {"node": node, **params}

        def broken(error: Exception) -> NodeError:
            return NodeError(f"reading {ref.filename!r} from node {node}: {_words(error)}", details=facts)

        async def chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
            content = response.content.iter_chunked(_CHUNK)
            while True:
                try:
                    chunk = await anext(content)
                except StopAsyncIteration:
                    return
                except _BROKEN as error:
                    raise broken(error) from error
                yield chunk

        try:
            response = await self._open().get(
                self._at("/view", params), headers={NODE: node}, timeout=_SEND, allow_redirects=False
            )
        except _BROKEN as error:
            raise broken(error) from error
        async with response:
            what = f"{ref.type} file {ref.filename!r}"
            if NODE in response.headers and response.status == 404:
                raise OutputGone(f"node {node} has no {what}", details=facts)
            if NODE in response.headers and response.status in (400, 403):
                raise OutputRefused(f"node {node} answers {response.status} for {what}", details=facts)
            if response.status != 200:
                raise _refused(node, "/view", response.status, response.headers)
            yield Content(chunks=chunks(response), length=response.content_length)

    async def holds(self, node: str, ref: FileRef, *, size_bytes: int) -> bool:
        """See :meth:`comfy_fleet.ports.comfyui.NodeApi.holds`."""
        params = {"filename": ref.filename, "subfolder": ref.subfolder, "type": ref.type}
        try:
            async with self._open().head(
                self._at("/view", params), headers={NODE: node}, timeout=_ASK, allow_redirects=False
            ) as response:
                length = response.headers.get("Content-Length", "")
                return response.status == 200 and NODE in response.headers and length == str(size_bytes)
        except (TooManyHeads, *_BROKEN):
            return False

    # Everything else --------------------------------------------------------------------------------------

    async def upload(
        self,
        node: str,
        *,
        name: str,
        subfolder: str,
        content: AsyncIterator[bytes],
        content_type: str,
        size_bytes: int | None = None,
    ) -> FileRef:
        """See :meth:`comfy_fleet.ports.comfyui.NodeApi.upload`."""
        fields = {"subfolder": subfolder, "type": "input", "overwrite": "true"}
        form = UploadForm(fields, name, content, content_type, size_bytes=size_bytes)
        headers = {NODE: node, "Content-Type": f"multipart/form-data; boundary={form.boundary}"}
        # With a length, a node that limits uploads can refuse before it has read everything.
        if form.length is not None:
            headers["Content-Length"] = str(form.length)
        try:
            answer = await self._call(node, "POST", "/upload/image", headers=headers, data=form.chunks())
        except NodeError:
            if form.broken is not None:
                raise form.broken from None
            raise
        stored = answer.get("name") if isinstance(answer, dict) else None
        if not isinstance(answer, dict) or not isinstance(stored, str):
            raise NodeError(f"node {node} did not say how it stored {name!r}", details={"node": node})
        return FileRef(stored, str(answer.get("subfolder") or ""), str(answer.get("type") or "input"))

    async def inventory(self, node: str) -> Inventory:
        """Return the node's classes, without its version. Raises NodeError."""
        classes = ClassReader(self._limits)
        try:
            await self._call(node, "GET", "/object_info", take=classes.take)
            found = await classes.end()
        except NodeFault as fault:
            raise fault if "node" in fault.details else self._blamed(node, fault, "/object_info") from None
        except NodeError as error:
            if error.details:
                raise
            message = f"node {node} answered /object_info with no JSON object: {error.message}"
            raise NodeError(message, details={"node": node}) from None
        replacements = await self._node_replacements(node)
        inventory = await asyncio.to_thread(found.inventory, replacements)
        return replace(inventory, object_info=classes.packed())

    async def _node_replacements(self, node: str) -> object:
        try:
            return await self._call(node, "GET", "/node_replacements")
        except NodeError as error:
            # Older versions don't have it, and an entry of a node pack may break it.
            if error.details.get("status", 503) in (502, 503, 504):
                raise
            return None

    async def system_stats(self, node: str) -> Mapping[str, Any]:
        """Return versions and memory. Raises NodeError."""
        return await self._object(node, "/system_stats")

    async def listing(self, node: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        """See :meth:`comfy_fleet.ports.comfyui.NodeApi.listing`."""
        answer = await self._found(node, path, query)
        return None if answer is None else await self._decoded(answer, node, path)

    async def preview(self, node: str, *, folder: str, index: int, name: str) -> bytes | None:
        """See :meth:`comfy_fleet.ports.comfyui.NodeApi.preview`."""
        answer = await self._found(node, f"/experiment/models/preview/{folder}/{index}/{name}")
        return None if answer is None else bytes(answer.content)

    async def raw(
        self,
        node: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        most: int | None = None,
    ) -> RawAnswer:
        """See :meth:`comfy_fleet.ports.comfyui.NodeApi.raw`."""
        return await raw_call(
            self._open(),
            URL(f"{self._url}{path}", encoded=True),
            node,
            method,
            headers=headers or {},
            body=body,
            limits=self._limits.at_most(most),
            patience=_SEND,
        )

    async def free(self, node: str, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """Ask the node to unload its models once it is idle. Raises NodeError."""
        orders = {"unload_models": unload_models, "free_memory": free_memory}
        await self._call(node, "POST", "/free", headers={NODE: node, **_JSON}, data=orjson.dumps(orders))

    # ------------------------------------------------------------------------------------------------------

    def _at(self, path: str, params: Mapping[str, str] | None = None) -> URL:
        query = f"?{urlencode(params)}" if params else ""
        return URL(f"{self._url}{path}{query}", encoded=True)

    async def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        data: bytes | AsyncIterator[bytes] | None = None,
        patience: aiohttp.ClientTimeout = _ASK,
        take: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> _Answer:
        try:
            async with self._open().request(
                method, self._at(path), headers=headers, data=data, timeout=patience, allow_redirects=False
            ) as response:
                chunks = response.content.iter_chunked(_CHUNK)
                sound = response.status == 200 and NODE in response.headers
                body = await read_body(
                    response.headers,
                    chunks,
                    self._limits,
                    what=_call_of(path),
                    take=take if sound else None,
                )
                return _Answer(response.status, response.headers, body)
        except NodeFault as fault:
            raise self._blamed(headers[NODE], fault, path) from None
        except TooManyHeads as error:
            raise self._blamed(
                headers[NODE], NodeFault(f"{_call_of(path)} answered with {error}"), path
            ) from None

    async def _decoded(self, answer: _Answer, node: str, path: str, *, brief: bool = False) -> Any:
        """Return an answer's JSON, or None if it is not JSON. Raises NodeFault."""
        try:
            return await decoded(answer.content, self._limits, what=_call_of(path), brief=brief)
        except NodeFault as fault:
            raise self._blamed(node, fault, path) from None

    def _blamed(self, node: str, fault: NodeFault, path: str) -> NodeFault:
        fault.details["node"] = node
        if path.startswith(_HISTORY):
            fault.details["run"] = path.removeprefix(_HISTORY)
        self._on_fault(node, fault)
        return fault

    async def _ask(
        self, node: str, what: str, path: str, *, brief: bool = False
    ) -> dict[str, Any] | AskFailed:
        def failed(kind: AskFailure, why: str = "") -> AskFailed:
            return AskFailed(what, kind, why)

        try:
            response = await self._get(path, node)
            if NODE not in response.headers:
                if is_another_fleets(response.headers):
                    return failed("unreachable")
                return failed("node_down" if response.status == 503 else "error")
            found = response.status == 200
            answer = await self._decoded(response, node, path, brief=brief) if found else None
        except NodeFault as fault:
            return failed("unusable", fault.message)
        except aiohttp.ConnectionTimeoutError:
            return failed("unreachable")
        except TimeoutError:
            return failed("error")
        except _BROKEN:
            # If a node breaks off, HAProxy answers 502; a broken connection means that HAProxy itself has
            # gone.
            return failed("unreachable")
        return answer if isinstance(answer, dict) else failed("error")

    async def _get(self, path: str, node: str) -> _Answer:
        try:
            return await self._send("GET", path, {NODE: node})
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            # Probably HAProxy has just closed this idle connection: a new one settles it.
            return await self._send("GET", path, {NODE: node})

    async def _found(self, node: str, path: str, query: Mapping[str, str] | None = None) -> _Answer | None:
        """Return a node's answer to a GET; None if it has nothing there. Raises NodeError."""
        asked = quote(path, safe="/") + (f"?{urlencode(query)}" if query else "")
        try:
            answer = await self._get(asked, node)
        except _BROKEN as error:
            raise NodeError(f"{path} on node {node}: {_words(error)}", details={"node": node}) from error
        if answer.status == 404 and NODE in answer.headers:
            return None
        if answer.status != 200 or NODE not in answer.headers:
            raise _refused(node, path, answer.status, answer.headers)
        return answer

    async def _tell(self, node: str, path: str, body: Mapping[str, Any]) -> bool:
        try:
            response = await self._send("POST", path, {NODE: node, **_JSON}, data=orjson.dumps(body))
        except (NodeFault, *_BROKEN):
            return False
        return response.status == 200 and NODE in response.headers

    async def _object(self, node: str, path: str) -> Mapping[str, Any]:
        answer = await self._call(node, "GET", path)
        if not isinstance(answer, dict):
            raise NodeError(f"node {node} answered {path} with no JSON object", details={"node": node})
        return answer

    async def _call(
        self,
        node: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | AsyncIterator[bytes] | None = None,
        take: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> Any:
        """Call and return the answer's JSON; None if ``take`` gets it. Raises NodeError."""
        try:
            response = await self._send(
                method, path, headers or {NODE: node}, data=data, patience=_SEND, take=take
            )
        except _BROKEN as error:
            raise NodeError(f"{path} on node {node}: {_words(error)}", details={"node": node}) from error
        if response.status != 200 or NODE not in response.headers:
            raise _refused(node, path, response.status, response.headers)
        return await self._decoded(response, node, path)


def _holds(rows: list[Any], run: str) -> bool:
    return any(isinstance(row, list) and len(row) > 1 and row[1] == run for row in rows)


def _call_of(path: str) -> str:
    """Return a call's name for messages, without a run's id, which says nothing about the node."""
    return f"/{path.split('/')[1]}"


def _refused(node: str, path: str, status: int, headers: Mapping[str, str]) -> NodeError:
    if NODE in headers:
        message = f"node {node} answered {path} with {status}"
    elif is_another_fleets(headers):
        message = f"node {node} can't be asked: {_ANOTHER_FLEETS}"
    elif status == 503:
        message = f"node {node} can't be reached through the broker"
    else:
        message = f"the broker answered {path} for node {node} with {status}"
    return NodeError(message, details={"node": node, "status": status})


def _words(error: Exception) -> str:
    if isinstance(error, UnixClientConnectorError):
        return (
            "nothing answers at the broker's socket: start `fleet haproxy run`, or set FLEET_BROKER_HOST "
            "if it is on another machine"
        )
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
