"""The process around a reader: it answers requests until its parent sends no more."""

import contextlib
import gc
import os
import signal
import sys
import threading
import traceback
from dataclasses import replace
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

import torch

from stream.errors import StreamError
from stream.loader.plan import InFlightRecord, ReadPlan
from stream.loader.shared_memory import SharedBuffer
from stream.loader.tasks import Failed, Reply, Request, Result, handle
from stream.source import Source, SourceSpec


def serve(
    connection: "Connection[Reply, Request]",
    in_flight: InFlightRecord,
    spec: SourceSpec,
    plan: ReadPlan,
    buffer: SharedBuffer,
) -> None:
    """Main function of a reader process.

    Ends when the other end of the connection is closed or the parent process is gone. Signals go to the whole
    process group, or job; they are left to the parent, which decides when readers end.

    Args:
        connection: requests come in, replies go out, in the same order.
        in_flight: where the record stands that is being decoded.
        spec: opens the stream.
        plan: how records become samples.
        buffer: memory that requests refer to.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    _silence_libraries()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    gc.freeze()
    plan = replace(plan, in_flight=in_flight)
    source: Source | None = None
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has closed its end
        while True:
            request = connection.recv()
            try:
                source = source or spec.open()
            except (StreamError, OSError) as error:
                results: tuple[Result, ...] = (Failed(error),) * len(request.tasks)
            else:
                results = handle(source, plan, buffer.frames, request).results
            connection.send(Reply(request.request_id, tuple(map(_portable, results))))
    if source is not None:
        source.close()


def _silence_libraries() -> None:
    """Image libraries write what they think of bad files to descriptor 2; keep that for Python alone."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)


def _end_with_parent() -> None:
    """A parent that was killed cannot close anything: leave, even out of the middle of a read."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _portable(result: Result) -> Result:
    """The result as the parent can receive it: an error sure to unpickle, its traceback as a note."""
    if not isinstance(result, Failed):
        return result
    error = result.error
    note = "in a reader process:\n" + "".join(traceback.format_exception(error))
    if not isinstance(error, StreamError) and type(error).__module__ != "builtins":
        error = StreamError(f"reading failed: {type(error).__name__}: {error}")
    error.add_note(note)
    return Failed(error)
