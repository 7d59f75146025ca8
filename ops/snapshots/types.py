"""What snapshot modules hand each other: a snapshot's fields in Redis, one to publish, and its result."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from learner.report import Snapshot
from ops.errors import SnapshotDamaged
from ops.rundir import files

FORMAT = "1"
"""Version of the fields below; a reader refuses others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotInfo:
    """One published snapshot; immutable but for `aliases` and `abandoned`."""

    version: int
    """Its number within the run; later ones are higher."""
    digest: str
    """Hex SHA-256 of encoder, head and prototypes: equal weights, equal digest."""
    samples: int
    """Samples seen when it was taken."""
    updates: int
    """Optimizer steps done when it was taken."""
    prototypes: int
    """K of the first head."""
    dim: int
    """D."""
    health: dict[str, Any]
    """`verdict`, the named `limits` it passed or failed, and the figures."""
    healthy: bool
    """The gate passed: `stable` moved to it."""
    parent: int | None
    """The version that it continues; None for the first, and after a server lost its data."""
    epoch: int
    """Fencing number of the learner that published it."""
    created: float
    """Unix seconds."""
    blob_sha256: str
    """Hex SHA-256 of the safetensors bytes in Redis."""
    blob_bytes: int
    encoder_digest: str
    """Hex SHA-256 of the encoder alone."""
    encoder: str
    """Where the encoder was written, relative to the run directory."""
    run_dir: str
    """Run directory as the learner saw it."""
    config_hash: str
    """Hex SHA-256 of the run's settings."""
    publisher: str
    """Host and process that published it."""
    aliases: tuple[str, ...] = ()
    """Names that point at it now."""
    abandoned: bool = False
    """The learner went on from a checkpoint before it; what follows does not continue it."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and the HTTP API."""
        body = asdict(self)
        body["aliases"] = list(self.aliases)
        return body

    @classmethod
    def read(cls, fields: Mapping[bytes, bytes], aliases: Mapping[str, int]) -> "SnapshotInfo":
        """From the fields of a hash.

        Raises:
            SnapshotDamaged: fields are missing or of another format.
        """
        text = {name.decode(): value.decode() for name, value in fields.items()}
        if text.get("format") != FORMAT:
            raise SnapshotDamaged(
                f"snapshot {text.get('version', '?')} has format {text.get('format')!r}; "
                f"this program reads {FORMAT}"
            )
        try:
            version = int(text["version"])
            health = json.loads(text["health"])
            return cls(
                version=version,
                digest=text["digest"],
                samples=int(text["samples"]),
                updates=int(text["updates"]),
                prototypes=int(text["prototypes"]),
                dim=int(text["dim"]),
                health=health if isinstance(health, dict) else {},
                healthy=text["healthy"] == "1",
                parent=int(text["parent"]) if text["parent"] else None,
                epoch=int(text["epoch"]),
                created=int(text["created_ms"]) / 1000.0,
                blob_sha256=text["blob_sha256"],
                blob_bytes=int(text["blob_bytes"]),
                encoder_digest=text["encoder_digest"],
                encoder=text["encoder"],
                run_dir=text["run_dir"],
                config_hash=text["config_hash"],
                publisher=text["publisher"],
                aliases=tuple(name for name, at in aliases.items() if at == version),
                abandoned=text.get("abandoned") == "1",
            )
        except (KeyError, ValueError, RecursionError) as error:
            raise SnapshotDamaged(f"snapshot {text.get('version', '?')} cannot be read: {error}") from error


def health_in_words(health: Mapping[str, Any]) -> str:
    """Verdict of a snapshot and the limits that it failed, as `unhealthy: prototype_twins_ratio`."""
    failed = [name for name, limit in health.get("limits", {}).items() if not limit.get("passed", True)]
    verdict = str(health.get("verdict", "warming"))
    return f"{verdict}: {', '.join(failed)}" if failed else verdict


RESULTS = ("ok", "unhealthy", "repeated", "superseded", "stale_epoch", "error")
"""ok: head and stable moved. unhealthy: head moved, stable stayed. repeated: it was there, an answer had
been lost. superseded: a newer one was ready before it could be sent. stale_epoch: a newer learner
publishes. error: it is tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishResult:
    """The result of publishing one snapshot, or of one attempt at it."""

    result: str
    """One of RESULTS."""
    samples: int
    """Samples seen when the snapshot was taken."""
    digest: str
    version: int = 0
    """Its number; 0 when it was not published."""
    epoch: int = 0
    seconds: float = 0.0
    """Length of the attempt, encoder file included."""
    blob_bytes: int = 0
    """Size of the safetensors bytes in Redis."""
    abandoned: tuple[int, ...] = ()
    """Versions whose line ended, because the learner went on from a checkpoint before them."""
    reseeded: tuple[int, ...] = ()
    """Prototypes of the first head that were re-seeded since the version before."""
    detail: str = ""
    """What went wrong."""
    time: float = 0.0
    """When, unix seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class SnapshotTaken:
    """A snapshot of the learner that is to be published."""

    snapshot: Snapshot
    samples: int
    """Seen when it was taken."""
    updates: int
    """Done when it was taken."""

    def unpublished(self, kind: str, *, detail: str = "", began: float | None = None) -> PublishResult:
        """The result of an attempt that did not publish it.

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
        """Fields of the Redis hash beside the tensors; `others` are those that only the publisher knows."""
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
