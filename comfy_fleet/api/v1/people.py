"""REST: tenants, users and their keys, for operators; and who one is oneself."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.audit import audit
from comfy_fleet.api.deps import ApiDeps, deps, operator, principal
from comfy_fleet.api.json import json_response
from comfy_fleet.api.serialize import time
from comfy_fleet.api.typed_bodies import read, read_optional, read_query
from comfy_fleet.api.v1.people_bodies import (
    KeyAnswer,
    KeyBody,
    KeysQuery,
    MeAnswer,
    RotateBody,
    TenantAnswer,
    TenantBody,
    TenantChangeBody,
    UserAnswer,
    UserBody,
)
from comfy_fleet.domain.errors import BadInput, Conflict
from comfy_fleet.domain.limits import parse_limits
from comfy_fleet.domain.people import (
    KEY_LENGTH,
    KEY_LETTERS,
    KEY_PREFIX,
    AccessKey,
    People,
    Tenant,
    User,
    digest_of,
)
from comfy_fleet.domain.principal import DEFAULT_TENANT
from comfy_fleet.domain.roles import Role

_OF_FILE = "it is a line of FLEET_KEYS_FILE: change that file, which is read within a second"


# -- oneself -------------------------------------------------------------------


async def me(request: Request) -> Response:
    """The caller: user, tenant, roles, and how many of their jobs wait or run."""
    who = principal(request)
    answer: MeAnswer = {
        "user": who.owner,
        "tenant": who.tenant,
        "roles": _role_words(who.roles),
        "key": who.key or None,
        "live_jobs": 0 if who.only_figures else await deps(request).jobs.live_count(who.owner),
    }
    return json_response(answer)


# -- tenants -------------------------------------------------------------------


async def list_tenants(request: Request) -> Response:
    """Every tenant, by name."""
    operator(request)
    d = deps(request)
    await d.keys.ring.ready()
    names = sorted({DEFAULT_TENANT, *d.keys.ring.people.tenants})
    return json_response({"tenants": [_tenant(d, name) for name in names]})


async def add_tenant(request: Request) -> Response:
    """Adds a tenant; 409 if there is one of this name."""
    _changer(request)
    d, body = deps(request), await read(request, TenantBody)
    told = body.model_dump(exclude={"limits"})
    _check_retention(d, body.retention_s)
    tenant = Tenant(**told, limits=_checked(body.limits), created_at=await d.store_time())
    await d.keys.ring.change(lambda people: people.add_tenant(tenant))
    await audit(request, "tenant.added", tenant=tenant.name)
    return json_response(_tenant(d, tenant.name), 201)


async def get_tenant(request: Request) -> Response:
    """One tenant, with the names of its users."""
    operator(request)
    d = deps(request)
    await d.keys.ring.ready()
    return json_response(_tenant(d, request.path_params["tenant"]))


async def change_tenant(request: Request) -> Response:
    """Changes what the body names. It counts for the jobs that are there already."""
    _changer(request)
    d, body = deps(request), await read(request, TenantChangeBody)
    name = request.path_params["tenant"]
    changes = body.model_dump(exclude_none=True)
    if body.limits is not None:
        changes["limits"] = _checked(body.limits)
    _check_retention(d, body.retention_s)

    await d.keys.ring.change(lambda people: people.change_tenant(_replaced(people.tenant(name), changes)))
    await audit(request, "tenant.changed", tenant=name, changes=changes)
    return json_response(_tenant(d, name))


async def remove_tenant(request: Request) -> Response:
    """Removes a tenant; 409 if it has users."""
    _changer(request)
    name = request.path_params["tenant"]
    await deps(request).keys.ring.change(lambda people: people.drop_tenant(name))
    await audit(request, "tenant.removed", tenant=name)
    return Response(status_code=204)


# -- users ---------------------------------------------------------------------


async def list_users(request: Request) -> Response:
    """Every user, by name: those who are stored, and the names of the keys file."""
    operator(request)
    d = deps(request)
    await d.keys.ring.ready()
    return json_response({"users": [_user(d, name) for name in sorted(d.keys.ring.people.users)]})


async def add_user(request: Request) -> Response:
    """Adds a user; 409 if there is one already, or if jobs or files of this name are there.

    They may be of somebody who was removed; `adopt` gives them to the new user. A name of the keys file can
    be added, too, which puts it into a tenant.
    """
    _changer(request)
    d, body = deps(request), await read(request, UserBody)
    await d.keys.ring.ready()
    new = body.name not in d.keys.ring.people.users
    if new and not body.adopt and (left := await d.keys.ring.left_by(body.name)):
        raise Conflict(
            f"there are {', '.join(left)} of a user {body.name!r}, which a new one would inherit: choose "
            "another name, or if it is the same person send adopt=true (`fleet user create NAME --adopt`)",
            details={"field": "name", "left": list(left)},
        )
    user = User(name=body.name, tenant=body.tenant, created_at=await d.store_time())
    await d.keys.ring.change(lambda people: people.add_user(user))
    await audit(request, "user.added", user=user.name, tenant=user.tenant)
    return json_response(_user(d, user.name), 201)


async def get_user(request: Request) -> Response:
    """One user."""
    operator(request)
    d = deps(request)
    await d.keys.ring.ready()
    return json_response(_user(d, request.path_params["user"]))


async def remove_user(request: Request) -> Response:
    """Removes a user and revokes all of their keys; 409 while jobs of theirs are kept.

    Whoever gets the name next would find them. To keep somebody out, revoke their keys.
    """
    _changer(request)
    d, name = deps(request), request.path_params["user"]
    await d.keys.ring.ready()
    d.keys.ring.people.user(name)
    if name in d.keys.owners:
        raise Conflict(
            f"{name} has lines in FLEET_KEYS_FILE, which would still let them in: take them out first",
            details={"field": "user", "user": name},
        )
    if await d.jobs.ids(name, ""):
        raise Conflict(
            f"{name} has jobs, which another {name} would find: revoke their keys, and remove the user "
            "when the jobs are gone",
            details={"field": "user", "user": name},
        )
    await d.keys.ring.change(lambda people: people.drop_user(name))
    await audit(request, "user.removed", user=name)
    return Response(status_code=204)


# -- keys ----------------------------------------------------------------------


async def list_keys(request: Request) -> Response:
    """Every key by user, without what opens anything."""
    operator(request)
    d, wanted = deps(request), read_query(request, KeysQuery).user
    await d.keys.ring.ready()
    people = d.keys.ring.people
    users = sorted({key.user for key in people.keys.values()}) if wanted is None else [wanted]
    if wanted is not None:
        people.user(wanted)
    now = d.clock()
    return json_response({"keys": [_key(d, key, now) for user in users for key in people.keys_of(user)]})


async def add_key(request: Request) -> Response:
    """Makes a key and tells it once: only its hash is kept."""
    _changer(request)
    d, body = deps(request), await read(request, KeyBody)
    now = await d.store_time()
    text, made = _drawn(
        AccessKey(
            id="",
            digest="",
            user=body.user,
            roles=frozenset(map(Role, body.roles)),
            created_at=now,
            expires_at=None if body.expires_in_s is None else now + body.expires_in_s,
            note=body.note,
            limits=_checked(body.limits),
        )
    )

    def with_key(people: People) -> People:
        if body.user not in people.users and body.user in d.keys.owners:  # so far only a name in the file
            people = people.add_user(User(name=body.user, created_at=now))
        return people.add_key(made)

    await d.keys.ring.change(with_key)
    await audit(request, "key.made", key=made.id, user=made.user, roles=_role_words(made.roles))
    return _told(d, made, text)


async def get_key(request: Request) -> Response:
    """One key by its id, without what opens anything."""
    operator(request)
    d = deps(request)
    await d.keys.ring.ready()
    return json_response(_key(d, d.keys.ring.people.key(request.path_params["key"]), d.clock()))


async def revoke_key(request: Request) -> Response:
    """Revokes a key: within a second or two nobody gets in by it, and what it has opened is closed."""
    _changer(request)
    d, id_ = deps(request), request.path_params["key"]
    await _stored(d, id_)
    await d.keys.ring.change(lambda people: people.drop_key(id_))
    await audit(request, "key.revoked", key=id_)
    return Response(status_code=204)


async def rotate_key(request: Request) -> Response:
    """Makes another key in a key's place, for its user, roles and end; the old one ends `grace_s` later."""
    _changer(request)
    d, id_ = deps(request), request.path_params["key"]
    body = await read_optional(request, RotateBody)
    old = await _stored(d, id_)
    now = await d.store_time()
    text, made = _drawn(_replaced(old, {"created_at": now}))
    await d.keys.ring.change(lambda people: people.rotate_key(id_, made, now=now, grace_s=body.grace_s))
    await audit(request, "key.rotated", key=id_, new_key=made.id, user=old.user, grace_s=body.grace_s)
    return _told(d, d.keys.ring.people.key(made.id), text)


