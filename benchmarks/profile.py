"""Draws where a process's time goes: ``scripts/profile``.

It starts a fleet of simulated nodes under load, or looks at a process that runs already.
"""

import argparse
import asyncio
import contextlib
import itertools
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx

from benchmarks.load import simulated_fleet

PROCESSES = ("api", "dispatch", "serve", "haproxy", "agent", "sim", "up")
WARM_UP = 20
"""Jobs that are done before the look begins."""
NOT_ALLOWED = (
    "the kernel does not let this user look into process {pid}. Run it as root: sudo scripts/profile ...; in "
    "a container, start that with --cap-add SYS_PTRACE; for processes of your own, if "
    "kernel.yama.ptrace_scope is 1: sudo sysctl kernel.yama.ptrace_scope=0"
)
_TITLE = re.compile(r'(<text id="title"[^>]*>)[^<]*(</text>)')
IDLE = "the process computed nothing in {seconds} s: put load on it, look for longer, or add --idle"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the picture; returns 0 if there is one."""
    options = _parser().parse_args(arguments)
    out = options.out or Path(f"profile-{options.pid or options.process}.svg")
    try:
        if options.pid is not None:
            return _drawn(options, options.pid, out)
        if options.data is not None:
            return _drawn(options, find(options.process, options.data), out)
        with simulated_fleet(options.nodes, options.job_seconds, script="profile") as (url, data):
            pid = find(options.process, data)
            with _load(url, options.clients) as done:
                _warm(done)
                before = done()
                code = _drawn(options, pid, out)
                print(f"profile: {done() - before} jobs ended meanwhile")
            return code
    except Trouble as error:
        print(f"scripts/profile: {error}", file=sys.stderr)
        return 1


class Trouble(Exception):
    """There will be no picture; says why, and what to do."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/profile", description="A flame graph of one of the fleet's processes."
    )
    parser.add_argument(
        "process", nargs="?", choices=PROCESSES, default="api", help="api (the default), dispatch ..."
    )
    parser.add_argument("--seconds", type=_number, default=10, metavar="S", help="for how long (10)")
    parser.add_argument("--rate", type=_number, default=200, metavar="HZ", help="samples a second (200)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the picture (profile-PROCESS.svg)")
    parser.add_argument("--idle", action="store_true", help="also what only waits")
    parser.add_argument("--native", action="store_true", help="also functions in C")
    parser.add_argument("--threads", action="store_true", help="each thread for itself")
    parser.add_argument("--nodes", type=_number, default=8, metavar="N", help="simulated nodes (8)")
    parser.add_argument(
        "--job-seconds", type=float, default=0.05, metavar="S", help="how long a node takes for a job (0.05)"
    )
    parser.add_argument(
        "--clients", type=_number, default=16, metavar="N", help="who submit and wait at once (16)"
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--data", type=Path, metavar="DIR", help="a fleet that runs here, by its data folder")
    place.add_argument("--pid", type=_number, metavar="PID", help="any process in Python")
    parser.add_argument("--py-spy", type=Path, default=Path("py-spy"), help=argparse.SUPPRESS)
    return parser


def _number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10**8:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)


def find(process: str, data: Path) -> int:
    """Return the id of a fleet's process.

    Raises:
        Trouble: It does not run, or is another user's.
    """
    there = _running(data.resolve())
    if process not in there:
        found = ", ".join(sorted(there)) or "nothing"
        raise Trouble(f"no {process} runs on {data} as your user on this machine; what does: {found}")
    return there[process]


def _running(data: Path) -> dict[str, int]:
    """Return the processes of a data folder by their names; of several with one name, the first."""
    found: dict[str, int] = {}
    for pid in sorted(int(folder.name) for folder in Path("/proc").glob("[0-9]*")):
        try:
            argv = _words(pid, "cmdline")
            environ = _words(pid, "environ")
            folder = Path(f"/proc/{pid}/cwd").readlink()
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        start = next((at for at, word in enumerate(argv) if _is_fleet(word)), None)
        if start is None or start + 1 >= len(argv):
            continue
        named = [one.removeprefix("FLEET_DATA=") for one in environ if one.startswith("FLEET_DATA=")]
        named += [after for word, after in itertools.pairwise(argv) if word == "--data"]
        # Simulated nodes are not told where the fleet's data are.
        if parent == found.get("up") or any(data == folder.joinpath(one).resolve() for one in named):
            found.setdefault(argv[start + 1], pid)
    return found


def _words(pid: int, file: str) -> list[str]:
    return Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace").split("\0")


def _is_fleet(word: str) -> bool:
    return word == "comfy_fleet" or word.endswith("/bin/fleet")


def _drawn(options: argparse.Namespace, pid: int, out: Path) -> int:
    name = options.process if options.pid is None else f"process {pid}"
    command = [options.py_spy, "record", "--pid", str(pid), "--output", out, "--format", "flamegraph"]
    command += ["--duration", str(options.seconds), "--rate", str(options.rate)]
    command += [f"--{name}" for name in ("idle", "native", "threads") if getattr(options, name)]
    print(f"profile: looking at process {pid} for {options.seconds} s", flush=True)
    with contextlib.suppress(FileNotFoundError):
        out.unlink()  # else an old picture would be taken for the new one
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise Trouble(f"there is no {options.py_spy}: run scripts/setup") from None
    said = f"{done.stdout}{done.stderr}"
    if "permission denied" in said.lower() or "SYS_PTRACE" in said:
        raise Trouble(NOT_ALLOWED.format(pid=pid))
    if "No stack counts" in said or (done.returncode == 0 and not out.exists()):
        raise Trouble(IDLE.format(seconds=options.seconds))
    if done.returncode:
        raise Trouble(f"py-spy ended with {done.returncode}: {said.strip()[-2000:]}")
    title = f"{name}, {options.seconds} s at {options.rate} Hz: width is time"
    out.write_text(_TITLE.sub(rf"\1{title}\2", out.read_text(), count=1))
    print(f"profile: {out.resolve()}: open it in a browser; a click on a box shows it alone, Ctrl-F searches")
    return 0


@contextlib.contextmanager
def _load(url: str, clients: int) -> Iterator[Callable[[], int]]:
    """Have clients submit jobs and wait for them, in a thread; yields what says how many have ended."""
    ended = [0]
    stop = threading.Event()

    async def one(http: httpx.AsyncClient, number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            body = {"params": {"prompt": f"a picture for client {number}", "seed": turn}}
            answer = await http.post(
                "/api/v1/workflows/image_card/jobs", json=body, headers={"Prefer": "wait=30"}
            )
            if answer.status_code == 200 and answer.json()["status"] == "succeeded":
                ended[0] += 1
            else:
                await asyncio.sleep(0.1)

    async def all_of_them() -> None:
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
            await asyncio.gather(*(one(http, number) for number in range(clients)), return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(all_of_them()), daemon=True)
    thread.start()
    try:
        yield lambda: ended[0]
    finally:
        stop.set()
        thread.join(60)


def _warm(done: Callable[[], int]) -> None:
    for _ in range(600):
        if done() >= WARM_UP:
            return
        threading.Event().wait(0.1)
    raise Trouble(f"only {done()} of {WARM_UP} jobs ended within a minute: is the machine busy?")


if __name__ == "__main__":
    sys.exit(main())
