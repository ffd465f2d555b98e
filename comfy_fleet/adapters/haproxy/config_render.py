"""Render both configurations from settings and nodes. Only templates are read; nothing is written."""

import json
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined, TemplateError

from comfy_fleet.adapters.comfyui.broker_headers import secret_digest
from comfy_fleet.adapters.haproxy.certificates import EdgeCertificates, edge_certificates
from comfy_fleet.adapters.haproxy.editor_paths import SEGMENT, editor_paths
from comfy_fleet.adapters.haproxy.server_lines import (
    SYSTEM_CA,
    backend_of,
    entries_of,
    join,
    lease_options,
    no_editors_of,
    prefix_of,
    tls_options,
)
from comfy_fleet.domain.about import NOTHING_HERE, WHERE_INSTEAD
from comfy_fleet.domain.edge_word import edge_word
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE
from comfy_fleet.domain.networks import parse_networks
from comfy_fleet.domain.nodes.node import Node, check_name
from comfy_fleet.settings import Settings

_SOCKET_PATH_LIMIT = 90  # sun_path has 108 bytes, and HAProxy first binds PATH.PID.tmp
_ANSWER_TIMEOUT_S = 600
_SMALL_BODY_BYTES = 8192  # with the head, it fits into one buffer (tune.bufsize is 16384)
_REQUESTS = 4
"""Requests that may be on their way to the API, as a multiple of those it works on."""
_EDITOR_FILE_BYTES = 128 * 1024 * 1024
_EDITOR_REQUESTS = 256
"""Requests for editors' files that may be on their way to the broker, which has leases to serve, too."""

_CORS_HEADERS = (
    "Authorization, X-API-Key, Content-Type, Cache-Control, Idempotency-Key, Prefer, Range, traceparent, "
    "Tus-Resumable, Upload-Length, Upload-Metadata, Upload-Offset, X-HTTP-Method-Override, "
    # What OpenAI's client sends by itself.
    "X-Stainless-Arch, X-Stainless-Lang, X-Stainless-OS, X-Stainless-Package-Version, "
    "X-Stainless-Retry-Count, X-Stainless-Runtime, X-Stainless-Runtime-Version, X-Stainless-Timeout, "
    "OpenAI-Organization, OpenAI-Project"
)
"""What pages of other origins may send."""
_CORS_SHOWN = (
    "Content-Disposition, Content-Location, Content-Range, ETag, Location, Preference-Applied, Retry-After, "
    "Tus-Extension, Tus-Max-Size, Tus-Resumable, Tus-Version, Upload-Expires, Upload-Length, "
    "traceparent, Upload-Metadata, Upload-Offset, X-Fleet-Asset, X-Fleet-Job, X-Request-Id"
)
"""What they may read of an answer, beside its type and length."""

_RATE_LIMITED = "Too many requests from this address; slow down."

