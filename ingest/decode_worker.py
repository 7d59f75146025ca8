"""What a process that prepares images does: it answers for each image that it is sent, within its limits."""

import contextlib
import os
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ingest.config import IngestConfig
from ingest.decode_pool import Result
from ingest.sources import Found
from ingest.transcode import prepare
from stream.errors import BadRecord


def attempt(found: Found, config: IngestConfig) -> Result:
    """Read and prepare one image; whatever is wrong with it becomes a BadRecord."""
    try:
        return prepare(found.read(config.max_bytes), config)
    except BadRecord as bad:
        return bad


def serve(connection: Connection, config: IngestConfig) -> None:
    """What a process does: say that it is ready, then answer each image of each batch."""
    # Whether to stop is for the parent to decide; when it goes, the connection ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    _silence_decoders()
    torch.set_num_threads(1)
    _limit_memory(config.memory_bytes)
    with contextlib.suppress(EOFError, OSError):
        connection.send(None)
        while True:
            for payload, path in connection.recv():
                try:
                    result = attempt(Found(name="", position={}, payload=payload, path=path), config)
                except MemoryError:
                    result = BadRecord("too_large", "not enough memory")
                connection.send((result.reason, result.detail) if isinstance(result, BadRecord) else result)


def _silence_decoders() -> None:
    """C libraries write a line for each oddity to descriptor 2, thousands for one bad file."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)


def _limit_memory(beyond: int) -> None:
    """Let this process take `beyond` bytes more than it has now; where the system cannot tell, no limit."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return
    used = next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:")), 0
    )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + beyond
    resource.setrlimit(
        resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )
