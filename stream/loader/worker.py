"""What a reader process does with requests; started by `stream.processes`."""

import gc
import traceback
from collections.abc import Callable
from dataclasses import replace

import torch

from stream.errors import StreamError
from stream.loader.plan import ReadPlan
from stream.loader.shared_memory import SharedBuffer
from stream.loader.tasks import Failed, Reply, Request, Result, handle
from stream.processes import InFlightRecord
from stream.source import Source, SourceSpec


def open_reader(
    in_flight: InFlightRecord, spec: SourceSpec, plan: ReadPlan, buffer: SharedBuffer
) -> Callable[[Request], Reply]:
    """What answers the requests of a loader; the stream is opened at the first.

    Args:
        in_flight: where the record stands that is being decoded.
        spec: opens the stream.
        plan: how records become samples.
        buffer: memory that requests refer to.
    """
    torch.set_num_threads(1)
    gc.freeze()
    plan = replace(plan, in_flight=in_flight)
    source: Source | None = None

    def answer(request: Request) -> Reply:
        nonlocal source
        try:
            source = source or spec.open()
        except (StreamError, OSError) as error:
            reply: Reply = (Failed(error),) * len(request.tasks)
        else:
            reply = handle(source, plan, buffer.frames, request)
        return tuple(map(_portable, reply))

    return answer


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
