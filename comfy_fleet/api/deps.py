"""What the HTTP surfaces need; made at the start, and given to every handler through the app."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from starlette.requests import Request

from comfy_fleet.api.admission import Ticket
from comfy_fleet.api.auth import Keys
from comfy_fleet.api.body_pace import BodyPace
from comfy_fleet.api.endpoint import ONLY_FIGURES, console_only
from comfy_fleet.api.errors import HttpError, OperatorsOnly
from comfy_fleet.api.job_views import JobViews
from comfy_fleet.api.links import Links
from comfy_fleet.api.origins import Origin, console_base
from comfy_fleet.api.request_pace import RequestPace
from comfy_fleet.api.wrong_keys import WrongKeys
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference
from comfy_fleet.domain.nodes.node import Node, split_credentials
from comfy_fleet.domain.principal import Principal
from comfy_fleet.domain.roles import Role
from comfy_fleet.ports.agent_tokens import AgentTokenStore
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.audit import AuditTrail
from comfy_fleet.ports.batches import BatchStore
from comfy_fleet.ports.comfyui import NodeCalls
from comfy_fleet.ports.jobs import Events, JobStore, Replays
from comfy_fleet.ports.missing import MissingRecord
from comfy_fleet.ports.nodes import Hosts, NodeRegistry, PoolStore
from comfy_fleet.ports.prompts import PromptLists
from comfy_fleet.ports.scrape_targets import ScrapeTargets
from comfy_fleet.ports.sessions import Sessions
from comfy_fleet.ports.transfers import Transfers
from comfy_fleet.ports.usage import UsageStore
from comfy_fleet.ports.webhooks import Webhooks
from comfy_fleet.ports.workflow_store import WorkflowStore
from comfy_fleet.ports.workflows import Catalog
from comfy_fleet.services.announcing import AgentTargets
from comfy_fleet.services.batch_keeper import BatchKeeper
from comfy_fleet.services.batch_maker import BatchMaker
from comfy_fleet.services.client_files import ClientFiles
from comfy_fleet.services.client_hub import ClientHub
from comfy_fleet.services.drafts import Drafts
from comfy_fleet.services.editor_nodes import EditorNodes
from comfy_fleet.services.editor_settings import EditorSettings
from comfy_fleet.services.editor_ticket import EditorTickets
from comfy_fleet.services.estimator import Estimator
from comfy_fleet.services.extension_calls import ExtensionCalls
from comfy_fleet.services.fleet_figures import FleetFigures
from comfy_fleet.services.fleet_models import FleetModels
from comfy_fleet.services.fleet_object_info import FleetObjectInfo
from comfy_fleet.services.fleet_overview import FleetOverview
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.services.live_changes import LiveChanges
from comfy_fleet.services.model_fetching import ModelFetching
from comfy_fleet.services.node_answers import NodeAnswers
from comfy_fleet.services.picture_work import PictureWork
from comfy_fleet.services.prompt_items import PromptItems
from comfy_fleet.services.prompt_submitter import PromptSubmitter
from comfy_fleet.services.publishing import Publishing
from comfy_fleet.services.retrying import Retrying
from comfy_fleet.services.session_watch import SessionWatch
from comfy_fleet.services.signed_urls import SignedUrls
from comfy_fleet.services.stocked_models import StockedModels
from comfy_fleet.services.store_book import StoreBook
from comfy_fleet.services.stored_redirects import StoredRedirects
from comfy_fleet.services.submitter import Sealer, Submitter
from comfy_fleet.services.upload_receiver import UploadReceiver
from comfy_fleet.services.user_files import UserFiles
from comfy_fleet.services.warming import Warming
from comfy_fleet.services.webhook_deliverer import WebhookDeliverer
from comfy_fleet.services.webhook_secrets import WebhookSecrets
from comfy_fleet.services.workflow_publisher import WorkflowPublisher
from comfy_fleet.settings import Settings
from comfy_fleet.turns import FairTurns

Probe = Callable[[], Awaitable[str | None]]
"""Returns why a part is not ready, or None."""


PlaceCheck = Callable[[Node, Iterable[Node]], Awaitable[None]]
"""Checks where a new node's URL leads, given the registered nodes; raises Conflict or BadInput."""


