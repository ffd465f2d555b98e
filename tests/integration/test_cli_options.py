"""What the API refuses is told in the words of the command line."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import typer
from redis.asyncio import Redis
from typer.testing import CliRunner

from comfy_fleet.cli.app import build
from comfy_fleet.cli.client import OPTIONS, in_options
from comfy_fleet.cli.exits import Exit, Fail
from tests.integration.api_kit import running
from tests.key_files import write_keys

ARTIST, ADMIN = "ann-key-0123456789", "bob-key-0123456789"
LONG = "x" * 300
SUBMIT = ("submit", "image_card", "-p", "prompt=a")
REFUSED: tuple[tuple[tuple[str, ...], str], ...] = (
    ((*SUBMIT, "--priority", "5000"), "--priority 5000 is more than 1000"),
    ((*SUBMIT, "--priority", "99999999"), "--priority must be a whole number from"),
    ((*SUBMIT, "--pool", "a b"), "--pool 'a b' must be"),
    ((*SUBMIT, "--pool", LONG), "--pool: String should have at most"),
    ((*SUBMIT, "--prefer-pool", "a b"), "--prefer-pool 'a b' must be"),
    ((*SUBMIT, "--prefer-pool", "a", "--pool", "b"), "--pool and --prefer-pool exclude each other"),
    ((*SUBMIT, "--spill-to", "b"), "--spill-to needs --pool"),
    ((*SUBMIT, "--pool", "a", "--spill-to", "b c"), "--spill-to 'b c' must be"),
    ((*SUBMIT, "--zone", LONG), "--zone: String should have"),
    ((*SUBMIT, "--metadata", "k k=v"), "--metadata key 'k k' must be"),
    ((*SUBMIT, "--finish-by", "2020-01-01 00:00"), "--finish-by is past"),
    ((*SUBMIT, "--ttl", "0"), "--ttl must be a number of seconds"),
    ((*SUBMIT, "--run-timeout", "99999999"), "--run-timeout must be a number of seconds"),
    ((*SUBMIT, "--idempotency-key", LONG), "--idempotency-key must be 1 to 255"),
    (("node", "add", "a", "http://127.0.0.1:1", "--pool", "a b"), "--pool 'a b' must be"),
    (("node", "add", "a", "http://127.0.0.1:1", "--zone", LONG), "--zone: String should have"),
    (("node", "add", "a", "http://127.0.0.1:1", "--agent", "nope"), "--agent 'nope' must be HOST:PORT"),
    (("node", "drain", "g1", "--reason", LONG), "--reason: String should have"),
    (("warm", "--wait", "99999999"), "--wait: Input should be less"),
    (("job", "ls", "--status", "nope"), "--status 'nope' is none of"),
    (("job", "ls", "--metadata", "k k=v"), "--metadata[k k] can't be"),
    (("job", "ls", "--cursor", "nope"), "--cursor"),
    (("workflow", "rollback", "image_card", "--note", LONG * 10), "--note: String should have"),
    (("workflow", "label", "image_card", "production", "x", "--note", LONG * 10), "--note: String"),
)


async def test_a_refused_field_is_called_as_its_option(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", f"ann {ARTIST} artist\nbob {ADMIN} admin\n")
    told: dict[tuple[str, ...], str] = {}
    async with running(redis_port, tmp_path / "data", keys_file=keys) as api:
        await api.add_node()
        for argv, _ in REFUSED:
            key = ARTIST if argv[0] in ("submit", "workflow") else ADMIN
            command = [*argv, "--api", api.url, "--key", key]
            result = await asyncio.to_thread(CliRunner().invoke, build(command), command)
            assert isinstance(result.exception, Fail), (argv, result.output)
            assert result.exception.exit in (Exit.USAGE, Exit.REFUSED), argv
            told[argv] = result.exception.message
    wrong = {argv: told[argv] for argv, words in REFUSED if not told[argv].startswith(words)}
    assert not wrong


def test_each_option_is_one_of_some_command() -> None:
    found: set[str] = set()

    def walk(command: Any) -> None:
        for name in getattr(command, "commands", {}):
            walk(command.get_command(None, name))
        found.update(option for one in command.params for option in one.opts)

    walk(typer.main.get_command(build()))
    assert set(OPTIONS.values()) - found == set()


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("pool 'a' is of another owner", "name"),
        ("parameter 'priority' must be at most 3", "params.priority"),
        ("priority is strange", None),
        ("pooling is off", "pool"),
    ],
)
def test_other_words_stay(message: str, field: str | None) -> None:
    assert in_options(message, field) == message
