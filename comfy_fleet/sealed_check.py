"""A lost ``secret.key`` is told at the start, before anybody meets what it had sealed."""

import logging
import shlex
from contextlib import suppress

from comfy_fleet.adapters.redis.client import WrongType
from comfy_fleet.adapters.redis.sealed import RedisSealed
from comfy_fleet.adapters.system.secret_box import SecretBox
from comfy_fleet.bootstrap import Stores, open_secrets
from comfy_fleet.domain.errors import ConfigError, StoreDown
from comfy_fleet.settings import Settings

logger = logging.getLogger(__name__)
_PURPOSE = b"fingerprint"
_NAMED = 3


async def check_secret(settings: Settings, stores: Stores) -> str:
    """Check that Redis' secrets are sealed under our key; `fleet up` and every API do this at their start.

    Where nothing is sealed under another key, ours is taken: only sessions and signed URLs of the other one
    end. If Redis can't be asked, the process starts anyway.

    Returns:
        A warning if our key has just been taken in another's place, else nothing.

    Raises:
        ConfigError: Something is sealed under another key, and nobody has given it up.
    """
    box, sealed = open_secrets(settings), RedisSealed(stores.redis)
    ours = box.derive(_PURPOSE).hex()[:32]
    given_up = settings.data / "lost-key"
    try:
        known = await sealed.key(ours)
        if known == ours:
            return ""
        lost = await _lost(box, stores, sealed)
        read = ""
        with suppress(OSError, UnicodeDecodeError):
            read = given_up.read_text().strip()
        if not lost or read == known:
            await sealed.change_key(ours)
    except (StoreDown, WrongType) as error:
        logger.warning("secret key not checked", extra={"error": str(error)})
        return ""
    ends = "signed URLs that were given out and browsers' sessions end"
    path = settings.secret_key_file
    if lost and read != known:
        give_up = f"echo {known} > {shlex.quote(str(given_up))}"
        raise ConfigError(
            f"{path} is not the key under which the data in Redis is sealed: {lost} can't be read; {ends}. "
            "Put the right one back from the backup (or name it: FLEET_SECRET_FILE), and start again. "
            f"Or is it gone for good? Then give up what it sealed: {give_up}"
        )
    gone = f"; {lost} can't be read" if lost else ""
    return f"{path} is another key than the fleet had: {ends}{gone}"


async def _lost(box: SecretBox, stores: Stores, sealed: RedisSealed) -> str:
    """Return in words what can't be opened; empty if everything can."""
    found = []
    known = await stores.nodes.nodes()
    nodes = [one.name for one in known if one.sealed and not _opens(box, one.sealed.encode())]
    if nodes:
        more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
        found.append(f"the passwords of nodes {', '.join(nodes[:_NAMED])}{more}")
    async for _, secret in sealed.of_webhooks():
        if not _opens(box, secret):
            found.append("the secrets that sign webhooks")
            break
    async for name, secret in sealed.of_stores():
        if not _opens(box, secret):
            found.append(f"the credentials of stores ({name} is one)")
            break
    async for _, secret in sealed.of_jobs():
        if not _opens(box, secret):
            found.append("partner keys or editor graphs of jobs that have not ended")
            break
    return ", ".join(found)


def _opens(box: SecretBox, sealed: bytes) -> bool:
    try:
        box.open_sealed(sealed)
    except ConfigError:
        return False
    return True
