"""Inventories, requirements and cards that were too small, in Redis (port ``InventoryStore``).

Equal nodes share one packed inventory under its content hash. Lists of uploaded files are left out, because
they change with every upload and no job requires them.
"""

import asyncio
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from blake3 import blake3

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import Complaints
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import NodeFault
from comfy_fleet.domain.graphs import object_info
from comfy_fleet.domain.graphs.file_access import Use
from comfy_fleet.domain.graphs.inputs import Growth, Inputs, InputSpec
from comfy_fleet.domain.graphs.inventory import ClassInfo, Inventory
from comfy_fleet.domain.nodes.eligibility import Requirements
from comfy_fleet.domain.nodes.node import Reading
from comfy_fleet.domain.records import UNREADABLE

FORMAT = "3-"
"""Prefix of the hash for the format of :func:`pack`; an earlier version's format has less in it."""
MAX_PACKED = 4 * 1024 * 1024
"""Most bytes of a packed inventory; a hundred node packs with thousands of models take less than one."""
MAX_WHY = 400
"""Longest reason, in characters, why a node can't be read."""
NEEDS_S = 30 * 86400
"""How long requirements outlive the last submit with them; without them, a node decides itself."""

_STEP_BYTES = 256 * 1024
_FLAGS = ("remote", "multiselect", "fillable")
_LIMITS = ("minimum", "maximum")
_CLASS_FLAGS = ("output_node", "keeps_graph", "shows_files", "pack", "api_node")


class RedisInventories:
    """Inventories by content hash, requirements by key, and cards that were too small."""

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._complaints = Complaints()

    async def claim(self, node: str, *, ttl_s: int) -> bool:
        """Return True if this process should ask the node now; no other process does so for that long."""
        return bool(await self._scripts.call("claim_reading", node=node, ttl_s=ttl_s))

    async def unclaim(self, node: str, *, why: str = "") -> None:
        """Let another process ask the node; ``why`` says why it could not be read."""
        await self._scripts.call("unclaim_reading", node=node, why=why[:MAX_WHY])

    async def save(self, node: str, inventory: Inventory, reading: Reading) -> str:
        """Store a node's inventory; return ``unknown`` (no such node), ``same`` or ``changed``."""
        digest, packed = await asyncio.to_thread(pack, inventory)
        fields: dict[str, str] = {
            "comfyui": reading.comfyui,
            "pytorch": reading.pytorch,
            "python": reading.python,
            "gpu": reading.gpu,
            "device": reading.device,
            "vram": str(reading.vram_bytes),
            "ram": str(reading.ram_bytes),
        }
        told, text = inventory.object_info, b""
        if told is not None and not await self._redis.exists(self._keys.object_info(told.digest)):
            text = told.packed  # for equal nodes, and for each reading after the first, it is stored already
        answer = await self._scripts.call(
            "save_inventory",
            packed,
            text,
            node=node,
            digest=digest,
            fields=fields,
            told=None if told is None else told.digest,
        )
        return str(answer.decode())

    async def load(self, digest: str) -> Inventory | None:
        """Return the inventory with this content hash; None if it is missing or can't be read."""
        if not digest.startswith(FORMAT):
            nodes = await self._redis.smembers(self._keys.inventory_nodes(digest))
            for node in nodes:
                await self._scripts.call("want_reading", node=node.decode())
            return None
        packed = await self._redis.get(self._keys.inventory(digest))
        try:
            return None if packed is None else await asyncio.to_thread(unpack, packed)
        except (*UNREADABLE, zlib.error) as error:
            self._complaints.about("inventory", digest, error)
            return None

    async def object_info(self, digest: str) -> Mapping[str, bytes] | None:
        """Return a node's own description of its classes; None if there is none that can be read."""
        packed = await self._redis.get(self._keys.object_info(digest))
        try:
            return None if packed is None else await asyncio.to_thread(object_info.unpack, packed)
        except (*UNREADABLE, zlib.error) as error:
            self._complaints.about("object_info", digest, error)
            return None

    async def keep_needs(self, needs: Requirements) -> None:
        """Store requirements under :attr:`Requirements.key`."""
        if needs.key:
            await self._redis.set(self._keys.needs(needs.key), orjson.dumps(needs.to_json()), ex=NEEDS_S)

    async def needs(self, key: str) -> Requirements | None:
        """Return the requirements of a key, or None if they are no longer stored."""
        raw = await self._redis.get(self._keys.needs(key))
        try:
            return None if raw is None else Requirements.from_json(orjson.loads(raw))
        except UNREADABLE as error:
            self._complaints.about("needs", key, error)
            return None

    async def note_oom(self, profile: str, size: int, *, ttl_s: int) -> int:
        """Remember that a profile ran out of memory with this many bytes; return the largest known."""
        return int(await self._scripts.call("note_oom", profile=profile, size=size, ttl_s=ttl_s))


def pack(inventory: Inventory) -> tuple[str, bytes]:
    """Return an inventory's content hash and its packed form, in which equal lists appear once.

    It is written and read class by class, because unpacked it takes many times as much memory.

    Raises:
        NodeFault: Even packed, it is larger than any real node's.
    """
    packed = _Packed()
    lists: dict[bytes, int] = {}
    for name, info in sorted(inventory.classes.items()):
        packed.write([name, _class(info, lists, packed)])
    return FORMAT + packed.digest(), packed.end()


