"""The only place where adapters meet services."""

import asyncio
import gc
import logging
import os
import shlex
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self
from uuid import uuid4

from comfy_fleet.adapters.blobs.disk import DiskBlobs
from comfy_fleet.adapters.redis.agent_tokens import RedisAgentTokens
from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.adapters.redis.client import FleetRedis, WrongType, connect, subscriber
from comfy_fleet.adapters.redis.clock import ServerClock
from comfy_fleet.adapters.redis.estimates import RedisEstimates
from comfy_fleet.adapters.redis.events import RedisEvents
from comfy_fleet.adapters.redis.hosts import RedisHosts
from comfy_fleet.adapters.redis.inventories import RedisInventories
from comfy_fleet.adapters.redis.jobs import RedisJobStore
from comfy_fleet.adapters.redis.memory import RedisMemory
from comfy_fleet.adapters.redis.missing import RedisMissing
from comfy_fleet.adapters.redis.model_sizes import RedisModelSizes
from comfy_fleet.adapters.redis.nodes import RedisNodeRegistry
from comfy_fleet.adapters.redis.pools import RedisPools
from comfy_fleet.adapters.redis.prompt_lists import RedisPromptLists
from comfy_fleet.adapters.redis.ready_leases import RedisReadyLeases
from comfy_fleet.adapters.redis.replicas import Replicas
from comfy_fleet.adapters.redis.runs import RedisRunStore
from comfy_fleet.adapters.redis.scrape_targets import RedisScrapeTargets
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.adapters.redis.userdata import RedisUserData
from comfy_fleet.adapters.redis.workflow_store import RedisWorkflowStore
from comfy_fleet.adapters.system import extras
from comfy_fleet.adapters.system.disk import Disk
from comfy_fleet.adapters.system.keys_file import KeysOnDisk
from comfy_fleet.adapters.system.secret_box import SecretBox
from comfy_fleet.domain.errors import ConfigError, NoRoom, StoreDown
from comfy_fleet.domain.jobs.trace_settings import asked_for_traces
from comfy_fleet.domain.moderation import ModerationMode
from comfy_fleet.domain.people import Tenant
from comfy_fleet.memory import COLLECT_AFTER
from comfy_fleet.ports.scrape_targets import ScrapeTarget
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.announcing import announce, target_of
from comfy_fleet.services.job_tracing import JobTracing
from comfy_fleet.services.moderation import Moderation
from comfy_fleet.services.node_faults import NodeFaults
from comfy_fleet.settings import Settings
from comfy_fleet.tasks import start

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from comfy_fleet.adapters.comfyui.node_client import NodeClient
    from comfy_fleet.adapters.objects.obstore_objects import ObstoreObjects
    from comfy_fleet.adapters.telemetry import MetricsServer

logger = logging.getLogger(__name__)

KEY_IDS = b"ids of a keys file's keys"
"""What the secret of these ids is derived for."""


