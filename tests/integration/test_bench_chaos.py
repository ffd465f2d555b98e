"""What ``scripts/chaos`` relies on: ways that can be cut, and outages that last until a part is well."""

import asyncio
import contextlib
import time

import pytest

from benchmarks.chaos_clients import ACCEPTED, LATER, SILENT
from benchmarks.chaos_report import Submits
from benchmarks.cuts import Way
from benchmarks.outages import Outages
from tests.fleet import until
from tests.stream_server import StreamServer


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1024):
        writer.write(data)


async def test_a_way_can_be_cut_refused_and_stalled() -> None:
    async with StreamServer(echo) as server:
        way = Way("here to there", lambda: asyncio.open_connection("127.0.0.1", server.port))
        await way.start()

        async def connection() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection("127.0.0.1", way.port)

        reader, writer = await connection()
        writer.write(b"1\n")
        assert await reader.readline() == b"1\n"
        way.stall()
        writer.write(b"2\n")
        late = asyncio.create_task(reader.readline())
        await asyncio.sleep(0.1)
        assert not late.done()
        way.mend()
        assert await late == b"2\n"
        way.cut()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        reader, other = await connection()
        other.write(b"3\n")
        assert await reader.readline() == b"3\n"
        way.refuse()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        reader, third = await connection()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        way.mend()
        reader, fourth = await connection()
        fourth.write(b"4\n")
        assert await reader.readline() == b"4\n"
        await way.close()
        for one in (writer, other, third, fourth):
            one.close()
            with contextlib.suppress(OSError):
                await one.wait_closed()


async def test_an_outage_lasts_until_the_part_is_well() -> None:
    well = {"redis": True, "edge": True}

    async def redis() -> bool:
        return well["redis"]

    async def edge() -> bool:
        raise OSError("refused")

    outages = Outages({"redis": redis, "edge": edge})
    watching = asyncio.create_task(outages.watch())
    before = time.monotonic()
    assert not outages.covers(before, before)
    outages.begin("redis")
    well["redis"] = False
    outages.begin("redis")  # a second fault meanwhile
    outages.lift("redis")
    outages.lift("redis")
    during = time.monotonic()
    assert outages.covers(before, during) and outages.covers(during, during + 9)
    well["redis"] = True
    await outages.well()
    (outage,) = outages.all
    assert before <= outage.start <= during < outage.end
    assert not outages.covers(outage.end + 0.001, outage.end + 9)
    outages.begin("edge")
    outages.lift("edge")

    async def looked_at() -> bool:
        return time.monotonic() > outages.all[1].start + 0.5

    await until(looked_at, what="it was asked")
    assert outages.all[1].end == float("inf")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def test_what_became_of_submits_is_counted() -> None:
    found = Submits.of([ACCEPTED, ACCEPTED, ACCEPTED, LATER, SILENT, LATER])
    assert (found.count, found.accepted, found.share) == (6, 3, 0.5)
    assert found.rest == {LATER: 2, SILENT: 1}
    assert Submits.of([]).share == 1.0
