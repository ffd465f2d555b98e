"""The checks of ``fleet doctor``. Every check returns a finding; none raises."""

import asyncio
import contextlib
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from comfy_fleet.adapters.haproxy import build
from comfy_fleet.adapters.haproxy.certificates import SOON_S, Certificate, edge_certificates, expiry_words
from comfy_fleet.adapters.system.disk import FULL, Disk
from comfy_fleet.adapters.system.folders import open_to_others
from comfy_fleet.adapters.system.redis_program import program
from comfy_fleet.adapters.system.secret_box import SecretBox
from comfy_fleet.api.auth import Keys
from comfy_fleet.bootstrap import open_keys_file
from comfy_fleet.cli import doctor_fleet
from comfy_fleet.cli.exits import Fail
from comfy_fleet.cli.gpus import Gpu, Gpus, Nvml, probe
from comfy_fleet.cli.up import ports, public_port
from comfy_fleet.cli.up.lock import held
from comfy_fleet.cli.up.programs import INSTALL_HAPROXY, OLDEST_REDIS, find_haproxy, masked
from comfy_fleet.domain.disk_room import size_text
from comfy_fleet.domain.errors import FleetError, NoRoom, StoreDown
from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE
from comfy_fleet.domain.store_memory import NEARLY_FULL
from comfy_fleet.settings import Settings

OLDEST_PYTHON = (3, 11)
STRICT_HAPROXY = (3, 2)  # from this version on, maxconn is strict even with several threads
FILES_PER_NODE = 8  # descriptors of dispatcher and broker for one leased node, generously
ENOUGH_FILES = 4096
LOW_DISK_BYTES = 2 * 10**9
_MAKE_ROOM = "make room, or shorten FLEET_RETENTION_S"


class Severity(StrEnum):
    """The severity of a finding."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        check: What was checked.
        verdict: Its severity.
        found: What was found.
        do: Advice; empty if there is nothing to do.
    """

    check: str
    verdict: Severity
    found: str
    do: str = ""


def _ok(check: str, found: str) -> Finding:
    return Finding(check=check, verdict=Severity.OK, found=found)


def _warn(check: str, found: str, do: str) -> Finding:
    return Finding(check=check, verdict=Severity.WARN, found=found, do=do)


def _fail(check: str, found: str, do: str = "") -> Finding:
    return Finding(check=check, verdict=Severity.FAIL, found=found, do=do)


def examine(settings: Settings) -> list[Finding]:
    """Return all findings, in the order in which a person would look."""
    looks: Sequence[tuple[str, Callable[[], list[Finding]]]] = (
        ("Python", lambda: [python()]),
        ("HAProxy", lambda: haproxy(settings.haproxy_bin)),
        ("Redis program", lambda: [redis_program()]),
        ("Redis server", lambda: redis_server(settings, asked="FLEET_REDIS_URL" in os.environ)),
        ("NVML", lambda: [nvml(probe())]),
        ("Ports", lambda: port_findings(settings)),
        ("Data folder", lambda: data_folder(settings)),
        ("Keys", lambda: [keys(settings)]),
        ("Secret key", lambda: secret_key(settings)),
        ("Certificate", lambda: certificates(settings)),
        ("Open files", lambda: [open_files(resource.getrlimit(resource.RLIMIT_NOFILE))]),
        ("Workflows", lambda: workflows(settings)),
        ("HAProxy files", lambda: [templates(settings)]),
        (doctor_fleet.CHECK, lambda: running_fleet(settings)),
        (doctor_fleet.STORES, lambda: named_stores(settings)),
    )
    findings = []
    for check, look in looks:
        try:
            findings += look()
        except Exception as error:  # noqa: BLE001 - a check that breaks is a finding, too
            findings.append(_fail(check, f"{type(error).__name__}: {error}"))
    return findings


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Check Python's version."""
    words = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        return _fail(
            "Python",
            f"{words} is too old",
            "install Python 3.11 or newer and make the virtual environment again",
        )
    return _ok("Python", f"{words} at {sys.executable}")


