"""Asks somebody outside of the fleet whether something may be."""

from typing import Protocol

from comfy_fleet.domain.moderation import Judgement, ModerationQuestion


class Moderator(Protocol):
    """Who judges."""

    async def judge(self, question: ModerationQuestion) -> Judgement:
        """Return what they say.

        Raises:
            ModerationDown: They did not answer in time, or not in the expected form.
        """
