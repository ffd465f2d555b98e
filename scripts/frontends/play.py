"""Serve a compiled editor to headless Chromium and play interleavings of eight prompts to it.

The messages are made by :class:`comfy_fleet.domain.jobs.shown_prompt.ShownPrompt` from what eight runs say.
What the editor should show is worked out here, independently of it. See ``scripts/check-frontends``.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from comfy_fleet.domain.jobs import client_messages
from comfy_fleet.domain.jobs.client_messages import ClientMessage
from comfy_fleet.domain.jobs.shown_prompt import (
    PromptEnd,
    PromptMessage,
    RecordedResult,
    ResultKey,
    ShownPrompt,
    Topic,
)
from comfy_fleet.timeouts import Timeout

HERE = Path(__file__).parent
PROMPTS = 8
NODES = ("1", "2", "3")
PICTURES = "2"  # the node that sends its pictures as messages
STEPS = 4
SHOWN = 5  # interleavings of which the faults are printed
LATEST_S = 120.0  # for the editor to start, and for one interleaving
CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --mute-audio"
)
ENDS = ("execution_success", "execution_error", "execution_interrupted")


def said(type_: str, prompt: str, **data: Any) -> ClientMessage:
    return client_messages.message(type_, {"prompt_id": prompt, **data})


def picture(place: int) -> ClientMessage:
    return ClientMessage(struct.pack(">II", 1, 1) + b"\xff\xd8\xff\xd9" + bytes([place]), text=False)


@dataclass
class Script:
    """What happens to one prompt, and what of it matters for the editor."""

    job: str
    prompt: str
    events: list[PromptMessage | PromptEnd | None]  # None: its run is given back
    newest: dict[str, Any] | None = None
    run: str = ""
    began: int = 0


@dataclass
class Interleaving:
    """One random order of eight prompts' events: frames, and after each event what the editor should show."""

    random: Random
    scripts: list[Script] = field(default_factory=list)
    machine: ShownPrompt = field(default_factory=ShownPrompt)
    live: dict[str, bool] = field(default_factory=dict)  # prompts that are not over, and whether they run
    shown: Script | None = None
    active: str | None = None
    before: set[str] = field(default_factory=set)  # whose progress may still stand
    executed: dict[str, set[str]] = field(default_factory=dict)
    ends: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lossy = self.random.random() < 0.3
        for number in range(PROMPTS):
            prompt = str(UUID(int=self.random.getrandbits(128), version=4))
            self.scripts.append(Script(f"job{number}", prompt, list(self._events(number, prompt, lossy))))
            self.live[prompt] = False

    def begin(self) -> dict[str, Any]:
        return {"prompts": {script.prompt: list(NODES) for script in self.scripts}}

    def steps(self) -> Iterator[tuple[list[ClientMessage], dict[str, Any]]]:
        """Yield the messages of each step, and what the editor should show then."""
        left = [script for script in self.scripts if script.events]
        count = 0
        while left:
            script = self.random.choice(left)
            event = script.events.pop(0)
            if not script.events:
                left.remove(script)
            count += 1
            was = self.shown
            told = self._take(script, event, count)
            self._believe(told)
            shown = self.shown
            if (self.machine.shown or "") != (shown.job if shown else ""):
                raise AssertionError(f"{self.machine.shown} is shown instead of {shown and shown.job}")
            if shown is not was:
                self.before |= {was.prompt} if was else set()
            if shown is not None:
                self.active = shown.prompt
                if shown.newest is not None:
                    self.before = set()
            wanted = {
                "step": count,
                "sent": [_brief(one) for one in told],
                "active": self.active,
                "progress_of": sorted({self.active or "", *self.before}),
                "progress": shown.newest if shown else None,
                "nodes": sorted(NODES),
                "executed": sorted(self.executed.get(self.active or "", ())),
                "ends": self.ends,
            }
            yield told, wanted

    def _take(
        self, script: Script, event: PromptMessage | PromptEnd | None, count: int
    ) -> list[ClientMessage]:
        if isinstance(event, PromptMessage):
            if event.run != script.run:
                script.run, script.began, script.newest = event.run, count, None
            if event.topic is Topic.PROGRESS_STATE:
                script.newest = json.loads(event.message.data)["data"]["nodes"]
            self.live[script.prompt] = True
            self.shown = self.shown or script
            return self.machine.heard(script.job, script.prompt, event, 1.0)
        script.run, script.began, script.newest = "", 0, None
        if event is None:
            self.live[script.prompt] = False
            told = self.machine.given_back(script.job)
        else:
            del self.live[script.prompt]
            told = self.machine.ended(script.job, event)
        if self.shown is script:
            running = [(one.began, one) for one in self.scripts if one.began]
            self.shown = min(running, key=lambda pair: pair[0])[1] if running else None
        return told

    def _believe(self, told: list[ClientMessage]) -> None:
        """Note what the editor must know after these messages."""
        for one in told:
            if not one.text:
                continue
            message = json.loads(one.data)
            type_, data = message["type"], message["data"]
            prompt = data["prompt_id"]
            if type_ == "execution_start" and self.active != prompt:
                self.active = prompt
                self.executed.setdefault(prompt, set())
            elif type_ == "executed":
                self.executed.setdefault(prompt, set()).add(data["node"])
            elif type_ in ENDS:
                self.ends.setdefault(prompt, []).append(type_)
                self.before.add(prompt)
                self.active = None

    def _events(self, number: int, prompt: str, lossy: bool) -> Iterator[PromptMessage | PromptEnd | None]:
        random = self.random
        kind = random.choices(("ran", "canceled first", "given back", "unheard"), (80, 8, 8, 4))[0]
        last = random.choice(ENDS)
        run = f"run{number}"
        if kind == "canceled first":
            last = "execution_interrupted"
            yield PromptEnd(run="", start=None, last=_last(prompt, last))
            return
        if kind == "given back":
            told = [one for one in self._run(f"{run}-", prompt) if not (lossy and random.random() < 0.2)]
            yield from told[: random.randint(1, len(told))]
            yield None
        if kind != "unheard":
            for one in self._run(run, prompt):
                if not (lossy and random.random() < 0.2):
                    yield one
        results = [RecordedResult((node, None), client_messages.executed(prompt, node, {})) for node in NODES]
        yield PromptEnd(
            run=run,
            start=client_messages.execution_start(prompt, 1.0),
            results=results if last == "execution_success" else [],
            last=_last(prompt, last),
        )

    def _run(self, run: str, prompt: str) -> Iterator[PromptMessage]:
        def tell(topic: Topic, message: ClientMessage, key: ResultKey | None = None) -> PromptMessage:
            return PromptMessage(run, topic, message, key)

        yield tell(Topic.START, client_messages.execution_start(prompt, 1.0))
        yield tell(Topic.CACHED, said("execution_cached", prompt, nodes=[]))
        states: dict[str, Any] = {}
        for node in NODES:
            yield tell(Topic.EXECUTING, client_messages.executing(prompt, node), (node, None))
            for step in range(self.random.randint(0, STEPS)):
                about = {"value": step, "max": STEPS, "node_id": node, "real_node_id": node}
                more = {"display_node_id": node, "parent_node_id": None, "prompt_id": prompt}
                states = {**states, node: {**about, **more, "state": "running"}}
                yield tell(Topic.PROGRESS_STATE, said("progress_state", prompt, nodes=states))
                yield tell(Topic.OTHER, said("progress", prompt, value=step, max=STEPS, node=node))
            if node == PICTURES:
                for place in range(2):
                    yield tell(Topic.RESULT, picture(place), (node, place))
            yield tell(Topic.RESULT, client_messages.executed(prompt, node, {}), (node, None))
            if node in states:
                states = {**states, node: {**states[node], "state": "finished"}}
                yield tell(Topic.PROGRESS_STATE, said("progress_state", prompt, nodes=states))


