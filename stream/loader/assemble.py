"""Samples while they are laid out in a frame, with the account of what reading them cost and met."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream.errors import BadRecord
from stream.images import crops
from stream.images.decode import decode_image
from stream.lanes import BadRecordRef, LaneStats
from stream.loader.plan import ReadPlan
from stream.loader.shared_memory import KEY_BYTES, BatchFrame
from stream.processes import RecordRef
from stream.record import Record
from stream.source import Entry

BAD_REFS = 10_000
"""So many unusable records of a chunk are named; the budget is spent before."""
KILLS_DECODER = "kills_decoder"
"""Reason of a record in whose decoder one reader after the other died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """What reading some records of a lane cost and met."""

    stats: LaneStats = field(default_factory=LaneStats)
    bad: tuple[BadRecordRef, ...] = ()
    """Those that could not be used."""
    deadly: tuple[RecordRef, ...] = ()
    """Those that were left out because they kill their decoder."""
    newest: float = 0.0
    """When the newest of them was put on the stream, seconds since 1970; 0 = not known."""


@dataclass(slots=True, kw_only=True)
class ReadStats:
    """What reading meets, as it goes on."""

    plan: ReadPlan
    read: int = 0
    used: int = 0
    num_bytes: int = 0
    read_s: float = 0.0
    decode_s: float = 0.0
    crop_s: float = 0.0
    newest: float = 0.0
    skipped: dict[str, int] = field(default_factory=dict)
    bad: list[BadRecordRef] = field(default_factory=list)
    deadly: list[RecordRef] = field(default_factory=list)

    def count(self, entry: Entry) -> None:
        """Count an entry that was read."""
        self.read += entry.count
        self.newest = max(self.newest, entry.time)
        self.num_bytes += entry.size

    def image(self, entry: Entry) -> tuple[Record, Tensor]:
        """Decode a record.

        Raises:
            BadRecord: it cannot be used.
        """
        record, plan = entry.record, self.plan
        if record is None:
            raise BadRecord(entry.reason)
        if (entry.unit, entry.index) in plan.deadly:
            raise BadRecord(KILLS_DECODER)
        start = time.perf_counter()
        if plan.in_flight is not None:
            plan.in_flight.set(entry.unit, entry.index)
        try:
            return record, decode_image(record.payload, max_pixels=plan.max_pixels)
        finally:
            if plan.in_flight is not None:
                plan.in_flight.clear()
            self.decode_s += time.perf_counter() - start

    def skip(self, entry: Entry, lane: int, reason: str) -> None:
        """Count a record that cannot be used."""
        self.skipped[reason] = self.skipped.get(reason, 0) + entry.count
        if reason == KILLS_DECODER:
            self.deadly.append((entry.unit, entry.index))
        if len(self.bad) < BAD_REFS:
            self.bad.append(BadRecordRef(lane, entry.unit, entry.index, reason))

    def spent(self) -> bool:
        """Whether so many records were unusable that the step which they are read for is over the budget."""
        bad = max(0, self.lane_stats().seen - self.used - self.plan.accepted)
        # The other chunks of this step can only add good records up to a whole batch.
        return self.plan.over_budget(bad + self.plan.batch, bad)

    def met(self) -> dict[str, Any]:
        """The fields of `Met` so far."""
        bad, deadly = tuple(self.bad), tuple(self.deadly)
        return {"stats": self.lane_stats(), "bad": bad, "deadly": deadly, "newest": self.newest}

    def lane_stats(self) -> LaneStats:
        """The account so far."""
        return LaneStats(
            read=self.read,
            used=self.used,
            skipped=dict(sorted(self.skipped.items())),
            bytes=self.num_bytes,
            read_s=self.read_s,
            decode_s=self.decode_s,
            crop_s=self.crop_s,
        )


@dataclass(slots=True, kw_only=True)
class BatchAssembler(ReadStats):
    """Samples while they are laid out, with the account of what was met."""

    frame: BatchFrame
    column: int
    """Of the frame, where the first sample goes."""
    floats: list[NDArray[np.float64]] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    refs: list[tuple[int, int]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    """Encoded, when the plan wants them."""

    def add(self, entry: Entry, *, lane: int, seq: int, draw: int = 0) -> None:
        """Decode one record and cut its views into the next column; the thumbnail only at its first draw.

        Raises:
            BadRecord: it cannot be used; the column is still free.
        """
        plan, column = self.plan, self.column + self.used
        record, image = self.image(entry)
        decoded = time.perf_counter()
        views = crops.num_views(plan.crops)
        floats = crops.draw(plan.seed, lane, seq, draw, views * crops.FLOATS_PER_VIEW)
        floats = floats.reshape(views, crops.FLOATS_PER_VIEW)
        crops.multi_crop_into(image, plan.crops, floats, self.frame.crops, column)
        if plan.thumbnail_px and draw == 0:
            self.frame.thumbs[column] = crops.thumbnail(image, plan.thumbnail_px)
        self.floats.append(floats)
        self.seqs.append(seq)
        self.refs.append((entry.unit, entry.index))
        self.keys.append(_key(record))
        if plan.images is not None:
            self.images.append(record.payload)
        self.used += 1
        self.crop_s += time.perf_counter() - decoded

    def finish(self) -> None:
        """Write what is cheaper to write for all samples at once."""
        columns = slice(self.column, self.column + self.used)
        uniforms = crops.uniforms(np.stack(self.floats, axis=1))
        self.frame.uniforms[:, columns] = torch.from_numpy(uniforms)
        self.frame.seq_B[columns] = torch.tensor(self.seqs, dtype=torch.int64)
        self.frame.refs_B2[columns] = torch.tensor(self.refs, dtype=torch.int64)
        keys = torch.frombuffer(bytearray(b"".join(self.keys)), dtype=torch.uint8)
        self.frame.keys[columns] = keys.view(self.used, KEY_BYTES)


def _key(record: Record) -> bytes:
    return record.sha256.encode("ascii", "replace")[:KEY_BYTES].ljust(KEY_BYTES, b"\0")
