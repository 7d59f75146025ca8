"""The former place of `ops.snapshots.watch`, kept for programs that import it from here."""

from ops.snapshots.watch import SnapshotWatch, watch_run

__all__ = ["SnapshotWatch", "watch_run"]
