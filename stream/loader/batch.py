"""A batch: what one step of one rank learns from, in memory of its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stream.cursor import Cursor
from stream.lanes import BadRecordRef, LaneStats
from stream.loader.shared_memory import BatchFrame


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples of one step: lanes ascending, and in a lane in order of their numbers; B = lanes x C.

    Those of a tail are in order of the lanes that they are dealt to, and fewer.
    """

    crops: tuple[Tensor, ...]
    """For each kind of crop [count, B, 3, S, S] uint8."""
    uniforms: Tensor
    """[n_views, B, 16] float32 in [0, 1): numbers for the photometric half; kinds of crops in order."""
    lane_B: Tensor
    """[B] int64."""
    seq_B: Tensor
    """[B] int64; with the lane, the name of the sample."""
    dealt_B: Tensor
    """[B] int64: the lane that the learner takes it for; its own, but in a tail. Always one of this rank."""
    refs_B2: Tensor
    """[B, 2] int64: unit and index of the record, as in `Entry`."""
    keys: tuple[str, ...]
    """Hex SHA-256 of each record, empty where it states none."""
    thumbs: Tensor | None
    """[B, 3, T, T] uint8: the whole image squeezed; None when the thumbnail size is 0."""
    bad: tuple[BadRecordRef, ...]
    """Where the records lie that could not be used for this batch."""
    cursor: Cursor
    """After this batch. With several ranks only this rank's lanes have moved (`stream.cursor.joined`)."""
    stats: LaneStats
    """Of this batch, over all ranks."""


def copied(
    frame: BatchFrame,
    *,
    lane_B: Tensor,
    dealt_B: Tensor,
    bad: tuple[BadRecordRef, ...],
    cursor: Cursor,
    stats: LaneStats,
    thumbs: bool,
    pin_memory: bool,
) -> Batch:
    """The batch that lies in a frame, which is filled again.

    Args:
        frame: its columns are the samples.
        lane_B: [B] int64, of each column.
        dealt_B: as in `Batch`.
        bad: as in `Batch`.
        cursor: as in `Batch`.
        stats: as in `Batch`.
        thumbs: whether the frame holds thumbnails of these samples.
        pin_memory: copy into page-locked memory.
    """

    def own(shared: Tensor) -> Tensor:
        return torch.empty(shared.shape, dtype=shared.dtype, pin_memory=pin_memory).copy_(shared)

    return Batch(
        crops=tuple(own(kind) for kind in frame.crops),
        uniforms=own(frame.uniforms),
        lane_B=lane_B,
        seq_B=frame.seq_B.clone(),
        dealt_B=dealt_B,
        refs_B2=frame.refs_B2.clone(),
        keys=tuple(bytes(row).rstrip(b"\0").decode("ascii") for row in frame.keys.numpy()),
        thumbs=frame.thumbs.clone() if thumbs else None,
        bad=bad,
        cursor=cursor,
        stats=stats,
    )
