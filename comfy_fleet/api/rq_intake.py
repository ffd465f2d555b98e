"""Jobs that RQ's own clients enqueue: they pass through the submit of all, and RQ is told of them."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from comfy_fleet.api import serialize
from comfy_fleet.api.auth import LOCAL, Keys
from comfy_fleet.api.body import has_more_values
from comfy_fleet.api.errors import MAX_MESSAGE
from comfy_fleet.api.job_options import options_for, priority_bound, webhook_of
from comfy_fleet.api.job_views import TOLD_S
from comfy_fleet.api.links import Links, Signing
from comfy_fleet.api.typed_bodies import checked
from comfy_fleet.api.v1.workflows import NewJobBody
from comfy_fleet.domain.errors import Busy, EntryEnded, FleetError, StoreDown
from comfy_fleet.domain.jobs.job import Job, JobStatus, Progress
from comfy_fleet.domain.jobs.rq_entry import (
    CALLBACK_TIMEOUT_S,
    FAILURE_TTL_S,
    RESULT_TTL_S,
    RqEntry,
)
from comfy_fleet.domain.jobs.trace_context import read_traceparent
from comfy_fleet.domain.principal import Principal
from comfy_fleet.domain.roles import Role
from comfy_fleet.domain.text import clip
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.rq_inbox import Callback, Change, RqInbox
from comfy_fleet.services.rq_entries import read_entry, with_progress
from comfy_fleet.services.signed_urls import SignedUrls
from comfy_fleet.services.submitter import Submitter
from comfy_fleet.settings import Settings

logger = logging.getLogger(__name__)

LOOK_S, IDLE_S, HELD_S = 0.25, 0.5, 1.0
"""Pauses between two looks: while there is something, while there is nothing, while an entry must wait."""
MORE_S, BROKEN_S = 0.05, 5.0
"""The same while there are more new entries, which must not take all of a process's time; after a fault."""
STOPPED = "stopped by RQ's command"


