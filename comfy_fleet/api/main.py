"""Put the API together: one process, one event loop, behind the edge."""

import asyncio
import contextlib
import logging
import resource
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

import uvloop
from prometheus_client import CollectorRegistry

from comfy_fleet.adapters.blobs.growing import GrowingFolder
from comfy_fleet.adapters.blobs.made_pictures import MadePicturesFolder
from comfy_fleet.adapters.comfyui.node_address import check_place
from comfy_fleet.adapters.haproxy.certificates import certificate_ends
from comfy_fleet.adapters.outbound.guarded_calls import OutboundHttp
from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.adapters.redis.audit import RedisAudit
from comfy_fleet.adapters.redis.batches import RedisBatches
from comfy_fleet.adapters.redis.dispatchers import live_dispatchers, outdated_dispatchers
from comfy_fleet.adapters.redis.fetches import RedisFetches
from comfy_fleet.adapters.redis.figures import RedisFigures
from comfy_fleet.adapters.redis.model_fetches import RedisModelFetches
from comfy_fleet.adapters.redis.named_stores import RedisNamedStores
from comfy_fleet.adapters.redis.owner_lists import MEND_S, OwnerLists
from comfy_fleet.adapters.redis.people import RedisPeople
from comfy_fleet.adapters.redis.publish_tests import RedisPublishTests
from comfy_fleet.adapters.redis.replays import RedisReplays
from comfy_fleet.adapters.redis.rq_inbox import RedisRqInbox
from comfy_fleet.adapters.redis.scrape_targets import RedisScrapeTargets
from comfy_fleet.adapters.redis.seen_graphs import RedisSeenGraphs
from comfy_fleet.adapters.redis.server_memory import server_memory
from comfy_fleet.adapters.redis.sessions import RedisSessions
from comfy_fleet.adapters.redis.sockets import RedisSocketStore
from comfy_fleet.adapters.redis.transfers import RedisTransfers
from comfy_fleet.adapters.redis.uploads import RedisUploads
from comfy_fleet.adapters.redis.usage import RedisUsage
from comfy_fleet.adapters.redis.webhooks import RedisWebhooks
from comfy_fleet.adapters.telemetry import (
    LoggingTelemetry,
    Observers,
    PrometheusTelemetry,
    new_registry,
)
from comfy_fleet.adapters.telemetry.fleet_text import FleetText
from comfy_fleet.adapters.telemetry.text import RegistryText
from comfy_fleet.adapters.workflows.catalog import WorkflowCatalog
from comfy_fleet.adapters.workflows.manifest import resolve_content
from comfy_fleet.api.app import create_app
from comfy_fleet.api.auth import LOCAL, Keys
from comfy_fleet.api.deps import ApiDeps, NodeFacts, Probe
from comfy_fleet.api.job_views import JobViews
from comfy_fleet.api.rq_intake import RqIntake
from comfy_fleet.api.server import Companion, server
from comfy_fleet.api.v1.health import node_probe
from comfy_fleet.bootstrap import (
    Stores,
    calm_collector,
    check_files,
    check_schema,
    open_assets,
    open_disk,
    open_keys_file,
    open_moderation,
    open_nodes,
    open_objects,
    open_secrets,
    open_stores,
    open_tracing,
)
from comfy_fleet.domain.errors import FleetError, NoRoom, Outdated, StoreDown, StoreRefuses
from comfy_fleet.domain.graphs.file_check import FilePolicy
from comfy_fleet.domain.machine_token import PURPOSE
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.outbound import AllowedHosts, parse_allowed, parse_target
from comfy_fleet.domain.people import Tenant
from comfy_fleet.domain.webhooks.delivery import parse_schedule
from comfy_fleet.memory import give_memory_back
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.ports.uploads import OpenUploadLimits
from comfy_fleet.ports.webhooks import OperatorFact
from comfy_fleet.sealed_check import check_secret
from comfy_fleet.services.announcing import AgentTargets, announce, target_of
from comfy_fleet.services.batch_keeper import BatchKeeper
from comfy_fleet.services.batch_maker import BatchMaker
from comfy_fleet.services.client_files import ClientFiles
from comfy_fleet.services.client_hub import ClientHub
from comfy_fleet.services.draft_checks import DraftChecks
from comfy_fleet.services.drafts import Drafts
from comfy_fleet.services.editor_files import EditorFiles
from comfy_fleet.services.editor_nodes import EditorNodes
from comfy_fleet.services.editor_settings import EditorSettings
from comfy_fleet.services.editor_ticket import PURPOSE as TICKETS
from comfy_fleet.services.editor_ticket import EditorTickets
from comfy_fleet.services.estimator import Estimator
from comfy_fleet.services.extension_calls import ExtensionCalls
from comfy_fleet.services.fleet_figures import FleetFigures
from comfy_fleet.services.fleet_model_sizes import FleetModelSizes
from comfy_fleet.services.fleet_models import FleetModels
from comfy_fleet.services.fleet_object_info import FleetObjectInfo
from comfy_fleet.services.fleet_overview import FleetOverview
from comfy_fleet.services.input_fetcher import FetchLimits, InputFetcher
from comfy_fleet.services.input_files import InputFiles
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.services.job_tracing import JobTracing
from comfy_fleet.services.live_changes import LiveChanges
from comfy_fleet.services.memory_prediction import MemoryPrediction
from comfy_fleet.services.missing_parts import MissingParts
from comfy_fleet.services.model_fetching import ModelFetching
from comfy_fleet.services.node_answers import NodeAnswers
from comfy_fleet.services.object_eraser import ObjectEraser
from comfy_fleet.services.operator_news import (
    OperatorNews,
    certificate_fact,
    disk_fact,
    memory_fact,
    node_facts,
    queue_fact,
)
from comfy_fleet.services.output_planner import OutputPlanner
from comfy_fleet.services.owner_clients import HubDeps
from comfy_fleet.services.picture_work import PictureWork
from comfy_fleet.services.prompt_items import PromptItems
from comfy_fleet.services.prompt_submitter import PromptSubmitter
from comfy_fleet.services.publishing import Publishing
from comfy_fleet.services.result_cache import ResultCache
from comfy_fleet.services.retrying import Retrying
from comfy_fleet.services.session_watch import SessionWatch
from comfy_fleet.services.signed_urls import SignedUrls
from comfy_fleet.services.stocked_models import StockedModels
from comfy_fleet.services.store_book import StoreBook
from comfy_fleet.services.store_inputs import StoreInputs
from comfy_fleet.services.store_memory_watch import StoreMemoryWatch
from comfy_fleet.services.stored_redirects import StoredRedirects
from comfy_fleet.services.stored_workflows import StoredWorkflows
from comfy_fleet.services.submitter import SubmitLimits, Submitter
from comfy_fleet.services.tenant_policies import TenantPolicies
from comfy_fleet.services.transferrer import TransferLimits, Transferrer
from comfy_fleet.services.unrun_saves import why_no_draft
from comfy_fleet.services.upload_receiver import UploadLimits, UploadReceiver
from comfy_fleet.services.user_files import UserFiles
from comfy_fleet.services.warming import Warming
from comfy_fleet.services.webhook_deliverer import DeliveryLimits, WebhookDeliverer
from comfy_fleet.services.webhook_poster import GuardedPoster
from comfy_fleet.services.webhook_secrets import WebhookSecrets
from comfy_fleet.services.workflow_publisher import WorkflowPublisher
from comfy_fleet.settings import Settings

