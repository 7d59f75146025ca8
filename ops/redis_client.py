"""A Redis client from a URL, made so that nobody waits long and no password is printed."""

import os
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ops.errors import RedisUnavailable

URL_VARIABLE = "SWAVSTREAM_REDIS_URL"
CONNECT_S = 3.0
"""Longest wait for a connection, seconds."""
ANSWER_S = 10.0
"""Longest wait for one answer, seconds; a snapshot of some ten megabytes takes a fraction of one."""


def redis_url(configured: str = "") -> str:
    """Which Redis is meant: the configured URL, else SWAVSTREAM_REDIS_URL, else "" (an embedded server)."""
    return configured or os.environ.get(URL_VARIABLE, "")


def safe_url(url: str) -> str:
    """The URL without user, password and options, fit for a message."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"


def connect(url: str) -> redis.Redis:
    """A client for a Redis URL (redis://, rediss:// or unix://); nothing is sent yet.

    Replies are bytes. Nothing is retried behind the caller's back, since callers know what may be sent twice.

    Raises:
        RedisUnavailable: not a Redis URL. The message does not show it, since it may hold a password.
    """
    try:
        return redis.Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_S,
            socket_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise RedisUnavailable(
            f"not a Redis URL: {safe_url(url)!r}; give redis://, rediss:// or unix://"
        ) from error
