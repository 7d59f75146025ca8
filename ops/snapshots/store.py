"""Snapshots of a run in Redis: immutable, versioned, fenced against older learners, verified when read.

Keys of a run; the braces keep all of them in one slot of a Redis Cluster, so that one script may touch them:

    {swavstream:<run>}:epoch          fencing number of the learner that may publish
    {swavstream:<run>}:owner          hash: uuid, started_ms, who of that learner
    {swavstream:<run>}:counter        last version number that was given; numbers only go up
    {swavstream:<run>}:head           version published last
    {swavstream:<run>}:stable         last version that passed the health gate
    {swavstream:<run>}:stable_log     list: where stable was before, the latest first, for rollback
    {swavstream:<run>}:pins           hash: name -> version, kept for as long as it is named
    {swavstream:<run>}:versions       sorted set of versions
    {swavstream:<run>}:snap:<version> hash: what is known of a snapshot
    {swavstream:<run>}:blob:<sha256>  safetensors bytes of prototypes, head and usage
    {swavstream:<run>}:refs           hash: blob digest -> snapshots that use it
    {swavstream:<run>}:events         stream: epoch, publish, reseed, rewind, prune, promote, rollback, pin
    {swavstream:<run>}:notify         channel: the version, as a hint to look
"""

import hashlib
from typing import Any

import redis

from ops.errors import SnapshotDamaged, SnapshotNotFound
from ops.snapshots.types import SnapshotInfo


class SnapshotStore:
    """The snapshots of one run in one Redis, to read.

    Every method blocks for as long as the client's time-outs allow and lets `redis.RedisError` through; any
    thread may call. What is read is whole at any moment, since a writer changes it in one script.

    Args:
        client: from `ops.snapshots.redis_client.connect`.
        run: uuid of the run, as in its run.json.
    """

    def __init__(self, client: redis.Redis, run: str) -> None:
        self.client: Any = client  # replies are bytes, which the type of the library leaves open
        self.run = run

    def key(self, name: str) -> str:
        """Full key of a name, see the module's text."""
        return f"{{swavstream:{self.run}}}:{name}"

    def aliases(self) -> dict[str, int]:
        """Names that point at versions: head, stable and pins (as pin:NAME); only those that are set."""
        head, stable = self.client.mget(self.key("head"), self.key("stable"))
        found = {name: int(value) for name, value in (("head", head), ("stable", stable)) if value}
        pins = self.client.hgetall(self.key("pins"))
        found.update({f"pin:{name.decode()}": int(version) for name, version in sorted(pins.items())})
        return found

    def versions(self) -> list[SnapshotInfo]:
        """All snapshots, newest first."""
        aliases = self.aliases()
        versions = [int(version) for version in self.client.zrevrange(self.key("versions"), 0, -1)]
        pipe = self.client.pipeline(transaction=False)
        for version in versions:
            pipe.hgetall(self.key(f"snap:{version}"))
        # One that was pruned between the two questions answers with nothing.
        return [SnapshotInfo.read(fields, aliases) for fields in pipe.execute() if fields]

    def show(self, which: str | int = "head") -> SnapshotInfo:
        """What is known of one snapshot.

        Args:
            which: a version, `head`, `stable` or `pin:NAME`.

        Raises:
            SnapshotNotFound: no such version or alias.
            SnapshotDamaged: its metadata cannot be read.
        """
        aliases = self.aliases()
        version = aliases.get(str(which))
        if version is None:
            if not str(which).isdecimal():
                known = ", ".join(aliases) or "none yet"
                raise SnapshotNotFound(f"run {self.run} has no snapshot {which!r}; names: {known}")
            version = int(which)
        fields = self.client.hgetall(self.key(f"snap:{version}"))
        if not fields:
            raise SnapshotNotFound(f"run {self.run} has no snapshot {version}; `snapshots list` shows all")
        return SnapshotInfo.read(fields, aliases)

    def blob(self, info: SnapshotInfo) -> bytes:
        """The safetensors bytes of a snapshot, checked against their digest.

        Raises:
            SnapshotDamaged: they are gone, or not what the digest says.
        """
        blob: bytes | None = self.client.get(self.key(f"blob:{info.blob_sha256}"))
        if blob is None:
            raise SnapshotDamaged(
                f"the blob of snapshot {info.version} is gone: the server evicted it or lost data"
            )
        if hashlib.sha256(blob).hexdigest() != info.blob_sha256:
            raise SnapshotDamaged(f"the blob of snapshot {info.version} is not what its digest says")
        return blob

    def events(self, count: int = 100) -> list[dict[str, str]]:
        """The latest events, newest first: kind, time_ms and what belongs to the kind."""
        rows = self.client.xrevrange(self.key("events"), count=count)
        return [
            {"id": number.decode(), **{name.decode(): value.decode() for name, value in fields.items()}}
            for number, fields in rows
        ]


def warnings_of(client: redis.Redis) -> list[str]:
    """What is dangerous about a server's settings, a sentence each; none when it does not tell them."""
    try:
        settings: Any = client.config_get("maxmemory", "maxmemory-policy", "appendonly", "save")
    except redis.ResponseError:
        settings = _settings_by_info(client)
    found = []
    policy = settings.get("maxmemory-policy", "")
    if policy.startswith("allkeys") or (policy.startswith("volatile") and settings.get("maxmemory") != "0"):
        found.append(
            f"Redis may drop snapshots when it is full: maxmemory-policy is {policy}; set noeviction"
        )
    if settings.get("appendonly") == "no" and not settings.get("save"):
        found.append("Redis keeps nothing over a restart: switch on appendonly or save")
    return found


def _settings_by_info(client: redis.Redis) -> dict[str, str]:
    """What a server that refuses CONFIG, as managed ones do, tells all the same; not whether it saves."""
    try:
        memory: Any = client.info("memory")
    except redis.ResponseError:
        return {}
    return {
        "maxmemory": str(memory.get("maxmemory", "")),
        "maxmemory-policy": str(memory.get("maxmemory_policy", "")),
    }
