"""What can go wrong while bringing images in; one bad image is never an error, it is counted.

IngestError
    SourceNotFound      nothing is at the address of a source
    SourceEmpty         no image and no archive is in it
    SourceUnreadable    a directory that cannot be listed, or an address that cannot be a source
    SourceChanged       files came where a source without a list of what was taken does not look
    SourceBusy          another ingest of the same source into the same stream is at work
    DestinationFull     no room is left where the stream is written
    DestinationFailed   the stream cannot be written for another reason
    DecodePoolFailed    the processes that decode images die or hang again and again

After any of them everything that was committed stays, and the same command goes on from there.
"""


class IngestError(Exception):
    """Base of everything that the ingest package raises about the world."""


class SourceNotFound(IngestError):
    """Nothing is at the address of a source."""


class SourceEmpty(IngestError):
    """A source in which there is no image and no archive."""


class SourceUnreadable(IngestError):
    """A directory that cannot be listed, or an address that cannot be a source."""


class SourceChanged(IngestError):
    """Files came, or changed, where a source without a list of what was taken does not look any more."""


class SourceBusy(IngestError):
    """Another ingest of the same source into the same stream is at work."""


class DestinationFull(IngestError):
    """No room is left where the stream is written."""


class DestinationFailed(IngestError):
    """The stream cannot be written, for a reason other than room."""


class DecodePoolFailed(IngestError):
    """The processes that decode images die or hang again and again."""
