"""The port on which a process serves its metrics."""

import asyncio
import contextlib
import logging

import httpx
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter

from comfy_fleet.adapters.telemetry import MetricsServer, server
from comfy_fleet.sim import NodeOptions, SimNode


def made(port: int | None = 0) -> MetricsServer:
    registry = CollectorRegistry()
    Counter("fleet_things", "Things.", registry=registry).inc(3)

    async def hello(request: web.Request) -> web.StreamResponse:
        return web.Response(text=request.match_info["name"])

    return MetricsServer(
        registry, host="127.0.0.1", port=port, setting="FLEET_X_PORT", more={"/hello/{name}": hello}
    )


async def test_it_serves_metrics_and_health() -> None:
    one = made()
    assert one.port is None
    await one.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{one.port}", trust_env=False) as http:
        answer = await http.get("/metrics")
        assert "fleet_things_total 3.0" in answer.text
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert (await http.get("/health")).text == "ok\n"
        assert (await http.get("/hello/g1")).text == "g1"
        assert (await http.get("/nothing")).status_code == 404
        assert (await http.post("/metrics")).status_code == 405
        assert answer.headers["connection"] == "close"
    await one.stop()
    assert one.port is None


async def test_a_port_that_is_taken_is_said_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with SimNode(NodeOptions(name="g1"), port=0) as other:
        one = made(other.port)
        await one.start()
        assert one.port is None
        await one.stop()
    (record,) = (record for record in caplog.records if record.message == "metrics not served")
    assert record.__dict__["setting"] == "FLEET_X_PORT"
    assert "0 for any that is free, or none" in record.__dict__["way_out"]
    assert record.__dict__["port"] == other.port
    assert record.levelname == "WARNING"


async def test_without_a_port_nothing_is_served_or_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one = made(None)
    await one.start()
    assert one.port is None and not caplog.records
    await one.stop()


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\nX: "])
async def test_whoever_says_nothing_holds_nothing(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(server, "CONNECTION_S", 0.1)
    one = made()
    await one.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        writer.write(said)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    finally:
        await one.stop()


async def test_it_may_be_stopped_without_having_been_started() -> None:
    await made().stop()


async def test_an_address_that_is_not_this_machines_is_said(caplog: pytest.LogCaptureFixture) -> None:
    one = MetricsServer(CollectorRegistry(), host="203.0.113.1", port=0, setting="FLEET_X_PORT")
    await one.start()
    await one.stop()
    assert "metrics not served" in caplog.messages


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("[::1]:{port}", 200),
        ("::1", 200),
        ("evil.test:{port}", 403),
        ("evil.test", 403),
        ("127.0.0.1.evil.test", 403),
        ("10.0.0.1", 403),
        ("localhost.evil.test:{port}", 403),
    ],
)
async def test_a_page_whose_name_leads_to_loopback_gets_nothing(host: str, status: int) -> None:
    one = made()
    await one.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{one.port}", trust_env=False) as http:
        for path in ("/metrics", "/health", "/hello/g1"):
            answer = await http.get(path, headers={"Host": host.format(port=one.port)})
            assert (answer.status_code, "things" in answer.text) == (
                status,
                status == 200 and path == "/metrics",
            )
    await one.stop()