logger = logging.getLogger(__name__)

SWEEP_S = 60.0
_UPLOADERS, _UPLOADERS_OF_BYTES = 50, 4
"""For so many owners with as many uploads, or bytes of them, as one may have, there is room at once."""
_NAMED = 5  # most nodes that a note names
_ENOUGH_FILES = 65_536


def build(
    settings: Settings,
    stores: Stores,
    info: NodeFacts,
    *,
    registry: CollectorRegistry | None = None,
    telemetry: Telemetry | None = None,
    tracing: JobTracing | None = None,
) -> ApiDeps:
    """Build the services behind the HTTP surfaces.

    Args:
        settings: The settings.
        stores: What is in Redis.
        info: Asks nodes.
        registry: The metrics; None: of its own, where the observer counts, too.
        telemetry: The observer of jobs, with ``registry``.
        tracing: Makes spans of jobs, with ``telemetry``, which tells it of them.

    Raises:
        ConfigError: The keys are wrong, or missing although they are needed; there are no stored workflows.
    """
    sealer = open_secrets(settings)
    keys = Keys.load(
        settings,
        open_keys_file(settings, sealer),
        RedisPeople(stores.redis),
        machine=sealer.derive(PURPOSE),
        ticket_key=sealer.derive(TICKETS),
    )
    assets = open_assets(settings, stores)
    files = ClientFiles(assets, stores.jobs)
    folder = WorkflowCatalog(settings.workflows_dir)
    folder.check()
    drafts = Drafts(
        RedisSeenGraphs(stores.redis), stores.workflows, stores.jobs, stores.userdata, clock=time.time
    )
    catalog = StoredWorkflows(
        folder,
        stores.workflows,
        resolve_content,
        why_no_draft=lambda owner, name: why_no_draft(drafts, owner, name),
    )
    inventories = NodeInventories(stores.nodes, stores.inventories, info)
    answers = NodeAnswers(inventories, info)
    model_sizes = FleetModelSizes(inventories, info, stores.model_sizes)
    editors = EditorNodes(inventories, answers, EditorFiles(info))
    registry = registry or new_registry()
    if telemetry is None:
        tracing = open_tracing("api", registry)
        observers: list[Telemetry] = [LoggingTelemetry(), PrometheusTelemetry(registry)]
        telemetry = Observers(*observers, *([tracing] if tracing else []))
    stores = stores.telling(telemetry)
    estimator = Estimator(stores.estimates, stores.jobs, inventories)

    def tenant_of(user: str) -> Tenant:
        return keys.ring.people.tenant_of(user)  # those of now

    moderation = open_moderation(settings, assets, tenant_of, telemetry)
    allowed = parse_allowed("FLEET_FETCH_ALLOW", settings.fetch_allow)
    fetches = RedisFetches(stores.redis, new_token=lambda: str(uuid4()), telemetry=telemetry)
    objects = open_objects(settings, sealer)
    store_book = StoreBook(RedisNamedStores(stores.redis), objects, sealer, clock=time.monotonic)
    store_inputs = StoreInputs(store_book, objects, tenant_of)
    fetcher = InputFetcher(
        fetches,
        OutboundHttp(allowed=allowed, purpose="input"),
        assets,
        FetchLimits(most_bytes=settings.fetch_bytes, within_s=settings.fetch_s),
        moderation,
        telemetry,
        store_inputs,
        quotas_of=keys.ring.quotas_of,
    )
    transfers = RedisTransfers(stores.redis, stores.events)
    policy = FilePolicy.parse(settings.deny_classes, settings.free_paths, settings.allow_classes)
    submitter = Submitter(
        jobs=stores.jobs,
        assets=assets,
        client_files=files,
        inventories=inventories,
        models=model_sizes,
        memory=MemoryPrediction(stores.memory, keep_s=settings.oom_memory_s),
        catalog=catalog,
        sealer=sealer,
        limits=SubmitLimits(
            depth=settings.queue_depth,
            outputs=settings.max_outputs,
            retention_s=settings.retention_s,
            max_retention_s=settings.max_retention_s,
            max_attempts=settings.max_attempts,
            editor_wait_s=settings.editor_wait_s,
            weights=settings.weights,
        ),
        files=TenantPolicies(policy, tenant_of).of,
        tenant_of=tenant_of,
        clock=time.time,
        new_id=lambda: str(uuid4()),
        draw_seed=_draw_seed,
        retry_after=estimator.retry_after,
        telemetry=telemetry,
        missing=MissingParts(stores.missing, catalog, stores.workflows),
        results=ResultCache(inventories, model_sizes, jobs=settings.result_cache),
        inputs=InputFiles(
            assets,
            fetches,
            allowed=allowed if settings.fetch else None,
            most_bytes=settings.fetch_bytes,
            wake=fetcher.wake,
            stores=store_inputs,
        ),
        moderation=moderation,
        outputs=OutputPlanner(store_book, transfers, spool_bytes=settings.spool_bytes),
    )
    retrying = Retrying(
        submitter=submitter,
        jobs=stores.jobs,
        prompts=stores.prompts,
        catalog=catalog,
        needs=inventories,
        draw_seed=_draw_seed,
        clock=time.time,
    )
    batches = RedisBatches(
        stores.redis,
        stores.events,
        ageing_s=settings.ageing_s,
        mirror=settings.rq_mirror,
        depth=settings.queue_depth,
        telemetry=telemetry,
    )
    batch_keeper = BatchKeeper(batches, clock=stores.clock, fetch=fetcher.wake)
    descriptions = FleetObjectInfo(inventories, stores.inventories)
    sessions = RedisSessions(stores.redis)
    session_watch = SessionWatch(sessions, keys.ring.holds)
    made_pictures = MadePicturesFolder(settings.data / "pictures", most_bytes=settings.picture_cache_bytes)
    pictures = PictureWork(assets, made_pictures, most_pixels=settings.max_picture_pixels)
    checks = DraftChecks(
        submitter=submitter,
        jobs=stores.jobs,
        tests=RedisPublishTests(stores.redis),
        inventories=inventories,
        policy=policy,
    )
    publishing = Publishing(
        catalog=catalog,
        store=stores.workflows,
        checks=checks,
        drafts=drafts,
        jobs=stores.jobs,
        assets=assets,
        pictures=pictures,
    )
    uploads = UploadReceiver(
        RedisUploads(stores.redis),
        GrowingFolder(settings.files_dir, disk=open_disk(settings)),
        assets,
        limits=_upload_limits(settings),
        clock=stores.clock,
        new_id=lambda: str(uuid4()),
    )
    signed_urls = SignedUrls.under(sealer)
    views = JobViews(
        jobs=stores.jobs,
        estimator=estimator,
        inventories=inventories,
        simulated=inventories.simulated,
        signed_urls=signed_urls,
        objects=objects,
        stores=store_book,
        clock=time.time,
    )
    intake = RqIntake(
        RedisRqInbox(stores.redis),
        submitter=submitter,
        jobs=stores.jobs,
        keys=keys,
        settings=settings,
        signed_urls=signed_urls,
        clock=time.time,
    )
    telling = [lambda traces=tracing: traces.run(stores.jobs)] if tracing else []
    webhooks = RedisWebhooks(stores.redis, stores.events)
    webhook_secrets = WebhookSecrets(webhooks, sealer, draw=secrets.token_bytes, clock=time.time)
    deliverer = WebhookDeliverer(
        webhooks=webhooks,
        poster=_poster(settings),
        secrets=webhook_secrets,
        data=views.told,
        wakes=webhooks.wakes,
        clock=time.time,
        draw=secrets.SystemRandom().random,
        telemetry=telemetry,
        limits=DeliveryLimits(schedule=parse_schedule(settings.webhook_backoff_s)),
        tracing=tracing,
    )
    targets, machine = RedisScrapeTargets(stores.redis, stores.clock), socket.gethostname()
    own_target = target_of(
        "api",
        machine=machine,
        host=settings.api_host,
        port=settings.api_port,
        advertise=settings.metrics_advertise,
    )
    transferrer = Transferrer(
        transfers=transfers,
        jobs=stores.jobs,
        assets=assets,
        book=store_book,
        objects=objects,
        pictures=pictures,
        telemetry=telemetry,
        limits=TransferLimits(patience_s=settings.store_patience_s),
    )
    eraser = ObjectEraser(transfers, store_book, objects, patience_s=settings.store_patience_s)
    live = LiveChanges(stores.events, stores.nodes)
    return ApiDeps(
        settings=settings,
        keys=keys,
        sessions=sessions,
        session_watch=session_watch,
        jobs=stores.jobs,
        job_views=views,
        webhooks=webhooks,
        webhook_secrets=webhook_secrets,
        deliverer=deliverer,
        prompts=stores.prompts,
        prompt_items=PromptItems(stores.prompts),
        prompt_submitter=PromptSubmitter(submitter, inventories, descriptions),
        events=stores.events,
        nodes=stores.nodes,
        hosts=stores.hosts,
        agent_tokens=stores.agent_tokens,
        store_book=store_book,
        redirects=StoredRedirects(stores.jobs, store_book, objects, clock=time.monotonic),
        transfers=transfers,
        pools=stores.pools,
        assets=assets,
        uploads=uploads,
        files=files,
        pictures=pictures,
        catalog=catalog,
        workflows=stores.workflows,
        publisher=WorkflowPublisher(catalog, stores.workflows),
        submitter=submitter,
        retrying=retrying,
        batches=batches,
        batch_keeper=batch_keeper,
        batch_maker=BatchMaker(
            store=batches,
            jobs=stores.jobs,
            assets=assets,
            retrying=retrying,
            telemetry=telemetry,
            most_waiting=settings.max_batch_waiting,
            retry_after=estimator.retry_after,
            wake=batch_keeper.wake,
        ),
        warming=Warming(
            submitter=submitter,
            jobs=stores.jobs,
            nodes=stores.nodes,
            able=inventories,
            catalog=catalog,
        ),
        sealer=sealer,
        estimator=estimator,
        replays=RedisReplays(stores.redis),
        clock=time.time,
        store_time=stores.clock,
        simulated=inventories.simulated,
        inventories=inventories,
        object_info=descriptions,
        models=FleetModels(answers, info),
        stocked_models=StockedModels(inventories, model_sizes),
        model_fetching=ModelFetching(
            RedisModelFetches(stores.redis),
            stores.nodes,
            stores.hosts,
            now=stores.clock,
            clock=time.monotonic,
        ),
        answers=answers,
        node_facts=info,
        replication=stores.replicas,
        check_place=check_place,
        clients=ClientHub(
            HubDeps(
                jobs=stores.jobs,
                events=stores.events,
                sockets=RedisSocketStore(stores.redis),
                clock=time.time,
                monotonic=time.monotonic,
            )
        ),
        drafts=drafts,
        editors=editors,
        extension_calls=ExtensionCalls(stores.prompts, stores.nodes, editors, info),
        publishing=publishing,
        editor_tickets=EditorTickets.under(sealer),
        signed_urls=signed_urls,
        missing=stores.missing,
        audit=RedisAudit(stores.redis),
        usage=RedisUsage(stores.redis),
        user_files=UserFiles(stores.userdata, saves=drafts),
        editor_settings=EditorSettings(stores.userdata),
        probes=_probes(settings, stores),
        notes=lambda: _notes(stores, editors if settings.editor else None, intake),
        registry=registry,
        write_metrics=RegistryText(registry),
        fleet_overview=FleetOverview(
            nodes=stores.nodes,
            hosts=stores.hosts,
            figures=RedisFigures(stores.redis),
            jobs=stores.jobs,
            inventories=inventories,
            clock=stores.clock,
        ),
        live=live,
        fleet_figures=FleetFigures(
            nodes=stores.nodes,
            hosts=stores.hosts,
            figures=RedisFigures(stores.redis),
            estimates=stores.estimates,
            room=open_disk(settings).room,
            clock=stores.clock,
            write=FleetText(),
        ),
        scrape_targets=targets,
        agent_targets=AgentTargets(targets),
        machine=machine,
        background=(
            lambda: announce(targets, lambda: own_target),
            inventories.run,
            model_sizes.run,
            keys.ring.run,
            session_watch.run,
            live.follow_jobs,
            live.follow_nodes,
            lambda: _tell_unknown_shares(settings, keys),
            fetcher.run,
            batch_keeper.run,
            deliverer.run,
            transferrer.run,
            eraser.run,
            intake.run,
            stores.clock.keep,
            *_news(settings, stores, webhooks),
            StoreMemoryWatch(lambda: server_memory(stores.redis)).run,
            lambda: _sweep(assets),
            uploads.run,
            made_pictures.sweep,
            lambda: _mend(stores.jobs.lists),
            *telling,
        ),
        traces=tracing is not None,
    )


