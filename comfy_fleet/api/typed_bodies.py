"""Typed REST bodies: parsed by the same strict reader as all others, shown in the OpenAPI documents."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import orjson
from blake3 import blake3
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.body import JsonLimits, idempotency_key, params_limits, read_object
from comfy_fleet.api.deps import deps
from comfy_fleet.api.errors import HttpError
from comfy_fleet.domain.errors import FleetError, IdempotencyKeyReuse, StoreDown
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.text import wrong_value
from comfy_fleet.ports.jobs import Idempotency, Submitted

MAX_URL = 4096
_SHOWN = 20  # most wrong fields that an error lists
M = TypeVar("M", bound=BaseModel)


async def read(request: Request, model: type[M], limits: JsonLimits | None = None) -> M:
    """Read a body as a model, within the limits for parameters if no others are given.

    Raises:
        HttpError: 400 if it is not a JSON object, 413 if it is too large, 422 if a field is wrong.
    """
    return checked(await read_object(request, limits or params_limits(deps(request).settings)), model)


async def read_optional(request: Request, model: type[M]) -> M:
    """Read a body as a model; none at all is the model with its defaults.

    Raises:
        HttpError: As :func:`read`.
    """
    headers = request.headers
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return model()
    return await read(request, model)


def read_query(request: Request, model: type[M]) -> M:
    """Read the query as a model; if a field comes several times, the last one counts.

    Raises:
        HttpError: 422 if a field is missing or wrong.
    """
    return checked(dict(request.query_params), model)


def checked(body: dict[str, Any], model: type[M]) -> M:
    """Return an object as a model.

    Raises:
        HttpError: 422 if a field is wrong.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        problems = [
            {"field": ".".join(map(str, problem["loc"])) or "body", "message": _message(problem, model)}
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        first = problems[0]
        raise HttpError(
            422,
            "invalid_request",
            f"{first['field']}: {first['message']}",
            details={"field": first["field"], "errors": problems[:_SHOWN]},
        ) from None


def _message(problem: Any, model: type[BaseModel]) -> str:
    if problem["type"] != "extra_forbidden":
        return wrong_value(problem["type"], problem["msg"])
    place = "; a parameter of the workflow goes into `params`" if "params" in model.model_fields else ""
    fields = ", ".join(sorted(model.model_fields)) if len(problem["loc"]) == 1 else ""
    return f"there is no such field{place}" + (f"; there are {fields}" if fields else "")


class Replay:
    """One request's ``Idempotency-Key``, handled as Stripe does.

    The same key with the same body gets the same answer and ``Idempotency-Replayed: true``; with another body
    it gets 422. Keys are kept for 24 h. The key and the job are written in one step, so neither a crash nor
    requests at the same time can lead to a second job, and nothing has to be reserved for the first of them.

    Args:
        body: What identifies equal requests, in addition to their path.
    """

    def __init__(self, request: Request, owner: str, body: Mapping[str, Any]) -> None:
        self._replays = deps(request).replays
        self._jobs = deps(request).jobs
        self._key = idempotency_key(request)
        self._scope = f"v1:{owner}"
        content = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        self._fingerprint = blake3(request.url.path.encode() + b"\0" + content).hexdigest()

    @property
    def idempotency(self) -> Idempotency | None:
        """The key in the form that a submit needs."""
        if self._key is None:
            return None
        return Idempotency(scope=self._scope, key=self._key, fingerprint=self._fingerprint, replay=True)

    async def answer(
        self,
        status: int,
        submit: Callable[[], Awaitable[Submitted]],
        describe: Callable[[Job], Awaitable[Mapping[str, Any]]],
        *,
        then: Callable[[Response, Job], Response] | None = None,
    ) -> Response:
        """Return the earlier answer, or make one and store it.

        Args:
            status: Status of a success.
            submit: Makes the job, or returns the one that this key has made.
            describe: Returns the answer for a job.
            then: Makes of this answer the one that is sent, a repeated one included.

        Raises:
            IdempotencyKeyReuse: The key came with another body.
        """
        if self._key is not None and (kept := await self._recall(self._key)) is not None:
            earlier = _json(kept, status, replayed=True)
            job = await self._told_of(kept) if then is not None else None
            return earlier if then is None or job is None else then(earlier, job)
        done = await self._submitted(submit)
        made = orjson.dumps(await describe(done.job))
        if self._key is not None:
            with suppress(StoreDown):  # the job's record has the key: the same answer can be made again
                await self._replays.end(self._scope, self._key, answer=(self._fingerprint, made))
        answer = _json(made, status, replayed=done.replayed)
        return answer if then is None else then(answer, done.job)

    async def _told_of(self, kept: bytes) -> Job | None:
        """Return the job that an earlier answer tells of, as it is now; None if it can't be had."""
        told = orjson.loads(kept)
        with suppress(StoreDown):
            job = await self._jobs.get(told.get("task_id") or told["id"])
            return None if job is None or job.removed else job
        return None

    async def _submitted(self, submit: Callable[[], Awaitable[Submitted]]) -> Submitted:
        try:
            return await submit()
        except FleetError as error:
            return await self._earlier(error)

    async def _earlier(self, error: FleetError) -> Submitted:
        """Return the job that this key has made, whatever would prevent a new one.

        Raises:
            FleetError: ``error``, if there is none.
        """
        once = self.idempotency
        if once is None or (found := await self._jobs.replayed(once)) is None:
            raise error
        return found

    async def _recall(self, key: str) -> bytes | None:
        """Return the earlier answer's body, or None."""
        kept = await self._replays.recall(self._scope, key)
        if kept is None:
            return None
        if kept[0] != self._fingerprint:
            raise IdempotencyKeyReuse("this Idempotency-Key came with another body before: use a new key")
        return kept[1]


def _json(body: bytes, status: int, *, replayed: bool) -> Response:
    """Return a JSON answer that may be a replay."""
    headers = {"Idempotency-Replayed": "true"} if replayed else None
    return Response(body, status, headers, media_type="application/json")