class NodeFacts(NodeCalls, Protocol):
    """The part of :class:`comfy_fleet.ports.comfyui.NodeApi` that the API needs."""

    async def inventory(self, node: str) -> Inventory:
        """Return the node's classes, without its version. Raises NodeError."""

    async def system_stats(self, node: str) -> Mapping[str, Any]:
        """Return versions and memory. Raises NodeError."""

    async def listing(self, node: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of one of ComfyUI's own lists; None if there is none. Raises NodeError."""

    async def preview(self, node: str, *, folder: str, index: int, name: str) -> bytes | None:
        """Return a model file's preview picture; None if it has none. Raises NodeError."""

    async def free(self, node: str, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """Ask the node to unload its models once it is idle. Raises NodeError."""


class Replication(Protocol):
    """Lets an answer wait until replicas of the store have what its request has written."""

    async def server(self) -> str:
        """Return which server takes writes now, to be asked before the first write. Raises StoreDown."""

    async def confirm(self, server: str) -> None:
        """Return once enough replicas have it. Raises NotReplicated, StoreDown."""


async def no_notes() -> list[str]:
    """Return nothing."""
    return []


@dataclass(frozen=True, kw_only=True)
class ApiDeps:
    """Everything behind the HTTP surfaces.

    Attributes:
        session_watch: Ends what a session has opened.
        store_time: The clock of all processes: what is stored as a time is by it.
        simulated: Returns True if a node, by name, is simulated: every surface shows that.
        node_facts: Asks nodes through the broker.
        replication: Confirms that replicas have what was written.
        inventories: What the nodes have, and what jobs wait for.
        job_views: Shows jobs.
        webhooks: Messages to webhooks.
        webhook_secrets: What they are signed with.
        deliverer: Sends them.
        uploads: Takes uploads that come in parts.
        files: Finds files by the names that clients know.
        pictures: Converts pictures.
        publisher: Publishes versions of stored workflows.
        workflows: Published versions and drafts; ``catalog`` has the folder's workflows, too.
        object_info: Their classes together.
        models: Their model files together.
        model_fetching: Has agents fetch more.
        stocked_models: Which of them have which model files.
        store_book: Where outputs may be put.
        redirects: Finds where in a store an output's bytes are.
        transfers: What waits for that.
        answers: What they answer to other small questions.
        check_place: Refuses a node whose URL leads to another one, or to the fleet itself.
        warming: Warms nodes.
        drafts: Makes drafts of what editors save and run.
        publishing: Checks and publishes them.
        probes: Parts that ``/ready`` asks, by name.
        notes: Returns what an operator should know even if jobs can run.
        background: Coroutine functions that run as long as the app does.
        traces: Whether spans of jobs are made, so that answers to submits name them.
        closing: Set when the server stops, which ends streams.
        clients: Brings what happens to jobs to websockets.
        editors: Whose editor a person gets, and what its node says.
        extension_calls: Passes calls of extensions' own routes on.
        signed_urls: Signs URLs that need no key.
        editor_tickets: Signs the cookies that name a person's editor node.
        user_files: People's files in the editor.
        audit: Who changed the fleet.
        usage: What was used.
        missing: What people asked for and no node had.
        editor_settings: People's settings in the editor.
        streams: Open event streams by caller.
        waits: Submits that wait for their job's end, by caller.
        sockets: Open websockets by caller.
        pace: How slowly a request's body may come.
        large_bodies: Turns of those that stay in memory until all of them has come.
        batch_checks: Turns of batches that are checked: each takes much of this process's time.
        request_pace: Bounds how many requests of any kind a caller makes.
        wrong_keys: Slows down who shows many.
        registry: The metrics that ``/metrics`` shows.
        write_metrics: Writes them as text.
        fleet_overview: What an operator sees of it at one glance.
        fleet_figures: What metrics show of the whole fleet.
        live: Tells pages that the fleet has changed.
        scrape_targets: Where each process serves its metrics.
        agent_targets: Passes on where agents do.
        machine: This machine's name.
    """

    settings: Settings
    keys: Keys
    sessions: Sessions
    session_watch: SessionWatch
    jobs: JobStore
    job_views: JobViews
    webhooks: Webhooks
    webhook_secrets: WebhookSecrets
    deliverer: WebhookDeliverer
    prompts: PromptLists
    prompt_items: PromptItems
    prompt_submitter: PromptSubmitter
    events: Events
    nodes: NodeRegistry
    hosts: Hosts
    agent_tokens: AgentTokenStore
    store_book: StoreBook
    redirects: StoredRedirects
    transfers: Transfers
    pools: PoolStore
    assets: AssetStore
    uploads: UploadReceiver
    files: ClientFiles
    pictures: PictureWork
    catalog: Catalog
    workflows: WorkflowStore
    publisher: WorkflowPublisher
    submitter: Submitter
    batches: BatchStore
    batch_maker: BatchMaker
    batch_keeper: BatchKeeper
    retrying: Retrying
    warming: Warming
    sealer: Sealer
    estimator: Estimator
    replays: Replays
    clock: Callable[[], float]
    store_time: Callable[[], Awaitable[float]]
    simulated: Callable[[str | None], bool]
    node_facts: NodeFacts
    replication: Replication
    inventories: NodeInventories
    object_info: FleetObjectInfo
    models: FleetModels
    stocked_models: StockedModels
    model_fetching: ModelFetching
    answers: NodeAnswers
    check_place: PlaceCheck
    clients: ClientHub
    drafts: Drafts
    editors: EditorNodes
    extension_calls: ExtensionCalls
    publishing: Publishing
    editor_tickets: EditorTickets
    signed_urls: SignedUrls
    user_files: UserFiles
    missing: MissingRecord
    audit: AuditTrail
    usage: UsageStore
    editor_settings: EditorSettings
    write_metrics: Callable[[], bytes]
    fleet_overview: FleetOverview
    fleet_figures: FleetFigures
    live: LiveChanges
    scrape_targets: ScrapeTargets
    agent_targets: AgentTargets
    machine: str
    probes: Mapping[str, Probe] = field(default_factory=dict)
    notes: Callable[[], Awaitable[list[str]]] = no_notes
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    traces: bool = False
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    streams: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    sockets: Counter[str] = field(default_factory=Counter)
    pace: BodyPace = field(default_factory=BodyPace)
    large_bodies: FairTurns = field(default_factory=lambda: FairTurns(4, each=1, line=8, wait_s=30.0))
    batch_checks: FairTurns = field(default_factory=lambda: FairTurns(2, each=1, line=8, wait_s=60.0))
    request_pace: RequestPace = field(default_factory=RequestPace)
    wrong_keys: WrongKeys = field(default_factory=WrongKeys)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def split(self, url: str) -> dict[str, str]:
        """Return a node's ``url`` without user and password, and these encrypted as ``sealed``.

        Raises:
            BadInput: They can't be used.
        """
        clean, credentials = split_credentials(url)
        sealed = self.sealer.seal(credentials.encode()).decode() if credentials else ""
        return {"url": clean, "sealed": sealed}


def deps(request: Request) -> ApiDeps:
    """Return the app's dependencies."""
    found: ApiDeps = request.scope["deps"]
    return found


def principal(request: Request) -> Principal:
    """Return the caller."""
    found: Principal = request.scope["principal"]
    return found


def owner(request: Request) -> str:
    """Return the caller as an owner of jobs and assets.

    Raises:
        HttpError: 403 for agents, which have none.
    """
    return owner_of(principal(request))


def owner_of(who: Principal) -> str:
    """Return a principal as an owner of jobs and assets.

    Raises:
        HttpError: 403 for agents, and for keys with the role metrics alone, which have none.
    """
    if who.agent and not who.operator:
        raise HttpError(403, "forbidden", "the agents' token is for agents only")
    if who.only_figures:
        raise HttpError(403, "forbidden", ONLY_FIGURES)
    return who.owner


def operator(request: Request) -> Principal:
    """Return the caller if it may change the fleet.

    Raises:
        HttpError: 403.
    """
    who = principal(request)
    if not who.operator:
        raise OperatorsOnly(403, "forbidden", "this needs a key with the role operator")
    return who


def artist(request: Request) -> str:
    """Return the caller's name if it may publish stored workflows: an artist or an operator.

    Raises:
        HttpError: 403; ``console_only`` to an operator who is none at the editor's origin.
    """
    who = principal(request)
    if not who.operator and Role.ARTIST not in who.roles:
        if request.scope.get("more_elsewhere"):
            raise console_only(console_base(request, deps(request).settings))
        raise OperatorsOnly(403, "forbidden", "this needs a key with the role artist or operator")
    return who.owner


def workflow_alone(request: Request) -> str:
    """Return the stored workflow that the path names: without a version, since a draft has none.

    Raises:
        BadInput: It has one, or it can be no name.
    """
    name = str(request.path_params["workflow"])
    if (found := WorkflowReference.parse(name).name) != name:
        raise BadInput(f"name the workflow alone: {found}", details={"field": "workflow"})
    return name


def origin(request: Request) -> Origin:
    """Return the origin that a request came to: the editor's or the console's."""
    found: Origin = request.scope["origin"]
    return found


def let_others_in(request: Request) -> None:
    """Count a request no longer among those in progress: from now on it waits in a line of its own."""
    ticket: Ticket = request.scope["ticket"]
    ticket.leave()


def links(request: Request) -> Links:
    """Return the maker of absolute URLs for this request."""
    return Links.of(request, deps(request).settings)
