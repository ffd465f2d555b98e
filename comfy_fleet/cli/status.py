"""``fleet status``: an overview of the fleet."""

import time
from collections import Counter
from typing import Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.node_diff import say_unequal
from comfy_fleet.cli.node_state import COLUMNS, nodes_of, row
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Fleet")(status)


def status(
    wait: Annotated[bool, typer.Option("--wait", help="Wait until a job could run.")] = False,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="With --wait: give up after this many seconds.")
    ] = 60,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Show whether a job could run, and the queue; to operators every node, to others their own jobs.

    Exits with 0 if a job could run, 1 if not, 3 if nothing answers, 6 if the time for --wait is up.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import SIMULATED, facts, print_json, stdout, table

    with Client(api, key) as client:
        why, notes = wait_until_ready(client, timeout if wait else 0)
        places = client.get("/api/v1/health")
        fleet, console_url = places.get("url") or client.url, places.get("console_url")
        me = _me(client)
        operator = bool({"operator", "agent"} & {*me["roles"]})
        nodes = nodes_of(client.get("/api/v1/nodes")) if operator else []
        counts: dict[str, Any] = {"queued": client.get("/api/v1/queue")["queued"]}
        if operator:
            counts["running"] = sum(bool(node.get("run")) for node in nodes)
        else:
            counts["live_of_mine"] = me["live_jobs"]
    if json_:
        print_json(
            {
                "url": fleet,
                "console_url": console_url,
                "ready": why is None,
                "why": why,
                "notes": notes,
                "me": me,
                "jobs": counts,
                "nodes": nodes,
            }
        )
    else:
        console = stdout()
        verdicts = Counter("drain" if node.get("cordoned") else node.get("verdict") for node in nodes)
        words = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
        simulated = sum(bool(node.get("simulated")) for node in nodes)
        pairs: dict[str, Any] = {
            "fleet": fleet,
            "console": console_url,
            "asked at": client.url if client.url not in (fleet, console_url) else None,
            "ready": "yes" if why is None else f"no: {why}",
            "queue": f"{counts['queued']} queued",
        }
        if operator:
            pairs["queue"] += f", {counts['running']} running"
            pairs["nodes"] = words or "none; add one: fleet node add NAME URL"
        else:
            pairs["you"] = f"{me['user']} ({', '.join(me['roles'])})"
            pairs["your jobs"] = f"{counts['live_of_mine']} waiting or running; fleet job ls"
        if notes:
            pairs["note"] = "; ".join(notes)
        if simulated:
            pairs[""] = f"{SIMULATED}: {simulated} of {len(nodes)} nodes"
        console.print(facts(pairs))
        if nodes:
            console.print()
            console.print(table(COLUMNS, [row(node) for node in nodes]))
            say_unequal(nodes)
    raise typer.Exit(Exit.OK if why is None else Exit.FAILED)


def _me(client: Any) -> dict[str, Any]:
    """Return who asks; an earlier version does not say it, and shows nodes to operators alone."""
    try:
        return dict(client.get("/api/v1/me"))
    except Fail as error:
        if error.exit is not Exit.NOT_FOUND:
            raise
        return {"user": "", "roles": ["operator"], "live_jobs": 0}


def wait_until_ready(client: Any, timeout_s: float) -> tuple[str | None, list[str]]:
    """Return None once a job could run, or why it could not, and notes; wait if there is a timeout.

    Raises:
        Fail: Nothing answers, or the time is up.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            answer = client.get("/api/v1/ready")
        except Fail as error:
            reached = error.exit is Exit.REFUSED
            if timeout_s <= 0:
                if reached:
                    return error.message, []
                raise
            if time.monotonic() > deadline:
                raise Fail(
                    f"not ready after {timeout_s:g} s: {error.message}", hint=error.hint, code=Exit.TIMEOUT
                ) from error
            time.sleep(0.1)
        else:
            return None, answer.get("notes", [])
