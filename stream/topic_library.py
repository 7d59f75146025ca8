"""What the Kafka client library says while it works: told only to who asks, but listened to.

It logs each attempt to reconnect as an error, once a second from every client, and tries again for as long as
it may when a password or a certificate is refused; its last error then speaks of time alone.
"""

import contextlib
import gzip
import logging
import time
import zlib

NAME = "kafka"
WELCOME = "Bootstrap complete"
"""Said once a client is let in: what was refused before is over."""
ALERT = "_ALERT_"
"""In what is said when a broker refuses the certificate of a client, or that there is none."""
REFUSALS = (
    "AuthenticationFailed",
    "CERTIFICATE_VERIFY_FAILED",
    "UnsupportedSaslMechanism",
    "SSLError",
    ALERT,
)
RECENT_S = 60.0


class Listener(logging.Handler):
    """Keeps the last refusal, and passes messages on when they are asked for (root logger at INFO)."""

    def __init__(self) -> None:
        super().__init__()
        self._refusal = ""
        self._at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Take one message in."""
        text = record.getMessage()
        if any(name in text for name in REFUSALS):
            self._refusal, self._at = text, time.monotonic()
        elif WELCOME in text:
            self._refusal = ""
        root = logging.getLogger()
        if root.isEnabledFor(logging.INFO):
            root.handle(record)

    def forget(self) -> None:
        """What was refused so far is not of the client that is made next."""
        self._refusal = ""

    def refusal(self) -> str:
        """What was refused of late; empty when nothing was."""
        return self._refusal if time.monotonic() - self._at < RECENT_S else ""


def codec_errors() -> tuple[type[Exception], ...]:
    """What the libraries of compression that are installed raise for bytes that they did not write."""
    found: list[type[Exception]] = [zlib.error, gzip.BadGzipFile, RuntimeError]  # the last by lz4
    with contextlib.suppress(ImportError):
        from zstandard import ZstdError  # noqa: PLC0415  a codec may be missing

        found.append(ZstdError)
    with contextlib.suppress(ImportError):
        from cramjam import DecompressionError  # noqa: PLC0415  of python-snappy

        found.append(DecompressionError)
    with contextlib.suppress(ImportError):
        from snappy import UncompressError  # noqa: PLC0415

        found.append(UncompressError)
    return tuple(found)


def listener() -> Listener:
    """The one listener of this process, put in place when it is not yet."""
    library = logging.getLogger(NAME)
    for handler in library.handlers:
        if isinstance(handler, Listener):
            return handler
    handler = Listener()
    library.addHandler(handler)
    library.propagate = False
    library.setLevel(logging.INFO)  # at DEBUG it writes out what it sends, passwords among it
    return handler
