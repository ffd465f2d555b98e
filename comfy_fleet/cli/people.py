"""``fleet tenant``, ``fleet user`` and ``fleet key``: who may use the fleet. For operators."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.paths import path_of
from comfy_fleet.cli.people_options import limits_in, retention_in, seconds, share_in

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client

tenants = typer.Typer(help="List tenants, and change them.", no_args_is_help=True)
users = typer.Typer(help="List users, add and remove them.", no_args_is_help=True)
keys = typer.Typer(help="List keys, make, replace and revoke them.", no_args_is_help=True)

Here = Annotated[
    bool,
    typer.Option(
        "--here",
        help="Instead of a key, show that you may read this machine's secret.key (FLEET_SECRET_FILE, or in "
        "FLEET_DATA): so the first key is made.",
    ),
]
TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]
UserName = Annotated[str, typer.Argument(metavar="USER", help="The user's name.")]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `fleet key ls` shows it.")]
LimitOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        help="A limit, e.g. submits=10/1s,100/1m, queued=50, stored=20GB, raw_graphs=no. Repeatable.",
        show_default=False,
    ),
]


@contextmanager
def connected(api: str, key: str | None, *, here: bool) -> Iterator["Client"]:
    """Yield the fleet, to an operator.

    Args:
        api: Its address.
        key: An operator's key.
        here: Show this machine's secret instead.

    Raises:
        Fail: There is no such secret, or it can't be read.
    """
    from urllib.parse import urlsplit

    from comfy_fleet.api.host_names import is_loopback
    from comfy_fleet.cli.client import Client

    with Client(api, key) as client:
        if here and not is_loopback(urlsplit(client.url).hostname or ""):
            raise Fail(
                f"--here: {client.url} is not on this machine; who answers there could use what it is shown",
                hint="run it on the fleet's machine; or leave --here out, and show an operator's key",
                code=Exit.USAGE,
            )
    with Client(api, _of_this_machine() if here else key) as client:
        yield client


def _of_this_machine() -> str:
    import time

    from comfy_fleet.adapters.system.secret_box import SecretBox
    from comfy_fleet.domain.machine_token import PURPOSE, machine_token
    from comfy_fleet.settings import Settings

    path = Settings().secret_key_file
    hint = "start the fleet first, or name its folder: FLEET_DATA, or FLEET_SECRET_FILE"
    if not path.exists():
        raise Fail(f"--here: there is no {path}", hint=hint, code=Exit.REFUSED)
    try:
        box = SecretBox.open(path)
    except OSError as error:
        raise Fail(f"--here: {path} can't be read: {error.strerror}", code=Exit.REFUSED) from error
    return machine_token(box.derive(PURPOSE), time.time())


# -- tenants -------------------------------------------------------------------


@tenants.callback()
def tenant_group() -> None:
    """List tenants, and change them."""


_SHARING = "What its users see of each other: private (nothing) or shared (jobs)."
_DENY = "Classes and groups that their jobs may not use, as in FLEET_DENY_CLASSES; '' for none."
_ALLOW = "Classes and groups that their jobs may use, and no others, as in FLEET_ALLOW_CLASSES; '' for all."
_MODERATION = (
    "While nobody judges: closed (nothing passes) or open (all does). off: nobody is asked. "
    "'': as FLEET_MODERATION says."
)


_RETENTION = "How long ended jobs and their files stay, e.g. 30d; '' for as long as the fleet's setting says."
_SHARE = "Its part of the GPUs' time compared with 1, that of any other tenant."


@tenants.command("create")
def create_tenant(
    name: TenantName,
    sharing: Annotated[str, typer.Option(metavar="private|shared", help=_SHARING)] = "private",
    limit: LimitOptions = None,
    share: Annotated[float, typer.Option(metavar="NUMBER", help=_SHARE)] = 1.0,
    retention: Annotated[
        str | None, typer.Option(metavar="TIME", help=_RETENTION, show_default="the fleet's")
    ] = None,
    here: Here = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Add a tenant: people who use the fleet together."""
    body: dict[str, Any] = {"name": name, "sharing": sharing, "limits": limits_in(limit)}
    if share != 1.0:
        body["share"] = share_in(share)
    if retention:
        body["retention_s"] = retention_in(retention)
    with connected(api, key, here=here) as client:
        _facts(client.post("/api/v1/tenants", body), json_=json_)


