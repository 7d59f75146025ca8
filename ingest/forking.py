"""The process that those who prepare images are forked from; it imports the decoders once.

This module imports nothing heavy, and no decoder comes into the process that only hands out the work: that
would take seconds and memory.
"""

import importlib
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

from ingest.config import IngestConfig
from ingest.prepared import Result
from ingest.sources import Found
from stream.fork_server import fork_server

DECODERS = "ingest.serving"


def context() -> ForkServerContext:
    """Where to start processes: not forked from this one, whose threads might hold locks."""
    return fork_server([DECODERS])


def begin_imports() -> None:
    """Start that process now, so that it imports while this one does other things. Does not wait."""
    context()
    forkserver.ensure_running()


def serve(connection: Connection, config: IngestConfig) -> None:
    """What a process does, see `ingest.serving.serve`."""
    importlib.import_module(DECODERS).serve(connection, config)


def attempt(found: Found, config: IngestConfig) -> Result:
    """Prepare one image in this process, see `ingest.serving.attempt`."""
    result: Result = importlib.import_module(DECODERS).attempt(found, config)
    return result
