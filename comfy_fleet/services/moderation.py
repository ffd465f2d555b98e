"""Asks the moderation hook, if there is one, before jobs are accepted and before files are given out."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comfy_fleet.domain.errors import NoRoom
from comfy_fleet.domain.graphs.graph import Graph, Place
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.moderation import (
    ContentRefused,
    JudgedFile,
    Judgement,
    ModerationDown,
    ModerationMode,
    ModerationQuestion,
    ModerationStage,
    dump_mode,
    judged_texts,
    load_mode,
)
from comfy_fleet.domain.people import Tenant
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.moderation import Moderator
from comfy_fleet.ports.telemetry import Telemetry

logger = logging.getLogger(__name__)

OUTPUT_TRIES, OUTPUT_GAP_S = 3, 1.0
"""How often it is asked about a file that has cost GPU time, and the pause in between."""


class Moderation:
    """Decides what passes.

    Args:
        hook: Who judges; None: nobody.
        assets: Where files are.
        mode: What holds for tenants that say nothing.
        tenant_of: Returns an owner's tenant.
        most_bytes: Most bytes of files in one question; further ones come without their bytes.
        telemetry: Told what came of each question.
    """

    def __init__(
        self,
        hook: Moderator | None,
        assets: AssetStore,
        *,
        mode: ModerationMode,
        tenant_of: Callable[[str], Tenant],
        most_bytes: int,
        telemetry: Telemetry,
    ) -> None:
        self._hook = hook
        self._assets = assets
        self._mode = mode
        self._tenant_of = tenant_of
        self._most_bytes = most_bytes
        self._telemetry = telemetry

    def rule(self, owner: str) -> str:
        """Return what a job's record keeps: how its files will be judged; empty: not at all."""
        tenant = self._tenant_of(owner)
        return dump_mode(self._of(tenant), tenant.name)

    def _of(self, tenant: Tenant) -> ModerationMode:
        if self._hook is None:
            return ModerationMode.OFF
        try:
            return ModerationMode(tenant.moderation or self._mode)
        except ValueError:  # a word of a newer version
            return ModerationMode.CLOSED

    async def check_prompt(
        self,
        owner: str,
        graph: Graph,
        files: Mapping[Place, Asset],
        *,
        workflow: str,
        params: Mapping[str, Any],
    ) -> None:
        """Ask about a job before it is accepted.

        Raises:
            ContentRefused: It may not be.
            ModerationDown: Nobody answers, and the owner's tenant is closed then.
        """
        tenant = self._tenant_of(owner)
        if self._of(tenant) is ModerationMode.OFF:
            return
        once = {asset.id: (asset, node_id, str(path[0])) for (node_id, path), asset in files.items()}
        await self._pass(
            self._of(tenant),
            ModerationQuestion(
                stage=ModerationStage.PROMPT,
                owner=owner,
                tenant=tenant.name,
                workflow=workflow,
                params=params,
                texts=judged_texts(graph),
                files=await self._files([*once.values()]),
            ),
        )

    async def check_input(self, owner: str, asset: Asset) -> None:
        """Ask about a file that was fetched for an owner's jobs; raises as :meth:`check_prompt`."""
        tenant = self._tenant_of(owner)
        if self._of(tenant) is ModerationMode.OFF:
            return
        question = ModerationQuestion(
            stage=ModerationStage.INPUT,
            owner=owner,
            tenant=tenant.name,
            files=await self._files([(asset, "", "")]),
        )
        await self._pass(self._of(tenant), question)

    async def releases(self, job: Job, asset: Asset, *, node_id: str, key: str) -> Judgement:
        """Return whether a job's file may be given out. Its record says what holds if nobody answers."""
        mode, tenant = load_mode(job.moderation)
        if mode is ModerationMode.OFF:
            return Judgement(allowed=True)
        question = ModerationQuestion(
            stage=ModerationStage.OUTPUT,
            owner=job.owner,
            tenant=tenant,
            job=job.id,
            workflow=job.workflow or "",
            files=await self._files([(asset, node_id, key)]),
        )
        for attempt in range(1, OUTPUT_TRIES + 1):
            try:
                judgement = await self._asked(question)
            except ModerationDown as error:
                if attempt == OUTPUT_TRIES:
                    logger.warning(
                        "output not judged", extra={"job_id": job.id, "mode": mode, "error": error.message}
                    )
            else:
                self._note(question, judgement.allowed)
                return judgement
            await asyncio.sleep(OUTPUT_GAP_S)
        allowed = mode is ModerationMode.OPEN
        self._note(question, allowed, answered=False)
        return Judgement(allowed=allowed, reason="nobody could judge it")

    def _note(self, question: ModerationQuestion, allowed: bool, *, answered: bool = True) -> None:
        outcome = "allowed" if allowed else "refused"
        self._telemetry.judged(question.stage.value, outcome if answered else f"unanswered_{outcome}")

    async def _asked(self, question: ModerationQuestion) -> Judgement:
        if self._hook is None:
            raise ModerationDown("this process knows nobody who judges (FLEET_MODERATION_URL)")
        return await self._hook.judge(question)

    async def _pass(self, mode: ModerationMode, question: ModerationQuestion) -> None:
        if self._hook is None:
            return
        try:
            judgement = await self._hook.judge(question)
        except ModerationDown:
            self._note(question, mode is ModerationMode.OPEN, answered=False)
            if mode is ModerationMode.OPEN:
                return
            raise
        self._note(question, judgement.allowed)
        if not judgement.allowed:
            logger.info("content refused", extra={"owner": question.owner, "stage": question.stage})
            why = f": {judgement.reason}" if judgement.reason else ""
            raise ContentRefused(
                f"this is not allowed here{why}",
                details={"field": "workflow", "stage": question.stage, "reason": judgement.reason},
            )

    async def _files(self, named: Sequence[tuple[Asset, str, str]]) -> list[JudgedFile]:
        found, room = [], self._most_bytes
        for asset, node_id, name in named:
            data = None
            if asset.size_bytes <= room:
                room -= asset.size_bytes
                data = await self._read(asset)
            found.append(
                JudgedFile(
                    node_id=node_id,
                    input=name,
                    name=asset.file_path,
                    content_type=asset.content_type,
                    size_bytes=asset.size_bytes,
                    hash=asset.hash,
                    data=data,
                )
            )
        return found

    async def _read(self, asset: Asset) -> bytes | None:
        try:
            return b"".join([chunk async for chunk in await self._assets.open(asset)])
        except (FileNotFoundError, NoRoom):
            return None
