"""The probe set of a run: exactly the first samples, whatever happened on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ops.errors import SnapshotDamaged, SnapshotNotFound
from ops.rundir.summary import RunSummary
from ops.snapshots.probe_images import FILE, ProbeSet, read
from tests.ops import small_runs, synthetic

BATCH = 8


def thumbs_at(step: int, side: int = 16) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return synthetic.thumbs(BATCH, side=side, seed=step)


def feed(probe: ProbeSet, first: int, last: int, side: int = 16) -> None:
    """Steps `first` to `last` of a run, each of BATCH samples."""
    for step in range(first, last + 1):
        keys = [f"{step}-{place}" for place in range(BATCH)]
        probe.observe(thumbs_at(step, side), keys, samples=step * BATCH)


def wanted(count: int) -> list[str]:
    return [f"{1 + place // BATCH}-{place % BATCH}" for place in range(count)]


def test_it_is_the_first_samples_and_no_more(tmp_path: Path) -> None:
    probe = ProbeSet(tmp_path, images=20)
    feed(probe, 1, 9)
    kept = read(tmp_path)
    assert list(kept.keys) == wanted(20)
    assert kept.samples.tolist() == [8] * 8 + [16] * 8 + [24] * 4
    assert np.array_equal(kept.thumbs[8:16], thumbs_at(2))
    assert len(probe) == 20


@pytest.mark.parametrize("saved", [1, 2, 3, 4])
@pytest.mark.parametrize("went_on_from", [0, 1, 2, 3])
def test_after_a_crash_and_a_resume_it_is_the_same(tmp_path: Path, saved: int, went_on_from: int) -> None:
    before = ProbeSet(tmp_path, images=20)
    feed(before, 1, saved)
    before.save()  # as before a checkpoint; what comes later is lost
    resumed = ProbeSet(tmp_path, images=20)
    feed(resumed, 1 + min(saved, went_on_from), 6)
    assert list(read(tmp_path).keys) == wanted(20)


def test_a_run_that_goes_back_within_one_life_takes_the_repeated_samples_once(tmp_path: Path) -> None:
    probe = ProbeSet(tmp_path, images=40)
    feed(probe, 1, 4)
    feed(probe, 3, 5)
    assert list(read(tmp_path).keys) == wanted(40)


def test_where_the_file_was_lost_the_samples_say_from_where_it_goes(tmp_path: Path) -> None:
    feed(ProbeSet(tmp_path, images=20), 1, 3)
    (tmp_path / FILE).write_bytes(b"nonsense")
    with pytest.raises(SnapshotDamaged, match="cannot be read"):
        read(tmp_path)
    feed(ProbeSet(tmp_path, images=20), 7, 9)
    assert read(tmp_path).samples.tolist() == [56] * 8 + [64] * 8 + [72] * 4


def test_a_full_set_is_left_alone_when_the_size_of_thumbnails_changes(tmp_path: Path) -> None:
    feed(ProbeSet(tmp_path, images=20), 1, 3)
    feed(ProbeSet(tmp_path, images=20), 4, 6, side=24)
    assert read(tmp_path).thumbs.shape == (20, 3, 16, 16)


def test_a_set_that_is_not_full_is_emptied_when_the_size_of_thumbnails_changes(tmp_path: Path) -> None:
    probe = ProbeSet(tmp_path, images=20)
    feed(probe, 1, 1)
    feed(probe, 2, 4, side=24)
    assert read(tmp_path).thumbs.shape == (20, 3, 24, 24)
    assert read(tmp_path).samples[0] == 16


def test_a_stream_without_thumbnails_gives_none(tmp_path: Path) -> None:
    probe = ProbeSet(tmp_path)
    probe.observe(None, [], samples=8)
    probe.observe(synthetic.thumbs(2, side=4), ["a", "b"], samples=16)
    probe.save()
    with pytest.raises(SnapshotNotFound, match="thumbnail_px below 8"):
        read(tmp_path)


def test_a_run_keeps_the_samples_that_arrived_first(whole_run: tuple[Path, RunSummary]) -> None:
    kept = read(whole_run[0])
    assert len(set(kept.keys)) == len(kept.keys) == small_runs.STEPS * 32
    assert kept.samples.tolist() == [32 * (1 + place // 32) for place in range(len(kept.keys))]


def test_a_run_that_was_killed_keeps_the_same_samples(
    tmp_path: Path, drawn_stream: str, whole_run: tuple[Path, RunSummary]
) -> None:
    run_dir = tmp_path / "run"
    config = small_runs.config_of()
    stop = small_runs.StopAfter(run_dir, 5, kill=True)
    assert small_runs.killed(lambda: small_runs.run(drawn_stream, run_dir, config, stop=stop))
    small_runs.run(drawn_stream, run_dir, config)
    kept, whole = read(run_dir), read(whole_run[0])
    assert kept.keys == whole.keys
    assert np.array_equal(kept.thumbs, whole.thumbs)