def _last(prompt: str, type_: str) -> list[ClientMessage]:
    about: dict[str, Any] = {"timestamp": 1, "node_id": "1", "node_type": "A", "executed": []}
    if type_ == "execution_error":
        about |= {"exception_message": "no", "exception_type": "ValueError", "traceback": []}
        about |= {"current_inputs": {}, "current_outputs": []}
    return [said(type_, prompt, **about), client_messages.left(prompt)]


def _brief(one: ClientMessage) -> str:
    if not one.text:
        return "picture"
    message = json.loads(one.data)
    return f"{message['type']} {message['data']['prompt_id'][:8]} {message['data'].get('node', '')}".strip()


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


@contextlib.asynccontextmanager
async def browser(url: str) -> AsyncIterator[None]:
    """Open a page in headless Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        sys.exit("check-frontends: Chromium is missing (Debian: chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program,
            *CHROMIUM.split(),
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",
            url,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.terminate()
            await process.wait()


async def check(static: Path, *, times: int, seed: int) -> int:
    stage = Stage(static, times=times, seed=seed)
    config = uvicorn.Config(stage.app(), host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with browser(f"http://127.0.0.1:{port}/"):
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
    sys.exit(asyncio.run(check(args.static, times=args.times, seed=args.seed)))


if __name__ == "__main__":
    main()
