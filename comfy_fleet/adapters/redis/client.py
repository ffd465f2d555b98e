"""Connections to Redis: one retrying pool for commands, one patient connection for subscriptions."""

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff


def connect(url: str, *, max_connections: int = 128) -> Redis:
    """Return a client that retries a lost connection for about two seconds.

    Every script is safe to repeat: a claim whose answer got lost is a run lease that nobody beats, and is
    taken over when it expires.
    """
    return Redis.from_url(
        url,
        max_connections=max_connections,
        socket_timeout=10,
        socket_connect_timeout=3,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.8), 4),
    )


def subscriber(url: str) -> Redis:
    """Return a client for subscriptions: it may wait for a message as long as it takes."""
    return Redis.from_url(url, socket_timeout=None, socket_connect_timeout=3, health_check_interval=15)
