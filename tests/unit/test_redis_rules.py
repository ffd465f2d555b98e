"""One place for the names of keys, and one for what Redis' client raises."""

import ast
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest

import comfy_fleet
from comfy_fleet.adapters.redis import keys, scripts
from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.adapters.redis.scripts import source
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.namespace import check_namespace

PACKAGE = Path(comfy_fleet.__file__).parent
ADAPTER = PACKAGE / "adapters" / "redis"
SCRIPTS = sorted(path.stem for path in (ADAPTER / "lua").glob("*.lua"))
KEY = re.compile(r"\b(fleet|rq):[^\s/]")
TABLE = {name for name, key in vars(Keyspace).items() if hasattr(key, "pattern")}


def texts(path: Path) -> Iterator[str]:
    """Yield the texts in a file: what a program could take for a key."""
    source_ = path.read_text()
    if path.suffix == ".lua":
        yield from re.findall(r"'[^'\n]*'|\"[^\"\n]*\"", re.sub(r"--.*", "", source_))
        return
    tree = ast.parse(source_)
    documentation = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation:
            yield node.value


def test_a_text_that_could_be_a_key_stands_in_one_module_alone() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.lua"))
        for text in texts(path)
        if path.name != "keys.py" and KEY.search(text)
    }
    assert not found


@pytest.mark.parametrize("text", ["fleet:job:{}", "fleet:jobs", "rq:workers", "x fleet:wake"])
def test_a_key_is_known_when_it_is_seen(text: str) -> None:
    assert KEY.search(text)


def test_every_key_of_the_table_is_used() -> None:
    python = "".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "keys.py")
    lua = "".join(path.read_text() for path in (ADAPTER / "lua").rglob("*.lua"))
    unused = {
        name
        for name in TABLE
        if not re.search(rf"\b{name}_key\b", lua) and not re.search(rf"\b(_keys|keyspace)\.{name}\b", python)
    }
    assert not unused


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_uses_keys_of_the_table_under_its_namespace(name: str) -> None:
    body = re.sub(r"--.*", "", source(name, "other"))
    made = set(re.findall(r"^(\w+) = function\(", body, re.MULTILINE))
    assert set(re.findall(r"\bkey_of\.(\w+)", body)) == made <= TABLE
    own = set(re.findall(r"\blocal (\w+_key)\b", body))  # what a script calls so itself
    assert set(re.findall(r"\b\w+_key\b", body)) == own
    assert not re.search(r"\bfleet\b", body)


def test_the_client_alone_knows_what_redis_raises() -> None:
    """Everybody else meets the fleet's own errors: a raw one would end what waits for Redis to come back."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path == ADAPTER / "client.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            found |= {
                f"{path.relative_to(PACKAGE)}: {one}" for one in modules if re.match(r"redis(\.|$)", one)
            }
    assert not found


def test_keys_of_the_default_namespace_are_those_of_earlier_versions() -> None:
    names = Keyspace()
    assert names.job("1") == "fleet:job:1"
    assert names.node_runs("gpu-1") == "fleet:node:gpu-1:runs"
    assert names.wake_nodes == "fleet:wake:nodes"
    assert names.rq_inbox == "rq:queue:fleet"
    assert names.rq_worker("host.1") == "rq:worker:host.1"


def test_no_key_of_one_namespace_is_another_ones() -> None:
    def patterns(namespace: str) -> set[str]:
        return {Keyspace(namespace).whole(vars(Keyspace)[name].pattern) for name in TABLE}

    shared = patterns("fleet") & patterns("fleet-2")  # apart by ids that are UUIDs, or RQ's own lists of all
    assert shared == {
        *("rq:job:ID", "rq:results:ID", "rq:execution:ID:RUN", "rq:executions:ID"),
        *("rq:job:ID:dependents", "rq:job::ID:dependencies"),
        *("rq:queues", "rq:workers", "rq:queue:QUEUE", "rq:deferred:QUEUE"),  # the latter two of any names
    }


@pytest.mark.parametrize(
    "value",
    [
        "",
        "a:b",
        "A",
        "9a",
        "a" * 33,
        "a b",
        "a\nb",
        "a*",
        "a'..x",
        "{a}",
        "ä",
        "../a",
        "rq",
        "default",
        "a\0",
    ],
)
def test_a_namespace_that_is_no_safe_name_is_refused(value: str) -> None:
    with pytest.raises(BadInput, match="namespace") as refused:
        check_namespace(value)
    assert refused.value.details["field"] == "namespace"


@pytest.mark.parametrize("value", ["fleet", "a", "blue_2", "team-video"])
def test_a_plain_name_is_a_namespace(value: str) -> None:
    assert check_namespace(value) == value


def test_the_patterns_name_what_a_key_belongs_to() -> None:
    assert keys.Keyspace("x").idempotency("ann", "00") == "x:idem:ann:00"
    with pytest.raises(TypeError):
        Keyspace("x").idempotency("ann")


def test_a_script_carries_what_it_uses_and_no_more() -> None:
    beat = source("beat", "fleet")
    for name in ("now", "num", "fields", "rq_beat"):
        assert re.search(rf"^(local )?(function )?{name}\b", beat, re.MULTILINE)
    assert "'fleet:run:' .. (run)" in beat and "run_key" not in beat
    for name in ("end_job", "enqueue", "node_started", "asset_of"):
        assert name not in beat
    assert len(beat) < len("".join(path.read_text() for path in (ADAPTER / "lua" / "prelude").iterdir())) / 4


def test_scripts_are_those_that_lay_there_when_the_process_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ADAPTER / "lua", tmp_path / "lua")
    with monkeypatch.context() as replaced:
        replaced.setattr(scripts, "files", lambda _: tmp_path)
        replaced.setattr(scripts, "texts", cache(scripts.texts.__wrapped__))
        scripts.Scripts(cast(Any, None))
        for path in (tmp_path / "lua").rglob("*.lua"):
            path.write_text("an update has been here\n")
        assert {name for name in SCRIPTS if "an update" in source(name, "updated")} == set()
