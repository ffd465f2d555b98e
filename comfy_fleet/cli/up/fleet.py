"""Run a whole fleet on this machine: start it, wait until a job could run, watch it, stop it."""

import asyncio
import contextlib
import os
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import replace

import httpx
from rich.console import Console
from rich.status import Status

from comfy_fleet.adapters.redis.people import RedisPeople
from comfy_fleet.adapters.system.authorities import authorities
from comfy_fleet.adapters.system.child_processes import LogFile
from comfy_fleet.adapters.system.folders import open_to_others, private_folder
from comfy_fleet.adapters.system.secret_box import NodeCredentials
from comfy_fleet.bootstrap import Stores, check_files, check_schema, open_secrets, open_stores
from comfy_fleet.cli.console import span
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.up import last_start, public_port
from comfy_fleet.cli.up import nodes as node_plans
from comfy_fleet.cli.up.lock import MAKE_ROOM, DataLock
from comfy_fleet.cli.up.plan import Plan, UpOptions
from comfy_fleet.cli.up.programs import wait_for_redis
from comfy_fleet.cli.up.roster import keep, reconcile
from comfy_fleet.cli.up.supervisor import ChildSpec, LogTrouble, Supervised, log_fields, stop_all
from comfy_fleet.cli.up.terminal import Terminal
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.logs import json_line
from comfy_fleet.sealed_check import check_secret
from comfy_fleet.tasks import start

_GIVE_UP_AFTER = 3  # crashes in a row before the fleet was ever ready: waiting longer won't help
_REDIS, _NODES, _PROXY, _API, _DISPATCH = range(5)  # stages; the last is stopped first
_HARMLESS = {"FLEET_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1"}
_PARTS = (  # name, stage, and the line that shows that it works
    ("haproxy", _PROXY, "haproxy ready"),
    ("agent", _PROXY, "agent listens"),
    ("api", _API, "api ready"),
    ("dispatch", _DISPATCH, "dispatcher started"),
)


