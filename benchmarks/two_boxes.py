"""``python -m benchmarks.two_boxes``: two boxes in network namespaces, either of them cut off.

Plays what docs/howto/two-boxes.md says, with its commands, and tells what it sees. Each box has a Redis,
nodes and a dispatcher; one has the broker, the edge and the API, and is the one that the name ``fleet-box``
means. Needs root, for ``ip netns``.
"""

import asyncio
import base64
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from benchmarks.clients import trivial_graph
from benchmarks.operations import FINAL
from benchmarks.stage import BenchError, bounded
from comfy_fleet.adapters.system.redis_program import program
from comfy_fleet.cli.up.nodes import fleet as fleet_command
from comfy_fleet.cli.up.programs import find_haproxy
from comfy_fleet.timeouts import Timeout

ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2", "c": "10.77.0.3"}
NODES = 2
JOB_S = 3.0
WAIT_S = 120.0
REDIS = 6379
HIDDEN_S = 12.0  # a primary that hears of no replica for 10 s takes no writes


class Network:
    """Three namespaces, the boxes and a client, on a switch in a fourth."""

    def __init__(self) -> None:
        self._name = f"fleet{os.getpid()}"
        self.spaces = {box: f"{self._name}{box}" for box in ADDRESSES}
        self._switch = f"{self._name}s"
        self.etc = Path("/etc/netns")

    async def make(self) -> None:
        """Make it. Raises BenchError where that is not possible."""
        await ip("netns", "add", self._switch)
        await ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        await ip("-n", self._switch, "link", "set", "br0", "up")
        for box, space in self.spaces.items():
            await ip("netns", "add", space)
            await ip(
                "-n",
                space,
                "link",
                "add",
                "eth0",
                "type",
                "veth",
                "peer",
                "name",
                f"to-{box}",
                "netns",
                self._switch,
            )
            await ip("-n", self._switch, "link", "set", f"to-{box}", "master", "br0", "up")
            await ip("-n", space, "addr", "add", f"{ADDRESSES[box]}/24", "dev", "eth0")
            await ip("-n", space, "link", "set", "eth0", "up")
            await ip("-n", space, "link", "set", "lo", "up")
            (self.etc / space).mkdir(parents=True, exist_ok=True)
            self.name(box, "a")

    def name(self, box: str, active: str) -> None:
        """Write a box's ``/etc/hosts``: the name leads to the active box."""
        text = f"127.0.0.1 localhost\n{ADDRESSES[active]} fleet-box\n"
        (self.etc / self.spaces[box] / "hosts").write_text(text)  # in place: running processes see it

    async def cut(self, box: str) -> None:
        """Cut a box off."""
        await ip("-n", self._switch, "link", "set", f"to-{box}", "down")

    async def join(self, box: str) -> None:
        """Let it reach the others again."""
        await ip("-n", self._switch, "link", "set", f"to-{box}", "up")

    async def remove(self) -> None:
        """Remove all of it."""
        for space in (*self.spaces.values(), self._switch):
            with contextlib.suppress(BenchError):
                await ip("netns", "del", space)
            shutil.rmtree(self.etc / space, ignore_errors=True)


async def ip(*args: str) -> None:
    """Run ``ip``. Raises BenchError."""
    code, said = await ran("ip", *args)
    if code:
        raise BenchError(f"ip {' '.join(args)}: {said.strip()}")


