"""The writing side of the snapshot store: fence, publish rules and retention, as scripts on the server."""

import hashlib
import importlib.resources
import time
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor

from ops.errors import SnapshotError, StaleEpoch
from ops.snapshots.store import SnapshotStore
from ops.snapshots.types import PublishResult

ORPHAN_BLOB_S = 3600
"""How long an uploaded blob lives that no published snapshot names, seconds."""
UNUSED_BLOB_S = 300
"""How long the blob of a pruned snapshot stays for readers that are just loading it, seconds."""


class EpochLost(SnapshotError):
    """The server knows only an older epoch than ours: it lost data, and the epoch must be taken again."""


class SnapshotWriter:
    """Publishes into a store.

    Every method blocks for as long as the client's time-outs allow and lets `redis.RedisError` through; one
    thread at a time. Whatever a call was doing when it failed, what readers see is whole: metadata,
    aliases, events and reference counts change in one script. `acquire` and `publish` may simply be called
    again.
    """

    def __init__(self, store: SnapshotStore) -> None:
        self.store = store
        self.scripts = {
            name: store.client.register_script(script(name))
            for name in ("acquire", "upload", "publish", "prune")
        }
        """The scripts of this side, by name, registered with the client."""

    def acquire(
        self,
        owner: str,
        *,
        started_ms: int,
        floor_epoch: int = 0,
        floor_version: int = 0,
        again: bool = False,
        who: str = "",
    ) -> tuple[int, int]:
        """Take the fencing epoch, so that every older learner is refused from now on.

        Args:
            owner: uuid of this learner process.
            started_ms: when it started, unix milliseconds.
            floor_epoch: highest epoch that the checkpoint, or this process, knows.
            floor_version: highest version number that it knows.
            again: after a reconnect; then a newer learner is not pushed out.
            who: host and process, for people.

        Returns:
            The epoch, above all earlier ones, and the last version number given.

        Raises:
            StaleEpoch: only with `again`: a newer learner has taken over.
        """
        answer = self.scripts["acquire"](
            keys=[self.store.key(name) for name in ("epoch", "owner", "counter", "events")],
            args=[
                owner, started_ms, floor_epoch, floor_version, "again" if again else "start", who, now_ms(),
            ],
        )  # fmt: skip
        if answer[0] == b"STALE":
            raise StaleEpoch(_stale(self.store.run, floor_epoch, int(answer[1])))
        return int(answer[1]), int(answer[2])

    def publish(
        self,
        *,
        owner: str,
        epoch: int,
        samples: int,
        digest: str,
        tensors: Mapping[str, Tensor],
        healthy: bool,
        fields: Mapping[str, str | int],
        floor_version: int = 0,
    ) -> PublishResult:
        """Publish one snapshot as the new head; sent twice it is published once.

        Args:
            owner: uuid of this learner process.
            epoch: what `acquire` gave.
            samples: samples seen; a head with as many or more is abandoned, unless it is this very snapshot.
            digest: of the content.
            tensors: what goes into the blob, on the CPU.
            healthy: whether `stable` moves too.
            fields: further fields of the snapshot.
            floor_version: the version will be above it.

        Returns:
            Its result: ok, unhealthy (`stable` stayed), or repeated (an earlier answer had been lost).

        Raises:
            StaleEpoch: a newer learner of this run publishes.
            EpochLost: the server forgot; acquire again.
        """
        blob = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        sha256 = hashlib.sha256(blob).hexdigest()
        blob_key = self.store.key(f"blob:{sha256}")
        names = ("epoch", "owner", "counter", "head", "stable", "versions", "events", "refs")
        keys = [*map(self.store.key, names), blob_key, self.store.key("stable_log")]
        args: list[str | int] = [
            owner, epoch, samples, digest, int(healthy), sha256, len(blob), floor_version,
            self.store.key("snap:"), self.store.key("notify"), now_ms(), _generations(tensors),
        ]  # fmt: skip
        for name, value in fields.items():
            args += [name, value]
        for _ in range(2):
            answer = self.scripts["publish"](keys=keys, args=args)
            if answer[0] != b"NOBLOB":
                break
            # Only now are the megabytes sent, past the fence; without a snapshot that names it the blob
            # expires.
            self.scripts["upload"](
                keys=[blob_key, self.store.key("refs")], args=[blob, sha256, ORPHAN_BLOB_S]
            )
        kind = answer[0]
        if kind == b"STALE":
            raise StaleEpoch(_stale(self.store.run, epoch, int(answer[1])))
        if kind == b"LOST":
            raise EpochLost(
                f"the server knows epoch {int(answer[1])} of run {self.store.run}, ours is {epoch}"
            )
        if kind == b"NOBLOB":
            raise SnapshotError(f"the blob of run {self.store.run} vanished while it was being published")
        if kind == b"SAME":
            return PublishResult(
                result="repeated", samples=samples, digest=digest, version=int(answer[1]), epoch=epoch,
                blob_bytes=len(blob),
            )  # fmt: skip
        return PublishResult(
            result="ok" if answer[3] else "unhealthy",
            samples=samples,
            digest=digest,
            version=int(answer[1]),
            epoch=epoch,
            blob_bytes=len(blob),
            abandoned=tuple(int(version) for version in answer[4].split(b",") if version),
            reseeded=tuple(int(one.partition(b":")[0]) for one in answer[5].split(b",") if one),
        )

    def prune(
        self, keep: int, *, ladder: int = 0, owner: str = "", epoch: int = 0, dry_run: bool = False
    ) -> list[int]:
        """Forget all but the newest `keep` versions, a ladder of older ones, and what is named.

        What `rollback` would go to stays as well. A blob goes with the last snapshot that refers to it.

        Args:
            keep: newest versions that stay.
            ladder: older versions that stay for each doubling of their age in versions, or one more: 0 (none)
                or 1, 2, 4, 8.
            owner: uuid of this learner process; "" is an operator, whom no fence holds back.
            epoch: what `acquire` gave.
            dry_run: change nothing, only say what would go.

        Returns:
            The versions that were forgotten.

        Raises:
            StaleEpoch: a learner that no longer owns the run.
        """
        names = ("epoch", "owner", "head", "stable", "pins", "versions", "refs", "events", "stable_log")
        answer = self.scripts["prune"](
            keys=[self.store.key(name) for name in names],
            args=[
                owner, epoch, keep, self.store.key("snap:"), self.store.key("blob:"), UNUSED_BLOB_S, now_ms(),
                ladder, int(dry_run),
            ],
        )  # fmt: skip
        if answer[0] == b"STALE":
            raise StaleEpoch(_stale(self.store.run, epoch, int(answer[1])))
        return [int(version) for version in answer[1:]]


def script(name: str) -> str:
    """Source of a script of the store, which runs on the server as one step."""
    return (importlib.resources.files("ops.snapshots") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def now_ms() -> int:
    """Unix time, milliseconds."""
    return int(time.time() * 1000)


def _generations(tensors: Mapping[str, Tensor]) -> str:
    """Generations of the first head as `k:g,k:g`, without those that are 0."""
    found = enumerate(tensors["generation"].tolist()) if "generation" in tensors else ()
    return ",".join(f"{k}:{generation}" for k, generation in found if generation)


def _stale(run: str, mine: int, theirs: int) -> str:
    return (
        f"a newer learner of run {run} publishes (its epoch is {theirs}, ours {mine}): two learners work on "
        "one run, or this one was paused; end this one"
    )
