"""A Redis with a password, with TLS, and with a user who may do exactly what the fleet does."""

import asyncio
import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
from rq.command import send_stop_job_command
from rq.serializers import JSONSerializer

from comfy_fleet.adapters.redis.scripts import texts
from comfy_fleet.adapters.system.redis_program import program
from comfy_fleet.bootstrap import open_stores
from comfy_fleet.cli import doctor_checks
from comfy_fleet.cli.doctor_checks import Severity
from comfy_fleet.domain.errors import StoreDown, StoreRefuses
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.nodes.agent_token import AgentToken
from comfy_fleet.settings import Settings
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import picture
from tests.fleet import fleet_of, until
from tests.integration.api_kit import running
from tests.integration.rq_kit import Client, fleet_job, started
from tests.stream_server import StreamServer
from tests.tls_proxy import HOST, Authority

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "redis.md"
RQ_PAGE = PAGE.with_name("rq.md")
RQ_ACL = re.search(r"^user rq-client on .*$", RQ_PAGE.read_text(), re.MULTILINE)
PASSWORD = "a/password@of:this%test"
ACL = re.search(r"^user fleet on .*$", PAGE.read_text(), re.MULTILINE)


def rights() -> str:
    assert ACL is not None
    return ACL[0]


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[int]:
    """A Redis whose only user is the page's."""
    (tmp_path / "acl").write_text(
        "user default off\nuser watcher on >watcher ~* &* +@all\n"
        + rights().replace("PASSWORD", PASSWORD)
        + "\n"
        + (RQ_ACL[0].replace("PASSWORD", "shop") if RQ_ACL else "")
        + "\n"
    )
    port = free_port()
    argv = [program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(mortal([*argv, "--aclfile", str(tmp_path / "acl")]), stdout=log, stderr=log)
    try:
        with watcher(port) as client:
            deadline = time.monotonic() + 60
            while True:
                try:
                    client.ping()
                    break
                except sync_redis.ConnectionError:
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                    time.sleep(0.02)
        yield port
    finally:
        server.terminate()
        server.wait(10)


def watcher(port: int) -> Any:
    return sync_redis.Redis(port=port, username="watcher", password="watcher", decode_responses=True)


def url_of(port: int) -> str:
    quoted = PASSWORD.replace("%", "%25").replace("/", "%2F").replace("@", "%40").replace(":", "%3A")
    return f"redis://fleet:{quoted}@127.0.0.1:{port}/0"


def test_the_scripts_use_no_command_that_is_not_granted(redis_port: int) -> None:
    granted = {word[1:].upper().partition("|")[0] for word in rights().split() if word.startswith("+")}
    with sync_redis.Redis(port=redis_port, decode_responses=True) as client:
        commands = {str(name).upper() for name in client.command_list()}
    quoted = {word for text in texts().values() for word in re.findall(r"'([A-Z]+)'", text)}
    called = quoted & commands
    assert len(called) > 40
    assert called - granted == set()


async def test_a_fleet_works_as_that_user_and_is_refused_nothing(strict: int) -> None:
    async with fleet_of(strict, "g1", "g2", redis_url=url_of(strict)) as fleet:
        jobs = [await fleet.submit() for _ in range(4)]
        for job in jobs:
            assert (await fleet.ended(job.id)).status is JobStatus.SUCCEEDED
        await fleet.stores.agent_tokens.add(AgentToken(id="0a1b2c3d", host="h1", digest="x"))
        assert await fleet.stores.agent_tokens.tokens()
        await fleet.stores.nodes.remove("g2")
        await until(lambda: fleet.dispatchers[0].dispatcher.snapshot().idle, what="it is idle")
        with watcher(strict) as client:
            refused = [(one["reason"], one["object"], one["context"]) for one in client.acl_log()]
            assert refused == []


async def test_a_client_of_rqs_works_with_rqs_keys_alone(strict: int, tmp_path: Path) -> None:
    async with running(strict, tmp_path, redis_url=url_of(strict)) as api:
        await api.add_node()
        client = Client(strict, username="rq-client", password="shop")
        job = await client.run(meta={"order": 1})
        claim = await started(api, client, job.id)
        await client.call(lambda: send_stop_job_command(client.connection, job.id, JSONSerializer))
        await api.finish(claim)
        await client.becomes(job.id, "finished")
        other = await client.run()
        await fleet_job(api, other.id)
        await client.call(lambda: client.job(other.id).cancel())
        await client.call(lambda: client.job(other.id).delete())
        await client.call(client.queue.empty)
        assert await client.call(client.queue.finished_job_registry.get_job_ids) == [job.id]
        for command in (
            ("GET", "fleet:schema"),
            ("HGETALL", f"fleet:job:{claim.job.id}"),
            ("SET", "fleet:schema", "9"),
            ("EVAL", "return redis.call('DEL', 'fleet:schema')", "0"),
            ("PUBLISH", "fleet:wake", "free"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("ACL", "LIST"),
        ):
            with pytest.raises(sync_redis.ResponseError, match=r"(?i)permission|NOPERM|key|channel"):
                await asyncio.to_thread(client.connection.execute_command, *command)
        with watcher(strict) as seen:
            refused = [one for one in seen.acl_log() if one["username"] == "fleet"]
            assert refused == []


async def test_a_fleet_reaches_its_redis_by_tls(strict: int, tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def passes_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", strict)
        ways = [asyncio.create_task(_copy(reader, back)), asyncio.create_task(_copy(there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for one in (back, writer):
                one.close()

    async with StreamServer(passes_on, context=authority.context(HOST)) as tls:
        url = url_of(strict).replace("redis://", "rediss://").replace("127.0.0.1", HOST)
        url = url.replace(str(strict), str(tls.port))
        async with fleet_of(strict, "g1", redis_url=f"{url}?ssl_ca_certs={authority.file}") as fleet:
            job = await fleet.submit()
            assert (await fleet.ended(job.id)).status is JobStatus.SUCCEEDED
        async with open_stores(Settings(redis_url=url)) as stores:  # an authority that nobody knows here
            with pytest.raises(StoreDown):
                await stores.clock()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def test_a_right_that_is_missing_is_told_in_a_line_and_loses_nothing(
    strict: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet_of(strict, "g1", redis_url=url_of(strict)) as fleet:
        with watcher(strict) as client:
            graph = picture(1)
            graph["2"]["inputs"]["images"] = ["3", 0]
            graph["3"] = {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": 1.0}}
            job = await fleet.submit(graph)

            async def runs() -> bool:
                return (await fleet.job(job.id)).status is JobStatus.RUNNING

            await until(runs, what="it runs")
            client.execute_command("ACL", "SETUSER", "fleet", "-hset")
            with pytest.raises(StoreRefuses, match="does not let its user do that"):
                await fleet.submit(picture(2))

            def told() -> bool:
                again = [record for record in caplog.records if record.message == "the store is asked again"]
                return any("does not let its user" in str(vars(record)) for record in again)

            await until(told, what="that is told")
            client.execute_command("ACL", "SETUSER", "fleet", "+hset")
            assert (await fleet.ended(job.id)).status is JobStatus.SUCCEEDED
    assert not [record for record in caplog.records if record.exc_info]


async def test_the_doctor_says_what_that_user_may_see(strict: int) -> None:
    settings = Settings(redis_url=url_of(strict))
    findings = await asyncio.to_thread(doctor_checks.redis_server, settings, asked=True)
    told = {finding.check: finding for finding in findings}
    assert told["Redis server"].verdict is Severity.OK, told
    assert PASSWORD not in str(findings)


async def test_that_user_may_nothing_else(strict: int) -> None:
    with sync_redis.Redis(port=strict, username="fleet", password=PASSWORD) as client:
        for command in (
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("CONFIG", "GET", "dir"),
            ("GET", "another:key"),
            ("PUBLISH", "another", "x"),
            ("ACL", "LIST"),
            ("SHUTDOWN",),
            ("EVAL", "return redis.call('GET', 'another:key')", "0"),
        ):
            with pytest.raises(sync_redis.ResponseError):
                client.execute_command(*command)
