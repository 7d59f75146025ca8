"""What can go wrong with a stream.

StreamError
    StreamNotFound      nothing is at this address (yet)
    StreamSealed        a write to a stream that has its end
    StreamDamaged       a manifest, index, shard or cursor that cannot be trusted
    StreamPruned        records that a cursor needs have been pruned
    StreamMismatch      the cursor is of another stream, or another number of lanes
    TooManyBadRecords   the budget of unusable records is spent
    WorkerFailed        a reader process failed again and again
BadRecord               one record that cannot be used; carries its reason, never ends a run
"""

from stream.lanes import BadRecordRef


class StreamError(Exception):
    """Base of everything that the stream package raises about the world."""


class StreamNotFound(StreamError):
    """Nothing is at this address (yet)."""


class StreamSealed(StreamError):
    """A write to a stream that has its end."""


class StreamDamaged(StreamError):
    """A manifest, index, shard or cursor that cannot be trusted."""


class StreamPruned(StreamError):
    """Records that a cursor needs have been pruned.

    Args:
        message: what is gone.
        missed: unread records that are gone, of the lanes that were looked at.
    """

    def __init__(self, message: str, missed: int = 0) -> None:
        super().__init__(message)
        self.missed = missed


class StreamMismatch(StreamError):
    """The cursor belongs to another stream or number of lanes; seed and window are its caller's to check."""


class TooManyBadRecords(StreamError):
    """The budget of unusable records is spent; the message names the reasons and where.

    Args:
        message: what the error says.
        bad: the unusable records of the step that spent it, of this process's lanes.
    """

    def __init__(self, message: str, bad: tuple[BadRecordRef, ...] = ()) -> None:
        super().__init__(message)
        self.bad = bad


class WorkerFailed(StreamError):
    """A reader process failed again and again."""


class BadRecord(Exception):
    """One record that cannot be used.

    Args:
        reason: short snake_case name from a fixed set; becomes a key of accounts and a metric label.
        detail: what was seen, for a log line.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
