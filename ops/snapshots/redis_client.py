"""A Redis client from a URL, made so that no caller waits long and no password is printed.

    redis://HOST:6379/0                      a server
    rediss://HOST:6380/0                     with TLS; an own CA by ?ssl_ca_certs=FILE or SWAVSTREAM_REDIS_CA
    sentinel://HOST:26379,HOST:26379/NAME/0  the master that Sentinels name; sentinels:// with TLS to all
    unix:///PATH                             a socket

User and password may stand in the URL, but are better kept out of it:

    SWAVSTREAM_REDIS_USER                user; without it the server's default one
    SWAVSTREAM_REDIS_PASSWORD            password
    SWAVSTREAM_REDIS_PASSWORD_FILE       file that holds it; read for each connection, so that it may change
    SWAVSTREAM_REDIS_SENTINEL_PASSWORD   of the Sentinels themselves, where they ask for one

An address in brackets is one of IPv6. On a Redis Cluster give the node that holds the run's slot: all keys of
a run are in one, see `ops.snapshots.store`. Redirects are not followed, but the error names the node.
"""

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.retry import Retry
from redis.sentinel import Sentinel

from ops.errors import RedisUnavailable
from stream.secrets import is_torn, safe_url

URL_VARIABLE = "SWAVSTREAM_REDIS_URL"
CA_VARIABLE = "SWAVSTREAM_REDIS_CA"
USER_VARIABLE = "SWAVSTREAM_REDIS_USER"
PASSWORD_VARIABLE = "SWAVSTREAM_REDIS_PASSWORD"  # noqa: S105  a name, not a password
FILE_VARIABLE = "SWAVSTREAM_REDIS_PASSWORD_FILE"
SENTINEL_VARIABLE = "SWAVSTREAM_REDIS_SENTINEL_PASSWORD"
SENTINEL_PORT = 26379

SCHEMES = "redis://, rediss://, sentinel://, sentinels:// or unix://"
TLS = ("rediss", "sentinels")
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

CONNECT_S = 3.0
"""Longest wait for a connection, seconds."""
ANSWER_S = 10.0
"""Longest wait for one answer, seconds; a snapshot of some ten megabytes takes a fraction of one."""


def redis_url(configured: str = "") -> str:
    """Which Redis is meant: the configured URL, else SWAVSTREAM_REDIS_URL, else "" (an embedded server)."""
    return configured or os.environ.get(URL_VARIABLE, "")


def connect(url: str) -> redis.Redis:
    """A client for a Redis URL, see the module's text; nothing is sent yet.

    Replies are bytes. Nothing is retried behind the caller's back, since callers know what may be sent twice.
    After a failover a client of Sentinels asks them again with its next connection.

    Raises:
        RedisUnavailable: not a Redis URL, or a CA file that is not there. The message does not show the whole
            URL, since it may hold a password.
    """
    if is_torn(url) and not url.startswith("unix:"):
        raise RedisUnavailable(
            "the Redis URL has an @, /, ? or # in its user or password: write them as %40, %2F, %3F and %23, "
            f"or give them in {USER_VARIABLE} and {PASSWORD_VARIABLE} or {FILE_VARIABLE}, as they are"
        )
    try:
        scheme = urlsplit(url).scheme
        if scheme.startswith("sentinel"):
            return _by_sentinel(url)
        options: dict[str, Any] = _waits() | _authority(scheme)
        if scheme != "unix" and "@" not in urlsplit(url).netloc:
            options |= _identity()
        return redis.Redis.from_url(url, **options)
    except ValueError as error:
        raise RedisUnavailable(f"not a Redis URL: {safe_url(url)!r}; give {SCHEMES}") from error


def error_text(error: Exception) -> str:
    """What went wrong with a server, for people: a redirect of a Cluster is the address to give."""
    if isinstance(error, redis.exceptions.AskError):
        return (
            f"this node of a Redis Cluster does not hold the keys of the run: give redis://{error.host}:"
            f"{error.port}, which does (slot {error.slot_id})"
        )
    return str(error)


class EnvironmentCredentials(CredentialProvider):
    """User and password from the environment or a file, looked up for each connection."""

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """What AUTH is sent; called by redis-py."""
        password = os.environ.get(PASSWORD_VARIABLE, "")
        place = os.environ.get(FILE_VARIABLE, "")
        if not password and place:
            try:
                password = Path(place).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not text"
                raise redis.AuthenticationError(
                    f"the password file {place} ({FILE_VARIABLE}) cannot be read: {reason}"
                ) from error
        user = os.environ.get(USER_VARIABLE, "")
        return (user, password) if user else (password,)


def _identity() -> dict[str, Any]:
    """How to log in, when the environment says so."""
    told = any(os.environ.get(name) for name in (USER_VARIABLE, PASSWORD_VARIABLE, FILE_VARIABLE))
    return {"credential_provider": EnvironmentCredentials()} if told else {}


def _waits() -> dict[str, Any]:
    return {
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": ANSWER_S,
        "retry": Retry(NoBackoff(), 0),
    }


def _authority(scheme: str) -> dict[str, Any]:
    """Whom to trust: the CA file of the environment; without one, the authorities of the system."""
    place = os.environ.get(CA_VARIABLE, "")
    if scheme not in TLS or not place:
        return {}
    if not Path(place).is_file():
        raise RedisUnavailable(f"{CA_VARIABLE} names {place}, which is not a file: give the CA's certificate")
    return {"ssl_ca_certs": place}


def _host_and_port(place: str) -> tuple[str, int]:
    """Of one Sentinel: HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT.

    Raises:
        ValueError: no host, or a port that is none.
    """
    parts = urlsplit(f"//{place.strip()}")  # which knows brackets, and checks the port
    port = SENTINEL_PORT if parts.port is None else parts.port
    if not parts.hostname or not port:
        raise ValueError(place)
    return parts.hostname, port


def _by_sentinel(url: str) -> redis.Redis:
    """A client of whichever server the Sentinels name as the master.

    Raises:
        ValueError: no host, a port that is none, or no name.
    """
    parts = urlsplit(url)
    login, _, places = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if parts.scheme not in {"sentinel", *TLS} or not places or not service:
        raise ValueError(url)
    hosts = [_host_and_port(place) for place in places.split(",")]
    options = _authority(parts.scheme)
    if parts.scheme in TLS:
        named = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        options |= {"ssl": True, **{name: text for name, text in named.items() if name in TLS_FILES}}
    sentinel_password = os.environ.get(SENTINEL_VARIABLE) or None
    user, _, password = login.partition(":")
    known = {"username": unquote(user) or None, "password": unquote(password)} if login else _identity()
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # untyped in the library
        hosts, sentinel_kwargs={**_waits(), **options, "password": sentinel_password}
    )
    client: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        service, redis_class=redis.Redis, db=int(database or 0), **_waits(), **options, **known
    )
    return client