# -- parts ---------------------------------------------------------------------


def _changer(request: Request) -> None:
    """Admit operators who change something.

    Raises:
        HttpError: 403.
        Conflict: The fleet asks nobody for a key.
    """
    operator(request)
    if deps(request).keys.open:
        raise Conflict(
            "this fleet asks nobody for a key: start it with FLEET_REQUIRE_KEYS=1 (or a FLEET_KEYS_FILE), "
            "then make the first key with `fleet key create NAME --role operator --here`",
            details={"setting": "FLEET_REQUIRE_KEYS"},
        )


async def _stored(d: ApiDeps, id_: str) -> AccessKey:
    await d.keys.ring.ready()
    key = d.keys.ring.people.key(id_)
    if key.from_file:
        raise Conflict(f"key {id_} can't be changed here: {_OF_FILE}", details={"key": id_})
    return key


def _drawn(key: AccessKey) -> tuple[str, AccessKey]:
    """Draw a key and its id."""
    text = KEY_PREFIX + "".join(secrets.choice(KEY_LETTERS) for _ in range(KEY_LENGTH))
    return text, _replaced(key, {"id": secrets.token_hex(6), "digest": digest_of(text)})


def _replaced(one: Any, changes: Mapping[str, Any]) -> Any:
    return replace(one, **changes)