_ERRORS: Sequence[tuple[int, str, str, int | None]] = (
    (400, "invalid_request", "The request is not valid HTTP.", None),
    (408, "request_timeout", "The request took too long to arrive.", None),
    (500, "internal_error", "The edge failed.", None),
    (502, "bad_gateway", "The API broke off its answer.", 1),
    (503, "unavailable", "The API can't be reached, or has too much to do, right now; try again.", 1),
    (504, "gateway_timeout", "The API took too long to answer.", 1),
)
_OF_UPSTREAM = frozenset({502, 503, 504})
"""Answers of HAProxy's own to requests that it has read: it knows which interface was asked."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """All texts that HAProxy reads.

    Attributes:
        broker: The lease broker's configuration.
        edge: The public port's configuration.
        pools: The map file: a line ``POOL BACKEND`` for every pool that has a slot.
        vias: The map file: a line ``NODE AUTHORITY|PREFIX|AUTHORIZATION`` for every node behind a proxy.
        no_editors: The map file: a line ``NODE no`` for every node whose editor nobody gets.
        certificates: The edge's certificates with their keys, by the name of their file.
        secrets: The map file: a line ``DIGEST yes`` for the secret that the broker's ports ask for.
    """

    broker: str
    edge: str
    pools: str
    vias: str = field(default="", repr=False)
    no_editors: str = ""
    certificates: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    secrets: str = ""


@dataclass(frozen=True, kw_only=True)
class ConfigFiles:
    """Paths on this machine; all are absolute."""

    folder: Path

    @property
    def broker(self) -> Path:
        """The broker's configuration."""
        return self.folder / "broker.cfg"

    @property
    def edge(self) -> Path:
        """The edge's configuration."""
        return self.folder / "edge.cfg"

    @property
    def pools(self) -> Path:
        """The map from pool to lease backend."""
        return self.folder / "pools.map"

    @property
    def vias(self) -> Path:
        """The map of the nodes behind a proxy, with the headers for them."""
        return self.folder / "nodes.map"

    @property
    def no_editors(self) -> Path:
        """The map of the nodes whose editor nobody gets."""
        return self.folder / "no-editors.map"

    @property
    def secrets(self) -> Path:
        """The map of what the broker's ports ask for."""
        return self.folder / "broker-secrets.map"

    @property
    def broker_socket(self) -> Path:
        """The broker's Runtime API."""
        return self.folder / "broker.sock"

    @property
    def edge_socket(self) -> Path:
        """The edge's Runtime API."""
        return self.folder / "edge.sock"

    @property
    def broker_monitor(self) -> Path:
        """Socket of the broker's ``/metrics`` and ``/health``."""
        return self.folder / "broker-monitor.sock"

    @property
    def edge_monitor(self) -> Path:
        """Socket of the edge's ``/metrics`` and ``/health``."""
        return self.folder / "edge-monitor.sock"


def files(settings: Settings) -> ConfigFiles:
    """Return the paths of this fleet's HAProxy files.

    Raises:
        ConfigError: The data folder's path is too long for a unix socket.
    """
    found = ConfigFiles(folder=settings.run_dir.absolute())
    longest = found.broker_monitor
    if len(str(longest).encode()) > _SOCKET_PATH_LIMIT:
        raise ConfigError(
            f"the path {longest} is too long for a unix socket (at most {_SOCKET_PATH_LIMIT} bytes); "
            "set FLEET_DATA to a folder with a shorter path",
            details={"path": str(longest)},
        )
    return found


