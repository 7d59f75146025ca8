"""What can go wrong while running, and the exit code that each thing ends the command with.

OpsError                  1
    ConfigError           78  a setting that does not exist or does not fit; also a ValueError
    RunMismatch           78  the run directory belongs to another stream, network, seed, batch, ...
    RunLocked             1   another learner works in the run directory
    RunNotFound           1   no run in this directory
    NoImagesYet           1   a stream that grows holds nothing yet by which settings could be chosen
    NoRoom                1   the disk of the run directory is full before anything is learned, or at the end
    CheckpointDamaged     78  no checkpoint of the run can be trusted
    CheckpointFailed      1   the last checkpoint of a run could not be written
    NotFinite             78  the loss or a gradient is not a number, twice at the same place
    RankLost              1   another rank died, or does not answer
        LauncherGone      1   the launcher died, and the store in which the ranks meet with it
    RankFailed            =   another rank cannot go on; the exit code is that of its error
    Starved               1   readers of a rank bring nothing although records are there
    ServiceError          1   a port in use, a store that cannot be reached
        PortInUse         1   the HTTP port is taken, or may not be listened on
        RedisUnavailable  1   no Redis can be reached or started
    SnapshotError         1   what is wrong with a snapshot
        SnapshotNotFound  1   no such version or alias
        SnapshotDamaged   1   what Redis or the encoder file holds is not what its digest says
        StaleEpoch        1   a newer learner of the same run publishes; this one must not

78 (EX_CONFIG of sysexits.h) says to a supervisor that a restart will meet the same error again.
"""

from ingest.errors import IngestError
from stream.errors import StreamDamaged, StreamError, StreamMismatch, StreamPruned, TooManyBadRecords

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_AGAIN = 78
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class OpsError(Exception):
    """Base of everything that the ops package raises about the world."""

    exit_code = EXIT_FAILED


class ConfigError(OpsError, ValueError):
    """A setting that does not exist, has the wrong type, or does not fit the others."""

    exit_code = EXIT_AGAIN


class RunMismatch(OpsError):
    """The run directory was made with other settings, or for another stream, than now asked for."""

    exit_code = EXIT_AGAIN


class RunLocked(OpsError):
    """Another learner works in this run directory."""


class RunNotFound(OpsError):
    """There is no run in this directory."""


class NoImagesYet(OpsError):
    """An open stream without an image by which settings could be chosen."""


class NoRoom(OpsError):
    """The disk of the run directory is full, and what must be written there could not be."""


class CheckpointDamaged(OpsError):
    """A checkpoint whose files are not what was written."""

    exit_code = EXIT_AGAIN


class CheckpointFailed(OpsError):
    """A checkpoint that had to be written could not be."""


class NotFinite(OpsError):
    """The loss or a gradient is not a finite number, again at the same place."""

    exit_code = EXIT_AGAIN


class RankLost(OpsError):
    """Another rank died, or has not answered within the time limit."""


class LauncherGone(RankLost):
    """The launcher died, and the store in which the ranks meet with it."""


class RankFailed(OpsError):
    """Another rank cannot go on, and has said why itself."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Starved(OpsError):
    """Readers of a rank bring nothing although records are there."""


class ServiceError(OpsError):
    """A server that cannot be started or reached."""


class PortInUse(ServiceError):
    """The HTTP port is taken by another program, or may not be listened on."""


class RedisUnavailable(ServiceError):
    """No Redis can be reached or started."""


class SnapshotError(OpsError):
    """Base of what is wrong with a snapshot."""


class SnapshotNotFound(SnapshotError):
    """No such version or alias."""


class SnapshotDamaged(SnapshotError):
    """What Redis or the encoder file holds is not what its digest says."""


class StaleEpoch(SnapshotError):
    """A newer learner of the same run publishes; this one must not."""


def exit_code_of(error: BaseException) -> int | None:
    """Exit code of an error that a person is told in one line; None for a fault of the program."""
    if isinstance(error, OpsError):
        return error.exit_code
    if isinstance(error, StreamDamaged | StreamMismatch | StreamPruned | TooManyBadRecords):
        return EXIT_AGAIN
    if isinstance(error, StreamError | IngestError | ValueError | OSError):
        return EXIT_FAILED
    return None