@dataclass(frozen=True, kw_only=True)
class Stores:
    """All stores in Redis."""

    redis: FleetRedis
    clock: ServerClock
    events: RedisEvents
    jobs: RedisJobStore
    prompts: RedisPromptLists
    runs: RedisRunStore
    ready_leases: RedisReadyLeases
    nodes: RedisNodeRegistry
    inventories: RedisInventories
    model_sizes: RedisModelSizes
    memory: RedisMemory
    estimates: RedisEstimates
    pools: RedisPools
    hosts: RedisHosts
    agent_tokens: RedisAgentTokens
    workflows: RedisWorkflowStore
    userdata: RedisUserData
    missing: RedisMissing
    replicas: Replicas

    def telling(self, telemetry: Telemetry) -> Self:
        """Return these stores; they report jobs that they end to an observer."""
        return replace(self, jobs=self.jobs.telling(telemetry), runs=self.runs.telling(telemetry))


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Connect to Redis; connections are opened on first use and replaced when they break."""
    redis = connect(
        settings.redis_url,
        namespace=settings.namespace,
        connections=settings.redis_connections,
        wait_s=settings.redis_wait_s,
    )
    listening = subscriber(settings.redis_url, namespace=settings.namespace)
    events = RedisEvents(listening)
    clock = ServerClock(redis)
    jobs = RedisJobStore(redis, ageing_s=settings.ageing_s, mirror=settings.rq_mirror)
    try:
        yield Stores(
            redis=redis,
            clock=clock,
            events=events,
            jobs=jobs,
            prompts=RedisPromptLists(redis, jobs),
            runs=RedisRunStore(redis, mirror=settings.rq_mirror),
            ready_leases=RedisReadyLeases(redis),
            nodes=RedisNodeRegistry(redis, events),
            inventories=RedisInventories(redis),
            model_sizes=RedisModelSizes(redis),
            memory=RedisMemory(redis),
            estimates=RedisEstimates(redis),
            pools=RedisPools(redis),
            hosts=RedisHosts(redis),
            agent_tokens=RedisAgentTokens(redis),
            workflows=RedisWorkflowStore(redis),
            userdata=RedisUserData(redis, most_bytes=settings.userdata_bytes),
            missing=RedisMissing(redis, clock=clock),
            replicas=Replicas(
                redis,
                wanted=settings.redis_replicas,
                within_s=settings.redis_replicas_s,
                required=settings.redis_replicas_missing == "refuse",
            ),
        )
    finally:
        await events.close()
        await listening.aclose()
        await redis.aclose()


async def check_schema(stores: Stores) -> None:
    """Compare the layout in Redis with ours, and raise an older one; every process does this at its start.

    Raises:
        ConfigError: The layout is a newer version's.
    """
    await Scripts(stores.redis).start()


async def check_files(settings: Settings, stores: Stores) -> None:
    """Check that the records in Redis are about our files; `fleet up` and every API do this at their start.

    If Redis or the disk can't be asked, the process starts anyway.

    Raises:
        ConfigError: They are about those of another folder.
    """
    ours = settings.files_dir.absolute()
    try:
        theirs = await open_assets(settings, stores).bytes_elsewhere(str(ours))
    except (StoreDown, NoRoom, OSError, WrongType) as error:
        logger.warning("files folder not checked", extra={"error": str(error)})
        return
    if theirs is not None:
        id_, place = theirs
        raise ConfigError(
            f"Redis has the records of another files folder than {ours}; it was {place} at first. "
            "Start with that one: --data DIR, or FLEET_DATA. Or is this a second fleet on the same Redis? "
            "Then it needs a FLEET_NAMESPACE of its own. Or are those files lost, or not needed any more? "
            f"Then give them up: echo {id_} > {shlex.quote(str(ours / 'id'))}"
        )


@asynccontextmanager
async def open_beats(settings: Settings) -> AsyncIterator[RedisRunStore]:
    """Open a second connection to Redis, for the renewal of leases: it must never wait behind other work."""
    redis = connect(settings.redis_url, namespace=settings.namespace, connections=2)
    try:
        yield RedisRunStore(redis)
    finally:
        await redis.aclose()


def open_nodes(settings: Settings, stores: Stores) -> "NodeClient":
    """Return a client for all nodes; answers that break a limit count against the node."""
    # Only some processes talk to nodes, and aiohttp takes a while to import.
    from comfy_fleet.adapters.comfyui.answer_limits import AnswerLimits
    from comfy_fleet.adapters.comfyui.node_client import NodeClient

    return NodeClient(
        settings.direct_url,
        limits=AnswerLimits(size=settings.node_answer_bytes, seconds=settings.node_answer_s),
        on_fault=NodeFaults(stores.nodes, limit=settings.quarantine_faults),
        namespace=settings.namespace,
        secret=broker_secret(settings),
    )


def broker_secret(settings: Settings) -> str:
    """Return what the broker's ports ask for; empty where its sockets are used, which ask for nothing."""
    if settings.broker_host is None:
        return ""
    from comfy_fleet.adapters.comfyui.broker_headers import PURPOSE

    return open_secrets(settings).derive(PURPOSE).hex()


def open_assets(settings: Settings, stores: Stores) -> RedisAssets:
    """Return the asset store, whose bytes are in this fleet's data folder."""

    def new_id() -> str:
        return str(uuid4())

    return RedisAssets(
        stores.redis,
        DiskBlobs(settings.files_dir, new_id=new_id, disk=open_disk(settings)),
        clock=stores.clock,
        new_id=new_id,
        retention_s=settings.upload_retention_s,
        grace_s=settings.blob_grace_s,
    )