def unpack(packed: bytes) -> Inventory:
    """Read :func:`pack` back."""
    lists: list[tuple[Any, ...]] = []
    classes: dict[str, ClassInfo] = {}
    for line in _lines(packed):
        entry = orjson.loads(line)
        if isinstance(entry, dict):
            lists.append(tuple(entry["list"]))
        else:
            name, raw = entry
            classes[name] = _class_of(name, raw, lists)
    return Inventory(classes=classes)


class _Packed:
    """Lines of JSON, packed and hashed one by one. Equal inventories make equal lines."""

    def __init__(self) -> None:
        self._hash = blake3()
        self._packer = zlib.compressobj(3)
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, entry: Any) -> None:
        line = orjson.dumps(entry, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
        self._hash.update(line)
        self._add(self._packer.compress(line))

    def digest(self) -> str:
        return self._hash.hexdigest(16)

    def end(self) -> bytes:
        self._add(self._packer.flush())
        return b"".join(self._parts)

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_PACKED:
            raise NodeFault(
                f"/object_info is too large: packed it takes more than {MAX_PACKED // 2**20} MiB",
                details={"limit": "packed", "bytes": MAX_PACKED},
            )
        self._parts.append(part)


def _lines(packed: bytes) -> Iterator[bytes]:
    unpacker = zlib.decompressobj()
    rest = b""
    while not unpacker.eof:
        part = unpacker.decompress(packed, _STEP_BYTES)
        packed = unpacker.unconsumed_tail
        if not part and not unpacker.eof:
            raise zlib.error("it ends too early")
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
    if rest:
        raise ValueError("its last line has no end")


def _class(info: ClassInfo, lists: dict[bytes, int], packed: _Packed) -> dict[str, Any]:
    raw: dict[str, Any] = {"outputs": list(info.outputs)} if info.outputs else {}
    raw |= {flag: True for flag in _CLASS_FLAGS if getattr(info, flag)}
    if info.files:
        raw["files"] = dict(info.files)
    if info.replaced_by:
        raw["replaced_by"] = info.replaced_by
    if info.checks:
        raw["checks"] = sorted(info.checks)
    return {**raw, **_inputs(info, lists, packed)}


def _inputs(inputs: Inputs, lists: dict[bytes, int], packed: _Packed) -> dict[str, Any]:
    groups = {"required": inputs.required, "optional": inputs.optional}
    return {
        group: {name: _spec(spec, lists, packed) for name, spec in sorted(specs.items())}
        for group, specs in groups.items()
        if specs
    }


def _spec(spec: InputSpec, lists: dict[bytes, int], packed: _Packed) -> dict[str, Any]:
    raw: dict[str, Any] = {"type": spec.type}
    for field in _LIMITS:
        if (value := getattr(spec, field)) is not None:
            raw[field] = value
    if spec.upload:
        return {**raw, "upload": True}
    raw |= {flag: True for flag in _FLAGS if getattr(spec, flag)}
    if spec.options is not None:
        raw["options"] = _list(spec.options, lists, packed)
    if spec.branches is not None:
        branches = sorted(spec.branches.items())
        raw["branches"] = {key: _inputs(inner, lists, packed) for key, inner in branches}
    if spec.slot is not None:
        raw["slot"] = _inputs(spec.slot, lists, packed)
    if spec.growth is not None:
        grown = spec.growth
        raw["growth"] = {
            "names": grown.names,
            "least": grown.least,
            "spec": _spec(grown.spec, lists, packed),
        }
    return raw


def _list(options: tuple[Any, ...], lists: dict[bytes, int], packed: _Packed) -> int:
    """Return the number of a list; the list is written at its first use."""
    entry = {"list": list(options)}
    key = blake3(orjson.dumps(entry, option=orjson.OPT_SORT_KEYS)).digest()
    if key not in lists:
        packed.write(entry)
        lists[key] = len(lists)
    return lists[key]


def _class_of(name: str, raw: Mapping[str, Any], lists: list[tuple[Any, ...]]) -> ClassInfo:
    inputs = _inputs_of(raw, lists)
    return ClassInfo(
        name=name,
        outputs=tuple(raw.get("outputs", ())),
        files={input_: Use(use) for input_, use in raw.get("files", {}).items()},
        replaced_by=raw.get("replaced_by", ""),
        checks=frozenset(raw.get("checks", ())),
        **{flag: raw.get(flag, False) for flag in _CLASS_FLAGS},
        required=inputs.required,
        optional=inputs.optional,
    )


def _inputs_of(raw: Mapping[str, Any], lists: list[tuple[Any, ...]]) -> Inputs:
    required, optional = (
        {name: _spec_of(spec, lists) for name, spec in raw.get(group, {}).items()}
        for group in ("required", "optional")
    )
    return Inputs(required=required, optional=optional)


def _spec_of(raw: Mapping[str, Any], lists: list[tuple[Any, ...]]) -> InputSpec:
    branches, slot, grown = raw.get("branches"), raw.get("slot"), raw.get("growth")
    return InputSpec(
        type=raw["type"],
        upload=raw.get("upload", False),
        options=lists[raw["options"]] if "options" in raw else None,
        branches=None
        if branches is None
        else {key: _inputs_of(inner, lists) for key, inner in branches.items()},
        slot=None if slot is None else _inputs_of(slot, lists),
        growth=None
        if grown is None
        else Growth(names=tuple(grown["names"]), least=grown["least"], spec=_spec_of(grown["spec"], lists)),
        **{field: raw[field] for field in (*_LIMITS, *_FLAGS) if field in raw},
    )