def haproxy(name: str) -> list[Finding]:
    """Check HAProxy's version and how it was built."""
    try:
        path = find_haproxy(name)
    except Fail as error:
        return [_fail("HAProxy", error.message, f"as root: {INSTALL_HAPROXY}")]
    try:
        return haproxy_build(build.look(path), path)
    except FleetError as error:
        return [_fail("HAProxy", str(error))]


def haproxy_build(made: build.Build, path: str) -> list[Finding]:
    """Judge what ``haproxy -vv`` says."""
    strict = made.version[:2] >= STRICT_HAPROXY
    threads = "" if strict else "; the broker uses one thread (it must, before 3.2)"
    faults = made.faults()
    if (first := faults.get("HAProxy")) is not None:
        return [_fail("HAProxy", f"{path}: {first[0]}", first[1])]
    fine = {
        "HAProxy": f"{made.words} at {path}{threads}",
        "HAProxy Lua": "built in",
        "HAProxy metrics": "Prometheus exporter built in",
    }
    return [
        _fail(check, faults[check][0], faults[check][1]) if check in faults else _ok(check, found)
        for check, found in fine.items()
    ]


def redis_program() -> Finding:
    """Check whether ``fleet up`` could run a Redis of its own."""
    try:
        path = program()
    except FleetError as error:
        return _warn(
            "Redis program",
            "no redis-server or valkey-server here",
            str(error).partition(": ")[2] + "; or use a server elsewhere: --redis URL",
        )
    output = subprocess.run(
        [path, "--version"], capture_output=True, text=True, timeout=10, check=False
    ).stdout
    version = version_in(output, r"v=(\d+)\.(\d+)\.(\d+)")
    place = "in this virtual environment" if Path(path).is_relative_to(sys.prefix) else f"at {path}"
    words = f"{'.'.join(map(str, version))} {place}" if version else path
    if version and version < OLDEST_REDIS:
        return _fail("Redis program", f"{words} is too old", "install Redis 6.2 or newer, or Valkey")
    return _ok("Redis program", words)


def redis_server(settings: Settings, *, asked: bool) -> list[Finding]:
    """Check the Redis that the settings name: version, append-only file, eviction.

    Args:
        settings: The settings.
        asked: Whether the operator named it; else it matters only if it is there.
    """
    place = masked(settings.redis_url)
    if settings.namespace != DEFAULT_NAMESPACE:
        place += f" (namespace {settings.namespace})"
    try:
        info = asyncio.run(_redis_info(settings.redis_url))
    except StoreDown as error:
        if asked:
            return [
                _fail(
                    "Redis server",
                    f"{place}: {error}",
                    "start it, or correct FLEET_REDIS_URL",
                )
            ]
        return [
            _ok("Redis server", f"none at {place}: `fleet up` runs its own, with the append-only file on")
        ]
    found = [*redis_state(info, place), *redis_replicas(info, settings)]
    return found if asked else _unused(found)


def _unused(found: Sequence[Finding]) -> list[Finding]:
    """Return findings about a Redis that happens to be there, such as the one that Debian starts."""
    first, *others = (
        replace(one, verdict=Severity.WARN) if one.verdict is Severity.FAIL else one for one in found
    )
    return [replace(first, found=f"{first.found}; `fleet up` uses it only with --redis URL"), *others]


async def _redis_info(url: str) -> dict[str, Any]:
    from comfy_fleet.adapters.redis.client import connect_once

    async with connect_once(url) as client:
        info: dict[Any, Any] = dict(await client.info())
        with contextlib.suppress(StoreDown):  # a hosted Redis may not report it
            info |= await client.config_get("appendfsync")
    return {str(name): value if isinstance(value, dict) else str(value) for name, value in info.items()}