async def ran(*argv: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a command to its end; return its status and what it said."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=None if env is None else {**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode(errors="replace")


@dataclass
class Boxes:
    """Both boxes, and who stands before them."""

    network: Network
    folder: Path
    tell: Callable[[str], None]
    running: dict[tuple[str, str], asyncio.subprocess.Process] = field(default_factory=dict)
    jobs: set[str] = field(default_factory=set)
    sent: int = 0

    def env(self, box: str, **more: str) -> dict[str, str]:
        """Return the settings of a box's processes."""
        own = {
            "FLEET_DATA": str(self.folder / box),
            "FLEET_REDIS_URL": f"redis://fleet-box:{REDIS}/0",
            "FLEET_REDIS_REPLICAS": "1",
            "FLEET_BROKER_BIND": "0.0.0.0",
            "FLEET_BROKER_HOST": "fleet-box",
            "FLEET_HOST": "0.0.0.0",
            "FLEET_KEYS_FILE": str(self.folder / "keys"),
            "FLEET_AGENT_TOKEN": "agent-token-of-a-test",
            "FLEET_HAPROXY_BIN": find_haproxy("haproxy"),
            "FLEET_LOG_FORMAT": "json",
        }
        return own | more

    async def start(self, box: str, name: str, *argv: str, **more: str) -> None:
        """Start a process in a box."""
        log = (self.folder / f"{box}-{name}.log").open("ab")
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", self.network.spaces[box], *argv),
            env={**os.environ, **self.env(box, **more)},
            stdout=log,
            stderr=log,
        )
        log.close()
        self.running[box, name] = process

    async def stop(self, box: str, *names: str) -> None:
        """Stop processes of a box, as ``systemctl stop`` does."""
        for name in names:
            if (process := self.running.pop((box, name), None)) is None or process.returncode is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                async with Timeout(20):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    async def fleet(self, box: str, *names: str, **more: str) -> None:
        """Start some of a box's fleet processes."""
        argv = {
            "haproxy": fleet_command("haproxy", "run"),
            "api": fleet_command("api"),
            "agent": fleet_command("agent"),
            "dispatch": fleet_command("dispatch", "--name", f"dispatch-{box}"),
        }
        for name in names:
            await self.start(box, name, *argv[name], **more)

    async def redis(self, box: str, *command: str) -> str:
        """Type a command to a box's own Redis."""
        self.tell(f"  {box}$ redis-cli {' '.join(command)}")
        return await self.ask_redis(box, *command)

    async def ask_redis(self, box: str, *command: str) -> str:
        """Ask a box's own Redis."""
        text = (
            "import sys, redis; print(redis.Redis(socket_timeout=5, decode_responses=True)"
            ".execute_command(*sys.argv[1:]))"
        )
        code, said = await self.inside(box, sys.executable, "-c", text, *command)
        if code:
            raise BenchError(f"Redis of box {box}: {said.strip().splitlines()[-1]}")
        return said.strip()

    async def inside(self, box: str, *argv: str) -> tuple[int, str]:
        """Run a command in a box's namespace."""
        return await ran("ip", "netns", "exec", self.network.spaces[box], *argv, env=self.env(box))

    async def submit(self, box: str, at: str = "fleet-box", *, key: str = "") -> tuple[int, str]:
        """Submit a job from somewhere; return status (0: no answer) and the job's id, or the error's code."""
        self.sent += 1
        graph = trivial_graph()
        graph["1"]["inputs"]["color"] = self.sent
        body = orjson.dumps({"workflow": graph}).decode()
        code, said = await self.inside(
            box,
            *("curl", "-s", "-m", "6", "-w", "\n%{http_code}", f"http://{at}:8188/api/v2/jobs", "-d", body),
            *("-H", "X-API-Key: client-key-of-a-test", "-H", "Content-Type: application/json"),
            *("-H", f"Idempotency-Key: {key or f'two-{self.sent}'}"),
        )
        answer, _, status = said.rpartition("\n")
        if code or not answer:
            return 0, "no answer"
        found: dict[str, Any] = orjson.loads(answer)
        if status == "201":
            self.jobs.add(found["id"])
            return 201, found["id"]
        return int(status), found["error"]["code"]

    async def job(self, job_id: str) -> str:
        """Return a job's state, as a client sees it."""
        code, said = await self.inside(
            "c",
            *("curl", "-s", "-m", "6", f"http://fleet-box:8188/api/v2/jobs/{job_id}"),
            *("-H", "X-API-Key: client-key-of-a-test"),
        )
        with contextlib.suppress(ValueError):
            return str(orjson.loads(said).get("status", said)) if not code else "no answer"
        return said

    async def until_ended(self) -> float:
        """Wait until all acknowledged jobs have ended; return the seconds that it took."""
        began = time.monotonic()
        left = set(self.jobs)
        while left:
            states = {job: await self.job(job) for job in left}
            left -= {job for job, state in states.items() if state in FINAL}
            if time.monotonic() - began > WAIT_S:
                raise BenchError(f"{len(left)} jobs have not ended: {sorted(set(states.values()))}")
        return time.monotonic() - began

    async def until_submits(self, *, keys: str) -> float:
        """Submit until a job is acknowledged; return the seconds that it took."""
        began = time.monotonic()
        while (answer := await self.submit("c", key=keys))[0] not in (201, 422):
            if time.monotonic() - began > WAIT_S:
                raise BenchError(f"no submit is acknowledged: {answer}")
            await asyncio.sleep(0.2)
        return time.monotonic() - began


