"""Settings of reading a stream: which crops are cut, how far readers run ahead, what is read again."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """One kind of view: `count` random resized crops of `size` pixels."""

    count: int
    """Crops of this kind cut from each image; >= 1."""
    size: int
    """Side of the crop after resizing, pixels; >= 8."""
    scale_min: float
    """Smallest share of the image's area that a crop covers; (0, 1]."""
    scale_max: float
    """Largest share of the image's area that a crop covers; [scale_min, 1]."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"crops.count must be >= 1, got {self.count}")
        if self.size < 8:
            raise ValueError(f"crops.size must be >= 8 pixels, got {self.size}")
        if not 0.0 < self.scale_min <= self.scale_max <= 1.0:
            raise ValueError(
                f"crops need 0 < scale_min <= scale_max <= 1, got {self.scale_min} and {self.scale_max}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderConfig:
    """How records become batches."""

    prefetch: int = 2
    """Chunks of each lane that may be ready or in work ahead of the learner; >= 1."""
    thumbnail_px: int = 48
    """Side of the small whole-image copy that travels with each sample, pixels; 0 sends none."""
    max_pixels: int = 50_000_000
    """Images with more pixels are skipped before they are decoded."""
    max_bad_fraction: float = 0.5
    """The run stops when more than this share of the last `bad_window` records was unusable; (0, 1]."""
    bad_window: int = 1000
    """Records over which the share of unusable ones is taken; >= 1."""
    poll_s: float = 0.5
    """Seconds between two looks for new records of an open stream; > 0."""

    def __post_init__(self) -> None:
        if self.prefetch < 1:
            raise ValueError(f"reader.prefetch must be >= 1, got {self.prefetch}")
        if self.thumbnail_px < 0:
            raise ValueError(f"reader.thumbnail_px must be >= 0, got {self.thumbnail_px}")
        if self.max_pixels < 1:
            raise ValueError(f"reader.max_pixels must be >= 1, got {self.max_pixels}")
        if not 0.0 < self.max_bad_fraction <= 1.0:
            raise ValueError(f"reader.max_bad_fraction must be in (0, 1], got {self.max_bad_fraction}")
        if self.bad_window < 1:
            raise ValueError(f"reader.bad_window must be >= 1, got {self.bad_window}")
        if not self.poll_s > 0:
            raise ValueError(f"reader.poll_s must be > 0 seconds, got {self.poll_s}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """How often the latest samples are learned from again."""

    updates: int = 1
    """Updates for each arriving batch: its own, and the rest from the window; 1 = no replay."""
    window_samples: int = 0
    """The latest samples that replays are drawn from, the arriving batch among them; a whole multiple of the
    batch, 0 without replay."""

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ValueError(f"replay.updates must be >= 1, got {self.updates}")
        if self.window_samples < 0:
            raise ValueError(f"replay.window_samples must be >= 0, got {self.window_samples}")
        if self.updates == 1 and self.window_samples:
            raise ValueError(
                f"replay.window_samples is {self.window_samples}, but replay.updates = 1 replays nothing: "
                "raise replay.updates or leave the window at 0"
            )

    def window_steps(self, batch: int) -> int:
        """Batches that the window holds; 0 without replay.

        Args:
            batch: samples of one step over all ranks.

        Raises:
            ValueError: the window is not so many whole batches, or holds none.
        """
        if self.updates == 1:
            return 0
        if self.window_samples < batch or self.window_samples % batch:
            below = self.window_samples // batch * batch
            fitting = " or ".join(str(number) for number in (below, below + batch) if number)
            raise ValueError(
                f"replay.window_samples must be a whole multiple of batch {batch}, got "
                f"{self.window_samples}: take {fitting}"
            )
        return self.window_samples // batch


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig:
    """When a shard is closed and committed."""

    max_records: int = 1000
    """Records in one shard; 1 .. 1,000,000."""
    max_bytes: int = 256 * 1024 * 1024
    """Encoded image bytes in one shard; the record that reaches it is the last one; >= 1."""
    max_age_s: float = 60.0
    """Seconds that a record (or a skip) may wait uncommitted before the shard is closed; > 0."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_records <= 1_000_000:
            raise ValueError(f"shard.max_records must be in 1..1000000, got {self.max_records}")
        if self.max_bytes < 1:
            raise ValueError(f"shard.max_bytes must be >= 1, got {self.max_bytes}")
        if not self.max_age_s > 0:
            raise ValueError(f"shard.max_age_s must be > 0 seconds, got {self.max_age_s}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionConfig:
    """How much of a stream is kept, and how far it may run ahead of those who read it."""

    keep_hours: float = 0.0
    """Shards that were committed longer ago than this are pruned, hours; 0 keeps all."""
    keep_bytes: int = 0
    """The oldest shards are pruned until those that are left have no more bytes than this; 0 keeps all."""
    max_ahead: int = 0
    """Records that the slowest registered run may have unread before more are brought; 0 is no limit."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.keep_hours) and self.keep_hours >= 0):
            raise ValueError(f"retention.keep_hours must be >= 0, got {self.keep_hours}")
        if self.keep_bytes < 0:
            raise ValueError(f"retention.keep_bytes must be >= 0, got {self.keep_bytes}")
        if self.max_ahead < 0:
            raise ValueError(f"retention.max_ahead must be >= 0 records, got {self.max_ahead}")