def redis_replicas(info: dict[str, Any], settings: Settings) -> list[Finding]:
    """Judge the replicas that ``INFO`` lists, if a setting asks for some."""
    if info.get("role") == "slave":
        host = f"{info.get('master_host')}:{info.get('master_port')}"
        return [
            _fail(
                "Redis replicas",
                f"this is a replica of {host}: it takes nothing",
                "name the primary in FLEET_REDIS_URL; after its failure, make this one the primary: "
                "docs/howto/two-boxes.md",
            )
        ]
    if not settings.redis_replicas:
        return []
    found = [info[name] for name in info if re.fullmatch(r"slave\d+", name)]
    written = int(info.get("master_repl_offset") or 0)
    shown = [
        f"{one.get('ip')}:{one.get('port')} is {one.get('state')}, "
        f"{max(0, written - int(one.get('offset', 0)))} bytes behind, last heard of {one.get('lag')} s ago"
        for one in found
    ]
    online = sum(one.get("state") == "online" for one in found)
    words = "; ".join(shown) or "none is connected"
    if online >= settings.redis_replicas:
        return [_ok("Redis replicas", words)]
    refuses = settings.redis_replicas_missing == "refuse"
    return [
        (_fail if refuses else _warn)(
            "Redis replicas",
            f"{online} of {settings.redis_replicas} online ({words}): "
            + ("submits are answered 503" if refuses else "a failover now would lose jobs"),
            "start the replica with REPLICAOF, or lower FLEET_REDIS_REPLICAS",
        )
    ]


def redis_state(info: dict[str, Any], place: str) -> list[Finding]:
    """Judge what ``INFO`` and ``CONFIG GET appendfsync`` say."""
    kind = "Valkey" if "valkey_version" in info else "Redis"
    shown = info.get("valkey_version") or info.get("redis_version", "?")
    version = version_in(info.get("redis_version", ""), r"(\d+)\.(\d+)\.(\d+)")
    findings = [_ok("Redis server", f"{kind} {shown} at {place}")]
    if version is None or version < OLDEST_REDIS:
        findings = [
            _fail(
                "Redis server",
                f"{kind} {shown} at {place} is too old",
                "upgrade to Redis 6.2 or newer, or Valkey",
            )
        ]
    risk, setting = "", ""
    if info.get("aof_enabled") != "1":
        risk, setting = "the append-only file is off:", "appendonly yes"
    elif info.get("appendfsync") == "everysec":
        risk, setting = "appendfsync is everysec: while the disk is slow", "appendfsync always"
    if risk:
        findings.append(
            _warn(
                "Redis AOF",
                f"{risk} a crash of Redis loses accepted jobs",
                f"CONFIG SET {setting}, and the same in redis.conf",
            )
        )
    else:
        findings.append(_ok("Redis AOF", "the append-only file is on"))
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        findings.append(
            _fail(
                "Redis eviction",
                f"maxmemory-policy is {policy}: Redis may throw jobs away",
                "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
            )
        )
    most, used = int(info.get("maxmemory") or 0), int(info.get("used_memory") or 0)
    if most and used > NEARLY_FULL * most:
        findings.append(
            _warn(
                "Redis memory",
                f"{used / most:.0%} of maxmemory is used: a full Redis takes no new jobs",
                "raise maxmemory, or set none (docs/howto/sizing.md)",
            )
        )
    return findings


def nvml(gpus: Gpus) -> Finding:
    """Judge what NVML says."""
    if gpus.why is Nvml.OK:
        lost = any(gpu.lost for gpu in gpus.gpus)
        return Finding(
            check="NVML",
            verdict=Severity.WARN if lost else Severity.OK,
            found=f"driver {gpus.driver}: {'; '.join(map(_gpu, gpus.gpus))}",
            do=Nvml.LOST_DEVICE.what_to_do if lost else "",
        )
    fine = gpus.why in (Nvml.NO_LIBRARY, Nvml.NO_DEVICE)
    # A machine without NVIDIA GPUs is no fault: its nodes report their memory over HTTP.
    return Finding(
        check="NVML",
        verdict=Severity.OK if gpus.why is Nvml.NO_LIBRARY else Severity.WARN,
        found=gpus.why + (f" ({gpus.error})" if gpus.error and not fine else ""),
        do=gpus.why.what_to_do,
    )