@asynccontextmanager
async def boxes(tell: Callable[[str], None]) -> AsyncIterator[Boxes]:
    """Make both boxes; A is the active one."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-boxes-"))
    network = Network()
    made = Boxes(network, folder, tell)
    try:
        await network.make()
        (folder / "files").mkdir()
        (folder / "keys").write_text("client client-key-of-a-test\nops ops-key-of-a-test operator\n")
        (folder / "keys").chmod(0o600)
        (folder / "secret").write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
        (folder / "secret").chmod(0o600)
        for box in "ab":
            for part in ("redis", "sim"):
                (folder / box / part).mkdir(parents=True)
            (folder / box / "files").symlink_to(folder / "files")  # storage that both boxes mount
            shutil.copy(folder / "secret", folder / box / "secret.key")
            argv = [program(), "--dir", str(folder / box / "redis"), "--protected-mode", "no", "--save", ""]
            argv += ["--appendonly", "yes", "--appendfsync", "no", "--repl-diskless-sync-delay", "0"]
            argv += ["--replicaof", f"{ADDRESSES['a']} {REDIS}"] if box == "b" else []
            await made.start(box, "redis", *argv)
            sims = ["--nodes", str(NODES), "--host", ADDRESSES[box], "--data", str(folder / box / "sim")]
            await made.start(box, "sim", *fleet_command("sim", *sims, "--job-seconds", str(JOB_S)))
        await until(made, lambda made: replicated(made, "a"), "the replica follows")
        await made.ask_redis("a", "CONFIG", "SET", "min-replicas-to-write", "1")
        await made.fleet("a", "haproxy", "api", "agent", "dispatch")
        await made.fleet("b", "dispatch")
        await until(made, ready, "the fleet is ready")
        await add_nodes(made)
        await until(made, lambda made: up(made, 2 * NODES), "all nodes are up")
        yield made
    except BenchError as error:
        for line in last_lines(folder):
            error.add_note(line)
        raise
    finally:
        for box, name in reversed(list(made.running)):
            await made.stop(box, name)
        await network.remove()
        shutil.rmtree(folder, ignore_errors=True)


async def add_nodes(made: Boxes) -> None:
    """Register all nodes. Raises BenchError."""
    for box in "ab":
        for number in range(NODES):
            body = {"name": f"{box}-{number}", "url": f"http://{ADDRESSES[box]}:{8301 + number}"}
            code, said = await made.inside(
                "a",
                *("curl", "-s", "-m", "20", "http://127.0.0.1:8189/api/v1/nodes"),
                *("-H", "X-API-Key: ops-key-of-a-test", "-H", "Content-Type: application/json"),
                *("-d", orjson.dumps(body).decode()),
            )
            if code or '"error"' in said:
                raise BenchError(f"node {body['name']}: {said}")


def last_lines(folder: Path) -> list[str]:
    """Return the last lines of all logs."""
    return [
        f"{log.stem}: {line[:300]}"
        for log in sorted(folder.glob("*.log"))
        for line in log.read_text(errors="replace").splitlines()[-2:]
    ]


async def until(made: Boxes, check: Callable[[Boxes], Awaitable[bool]], what: str) -> None:
    """Wait for a condition. Raises BenchError."""
    deadline = time.monotonic() + WAIT_S
    while True:
        for (box, name), process in made.running.items():
            if process.returncode is not None:
                raise BenchError(f"{name} of box {box} has ended")
        with contextlib.suppress(BenchError):
            if await check(made):
                return
        if time.monotonic() > deadline:
            raise BenchError(f"waited in vain until {what}")
        await asyncio.sleep(0.3)


async def replicated(made: Boxes, box: str) -> bool:
    """Whether a box's Redis has a replica that follows."""
    said = await made.ask_redis(box, "INFO", "replication")
    return "'state': 'online'" in said or "state=online" in said


