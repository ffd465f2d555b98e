"""What `fleet doctor` says of the fleet that runs on its data folder."""

import asyncio
import json
from pathlib import Path

from comfy_fleet.cli import doctor_fleet
from comfy_fleet.cli.doctor_checks import Severity, keys, running_fleet
from comfy_fleet.cli.up.lock import DataLock
from comfy_fleet.settings import Settings
from tests.stream_server import StreamServer

OLD = "editor: node a, which serves it, has ComfyUI 0.3.64, and b has 0.33.0: the new may look wrong"


async def test_the_notes_of_a_running_fleet_are_warnings_with_advice(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps({"ready": True, "notes": [OLD, "dispatchers: one is old"]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()

    assert running_fleet(settings) == []
    async with StreamServer(answer) as server:
        with DataLock(tmp_path) as lock:
            lock.note({"url": f"http://127.0.0.1:{server.port}"})
            first, second = await asyncio.to_thread(running_fleet, settings)
    assert (first.check, first.verdict, first.found) == (doctor_fleet.CHECK, Severity.WARN, OLD)
    assert "fleet node add NAME URL --editor" in first.do
    assert "fleet status" in second.do


def test_a_fleet_that_does_not_answer_has_no_notes(tmp_path: Path) -> None:
    with DataLock(tmp_path) as lock:
        lock.note({"url": "http://127.0.0.1:9"})
        assert doctor_fleet.notes(Settings(data=tmp_path)) == []


async def test_keys_that_only_the_running_fleet_was_told_of_are_no_secret(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        word = b"401 Unauthorized" if asked.startswith(b"GET /api/v1/me ") else b"404 Not Found"
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % word)
        await writer.drain()

    assert "none" in keys(settings).found
    async with StreamServer(answer) as server:
        with DataLock(tmp_path) as lock:
            lock.note({"console_url": f"http://127.0.0.1:{server.port}"})
            finding = await asyncio.to_thread(keys, settings)
    assert finding.verdict is Severity.OK
    assert "the running fleet wants one" in finding.found