def render(
    settings: Settings,
    nodes: Sequence[Node],
    pools: Mapping[str, int],
    *,
    addresses: Mapping[str, str] | None = None,
    credentials: Callable[[str], str] | None = None,
    templates: Mapping[str, str] | None = None,
    ticket_key: bytes | None = None,
    certificates: EdgeCertificates | None = None,
    broker_secret: str | None = None,
) -> Rendered:
    """Return both configurations and the pool map.

    Args:
        settings: Ports, folders and limits.
        nodes: All nodes; those whose pool has no slot are left out.
        pools: Slot (from 1) by pool, see :func:`~comfy_fleet.adapters.haproxy.server_lines.pools_of`.
        addresses: Addresses by host name. A node is left out if its host, or its agent's, is missing here:
            HAProxy would refuse the whole file. None writes names unchanged.
        credentials: Decrypts the nodes' passwords; without it, three stars replace each.
        templates: From :func:`read_templates`; None reads them now.
        ticket_key: The key of editor tickets, which the edge checks; without it no file of an editor passes.
        certificates: From :func:`~comfy_fleet.adapters.haproxy.certificates.edge_certificates`; None reads
            them now.
        broker_secret: What the broker's ports ask for; without it they refuse everybody.

    Raises:
        BadInput: A name or an address that can't be in a configuration.
        ConfigError: A template is missing or wrong, a path can't be written into it, or a certificate can't
            be used.
    """
    places = files(settings)
    shown = edge_certificates(settings) if certificates is None else certificates
    found = read_templates(settings.haproxy_dir) if templates is None else templates
    env = _environment(tuple(sorted(found.items())))
    agent = (settings.agent_host, settings.agent_port)
    try:
        return Rendered(
            broker=env.get_template("broker.cfg.j2").render(
                _broker(settings, places, nodes, pools, addresses)
            ),
            edge=env.get_template("edge.cfg.j2").render(_edge(settings, places, ticket_key, shown)),
            pools="".join(
                f"{check_name('pool', pool)} {prefix_of(settings.namespace)}{backend_of(slot)}\n"
                for pool, slot in sorted(pools.items())
            ),
            vias="".join(
                f"{entry.name} {entry.via}\n"
                for entry in entries_of(nodes, pools, agent=agent, credentials=credentials)
                if entry.via
            ),
            no_editors="".join(f"{name} {no}\n" for name, no in no_editors_of(nodes).items()),
            certificates=shown.files,
            secrets="".join(f"{digest} {yes}\n" for digest, yes in secrets_of(broker_secret).items()),
        )
    except TemplateError as error:
        remedy = (
            "if the fleet was upgraded while it ran, restart it"
            if settings.haproxy is None
            else "unset FLEET_HAPROXY for the shipped templates"
        )
        raise ConfigError(
            f"template in {settings.haproxy_dir}: {type(error).__name__}: {error}; {remedy}"
        ) from error


