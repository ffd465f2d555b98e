"""``fleet store``: buckets and folders into which outputs are put. For operators."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.paths import path_of
from comfy_fleet.cli.people import Here, connected
from comfy_fleet.cli.people_options import seconds

app = typer.Typer(
    help="Buckets and folders into which jobs' outputs are put: add, list, try, remove.", no_args_is_help=True
)

StoreName = Annotated[str, typer.Argument(metavar="STORE", help="The store's name.")]
MOST_SECRETS = 64 * 1024
_VARIABLES = {
    "s3": {
        "access_key_id": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
    },
    "az": {"account_key": "AZURE_STORAGE_ACCOUNT_KEY", "sas_token": "AZURE_STORAGE_SAS_TOKEN"},
    "gs": {"service_account_key": "GOOGLE_SERVICE_ACCOUNT_KEY"},
}


@app.callback()
def group() -> None:
    """Buckets and folders into which jobs' outputs are put: add, list, try, remove."""


@app.command()
def add(
    name: StoreName,
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX or file:///FOLDER.",
        ),
    ],
    secrets: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-|env",
            help="Where its credentials are: a file (or - for standard input) with lines NAME=VALUE, such "
            "as access_key_id=...; or `env`, the usual variables (AWS_ACCESS_KEY_ID ...). A key file of "
            "Google's is taken as it is.",
            show_default="those of the fleet's machines",
        ),
    ] = None,
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="Where its service answers.", show_default="the provider's")
    ] = "",
    region: Annotated[str, typer.Option(help="Its region, of S3.", show_default="us-east-1")] = "",
    account: Annotated[str, typer.Option(help="Its account, of Azure.", show_default=False)] = "",
    virtual_host: Annotated[
        bool, typer.Option("--virtual-host", help="The bucket's name is part of the endpoint's host.")
    ] = False,
    public_url: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Where everybody can read its objects, such as a CDN.", show_default="nowhere"
        ),
    ] = "",
    signed: Annotated[str, typer.Option(metavar="TIME", help="How long signed URLs are good for.")] = "1h",
    tenant: Annotated[
        list[str] | None,
        typer.Option(help="Who may use it. Repeatable.", show_default="every tenant"),
    ] = None,
    default_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TENANT", help="Whose jobs' outputs go there if a job names no store. Repeatable."
        ),
    ] = None,
    inputs: Annotated[bool, typer.Option("--inputs", help="Jobs may read inputs from it.")] = False,
    redirect: Annotated[
        bool,
        typer.Option(
            "--redirect", help="Downloads of outputs that are there as they are get sent there (HTTP 302)."
        ),
    ] = False,
    on_delete: Annotated[
        Literal["keep", "delete"],
        typer.Option(help="What becomes of a job's objects once the job is deleted, or its time is over."),
    ] = "keep",
    replace: Annotated[
        bool, typer.Option("--replace", help="It may take the place of a store of this name.")
    ] = False,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Try it first: write, read and delete an object.")
    ] = True,
    here: Here = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Add a store. Its credentials stay with the fleet, encrypted, and are never shown.

    Example: `fleet store add shop s3://shop-pictures/products --secrets env --default-for shop`.
    """
    body: dict[str, Any] = {
        "name": name,
        "url": url,
        "endpoint": endpoint,
        "region": region,
        "account": account,
        "virtual_host": virtual_host,
        "public_url": public_url,
        "signed_s": seconds("--signed", signed),
        "tenants": tenant or [],
        "default_for": default_for or [],
        "inputs": inputs,
        "redirect": redirect,
        "on_delete": on_delete,
        "replace": replace,
        "probe": probe,
    }
    if secrets is not None:
        body["credentials"] = credentials_in(secrets, url.partition("://")[0])
    with connected(api, key, here=here) as client:
        _show(client.post("/api/v1/stores", body), json_=json_)


@app.command("list", hidden=True)
@app.command("ls")
def list_(here: Here = False, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """List the stores."""
    from comfy_fleet.cli.console import print_json, stderr, stdout, table

    with connected(api, key, here=here) as client:
        answer = client.get("/api/v1/stores")
    if json_:
        print_json(answer)
    elif not answer["stores"]:
        stderr().print("there is no store: fleet store add NAME URL")
    else:
        rows = [
            (
                one["name"],
                one["url"],
                ", ".join(one["tenants"]) or "all",
                ", ".join(one["default_for"]),
                one["waiting"] or "",
                one["error"] or (f"{one['not_stored']} jobs not stored" if one["not_stored"] else ""),
            )
            for one in answer["stores"]
        ]
        stdout().print(table(("<Store", "<URL", "<Tenants", "<Default for", ">Waiting", "Trouble"), rows))


@app.command()
def show(
    name: StoreName, here: Here = False, json_: Json = False, api: Api = DEFAULT_API, key: Key = None
) -> None:
    """Show a store, without what opens it."""
    with connected(api, key, here=here) as client:
        _show(client.get(path_of("store", name)), json_=json_)


@app.command("test")
def try_(
    name: StoreName, here: Here = False, json_: Json = False, api: Api = DEFAULT_API, key: Key = None
) -> None:
    """Write, read and delete an object in a store."""
    from comfy_fleet.cli.console import print_json, stdout

    with connected(api, key, here=here) as client:
        answer = client.post(path_of("store", name, "/test"))
    if json_:
        print_json(answer)
    elif answer["ok"]:
        stdout().print(f"store {name} takes objects, and gives them back", markup=False)
    if not answer["ok"]:
        raise Fail(str(answer["error"]), hint="fleet store show says what is known of it", code=Exit.FAILED)


@app.command()
def retry(
    name: StoreName, here: Here = False, json_: Json = False, api: Api = DEFAULT_API, key: Key = None
) -> None:
    """Put again into a store all outputs that it did not take."""
    from comfy_fleet.cli.console import print_json, stdout

    with connected(api, key, here=here) as client:
        answer = client.post(path_of("store", name, "/retry"))
    if json_:
        print_json(answer)
    else:
        stdout().print(f"outputs of {answer['jobs']} jobs are put there again", markup=False)


@app.command("rm")
def remove(
    name: StoreName,
    force: Annotated[bool, typer.Option("--force", help="Give up the outputs that wait for it.")] = False,
    here: Here = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Forget a store and its credentials. What is in it stays there."""
    from comfy_fleet.cli.console import stderr

    with connected(api, key, here=here) as client:
        client.delete(path_of("store", name), force=str(force).lower())
    stderr().print(f"store {name} is removed: what is in it stays there", markup=False)


