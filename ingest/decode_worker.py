"""What a process that prepares images does for each that it is sent; started by `stream.processes`."""

import resource
from collections.abc import Callable
from pathlib import Path

import torch

from ingest.config import IngestConfig
from ingest.decode_pool import Prepared, Result
from ingest.sources import Found
from ingest.transcode import prepare
from stream.errors import BadRecord
from stream.processes import InFlightRecord


def attempt(found: Found, config: IngestConfig) -> Result:
    """Read and prepare one image; whatever is wrong with it becomes a BadRecord."""
    try:
        return prepare(found.read(config.max_bytes), config)
    except BadRecord as bad:
        return bad


def open_decoder(
    in_flight: InFlightRecord, config: IngestConfig
) -> Callable[[tuple[bytes, str]], Prepared | tuple[str, str]]:
    """What answers for each image, given its bytes or its path: the image, or reason and detail."""
    torch.set_num_threads(1)
    _limit_memory(config.memory_bytes)

    def answer(image: tuple[bytes, str]) -> Prepared | tuple[str, str]:
        payload, path = image
        in_flight.set(0, 0)
        try:
            result = attempt(Found(name="", position={}, payload=payload, path=path), config)
        except MemoryError:
            result = BadRecord("too_large", "not enough memory")
        # Not after another error, which ends this process: the image that it was at is to blame.
        in_flight.clear()
        return (result.reason, result.detail) if isinstance(result, BadRecord) else result

    return answer


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
