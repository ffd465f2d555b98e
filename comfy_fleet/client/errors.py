"""What can go wrong, one exception for each kind.

ClientError
├── RequestRefused    what was sent can't be used: ``problems`` names each field (400, 413, 415, 422)
├── AccessRefused     no valid key, or one that may not do this (401, 403)
├── NothingFound      no such job, batch, workflow or file of yours (404)
├── StateConflict     it contradicts what is there (409)
├── StorageFull       as many bytes are kept as you may (507)
├── RateLimited       the queue is full, or a limit is used up: ``retry_after_s`` (429)
├── FleetUnavailable  nothing answers, or the fleet can't do it now: ``retry_after_s`` (5xx)
├── JobNotSucceeded   the job failed, expired or was canceled: ``job`` and its ``error``
├── WaitExpired       the time that was given is over; the job goes on (a ``TimeoutError``, too)
├── FileConflict      another file has the name that a download should get (a ``FileExistsError``, too)
└── BrokenDownload    what came is not what the fleet has stored
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx

from comfy_fleet.client.data import JobData, JobErrorData


@dataclass(frozen=True, kw_only=True)
class FieldProblem:
    """What is wrong with one field of a request.

    Attributes:
        field: Its name; of a batch's item as ``params.width``, of a graph's node as ``node 4: sampler_name``.
        message: In words, with what the field takes.
        item: The ``custom_id`` of the item, if it is a batch's.
        value: What was sent, if the fleet tells it.
        limit: What the field takes, if the fleet tells it: a bound, or the choices.
    """

    field: str
    message: str
    item: str | None = None
    value: Any = None
    limit: Any = None


class ClientError(Exception):
    """The root. ``str(error)`` is for people.

    Attributes:
        message: The same text.
        status: The HTTP status; None if there was no answer, or the error is not an answer's.
        code: Stable and machine-readable, such as ``invalid_parameter``; empty if there is none.
        details: What else the fleet tells about it.
        retry_after_s: After how many seconds it may work; None if the fleet does not say so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str = "",
        details: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.details: Mapping[str, Any] = details or {}
        self.retry_after_s = retry_after_s


class RequestRefused(ClientError):
    """What was sent can't be used, and nothing has come of it; the same request would be refused again."""

    @property
    def problems(self) -> Sequence[FieldProblem]:
        """What is wrong with each field; empty if the fleet names none."""
        return tuple(_problems(self.details, self.message))


class AccessRefused(ClientError):
    """There was no valid key, or one that may not do this."""


class NothingFound(ClientError):
    """There is no such thing, or it is somebody else's."""


class StateConflict(ClientError):
    """The request contradicts what is there; the same one is refused while that lasts."""


class StorageFull(ClientError):
    """As many bytes are kept as a limit allows: delete files, or jobs with theirs."""


class RateLimited(ClientError):
    """The queue is full, or a limit is used up: again after ``retry_after_s``."""


class FleetUnavailable(ClientError):
    """Nothing answers, or the fleet can't do it now."""


class JobNotSucceeded(ClientError):
    """A job ended without success.

    Attributes:
        job: The job.
        error: Why; None of a job that was canceled.
    """

    def __init__(self, job: JobData) -> None:
        why = job["error"]
        super().__init__(
            f"job {job['id']} is {job['status']}" + (f": {why['message']}" if why else ""),
            code=why["code"] if why else str(job["status"]),
            details=(why.get("details") or {}) if why else {},
        )
        self.job = job
        self.error: JobErrorData | None = why


class WaitExpired(ClientError, TimeoutError):
    """The time that was given is over. What was waited for goes on."""


class FileConflict(ClientError, FileExistsError):
    """Another file has the name that a download should get.

    Attributes:
        paths: The files.
    """

    def __init__(self, message: str, paths: Sequence[Path]) -> None:
        super().__init__(message)
        self.paths = tuple(paths)


class BrokenDownload(ClientError):
    """What came is not what the fleet has stored."""


_BY_STATUS: Mapping[int, type[ClientError]] = {
    400: RequestRefused,
    401: AccessRefused,
    403: AccessRefused,
    404: NothingFound,
    409: StateConflict,
    413: RequestRefused,
    415: RequestRefused,
    422: RequestRefused,
    429: RateLimited,
    507: StorageFull,
}


def error_of(answer: httpx.Response) -> ClientError:
    """Return the exception for an error answer whose body has been read."""
    kind = _BY_STATUS.get(answer.status_code, FleetUnavailable if answer.status_code >= 500 else ClientError)
    code, message = "", ""
    details: Mapping[str, Any] = {}
    try:
        told = answer.json()["error"]
        code, message = str(told.get("code", "")), str(told.get("message", ""))
        details = told.get("details") if isinstance(told.get("details"), Mapping) else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        message = f"{answer.request.url.path} answered {answer.status_code} {answer.reason_phrase}".strip()
    return kind(
        message or str(answer.status_code),
        status=answer.status_code,
        code=code,
        details=details,
        retry_after_s=_seconds(answer.headers.get("Retry-After")),
    )


def no_answer(url: str, error: httpx.TransportError) -> FleetUnavailable:
    """Return the exception for a request without an answer."""
    late = isinstance(error, httpx.TimeoutException)
    why = str(error) or type(error).__name__
    return FleetUnavailable(f"{url} did not answer in time" if late else f"nothing answers at {url} ({why})")


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:  # a date, which the fleet never sends
        return None


def _problems(details: Mapping[str, Any], message: str) -> Iterator[FieldProblem]:
    each = details.get("errors")
    nodes = details.get("node_errors")
    if isinstance(each, list) and each:
        for one in each:
            if isinstance(one, Mapping):
                yield _problem(one)
    elif isinstance(nodes, Mapping) and nodes:
        for node, told in nodes.items():
            for one in told if isinstance(told, list) else [told]:
                yield _node_problem(str(node), one)
    elif "field" in details or "parameter" in details:
        yield _problem({**details, "message": message})


def _problem(told: Mapping[str, Any]) -> FieldProblem:
    return FieldProblem(
        field=str(told.get("field") or told.get("parameter") or ""),
        message=str(told.get("message", "")),
        item=cast("str | None", told.get("custom_id")),
        value=told.get("value"),
        limit=told.get("limit"),
    )


def _node_problem(node: str, told: object) -> FieldProblem:
    if not isinstance(told, Mapping):
        return FieldProblem(field=f"node {node}", message=str(told))
    field = told.get("field") or told.get("input")
    return FieldProblem(
        field=f"node {node}: {field}" if field else f"node {node}",
        message=str(told.get("message") or told.get("reason") or told),
        value=told.get("value"),
        limit=told.get("limit"),
    )
