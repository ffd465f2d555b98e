"""What is encrypted under ``secret.key`` in Redis, and which key that was."""

from collections.abc import AsyncGenerator

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.named_stores import RedisNamedStores

_AT_ONCE = 500


class RedisSealed:
    """A fingerprint of the fleet's key, and everything that was sealed under one, except nodes' passwords."""

    def __init__(self, redis: FleetRedis) -> None:
        self._redis = redis
        self._keys = redis.keyspace

    async def key(self, ours: str) -> str:
        """Return the fingerprint of the key that this data is sealed under: the first that asks is it.

        Args:
            ours: That of this process's key.

        Raises:
            StoreDown: No answer.
        """
        await self._redis.set(self._keys.secret_key, ours, nx=True)
        known = await self._redis.get(self._keys.secret_key)
        return ours if known is None else known if isinstance(known, str) else known.decode()

    async def change_key(self, ours: str) -> None:
        """From now on it is this one. Raises StoreDown: no answer."""
        await self._redis.set(self._keys.secret_key, ours)

    async def of_webhooks(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield owners, and what their messages are signed with. Raises StoreDown: no answer."""
        async for owner, sealed in self._redis.hscan_iter(self._keys.webhook_secrets, count=_AT_ONCE):
            yield owner.decode(), sealed

    async def of_stores(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield stores by name, and their credentials. Raises StoreDown: no answer."""
        for name, store in (await RedisNamedStores(self._redis).read()).items():
            if store.sealed:
                yield name, store.sealed.encode()

    async def of_jobs(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield ids of jobs that have not ended, and their secrets. It walks all keys.

        Raises:
            StoreDown: No answer.
        """
        before, _, after = self._keys.job_secret("*").partition("*")
        async for name in self._redis.scan_iter(match=f"{before}*{after}", count=_AT_ONCE):
            sealed = await self._redis.get(name)
            if isinstance(sealed, bytes):
                yield name.decode().removeprefix(before).removesuffix(after), sealed