@lru_cache(maxsize=2)
def _environment(templates: tuple[tuple[str, str], ...]) -> Environment:
    """Return what has compiled these templates: to do so takes many times as long as to fill them in."""
    env = Environment(
        loader=DictLoader(dict(templates)),
        autoescape=False,  # noqa: S701 - HTML escapes would break a configuration; names are checked instead
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["quoted"] = quoted
    env.filters["quoted_arg"] = quoted_arg
    env.filters["unix"] = "unix@{}".format
    return env


def secrets_of(broker_secret: str | None) -> dict[str, str]:
    """Return the map by which the broker knows a secret again."""
    return {secret_digest(broker_secret): "yes"} if broker_secret else {}


def read_templates(folder: Path) -> dict[str, str]:
    """Return the templates of a folder by file name.

    A process that keeps them uses templates that fit its code even after another version was installed.

    Raises:
        ConfigError: One can't be read.
    """
    try:
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.j2"))}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"templates in {folder} can't be read: {error}") from error


def _broker(
    settings: Settings,
    places: ConfigFiles,
    nodes: Sequence[Node],
    pools: Mapping[str, int],
    addresses: Mapping[str, str] | None,
) -> dict[str, Any]:
    names = {slot: pool for pool, slot in pools.items()}
    ca_file = ca_file_of(settings)
    rows = []
    for entry in entries_of(nodes, pools, agent=(settings.agent_host, settings.agent_port)):
        host, agent = entry.host, entry.agent_host
        if addresses is not None:
            if host not in addresses or agent not in addresses:
                continue
            host, agent = addresses[host], addresses[agent]
        rows.append(
            {
                "name": entry.name,
                "backend": entry.backend,
                "address": join(host, entry.port),
                "tls": tls_options(entry, ca_file, checked=False),
                "options": lease_options(entry, agent) + tls_options(entry, ca_file, checked=True),
            }
        )
    return {
        "prefix": prefix_of(settings.namespace),
        "namespace": settings.namespace,
        "default_namespace": settings.namespace == DEFAULT_NAMESPACE,
        "socket": str(places.broker_socket),
        "monitor": str(places.broker_monitor),
        "pools_map": str(places.pools),
        "nodes_map": str(places.vias),
        "no_editors_map": str(places.no_editors),
        "ca_file": ca_file,
        "lua": str((settings.haproxy_dir / "lease.lua").absolute()),
        "secrets_map": str(places.secrets),
        "lease_socket": str(settings.lease_socket),
        "direct_socket": str(settings.direct_socket),
        "lease_bind": settings.broker_bind and join(settings.broker_bind, settings.lease_port),
        "direct_bind": settings.broker_bind and join(settings.broker_bind, settings.direct_port),
        "editor": settings.editor,
        "editor_paths": editor_paths(settings),
        "nodes": rows,
        "slots": [
            {
                "backend": backend_of(slot),
                "pool": names.get(slot),
                "nodes": [row for row in rows if row["backend"] == backend_of(slot)],
            }
            for slot in range(1, settings.pool_slots + 1)
        ],
    }


def ca_file_of(settings: Settings) -> str:
    """Return the authorities for nodes' certificates, in the form for a server line."""
    return SYSTEM_CA if settings.node_ca_file is None else str(settings.node_ca_file.absolute())


def _edge(
    settings: Settings, places: ConfigFiles, ticket_key: bytes | None, shown: EdgeCertificates
) -> dict[str, Any]:
    if settings.console_port == settings.port:
        raise ConfigError(
            f"FLEET_CONSOLE_PORT and FLEET_PORT are both {settings.port}: the console needs a port of its own"
        )
    limit = settings.max_body_bytes
    large = f"The body is larger than {limit} bytes."
    many = (
        f"This address has more than {settings.connection_limit} connections open "
        "(FLEET_CONNECTION_LIMIT): use them again, or close some."
    )
    return {
        "prefix": prefix_of(settings.namespace),
        "namespace": settings.namespace,
        "default_namespace": settings.namespace == DEFAULT_NAMESPACE,
        "socket": str(places.edge_socket),
        "monitor": str(places.edge_monitor),
        "public_bind": join(settings.host, settings.port),
        "console_bind": join(settings.host, settings.console_port),
        "plain_bind": join(settings.host, settings.plain_port) if settings.plain_port else "",
        "certificates": {
            origin: str(places.folder / one.file_name) for origin, one in shown.by_origin.items()
        },
        "hsts_s": settings.hsts_s,
        "trusted_proxies": parse_networks(settings.trusted_proxies),
        "trusted_headers": settings.trusted_headers,
        "edge_word": edge_word(ticket_key) if ticket_key and settings.trusted_user_header else "",
        "cors_origins": settings.cors_page_origins,
        "cors_methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "cors_headers": _CORS_HEADERS,
        "cors_shown": _CORS_SHOWN,
        "allow_from": {
            "editor": parse_networks(settings.allow_from),
            "console": parse_networks(settings.console_allow_from or settings.allow_from),
        },
        "public_port": settings.port,
        "public_url": (settings.public_url or "").rstrip("/"),
        "api_address": join(settings.api_host, settings.api_port),
        "direct_socket": str(settings.direct_socket),
        "segment": SEGMENT,
        "editor_paths": editor_paths(settings),
        "ticket_key": b64encode(ticket_key).decode() if ticket_key and settings.editor else "",
        "editor_file_bytes": _EDITOR_FILE_BYTES,
        "editor_requests": _EDITOR_REQUESTS,
        "answer_timeout_s": _ANSWER_TIMEOUT_S,
        "max_body_bytes": limit,
        "max_upload_bytes": settings.max_upload_bytes,
        "small_body_bytes": _SMALL_BODY_BYTES,
        "api_requests": _REQUESTS * settings.max_requests,
        "waiting_requests": _REQUESTS * settings.max_requests + settings.max_waits,
        "rate_limit": settings.rate_limit,
        "connection_limit": settings.connection_limit,
        "errors": [
            {
                "status": status,
                "body": _begun(code, message) if status in _OF_UPSTREAM else envelope(code, message),
                "retry_after_s": retry_after_s,
                "of_upstream": status in _OF_UPSTREAM,
            }
            for status, code, message, retry_after_s in _ERRORS
        ],
        "not_found": envelope("not_found", NOTHING_HERE, WHERE_INSTEAD),
        "bad_workflow_name": envelope(
            "invalid_request",
            "A workflow's name has 1 to 63 of a-z 0-9 _ . - and starts with a letter or digit.",
            {"field": "workflow"},
        ),
        "bad_file_name": envelope(
            "invalid_request",
            "A file's name has no backslash and no null character, and none of its folders' names is empty.",
            {"field": "file"},
        ),
        "bad_request": envelope("invalid_request", "The request is not valid HTTP."),
        "bad_method": envelope("method_not_allowed", "This method is not possible here."),
        "too_large": envelope("payload_too_large", large),
        "upload_too_large": envelope(
            "payload_too_large", f"The upload is larger than {settings.max_upload_bytes} bytes."
        ),
        "not_allowed_from": envelope("address_not_allowed", "Clients at your address are not served here."),
        "two_users": envelope("invalid_request", "A header that says who asks came more than once."),
        "tls_required": envelope(
            "tls_required",
            "Ask with https: this port only sends browsers there. Whatever was sent here, a key, too, went "
            "over the network unencrypted.",
        ),
        "no_worker": envelope("forbidden", "No service worker can be registered here."),
        "node_away": envelope("node_away", "The editor's node does not answer: load the page again."),
        "node_strange": envelope("node_error", "The editor's node gave an answer that is not passed on."),
        "node_too_large": envelope(
            "node_error", f"The editor's node sent a file of more than {_EDITOR_FILE_BYTES} bytes."
        ),
        "rate_limited": envelope("rate_limited", _RATE_LIMITED),
        "too_many_connections": envelope("too_many_connections", many),
        "openai": {
            "too_large": _openai("payload_too_large", large, "invalid_request_error"),
            "rate_limited": _openai("rate_limit_exceeded", _RATE_LIMITED, "rate_limit_error"),
            "too_many_connections": _openai("too_many_connections", many, "rate_limit_error"),
        },
    }


def _openai(code: str, message: str, kind: str) -> str:
    """Return an error in the form of OpenAI's interface, as :func:`envelope` does."""
    text = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return text.replace("'", "\\u0027")


def _begun(code: str, message: str) -> str:
    """Return the beginning of an error for a word in HAProxy's format: what follows depends on who asks."""
    text = json.dumps({"error": {"code": code, "message": message}})
    return text.removesuffix("}}").replace("'", "\\u0027").replace("%", "%%")


def envelope(code: str, message: str, details: Mapping[str, Any] | None = None) -> str:
    """Return an error in the APIs' form, for a single-quoted word of the configuration."""
    text = json.dumps({"error": {"code": code, "message": message, "details": details}})
    return text.replace("'", "\\u0027")


def quoted(value: str) -> str:
    """Return a path or address as one double-quoted word of the configuration.

    Raises:
        ConfigError: It holds a control character.
    """
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise ConfigError(f"{value!r} contains a control character and can't be in a configuration")
    return '"' + re.sub(r'([\\"$])', r"\\\1", value) + '"'


def quoted_arg(value: str) -> str:
    """Return a path as the argument of a converter, where quotes don't protect commas and parentheses.

    Raises:
        ConfigError: It holds a character that ends an argument.
    """
    if re.search(r"[\x00-\x20\x7f'\"(),\\$#\[\]]", value):
        raise ConfigError(
            f"FLEET_DATA: {value!r} must not hold blanks, quotes, commas, brackets, $, # or backslashes, "
            "which HAProxy's configuration can't have there; name another folder, or --data DIR"
        )
    return value


def check_data(settings: Settings) -> None:
    """Refuse a data folder whose path can't be in HAProxy's configuration, before anything is started.

    Raises:
        ConfigError: It can't.
    """
    quoted_arg(str(settings.data.absolute()))
