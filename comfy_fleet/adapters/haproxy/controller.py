"""The controller: keeps both HAProxy processes in agreement with the node registry, without a reload.

Every half second, and at once when the registry changes or HAProxy tells of a server, it compares HAProxy's
state with the wanted state and sends the missing commands. So a restarted HAProxy, a lost command and an
operator's slip are all repaired in the same way. The rendered files follow every change a moment later, so
that the next start needs no registry.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from comfy_fleet.adapters.haproxy.agent_preflight import WINDOW_S, Preflight
from comfy_fleet.adapters.haproxy.certificate_watch import LOOK_S, CertificateWatch
from comfy_fleet.adapters.haproxy.config_apply import apply
from comfy_fleet.adapters.haproxy.config_render import ca_file_of, files, read_templates, render, secrets_of
from comfy_fleet.adapters.haproxy.follow_api_dns import follow_api
from comfy_fleet.adapters.haproxy.membership import (
    Add,
    Drain,
    Forget,
    Move,
    MoveAgent,
    Open,
    Retire,
    ServerTarget,
    Step,
    agent_silent,
    plan,
    silence_s,
    verdict_of,
)
from comfy_fleet.adapters.haproxy.pool_news import PoolNews
from comfy_fleet.adapters.haproxy.process import HAProxy, only_one
from comfy_fleet.adapters.haproxy.ready_cuts import ReadyCuts
from comfy_fleet.adapters.haproxy.resolve import Resolver
from comfy_fleet.adapters.haproxy.server_lines import (
    DIRECT,
    Entry,
    backend_of,
    entries_of,
    literal,
    no_editors_of,
    parse_map,
    pools_of,
    prefix_of,
)
from comfy_fleet.adapters.haproxy.stray_cuts import StrayCuts
from comfy_fleet.domain.errors import ConfigError, FleetError
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.ports.nodes import PoolStore
from comfy_fleet.ports.ready_leases import ReadyLeaseStore
from comfy_fleet.settings import Settings
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

_NEWS_S = 0.02
"""How soon it looks after HAProxy's words; later if looks take long, at most a quarter of its time."""


def _no_key() -> None:
    return None


class Registry(Protocol):
    """The part of :class:`comfy_fleet.ports.nodes.NodeRegistry` that the controller needs."""

    async def nodes(self) -> Sequence[Node]:
        """Return all nodes by name."""

    async def report(self, name: str, *, verdict: str, why: str) -> None:
        """Record a node's state as HAProxy reports it; a removed node is ignored."""

    def changes(self) -> AsyncIterator[None]:
        """Yield whenever the registry has changed, and now and then without a change."""


@dataclass(kw_only=True)
class _Seen:
    """What is kept about one node between two looks."""

    silent_since: float | None = None
    told: tuple[float, str, str] | None = None