def _gpu(gpu: Gpu) -> str:
    if gpu.lost:
        return f"GPU {gpu.index} is lost"
    size = f", {gpu.memory.total / 2**30:.0f} GiB" if gpu.memory else ""
    parts = f", {len(gpu.instances)} MIG instances" if gpu.mig else ""
    return f"{gpu.name}{size}{parts}"


def port_findings(settings: Settings) -> list[Finding]:
    """Check whether the public port is free, unless this very fleet runs on it."""
    if held(settings.data):
        return [_ok("Port", f"a fleet runs on {settings.data} now")]
    if ports.is_free(settings.port, settings.host):
        return [_ok("Port", f"{settings.port} is free, the others are drawn")]
    if why := ports.unusable(settings.host):
        return [
            _fail(
                "Port",
                f"address {settings.host} can't be used: {why}",
                "set FLEET_HOST to an address of this machine; 0.0.0.0 for all",
            )
        ]
    free = public_port.next_free(settings.port, settings.host)
    named = "FLEET_PORT" in os.environ
    return [
        _warn(
            "Port",
            f"{settings.port} is taken by {ports.held_by(settings.port)}",
            f"use another: fleet up --port {free}"
            if named
            else f"nothing: fleet up takes {free} instead, or what --port N names",
        )
    ]


def data_folder(settings: Settings) -> list[Finding]:
    """Check whether the data folder can be written, and has room."""
    data = settings.data
    existing = next(folder for folder in (data, *data.parents) if folder.exists())
    disk = Disk(existing, floor_bytes=settings.disk_floor_bytes, shown=str(data))
    try:
        disk.probe()
        room = disk.room()
    except NoRoom as error:
        full = not isinstance(error.__cause__, OSError) or error.__cause__.errno in FULL
        return [
            _fail(
                "Data folder",
                f"{error.message}; submits and uploads are refused" if full else error.message,
                _MAKE_ROOM if full else "name another folder: --data DIR, or FLEET_DATA",
            )
        ]
    left = size_text(room.free_bytes)
    if room.free_bytes < max(LOW_DISK_BYTES, 2 * room.floor_bytes):
        return [
            _warn(
                "Data folder",
                f"{data} has {left} left; below {size_text(room.floor_bytes)} submits are refused",
                _MAKE_ROOM,
            )
        ]
    if mode := open_to_others(data):
        return [
            _warn(
                "Data folder",
                f"{data} has mode {mode}: other users of this machine may look into it",
                f"chmod 700 {shlex.quote(str(data))}",
            )
        ]
    return [_ok("Data folder", f"{data}, {left} free")]


def keys(settings: Settings) -> Finding:
    """Check who may ask the fleet."""
    try:
        owners = Keys.load(settings, open_keys_file(settings)).owners
    except FleetError as error:
        return _fail("Keys", error.message)
    if settings.keys_file is None:
        if settings.require_keys:
            return _ok("Keys", "everybody needs one; `fleet key ls` lists them")
        if doctor_fleet.asks_for_keys(settings):
            return _ok("Keys", "the running fleet wants one, as it was told when it started; `fleet key ls`")
        return _ok("Keys", "none: anybody on this machine may use the fleet")
    return _ok("Keys", f"{', '.join(owners)} in {settings.keys_file}: others are refused")


def secret_key(settings: Settings) -> list[Finding]:
    """Check the key that encrypts secrets at rest, if it has been made."""
    path = settings.secret_key_file
    if not path.exists():
        return []
    try:
        SecretBox.open(path)
    except FleetError as error:
        return [_fail("Secret key", error.message)]
    return [_ok("Secret key", f"{path}, for the fleet's user alone")]


