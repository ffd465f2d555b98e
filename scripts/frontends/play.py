"""Serve a compiled editor to headless Chromium and play interleavings of eight prompts to it.

See ``scripts/check-frontends``.
"""

import argparse
import asyncio
import contextlib
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from comfy_fleet.domain.jobs import client_messages
from comfy_fleet.domain.jobs.client_messages import ClientMessage
from comfy_fleet.timeouts import Timeout
from tests.browser.chromium import chromium, program
from tests.interleavings import PROMPTS, Interleaving

HERE = Path(__file__).parent
SHOWN = 5  # interleavings of which the faults are printed
LATEST_S = 120.0  # for the editor to start, and for one interleaving


class Stage:
    """The server that the editor takes for a ComfyUI."""

    def __init__(self, static: Path, *, times: int, seed: int) -> None:
        self._static = static
        self._times = times
        self._seed = seed
        self._ready = asyncio.Event()
        self._checked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._socket: WebSocket | None = None
        self._now: Interleaving | None = None
        self.steps = self.messages = 0

    def app(self) -> Starlette:
        routes: list[Any] = [
            Route("/", self._page),
            Route("/ready", self._on_ready, methods=["POST"]),
            Route("/checked", self._on_checked, methods=["POST"]),
            WebSocketRoute("/ws", self._on_socket),
            Route("/api/{path:path}", self._api, methods=["GET", "POST"]),
            Mount("/", StaticFiles(directory=self._static)),
        ]
        return Starlette(routes=routes)

    async def play(self) -> list[dict[str, Any]]:
        """Play all interleavings; return those in which the editor shows something else than it should."""
        async with Timeout(LATEST_S):
            await self._ready.wait()
        wrong = []
        for number in range(self._times):
            self._now = Interleaving(Random(f"{self._seed} {number}"))
            await self._tell("fleet.begin", self._now.begin())
            for told, wanted in self._now.steps():
                self.steps += 1
                for one in told:
                    self.messages += 1
                    await self._send(one)
                await self._tell("fleet.expect", wanted)
                if self.steps % 10 == 0:
                    await self._send(client_messages.status(len(self._now.live)))
            await self._tell("fleet.end", {"number": number})
            async with Timeout(LATEST_S):
                checked = await self._checked.get()
            if checked["faults"]:
                wrong.append(checked)
        return wrong

    async def _send(self, one: ClientMessage) -> None:
        assert self._socket is not None
        await (self._socket.send_text(one.data.decode()) if one.text else self._socket.send_bytes(one.data))

    async def _tell(self, type_: str, data: Any) -> None:
        await self._send(client_messages.message(type_, data))

    async def _page(self, _: Request) -> Response:
        page = (self._static / "index.html").read_text()
        script = f"<script>{(HERE / 'page.js').read_text()}</script>"
        return HTMLResponse(page.replace("</body>", f"{script}</body>"))

    async def _on_ready(self, _: Request) -> Response:
        self._ready.set()
        return Response()

    async def _on_checked(self, request: Request) -> Response:
        self._checked.put_nowait(await request.json())
        return Response()

    async def _on_socket(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(client_messages.status(0, sid="c" * 32).data.decode())
        await socket.send_text(json.dumps({"type": "feature_flags", "data": {}}))
        self._socket = socket
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await socket.receive_text()

    async def _api(self, request: Request) -> Response:
        path = request.path_params["path"]
        if path.startswith("userdata/"):
            return Response(status_code=404)
        live = self._now.live if self._now else {}
        jobs = []
        if "in_progress" in request.query_params.get("status", ""):
            jobs = [
                {
                    "id": prompt,
                    "status": "in_progress" if runs else "pending",
                    "create_time": 1,
                    "priority": n,
                }
                for n, (prompt, runs) in enumerate(live.items())
            ]
        entries: list[Any] = [[n, prompt, {}, {}, []] for n, prompt in enumerate(live)]
        running = [one for one in entries if live[one[1]]]
        answers: dict[str, Any] = {
            "users": {"storage": "server", "migrated": True},
            "settings": {"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False},
            "extensions": [],
            "userdata": [],
            "experiment/models": [],
            "system_stats": {"system": {"comfyui_version": "0.33.0", "argv": []}, "devices": []},
            "prompt": {"exec_info": {"queue_remaining": len(live)}},
            "queue": {
                "queue_running": running,
                "queue_pending": [one for one in entries if one not in running],
            },
            "jobs": {
                "jobs": jobs,
                "pagination": {"offset": 0, "limit": 200, "total": len(jobs), "has_more": False},
            },
        }
        return JSONResponse(answers.get(path, {}))


async def check(static: Path, *, times: int, seed: int) -> int:
    stage = Stage(static, times=times, seed=seed)
    config = uvicorn.Config(stage.app(), host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with chromium() as browser, browser.page() as page:
        await asyncio.to_thread(page.goto, f"http://127.0.0.1:{port}/")
        wrong = await stage.play()
    server.should_exit = True
    await serving
    version = next(iter(static.parent.parent.glob("*.dist-info"))).name.split("-")[1].removesuffix(".dist")
    print(
        f"editor {version}: {times} interleavings of {PROMPTS} prompts, {stage.steps} steps, "
        f"{stage.messages} messages: {len(wrong)} wrong"
    )
    for one in wrong[:SHOWN]:
        print(f"interleaving {one['number']}")
        for fault in one["faults"]:
            print(f"  step {fault['step']}, after {', '.join(fault['sent']) or 'nothing'}")
            for found in fault["found"]:
                print(
                    f"    {found['what']}: {json.dumps(found['is'])}, should be {json.dumps(found['should'])}"
                )
    return 1 if wrong else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("static", type=Path, help="folder with the editor's index.html")
    parser.add_argument("--times", type=int, default=1000, help="how many interleavings")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if program() is None:
        sys.exit("check-frontends: Chromium is missing (Debian: chromium)")
    sys.exit(asyncio.run(check(args.static, times=args.times, seed=args.seed)))


if __name__ == "__main__":
    main()