async def ready(made: Boxes) -> bool:
    """Whether the API answers a client."""
    code, _ = await made.inside("c", "curl", "-s", "-f", "-m", "5", "http://fleet-box:8188/api/v1/health")
    return code == 0


async def up(made: Boxes, count: int) -> bool:
    """Whether so many nodes are up."""
    _, said = await made.inside(
        "c",
        *(
            "curl",
            "-s",
            "-m",
            "5",
            "http://fleet-box:8189/api/v1/nodes",
            "-H",
            "X-API-Key: ops-key-of-a-test",
        ),
    )
    try:
        nodes = orjson.loads(said).get("nodes", [])
    except ValueError:
        return False
    return len([node for node in nodes if node.get("verdict") == "up"]) >= count


async def a_is_cut_off(made: Boxes) -> None:
    """Cut the active box off, fail over to the other one, and bring the first back as its replica."""
    tell = made.tell
    for _ in range(12):
        await made.submit("c")
    tell(f"A is the active box; {len(made.jobs)} submits were acknowledged. A is cut off")
    await made.network.cut("a")
    cut = time.monotonic()
    tell(f"  a client: {await made.submit('c', ADDRESSES['a'])}")
    tell(f"  on A itself: {await made.submit('a', ADDRESSES['a'])}")
    await asyncio.sleep(max(0.0, HIDDEN_S - (time.monotonic() - cut)))
    tell(f"  on A itself, {HIDDEN_S:g} s later: {await made.submit('a', ADDRESSES['a'])}")
    tell("fail over to B:")
    await made.redis("b", "REPLICAOF", "NO", "ONE")
    await made.redis("b", "CONFIG", "SET", "min-replicas-to-write", "0")
    tell("  b, client$ fleet-box is B in /etc/hosts")
    for box in "bc":
        made.network.name(box, "b")
    tell("  b$ FLEET_REDIS_REPLICAS=0; start fleet haproxy run, fleet api, fleet agent")
    await made.fleet("b", "haproxy", "api", "agent", FLEET_REDIS_REPLICAS="0")
    began = time.monotonic()
    took = await made.until_submits(keys="after-a")
    tell(f"  a submit is acknowledged after {took:.1f} s")
    await made.until_ended()
    took = time.monotonic() - began
    tell(f"  all {len(made.jobs)} acknowledged jobs have ended {took:.1f} s after the failover")
    await once(made, "b")
    tell("A can reach the others again, and nobody has typed anything there")
    await made.network.join("a")
    await asyncio.sleep(2)
    tell(f"  a submit at A: {await made.submit('a', ADDRESSES['a'])}")
    tell("  a$ stop fleet haproxy, api, agent, dispatch; fleet-box is B in /etc/hosts")
    await made.stop("a", "haproxy", "api", "agent", "dispatch")
    made.network.name("a", "b")
    await made.redis("a", "REPLICAOF", ADDRESSES["b"], str(REDIS))
    await until(made, lambda made: replicated(made, "b"), "A follows B")
    await made.redis("b", "CONFIG", "SET", "min-replicas-to-write", "1")
    tell("  b$ FLEET_REDIS_REPLICAS=1; restart fleet api      a$ start fleet dispatch")
    await made.stop("b", "api")
    await made.fleet("b", "api")
    await made.fleet("a", "dispatch")
    await made.until_submits(keys="back")
    await until(made, lambda made: up(made, 2 * NODES), "all nodes are up again")
    await made.until_ended()
    tell("  A is the replica now, and its nodes work")