def credentials_in(source: str, scheme: str) -> dict[str, str]:
    """Return credentials from a file, standard input or variables: never from an argument, which others see.

    Raises:
        Fail: There are none, or they can't be read. No value is repeated.
    """
    names = _VARIABLES.get(scheme, {})
    if source == "env":
        found = {name: value for name, variable in names.items() if (value := os.environ.get(variable))}
        if not found:
            raise Fail(f"--secrets env: none of {', '.join(names.values())} is set", code=Exit.USAGE)
        return found
    try:
        text = sys.stdin.read(MOST_SECRETS) if source == "-" else Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Fail(f"--secrets {source!r} can't be read: {error}", code=Exit.USAGE) from error
    if scheme == "gs" and text.lstrip().startswith("{"):
        return {"service_account_key": text.strip()}
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise Fail(
                f"--secrets: line {number} must be NAME=VALUE: {', '.join(names) or 'it needs none'}",
                code=Exit.USAGE,
            )
        known = {variable: ours for ours, variable in names.items()}
        found[known.get(name.strip(), name.strip())] = value.strip()
    if not found:
        raise Fail("--secrets: there is nothing in it", code=Exit.USAGE)
    return found


def _show(answer: Any, *, json_: bool) -> None:
    from comfy_fleet.cli.console import facts, print_json, stdout

    if json_:
        print_json(answer)
        return
    words = {name.replace("_", " "): _word(value) for name, value in answer.items()}
    words["tenants"] = words["tenants"] or "all"
    words["credentials"] = "kept, encrypted" if answer["credentials"] else "those of the machine"
    stdout().print(facts({name: word for name, word in words.items() if word}))


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
