"""The pictures of jobs that have ended, as OpenAI's client reads them: by URL, or as Base64.

Base64 is made while it is sent: of a request, at most one picture that was converted is in memory as a whole.
"""

import base64
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from comfy_fleet.api import waited_picture
from comfy_fleet.api.deps import deps, links, owner
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.links import Links, Signing
from comfy_fleet.api.openai.bodies import PictureRequestBody
from comfy_fleet.api.openai.parameters import refused
from comfy_fleet.api.waiting import JOB
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import Job, JobStatus, Output, OutputKind
from comfy_fleet.domain.moderation import ContentRefused
from comfy_fleet.services.output_forms import KINDS, OutputForm
from comfy_fleet.services.picture_forms import NoSuchForm
from comfy_fleet.services.picture_work import HeldPicture

URL_S = 3600.0
"""For how long a URL needs no key, as OpenAI's do."""
_URL_MODELS = "dall-e"
"""Clients of models whose names begin so read the URL unless they ask for something else."""
_LEFT = b'"b64_json":"'
_RIGHT = b'"'


@dataclass(frozen=True, kw_only=True)
class MadePicture:
    """A picture that is to be sent.

    Attributes:
        form: How it is wanted; None: as the file is.
        size_bytes: The length of what is sent, before it is Base64; 0 if only a URL is.
    """

    job: Job
    asset: Asset
    form: OutputForm | None = None
    size_bytes: int = 0

    @property
    def kind(self) -> str | None:
        """``png``, ``jpeg`` or ``webp``; None if it is something else."""
        own = self.asset.content_type.partition(";")[0].strip().removeprefix("image/")
        kind = own if self.form is None else self.form.kind
        return kind if kind in KINDS else None


def wants_urls(body: PictureRequestBody, workflow: str) -> bool:
    """Return whether a request wants URLs."""
    if body.response_format is None:
        return workflow.startswith(_URL_MODELS)
    return body.response_format == "url"


def form_of(body: PictureRequestBody) -> OutputForm | None:
    """Return the form that a request wants; None for the files as they are.

    Raises:
        HttpError: 422 if it contradicts itself.
    """
    kind, compression = body.output_format, body.output_compression
    if kind in (None, "png") and compression not in (None, 100):
        raise refused(
            "output_compression", "output_compression needs output_format jpeg or webp: send one of them, too"
        )
    if kind is None:
        return None
    return OutputForm(kind=kind, quality=max(1, 100 if compression is None else compression))


def outputs_of(job: Job) -> list[Output]:
    """Return the pictures of a job that has ended.

    Raises:
        HttpError: It has not succeeded, or has no picture.
        ContentRefused: None of them may be given out.
    """
    if job.status is JobStatus.CANCELED:
        raise HttpError(409, "canceled", f"job {job.id} was canceled: there is no picture")
    if job.status is not JobStatus.SUCCEEDED:
        code = job.error.code if job.error else "internal_error"
        why = job.error.message if job.error else "the job has failed"
        raise HttpError(waited_picture.STATUS.get(code, 502), code, f"job {job.id}: {why}")
    images = [one for one in job.outputs if one.kind is OutputKind.IMAGE]
    kept = [one for one in images if not one.temporary] or images
    if not kept:
        raise HttpError(
            422, "no_picture", f"job {job.id} has succeeded, and has no picture among its outputs"
        )
    if all(one.withheld for one in kept):
        raise ContentRefused(f"job {job.id}: its pictures may not be given out")
    return kept


async def made(request: Request, job: Job, form: OutputForm | None, *, urls: bool) -> list[MadePicture]:
    """Return the pictures of a job that has ended, converted if they are to be sent.

    Raises:
        FleetError: As :func:`outputs_of`; 404 if one was deleted, 422 if it can't be had in the form.
    """
    d, found = deps(request), []
    for output in outputs_of(job):
        asset = await d.assets.get(output.asset_id)
        if asset is None:
            raise HttpError(404, "not_found", f"a picture of job {job.id} was deleted")
        needed, size = _needed(asset, form), asset.size_bytes
        if needed is not None and not urls:
            size = await _converted(request, asset, needed)
        found.append(MadePicture(job=job, asset=asset, form=needed, size_bytes=size))
    return found