class RqIntake:
    """Takes what is in the inbox, one entry after the other, and follows the jobs.

    Several processes may do so: one at a time has the turn. Each entry's job has its id before it is
    submitted, so that who takes over after a crash makes no second one.

    Args:
        inbox: What RQ's clients enqueue.
        submitter: Makes the jobs.
        jobs: The jobs.
        keys: Whose limits count.
        settings: The settings.
        signed_urls: Signs the URLs of results.
        clock: Unix seconds.
    """

    def __init__(
        self,
        inbox: RqInbox,
        *,
        submitter: Submitter,
        jobs: JobStore,
        keys: Keys,
        settings: Settings,
        signed_urls: SignedUrls,
        clock: Callable[[], float],
    ) -> None:
        self._inbox = inbox
        self._submitter = submitter
        self._jobs = jobs
        self._keys = keys
        self._settings = settings
        self._signed_urls = signed_urls
        self._clock = clock
        self._held = ""

    def _who(self) -> Principal | None:
        """Return for whom entries are taken now; None if they wait."""
        settings = self._settings
        if settings.rq_inbox == "off":
            return None
        ring = self._keys.ring
        if self._keys.open:
            return ring.principal(settings.rq_user or LOCAL, frozenset({Role.SUBMIT}))
        if settings.rq_user not in ring.people.users:
            return None
        return ring.principal(settings.rq_user, frozenset({Role.SUBMIT}))

    async def notes(self) -> list[str]:
        """Return what an operator should know: entries wait, and why."""
        if self._who() is not None:
            return [f"RQ's entries wait: {self._held}"] if self._held else []
        count = await self._inbox.waiting()
        if not count:
            return []
        settings, name = self._settings, self._settings.namespace
        if settings.rq_inbox == "off":
            advice = "FLEET_RQ_INBOX is off: set it to auto"
        elif settings.rq_user:
            advice = f"FLEET_RQ_USER names {settings.rq_user}, who is no user: make them, `fleet user add`"
        else:
            advice = "set FLEET_RQ_USER to the user whose jobs they are to be"
        return [f"RQ: {count} entries wait in RQ's queue {name}, and nobody takes them. {advice}"]

    async def run(self) -> None:
        """Take entries and follow jobs as long as the process runs."""
        while True:
            try:
                pause_s = await self._turn()
            except FleetError as error:
                logger.debug("inbox not looked at", extra={"error": error.message})
                pause_s = HELD_S
            except Exception:
                logger.exception("inbox not looked at")
                pause_s = BROKEN_S
            await asyncio.sleep(pause_s)

    async def _turn(self) -> float:
        """Do what there is to do now; return for how long to pause."""
        if not self._keys.open:
            await self._keys.ring.ready()
        who = self._who()
        taken = await self._inbox.take(
            new=who is not None and not self._held, most_data=self._settings.max_params_bytes
        )
        if not taken.turn or taken.idle:
            self._held = ""
            return IDLE_S
        if taken.dropped:  # one line, however many somebody has put there
            id_, why = taken.dropped[0]
            logger.info("RQ's entries dropped", extra={"count": len(taken.dropped), "rq_id": id_, "why": why})
        if who is not None:
            self._held = ""
            for entry in taken.entries:
                if not await self.submit(who, entry):
                    break
        for change in await self._inbox.changes():
            await self._follow(change)
        return HELD_S if self._held else MORE_S if taken.more else LOOK_S

    async def submit(self, who: Principal, entry: RqEntry) -> bool:
        """Make an entry's job, or tell RQ why not; return False if it must wait, and others with it."""
        settings = self._settings
        try:
            asked = read_entry(
                entry,
                most_bytes=settings.max_params_bytes,
                too_many=lambda data: has_more_values(data, settings.max_params_values),
                callbacks=settings.rq_callbacks,
            )
            given = dict(asked.options)
            caller = given.pop("traceparent", None)
            body = checked(given, NewJobBody)
            options = options_for(
                body,
                most_priority=priority_bound(who, settings, needs_keys=not self._keys.open),
                now=self._clock(),
                traceparent=read_traceparent([caller]) if isinstance(caller, str) else None,
                webhook=webhook_of(
                    body.webhook_url, body.webhook_events, settings, lambda: settings.base_url
                ),
                quotas=who.quotas,
            )
            options = replace(options, job_id=entry.job_id, rq_id=entry.id)
            made = await self._submitter.stored(who.owner, asked.workflow, body.params, options)
        except StoreDown:
            raise
        except EntryEnded:  # another process had the turn meanwhile, and has refused it
            logger.info("RQ's entry had ended", extra={"rq_id": entry.id})
        except Busy as error:
            self._held = error.message
            return False
        except FleetError as error:
            why = clip(f"{error.code}: {error.message}", MAX_MESSAGE)
            logger.info("RQ's entry refused", extra={"rq_id": entry.id, "why": why})
            await self._refuse(entry, why)
        except Exception:
            logger.exception("RQ's entry failed", extra={"rq_id": entry.id})
            await self._refuse(entry, "internal_error: the fleet could not make a job of it")
        else:
            logger.info("RQ's entry taken", extra={"rq_id": entry.id, "job_id": made.job.id})
        return True

    async def _refuse(self, entry: RqEntry, why: str) -> None:
        ttl_s = entry.seconds("failure_ttl", FAILURE_TTL_S)
        await self._inbox.end(entry, "failed", checked=True, ttl_s=ttl_s, why=why)

    async def _follow(self, change: Change) -> None:
        entry = change.entry
        if change.what == "cancel":
            await self._jobs.request_cancel(entry.job_id)
        elif change.what == "progress":
            await self._note(change, change.progress)
        else:
            await self._tell_end(change, await self._jobs.get(entry.job_id))

    async def _note(self, change: Change, progress: Progress | None) -> None:
        meta = change.entry.fields["meta"]
        shown = with_progress(meta, serialize.progress(progress)) if progress else None
        await self._inbox.progress(change, shown or meta)

    async def _tell_end(self, change: Change, job: Job | None) -> None:
        entry = change.entry
        failure_ttl_s = entry.seconds("failure_ttl", FAILURE_TTL_S)
        if job is None or job.status is JobStatus.CANCELED:
            if change.stopped:
                callback = self._callback(entry, "stopped_callback", [entry.id, None])
                await self._inbox.end(entry, "stopped", ttl_s=failure_ttl_s, why=STOPPED, callback=callback)
            else:
                await self._inbox.end(entry, "canceled", ttl_s=failure_ttl_s)
        elif job.status is JobStatus.SUCCEEDED:
            await self._note(change, job.progress)
            result = {"job_id": job.id, "outputs": self._outputs(job)}
            await self._inbox.end(
                entry,
                "finished",
                ttl_s=entry.seconds("result_ttl", RESULT_TTL_S),
                result=result,
                callback=self._callback(entry, "success_callback", [entry.id, None, result]),
            )
        elif job.status.terminal:
            error = job.error
            code, message = (error.code, error.message) if error else ("failed", "the job has failed")
            why = f"{code}: {message}\n{(error.traceback if error else None) or ''}".strip()
            callback = self._callback(entry, "failure_callback", [entry.id, None, code, message, None])
            await self._inbox.end(entry, "failed", ttl_s=failure_ttl_s, why=why, callback=callback)

    def _callback(self, entry: RqEntry, kind: str, args: list[object]) -> Callback | None:
        name, queue = entry.callback(kind), self._settings.rq_callbacks
        if not name or not queue:
            return None
        timeout_s = entry.seconds(f"{kind}_timeout", CALLBACK_TIMEOUT_S)
        return Callback(queue=queue, function=name, args=args, timeout_s=timeout_s)

    def _outputs(self, job: Job) -> list[dict[str, str]]:
        signing = Signing(
            urls=self._signed_urls, owner=job.owner, expires_at=min(self._clock() + TOLD_S, job.expires_at)
        )
        links = Links(self._settings.base_url, signing)
        return [
            {
                "name": one.name,
                "url": links.output(job.id, one.asset_id),
                "content_type": one.content_type,
                **({"store": there.store, "key": there.key} if (there := job.stored_of(one)) else {}),
            }
            for one in job.outputs
        ]
