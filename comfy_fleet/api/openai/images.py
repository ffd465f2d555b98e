"""OpenAI's requests for pictures: each is jobs of a stored workflow, and waits for their end."""

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, nullcontext
from dataclasses import dataclass, field

import orjson
from blake3 import blake3
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import job_options
from comfy_fleet.api.body import idempotency_key
from comfy_fleet.api.deps import deps, owner, principal
from comfy_fleet.api.openai import pictures, streams, waits
from comfy_fleet.api.openai.bodies import PictureRequestBody, PictureWaitQuery, body_of
from comfy_fleet.api.openai.form import IMAGE, MASK, PicturesForm, SentPicture
from comfy_fleet.api.openai.models import workflow_of
from comfy_fleet.api.openai.parameters import (
    image_parameters,
    mask_parameter,
    params_of,
    reads_alpha,
    refused,
    seeds_of,
)
from comfy_fleet.api.openai.waits import MadeJobs
from comfy_fleet.api.typed_bodies import read, read_query
from comfy_fleet.domain.errors import FleetError, StoreDown
from comfy_fleet.domain.graphs.workflow import Parameter, Workflow
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import NewJob
from comfy_fleet.ports.assets import Received
from comfy_fleet.ports.jobs import Idempotency
from comfy_fleet.services.batch_maker import AskedBatch, PlannedItem
from comfy_fleet.services.picture_forms import NoSuchForm

_CHANCE = random.SystemRandom()
_DRAWN = 2**53
"""Seeds of several jobs begin below it: what every client's numbers can hold."""


async def generate_images(request: Request) -> Response:
    """Make pictures, and answer when they are there; with `stream`, events until then.

    The jobs go on if the time is over (504, the message names them) or the client hangs up.
    """
    owner(request)
    asked = _Asked.of(request, await read(request, PictureRequestBody), "image_generation")
    with asked.room():
        return await asked.finished(await asked.submitted())


async def edit_images(request: Request) -> Response:
    """The same with pictures to begin from, as a form: they go to the workflow's parameters of this type.

    What is transparent in `mask` is to be drawn anew. It goes to the workflow's parameter `mask`, or else
    becomes the first picture's own transparency, if the workflow reads that.
    """
    d = deps(request)
    owner(request)
    with ExitStack() as room:
        async with AsyncExitStack() as files:
            form = PicturesForm(request, d.settings.max_body_bytes)
            sent = await form.pictures(d.assets, files)
            asked = _Asked.of(request, body_of(form.fields()), "image_edit", sent)
            if not asked.images:
                raise refused(
                    IMAGE, "image is missing: send the picture as a file in the form's field `image`"
                )
            room.enter_context(asked.room())
            made = await asked.submitted()
        return await asked.finished(made)


