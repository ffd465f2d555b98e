"""A node's answer to ``GET /object_info``, packed unchanged.

An inventory keeps what decides whether a node can run a graph. Tooltips, display names, categories and all
the rest are for people and for ComfyUI's own clients, and stand here. Two things are left out, because they
belong to other clients and change with every job: lists of uploaded files name none, and no list names what a
job has staged.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.graphs.inputs import Inputs, InputSpec

FORMAT = "1-"
"""Prefix of the content hash for :class:`Packer`'s format."""
MAX_PACKED = 4 * 1024 * 1024
"""Most bytes of one packed answer. ComfyUI 0.33 with 886 classes takes 70 kB."""

_NO_FILE = "none"
"""The choice of no file, which ComfyUI 0.33 lists among 3D files."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An answer.

    Attributes:
        digest: Its content hash, which does not depend on the order of the classes.
        packed: The classes; :func:`unpack` reads them.
    """

    digest: str
    packed: bytes


class Packer:
    """Packs an answer class by class."""

    def __init__(self) -> None:
        self._hashes: dict[str, bytes] = {}
        self._packer = zlib.compressobj(3)
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, name: str, body: Mapping[str, Any], inputs: Inputs) -> None:
        """Add one class; one that can't be read, or written again, is left out.

        Args:
            name: Its name.
            body: The node's description of it.
            inputs: Its inputs, as they were read.
        """
        if self._size > MAX_PACKED:
            return
        try:
            line = f"{json.dumps(name)}\t{_ENCODER.encode(_cleaned(body, inputs))}\n".encode()
        except Exception:  # noqa: BLE001 - one odd class must not cost the node all others
            return
        self._hashes[name] = hashlib.blake2b(line, digest_size=16).digest()
        self._put(self._packer.compress(line))

    def end(self) -> ObjectInfo | None:
        """Return the whole answer; None if it is larger than :data:`MAX_PACKED`."""
        self._put(self._packer.flush())
        if self._size > MAX_PACKED:
            return None
        whole = hashlib.blake2b(digest_size=16)
        for _, one in sorted(self._hashes.items()):
            whole.update(one)
        return ObjectInfo(digest=FORMAT + whole.hexdigest(), packed=b"".join(self._parts))

    def _put(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_PACKED:
            self._parts.clear()
        else:
            self._parts.append(part)


def unpack(packed: bytes) -> dict[str, bytes]:
    """Return a node's description of each class, as JSON.

    Raises:
        ValueError: Something else was packed.
        zlib.error: It is broken.
    """
    lines = (line.partition(b"\t") for line in zlib.decompress(packed).split(b"\n") if line)
    return {json.loads(name.decode()): body for name, _, body in lines}


def _cleaned(body: Mapping[str, Any], inputs: Inputs) -> Mapping[str, Any]:
    given = body.get("input")
    if not isinstance(given, Mapping):
        return body
    if not any(inputs) and (given.get("required") or given.get("optional")):
        raise ValueError("its inputs can't be read")
    return {**body, "input": _inputs(given, inputs)}


def _inputs(group: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """Return ``{"required": {...}, "optional": {...}}`` without users' own files."""
    result = dict(group)
    for part, specs in (("required", inputs.required), ("optional", inputs.optional)):
        given = group.get(part)
        if specs and isinstance(given, Mapping):
            result[part] = {
                name: _declared(declared, specs[name]) if name in specs else declared
                for name, declared in given.items()
            }
    return result


def _declared(declared: list[Any], spec: InputSpec) -> list[Any]:
    """Return a class's declaration of one input that was read as ``spec``."""
    kind, *more = declared
    if spec.options is not None and isinstance(kind, list):
        return [_options(kind, spec), *more]
    if not more or not isinstance(more[0], Mapping):
        return declared
    extra = dict(more[0])
    if spec.options is not None:
        extra["options"] = _options(extra["options"], spec)
    elif spec.branches is not None:
        extra["options"] = [
            {**option, "inputs": _inputs(option["inputs"], spec.branches[str(option.get("key"))])}
            for option in extra["options"]
        ]
    elif spec.slot is not None:
        extra["inputs"] = _inputs(extra["inputs"], spec.slot)
    elif spec.growth is not None and spec.growth.spec.options is not None:
        extra["template"] = _template(extra["template"], spec.growth.spec)
    else:
        return declared
    return [kind, extra, *more[1:]]


def _options(listed: list[Any], spec: InputSpec) -> list[Any]:
    if spec.upload:
        return [option for option in listed if option == _NO_FILE]
    return listed if len(listed) == len(spec.options or ()) else list(spec.options or ())


def _template(template: Mapping[str, Any], spec: InputSpec) -> dict[str, Any]:
    """Return the template of a growing row, which has its one kind of input."""
    kinds = {
        part: {
            name: _declared(declared, spec) if isinstance(declared, list) and declared else declared
            for name, declared in given.items()
        }
        if isinstance(given, Mapping)
        else given
        for part, given in template["input"].items()
    }
    return {**template, "input": kinds}