def open_moderation(
    settings: Settings, assets: RedisAssets, tenant_of: Callable[[str], Tenant], telemetry: Telemetry
) -> Moderation:
    """Return what asks the moderation hook.

    Args:
        settings: The settings.
        assets: Where files are.
        tenant_of: Returns an owner's tenant.
        telemetry: Told what came of each question.

    Raises:
        ConfigError: The file with the token can't be read.
    """
    hook = None
    if settings.moderation_url:
        token = None
        if (path := settings.moderation_token_file) is not None:
            try:
                token = path.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"FLEET_MODERATION_TOKEN_FILE {path} can't be read: {error}") from error
        # Only whoever is asked to judge needs an HTTP client for it.
        from comfy_fleet.adapters.outbound.moderation_hook import HttpModerator

        hook = HttpModerator(settings.moderation_url, token=token, within_s=settings.moderation_s)
    return Moderation(
        hook,
        assets,
        mode=ModerationMode(settings.moderation),
        tenant_of=tenant_of,
        most_bytes=settings.moderation_bytes,
        telemetry=telemetry,
    )


def announcing(
    settings: Settings, stores: Stores, process: str, metrics: "MetricsServer"
) -> asyncio.Task[None]:
    """Say where a process serves its metrics, until the task is canceled."""

    def target() -> ScrapeTarget | None:
        if metrics.port is None:
            return None
        return target_of(
            process,
            machine=socket.gethostname(),
            host=settings.metrics_host,
            port=metrics.port,
            advertise=settings.metrics_advertise,
        )

    targets = RedisScrapeTargets(stores.redis, stores.clock)
    return start(announce(targets, target), name="metrics announced")


def open_tracing(process: str, registry: "CollectorRegistry") -> JobTracing | None:
    """Return what makes spans of jobs; None where the variables ``OTEL_*`` ask for none.

    What is wrong with them is logged: no fleet stands still for want of traces.

    Args:
        process: The process, e.g. ``dispatch``.
        registry: Its metrics.
    """
    asked = asked_for_traces(os.environ)
    if asked.why_not:
        logger.warning("traces are not exported", extra={"reason": asked.why_not})
    if not asked.wanted:
        return None
    try:
        # It takes a while to import, and few fleets need it.
        from comfy_fleet.adapters.telemetry.otlp import OtlpSpans

        spans = OtlpSpans(process, registry)
    except ModuleNotFoundError as error:
        why = f"{error.name} is not installed: {extras.command('opentelemetry')}"
        logger.warning("traces are not exported", extra={"reason": why})
        return None
    except Exception as error:  # noqa: BLE001 - of a library, about its variables
        logger.warning("traces are not exported", extra={"reason": f"{type(error).__name__}: {error}"[:300]})
        return None
    logger.info("traces are exported", extra={"endpoint": asked.endpoint})
    return JobTracing(spans, clock=time.time)


def open_disk(settings: Settings) -> Disk:
    """Return the disk of this fleet's data folder, which :func:`open_assets` has created."""
    return Disk(settings.files_dir, floor_bytes=settings.disk_floor_bytes, shown=str(settings.data))


def open_objects(settings: Settings, secrets: SecretBox) -> "ObstoreObjects":
    """Return what asks stores, the buckets and folders that outputs are put into."""
    # Only API processes need it.
    from comfy_fleet.adapters.objects.obstore_objects import ObstoreObjects

    folders = tuple(Path(one) for one in settings.store_folders.split(":") if one)
    return ObstoreObjects(secrets.open_sealed, folders=folders)


def open_keys_file(settings: Settings, secrets: SecretBox | None = None) -> KeysOnDisk | None:
    """Return the operator's file of keys, if there is one.

    Args:
        settings: The settings.
        secrets: From which the keys' ids follow; None: nobody will see them.
    """
    if settings.keys_file is None:
        return None
    return KeysOnDisk(settings.keys_file, b"" if secrets is None else secrets.derive(KEY_IDS))


def open_secrets(settings: Settings) -> SecretBox:
    """Return the box that encrypts partner keys and nodes' passwords at rest."""
    return SecretBox.open(settings.secret_key_file)


def calm_collector() -> None:
    """Make the garbage collector run less often, and skip objects from the start.

    For processes that make thousands of short-lived objects a second, nearly all freed without it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
