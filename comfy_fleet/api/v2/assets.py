"""Comfy API v2: assets. Records over content-addressed bytes, uploaded as a stream."""

import mimetypes
import re

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import asset_fields, output_response, serialize
from comfy_fleet.api.asset_fields import invalid
from comfy_fleet.api.body import JsonLimits, idempotency_key, read_object
from comfy_fleet.api.deps import ApiDeps, deps, links, owner, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.api.multipart import UploadedForm
from comfy_fleet.domain.errors import IdempotencyKeyReuse, NotFound, UploadUnderWay
from comfy_fleet.domain.jobs.asset import HASH, Asset
from comfy_fleet.services.job_queries import is_id

MIN_EXPIRES_S, MAX_EXPIRES_S = 60, 604_800  # the contract's bounds
MAX_TAGS = 32
_LOOK_AGAIN_S = 5
_SMALL_BODY = JsonLimits(size=64 * 1024, values=1000)
_TAG = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")


async def create_asset(request: Request) -> Response:
    """One multipart upload, written to disk while it is hashed."""
    d, who, key = deps(request), owner(request), idempotency_key(request)
    if key is None:
        return await _upload(request, d, who)
    scope = f"v2asset:{who}"
    begun = await d.replays.begin(scope, key)
    used = await d.replays.recall(scope, key)  # only now: the mark goes as the answer comes
    if used is not None:
        if begun:
            await d.replays.end(scope, key, answer=None)
        raise IdempotencyKeyReuse(
            "this Idempotency-Key has made an asset already: use a new key",
            details={"asset_id": used[1].decode()},
        )
    if not begun:
        raise UploadUnderWay(
            "an upload with this Idempotency-Key has begun, and its end is not known: send this again after "
            "Retry-After seconds",
            retry_after_s=_LOOK_AGAIN_S,
        )
    made: tuple[str, bytes] | None = None
    try:
        response = await _upload(request, d, who)
        made = ("", response.headers["x-fleet-asset"].encode())
    finally:
        await d.replays.end(scope, key, answer=made)
    return response


async def _upload(request: Request, d: ApiDeps, who: str) -> Response:
    form = UploadedForm(request, d.settings.max_body_bytes)
    async with d.assets.receive(form.file()) as received:
        path = form.one("file_path")
        if path is None:
            path = form.file_name
        if path is None:
            raise invalid("file_path", "is missing, and the file has no name: send one of them")
        kind = form.one("content_type") or form.file_type or mimetypes.guess_type(path)[0]
        expires_in = form.one("expires_in")
        if expires_in is not None and not re.fullmatch(r"[0-9]{1,9}", expires_in):
            raise invalid("expires_in", "must be a whole number of seconds")
        expected = form.one("expected_hash")
        asset, fresh = await d.assets.keep(
            received,
            owner=who,
            content_type=asset_fields.content_type(kind or "application/octet-stream"),
            file_path=asset_fields.file_path(path),
            expected_hash=_hash(expected, "expected_hash") if expected is not None else None,
            tags=_tags([tag for tags in form.many("tags") for tag in tags.split(",")]),
            expires_in_s=_expires_in(int(expires_in)) if expires_in is not None else None,
            quotas=principal(request).quotas,
        )
    return _made(request, d, asset, fresh)


async def create_asset_from_hash(request: Request) -> Response:
    """A record over bytes that the caller has already."""
    d, who = deps(request), owner(request)
    body = await read_object(request, _SMALL_BODY)
    path, tags, expires_in = body.get("file_path"), body.get("tags"), body.get("expires_in")
    if path is not None and not isinstance(path, str):
        raise invalid("file_path", "must be a string")
    if tags is not None and not (isinstance(tags, list) and all(isinstance(t, str) for t in tags)):
        raise invalid("tags", "must be a list of strings")
    if expires_in is not None and (isinstance(expires_in, bool) or not isinstance(expires_in, int)):
        raise invalid("expires_in", "must be a whole number of seconds")
    asset, fresh = await d.assets.from_hash(
        owner=who,
        hash_=_hash(body.get("hash"), "hash"),
        file_path=None if path is None else asset_fields.file_path(path),
        tags=_tags(tags or []),
        expires_in_s=None if expires_in is None else _expires_in(expires_in),
    )
    return json_response(
        serialize.asset(asset, links(request), now=d.clock(), created_new=False), 201 if fresh else 200
    )


async def head_asset_by_hash(request: Request) -> Response:
    """Whether from-hash would work: the caller has these bytes."""
    wanted = request.path_params["hash"].lower()
    if not HASH.fullmatch(wanted) or not await deps(request).assets.has_hash(
        owner=owner(request), hash_=wanted
    ):
        raise HttpError(404, "blob_not_found", "no bytes with this hash")
    return Response(status_code=200)


async def get_asset(request: Request) -> Response:
    """A file: its name, type, size and hash."""
    asset = await _readable(request)
    return json_response(serialize.asset(asset, links(request), now=deps(request).clock()))


async def get_asset_content(request: Request) -> Response:
    """The bytes, one range at a time; a picture also in another format or size."""
    asset = await _readable(request)
    expires_at: float | None = request.scope.get("signed")
    shown_as = {}
    if expires_at is not None:
        left_s = max(0, int(expires_at - deps(request).clock()))
        shown_as = {"Cache-Control": f"private, max-age={min(3600, left_s)}"}
    return await output_response.respond(request, asset, shown_as=shown_as)


async def delete_asset(request: Request) -> Response:
    """Forget an upload; 409 while a job needs it."""
    asset = await _owned(request)
    await deps(request).assets.delete(owner=asset.owner, asset_id=asset.id)
    return Response(status_code=204)


async def _owned(request: Request) -> Asset:
    asset = await _readable(request)
    if asset.owner != owner(request):
        raise _none(asset.id)
    return asset


async def _readable(request: Request) -> Asset:
    """Return a file of the caller's, or of a job that they may read because their tenant is shared."""
    asset_id, who = request.path_params["asset_id"], owner(request)
    asset = await deps(request).assets.get(asset_id) if is_id(asset_id) else None
    if asset is None:
        raise _none(asset_id)
    if asset.owner != who:
        shared = deps(request).keys.ring.seen_by(principal(request))
        if asset.job_id is None or asset.owner not in shared:
            raise _none(asset_id)
    return asset


def _none(asset_id: str) -> NotFound:
    return NotFound(f"no asset {asset_id[:80]}")


def _made(request: Request, d: ApiDeps, asset: Asset, fresh: bool) -> Response:
    return json_response(
        serialize.asset(asset, links(request), now=d.clock(), created_new=fresh),
        201 if fresh else 200,
        {"X-Fleet-Asset": asset.id},
    )


def _hash(value: object, field: str) -> str:
    if not isinstance(value, str) or not HASH.fullmatch(value.lower()):
        raise invalid(field, "must be blake3: and 64 hexadecimal digits")
    return value.lower()


def _tags(tags: list[str]) -> tuple[str, ...]:
    if len(tags) > MAX_TAGS or not all(_TAG.fullmatch(tag) for tag in tags):
        raise invalid("tags", f"must be at most {MAX_TAGS}, each 1 to 64 of A-Z a-z 0-9 _ . : / -")
    return tuple(sorted(set(tags)))


def _expires_in(seconds: int) -> float:
    if not MIN_EXPIRES_S <= seconds <= MAX_EXPIRES_S:
        raise invalid("expires_in", f"must be {MIN_EXPIRES_S} to {MAX_EXPIRES_S} seconds")
    return float(seconds)