async def _converted(request: Request, asset: Asset, form: OutputForm) -> int:
    """Convert a picture, so that it is kept on disk; return its length."""
    try:
        held = await deps(request).pictures.rendered(asset, form, by=owner(request))
    except NoSuchForm as error:
        raise refused("output_format", f"{error}; without output_format you get the file") from None
    except FileNotFoundError:
        raise HttpError(404, "not_found", f"the bytes of asset {asset.id} are gone") from None
    held.done()
    return len(held.data)


def _needed(asset: Asset, form: OutputForm | None) -> OutputForm | None:
    if form is None or (form.kind == "png" and asset.content_type == "image/png"):
        return None
    return form


def url_of(request: Request, picture: MadePicture) -> str:
    """Return a URL of a picture that needs no key, for an hour."""
    d = deps(request)
    expires_at = min(d.clock() + URL_S, picture.job.expires_at)
    signing = Signing(urls=d.signed_urls, owner=picture.job.owner, expires_at=expires_at)
    url = Links.public(request, d.settings).signed(signing).output(picture.job.id, picture.asset.id)
    form = picture.form
    if form is None:
        return url
    return f"{url}&format={form.kind}" + ("" if form.kind == "png" else f"&quality={form.quality}")


async def answer(
    request: Request, jobs: Sequence[Job], body: PictureRequestBody, form: OutputForm | None, *, urls: bool
) -> Response:
    """Return the answer with all pictures of jobs that have ended, in their order.

    Raises:
        FleetError: As :func:`made`.
    """
    found = [picture for job in jobs for picture in await made(request, job, form, urls=urls)]
    told: dict[str, Any] = {"created": int(deps(request).clock())}
    kinds = {picture.kind for picture in found}
    if len(kinds) == 1 and None not in kinds:
        told["output_format"] = kinds.pop()
    if body.size not in (None, "auto"):
        told["size"] = body.size
    headers = {JOB: ", ".join(job.id for job in jobs), "Location": links(request).job(jobs[0].id)}
    if urls:
        told["data"] = [{"url": url_of(request, picture)} for picture in found]
        return Response(orjson.dumps(told), headers=headers, media_type="application/json")
    head = orjson.dumps(told)[:-1] + b',"data":['
    parts: list[bytes | MadePicture] = [head]
    for number, picture in enumerate(found):
        parts += [b"," if number else b"", b"{", _LEFT, picture, _RIGHT, b"}"]
    parts.append(b"]}")
    headers["Content-Length"] = str(sum(map(_length, parts)))
    return StreamingResponse(_sent(request, parts), headers=headers, media_type="application/json")


def _length(part: bytes | MadePicture) -> int:
    return len(part) if isinstance(part, bytes) else -(-part.size_bytes // 3) * 4


async def _sent(request: Request, parts: Sequence[bytes | MadePicture]) -> AsyncIterator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
            continue
        async for piece in encoded(request, part):
            yield piece


async def event(request: Request, picture: MadePicture, told: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield a line of an event's data: its fields, with the picture as ``b64_json``."""
    yield b"data: " + orjson.dumps(told)[:-1] + b"," + _LEFT
    async for piece in encoded(request, picture):
        yield piece
    yield _RIGHT + b"}\n\n"


async def encoded(request: Request, picture: MadePicture) -> AsyncIterator[bytes]:
    """Yield a picture as Base64."""
    left = b""
    async with aclosing(await _bytes(request, picture)) as chunks:
        async for chunk in chunks:
            whole = left + chunk
            cut = len(whole) - len(whole) % 3
            left = whole[cut:]
            if cut:
                yield base64.b64encode(whole[:cut])
    if left:
        yield base64.b64encode(left)


async def _bytes(request: Request, picture: MadePicture) -> AsyncGenerator[bytes, None]:
    if picture.form is None:
        return await deps(request).assets.open(picture.asset)
    return _pieces(await deps(request).pictures.rendered(picture.asset, picture.form, by=owner(request)))


async def _pieces(held: HeldPicture) -> AsyncGenerator[bytes, None]:
    step = 3 * 64 * 1024
    try:
        for start in range(0, len(held.data), step):
            yield held.data[start : start + step]
    finally:
        held.done()