@dataclass(kw_only=True)
class _Asked:
    """A request that was read.

    Attributes:
        name: What its stream's events begin with.
        images: Pictures that it brings along, in order; ``mask`` is one of them, too.
        kept: Records that were made for these.
    """

    request: Request
    body: PictureRequestBody
    query: PictureWaitQuery
    name: str
    images: list[SentPicture]
    mask: SentPicture | None
    kept: list[Asset] = field(default_factory=list)

    @classmethod
    def of(
        cls, request: Request, body: PictureRequestBody, name: str, sent: Sequence[SentPicture] = ()
    ) -> "_Asked":
        """Check what needs no workflow.

        Raises:
            HttpError: 422 if fields are wrong or contradict each other.
        """
        if not body.prompt.strip():
            raise refused("prompt", "prompt must not be empty")
        if body.stream and body.response_format == "url":
            raise refused("response_format", "a stream has b64_json only: leave response_format out")
        if body.partial_images and not body.stream:
            raise refused("partial_images", "partial_images needs stream true")
        pictures.form_of(body)
        return cls(
            request=request,
            body=body,
            query=read_query(request, PictureWaitQuery),
            name=name,
            images=[one for one in sent if one.field == IMAGE],
            mask=next((one for one in sent if one.field == MASK), None),
        )

    def room(self) -> AbstractContextManager[None]:
        """Return the place of the request among those that last; raises HttpError, 429, if there is none."""
        if not self.body.stream:
            return waits.place(self.request)
        streams.check_room(self.request)
        return nullcontext()

    async def finished(self, made: MadeJobs) -> Response:
        """Return the answer when the jobs have ended, or the stream about them at once."""
        request, form = self.request, pictures.form_of(self.body)
        if self.body.stream:
            cancels = self.query.cancel_on_disconnect
            stream = streams.AskedStream(name=self.name, body=self.body, form=form, cancels=cancels)
            return streams.PictureStream(request, made, stream)
        jobs = await waits.ended(request, made, self.query)
        urls = pictures.wants_urls(self.body, jobs[0].workflow or "")
        return await pictures.answer(request, jobs, self.body, form, urls=urls)

    # -- submitting ---------------------------------------------------------

    async def submitted(self) -> MadeJobs:
        """Make the jobs, or return those that the same request has made with its key.

        Raises:
            FleetError: What every submit raises.
        """
        once = self._once()
        if once is not None and (earlier := await self._earlier(once)):
            return earlier
        try:
            return await self._submitted(once)
        except StoreDown:
            raise
        except FleetError:
            await self._forget()
            if once is not None and (earlier := await self._earlier(once)):
                return earlier
            raise

    def _once(self) -> Idempotency | None:
        request = self.request
        key = idempotency_key(request)
        if key is None:
            return None
        files = [[one.field, one.received.hash] for one in self._files()]
        content = orjson.dumps([self.body.identity(), files], option=orjson.OPT_SORT_KEYS)
        fingerprint = blake3(request.url.path.encode() + b"\0" + content).hexdigest()
        return Idempotency(scope=f"openai:{owner(request)}", key=key, fingerprint=fingerprint, replay=True)

    def _files(self) -> list[SentPicture]:
        return [*self.images, *([self.mask] if self.mask else [])]

    async def _earlier(self, once: Idempotency) -> MadeJobs | None:
        """Return the jobs that this request has made before; None if there are none."""
        d = deps(self.request)
        if self.body.n == 1:
            found = await d.jobs.replayed(once)
            return None if found is None else MadeJobs(ids=[found.job.id])
        made = await d.batches.made_by(once)
        return None if made is None else await self._of_batch(made)

    async def _of_batch(self, batch_id: str) -> MadeJobs:
        items = await deps(self.request).batches.items(batch_id, (), limit=self.body.n)
        ids = [one.job_id for one in sorted(items, key=lambda item: item.number)]
        return MadeJobs(ids=ids, batch=batch_id)

    async def _submitted(self, once: Idempotency | None) -> MadeJobs:
        request, body = self.request, self.body
        d, who = deps(request), owner(request)
        workflow = await workflow_of(request, body.model)
        params = params_of(body, workflow, texts=bool(self.images))
        draw = _CHANCE.randrange(_DRAWN)
        each = seeds_of(workflow, params, body.n, draw)
        options = job_options.options(request, body, once if body.n == 1 else None)
        files = await self._bound(workflow)
        news = [await d.submitter.workflow_job(who, workflow, {**one, **files}, options) for one in each]
        if body.n == 1:
            return MadeJobs(ids=[(await d.submitter.write(news[0], once)).job.id])

        async def items() -> AsyncIterator[PlannedItem]:
            for number, new in enumerate(news):

                async def make(new: NewJob = new) -> NewJob:
                    return new

                yield PlannedItem(number=number, custom_id=str(number), make=make)

        made = await d.batch_maker.make(
            who,
            items(),
            AskedBatch(idempotency=once, quotas=principal(request).quotas, workflow=workflow),
        )
        return await self._of_batch(made.id)

    # -- files --------------------------------------------------------------

    async def _bound(self, workflow: Workflow) -> Mapping[str, str]:
        """Return the values of the parameters that the request's pictures go to; the pictures get records.

        Raises:
            HttpError: 422 if the workflow can't take them.
        """
        takes = image_parameters(workflow)
        if len(self.images) > len(takes):
            count = "no image" if not takes else "one image" if len(takes) == 1 else f"{len(takes)} images"
            way_out = "leave the others out" if takes else "choose another model"
            raise refused(
                IMAGE, f"workflow {workflow.name!r} takes {count}, not {len(self.images)}: {way_out}"
            )
        mask_goes_to = self._check_mask(workflow, takes)
        found: dict[str, str] = {}
        for parameter, sent in zip(takes, self.images, strict=False):
            asset = await self._keep(sent)
            if self.mask is not None and mask_goes_to is None and not found:
                asset = await self._masked(asset, self.mask)
            found[parameter.name] = asset.id
        if self.mask is not None and mask_goes_to is not None:
            found[mask_goes_to.name] = (await self._keep(self.mask)).id
        return found

    def _check_mask(self, workflow: Workflow, takes: Sequence[Parameter]) -> Parameter | None:
        """Return the parameter of the mask; None if it becomes the first picture's own transparency."""
        if self.mask is None:
            return None
        if not self.mask.transparent:
            raise refused(MASK, "mask must be a PNG with transparent places: these are to be drawn anew")
        own = mask_parameter(workflow)
        if own is None and not reads_alpha(workflow, takes[0]):
            raise refused(MASK, f"workflow {workflow.name!r} takes no mask: leave it out")
        return own

    async def _keep(self, sent: SentPicture) -> Asset:
        return await self._record(sent.received, sent.name, sent.content_type)

    async def _record(self, received: Received, name: str, content_type: str) -> Asset:
        d = deps(self.request)
        asset, fresh = await d.assets.keep(
            received,
            owner=owner(self.request),
            content_type=content_type,
            file_path=_file_name(name),
            quotas=principal(self.request).quotas,
        )
        if fresh:
            self.kept.append(asset)
        return asset

    async def _masked(self, original: Asset, mask: SentPicture) -> Asset:
        d, name = deps(self.request), f"{original.id}.png"
        try:
            joined = await d.pictures.masked(original, mask.received, name)
        except NoSuchForm as error:
            raise refused(MASK, str(error)) from None

        async def once() -> AsyncIterator[bytes]:
            yield joined

        async with d.assets.receive(once()) as received:
            return await self._record(received, name, "image/png")

    async def _forget(self) -> None:
        """Delete the records of pictures of which no job was made."""
        d = deps(self.request)
        for asset in self.kept:
            try:
                await d.assets.delete(owner=asset.owner, asset_id=asset.id)
            except FleetError:
                continue  # it goes when its time is over
        self.kept.clear()


def _file_name(name: str) -> str:
    """Return a name that a record may have, whatever a form says."""
    plain = "".join(sign if sign.isprintable() and sign not in "/\\" else "_" for sign in name)[-200:]
    return plain if plain.strip(". ") else "image.png"
