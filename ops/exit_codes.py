"""The exit code that each error ends the command with."""

from ingest.errors import IngestError
from ops.errors import EXIT_AGAIN, EXIT_FAILED, OpsError
from stream.errors import StreamDamaged, StreamError, StreamMismatch, StreamPruned, TooManyBadRecords


def exit_code_of(error: BaseException) -> int | None:
    """Exit code of an error that a person is told in one line; None for a fault of the program."""
    if isinstance(error, OpsError):
        return error.exit_code
    if isinstance(error, StreamDamaged | StreamMismatch | StreamPruned | TooManyBadRecords):
        return EXIT_AGAIN
    if isinstance(error, StreamError | IngestError | ValueError | OSError):
        return EXIT_FAILED
    return None
