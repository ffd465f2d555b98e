"""REST: stores, for operators. No answer has credentials."""

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.audit import audit
from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.json import json_response
from comfy_fleet.api.serialize import time
from comfy_fleet.api.typed_bodies import read, read_query
from comfy_fleet.api.v1.store_bodies import (
    RemoveStoreQuery,
    StoreAnswer,
    StoreBody,
    StoreRetryAnswer,
    StoreTestAnswer,
)
from comfy_fleet.domain.errors import Conflict, ObjectError
from comfy_fleet.domain.stores.named_store import NamedStore
from comfy_fleet.ports.transfers import StoreTraffic

MOST_RETRIED = 1000


async def list_stores(request: Request) -> Response:
    """Every store, by name."""
    operator(request)
    stores = await deps(request).store_book.all(fresh=True)
    traffic = await deps(request).transfers.traffic(list(stores))
    return json_response({"stores": [_shown(one, traffic[one.name]) for one in stores.values()]})


async def add_store(request: Request) -> Response:
    """Adds a store, once an object could be written, read and deleted there.

    409 if there is one of this name and `replace` is not set, or if a tenant has another default; 502 with
    what the store said if it does not take the object.
    """
    operator(request)
    d, body = deps(request), await read(request, StoreBody)
    for tenant in (*body.tenants, *body.default_for):
        d.keys.ring.people.tenant(tenant)
    told = body.model_dump(exclude={"credentials", "replace", "probe", "tenants", "default_for"})
    store = NamedStore(
        **told,
        tenants=tuple(dict.fromkeys(body.tenants)),
        default_for=tuple(dict.fromkeys(body.default_for)),
        created_at=await d.store_time(),
    )
    added = await d.store_book.add(store, body.credentials, replaces=body.replace, probe=body.probe)
    await audit(
        request,
        "store.changed" if body.replace else "store.added",
        store=added.name,
        url=added.url,
        endpoint=added.endpoint,
        tenants=list(added.tenants),
        default_for=list(added.default_for),
    )
    return json_response(await _with_traffic(request, added), 201)


async def get_store(request: Request) -> Response:
    """One store."""
    operator(request)
    found = await deps(request).store_book.get(request.path_params["store"], fresh=True)
    return json_response(await _with_traffic(request, found))


async def test_store(request: Request) -> Response:
    """Writes, reads and deletes an object in a store, and says what came of it."""
    operator(request)
    name = request.path_params["store"]
    answer: StoreTestAnswer = {"name": name, "ok": True, "error": None}
    try:
        await deps(request).store_book.test(name)
    except ObjectError as error:
        answer = {"name": name, "ok": False, "error": error.message}
    return json_response(answer)


async def retry_store(request: Request) -> Response:
    """Everybody's outputs that it did not take are put there once more, up to 1,000 jobs' at a time."""
    operator(request)
    d, name = deps(request), request.path_params["store"]
    await d.store_book.get(name, fresh=True)
    count = 0
    for job_id in await d.transfers.given_up(name, MOST_RETRIED):
        count += await d.transfers.retry(job_id, None) == "ok"
    await audit(request, "store.retried", store=name, jobs=count)
    answer: StoreRetryAnswer = {"jobs": count}
    return json_response(answer)


async def remove_store(request: Request) -> Response:
    """Forgets a store and what opens it. What is in it stays there.

    409 while outputs wait for it, unless `force` is set: they are given up then.
    """
    operator(request)
    d, name = deps(request), request.path_params["store"]
    waiting = (await d.transfers.traffic([name]))[name].waiting
    if waiting and not read_query(request, RemoveStoreQuery).force:
        raise Conflict(
            f"outputs of {waiting} jobs wait for it: wait, or give them up with force=true "
            "(`fleet store rm --force`)",
            details={"store": name, "waiting": waiting},
        )
    await d.store_book.drop(name)
    await audit(request, "store.removed", store=name)
    return Response(status_code=204)


async def _with_traffic(request: Request, store: NamedStore) -> StoreAnswer:
    return _shown(store, (await deps(request).transfers.traffic([store.name]))[store.name])


def _shown(store: NamedStore, traffic: StoreTraffic) -> StoreAnswer:
    return {
        "name": store.name,
        "url": store.url,
        "endpoint": store.endpoint,
        "region": store.region,
        "account": store.account,
        "virtual_host": store.virtual_host,
        "credentials": bool(store.sealed),
        "public_url": store.public_url,
        "signed_s": store.signed_s,
        "tenants": list(store.tenants),
        "default_for": list(store.default_for),
        "inputs": store.inputs,
        "redirect": store.redirect,
        "on_delete": store.on_delete,
        "created_at": time(store.created_at) if store.created_at else None,
        "waiting": traffic.waiting,
        "waiting_bytes": traffic.bytes,
        "not_stored": traffic.failed,
        "error": traffic.error or None,
        "failing_since": time(traffic.since) if traffic.since else None,
    }
