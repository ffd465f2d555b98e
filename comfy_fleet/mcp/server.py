"""The server: tools are listed, called, followed and canceled."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import anyio
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
)

import comfy_fleet
from comfy_fleet.client import (
    AsyncFleetClient,
    ClientError,
    FleetUnavailable,
    JobData,
    StreamEvent,
    WaitExpired,
    WorkflowData,
    WorkflowSummaryData,
)
from comfy_fleet.mcp.results import failure, say, told
from comfy_fleet.mcp.tools import CANCEL, JOB, OWN_TOOLS, STATUS, output_of, text, tool_names, tool_of, values

logger = logging.getLogger(__name__)

INSTRUCTIONS = (
    "Each tool runs a stored workflow on a fleet of GPUs and returns what it makes. Parameters that take "
    "a file take a URL, a data: URI, or an output's id. What takes longer than a call may wait goes on: "
    "ask for it with fleet_job."
)
LOOK_S = 15.0
"""Seconds between two looks at whether workflows have come or gone."""
BEAT_S = 10.0
"""Seconds between two signs of life of a call."""
MOST_SESSIONS = 1000
MOST_JOBS = 20
_CANCEL_S = 10.0

Connect = Callable[[str | None], AsyncFleetClient]
"""Returns a client of the fleet with this key, or with none."""
KeyOf = Callable[[Any], str | None]
"""Returns the key that an HTTP request shows, if it shows one."""


class _ToolServer(Server[Any]):
    """Says in the handshake that it tells of changes, whoever asks."""

    def create_initialization_options(self, *_: Any, **more: Any) -> InitializationOptions:
        return super().create_initialization_options(NotificationOptions(tools_changed=True), **more)


class FleetTools:
    """The tools of one fleet.

    Args:
        connect: Returns a client of it.
        key_of: Returns the key that an HTTP request shows.
        own_key: This server's own: for calls by standard input, and to see that workflows have changed. No
            HTTP request borrows it.
        wait_s: How long a call waits for its job's end.
        most_bytes: How many bytes the pictures of one answer may have.
        look_s: Seconds between two looks at whether workflows have come or gone.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        key_of: KeyOf,
        own_key: str | None = None,
        wait_s: float,
        most_bytes: int,
        look_s: float = LOOK_S,
    ) -> None:
        self._connect = connect
        self._key_of = key_of
        self._own_key = own_key
        self._look_s = look_s
        self._wait_s = wait_s
        self._most_bytes = most_bytes
        self._known: dict[tuple[str, str], WorkflowData] = {}
        self._sessions: dict[str, Any] = {}
        self._bus = InMemorySubscriptionBus()
        self.server = _ToolServer(
            comfy_fleet.__name__,
            version=comfy_fleet.__version__,
            instructions=INSTRUCTIONS,
            lifespan=self._lifespan,
            on_list_tools=self._list,
            on_call_tool=self._call,
            on_subscriptions_listen=ListenHandler(self._bus, max_subscriptions=MOST_SESSIONS),
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Server[Any]) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            yield
            tasks.cancel_scope.cancel()

    def _asking(self, ctx: Any) -> AsyncFleetClient:
        """Return a client of the fleet that asks as whoever asks here."""
        return self._connect(self._own_key if ctx.request is None else self._key_of(ctx.request))

    # -- the list ------------------------------------------------------------

    async def _list(self, ctx: Any, _: PaginatedRequestParams | None) -> ListToolsResult:
        self._remember(ctx)
        try:
            async with self._asking(ctx) as fleet:
                named = tool_names(await fleet.workflows())
                tools = [tool_of(name, await self._workflow(fleet, one)) for name, one in named.items()]
        except ClientError as error:
            raise MCPError(INVALID_PARAMS, f"the fleet can't be asked: {error.message}") from None
        return ListToolsResult(tools=[*tools, *OWN_TOOLS])

    async def _workflow(self, fleet: AsyncFleetClient, named: WorkflowSummaryData) -> WorkflowData:
        """Return a workflow; what a version has never changes."""
        key = (named["name"], named["version"])
        if (known := self._known.get(key)) is None:
            known = await fleet.workflow(named["name"])
            for older in [one for one in self._known if one[0] == named["name"]]:
                del self._known[older]
            self._known[key] = known
        return known

    def _remember(self, ctx: Any) -> None:
        """Remember whom to tell of changes."""
        session_id = "" if ctx.request is None else ctx.request.headers.get("mcp-session-id", "")
        if ctx.request is None or session_id:
            self._sessions.pop(session_id, None)
            self._sessions[session_id] = ctx.session
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))

    async def _watch(self) -> None:
        """Tell of workflows that come, go or change, as far as this server itself may look."""
        last: object = None
        while True:
            await anyio.sleep(self._look_s)
            try:
                async with self._connect(self._own_key) as fleet:
                    now = [(one["name"], one["version"]) for one in await fleet.workflows()]
            except ClientError as error:
                logger.debug("can't look for new workflows: %s", error.message)
                continue
            if last is not None and now != last:
                await self._tell()
            last = now

    async def _tell(self) -> None:
        await self._bus.publish(ToolsListChanged())
        for session_id, session in list(self._sessions.items()):
            try:
                await session.send_tool_list_changed()
            except Exception:  # noqa: BLE001 - whatever ended the session, the others are to hear of it
                self._sessions.pop(session_id, None)

    # -- a call --------------------------------------------------------------

    async def _call(self, ctx: Any, params: CallToolRequestParams) -> CallToolResult:
        arguments = params.arguments or {}
        try:
            async with self._asking(ctx) as fleet:
                if params.name == STATUS:
                    return await _status(fleet)
                if params.name in (JOB, CANCEL):
                    job_id = _job_id(arguments)
                    job = await (fleet.job(job_id) if params.name == JOB else fleet.cancel(job_id))
                    if params.name == CANCEL:
                        return CallToolResult(content=[say(f"Job {job['id']} is {job['status']}.")])
                    return await told(fleet, job, most_bytes=self._most_bytes)
                named = tool_names(await fleet.workflows())
                if (found := named.get(params.name)) is None:
                    raise MCPError(INVALID_PARAMS, f"there is no tool {params.name[:80]!r}")
                workflow = await self._workflow(fleet, found)
                options = output_of(workflow, arguments)
                job = await self._run(ctx, fleet, found["name"], values(workflow, arguments), options)
                return await told(fleet, job, most_bytes=self._most_bytes)
        except ClientError as error:
            return failure(error)

    async def _run(
        self,
        ctx: Any,
        fleet: AsyncFleetClient,
        workflow: str,
        params: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> JobData:
        """Submit a job and wait for its end; if the call is canceled, so is the job.

        Raises:
            ClientError: It can't be submitted, or followed.
        """
        # A submit that is broken off may have made a job that nobody would know of.
        with anyio.CancelScope(shield=True):
            job = await fleet.submit(workflow, params, **options)
        failed: ClientError | None = None
        try:
            async with anyio.create_task_group() as tasks:
                beats = _Beats(ctx.session)
                tasks.start_soon(beats.go_on)
                try:
                    job = await fleet.wait(job, wait_s=self._wait_s, on_event=beats.heard, check=False)
                except WaitExpired:
                    job = await fleet.job(job)
                except ClientError as error:
                    failed = error
                tasks.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_CANCEL_S, shield=True), contextlib.suppress(ClientError):
                await fleet.cancel(job)
            raise
        if failed is not None:
            raise failed
        return job