def certificates(settings: Settings) -> list[Finding]:
    """Check the certificates of the public port and the console."""
    if not settings.tls:
        return []
    try:
        shown = edge_certificates(settings)
    except FleetError as error:
        return [
            _fail(
                "Certificate", error.message, "mend the file, or make one for a try: fleet cert self-signed"
            )
        ]
    one = shown.editor == shown.console
    return [
        certificate(origin, found, time.time())
        for origin, found in shown.by_origin.items()
        if not one or origin == "editor"
    ]


def certificate(origin: str, found: Certificate, now: float) -> Finding:
    """Judge how long a certificate is good."""
    check = "Certificate" if origin == "editor" else "Console's certificate"
    words = f"{', '.join(found.names) or 'no name'}: {expiry_words(found.expires_at, now=now)}"
    renew = f"renew {found.path}; the running edge takes it within seconds"
    if found.expires_at <= now:
        return _fail(check, words, renew)
    return _warn(check, words, renew) if found.expires_at - now <= SOON_S else _ok(check, words)


def open_files(limits: tuple[int, int]) -> Finding:
    """Judge how many files and sockets a process may have open."""
    soft, hard = limits
    if soft == resource.RLIM_INFINITY or soft >= ENOUGH_FILES:
        return _ok("Open files", f"{soft} allowed")
    return _warn(
        "Open files",
        f"{soft} allowed: enough for about {soft // FILES_PER_NODE} nodes",
        f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}; in systemd LimitNOFILE=65536",
    )


def workflows(settings: Settings) -> list[Finding]:
    """Check every stored workflow."""
    from comfy_fleet.adapters.workflows.catalog import WorkflowCatalog

    folder = settings.workflows_dir
    if not folder.is_dir():
        return [
            _fail(
                "Workflows",
                f"{folder} does not exist",
                "set FLEET_WORKFLOWS to a folder, or unset it for the shipped ones",
            )
        ]
    catalog = WorkflowCatalog(folder)
    good, broken = catalog.names(), catalog.errors()
    findings = [
        _fail("Workflow", f"{name}: {error}", f"correct {folder / name}, or remove it")
        for name, error in broken.items()
    ]
    if good or not broken:
        findings.insert(
            0,
            Finding(
                check="Workflows",
                verdict=Severity.OK if good else Severity.WARN,
                found=f"{len(good)} in {folder}: {', '.join(good) or 'none'}",
                do="" if good else "put one into NAME/workflow.json",
            ),
        )
    for usual in ("default_workflow", "generate_workflow"):
        reference = getattr(settings, usual)
        name = reference.partition("@")[0]
        if name not in good and usual in settings.model_fields_set:
            findings.append(
                _warn(
                    "Workflow",
                    f"FLEET_{usual.upper()} names {reference}, which {folder} does not have",
                    f"unless it was published (fleet workflow show {reference}), name one that is there, or "
                    f"put it into {folder / name}",
                )
            )
    return findings


def templates(settings: Settings) -> Finding:
    """Check whether HAProxy accepts what the templates make of an empty registry."""
    from comfy_fleet.adapters.haproxy.config_render import render

    rendered = render(settings, [], {})
    lines = rendered.broker.count("\n") + rendered.edge.count("\n")
    return _ok("HAProxy files", f"{settings.haproxy_dir} renders ({lines} lines)")


def running_fleet(settings: Settings) -> list[Finding]:
    """Ask the fleet that runs on the data folder, if one does, what its operator should know."""
    return [_warn(doctor_fleet.CHECK, note, do) for note, do in doctor_fleet.notes(settings)]


def named_stores(settings: Settings) -> list[Finding]:
    """Try each store of the fleet that runs on the data folder."""
    count, faults = doctor_fleet.store_faults(settings)
    if count and not faults:
        return [_ok(doctor_fleet.STORES, f"{count} take objects, and give them back")]
    return [_fail(doctor_fleet.STORES, found, do) for found, do in faults]


def version_in(text: str, pattern: str) -> tuple[int, ...] | None:
    """Return the version that a pattern's groups find, or None."""
    found = re.search(pattern, text)
    return tuple(int(part) for part in found.groups() if part is not None) if found else None
