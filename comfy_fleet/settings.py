"""All settings, read from the environment (``FLEET_*``) in this one place.

``docs/reference/settings.md`` is generated from the fields below.
"""

import difflib
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from comfy_fleet.domain.errors import BadInput, ConfigError
from comfy_fleet.domain.extension_routes import parse_prefixes
from comfy_fleet.domain.graphs.class_rules import ClassRules
from comfy_fleet.domain.graphs.file_check import FilePolicy
from comfy_fleet.domain.jobs.job import MAX_PRIORITY
from comfy_fleet.domain.limits import Limits, parse_role_limits
from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE, check_namespace
from comfy_fleet.domain.networks import parse_networks
from comfy_fleet.domain.nodes import former_pools
from comfy_fleet.domain.nodes.pool import LONGEST_PATIENCE_S, PATIENCE_S, Pool, PoolDefaults
from comfy_fleet.domain.outbound import AllowedHosts, parse_allowed, parse_target
from comfy_fleet.domain.people import check_person
from comfy_fleet.domain.roles import Role, parse_group_roles
from comfy_fleet.domain.schedule.owner_weights import parse_weights
from comfy_fleet.domain.webhooks.delivery import SCHEDULE_S, parse_schedule
from comfy_fleet.domain.webhooks.webhook import checked_url

FILES = Path(__file__).parent / "_files"  # inside a wheel
SOURCE = Path(__file__).parent.parent  # inside a checkout


WARNED = "FLEET_WARNED"
"""Variables, separated by commas, that a parent process has warned about already; its children need not."""
_OF_COMMANDS = ("FLEET_API_URL", "FLEET_API_KEY")
_OF_COMPOSE = (  # used in docker/
    *("GPU_HOST", "IMAGE", "PUBLISH", "PUBLISH_CONSOLE", "SECRETS", "TAG", "WORKFLOWS_DIR"),
)
_FOR_TESTS = "FLEET_TEST_"
_HOST = re.compile(r"[A-Za-z0-9_*](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%\w+)?")
_NEEDED_TLS = {
    "tls_key_file": "tls_cert_file",
    "console_tls_cert_file": "tls_cert_file",
    "console_tls_key_file": "console_tls_cert_file",
}
_OWN_HEADERS = (
    *("x-fleet-", "x-forwarded-", "forwarded", "sec-", "access-control-", "authorization", "x-api-key"),
    *("cookie", "host", "origin", "content-", "transfer-encoding", "connection", "upgrade", "x-request-id"),
)
_LONGEST_PATH = 4096  # bytes, on Linux, as is the next
_LONGEST_NAME = 255
_ALIKE = 0.7  # similarity from 0 to 1 from which a name counts as a typo


def _check_host(value: str) -> str:
    """Refuse what is neither a name nor an address; if it works shows only when it is used."""
    if not _HOST.fullmatch(value):
        raise ValueError(f"{value!r} is neither a host name nor an address; unset it for the usual one")
    return value


def _check_path(value: object) -> object:
    """Refuse what no file is called, and the empty path: it would mean the process's current folder."""
    if value == "":
        raise ValueError("it names nothing; unset it, or name a path")
    if isinstance(value, str | Path):
        text = str(value)
        if not text.isprintable():
            raise ValueError(f"{text!r} contains characters that can't be printed; use another path")
        if len(text.encode()) >= _LONGEST_PATH or any(
            len(p.encode()) > _LONGEST_NAME for p in text.split("/")
        ):
            raise ValueError(f"{text[:40]!r}... is longer than a path can be; use another path")
    return value


def _sendable(token: str | None, what: str) -> str | None:
    """Refuse a token that no header can carry."""
    if token and not (token.isascii() and token.isprintable()):
        raise ValueError(f"{what} must be one line of ASCII letters, digits and signs; draw another one")
    return token


def _no_port(value: object) -> object:
    """Read the word for "no port"."""
    return None if value == "none" else value


Seconds = Annotated[float, Field(le=10 * 365 * 86400)]
"""At most ten years: times must stay valid dates, and leases must end. A field with a bound of its own is a
plain number: of two bounds this one would count."""
Count = Annotated[int, Field(le=10**18)]
"""HAProxy counts in 64 bits."""
Gibibytes = Annotated[float, Field(le=10**6)]
MetricsPort = Annotated[Annotated[int, Field(ge=0, le=65535)] | None, BeforeValidator(_no_port)]
Host = Annotated[str, AfterValidator(_check_host)]
FilePath = Annotated[Path, BeforeValidator(_check_path)]


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Return the origin of an http(s) URL, as browsers tell origins apart: scheme, host, port."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def packaged(folder: str) -> Path:
    """Return ``haproxy`` or ``workflows``, from the wheel or from the checkout."""
    inside = FILES / folder
    return inside if inside.is_dir() else SOURCE / folder


class _Environment(PydanticBaseSettingsSource):
    """The variables ``FLEET_*``. Every setting is one text, so none needs the library's look at its type."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the variable's text, or None."""
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the texts by the settings' names."""
        prefix = self.config["env_prefix"].lower()
        given = {name.lower(): text for name, text in os.environ.items()}
        return {
            name: given[prefix + name] for name in self.settings_cls.model_fields if prefix + name in given
        }


