"""Names that people give to snapshots: moving `stable` by hand, and pins; each one script on the server."""

import re
from collections.abc import Callable

from ops.errors import SnapshotError, SnapshotNotFound
from ops.snapshots.store import SnapshotStore
from ops.snapshots.writer import now_ms, script

PIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a pin may be called."""
TAKEN = ("head", "stable")
"""What it may not: a pin of this name would be taken for the run's own."""


class SnapshotNames:
    """Moves names of one run's snapshots; `head` is the learner's alone.

    No fence holds these back: they are an operator's, and may come from any machine. Methods block for as
    long as the client's time-outs allow and let `redis.RedisError` through; each may simply be called again.
    Readers are notified.

    Args:
        store: the run's snapshots.
        who: host and process, for the event.
    """

    def __init__(self, store: SnapshotStore, who: str = "") -> None:
        self.store = store
        self._who = who
        self._scripts = {
            name: store.client.register_script(script(name)) for name in ("promote", "rollback", "pin")
        }

    def promote(self, version: int, *, force: bool = False) -> int | None:
        """Move `stable` to a version.

        Args:
            version: where to.
            force: also to one that failed the health gate, or that the run has abandoned.

        Returns:
            Where `stable` was before: the version itself when it was there, None when it was nowhere.

        Raises:
            SnapshotNotFound: no such version.
            SnapshotError: it is not fit, and `force` is not set; or its blob is gone.
        """
        answer = self._scripts["promote"](
            keys=[self.store.key(name) for name in ("stable", "stable_log", "events")],
            args=[
                version, int(force), self.store.key("snap:"), self.store.key("blob:"),
                self.store.key("notify"), now_ms(), self._who,
            ],
        )  # fmt: skip
        kind = answer[0]
        if kind == b"NONE":
            raise SnapshotNotFound(_unknown(self.store.run, version))
        if kind == b"NOBLOB":
            raise SnapshotError(
                f"the blob of snapshot {version} is gone (the server evicted it or lost data), so no "
                "program could use it; promote another one"
            )
        if kind == b"UNHEALTHY":
            raise SnapshotError(
                f"snapshot {version} did not pass the health gate: look at `snapshots show`; "
                "--force makes it stable all the same"
            )
        if kind == b"ABANDONED":
            raise SnapshotError(
                f"snapshot {version} was abandoned: the run went on from before it, and what follows does "
                "not continue it; --force makes it stable all the same"
            )
        if kind == b"SAME":
            return version
        return int(answer[1]) if answer[1] else None

    def rollback(self, verify: Callable[[int], object] = lambda version: None) -> tuple[int, int]:
        """Move `stable` back to where it was before it moved last.

        What is gone or abandoned is passed over. Where nothing is known of earlier moves, it goes to the
        newest healthy version before.

        Args:
            verify: called with the version before anything is moved; what it raises is let through, and
                `stable` stays.

        Returns:
            Where `stable` is now, and where it was.

        Raises:
            SnapshotError: there is nothing to go back to; `stable` stays.
        """
        verified = 0
        while True:
            answer = self._scripts["rollback"](
                keys=[self.store.key(name) for name in ("stable", "stable_log", "events", "versions")],
                args=[
                    self.store.key("snap:"), self.store.key("notify"), now_ms(), self._who,
                    self.store.key("blob:"), verified,
                ],
            )  # fmt: skip
            if answer[0] == b"OK":
                return int(answer[1]), int(answer[2])
            if answer[0] == b"NONE":
                now = f"stable stays at {int(answer[1])}" if answer[1] else "there is no stable one yet"
                raise SnapshotError(
                    f"run {self.store.run} has no earlier snapshot that `stable` could go back to: {now}"
                )
            verified = int(answer[1])
            verify(verified)

    def pin(self, name: str, version: int) -> int | None:
        """Give a name to a version, which then stays for as long as it is named; moves a name that exists.

        Returns:
            What the name meant before, if anything.

        Raises:
            ValueError: not a name.
            SnapshotNotFound: no such version.
        """
        if name in TAKEN:
            raise ValueError(f"`{name}` is what the run itself calls a snapshot: give the pin another name")
        if not PIN_NAME.fullmatch(name):
            raise ValueError(
                f"a pin is called by 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or "
                f"digit; got {name!r}"
            )
        answer = self._pin(name, str(version))
        if answer[0] == b"NONE":
            raise SnapshotNotFound(_unknown(self.store.run, version))
        return int(answer[1]) if answer[1] else None

    def unpin(self, name: str) -> int:
        """Take a name away; the version goes at the next prune if nothing else keeps it.

        Returns:
            What it meant.

        Raises:
            SnapshotNotFound: no such name.
        """
        answer = self._pin(name, "")
        if answer[0] == b"NONE":
            pins = [alias[4:] for alias in self.store.aliases() if alias.startswith("pin:")]
            raise SnapshotNotFound(
                f"run {self.store.run} has no pin {name!r}; pins: {', '.join(pins) or 'none'}"
            )
        return int(answer[1])

    def _pin(self, name: str, version: str) -> list[bytes]:
        answer: list[bytes] = self._scripts["pin"](
            keys=[self.store.key("pins"), self.store.key("events")],
            args=[name, version, self.store.key("snap:"), self.store.key("notify"), now_ms(), self._who],
        )
        return answer


def _unknown(run: str, version: int) -> str:
    return f"run {run} has no snapshot {version}; `snapshots list` shows all"
