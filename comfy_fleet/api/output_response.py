"""Pictures on request: another format, smaller, without what is written in them."""

from typing import Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from comfy_fleet.api import asset_response
from comfy_fleet.api.accepts import Accepts
from comfy_fleet.api.deps import deps, let_others_in, owner
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.held_response import HeldResponse
from comfy_fleet.api.typed_bodies import read_query
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.services.output_forms import KINDS, QUALITY, OutputForm
from comfy_fleet.services.picture_forms import NoSuchForm
from comfy_fleet.services.stored_redirects import GOOD_S

VARY = "Accept, Save-Data"
_SAVING = 60
"""The quality for a client that wants to save data."""
_WIDEST = 16_384


class FormQuery(BaseModel):
    """How a picture is wanted; nothing of it asks for the file as it is."""

    format: Literal["webp", "jpeg", "png"] | None = Field(
        None, description="The format. If left out, `Accept` may choose another than the file's own."
    )
    quality: int | None = Field(
        None, ge=1, le=100, description=f"Of WebP and JPEG; {QUALITY} if left out. PNG has none."
    )
    width: int | None = Field(
        None, ge=1, le=_WIDEST, description="Most pixels of a row; the height follows. Nothing is enlarged."
    )
    metadata: Literal["keep", "strip"] | None = Field(
        None,
        description="Whether what is written in the file stays: the graph, Exif, and in a PNG other texts. "
        "If left out, it stays in the file as it is, and is in no other form.",
    )


class ContentQuery(FormQuery):
    """How a file is wanted, and from where."""

    redirect: bool | None = Field(
        None,
        description="True: 302 to the store, if the file is stored there as it is and the store signs URLs; "
        "else, and with false, its bytes. If left out, the store's own option decides.",
    )


def chosen(request: Request, asset: Asset) -> tuple[OutputForm | None, bool]:
    """Return the form that a request wants, None for the file as it is; and whether its query says so.

    Raises:
        HttpError: 422 if the query is wrong.
    """
    query = read_query(request, FormQuery)
    own = asset.content_type.partition(";")[0].strip()
    asked = query.format or query.quality or query.width or query.metadata
    kind = query.format or (_negotiated(request, own) if own.startswith("image/") else None)
    if not asked or query == FormQuery(metadata="keep"):
        if kind is None:
            return None, False
        quality = _SAVING if _saves(request) and kind != "png" else QUALITY
        return OutputForm(kind=kind, quality=quality, keeps=query.metadata == "keep"), False
    kind = kind or (own.removeprefix("image/") if own.removeprefix("image/") in KINDS else "webp")
    if kind == "png" and query.quality is not None:
        raise HttpError(
            422,
            "invalid_request",
            "quality: a PNG has none: send format=webp or format=jpeg, too",
            details={"field": "quality"},
        )
    quality = query.quality or (_SAVING if _saves(request) else QUALITY)
    keeps = query.metadata == "keep"
    return OutputForm(kind=kind, quality=quality, width=query.width, keeps=keeps), True


def _saves(request: Request) -> bool:
    return request.headers.get("save-data", "").strip().lower() == "on"


def _negotiated(request: Request, own: str) -> str | None:
    """Return the format that ``Accept`` prefers to a file's own; None if it takes that as gladly."""
    accepts = Accepts.read(request.headers.getlist("accept"))
    if _saves(request) and accepts.names("image/webp"):
        return "webp"
    weights = {kind: accepts.weight(f"image/{kind}") for kind in ("webp", "png", "jpeg")}
    best = max(weights, key=lambda kind: weights[kind])
    return best if weights[best] > accepts.weight(own) else None


async def respond(request: Request, asset: Asset, *, shown_as: dict[str, str]) -> Response:
    """Return an asset's bytes, its picture in the form that the request wants, or a redirect to its store.

    Raises:
        HttpError: 404 if the bytes are gone; 422 if the query is wrong, or the file can't be had like that.
    """
    d = deps(request)
    asked = read_query(request, ContentQuery).redirect if request.method in ("GET", "HEAD") else False
    form, by_query = chosen(request, asset)
    if asset.content_type.startswith("image/") or by_query:
        shown_as = {**shown_as, "Vary": VARY}
    if form is not None:
        try:
            return await formed(request, asset, form, shown_as=shown_as)
        except NoSuchForm as error:
            if by_query:
                raise HttpError(
                    422,
                    "not_convertible",
                    f"{error}; without format, quality, width and metadata, you get the file as it is",
                    details={"field": "format", "content_type": asset.content_type},
                ) from None
    etag = asset_response.etag_of(asset)
    if asked is False or asset_response.is_known(request, etag):
        return await asset_response.respond(request, asset, d.assets, shown_as=shown_as)
    if (sent := await redirected(request, asset, asked=asked is True)) is not None:
        return sent
    try:
        return await asset_response.respond(request, asset, d.assets, shown_as=shown_as)
    except HttpError as error:
        # The store has what the fleet has lost.
        if error.status == 404 and (sent := await redirected(request, asset, asked=True)) is not None:
            return sent
        raise


async def redirected(request: Request, asset: Asset, *, asked: bool) -> Response | None:
    """Return a redirect to the store that has an asset's bytes as they are; None if none can be made.

    Args:
        request: A GET or HEAD. A signed URL of the fleet's leads to none that is good for longer.
        asset: What its caller may read.
        asked: Whether this is wanted whatever the store's own option says.
    """
    d = deps(request)
    expires_at: float | None = request.scope.get("signed")
    url = await d.redirects.url(
        asset,
        asked=asked,
        method="HEAD" if request.method == "HEAD" else "GET",
        most_s=GOOD_S if expires_at is None else expires_at - d.clock(),
    )
    if url is None:
        return None
    return RedirectResponse(
        url, 302, {"Cache-Control": "private, no-store", "Referrer-Policy": "no-referrer"}
    )


async def formed(request: Request, asset: Asset, form: OutputForm, *, shown_as: dict[str, str]) -> Response:
    """Return an asset's picture in a form: 200, 206, 304 or 416.

    Raises:
        NoSuchForm: It can't be had in this form.
        HttpError: 404 if the bytes are gone.
    """
    etag = f'"{asset.hash}-{form.tag}"'
    stem = asset.file_path.rpartition("/")[2].rpartition(".")[0] or "file"
    headers = {
        **asset_response.headers_of(etag, f"{stem}.{form.kind}", form.content_type),
        **shown_as,
    }
    if request.method != "POST" and asset_response.is_known(request, etag):
        return Response(status_code=304, headers=headers)
    let_others_in(request)
    try:
        # Whoever has a signed URL keeps nobody with a key waiting.
        by = f"{asset.owner}, signed" if "signed" in request.scope else owner(request)
        held = await deps(request).pictures.rendered(asset, form, by=by)
    except FileNotFoundError:
        raise HttpError(404, "not_found", f"the bytes of asset {asset.id} are gone") from None
    part = asset_response.part_of(request, len(held.data), etag)
    if isinstance(part, Response):
        held.done()
        return part
    headers |= part.headers
    body = memoryview(b"" if request.method == "HEAD" else held.data)[part.start : part.end]
    return HeldResponse(body, part.status, headers, held.done)