class Fleet:
    """A planned fleet, with its processes."""

    def __init__(self, planned: Plan, options: UpOptions, console: Console) -> None:
        self.plan = planned
        self._options = options
        self._credentials = NodeCredentials(planned.settings.secret_key_file)
        self._terminal = Terminal(console, verbose=options.verbose, stays=options.leave is None)
        self._logs = planned.settings.data / "logs"
        self._log = LogFile(self._logs / "fleet.log")
        self._trouble = LogTrouble(self._terminal.echo)
        self._children: list[Supervised] = []
        self._nodes: Sequence[Node] = ()
        self._no_keys = False
        self._stopping = False
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, lock: DataLock) -> None:
        """Start everything, print the address, serve until a signal comes, and stop everything.

        Args:
            lock: The data folder's lock; its note gets our address.

        Raises:
            Fail: It could not be started.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        self._note(lock)
        if self.plan.port.why:
            self._terminal.say(f"{self.plan.port.why}: {self.plan.url}")
        started = time.monotonic()
        try:
            private_folder(self._logs)
        except OSError as error:
            raise Fail(f"can't write in {self._logs}: {error.strerror}", hint=MAKE_ROOM) from error
        if mode := open_to_others(self.plan.settings.data):
            told = f"{self.plan.settings.data} has mode {mode}: other users of this machine may look into it"
            self._tell("warning", "data folder is open to others", reason=f"{told}; chmod 700 it")
            self._terminal.say(f"{told}. Close it: chmod 700 {shlex.quote(str(self.plan.settings.data))}")
        self._tell("info", "fleet starts", url=self.plan.url, console=self.plan.console_url, pid=os.getpid())
        try:
            with self._terminal.status("starting Redis") as status:
                starting = asyncio.create_task(self._start(status, lock))
                stopping = asyncio.create_task(self._stop.wait())
                await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if starting.done():
                    starting.result()
                else:
                    starting.cancel()
                    await asyncio.gather(starting, return_exceptions=True)
            if not self._stop.is_set():
                took_s = time.monotonic() - started
                self._tell("info", "fleet ready", after_s=round(took_s, 1))
                self._terminal.ready(self.plan, self._nodes, took_s, no_keys=self._no_keys)
                if self._options.leave is not None:
                    self._options.leave(self._logs / "fleet.log")
            await self._stop.wait()
        except Fail as error:
            failed = log_fields("fleet", "error", "fleet did not start", reason=error.message)
            self._log.write(json_line(failed))  # the terminal shows it at the end
            raise
        finally:
            self._stopping = self._terminal.stopping = True
            self._tell("info", "fleet stops")
            with self._terminal.status("stopping"):
                await stop_all(self._children)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tell("info", "fleet stopped")
            self._log.close()
            self._terminal.say(f"stopped; queue and files stay in {self.plan.settings.data}")

    def _note(self, lock: DataLock) -> None:
        certificate = self.plan.console_certificate
        lock.note(
            {
                "url": self.plan.url,
                "console_url": self.plan.console_url,
                "certificate": str(certificate) if certificate else None,
                "instead": self.plan.port.number if self.plan.port.why else None,
                "console": self.plan.settings.console_port,
                "ports": list(self.plan.ports),
                **last_start.facts(self.plan, self._options),
                "settings": self.plan.found_by,
            }
        )

    def _tell(self, level: str, message: str, **more: object) -> None:
        """Log something about the fleet as a whole, and show it on the terminal if it belongs there."""
        fields = log_fields("fleet", level, message, **more)
        self._log.write(json_line(fields))
        self._terminal.echo("fleet", fields)

    def _on_signal(self) -> None:
        if self._stopping:  # second signal: don't wait
            for child in self._children:
                child.kill()
        self._stop.set()

    async def _start(self, status: Status, lock: DataLock) -> None:
        settings = self.plan.settings
        if self.plan.redis:
            await self._child(
                ChildSpec(
                    name="redis", argv=self.plan.redis.argv, stage=_REDIS, ready="Ready to accept connections"
                )
            )
            self._tasks.append(start(self.plan.redis.sync(self._not_synced)))
        if not settings.secret_key_file.exists():  # HAProxy's first start needs it, and does not make it
            open_secrets(settings)
        await wait_for_redis(settings.redis_url, timeout_s=30 if self.plan.redis else 5)
        async with open_stores(settings) as stores:
            await check_schema(stores)
            await check_files(settings, stores)
            if another := await check_secret(settings, stores):
                self._tell("warning", "secret key is another one", reason=another)
            if self._options.goes_on:
                self.plan = last_start.with_registered(self.plan, await stores.nodes.nodes())
                for port in (settings.port, settings.console_port):
                    public_port.require_no_nodes(port, settings.host, self.plan.nodes.nodes, named="port")
                self._note(lock)
            await reconcile(
                stores.nodes,
                self.plan.nodes.nodes,
                self.plan.nodes.joining + self.plan.nodes.idle,
                now=await stores.clock(),
                credentials=self._credentials,
            )
            self._say_which_nodes(await stores.nodes.nodes())
            self._tasks.append(start(self._keep_nodes()))
            status.update("starting nodes, HAProxy, API and dispatcher")
            await self._start_parts()
            await self._until_ready(status, stores)
            self._nodes = await stores.nodes.nodes()
            self._no_keys = await self._has_no_keys(stores)

    async def _keep_nodes(self) -> None:
        async with open_stores(self.plan.settings) as stores:
            await keep(
                stores.nodes,
                self.plan.nodes.nodes,
                self.plan.nodes.joining + self.plan.nodes.idle,
                self._say_of_nodes,
                clock=stores.clock,
                credentials=self._credentials,
            )

    async def _has_no_keys(self, stores: Stores) -> bool:
        """Return whether nobody can ask: keys are required, and none was made."""
        settings = self.plan.settings
        if not settings.require_keys or self.plan.owners or settings.trusted_user_header:
            return False
        _, people = await RedisPeople(stores.redis).read()
        return not people.keys

    def _say_which_nodes(self, known: Sequence[Node]) -> None:
        if self._options.goes_on and (words := last_start.in_words(self.plan, self._options, known)):
            self._tell("info", "goes on with the nodes of before", reason=words)
            self._terminal.say(words)
        if len({node.simulated for node in known}) == 2:
            self._say_of_nodes("simulated nodes beside real ones", "they take jobs, too")

    def _say_of_nodes(self, message: str, reason: str) -> None:
        self._tell("warning", message, reason=reason)

    def _not_synced(self, error: OSError) -> None:
        self._tell("warning", "Redis' data not synced to the disk", reason=str(error))

    async def _start_parts(self) -> None:
        settings = self.plan.settings
        specs = [
            replace(
                process, env={**(self.plan.env if process.ours else _HARMLESS), **process.env}, stage=_NODES
            )
            for process in self.plan.nodes.processes
        ]
        for name, stage, ready in _PARTS:
            command = node_plans.fleet(*(("haproxy", "run") if name == "haproxy" else (name,)))
            # A dispatcher lets its runs finish first.
            patience_s = 10 + (settings.stop_wait_s if name == "dispatch" else 0)
            specs.append(
                ChildSpec(
                    name=name,
                    argv=command,
                    env=self.plan.env,
                    ours=True,
                    stop_timeout_s=patience_s,
                    stage=stage,
                    ready=ready,
                )
            )
        for spec in specs:
            await self._child(spec)

    async def _child(self, spec: ChildSpec) -> None:
        child = Supervised(spec, logs=self._logs, echo=self._terminal.echo, trouble=self._trouble)
        self._children.append(child)
        await child.start()

    async def _until_ready(self, status: Status, stores: Stores) -> None:
        wanted = self.plan.nodes
        path = "/api/v1/ready" if wanted.nodes or wanted.joining else "/api/v1/health"
        deadline = time.monotonic() + self._options.patience_s
        why = "nothing answers yet"
        url = self.plan.console_url
        async with httpx.AsyncClient(
            base_url=url,
            timeout=5,
            trust_env=False,
            verify=authorities(url, own=self.plan.console_certificate),
        ) as client:
            while True:
                try:
                    answer = await client.get(path)
                    if answer.status_code == 200:
                        return
                    why = not_ready(answer)
                except httpx.HTTPError:
                    why = "the console's port does not answer yet"
                status.update(f"waiting until a job could run: {why}")
                self._check_crashes()
                await self._check_comfyuis(stores)
                if time.monotonic() > deadline:
                    raise Fail(
                        f"not ready after {span(self._options.patience_s)}: {why}",
                        hint=f"see {self._logs}; --ready-timeout S waits longer",
                        code=Exit.TIMEOUT,
                    )
                await asyncio.sleep(0.1)

    def _check_crashes(self) -> None:
        for child in self._children:
            if child.crashes >= _GIVE_UP_AFTER:
                raise Fail(
                    f"{child.spec.name} ends again and again: {child.reason}",
                    hint=f"see {self._logs / child.spec.name}.log",
                )

    async def _check_comfyuis(self, stores: Stores) -> None:
        for name in self.plan.nodes.joining:
            seen = await stores.hosts.report(name) or {}
            if seen.get("phase") == "waiting" and int(seen.get("restarts", 0)) + 1 >= _GIVE_UP_AFTER:
                _, why = await stores.hosts.words(name)
                raise Fail(
                    f"{name} ends again and again: {why}",
                    hint=f"see {self._logs / name}.log",
                )


def not_ready(answer: httpx.Response) -> str:
    """Return briefly why the fleet is not ready, from the API's answer."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        body = answer.json()
        message = body.get("error", {}).get("message") or body.get("message") or body.get("why")
        if message:
            return str(message)
    return {502: "the API starts", 503: "the API starts", 504: "the API starts"}.get(
        answer.status_code, f"the API answers {answer.status_code}"
    )
