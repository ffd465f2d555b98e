"""``fleet webhook``: messages about jobs to URLs of one's own."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key

app = typer.Typer(
    help="See messages to webhooks, send them again, show what signs them.", no_args_is_help=True
)
secret = typer.Typer(help="Show or renew the secret that signs your messages.", no_args_is_help=True)
app.add_typer(secret, name="secret")

COLUMNS = ("<Message", ">Since", "State", "Answer")
Operator = Annotated[
    bool, typer.Option("--operator", help="The operator's messages (FLEET_OPERATOR_WEBHOOK_URL) instead.")
]


@app.callback()
def group() -> None:
    """See messages to webhooks, send them again, show what signs them."""


@secret.callback()
def secret_group() -> None:
    """Show or renew the secret that signs your messages."""


@app.command("list", hidden=True)
@app.command("ls")
def list_(
    failed: Annotated[bool, typer.Option("--failed", help="Only those that were given up.")] = False,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="Most messages.")] = 50,
    operator: Operator = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """List messages to your webhooks, newest first."""
    from datetime import UTC

    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stderr, stdout, table

    with Client(api, key) as client:
        answer = client.get(
            "/api/v1/webhooks", failed="true" if failed else None, limit=limit, **_whose(operator)
        )
    if json_:
        print_json(answer)
        return
    if not answer["webhooks"]:
        stderr().print(
            "no message was given up"
            if failed
            else "no messages yet: submit a job with webhook_url, or fleet submit --webhook URL"
        )
        return
    now = datetime.now(UTC)
    stdout().print(table(COLUMNS, [row(one, now) for one in answer["webhooks"]]))


def row(one: Mapping[str, Any], now: datetime) -> tuple[Any, ...]:
    """Return a message as a row under :data:`COLUMNS`, which fits 80 columns: its id has 50 of them."""
    from comfy_fleet.cli.console import ago

    state, tries = one["state"], one["attempts"]
    if one["next_attempt_at"]:
        left_s = (datetime.fromisoformat(one["next_attempt_at"]) - now).total_seconds()
        due = "now" if left_s < 1 else f"in {left_s:.0f}s" if left_s < 120 else f"in {left_s / 60:.0f}m"
        state = f"try {tries + 1} {due}"
    elif tries > 1:
        state = f"{state}, {tries} tries"
    last = one["error"] or (str(one["last_status"]) if one["last_status"] else "")
    return one["id"], ago(one["timestamp"], now), state, last


@app.command()
def redeliver(
    message: Annotated[str, typer.Argument(metavar="ID", help="The message's id: fleet webhook ls.")],
    operator: Operator = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Send a message again, now, under the same id."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout

    query = "?operator=true" if operator else ""
    with Client(api, key) as client:
        answer = client.post(f"/api/v1/webhooks/{quote(message, safe='')}/redeliver{query}")
    if json_:
        print_json(answer)
    else:
        stdout().print(f"{answer['id']} is sent again: fleet webhook ls", markup=False)


@app.command("test")
def try_(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to.")],
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Send a signed message of the type webhook.test to a URL, and say what it answers."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout

    with Client(api, key) as client:
        answer = client.post("/api/v1/webhooks/test", {"url": url})
    if json_:
        print_json(answer)
    elif answer["delivered"]:
        stdout().print(f"delivered: the receiver answered {answer['status']}", markup=False)
    if not answer["delivered"]:
        raise Fail(
            f"not delivered: {answer['error']}",
            hint="a receiver checks the signature with: fleet webhook secret show",
            code=Exit.FAILED,
        )


@secret.command()
def show(operator: Operator = False, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Print the secret with which receivers check your messages' signatures."""
    from comfy_fleet.cli.client import Client

    with Client(api, key) as client:
        _say(client.get("/api/v1/webhooks/secret", **_whose(operator)), json_=json_)


@secret.command()
def rotate(operator: Operator = False, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Draw a new secret. For a day, messages carry the signatures of both."""
    from comfy_fleet.cli.client import Client

    query = "?operator=true" if operator else ""
    with Client(api, key) as client:
        _say(client.post(f"/api/v1/webhooks/secret/rotate{query}"), json_=json_)


def _whose(operator: bool) -> dict[str, str]:
    return {"operator": "true"} if operator else {}


def _say(answer: Mapping[str, Any], *, json_: bool) -> None:
    from comfy_fleet.cli.console import print_json, stderr, stdout

    if json_:
        print_json(answer)
        return
    stdout().print(answer["secret"], markup=False, soft_wrap=True)
    if answer["previous_until"]:
        stderr().print(f"the one before signs, too, until {answer['previous_until']}", markup=False)