class Settings(BaseSettings):
    """The fleet's settings; all processes of one fleet share them."""

    model_config = SettingsConfigDict(env_prefix="FLEET_", extra="forbid", frozen=True)
    _former: Mapping[str, Pool] = PrivateAttr(default_factory=dict)

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis or Valkey, with AOF switched on.")
    namespace: str = Field(
        DEFAULT_NAMESPACE,
        description="Prefix of all keys and channels in Redis, and name of RQ's queue: fleets that share "
        "a Redis need one each. a-z, 0-9, `_` and `-`, at most 32.",
    )
    redis_connections: Count = Field(
        128, ge=4, description="Connections to Redis that each process may use; further calls wait for one."
    )
    redis_wait_s: Seconds = Field(
        5.0, gt=0, description="How long a call waits for a free connection to Redis before it fails."
    )
    redis_replicas: Count = Field(
        0,
        ge=0,
        description="How many replicas of Redis must have what a request has written before it is answered, "
        "so that no failover loses it: [two boxes](../howto/two-boxes.md). 0: none.",
    )
    redis_replicas_s: float = Field(
        1.0, gt=0, le=5, description="How long the replicas may take to confirm that."
    )
    redis_replicas_missing: Literal["refuse", "accept"] = Field(
        "refuse",
        description="What clients get if they don't: `refuse`: 503 `not_replicated`, although it is done; "
        "`accept`: the usual answer, and a line in the log.",
    )
    data: FilePath = Field(
        Path(".fleet"), description="Folder for files, rendered configurations, sockets and logs."
    )
    workflows: FilePath | None = Field(
        None, description="Folder of stored workflows; if unset, the shipped ones."
    )
    haproxy: FilePath | None = Field(
        None, description="Folder of HAProxy templates; if unset, the shipped ones."
    )
    haproxy_bin: str = Field("haproxy", description="HAProxy's program.")

    host: Host = Field(
        "127.0.0.1", description="Address of the public port. Any address but loopback needs keys."
    )
    port: int = Field(
        8188,
        ge=1,
        le=65535,
        description="The public port; if unset and taken, `fleet up` uses the next free one.",
    )
    public_url: str | None = Field(
        None, description="Base of absolute URLs; if unset, the request's host and scheme."
    )
    editor: bool = Field(
        True,
        description="1: the public port serves ComfyUI's editor, where there is a real node. What operators "
        "do is then done on the console's port, or with a key in a header.",
    )
    console_port: int = Field(
        8189,
        ge=1,
        le=65535,
        description="The console's port: sign-in, publishing, and all that operators do. If unset, "
        "`fleet up` uses the next free one above the public port.",
    )
    console_url: str | None = Field(
        None,
        validate_default=True,
        description="What browsers reach the console by, with a host or a port of its own; if unset, the "
        "host of the request with the console's port.",
    )
    tls_cert_file: FilePath | None = Field(
        None,
        description="Certificate (PEM file) with which the public port and the console speak TLS: the "
        "certificate first, then those that lead to an authority. A changed file is taken within seconds.",
    )
    tls_key_file: FilePath | None = Field(
        None, description="Its key (PEM file, no password); if unset, it is in the certificate's file."
    )
    console_tls_cert_file: FilePath | None = Field(
        None, description="Certificate of the console, if it has one of its own; if unset, the public port's."
    )
    console_tls_key_file: FilePath | None = Field(None, description="Its key, as above.")
    plain_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        validate_default=True,
        description="With TLS: a port without it that sends browsers to the public port; if unset, none.",
    )
    hsts_s: int = Field(
        0,
        ge=0,
        le=2 * 365 * 86400,
        validate_default=True,
        description="With TLS: for how many seconds browsers shall use nothing else for this host, on any "
        "port (`Strict-Transport-Security`); 0: not said.",
    )
    trusted_proxies: str = Field(
        "",
        description="Networks of the proxies in front, such as `127.0.0.1,10.0.0.0/8`: what they say of the "
        "client in `X-Forwarded-For` (or `Forwarded`), `-Proto`, `-Host` and `-Prefix`, and their "
        "`X-Request-Id`, counts. From everybody else it is dropped.",
    )
    trusted_user_header: str = Field(
        "",
        description="Header in which trusted proxies say who asks, such as `Remote-User`. From everybody "
        "else it is dropped.",
    )
    trusted_groups_header: str = Field(
        "", description="Header in which they say of which groups that person is, such as `Remote-Groups`."
    )
    group_roles: str = Field(
        "",
        description="Roles of those groups, as `admins=operator,artists=artist,*=submit`; `*` is everybody. "
        "Who is in none of them is refused. If unset, everybody whom a proxy names may submit.",
    )
    allow_from: str = Field(
        "",
        description="Networks whose clients are served, by their own addresses; if unset, all are. Commands "
        "on this machine, and `fleet up` itself, come from `127.0.0.1`, which such a list must name.",
    )
    console_allow_from: str = Field(
        "", description="Networks whose clients the console serves; if unset, those of `FLEET_ALLOW_FROM`."
    )
    cors_origins: str = Field(
        "",
        description="Origins of other sites whose pages may call the public port with a key of their own, "
        "such as `https://shop.example,http://localhost:3000`. Cookies and passwords that browsers add are "
        "never taken from them.",
    )
    api_ca_file: FilePath | None = Field(
        None,
        description="Certificate authorities (PEM file) by which commands and agents know the fleet itself, "
        "such as its self-signed certificate; if unset, the public ones.",
    )
    extension_routes: str = Field(
        "",
        description="Comma-separated prefixes of extensions' own routes that nodes answer, such as "
        "`/chooser,/api/easyuse`. Each is open with and without `/api` in front.",
    )
    editor_wait_s: float = Field(
        10.0,
        ge=0,
        le=10,
        description="Longest time in seconds that an editor's run waits for the node whose caches have its "
        "last graph; 0: not at all.",
    )
    api_host: Host = Field("127.0.0.1", description="Address of the API, behind the edge.")
    api_port: int = Field(8190, ge=1, le=65535, description="Port of the API, behind the edge.")
    broker_bind: Host | None = Field(
        None,
        description="Address that the broker listens on, for APIs and dispatchers of other machines and "
        "containers; they need the same FLEET_SECRET_FILE. If unset, it has no port, but two sockets in "
        "FLEET_DATA/run.",
    )
    lease_port: int = Field(
        8191, ge=1, le=65535, description="Port of the broker's lease frontend, with FLEET_BROKER_BIND."
    )
    direct_port: int = Field(
        8192, ge=1, le=65535, description="Port of the broker's pinned frontend, with FLEET_BROKER_BIND."
    )
    agent_host: Host = Field(
        "127.0.0.1", description="Address of the central agent, on which it listens and HAProxy asks it."
    )
    agent_port: int = Field(8193, ge=1, le=65535, description="Port on which the central agent answers.")
    broker_host: Host | None = Field(
        None,
        description="Address at which APIs and dispatchers reach the broker's ports; if unset, they use its "
        "sockets in FLEET_DATA/run.",
    )
    metrics_host: Host = Field(
        "127.0.0.1",
        description="Address on which dispatchers, HAProxy's controller and agents serve `/metrics`.",
    )
    metrics_advertise: Host | None = Field(
        None,
        description="Name or address at which Prometheus reaches processes of this machine that listen on "
        "all addresses, for `GET /api/v1/prometheus/targets`; if unset, the machine's name.",
    )
    dispatch_metrics_port: MetricsPort = Field(
        8194, description="Port of a dispatcher's `/metrics`; 0: any that is free; `none`: not served."
    )
    haproxy_metrics_port: MetricsPort = Field(
        8195,
        description="Port of the HAProxy controller's `/metrics`; 0: any that is free; `none`: not served.",
    )
    agent_metrics_port: MetricsPort = Field(
        8196,
        description="Port of an agent's `/metrics` and `/health`; 0: any that is free; `none`: not served. "
        "Give each of several agents on one machine its own.",
    )
    autoscale_metrics_port: MetricsPort = Field(
        8198,
        description="Port of the autoscaler's `/metrics`; 0: any that is free; `none`: not served.",
    )
    node_ca_file: FilePath | None = Field(
        None,
        description="Certificate authorities (PEM file) for the certificates of https nodes, "
        "used by agents and HAProxy; if unset, the machine's own.",
    )
    pool_slots: int = Field(
        16, ge=1, le=256, description="Most pools that can be used without a restart of HAProxy."
    )

    keys_file: FilePath | None = Field(
        None,
        description="File of API keys, one per line: `NAME KEY` or `NAME KEY ROLE`, with the roles `submit`, "
        "`artist`, `operator` and `metrics`. Only the fleet's user may read it. A change counts within a "
        "second. They count beside those of `fleet key create`.",
    )
    require_keys: bool = Field(
        False,
        description="1: every caller needs a key, also without a keys file; `fleet key create` makes them. "
        "If it is 0 and there is no keys file, nobody needs one, and only loopback is served.",
    )
    session_s: Seconds = Field(
        14 * 86400.0, ge=60, description="How long somebody who has signed in with a browser stays so."
    )
    secret_file: FilePath | None = Field(
        None,
        description="File of the key that encrypts stored secrets; if unset, it is made in `data`.",
    )
    agent_token_file: FilePath | None = Field(
        None, description="File with the agents' token, if FLEET_AGENT_TOKEN is unset."
    )
    host_nodes: Count = Field(64, ge=1, description="Most nodes that the agent of one host may register.")
    host_pools: Count = Field(
        4, ge=1, description="Most pools that the nodes of one host may be in, as its agent registers them."
    )
    node_networks: str = Field(
        "",
        description="Comma-separated networks and addresses in which nodes may be that agents register, such "
        "as `10.0.0.0/8`. If empty, they may be anywhere but at link-local addresses, and on the fleet's own "
        "machine only with an agent there. Operators may register a node anywhere.",
    )
    agent_token: str | None = Field(
        None, repr=False, validate_default=True, description="Token that agents show to the API."
    )

    agent_models_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port at which an agent gives model files to other agents while they fetch them "
        "(`fleet model fetch`); 0: any that is free.",
    )
    model_allow: str = Field(
        "",
        description="For agents: comma-separated private hosts from which `fleet model fetch` may get files, "
        "besides the public internet: as in `FLEET_FETCH_ALLOW`.",
    )
    model_bytes: Count = Field(
        100 * 1024**3, gt=0, description="For agents: largest model file that is fetched, in bytes."
    )
    model_s: Seconds = Field(
        6 * 3600.0, gt=0, description="For agents: longest time in which a model file must be fetched."
    )
    model_free_bytes: Count = Field(
        2 * 1024**3, ge=0, description="For agents: bytes that stay free on a disk that gets a model file."
    )
    huggingface_token: str | None = Field(
        None, repr=False, description="For agents: token that is shown to https://huggingface.co alone."
    )
    civitai_token: str | None = Field(
        None, repr=False, description="For agents: token that is shown to https://civitai.com alone."
    )

    vram_need_gb: Gibibytes | None = Field(
        None,
        gt=0,
        description="GPU memory in GiB for the smallest job; if unset, two thirds of a card.",
    )
    vram_reserve_gb: Gibibytes | None = Field(
        None,
        ge=0,
        description="GPU memory in GiB that is never available; if unset, it depends on the card.",
    )
    free_idle_s: Seconds = Field(
        0.0,
        ge=0,
        description="Idle seconds after which a node unloads its models; 0: never. A pool may have its own "
        "value (`fleet pool set`).",
    )
    free_oom: bool = Field(
        True,
        description="1: a node unloads its models after a job ran out of memory on it, 0: never. A pool "
        "may have its own value (`fleet pool set`).",
    )
    patience_s: float = Field(
        PATIENCE_S,
        ge=0,
        le=LONGEST_PATIENCE_S,
        description="For how many seconds a job may be passed over beyond its turn, so that nodes keep the "
        "models that they have; 0: never. A pool may have its own value (`fleet pool set`).",
    )

    rq_mirror: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether `rq info` and RQ's dashboards see the fleet's own jobs, in the queue "
        "`NAMESPACE.jobs`: `on`, `off`, or `auto`, as long as there are no tenants. What is changed there "
        "changes no job. Whoever can read RQ's keys in Redis sees every user's jobs there.",
    )

    rq_inbox: Literal["auto", "off"] = Field(
        "auto",
        description="Whether jobs are taken that RQ's clients enqueue in RQ's queue of the namespace's name. "
        "`auto`: for `FLEET_RQ_USER`, or, where no keys are needed, for `local`; `off`: never.",
    )
    rq_user: str = Field(
        "",
        description="Whose the jobs are that RQ's clients enqueue: a user of the fleet, with the limits of "
        "the role submit and of their tenant.",
    )
    rq_callbacks: str = Field(
        "",
        description="RQ's queue, served by your own workers, on which callbacks are enqueued of jobs that "
        "RQ's clients enqueue. If empty, jobs with callbacks are refused.",
    )

    queue_depth: Count = Field(
        1000,
        ge=1,
        description="Most queued jobs; further submits get 429 `queue_full`. A user who has less than a "
        "tenth of this waiting still gets in, until twice as many wait.",
    )
    ageing_s: float = Field(
        60.0, gt=0, le=10_000, description="Waiting time in seconds that is worth one point of priority."
    )
    max_priority: int = Field(
        1000,
        ge=0,
        le=MAX_PRIORITY,
        description="Highest priority of a job, unless its caller's key has the role operator.",
    )
    limits: str = Field(
        "",
        description="Limits by role, as `submit: submits=10/1s,100/1m queued=50; artist: queued=200`. Names: "
        "`submits`, `requests`, `queued`, `live`, `running`, `stored`, `streams`, `sockets`, `body`, "
        "`workflows`, `raw_graphs`, `priority`. Keys and tenants may have further ones.",
    )
    shares: str = Field(
        "",
        description="Shares of the GPUs' time by user, within their tenant: `ada=2,bob=0.5` gives ada twice "
        "as much as somebody who is not listed, and bob half as much. From 0.01 to 100.",
    )
    max_attempts: int = Field(3, ge=1, le=20, description="Attempts of a job before it fails.")
    lease_ttl_s: Seconds = Field(
        5.0,
        gt=0.5,
        description="A run is taken over once its dispatcher has been silent for this long; sooner, if its "
        "process has ended.",
    )
    beat_s: Seconds = Field(
        1.0,
        gt=0,
        validate_default=True,
        description="How often a dispatcher renews its run leases; at most half of `FLEET_LEASE_TTL_S`.",
    )
    stop_wait_s: Seconds = Field(
        10.0, ge=0, description="How long a stopping dispatcher waits for its runs before it hands them over."
    )
    stage_ahead_bytes: Count = Field(
        256 * 1024 * 1024,
        ge=0,
        description="Most bytes of input files that are put onto a node while it computes, for the job that "
        "it will probably run next; 0: none. Only on nodes whose agent deletes files.",
    )
    ready_leases: int = Field(
        16,
        ge=0,
        le=64,
        description="Most leases of idle nodes that a dispatcher holds ready, so that a job begins without "
        "asking HAProxy; live dispatchers share the idle nodes. 0: none.",
    )
    run_timeout_s: Seconds = Field(3600.0, gt=0, description="Longest time of one run on a node.")
    silence_s: Seconds = Field(
        600.0,
        gt=0,
        description="Longest time of a run without a sign of progress; then it is interrupted, and its job "
        "fails. A pool may have its own value (`fleet pool set`), and a stored workflow another one "
        "(`silence_s` in its manifest), which counts before the pool's.",
    )
    pending_s: Seconds = Field(
        10.0,
        gt=0,
        description="Longest time a job waits in a node's own queue, behind work that is not the fleet's, "
        "before it goes back to the fleet's queue; it goes back earlier if another node is free.",
    )
    node_answer_bytes: Count = Field(
        24 * 1024 * 1024,
        ge=64 * 1024,
        description="Largest answer of a node to any call but `/view`. A larger one is the node's fault. "
        "Decoding it may take 7/3 of this in memory (a text in ASCII takes three times its size). One class "
        "of `/object_info` may have a quarter of this, and all of them may take four thirds in memory.",
    )
    node_answer_s: Seconds = Field(
        60.0,
        gt=0,
        description="Longest time from the start of a node's answer to its end; not for `/view`.",
    )
    node_frame_bytes: Count = Field(
        32 * 1024 * 1024,
        ge=64 * 1024,
        description="Largest websocket frame of a node; a run whose node sends a larger one fails. "
        "A text takes three times its size to decode, and may have half of this (ASCII; others less).",
    )
    quarantine_faults: Count = Field(
        2,
        ge=1,
        description="GPU faults, or answers that break a limit, in a row after which a node gets no jobs "
        "until it is restarted.",
    )
    quarantine_ooms: Count = Field(
        5,
        ge=1,
        description="Jobs in a row out of memory on the largest card, after which its node gets no jobs.",
    )
    oom_memory_s: Seconds = Field(
        86400.0,
        gt=0,
        description="How long jobs that ran out of memory on a card, and like ones, avoid cards of its size.",
    )
    retention_s: Seconds = Field(
        7 * 86400.0, gt=0, description="How long a job and its files stay after its end."
    )
    max_retention_s: Seconds = Field(
        366 * 86400.0,
        gt=0,
        description="The longest of the same that may be set for a tenant (`fleet tenant set --retention`).",
    )
    result_cache: Literal["off", "workflows", "all"] = Field(
        "workflows",
        description="Which jobs get the result of an equal job of their owner's instead of a run of their "
        "own: none, those of stored workflows that don't say otherwise, or all. For a graph, a client asks "
        "for it with `Cache-Control: max-age=SECONDS`.",
    )
    max_batch_items: int = Field(
        10_000,
        gt=0,
        le=100_000,
        description="Most items of one batch.",
    )
    max_batch_waiting: int = Field(
        20_000,
        gt=0,
        le=10_000_000,
        description="How many items of all batches may wait until the queue has room for them: batches fill "
        "half of it (`FLEET_QUEUE_DEPTH`). Further batches are refused with 429, but an owner may always "
        "have a tenth of this number. Each takes the memory of a job in Redis.",
    )
    max_kept_jobs: Count = Field(
        1000,
        ge=0,
        description="Most jobs that one owner may exempt from retention (`fleet job keep`); they stay until "
        "they are removed.",
    )
    upload_retention_s: Seconds = Field(
        30 * 86400.0,
        ge=0,
        description="How long an upload without `expires_in` stays, and at least as long as its jobs. "
        "0: until it is deleted.",
    )
    blob_grace_s: Seconds = Field(
        6 * 3600.0,
        ge=0,
        description="How long a file's bytes stay after it was deleted or has expired, so that a backup of "
        "Redis can be restored. While the disk is below its floor, they are deleted at once.",
    )
    disk_floor_bytes: Count | None = Field(
        None,
        ge=0,
        description="Free space on the disk of `data` below which submits and uploads are refused; if unset, "
        "512 MB, or a tenth of a smaller disk. Running jobs may use half of it; Redis needs the rest.",
    )
    max_outputs: Count = Field(
        1000,
        ge=1,
        description="Most outputs of one job; with more, it ends `failed` with `output_limit`.",
    )
    max_output_bytes: Count = Field(10**9, ge=1, description="Largest output in bytes; otherwise as above.")
    max_job_bytes: Count = Field(
        4 * 10**9, ge=1, description="Most bytes of all outputs of one job; otherwise as above."
    )
    output_timeout_s: Seconds = Field(
        1800.0, gt=0, description="Longest transfer of one output from its node; otherwise as above."
    )
    max_body_bytes: Count = Field(100 * 1024 * 1024, gt=0, description="Largest request body in bytes.")
    max_upload_bytes: Count = Field(
        4 * 1024**3,
        gt=0,
        description="Largest file in bytes that is uploaded in parts (`/api/v1/uploads`), whatever the "
        "size of a request's body.",
    )
    max_open_uploads: Count = Field(
        20,
        gt=0,
        description="Most uploads in parts that one user may have begun and not ended; of all users together "
        "fifty times as many.",
    )
    open_upload_bytes: Count = Field(
        64 * 1024**3,
        gt=0,
        description="Most bytes that such uploads of all users together may have announced; of one user a "
        "quarter of that, or one file of the largest size.",
    )
    open_upload_s: Seconds = Field(
        86400.0,
        ge=60,
        description="How long such an upload stays after its last part came.",
    )
    max_picture_pixels: Count = Field(
        64 * 1024 * 1024,
        gt=0,
        description="Most pixels of a picture that is converted: to another format or size, to previews, "
        "single channels and masks; its file may have four bytes for each. Others are shown as they are.",
    )
    picture_cache_bytes: Count = Field(
        512 * 1024 * 1024,
        ge=0,
        description="Most bytes of converted pictures that are kept in FLEET_DATA, for a day at most, to be "
        "given again; 0: none.",
    )
    max_pnginfo_bytes: Count = Field(
        1024 * 1024,
        gt=0,
        description="Largest `extra_data.extra_pnginfo` in bytes, kept as long as its job.",
    )
    max_json_bytes: Count = Field(
        16 * 1024 * 1024,
        gt=0,
        description="Largest JSON body with a graph, or of a heartbeat, in bytes. Pictures in a graph "
        "fit; larger files are uploaded as assets.",
    )
    max_json_values: Count = Field(
        250_000, gt=0, description="Most values in such a body, lists and objects included."
    )
    max_params_bytes: Count = Field(
        4 * 1024 * 1024, gt=0, description="Largest JSON body in bytes of any other kind."
    )
    max_params_values: Count = Field(
        10_000, gt=0, description="Most values in a JSON body of any other kind, lists and objects included."
    )
    userdata_bytes: Count = Field(
        64 * 1024 * 1024,
        gt=0,
        description="Most bytes of one person's files in the editor: workflows, subgraphs, settings. Redis "
        "keeps them, compressed. At most 10,000 files and folders, of 20 MiB each.",
    )
    max_listing_bytes: Count = Field(
        16 * 1024 * 1024,
        gt=0,
        description="Most bytes of graphs and extra data in an answer of ComfyUI's `/queue`, where further "
        "prompts are listed without, and of `/history`, where older prompts are left out.",
    )
    max_requests: Count = Field(
        128,
        ge=1,
        description="Requests that the API works on at once. Eight times as many may wait for their turn; "
        "further ones get 503 `busy`.",
    )
    request_wait_s: Seconds = Field(
        8.0, gt=0, description="How long a request waits for its turn before it gets 503 `busy`."
    )
    rate_limit: Count = Field(
        0, ge=0, description="Requests that one address may make in 10 s before it gets 429; 0: any number."
    )
    connection_limit: Count = Field(
        0,
        ge=0,
        description="Connections that one address (of IPv6, one /64) may have open at the edge; 0: any "
        "number. Requests on further ones get 429, and beyond twice as many they are closed at once. Those "
        "of FLEET_TRUSTED_PROXIES are not counted.",
    )
    max_streams: Count = Field(
        64,
        ge=1,
        description="Most open event streams of one caller at each API process, and most of their submits "
        "that wait for their job's end.",
    )
    max_waits: Count = Field(
        1024,
        ge=0,
        description="Most submits of all callers that wait for their job's end, at each API process; further "
        "ones are answered at once.",
    )
    max_wait_s: float = Field(
        120.0,
        ge=0,
        le=540,
        description="Longest time in seconds that a submit waits for its job's end, whatever it asks for; 0: "
        "none waits. At most 540: the edge gives up an answer after 600.",
    )
    max_sockets: Count = Field(
        2048, ge=1, description="Most open websockets of one caller, at each API process."
    )
    socket_bytes: Count = Field(
        8 * 1024 * 1024,
        ge=64 * 1024,
        description="Most bytes that wait for one websocket's client, which reads slowly. Previews and "
        "progress are dropped first; then the websocket is closed.",
    )

    moderation_url: str = Field(
        "",
        description="Where somebody judges prompts, inputs and pictures over HTTP "
        "(`docs/howto/moderation.md`); empty: nobody. Give it to the API and to every dispatcher.",
    )
    moderation: Literal["closed", "open", "off"] = Field(
        "closed",
        description="While nobody answers there: `closed`: new jobs are refused for now and files withheld; "
        "`open`: they pass. `off`: only jobs of tenants that have set their own are judged.",
    )
    moderation_token_file: FilePath | None = Field(
        None, description="File with a text that is sent there as `Authorization: Bearer`."
    )
    moderation_s: Seconds = Field(10.0, gt=0, description="Longest time for an answer.")
    moderation_bytes: Count = Field(
        20 * 1024 * 1024,
        ge=0,
        description="Most bytes of files in one question; of further ones, it has name, size and hash.",
    )

    fetch: bool = Field(
        True, description="Whether jobs may name inputs by URL, which the fleet fetches for them."
    )
    fetch_allow: str = Field(
        "",
        description="Comma-separated private hosts that such URLs may name, besides the public internet: "
        "names (`nas.lan`, `*.shop.test`), addresses and networks (`10.1.0.0/16`), each with `:PORT` if it "
        "is about one port.",
    )
    fetch_bytes: Count = Field(
        100 * 1024 * 1024, gt=0, description="Largest file that is fetched, or sent as a data URI, in bytes."
    )
    fetch_s: Seconds = Field(60.0, gt=0, description="Longest time in which one file must be fetched.")
    store_folders: str = Field(
        "",
        description="Folders, separated by colons, below which stores `file:///FOLDER` may be; empty: there "
        "are no such stores.",
    )
    store_patience_s: Seconds = Field(
        259_200.0,
        gt=0,
        description="For how long a store may take nothing before the outputs that wait for it are given up.",
    )
    spool_bytes: Count = Field(
        0,
        ge=0,
        description="Most bytes of outputs that may wait for stores; above it, jobs whose outputs go to a "
        "store are refused with 503. 0: as many as FLEET_DISK_FLOOR_BYTES leaves room for.",
    )
    webhook_allow: str = Field(
        "",
        description="Comma-separated hosts and networks that webhooks may call besides the public internet: "
        "`hooks.lan,*.shop.test:8443,10.1.0.0/16`.",
    )
    webhook_backoff_s: str = Field(
        ",".join(f"{one:g}" for one in SCHEDULE_S),
        description="Seconds between the tries of a message to a webhook that does not take it; after the "
        "last one it is given up.",
    )
    operator_webhook_url: str | None = Field(
        None,
        description="URL that is told of nodes that go down or come back, a queue that is stuck, a disk "
        "or a Redis that is nearly full, and a certificate that ends soon.",
    )

    deny_classes: str = Field(
        "",
        description="Comma-separated node classes that no job may use, and groups of them: `@folders`, "
        "`@network`, `@code`. `-NAME` allows one that is denied by default, or with its group.",
    )
    allow_classes: str = Field(
        "",
        description="Comma-separated node classes that jobs may use, and no others, and groups of them, such "
        "as `@core` for those that come with ComfyUI; empty: all.",
    )
    free_paths: str = Field(
        "",
        description="Comma-separated inputs that may name any file on a node, as `CLASS.input`. Others must "
        "stay in their folder, or are moved below the run's.",
    )

    default_workflow: str = Field(
        "image_card", description="Workflow that `fleet submit` and the demo run if none is named."
    )
    generate_workflow: str = Field(
        "image_card", description="Workflow that `POST /api/v1/generate` and `/api/submit` run."
    )

    log_format: Literal["auto", "json", "text", "journald"] = Field(
        "auto",
        description="`auto`: text on a terminal, else JSON lines. `journald`: entries of systemd's journal, "
        "with a field for each fact.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line to log."
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        """Refuse a URL that no client could use; it is not shown, as it may contain a password."""
        example = "it must look like redis://HOST:PORT/0, rediss://HOST:PORT/0 or unix:///PATH?db=0"
        try:
            parts = urlsplit(value)
            found = parts.path if parts.scheme == "unix" else parts.hostname
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{error}; {example}") from None
        if parts.scheme not in ("redis", "rediss", "unix") or not found or port == 0:
            raise ValueError(example)
        return value

    @field_validator("namespace")
    @classmethod
    def _check_namespace(cls, value: str) -> str:
        """Refuse what is not safe in keys, or somebody else's."""
        try:
            return check_namespace(value)
        except BadInput as error:
            raise ValueError(error.message) from error

    @field_validator("rq_user")
    @classmethod
    def _check_rq_user(cls, value: str) -> str:
        """Refuse what can't be a user's name."""
        try:
            return check_person("user", value) if value else value
        except BadInput as error:
            raise ValueError(error.message) from error

    @field_validator("rq_callbacks")
    @classmethod
    def _check_rq_callbacks(cls, value: str, info: ValidationInfo) -> str:
        """Refuse a queue that the fleet's own dispatchers look after."""
        namespace = str(info.data.get("namespace", ""))
        if value in (namespace, f"{namespace}.jobs"):
            raise ValueError(f"{value!r} is the fleet's own: name a queue that your own workers serve")
        if value and not re.fullmatch(r"[A-Za-z0-9_.:-]{1,100}", value):
            raise ValueError(f"{value[:80]!r} must be 1 to 100 of A-Z a-z 0-9 _ . : -")
        return value

    @field_validator("public_url", "console_url")
    @classmethod
    def _check_base_url(cls, value: str | None) -> str | None:
        """Refuse what can't be the base of a URL; empty, as Compose sets unset variables, means unset."""
        if not value:
            return None
        example = "it must look like https://HOST or https://HOST/PREFIX"
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{error}; {example}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError(f"{value!r} is not an http(s) URL; {example}")
        if parts.username is not None:  # it would be in every answer; not shown here either
            raise ValueError(f"it holds a user's name or a password; {example}")
        if parts.query or parts.fragment or " " in value or not value.isprintable():
            raise ValueError(f"{value!r} holds more than a host and a path; {example}")
        return value

    @field_validator("console_url")
    @classmethod
    def _check_console_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Refuse the public URL's own origin: what a path sets apart is one origin to a browser."""
        public: str | None = info.data.get("public_url")
        if value and public and origin_of(value) == origin_of(public):
            raise ValueError(
                f"{value!r} is the same origin as FLEET_PUBLIC_URL; give the console another host or port"
            )
        return value

    @field_validator("console_port")
    @classmethod
    def _check_console_port(cls, value: int, info: ValidationInfo) -> int:
        """Refuse the public port: to a browser, both would be one."""
        if value == info.data.get("port"):
            raise ValueError(f"{value} is the public port; the console needs its own")
        return value

    @field_validator("tls_cert_file", "tls_key_file", "console_tls_cert_file", "console_tls_key_file")
    @classmethod
    def _check_tls_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        """Refuse a key or a console's certificate without what it belongs to.

        What the files hold is checked where they are read: other processes may not even see them.
        """
        needed = _NEEDED_TLS.get(info.field_name or "")
        if value is not None and needed and info.data.get(needed) is None:
            raise ValueError(f"set FLEET_{needed.upper()}, too")
        return value

    @field_validator("trusted_proxies", "allow_from", "console_allow_from", "node_networks")
    @classmethod
    def _check_networks(cls, value: str) -> str:
        """Refuse what :func:`parse_networks` can't read."""
        try:
            parse_networks(value)
        except BadInput as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_cors_origins(cls, value: str) -> str:
        """Refuse what no browser sends as an origin, and lists of everybody."""
        for origin in filter(None, map(str.strip, value.split(","))):
            if not re.fullmatch(r"https?://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?", origin):
                raise ValueError(
                    f"{origin!r} is no origin, such as https://shop.example or http://localhost:3000"
                )
        return value

    @field_validator("trusted_user_header", "trusted_groups_header")
    @classmethod
    def _check_trusted_header(cls, value: str) -> str:
        """Refuse what is no header's name, or one that means something else."""
        if value and not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,63}", value):
            raise ValueError(f"{value!r} is no name of a header, such as Remote-User")
        if value.lower().startswith(_OWN_HEADERS):
            raise ValueError(f"{value!r} has a meaning of its own; name another, such as Remote-User")
        return value

    @field_validator("group_roles")
    @classmethod
    def _check_group_roles(cls, value: str) -> str:
        """Refuse what :func:`parse_group_roles` can't read."""
        parse_group_roles(value)
        return value

    @field_validator("plain_port", "hsts_s")
    @classmethod
    def _check_with_tls(cls, value: int | None, info: ValidationInfo) -> int | None:
        """Refuse what makes sense with TLS only, and a port that is taken."""
        if value and info.data.get("tls_cert_file") is None:
            raise ValueError("it is for a fleet with TLS: set FLEET_TLS_CERT_FILE, too")
        if (
            value
            and info.field_name == "plain_port"
            and value in (info.data.get("port"), info.data.get("console_port"))
        ):
            raise ValueError(f"{value} is the public port or the console's; it needs its own")
        return value

    @field_validator("extension_routes")
    @classmethod
    def _check_extension_routes(cls, value: str) -> str:
        """Refuse what :func:`parse_prefixes` can't read."""
        try:
            parse_prefixes(value)
        except BadInput as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("node_ca_file")
    @classmethod
    def _check_node_ca_file(cls, value: Path | None) -> Path | None:
        """Refuse a file that HAProxy could not read, or name on its control socket."""
        if value is None:
            return None
        if not value.is_file():
            raise ValueError(f"{value} is no file")
        if re.search(r"[\x00-\x20\x7f'\"\\;$#]", str(value.absolute())):
            raise ValueError(f"{str(value)!r} must not hold blanks, quotes, ;, $, # or backslashes")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
        except ssl.SSLError:
            raise ValueError(f"{value} holds no certificate (PEM)") from None
        except OSError as error:
            raise ValueError(f"{value} can't be read: {error.strerror}") from None
        return value

    @field_validator("beat_s")
    @classmethod
    def _check_beat_s(cls, value: float, info: ValidationInfo) -> float:
        """Refuse too long a beat: runs would be taken over between two beats."""
        ttl_s: float | None = info.data.get("lease_ttl_s")
        if ttl_s is not None and value > ttl_s / 2:
            raise ValueError(f"{value:g} must be at most half of FLEET_LEASE_TTL_S ({ttl_s:g})")
        return value

    @field_validator("agent_token")
    @classmethod
    def _read_agent_token(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Read the token from its file: containers get secrets as files."""
        path: Path | None = info.data.get("agent_token_file")
        if value is not None or path is None:
            return _sendable(value, "it")
        try:
            token = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"FLEET_AGENT_TOKEN_FILE: {path} can't be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise ValueError(f"FLEET_AGENT_TOKEN_FILE: {path} is no text in UTF-8") from None
        if not token:
            raise ValueError(f"FLEET_AGENT_TOKEN_FILE: {path} is empty")
        return _sendable(token, f"FLEET_AGENT_TOKEN_FILE: what {path} holds")

    @field_validator("shares")
    @classmethod
    def _check_shares(cls, value: str) -> str:
        """Refuse what :func:`parse_weights` can't read."""
        try:
            parse_weights(value)
        except BadInput as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("moderation_url")
    @classmethod
    def _check_moderation_url(cls, value: str) -> str:
        """Refuse what can't be called."""
        try:
            if value:
                parse_target(value)
        except BadInput as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("store_folders")
    @classmethod
    def _check_store_folders(cls, value: str) -> str:
        """Refuse what is no path from the root."""
        if wrong := [one for one in value.split(":") if one and not Path(one).is_absolute()]:
            raise ValueError(f"{wrong[0]!r} must begin with /: /srv/pictures:/mnt/nas")
        return value

    @field_validator("fetch_allow")
    @classmethod
    def _check_fetch_allow(cls, value: str) -> str:
        """Refuse what :func:`parse_allowed` can't read."""
        try:
            parse_allowed("FLEET_FETCH_ALLOW", value)
        except ConfigError as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("model_allow")
    @classmethod
    def _check_model_allow(cls, value: str) -> str:
        """Refuse what :func:`parse_allowed` can't read."""
        try:
            parse_allowed("FLEET_MODEL_ALLOW", value)
        except ConfigError as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("huggingface_token", "civitai_token")
    @classmethod
    def _check_site_tokens(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Refuse what no header can carry."""
        return _sendable(value, f"FLEET_{str(info.field_name).upper()}")

    @field_validator("deny_classes", "allow_classes")
    @classmethod
    def _check_classes(cls, value: str) -> str:
        """Refuse a group that there is not."""
        try:
            ClassRules.parse(value, value)
        except BadInput as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("limits")
    @classmethod
    def _check_limits(cls, value: str) -> str:
        """Refuse what :func:`parse_role_limits` can't read."""
        try:
            parse_role_limits(value)
        except BadInput as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("free_paths")
    @classmethod
    def _check_free_paths(cls, value: str) -> str:
        """Refuse what :meth:`FilePolicy.parse` can't read."""
        try:
            FilePolicy.parse("", value)
        except BadInput as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("webhook_allow")
    @classmethod
    def _check_webhook_allow(cls, value: str) -> str:
        """Refuse what :func:`parse_allowed` can't read."""
        try:
            parse_allowed("FLEET_WEBHOOK_ALLOW", value)
        except ConfigError as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("webhook_backoff_s")
    @classmethod
    def _check_webhook_backoff(cls, value: str) -> str:
        """Refuse what :func:`parse_schedule` can't read."""
        parse_schedule(value)
        return value

    @field_validator("operator_webhook_url")
    @classmethod
    def _check_operator_webhook_url(cls, value: str | None) -> str | None:
        """Refuse what could not be called; empty, as Compose sets unset variables, means unset."""
        if not value:
            return None
        try:
            return checked_url(value, field="URL")
        except BadInput as error:  # who reads the settings names the variable
            raise ValueError(error.message.removeprefix("URL").lstrip(": ")) from error

    @model_validator(mode="wrap")
    @classmethod
    def _take_former(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Take parts about single pools out of settings in their former form."""
        try:
            values, pools = former_pools.taken(data)
        except BadInput as error:
            raise ValueError(str(error)) from error
        made = handler(values)
        made._former = pools  # noqa: SLF001 - our own
        return made

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Look only where settings may be, and for those that are there: each command waits for it."""
        return init_settings, _Environment(settings_cls)

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights of owners; everybody else has 1."""
        return parse_weights(self.shares)

    @property
    def pool_defaults(self) -> PoolDefaults:
        """The values for pools that have not set their own."""
        return PoolDefaults(
            free_idle_s=self.free_idle_s,
            free_on_oom=self.free_oom,
            patience_s=self.patience_s,
            former=dict(self._former),
        )

    @property
    def cors_page_origins(self) -> tuple[str, ...]:
        """The origins of pages that may call the public port, in lower case."""
        named = (origin.strip().lower() for origin in self.cors_origins.split(","))
        return tuple(dict.fromkeys(origin for origin in named if origin))

    @property
    def trusted_headers(self) -> tuple[str, ...]:
        """The headers that only a trusted proxy may send, in lower case."""
        named = (self.trusted_user_header, self.trusted_groups_header)
        return tuple(dict.fromkeys(name.lower() for name in named if name))

    @property
    def tls(self) -> bool:
        """Whether the public port and the console speak TLS."""
        return self.tls_cert_file is not None

    @property
    def webhook_allowed(self) -> AllowedHosts:
        """What webhooks may call besides the public internet."""
        return parse_allowed("FLEET_WEBHOOK_ALLOW", self.webhook_allow)

    @property
    def role_limits(self) -> Mapping[Role, Limits]:
        """The limits by role."""
        return parse_role_limits(self.limits)

    @property
    def extension_prefixes(self) -> tuple[str, ...]:
        """The prefixes of extensions' routes that are open, without ``/api``."""
        return parse_prefixes(self.extension_routes)

    @property
    def workflows_dir(self) -> Path:
        """Folder of stored workflows."""
        return self.workflows or packaged("workflows")

    @property
    def haproxy_dir(self) -> Path:
        """Folder of HAProxy templates."""
        return self.haproxy or packaged("haproxy")

    @property
    def run_dir(self) -> Path:
        """Folder of sockets, pid files and rendered configurations."""
        return self.data / "run"

    @property
    def secret_key_file(self) -> Path:
        """File of the key that encrypts partner keys and passwords of nodes."""
        return self.secret_file or self.data / "secret.key"

    @property
    def files_dir(self) -> Path:
        """Folder of assets and outputs."""
        return self.data / "files"

    @property
    def lease_socket(self) -> Path:
        """The socket of the broker's lease frontend, which only the fleet's user can open."""
        return self.run_dir.absolute() / "lease.sock"

    @property
    def direct_socket(self) -> Path:
        """The socket of the broker's pinned frontend."""
        return self.run_dir.absolute() / "direct.sock"

    @property
    def base_url(self) -> str:
        """Base of the fleet's URLs in what is not an answer: the public one, or as this machine sees it."""
        if self.public_url:
            return self.public_url.rstrip("/")
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}  # noqa: S104  (asked, not bound)
        host = everywhere.get(self.host, self.host)
        return f"{'https' if self.tls else 'http'}://{_in_url(host)}:{self.port}"

    @property
    def lease_url(self) -> str:
        """Where the broker's lease frontend is: ``unix:PATH``, or a websocket base."""
        if self.broker_host is None:
            return f"unix:{self.lease_socket}"
        return f"ws://{_in_url(self.broker_host)}:{self.lease_port}"

    @property
    def direct_url(self) -> str:
        """Where the broker's pinned frontend is: ``unix:PATH``, or an HTTP base."""
        if self.broker_host is None:
            return f"unix:{self.direct_socket}"
        return f"http://{_in_url(self.broker_host)}:{self.direct_port}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def unknown(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the ``FLEET_*`` variables that nothing here reads, each with the name that may be meant.

    Args:
        environ: The environment; variables listed in :data:`WARNED` are left out.
    """
    usual = {*(f"FLEET_{name.upper()}" for name in Settings.model_fields), *_OF_COMMANDS}
    known = {*usual, WARNED, *(f"FLEET_{name}" for name in _OF_COMPOSE)}
    told = environ.get(WARNED, "").split(",")
    found = sorted(
        name
        for name in environ
        if name.startswith("FLEET_")
        and name.upper() not in known
        and not name.startswith(_FOR_TESTS)
        and name not in told
    )
    return {name: _alike(name, usual) for name in found}


def _alike(name: str, usual: Iterable[str]) -> str | None:
    # The common prefix would make all names look similar.
    words = {one.removeprefix("FLEET_"): one for one in sorted(usual)}
    near = difflib.get_close_matches(name.upper().removeprefix("FLEET_"), words, n=1, cutoff=_ALIKE)
    return words[near[0]] if near else None
