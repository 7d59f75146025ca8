"""Refuses a cursor that its stream cannot continue: another stream, or records that are gone."""

from collections.abc import Iterable

from stream.cursor import Cursor
from stream.errors import StreamMismatch, StreamPruned
from stream.lanes import Position
from stream.reader import outlook_from
from stream.source import Source


def check_same_stream(source: Source, cursor: Cursor) -> None:
    """Refuse a cursor of another stream.

    Raises:
        StreamMismatch: names both.
    """
    identity = source.identity()
    if dict(cursor.source) != identity or cursor.lanes != source.lanes:
        raise StreamMismatch(
            f"the cursor is of {dict(cursor.source)}, {cursor.lanes} lanes, but the stream is {identity}, "
            f"{source.lanes} lanes: give the stream that the run began with, or begin a new run"
        )


def check_kept(source: Source, positions: Iterable[Position], pass_number: int) -> None:
    """Refuse before anything is read when records of any lane have been pruned.

    Raises:
        StreamPruned: says how many were missed.
    """
    missed, pruned = 0, None
    for position in positions:
        try:
            outlook_from(source, position, pass_number)
        except StreamPruned as error:
            missed, pruned = missed + error.missed, error
    if pruned is not None:
        raise StreamPruned(
            f"{missed:,} records that come next for this run were pruned from its stream ({pruned}): "
            "a new run begins at the first that is kept",
            missed=missed,
        ) from pruned