async def b_is_cut_off(made: Boxes) -> None:
    """Cut the replica's box off, go on alone, and take it back."""
    active, other = ("b", "a") if ("b", "api") in made.running else ("a", "b")
    tell, upper = made.tell, {"a": "A", "b": "B"}
    for _ in range(8):
        await made.submit("c")
    tell(f"{upper[active]} is the active box. {upper[other]}, the replica's, is cut off")
    await made.network.cut(other)
    cut = time.monotonic()
    tell(f"  a client: {await made.submit('c')}")
    await asyncio.sleep(max(0.0, HIDDEN_S - (time.monotonic() - cut)))
    tell(f"  a client, {HIDDEN_S:g} s later: {await made.submit('c')}")
    tell("go on alone:")
    await made.redis(active, "CONFIG", "SET", "min-replicas-to-write", "0")
    tell(f"  {active}$ FLEET_REDIS_REPLICAS=0; restart fleet api")
    await made.stop(active, "api")
    await made.fleet(active, "api", FLEET_REDIS_REPLICAS="0")
    tell(f"  a submit is acknowledged after {await made.until_submits(keys='alone'):.1f} s")
    tell(f"  all {len(made.jobs)} acknowledged jobs have ended {await made.until_ended():.1f} s later")
    await once(made, active)
    tell(f"{upper[other]} can reach the others again")
    await made.network.join(other)
    await until(made, lambda made: replicated(made, active), "the replica follows again")
    await made.redis(active, "CONFIG", "SET", "min-replicas-to-write", "1")
    tell(f"  {active}$ FLEET_REDIS_REPLICAS=1; restart fleet api")
    await made.stop(active, "api")
    await made.fleet(active, "api")
    await made.until_submits(keys="both")
    await until(made, lambda made: up(made, 2 * NODES), "all nodes are up again")
    await made.until_ended()
    tell("  the replica follows, and all nodes work")


async def nobody_types(made: Boxes) -> None:
    """Cut the replica's box off for a while, and do nothing."""
    active, other = ("b", "a") if ("b", "api") in made.running else ("a", "b")
    tell, upper = made.tell, {"a": "A", "b": "B"}
    for _ in range(8):
        await made.submit("c")
    tell(f"{upper[active]} is the active box. {upper[other]}, the replica's, is cut off, and nobody types")
    await made.network.cut(other)
    await asyncio.sleep(HIDDEN_S)
    tell(f"  a client, {HIDDEN_S:g} s later: {await made.submit('c')}")
    await made.network.join(other)
    tell(f"{upper[other]} can reach the others again")
    tell(f"  a submit is acknowledged after {await made.until_submits(keys='nobody'):.1f} s")
    tell(f"  all {len(made.jobs)} acknowledged jobs have ended {await made.until_ended():.1f} s later")
    await once(made, active)


async def once(made: Boxes, box: str) -> None:
    """Check that every acknowledged job is there and has ended once. Raises BenchError."""
    for job in made.jobs:
        if (ends := await made.ask_redis(box, "XLEN", f"rq:results:{job}")) != "1":
            raise BenchError(f"job {job} has ended {ends} times")


CASES = {"a": a_is_cut_off, "b": b_is_cut_off, "n": nobody_types}


async def play(cases: str, tell: Callable[[str], None]) -> None:
    """Play some cases, one after the other, on the same boxes."""
    if os.getuid():
        raise BenchError("network namespaces need root")
    playing, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert playing is not None

    def end() -> None:
        if not playing.cancelling():  # once: what follows tidies up
            playing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    async with bounded(900, "both boxes"), boxes(tell) as made:
        for case in cases:
            await CASES[case](made)


def two_boxes(
    case: Annotated[
        str,
        typer.Option(
            help="One letter each: a (the active box is cut off), b (the other one), n (nobody types)."
        ),
    ] = "abn",
) -> None:
    """Cut either of two boxes off, type what docs/howto/two-boxes.md says, and tell what is seen."""
    console = Console()
    if unknown := "".join(sorted(set(case) - CASES.keys())):
        console.print(f"[red]--case {unknown}: there are {', '.join(CASES)}[/]", highlight=False)
        raise typer.Exit(2)
    logging.disable(logging.WARNING)
    began = time.monotonic()
    try:
        asyncio.run(
            play(
                case,
                lambda text: console.print(f"{time.monotonic() - began:6.1f} s  {text}", highlight=False),
            )
        )
    except BenchError as error:
        console.print(f"[red]{error}[/]", highlight=False)
        for note in getattr(error, "__notes__", ()):
            console.print(f"  {note}", highlight=False, markup=False)
        raise typer.Exit(1) from None
    console.print("[bold green]every acknowledged job has ended once[/]", highlight=False)


if __name__ == "__main__":
    sys.argv[0] = "scripts/chaos --two-boxes"
    typer.run(two_boxes)
