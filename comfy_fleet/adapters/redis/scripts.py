"""The Lua scripts: one file for each call, and a prelude with shared functions.

A script's named arguments are in the table ``args``, sent as JSON: numbers, texts, lists and objects of them;
missing ones are nil. Bytes and large texts follow as ARGV[2], ARGV[3] ..., because Lua's JSON has no bytes,
and parsing costs the server time. A script's first lines describe its answer.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.domain.errors import ConfigError, Outdated, StoreDown

logger = logging.getLogger(__name__)

SCHEMA = 4
"""The layout of the data in Redis. A change that an older version would misread or undo raises it; a new
field in a record does not. ``schema.lua`` converts older data. Layouts so far: docs/adr/0022."""

_PRELUDE = (
    "rehearsal",
    "basics",
    "ready",
    "schedule",
    "schedule_shares",
    "schedule_holders",
    "schedule_backlog",
    "schedule_nodes",
    "schedule_rules",
    "schedule_gather",
    "schedule_heads",
    "schedule_choose",
    "schedule_ends",
    "schedule_standing",
    "bounds",
    "rq",
    "inbox",
    "batches",
    "lists",
    "quotas",
    "batch_room",
    "queues",
    "merges",
    "failover",
    "staged",
    "editors",
    "nodes",
    "starts",
    "assets",
    "outputs",
    "kept",
    "results",
    "webhooks",
    "batch_ends",
    "transfers",
    "flights",
    "usage",
    "ends",
    "fetches",
    "cancels",
    "submits",
    "workflows",
    "userdata",
)
"""Files of shared functions, which use only those before them."""
_NAMES = re.compile(r"\w+")
_DEFINED = re.compile(r"^local (?:function )?([\w, ]+)", re.MULTILINE)
_COMMENT = re.compile(r"--.*")


@cache
def source(name: str, namespace: str, schema: int = SCHEMA) -> str:
    """Return the text of a script in the form that Redis gets."""
    return whole(texts()[name], namespace, schema)


@cache
def texts() -> Mapping[str, str]:
    """Return all files with scripts, by name, as they were when a process began to use them.

    Read one by one, as they are needed, they could be those of the next version, whose arguments this one
    does not know: an update replaces them while processes run.
    """
    folder = files("comfy_fleet.adapters.redis") / "lua"
    found = {path.name: path for path in folder.iterdir()}
    prelude = {f"prelude/{path.name}": path for path in found.pop("prelude").iterdir()}
    return {
        name.removesuffix(".lua"): path.read_text()
        for name, path in {**found, **prelude}.items()
        if name.endswith(".lua")
    }


def whole(body: str, namespace: str, schema: int = SCHEMA) -> str:
    """Return a script, preceded by the parts of the prelude that it uses.

    Redis runs the whole text at each call: unused parts would cost as much as used ones.
    """
    of_body = _names(body)
    used, taken = set(of_body), [body]
    for name in reversed(_PRELUDE):  # a part uses only parts before it
        needed: list[str] = []
        for part in reversed(texts()[f"prelude/{name}"].split("\n\n")):
            if not used.isdisjoint(_offered(part)):
                used |= _names(part)
                needed.insert(0, part)
        if needed:
            taken.append(_enclosed("\n".join(needed), _private(name) - of_body))
    text = Keyspace(namespace).lua("\n".join(reversed(taken)))
    return f"local SCHEMA = {schema}\n{text}"


def _enclosed(text: str, private: frozenset[str]) -> str:
    """Return parts of one file, with what no other uses in a block: Lua has room for 200 names at once."""
    shared = [name for name in _defined(text) if name not in private]
    if len(shared) == len(_defined(text)):
        return text

    def declared(found: re.Match[str]) -> str:
        if private.issuperset(_defined(found.group())):
            return found.group()
        return found.group().removeprefix("local ")

    block = f"do\n{_DEFINED.sub(declared, text)}\nend"
    return f"local {', '.join(shared)}\n{block}" if shared else block


@cache
def _private(name: str) -> frozenset[str]:
    """Return the names that a file of the prelude defines, and no other file or script uses."""
    lines = map(_names, _DEFINED.findall(texts()[f"prelude/{name}"]))
    users = _users()
    return frozenset().union(*(names for names in lines if all(users[one] == 1 for one in names)))


@cache
def _users() -> Counter[str]:
    """Return in how many files each name stands."""
    return Counter(name for text in texts().values() for name in _names(text))


@cache
def _offered(part: str) -> frozenset[str]:
    """Return the names for which a script needs this part."""
    return frozenset(_defined(part)) - {"redis"}  # every part uses what rehearsal.lua calls `redis`


def _defined(text: str) -> list[str]:
    return [name for line in _DEFINED.findall(text) for name in _NAMES.findall(line)]


@cache
def _names(text: str) -> frozenset[str]:
    return frozenset(_NAMES.findall(_COMMENT.sub("", text)))


class Scripts:
    """Calls scripts by name on one client. Keys are built inside: for one Redis, not for a cluster.

    Args:
        redis: The client.
        schema: The layout that the scripts know.
    """

    def __init__(self, redis: FleetRedis, *, schema: int = SCHEMA) -> None:
        texts()
        self._redis = redis
        self._schema = schema

    async def call(self, script: str, /, *blobs: str | bytes, **args: Any) -> Any:
        """Run ``SCRIPT.lua``.

        Args:
            script: Its name.
            blobs: Bytes and large texts: ARGV[2], ARGV[3] ...
            args: Its arguments; whole numbers must be below 2**53; those that are None are left out.

        Raises:
            StoreDown: No answer, after the client's own tries.
        """
        named = orjson.dumps({name: value for name, value in args.items() if value is not None})
        text = source(script, self._redis.keyspace.namespace, self._schema)
        return await self._redis.run_script(text, named, *blobs)

    async def begin(self, script: str, /, *blobs: str | bytes, **args: Any) -> Any:
        """Run a script that takes new work; only the newest version on this Redis may do so.

        Raises:
            Outdated: A newer version has raised the layout.
            StoreDown: No answer.
        """
        answer = await self.call(script, *blobs, **args)
        if answer[0] != b"schema":
            return answer
        await self.check(may_raise=True)  # Redis was emptied, or away when this process started
        answer = await self.call(script, *blobs, **args)
        if answer[0] == b"schema":
            raise outdated(answer[1], self._schema)
        return answer

    async def check(self, *, may_raise: bool = False) -> None:
        """Compare the layout in Redis with this process's.

        Args:
            may_raise: Raise an older one in Redis to ours.

        Raises:
            Outdated: The one in Redis is newer, or is not a number.
            StoreDown: No answer.
        """
        found: bytes = await self.call("schema", may_raise=may_raise)
        if not found.isdigit() or int(found) > self._schema:
            raise outdated(found, self._schema)

    async def start(self) -> None:
        """Check the layout at a process's start, and raise it in Redis if it is older.

        If Redis is away, the process starts anyway: the first script that takes new work checks again.

        Raises:
            ConfigError: The one in Redis is newer.
        """
        try:
            await self.check(may_raise=True)
        except Outdated as error:
            raise ConfigError(
                f"{error.message}: start the version that wrote it, "
                "or restore Redis from a backup made before"
            ) from error
        except StoreDown as error:
            logger.warning("layout in Redis not checked yet", extra={"error": str(error)})


def outdated(found: bytes, known: int) -> Outdated:
    """Return the error for a layout in Redis that this process does not know."""
    shown = found[:40].decode(errors="replace")
    return Outdated(
        f"Redis holds layout {shown} and this process knows layout {known}: it is the older version",
        retry_after_s=5,
    )
