"""Jobs: submit, wait, follow, list, cancel, run again, delete."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, Literal, TypedDict, Unpack, cast

from comfy_fleet.client.calls import id_of, path_part, submit_headers
from comfy_fleet.client.data import FINAL, EstimateData, JobData, JobState, ListedJobData, StreamEvent
from comfy_fleet.client.errors import JobNotSucceeded, RequestRefused
from comfy_fleet.client.file_calls import FileCalls, is_file

OnEvent = Callable[[StreamEvent], Any]
JobReference = str | JobData | ListedJobData
"""A job that the fleet has answered, or its id."""


class SubmitOptions(TypedDict, total=False):
    """What every submit takes beside parameters or a graph.

    Attributes:
        priority: Of your own jobs, the higher goes first.
        metadata: Up to 16 labels, or a text.
        ttl_s: It expires if it has not started after so many seconds.
        deadline_s: An earlier name of ``ttl_s``.
        timeout_s: A run that takes longer is interrupted, and the job fails.
        finish_by: When it should be done: a time with its zone, or as the API takes it. A wish for the order.
        tier: ``batch``: one of many, after your other jobs.
        webhook_url: Is told what becomes of it.
        webhook_events: What it is told of.
        pool: The pool that it must run in.
        prefer_pool: The pool that is asked first.
        spill_to: With ``pool``: pools that are asked next.
        zone: The zone that it must run in.
        labels: Labels that the node must carry.
        output: Where its outputs are put besides: ``{"store": "shop", "key": "{metadata.sku}.{ext}"}``.
    """

    priority: int
    metadata: Mapping[str, str] | str
    ttl_s: float
    deadline_s: float
    timeout_s: float
    finish_by: datetime | str
    tier: Literal["single", "batch"]
    webhook_url: str
    webhook_events: Sequence[str]
    pool: str
    prefer_pool: str
    spill_to: Sequence[str]
    zone: str
    labels: Mapping[str, str]
    output: Mapping[str, Any]


def sent_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they are sent.

    Raises:
        RequestRefused: A time has no zone.
    """
    made = dict(options)
    if isinstance(when := made.get("finish_by"), datetime):
        if when.tzinfo is None:
            raise RequestRefused("finish_by needs its time zone", details={"field": "finish_by"})
        made["finish_by"] = when.isoformat()
    return made


def _ended(event: StreamEvent) -> bool:
    return event.name == "status" and event.data.get("status") in FINAL