def _upload_limits(settings: Settings) -> UploadLimits:
    bytes_ = settings.open_upload_bytes
    return UploadLimits(
        most_bytes=settings.max_upload_bytes,
        keep_s=settings.open_upload_s,
        open=OpenUploadLimits(
            each=settings.max_open_uploads,
            all=_UPLOADERS * settings.max_open_uploads,
            each_bytes=max(bytes_ // _UPLOADERS_OF_BYTES, settings.max_upload_bytes),
            all_bytes=bytes_,
        ),
    )


def _poster(settings: Settings) -> GuardedPoster:
    url = settings.operator_webhook_url or ""
    own = AllowedHosts(hosts=((parse_target(url).host, None),)) if url else AllowedHosts()
    return GuardedPoster(
        OutboundHttp(allowed=settings.webhook_allowed, purpose="webhook"),
        OutboundHttp(allowed=own, purpose="operator's webhook"),
        operator_url=url,
    )


def _news(settings: Settings, stores: Stores, webhooks: RedisWebhooks) -> list[Callable[[], Awaitable[None]]]:
    """Return what tells the operator's URL, if there is one."""
    if settings.operator_webhook_url is None:
        return []
    disk = open_disk(settings)

    async def nodes() -> list[OperatorFact]:
        return node_facts(await stores.nodes.states())

    async def queue() -> list[OperatorFact]:
        running = sum(state.run is not None for state in await stores.nodes.states())
        return [queue_fact(queued=await stores.jobs.depth(), running=running)]

    async def room() -> list[OperatorFact]:
        found = await asyncio.to_thread(disk.room)
        return [disk_fact(path=found.path, free_bytes=found.free_bytes, floor_bytes=found.floor_bytes)]

    async def memory() -> list[OperatorFact]:
        try:
            return [memory_fact(await server_memory(stores.redis))]
        except StoreRefuses:  # its user may not ask: `fleet doctor` can't, either
            return []

    async def certificates() -> list[OperatorFact]:
        ends = await asyncio.to_thread(certificate_ends, settings)
        now = time.time()
        return [certificate_fact(name=origin, expires_at=at, now=now) for origin, at in ends.items()]

    sources = (nodes, queue, room, memory, certificates)
    return [OperatorNews(webhooks, settings.operator_webhook_url, sources).run]


def _draw_seed() -> int:
    return secrets.randbits(53)  # every JSON reader handles 53 bits


def _probes(settings: Settings, stores: Stores) -> dict[str, Probe]:
    async def redis() -> str | None:
        try:
            # A write that changes nothing: a full server, or a replica, would still answer a ping.
            await stores.redis.set(stores.redis.keyspace.ready, "1", xx=True)
        except StoreRefuses as error:
            return f"answers, but takes nothing: {error.message[:200]}"
        return None

    async def dispatcher() -> str | None:
        alive = await live_dispatchers(stores.redis)
        if not alive:
            return "no dispatcher is running: start `fleet dispatch`"
        old = await outdated_dispatchers(stores.redis)
        return None if set(alive) - set(old) else f"no other dispatcher is running: {_ending(len(old))}"

    async def schema() -> str | None:
        try:
            await stores.runs.check_schema()
        except Outdated as error:
            return f"{error.message}. This API takes no new jobs: start the newer version"
        except StoreDown:  # the part "redis" reports that
            return None
        return None

    fleets_disk = open_disk(settings)

    async def disk() -> str | None:
        try:
            await asyncio.to_thread(fleets_disk.probe)
        except NoRoom as error:
            return error.message
        return None

    async def broker() -> str | None:
        host, port, socket = settings.broker_host, settings.lease_port, settings.lease_socket
        try:
            if host is None:
                _, writer = await asyncio.open_unix_connection(str(socket))
            else:
                _, writer = await asyncio.open_connection(host, port)
        except OSError:
            if host is not None:
                return f"nothing answers at {host}:{port}: start `fleet haproxy run`"
            return (
                f"nothing answers at {socket}: start `fleet haproxy run`, or set FLEET_BROKER_HOST "
                "if it is on another machine"
            )
        writer.close()
        return None

    return {
        "redis": redis,
        "schema": schema,
        "disk": disk,
        "nodes": node_probe(stores.nodes),
        "dispatcher": dispatcher,
        "broker": broker,
    }


def _ending(count: int) -> str:
    return (
        f"{count} of an older version {'ends its' if count == 1 else 'end their'} runs and "
        f"{'takes' if count == 1 else 'take'} no more: start the newer version's `fleet dispatch` instead"
    )


async def _tell_unknown_shares(settings: Settings, keys: Keys) -> None:
    """Warn of shares for owners that have no jobs: a misspelled name would change nothing unsaid."""
    await keys.ring.ready()
    unknown = sorted(settings.weights.keys() - ({LOCAL} if keys.open else {*keys.ring.people.users}))
    if unknown:
        logger.warning("shares of owners without a key", extra={"owners": unknown})
    await asyncio.Event().wait()


async def _notes(stores: Stores, editors: EditorNodes | None, intake: RqIntake) -> list[str]:
    """Return what an operator should know even if jobs can run."""
    old = await outdated_dispatchers(stores.redis)
    lacking = await stores.replicas.lacking()
    return [
        *([f"dispatchers: {_ending(len(old))}"] if old else []),
        *([lacking] if lacking else []),
        *_strays(await stores.nodes.states()),
        *(await editors.notes() if editors else []),
        *await intake.notes(),
    ]


def _strays(states: Sequence[NodeState]) -> list[str]:
    """Tell of leases that HAProxy's controller has cut: somebody gets at the broker who should not."""
    found = [f"{state.node.name}: {state.why}" for state in states if state.verdict == "up" and state.why]
    more = f"; {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return [f"broker: {'; '.join(found[:_NAMED])}{more}"] if found else []


async def _sweep(assets: RedisAssets) -> None:
    """Remove expired uploads, and bytes that nothing needs, now and then."""
    while True:
        try:
            if removed := await assets.sweep():
                logger.info("assets removed", extra={"count": removed})
        except (FleetError, OSError) as error:
            logger.warning("assets not swept", extra={"error": str(error)})
        await asyncio.sleep(SWEEP_S)


async def _mend(lists: OwnerLists) -> None:
    """Put right now and then what earlier versions beside this one leave in owners' lists of jobs."""
    while True:
        try:
            if mended := await lists.mend(every_s=MEND_S):
                logger.info("jobs of an earlier version listed anew", extra={"count": mended})
        except FleetError as error:
            logger.warning("lists of jobs not compared", extra={"error": str(error)})
        await asyncio.sleep(MEND_S)


async def run(
    settings: Settings,
    sockets: Sequence[socket.socket] | None = None,
    *,
    registry: CollectorRegistry | None = None,
    telemetry: Telemetry | None = None,
    tracing: JobTracing | None = None,
    companion: Companion | None = None,
) -> None:
    """Serve the API until SIGTERM or SIGINT.

    Args:
        settings: The settings.
        sockets: Listening sockets; None: one is opened.
        registry: As for :func:`build`.
        telemetry: As for :func:`build`.
        tracing: As for :func:`build`.
        companion: What runs beside it. If it ends, the API does.

    Raises:
        ConfigError: A setting is wrong, or what ended the companion.
    """
    async with open_stores(settings) as stores, open_nodes(settings, stores) as nodes:
        await check_schema(stores)
        with contextlib.suppress(StoreDown):
            await stores.clock.begin()
        deps = build(settings, stores, nodes, registry=registry, telemetry=telemetry, tracing=tracing)
        await check_files(settings, stores)
        if another := await check_secret(settings, stores):
            logger.warning("secret key is another one", extra={"reason": another})
        logger.info("api ready", extra={"host": settings.api_host, "port": settings.api_port})
        serving = server(create_app(deps), settings, deps.closing, companion)
        await serving.serve(list(sockets) if sockets else None)


def prepare() -> None:
    """Set up this process to serve many requests."""
    calm_collector()
    give_memory_back()
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= allowed < _ENOUGH_FILES:  # the usual 1024 may be too few for streams and uploads
        raised = min(most, _ENOUGH_FILES) if most >= 0 else _ENOUGH_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, most))


def serve(settings: Settings) -> None:
    """Run the API process."""
    prepare()
    uvloop.run(run(settings))
