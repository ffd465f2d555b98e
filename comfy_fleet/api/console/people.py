"""The console's page about tenants, users and what is known of their keys: never what opens anything."""

from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.console.paging import Pages, number
from comfy_fleet.api.console.rendering import page
from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.domain.people import AccessKey, People
from comfy_fleet.domain.principal import DEFAULT_TENANT
from comfy_fleet.domain.roles import Role

EACH = 50
EACH_TENANT = 50
MOST_KEYS = 20


async def show(request: Request) -> Response:
    """``GET /console/people``. Query: ``q``, ``tenant``, ``page``, ``tenants`` (their page)."""
    operator(request)
    d, query = deps(request), request.query_params
    await d.keys.ring.ready()
    people, now = d.keys.ring.people, d.clock()
    part, tenant = query.get("q", "")[:64].strip(), query.get("tenant", "")[:64].strip()
    tenants = sorted({DEFAULT_TENANT, *people.tenants})
    users = sorted(
        one.name
        for one in people.users.values()
        if part.lower() in one.name.lower() and tenant in ("", one.tenant)
    )
    pages = Pages(total=len(users), each=EACH, number=number(query.get("page", "")))
    listed = [one for one in tenants if tenant in ("", one)]
    of_tenants = Pages(total=len(listed), each=EACH_TENANT, number=number(query.get("tenants", "")))
    asked = {name: text for name, text in (("q", part), ("tenant", tenant)) if text}
    return page(
        request,
        "people.html",
        title="People",
        here="people",
        tenants=[
            {"tenant": people.tenant(one), "users": len(people.members(one))}
            for one in listed[of_tenants.first : of_tenants.last]
        ],
        of_tenants=of_tenants,
        names=tenants[:200],
        users=[_user(people, one, now) for one in users[pages.first : pages.last]],
        open=d.keys.open,
        chosen={"q": part, "tenant": tenant},
        pages=pages,
        query=urlencode(asked),
    )


def _user(people: People, name: str, now: float) -> dict[str, Any]:
    keys = people.keys_of(name)
    return {
        "name": name,
        "tenant": people.user(name).tenant,
        "keys": [_key(one, now) for one in keys[:MOST_KEYS]],
        "more": max(0, len(keys) - MOST_KEYS),
    }


def _key(key: AccessKey, now: float) -> dict[str, Any]:
    return {
        "id": key.id,
        "roles": sorted(role.value for role in key.roles) or [Role.SUBMIT.value],
        "note": key.note,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "expired": not key.holds(now),
        "limits": dict(key.limits),
        "from_file": key.from_file,
    }


routes = [ServedRoute("/console/people", show, name="console_people", console=True)]