def _told(d: ApiDeps, key: AccessKey, text: str) -> Response:
    answer = {**_key(d, key, d.clock()), "key": text}
    return json_response(answer, 201, {"Cache-Control": "no-store"})


def _tenant(d: ApiDeps, name: str) -> TenantAnswer:
    people = d.keys.ring.people
    tenant = people.tenant(name)
    return {
        "name": tenant.name,
        "sharing": tenant.sharing,
        "deny_classes": tenant.deny_classes,
        "allow_classes": tenant.allow_classes,
        "moderation": tenant.moderation,
        "share": tenant.share,
        "retention_s": tenant.retention_s,
        "created_at": _time(tenant.created_at),
        "limits": dict(tenant.limits),
        "users": list(people.members(tenant.name)),
    }


def _user(d: ApiDeps, name: str) -> UserAnswer:
    people = d.keys.ring.people
    user = people.user(name)
    return {
        "name": user.name,
        "tenant": user.tenant,
        "created_at": _time(user.created_at),
        "stored": bool(user.created_at),
        "keys": len(people.keys_of(name)),
    }


def _key(d: ApiDeps, key: AccessKey, now: float) -> KeyAnswer:
    return {
        "id": key.id,
        "user": key.user,
        "tenant": d.keys.ring.people.tenant_of(key.user).name,
        "roles": _role_words(key.roles),
        "note": key.note,
        "created_at": _time(key.created_at),
        "expires_at": _time(key.expires_at),
        "expired": not key.holds(now),
        "limits": dict(key.limits),
        "from_file": key.from_file,
    }


def _time(seconds: float | None) -> str | None:
    return time(seconds) if seconds else None


def _check_retention(d: ApiDeps, seconds: float | None) -> None:
    most = d.settings.max_retention_s
    if seconds is not None and seconds > most:
        raise BadInput(
            f"retention_s is {seconds:.0f}: at most {most:.0f} (FLEET_MAX_RETENTION_S)",
            details={"field": "retention_s", "most": most},
        )


def _checked(limits: Mapping[str, str]) -> Mapping[str, str]:
    """Return limits that can be read; an unknown name is refused here, where somebody has just written it."""
    parse_limits(limits)
    return dict(limits)


def _role_words(roles: frozenset[Role]) -> list[Any]:
    return sorted(role.value for role in roles) or [Role.SUBMIT.value]
