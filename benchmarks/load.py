"""Runs locust's users against a fleet, in rounds of more and more of them, and shows what they met.

Usage: ``scripts/load``, which has locust in an environment of its own.
"""

import argparse
import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

USERS = (10, 50, 100)
NODES, JOB_S = 4, 0.3
ROOT = Path(__file__).resolve().parent.parent
UP_S = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds; returns 1 if a request or a job failed."""
    options = _parser().parse_args(arguments)
    if options.url:
        _check_loopback(options.url)
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(simulated_fleet(options.nodes, options.job_seconds))[0]
        print(f"load: {url}, {options.seconds} s for each round")
        failed = 0
        for at, users in enumerate(options.users or USERS):
            print(f"load: {users} users ...", flush=True)
            rows = _round(options.locust, url, users, options.seconds, options.report)
            failed += sum(int(row["num_failures"]) for row in rows)
            show(rows, users, options.seconds, first=at == 0)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/load", description="Users against a fleet of simulated nodes, or one that runs here."
    )
    parser.add_argument(
        "--users",
        type=_above_0,
        action="append",
        metavar="N",
        help="users of a round; repeatable (10, 50, 100)",
    )
    parser.add_argument("--seconds", type=_above_0, default=30, metavar="S", help="length of a round (30)")
    parser.add_argument(
        "--url", help="a fleet that already runs on this machine, instead of one of its own; key: LOAD_KEY"
    )
    parser.add_argument(
        "--nodes", type=_above_0, default=NODES, metavar="N", help=f"simulated nodes ({NODES})"
    )
    parser.add_argument(
        "--job-seconds",
        type=float,
        default=JOB_S,
        metavar="S",
        help=f"how long a node takes for a job ({JOB_S})",
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write locust's HTML page of each round there"
    )
    parser.add_argument("--locust", default="locust", help=argparse.SUPPRESS)
    return parser


def _above_0(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 100000")
    return int(text)


def _check_loopback(url: str) -> None:
    """Refuse to load anybody else's machine."""
    host = urlsplit(url).hostname or ""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        sys.exit(f"scripts/load: --url {url}: {host or 'no host'} is not known here ({error})")
    if not host or not all(ipaddress.ip_address(address).is_loopback for address in found):
        sys.exit(
            f"scripts/load: --url {url} is not on this machine, and this puts as much load on it as it can: "
            "run it beside the fleet, with http://127.0.0.1:PORT"
        )


@contextlib.contextmanager
def simulated_fleet(nodes: int, job_s: float, *, script: str = "load") -> Iterator[tuple[str, Path]]:
    """Run a fleet of simulated nodes; yields its address and its data folder."""
    with tempfile.TemporaryDirectory(prefix=f"fleet-{script}-") as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        data = str(Path(folder) / "fleet")
        fleet = [sys.executable, "-m", "comfy_fleet"]
        # What this shell has set for another fleet is not meant for this one.
        env = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
        up = ["up", "-d", "--data", data, "--port", str(port), "--nodes", str(nodes)]
        more = ["--job-seconds", f"{job_s:g}", "--ready-timeout", str(UP_S)]
        print(f"{script}: starting a fleet of {nodes} simulated nodes", flush=True)
        try:
            subprocess.run([*fleet, *up, *more], env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            yield f"http://127.0.0.1:{port}", Path(data)
        except subprocess.CalledProcessError:
            sys.exit(f"scripts/{script}: the fleet did not start: see above")
        finally:
            subprocess.run(
                [*fleet, "down", "--data", data], env=env, cwd=ROOT, check=False, stdout=subprocess.DEVNULL
            )


def _round(locust: str, url: str, users: int, seconds: int, report: Path | None) -> list[Mapping[str, Any]]:
    """Run so many users, all there within a few seconds; returns locust's figures by request."""
    command = [locust, "-f", str(ROOT / "benchmarks" / "locustfile.py"), "--headless", "--json"]
    command += ["--host", url, "-u", str(users), "-r", str(max(1, users // 5)), "-t", f"{seconds}s"]
    command += ["--stop-timeout", "30", "--exit-code-on-error", "0", "--loglevel", "WARNING"]
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        command += ["--html", str(report / f"{users}-users.html")]
    # It tells its own table on the error output: ours is the one to read, unless something went wrong.
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr[-4000:]}scripts/load: locust ended with {done.returncode}: see above")
    rows: list[Mapping[str, Any]] = json.loads(done.stdout)
    return rows


def show(rows: Sequence[Mapping[str, Any]], users: int, seconds: int, *, first: bool) -> None:
    """Print a round's table, jobs last."""
    widths = "{:>5} {:<38} {:>7} {:>6} {:>7} {:>7} {:>7}"
    if first:
        print(widths.format("users", "what", "per s", "failed", "p50 ms", "p95 ms", "p99 ms"))
    for row in sorted(rows, key=lambda row: (row["method"] == "job", row["name"])):
        times = {int(ms): int(count) for ms, count in row["response_times"].items()}
        shown = [f"{_percentile(times, share):.0f}" for share in (0.5, 0.95, 0.99)]
        rate = f"{int(row['num_requests']) / seconds:.1f}"
        print(widths.format(users, str(row["name"])[:38], rate, row["num_failures"], *shown), flush=True)


def _percentile(times: Mapping[int, int], share: float) -> float:
    """Return a percentile of response times from how often each was met; 0 of none."""
    left = share * sum(times.values())
    for ms in sorted(times):
        left -= times[ms]
        if left <= 0:
            return ms
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