class _Beats:
    """Tells a call's client how far its job is, and now and then that it goes on: some give up otherwise."""

    def __init__(self, session: ServerSession) -> None:
        self._session = session
        self._at = 0.0
        self._words = "submitted"

    async def heard(self, event: StreamEvent) -> None:
        """Tell what an event says."""
        value = 0.0
        if event.name == "progress":
            value = float(event.data["value"])
            self._words = text(event.data.get("message") or "running", 200)
        elif event.name == "status":
            place = event.data.get("queue_position")
            self._words = event.data["status"] + (f", place {place}" if place else "")
        else:
            return
        await self._tell(value)

    async def go_on(self) -> None:
        """Tell every few seconds that it goes on."""
        while True:
            await anyio.sleep(BEAT_S)
            await self._tell(0.0)

    async def _tell(self, value: float) -> None:
        at = min(1.0, max(value, self._at + 1e-4))
        if at > self._at:  # it must grow with each message
            self._at = at
            await self._session.report_progress(at, 1.0, self._words)


def _job_id(arguments: Mapping[str, Any]) -> str:
    """Return which job a tool is about.

    Raises:
        ClientError: The agent did not say.
    """
    if not (job_id := str(arguments.get("job_id") or "")):
        raise ClientError(
            "job_id is required: each job's answer has it, and fleet_status lists those that wait or run"
        )
    return job_id


async def _status(fleet: AsyncFleetClient) -> CallToolResult:
    try:
        await fleet.request("GET", "/api/v1/ready", repeat=False)
        said = ["Jobs can run."]
    except FleetUnavailable as error:
        said = [f"No job can run now: {error.message}"]
    async for job in fleet.jobs(status=["queued", "running"], page=20):
        waits = f", waiting: {job['waiting_for']}" if job["waiting_for"] else ""
        said.append(f"{job['id']} ({job['workflow'] or 'a graph'}) is {job['status']}{waits}")
        if len(said) > MOST_JOBS:
            said.append("and more")
            break
    return CallToolResult(content=[say("\n".join(said))])