class Controller:
    """Runs the broker and the edge, and keeps the broker's servers equal to the registry.

    Attributes:
        ready: Set while both processes answer.
        broker: The lease broker.
        edge: The public port and the console's.
        certificates: What the edge shows to those who speak TLS.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        pools: PoolStore | None = None,
        ready_leases: ReadyLeaseStore | None = None,
        credentials: Callable[[str], str] = str,
        ticket_key: Callable[[], bytes | None] = _no_key,
        broker_secret: Callable[[], str | None] = _no_key,
        poll_s: float = 0.5,
        agent_grace_s: float = 2.0,
        first_answer_s: float = WINDOW_S,
        certificate_look_s: float = LOOK_S,
    ) -> None:
        """Set up; nothing starts before :meth:`run`.

        Args:
            settings: Ports, folders, programs.
            registry: The nodes; states are reported there.
            pools: Stores each pool's slot; None: only the map file does.
            ready_leases: Who holds leases ready; None: nobody.
            credentials: Decrypts :attr:`~comfy_fleet.domain.nodes.node.Node.sealed`.
            ticket_key: Returns the key of editor tickets; None as long as it is not known, and no file of an
                editor passes.
            broker_secret: Returns what the broker's ports ask for; None as long as it is not known, and
                they refuse everybody.
            poll_s: How often HAProxy is asked.
            agent_grace_s: How long an agent may be silent before its nodes get no more leases.
            first_answer_s: How long a new node's agent is asked directly and its ``ready`` passed on.
            certificate_look_s: How often the certificates' files are looked at.
        """
        self.ready = asyncio.Event()
        self._settings = settings
        self._registry = registry
        self._pool_store = pools
        self._credentials = credentials
        self._ticket_key = ticket_key
        self._broker_secret: Callable[[], str | None] = broker_secret if settings.broker_bind else _no_key
        self._poll_s = poll_s
        self._agent_grace_s = agent_grace_s
        self._files = files(settings)
        self._agent = (settings.agent_host, settings.agent_port)
        self._prefix = prefix_of(settings.namespace)
        self.broker = HAProxy(
            "broker",
            settings.haproxy_bin,
            self._files.broker,
            self._files.broker_socket,
            reloads=False,
            on_start=self._broker_started,
            on_news=self._broker_says,
            prefix=self._prefix,
        )
        self.edge = HAProxy(
            "edge",
            settings.haproxy_bin,
            self._files.edge,
            self._files.edge_socket,
            reloads=True,
            on_start=lambda: None,
            prefix=self._prefix,
        )
        self.certificates = CertificateWatch(settings, look_s=certificate_look_s)
        self._nodes: Sequence[Node] = ()
        self._pools: dict[str, int] = {}
        self._kept_pools: dict[str, int] | None = None  # as they are in the store
        self._seen: dict[str, _Seen] = {}
        self._known = False  # the registry has been read at least once
        self._stale = False  # the registry may have changed since it was read
        self._map_stale = True  # the running map may differ from ours
        self._edge_behind = False  # the edge has not taken its file as it was written last
        self._templates: Mapping[str, str] | None = None  # from the start of the process: they fit its code
        self._resolver = Resolver(time.monotonic)
        self._wake = asyncio.Event()
        self._news: asyncio.TimerHandle | None = None
        self._look_s = 0.0  # how long the last look took
        self._first = Preflight(self._wake.set, window_s=first_answer_s)
        self._unwritten = asyncio.Event()  # the files may differ from the registry
        self._writing = asyncio.Lock()
        self._trouble = ""
        self._pool_news = PoolNews()
        self._cuts = None if ready_leases is None else ReadyCuts(self.broker.runtime, ready_leases)
        self._strays = None if ready_leases is None else StrayCuts(self.broker.runtime, ready_leases)

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes at the last read of the registry."""
        return self._nodes

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set, then stop both processes.

        Raises:
            ConfigError: Another controller runs on the folder, a configuration is refused, a certificate
                can't be used, or HAProxy is missing or could not start (a port is taken).
        """
        with only_one(self._files.folder):
            self._templates = read_templates(self._settings.haproxy_dir)
            self.certificates.read()
            for process in (self.broker, self.edge):
                await process.stop_stray()
            await self._first_files(stop)
            if stop.is_set():
                return
            tasks: list[asyncio.Task[object]] = []
            try:
                started = await asyncio.gather(self.broker.start(), self.edge.start(), return_exceptions=True)
                for error in started:
                    if error is not None:
                        raise error
                self.ready.set()
                facts = {"port": self._settings.port, "console_port": self._settings.console_port}
                logger.info("haproxy ready", extra={**facts, "nodes": len(self._nodes)})
                tasks = [
                    asyncio.create_task(self.broker.keep(), name="keep broker"),
                    asyncio.create_task(self.edge.keep(), name="keep edge"),
                    asyncio.create_task(self._watch(), name="watch registry"),
                    asyncio.create_task(self._steer(), name="steer broker"),
                    asyncio.create_task(self._follow_with_files(), name="write files"),
                    asyncio.create_task(
                        self.certificates.follow(self._write_and_renew), name="follow certificates"
                    ),
                    asyncio.create_task(stop.wait(), name="stop"),
                ]
                if self._wants_key and self._ticket_key() is None:
                    tasks.append(asyncio.create_task(self._open_editor(), name="open the editor"))
                if literal(self._settings.api_host) is None:
                    tasks.append(
                        asyncio.create_task(
                            follow_api(
                                self.edge.runtime,
                                self._settings.api_host,
                                self._settings.api_port,
                                resolve=self._resolver.again,
                                reload=self.edge.reload,
                            ),
                            name="follow the API",
                        )
                    )
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # only `stop` ends without an error
            finally:
                self.ready.clear()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._first.stop()
                await self.edge.stop()
                await self.broker.stop()

    async def reload_edge(self) -> bool:
        """Render both files from the present templates and certificates; reload the edge if its file changed.

        Returns:
            True if it did.

        Raises:
            ConfigError: The new file is refused, or no worker came up with it, or a certificate can't be
                used; the edge goes on with the old one.
        """
        self.certificates.read()
        before, self._templates = self._templates, read_templates(self._settings.haproxy_dir)
        try:
            changed = await self._write_files()
        except ConfigError:
            self._templates = before
            raise
        if self._files.edge.name not in changed and not self._edge_behind:
            return False
        await self._renew_edge()
        return True

    async def _renew_edge(self) -> None:
        self._edge_behind = True  # until it has taken its file, the next order tries again
        await self.edge.renew()
        self._edge_behind = False

    async def _write_and_renew(self) -> None:
        if self._files.edge.name in await self._write_files() or self._edge_behind:
            await self._renew_edge()

    @property
    def _wants_key(self) -> bool:
        """Whether the edge needs the key of editor tickets: to check them, or to show who it is."""
        return self._settings.editor or bool(self._settings.trusted_user_header)

    async def _open_editor(self) -> NoReturn:
        """Wait for the key of editor tickets, which the API may have to make first; then let files pass."""
        while self._ticket_key() is None:  # noqa: ASYNC110 - a file that another process writes
            await asyncio.sleep(self._poll_s)
        with contextlib.suppress(ConfigError):  # already logged: the edge goes on without
            await self._write_files()
            await self._renew_edge()
        await asyncio.Future()  # the other tasks end this one
        raise AssertionError

    # ---- files ---------------------------------------------------------------------------------------------

    async def _first_files(self, stop: asyncio.Event) -> None:
        if self._files.pools.exists():
            self._pools = parse_map(self._files.pools.read_text())
        pause = 0.2
        while not stop.is_set():
            try:
                self._nodes = await self._registry.nodes()
                if self._pool_store is not None:  # keep another controller's slots
                    slots = {one.name: one.slot for one in await self._pool_store.pools() if one.slot}
                    self._pools = slots or self._pools
                self._known = True
                break
            except Exception as error:  # noqa: BLE001 - this process must go on, whatever the adapter raises
                logger.warning("registry can't be read", extra={"reason": str(error)})
                if self._files.broker.exists() and self._files.edge.exists():
                    self._stale = True
                    return  # until the registry is back, the files of the last run apply
            with contextlib.suppress(TimeoutError):
                async with Timeout(pause):
                    await stop.wait()
            pause = min(pause * 2, 5.0)
        if not stop.is_set():
            await self._write_files()

    async def _follow_with_files(self) -> None:
        """Write the files after changes. The running broker comes first: a new node does not wait for a
        check."""
        while True:
            await self._unwritten.wait()
            self._unwritten.clear()
            try:
                await self._write_and_renew()  # of the last run, if the registry was away at the start
            except ConfigError:
                pass  # already logged and kept as .rejected; the running HAProxy follows the registry
            except Exception as error:  # e.g. a full disk: tried again, and this process goes on
                self._unwritten.set()
                unexpected = not isinstance(error, FleetError | OSError)
                facts = {"reason": str(error)}
                logger.warning("configuration not written", extra=facts, exc_info=unexpected)
            await asyncio.sleep(self._poll_s)  # so a thousand joining nodes cause only a few checks

    async def _write_files(self) -> frozenset[str]:
        async with self._writing:
            self._place()
            entries = self._entries()
            found = await self._resolver.resolve(
                [entry.host for entry in entries] + [entry.agent_host for entry in entries]
            )
            addresses = {host: known[0] for host, known in found.items() if known}
            try:
                rendered = render(
                    self._settings,
                    self._nodes,
                    self._pools,
                    addresses=addresses,
                    credentials=self._credentials,
                    templates=self._templates,
                    ticket_key=self._ticket_key() if self._wants_key else None,
                    certificates=self.certificates.shown,
                    broker_secret=self._broker_secret(),
                )
            except ConfigError as error:
                logger.error("configuration not rendered", extra={"reason": error.message})
                raise
            writing = asyncio.create_task(
                asyncio.to_thread(apply, rendered, self._files, program=self._settings.haproxy_bin)
            )
            try:
                return await asyncio.shield(writing)
            except asyncio.CancelledError:
                # A thread can't be stopped, and must not be at work when the next controller gets the folder.
                await asyncio.gather(writing, return_exceptions=True)
                raise

    def _entries(self) -> list[Entry]:
        return entries_of(self._nodes, self._pools, agent=self._agent, credentials=self._credentials)

    def _place(self) -> None:
        """Give every pool that has nodes a backend."""
        pools = pools_of(self._nodes, self._pools, slots=self._settings.pool_slots)
        if pools != self._pools:
            self._pools = pools
            self._map_stale = True

    async def _keep_pools(self) -> None:
        pools = dict(self._pools)
        if self._pool_store is not None and self._kept_pools != pools:
            try:
                await self._pool_store.place(pools)
                self._kept_pools = pools
            except FleetError as error:  # HAProxy is kept up to date anyway; the next look tries again
                logger.warning("pools' slots not kept", extra={"reason": error.message})

    # ---- the registry --------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            try:
                async for _ in self._registry.changes():
                    self._stale = True
                    self._wake.set()
            except Exception as error:  # noqa: BLE001 - as above
                logger.warning("registry can't be watched", extra={"reason": str(error)})
            await asyncio.sleep(1.0)

    def _broker_started(self) -> None:
        self._map_stale = True
        self._wake.set()

    def _broker_says(self) -> None:
        if self._news is None:
            self._news = asyncio.get_running_loop().call_later(max(_NEWS_S, 3 * self._look_s), self._look)

    def _look(self) -> None:
        self._news = None
        self._wake.set()

    # ---- steering ------------------------------------------------------------------------------------------

    async def _steer(self) -> None:
        while True:
            self._wake.clear()
            began = time.monotonic()
            try:
                await self._tick()
                self._trouble = ""
            except Exception as error:
                # The broker restarts, or Redis is away: the next look repairs it. Logged once, not twice a
                # second.
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    unexpected = not isinstance(error, FleetError | OSError)
                    logger.warning("steering failed", extra={"reason": str(error)}, exc_info=unexpected)
            self._look_s = time.monotonic() - began
            with contextlib.suppress(TimeoutError):
                async with Timeout(self._poll_s):
                    await self._wake.wait()

    async def _tick(self) -> None:
        if self._stale:
            self._stale = False
            try:
                await self._read_registry()
            except Exception as error:
                self._stale = True
                if not self._known:
                    raise  # an empty list would remove every server
                unexpected = not isinstance(error, FleetError)
                logger.warning("registry can't be read", extra={"reason": str(error)}, exc_info=unexpected)
        entries = {entry.name: entry for entry in self._entries()}
        runtime = self.broker.runtime
        if self._map_stale:
            wanted = {pool: backend_of(slot) for pool, slot in self._pools.items()}
            await runtime.map_pools(self._files.pools, wanted)
            if self._settings.editor:
                await runtime.map_all(self._files.no_editors, no_editors_of(self._nodes))
            self._map_stale = await self._tell_secret()
        await self._keep_pools()
        rows = await self._rows(entries)
        targets = await self._targets(entries, rows)
        ours = [
            server
            for server in await runtime.servers()
            if server.backend == DIRECT or server.backend.startswith("be_pool_")
        ]
        again = False
        steps = plan(targets, ours, self._first.ready(), await runtime.map(self._files.vias))
        for step in steps:
            again |= await self._do(step)
        if opened := {step.server.name for step in steps if isinstance(step, Open)}:
            rows |= await self._rows({name: entry for name, entry in entries.items() if name in opened})
        await self._report(entries, targets, rows)
        if self._cuts is not None:
            await self._cuts.look()
        if self._strays is not None:
            await self._strays.look([name for name, row in rows.items() if row["scur"] not in ("", "0")])
        if again:
            self._wake.set()

    async def _tell_secret(self) -> bool:
        """Tell the broker what its ports ask for; return True if that is not known yet."""
        if self._settings.broker_bind is None:
            return False
        secret = self._broker_secret()
        await self.broker.runtime.map_all(self._files.secrets, secrets_of(secret))
        return secret is None

    async def _read_registry(self) -> None:
        nodes = await self._registry.nodes()
        if self._known and list(nodes) == list(self._nodes):
            return
        self._known = True
        self._map_stale |= no_editors_of(nodes) != no_editors_of(self._nodes)
        self._nodes = nodes
        known = {node.name for node in nodes}
        self._seen = {name: seen for name, seen in self._seen.items() if name in known}
        self._place()
        self._unwritten.set()

    async def _rows(self, entries: Mapping[str, Entry]) -> dict[str, Mapping[str, str]]:
        rows: dict[str, Mapping[str, str]] = {}
        for backend in sorted({entry.backend for entry in entries.values()}):
            for row in await self.broker.runtime.stats(backend):
                entry = entries.get(row["svname"])
                if entry is not None and entry.backend == backend:
                    rows[entry.name] = row
        return rows

    async def _targets(
        self, entries: Mapping[str, Entry], rows: Mapping[str, Mapping[str, str]]
    ) -> dict[str, ServerTarget]:
        now = time.monotonic()
        doubt = set()
        for name, entry in entries.items():
            seen = self._seen.setdefault(name, _Seen())
            row = rows.get(name, {})
            if not agent_silent(row):
                seen.silent_since = None
            else:
                if seen.silent_since is None:
                    seen.silent_since = now - silence_s(row)
                doubt.add(entry.agent_host)
            if row.get("status", "").startswith("DOWN"):
                doubt.add(entry.host)
        hosts = [entry.host for entry in entries.values()] + [entry.agent_host for entry in entries.values()]
        found = await self._resolver.resolve(hosts, doubt=doubt)
        return {
            node.name: ServerTarget(
                entry=entries[node.name],
                addresses=found[entries[node.name].host],
                agent_addresses=found[entries[node.name].agent_host],
                drain=node.cordoned or self._too_silent(self._seen[node.name], now),
            )
            for node in self._nodes
            if node.name in entries
        }

    def _too_silent(self, seen: _Seen, now: float) -> bool:
        return seen.silent_since is not None and now - seen.silent_since >= self._agent_grace_s

    async def _do(self, step: Step) -> bool:
        """Carry out one step; return True if another look is due at once."""
        runtime = self.broker.runtime
        match step:
            case Retire(server=server):
                self._first.forget(server.name)
                gone = await runtime.retire(server)
                facts = {"node": server.name, "backend": server.backend}
                if gone:
                    logger.info("server removed", extra=facts)
                elif not server.maint:
                    logger.info("server leaves with its last connection", extra=facts)
                return gone
            case Add(entry=entry, address=address, agent=agent):
                await runtime.add(
                    entry, address, agent, vias=self._files.vias, ca_file=ca_file_of(self._settings)
                )
                self._first.ask(entry, agent)
                logger.info("server added", extra={"node": entry.name, "backend": entry.backend})
            case Open(server=server, percent=percent):
                await runtime.open(server, percent)
                logger.info("server opened", extra={"node": server.name, "backend": server.backend})
            case Move(server=server, address=address, port=port):
                await runtime.move(server, address, port)
                logger.info("server moved", extra={"node": server.name, "address": address, "port": port})
            case MoveAgent(server=server, address=address, port=port):
                await runtime.move_agent(server, address, port)
                logger.info("agent moved", extra={"node": server.name, "address": address, "port": port})
            case Drain(server=server):
                await runtime.drain(server)
                logger.info("server drained", extra={"node": server.name, "backend": server.backend})
            case Forget(name=name):
                await runtime.forget(name, vias=self._files.vias)
        return False

    # ---- verdicts ------------------------------------------------------------------------------------------

    async def _report(
        self,
        entries: Mapping[str, Entry],
        targets: Mapping[str, ServerTarget],
        rows: Mapping[str, Mapping[str, str]],
    ) -> None:
        now = time.monotonic()
        for node in self._nodes:
            seen = self._seen.setdefault(node.name, _Seen())
            if node.name not in entries:
                verdict, why = (
                    "down",
                    (f"no slot for pool {node.pool}: raise FLEET_POOL_SLOTS and restart `fleet haproxy run`"),
                )
            elif not targets[node.name].addresses:
                verdict, why = "down", f"host {entries[node.name].host} does not resolve"
            elif not targets[node.name].agent_addresses:
                verdict, why = "down", f"its agent's host {entries[node.name].agent_host} does not resolve"
            elif node.name not in rows:
                verdict, why = "new", "is being added"
            else:
                verdict, why = verdict_of(node, rows[node.name], silent=self._too_silent(seen, now))
                if verdict == "up" and self._strays is not None:
                    why = self._strays.told(node.name)
            told = (node.added_at, verdict, why)
            if told == seen.told:
                continue
            await self._registry.report(node.name, verdict=verdict, why=why)
            seen.told = told
            logger.info("node verdict", extra={"node": node.name, "verdict": verdict, "why": why})
        told_of = ((node, self._seen[node.name].told) for node in self._nodes)
        self._pool_news.tell([(node, told[1], told[2]) for node, told in told_of if told is not None])
