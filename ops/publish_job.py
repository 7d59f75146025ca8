"""One snapshot on its way to Redis, and what became of it."""

import time
from dataclasses import dataclass

from learner.report import Snapshot
from ops.rundir import files
from ops.snapshot_info import FORMAT

RESULTS = ("ok", "unhealthy", "repeated", "superseded", "stale_epoch", "error")
"""ok: head and stable moved. unhealthy: head moved, stable stayed. repeated: it was there, an answer had
been lost. superseded: a newer one was ready before it could be sent. stale_epoch: a newer learner
publishes. error: it is tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishResult:
    """What became of one snapshot, or of one attempt at it."""

    result: str
    """One of RESULTS."""
    samples: int
    """Samples seen when the snapshot was taken."""
    digest: str
    version: int = 0
    """Its number; 0 when it was not published."""
    epoch: int = 0
    seconds: float = 0.0
    """What the attempt took, encoder file and all."""
    blob_bytes: int = 0
    """What went to Redis."""
    abandoned: tuple[int, ...] = ()
    """Versions whose line this one ended."""
    reseeded: tuple[int, ...] = ()
    """Prototypes of the first head that began anew since the version before."""
    detail: str = ""
    """What went wrong."""
    time: float = 0.0
    """When, unix seconds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """A snapshot that is to be published."""

    snapshot: Snapshot
    samples: int
    """Seen when it was taken."""
    updates: int
    """Done when it was taken."""

    def became(self, kind: str, *, detail: str = "", began: float | None = None) -> PublishResult:
        """What became of it when it was not published.

        Args:
            kind: one of RESULTS.
            detail: what went wrong.
            began: by `time.monotonic`, when the attempt began; None when there was none.
        """
        return PublishResult(
            result=kind,
            samples=self.samples,
            digest=self.snapshot.digest,
            seconds=0.0 if began is None else time.monotonic() - began,
            detail=detail,
            time=time.time(),
        )

    def fields(self, **others: str) -> dict[str, str | int]:
        """What is told of it beside its tensors; with what only the publisher knows."""
        prototypes, dim = self.snapshot.tensors["prototypes"].shape
        return {
            "format": FORMAT,
            "updates": self.updates,
            "prototypes": prototypes,
            "dim": dim,
            "encoder_digest": self.snapshot.encoder_digest,
            "health": files.dumps(self.snapshot.health),
            **others,
        }