class JobCalls(FileCalls):
    """What is done with jobs."""

    async def submit(
        self,
        workflow: str,
        params: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        cache: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> JobData:
        """Submit a job from a stored workflow, and return it as soon as it is durable.

        Args:
            workflow: The workflow's name; also ``NAME@VERSION``, ``NAME@LABEL``.
            params: Its parameters. A ``Path``, bytes or an open file is uploaded; a text may also be a URL
                that the fleet fetches, or an upload's name or id.
            idempotency_key: A second submit with the same key makes no second job, also in another process.
                Without one, a key is drawn for this call, so that repeating it makes no second job.
            cache: ``no-cache``: it is computed even if an equal job has a result; also ``no-store``,
                ``max-age=S``.
            options: See :class:`SubmitOptions`.

        Raises:
            RequestRefused: A parameter is wrong: ``problems`` says which, and what it takes.
            RateLimited: The queue stayed full, or a limit used up.
            ClientError: It can't be submitted.
        """
        body = {"params": await self._with_files(params or {}), **sent_options(options)}
        path = f"/api/v1/workflows/{path_part('workflow', workflow)}/jobs"
        headers = submit_headers(idempotency_key, cache=cache)
        return cast("JobData", await self.request("POST", path, body=body, headers=headers))

    async def submit_graph(
        self,
        graph: Mapping[str, Any],
        *,
        extra_data: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        cache: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> JobData:
        """Submit a graph in API format, and return the job.

        Args:
            graph: The graph. A ``Path``, bytes or an open file as a node's input is uploaded.
            extra_data: What the node gets beside it.
            idempotency_key: As for :meth:`submit`. For graphs the key alone decides which job is returned.
            cache: As for :meth:`submit`; for graphs, results of others are used only with ``max-age=S``.
            options: See :class:`SubmitOptions`.

        Raises:
            RequestRefused: The graph can't run: ``problems`` says which node, and why.
            ClientError: It can't be submitted.
        """
        body: dict[str, Any] = {"workflow": await self._with_uploads(graph), **sent_options(options)}
        if extra_data is not None:
            body["extra_data"] = extra_data
        headers = submit_headers(idempotency_key, cache=cache)
        try:
            made = await self.request("POST", "/api/v2/jobs", body=body, headers=headers)
        except RequestRefused as error:
            earlier = error.details.get("job_id")
            if error.code != "idempotency_key_reuse" or not isinstance(earlier, str):
                raise
            return await self.job(earlier)
        return await self.job(made["id"])

    async def run(
        self,
        workflow: str,
        params: Mapping[str, Any] | None = None,
        *,
        wait_s: float | None = None,
        on_event: OnEvent | None = None,
        idempotency_key: str | None = None,
        cache: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> JobData:
        """Submit a job from a stored workflow, wait for its end, and return it with its outputs.

        Args and errors are those of :meth:`submit` and :meth:`wait`.
        """
        made = await self.submit(workflow, params, idempotency_key=idempotency_key, cache=cache, **options)
        return await self.wait(made, wait_s=wait_s, on_event=on_event)

    async def job(self, job: JobReference) -> JobData:
        """Return a job as it is now.

        Raises:
            NothingFound: There is none of yours.
        """
        return cast("JobData", await self.request("GET", f"/api/v1/jobs/{id_of('job', job)}"))

    async def estimate(self, job: JobReference) -> EstimateData | None:
        """Return in how many seconds a job will probably have ended; None if it has, or nothing is known."""
        return (await self.job(job))["estimate"]

    async def wait(
        self,
        job: JobReference,
        *,
        wait_s: float | None = None,
        on_event: OnEvent | None = None,
        check: bool = True,
    ) -> JobData:
        """Wait for a job's end, and return it with its outputs.

        Args:
            job: The job.
            wait_s: Give up after so many seconds. The job goes on.
            on_event: Is called with each event, as :meth:`follow` yields them.
            check: Whether a job that has not succeeded is an error.

        Raises:
            JobNotSucceeded: It failed, expired or was canceled, and ``check`` is set.
            WaitExpired: The time is up.
            ClientError: There is none of yours, or the fleet can't be reached any more.
        """
        async with aclosing(self.follow(job, wait_s=wait_s)) as events:
            async for event in events:
                if on_event is not None:
                    await self._transport.tell(on_event, event)
        ended = await self.job(job)
        if check and ended["status"] != "succeeded":
            raise JobNotSucceeded(ended)
        return ended

    async def follow(
        self, job: JobReference, *, wait_s: float | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """Yield a job's events from its present state until its end.

        A stream that breaks off is opened again. ``progress`` events may be left out meanwhile; no state is
        yielded twice in a row.

        Args:
            job: The job.
            wait_s: Give up after so many seconds. The job goes on.

        Raises:
            WaitExpired: The time is up.
            ClientError: There is none of yours, or the fleet can't be reached any more.
        """
        job_id = id_of("job", job)

        async def look() -> StreamEvent:
            now = await self.job(job_id)
            data = {"status": now["status"], "queue_position": now["queue_position"]}
            return StreamEvent(name="status", data=data)

        followed = self.followed(
            f"/api/v1/jobs/{job_id}/events",
            what=f"job {job_id}",
            state="status",
            final=_ended,
            look=look,
            timeout_s=wait_s,
        )
        async with aclosing(followed) as events:
            async for event in events:
                yield event

    async def jobs(
        self,
        *,
        status: JobState | Sequence[JobState] = (),
        metadata: Mapping[str, str] | None = None,
        page: int = 100,
    ) -> AsyncGenerator[ListedJobData, None]:
        """Yield your jobs, newest first; ask for one to see its outputs.

        Args:
            status: Only jobs in these states.
            metadata: Only jobs with these labels.
            page: How many are asked for at a time, at most 100.
        """
        wanted = [status] if isinstance(status, str) else list(status)
        query: dict[str, Any] = {"status": ",".join(wanted) or None, "limit": page}
        query |= {f"metadata[{name}]": value for name, value in (metadata or {}).items()}
        while True:
            found = await self.request("GET", "/api/v1/jobs", params=query)
            for one in found["jobs"]:
                yield one
            if found["next_cursor"] is None:
                return
            query["cursor"] = found["next_cursor"]

    async def cancel(self, job: JobReference) -> JobData:
        """Cancel a job, and return it: ``canceled`` or ``canceling``, or as it had ended before."""
        path = f"/api/v1/jobs/{id_of('job', job)}/cancel"
        return cast("JobData", await self.request("POST", path, repeat=True))

    async def retry(
        self, job: JobReference, *, new_seed: bool = False, idempotency_key: str | None = None
    ) -> JobData:
        """Submit a job again, and return the new one.

        Args:
            job: The job.
            new_seed: Draw its seeds anew.
            idempotency_key: As for :meth:`submit`.
        """
        return cast(
            "JobData",
            await self.request(
                "POST",
                f"/api/v1/jobs/{id_of('job', job)}/retry",
                body={"new_seed": new_seed},
                headers=submit_headers(idempotency_key),
            ),
        )

    async def delete(self, job: JobReference, *, cancel: bool = False) -> None:
        """Delete a job and its files; with ``cancel``, also one that waits or runs.

        Raises:
            StateConflict: It waits or runs, and ``cancel`` is not set.
        """
        await self._deleted(f"/api/v1/jobs/{id_of('job', job)}", **({"cancel": "true"} if cancel else {}))

    async def keep(self, job: JobReference, *, keep: bool = True) -> JobData:
        """Keep a job and its files beyond the retention, or no longer."""
        path = f"/api/v1/jobs/{id_of('job', job)}/keep"
        return cast("JobData", await self.request("PUT" if keep else "DELETE", path))

    async def _with_uploads(self, graph: Mapping[str, Any]) -> dict[str, Any]:
        """Return a graph whose files are uploads."""
        made: dict[str, Any] = {}
        for name, node in graph.items():
            inputs = node.get("inputs") if isinstance(node, Mapping) else None
            if not isinstance(inputs, Mapping) or not any(map(is_file, inputs.values())):
                made[name] = node
                continue
            sent = await self._with_files(inputs)
            named = {one: _asset(sent[one]) for one, value in inputs.items() if is_file(value)}
            made[name] = {**node, "inputs": {**sent, **named}}
        return made


def _asset(file_id: str) -> dict[str, Any]:
    return {"__type": "core/ASSET", "info": {"id": file_id}}