@tenants.command("list", hidden=True)
@tenants.command("ls")
def list_tenants(here: Here = False, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """List the tenants."""
    with connected(api, key, here=here) as client:
        answer = client.get("/api/v1/tenants")
    rows = [(one["name"], one["sharing"], one["share"], len(one["users"])) for one in answer["tenants"]]
    _rows(answer, ("<Tenant", "<Sharing", ">Share", ">Users"), rows, json_=json_)


@tenants.command("show")
def show_tenant(
    name: TenantName, here: Here = False, json_: Json = False, api: Api = DEFAULT_API, key: Key = None
) -> None:
    """Show a tenant and its users."""
    with connected(api, key, here=here) as client:
        _facts(client.get(path_of("tenant", name)), json_=json_)


@tenants.command("set")
def set_tenant(
    name: TenantName,
    sharing: Annotated[
        str | None, typer.Option(metavar="private|shared", help=_SHARING, show_default="unchanged")
    ] = None,
    limit: LimitOptions = None,
    deny_classes: Annotated[
        str | None, typer.Option(metavar="LIST", help=_DENY, show_default="unchanged")
    ] = None,
    allow_classes: Annotated[
        str | None, typer.Option(metavar="LIST", help=_ALLOW, show_default="unchanged")
    ] = None,
    moderation: Annotated[
        str | None, typer.Option(metavar="open|closed|off", help=_MODERATION, show_default="unchanged")
    ] = None,
    share: Annotated[
        float | None, typer.Option(metavar="NUMBER", help=_SHARE, show_default="unchanged")
    ] = None,
    retention: Annotated[
        str | None, typer.Option(metavar="TIME", help=_RETENTION, show_default="unchanged")
    ] = None,
    here: Here = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Change a tenant; it counts within a second.

    Limits that are named change, an empty one (`--limit queued=`) goes, and the others stay.
    """
    asked = {
        "sharing": sharing,
        "deny_classes": deny_classes,
        "allow_classes": allow_classes,
        "moderation": moderation,
        "share": None if share is None else share_in(share),
        "retention_s": None if retention is None else retention_in(retention),
    }
    body: dict[str, Any] = {field: value for field, value in asked.items() if value is not None}
    if not body and not limit:
        raise Fail("nothing to set: --sharing private|shared, --limit NAME=VALUE", code=Exit.USAGE)
    with connected(api, key, here=here) as client:
        if limit:
            before = client.get(path_of("tenant", name))["limits"]
            after = {**before, **limits_in(limit)}
            body["limits"] = {one: value for one, value in after.items() if value}
        _facts(client.patch(path_of("tenant", name), body), json_=json_)


@tenants.command("rm")
def remove_tenant(name: TenantName, here: Here = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Remove a tenant that has no users."""
    with connected(api, key, here=here) as client:
        client.delete(path_of("tenant", name))
    _said(f"tenant {name} is removed")


# -- users ---------------------------------------------------------------------


@users.callback()
def user_group() -> None:
    """List users, add and remove them."""


@users.command("create")
def create_user(
    name: UserName,
    tenant: Annotated[str, typer.Option(help="Their tenant, which stays.")] = "default",
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Give them the jobs and files that are there of this name.")
    ] = False,
    here: Here = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Add a user: a person or a program, to whom jobs and files belong."""
    with connected(api, key, here=here) as client:
        body: dict[str, Any] = {"name": name, "tenant": tenant}
        if adopt:  # earlier versions don't know it, and adopt always
            body["adopt"] = True
        _facts(client.post("/api/v1/users", body), json_=json_)


@users.command("list", hidden=True)
@users.command("ls")
def list_users(here: Here = False, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """List the users, those of the keys file as well."""
    with connected(api, key, here=here) as client:
        answer = client.get("/api/v1/users")
    rows = [
        (one["name"], one["tenant"], one["keys"], "" if one["stored"] else "in the keys file")
        for one in answer["users"]
    ]
    _rows(answer, ("<User", "<Tenant", ">Keys", "<Where"), rows, json_=json_)


@users.command("show")
def show_user(
    name: UserName, here: Here = False, json_: Json = False, api: Api = DEFAULT_API, key: Key = None
) -> None:
    """Show a user."""
    with connected(api, key, here=here) as client:
        _facts(client.get(path_of("user", name)), json_=json_)


@users.command("rm")
def remove_user(name: UserName, here: Here = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Remove a user who has no jobs left, and revoke their keys."""
    with connected(api, key, here=here) as client:
        client.delete(path_of("user", name))
    _said(f"user {name} is removed")


# -- keys ----------------------------------------------------------------------


@keys.callback()
def key_group() -> None:
    """List keys, make, replace and revoke them."""


@keys.command("create")
def create_key(
    user: UserName,
    role: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE", help="What it may do: submit, artist, operator or metrics. Repeatable."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it is good for, e.g. 12h, 30d.")
    ] = None,
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
    limit: LimitOptions = None,
    tenant: Annotated[
        str | None,
        typer.Option(help="The tenant of a user who is not there yet, and is added.", show_default="default"),
    ] = None,
    here: Here = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Make a key, and print it: this once, for the fleet keeps only its hash.

    A user who is not there yet is added.

    Example: `fleet key create ada --role artist --expires 90d`. The first one of a fleet, on its own machine:
    `fleet key create me --role operator --here`.
    """
    body: dict[str, Any] = {"user": user, "roles": role or [], "note": note, "limits": limits_in(limit)}
    if expires is not None:
        body["expires_in_s"] = seconds("--expires", expires)
    with connected(api, key, here=here) as client:
        added = False
        try:
            known = client.get(path_of("user", user))
        except Fail as error:
            if error.exit is not Exit.NOT_FOUND:
                raise
            client.post("/api/v1/users", {"name": user, "tenant": tenant or "default"})
            added = True
        else:
            if tenant not in (None, known["tenant"]):
                raise Fail(
                    f"{user} is in the tenant {known['tenant']}, and stays there",
                    hint="leave --tenant out, or choose another name for a user of that tenant",
                    code=Exit.REFUSED,
                )
        try:
            made = client.post("/api/v1/keys", body)
        except Fail as error:
            if added and error.exit is Exit.USAGE:  # nobody asked for a user without a key
                client.delete(path_of("user", user))
            raise
        _new(made, json_=json_)


@keys.command("list", hidden=True)
@keys.command("ls")
def list_keys(
    user: Annotated[str | None, typer.Option(help="Only this user's.")] = None,
    here: Here = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """List the keys by their ids, with what they may do and until when."""
    with connected(api, key, here=here) as client:
        answer = client.get("/api/v1/keys", user=user)
    rows = [
        (
            one["id"],
            one["user"],
            one["tenant"],
            ", ".join(one["roles"]),
            "expired" if one["expired"] else _day(one["expires_at"]) or "never",
            "in the keys file" if one["from_file"] else one["note"],
        )
        for one in answer["keys"]
    ]
    _rows(answer, ("<Key", "<User", "<Tenant", "<Roles", "<Ends", "<Note"), rows, json_=json_)


@keys.command("show")
def show_key(
    id_: KeyId, here: Here = False, json_: Json = False, api: Api = DEFAULT_API, key: Key = None
) -> None:
    """Show what is known of a key; the key itself is not."""
    with connected(api, key, here=here) as client:
        _facts(client.get(path_of("key", id_)), json_=json_)


@keys.command("revoke")
def revoke_keys(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="The keys' ids.", show_default=False)
    ] = None,
    user: Annotated[str | None, typer.Option(help="All of this user's keys.")] = None,
    here: Here = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Revoke keys: within two seconds nobody gets in by them, and what they have opened is closed."""
    if bool(ids) == bool(user):
        raise Fail("name the keys by their ids, or a user with --user", code=Exit.USAGE)
    with connected(api, key, here=here) as client:
        found = ids or [
            one["id"] for one in client.get("/api/v1/keys", user=user)["keys"] if not one["from_file"]
        ]
        for id_ in found:
            client.delete(path_of("key", id_))
            _said(f"key {id_} is revoked")
        if not found:
            _said(f"{user} has no keys but those in the keys file")


@keys.command("rotate")
def rotate_key(
    id_: KeyId,
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old key is good for yet, e.g. 1h, 7d.")
    ] = "0s",
    here: Here = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Make another key in a key's place, and print it this once. Jobs and files stay the user's."""
    body = {"grace_s": seconds("--grace", grace)}
    with connected(api, key, here=here) as client:
        _new(client.post(path_of("key", id_, "/rotate"), body), json_=json_)


# -- parts ---------------------------------------------------------------------


def _day(text: str | None) -> str:
    if not text:
        return ""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _said(text: str) -> None:
    from comfy_fleet.cli.console import stderr

    stderr().print(text)


def _new(answer: Mapping[str, Any], *, json_: bool) -> None:
    """Print a new key: it alone goes to stdout, so that a script can keep it."""
    from comfy_fleet.cli.console import print_json, printable

    if json_:
        print_json(answer)
        return
    ends = _day(answer["expires_at"])
    _said(
        f"key {answer['id']} of {answer['user']} ({', '.join(answer['roles'])})"
        f"{f', until {ends}' if ends else ''}. It is shown this once:"
    )
    typer.echo(printable(answer["key"]))


def _facts(answer: Mapping[str, Any], *, json_: bool) -> None:
    from comfy_fleet.cli.console import facts, print_json, span, stdout

    if json_:
        print_json(answer)
        return
    words = {name.replace("_", " "): _word(value) for name, value in answer.items() if name != "retention_s"}
    if "retention_s" in answer:  # a tenant's
        words["retention"] = span(answer["retention_s"]) if answer["retention_s"] else "the fleet's"
    stdout().print(facts({name: word for name, word in words.items() if word}))


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " ".join(f"{name}={one}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _rows(answer: Any, columns: tuple[str, ...], rows: list[tuple[Any, ...]], *, json_: bool) -> None:
    from comfy_fleet.cli.console import print_json, stdout, table

    if json_:
        print_json(answer)
    else:
        stdout().print(table(columns, rows))
