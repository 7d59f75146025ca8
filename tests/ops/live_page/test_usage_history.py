"""Usage over the length of a run: bounded, to the point, kept over a restart."""

from pathlib import Path

import numpy as np
import pytest

from ops.live_page.usage_history import COLUMNS, EVEN, MEMORY_BYTES, UsageHistory, encoded, heatmap
from tests.ops import synthetic


def shares(prototypes: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    drawn: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = synthetic.shares(prototypes, seed=seed).numpy()
    return drawn


def test_a_byte_tells_a_share_to_a_few_percent_and_none_from_little() -> None:
    even = np.array([0, 2.0**-5, 0.1, 1, 7.3, 900], np.float32)
    told = EVEN[encoded((even / len(even)).astype(np.float32))]
    assert told[0] == 0
    assert told[1:] == pytest.approx(even[1:], rel=0.023)
    assert encoded(np.array([1e-9, 1], np.float32))[0] == 1, "little is not none"


def test_however_long_the_run_columns_are_few_evenly_spaced_and_end_now() -> None:
    history = UsageHistory(4, columns=16)
    for report in range(1, 1001):
        history.add(np.full(4, 0.25, np.float32), samples=64 * report)
        samples, columns = history.columns()
        assert len(samples) == len(columns) <= 16
        assert samples[0] == 64
        assert samples[-1] == 64 * report
        assert samples == sorted(set(samples))
    gaps = np.diff(samples)
    assert set(gaps[:-1]) == {64 * 128}
    assert gaps[-1] <= 64 * 128


def test_memory_is_bounded_whatever_the_number_of_prototypes() -> None:
    prototypes = 400_000
    history = UsageHistory(prototypes)
    usage = np.full(prototypes, 1 / prototypes, np.float32)
    for report in range(1, 100):
        history.add(usage, samples=report)
    assert sum(column.nbytes for column in history.columns()[1]) <= MEMORY_BYTES
    assert UsageHistory(3000)._most == COLUMNS


def test_what_came_after_the_place_a_run_went_back_to_is_forgotten() -> None:
    history = UsageHistory(4, columns=16)
    for report in range(1, 41):
        history.add(shares(4, report), samples=64 * report, window=640)
    history.add(shares(4, 99), samples=64 * 20, window=640)
    samples, columns = history.columns()
    assert samples[-1] == 64 * 20
    assert samples == sorted(set(samples))
    assert columns[-1].tolist() == encoded(shares(4, 99)).tolist()
    before = history.before()
    assert before is not None
    assert before[0] <= 64 * 20


def test_change_is_told_against_one_window_ago_in_few_looks() -> None:
    history = UsageHistory(4)
    for report in range(1, 200):
        history.add(shares(4, report), samples=64 * report, window=6400)
        assert len(history._recent) <= 11
        before = history.before()
        assert before is not None
        age = 64 * report - before[0]
        assert age <= 6400 + 6400 // 8 + 64
        assert age >= min(6400 - 64, 64 * (report - 1))
        assert before[1].tolist() == shares(4, before[0] // 64).tolist()


def test_a_row_of_the_heatmap_is_the_mean_of_its_prototypes() -> None:
    usage = np.array([0.4, 0.2, 0.1, 0.3, 0, 0], np.float32)
    made = heatmap([64], [encoded(usage)], np.argsort(-usage, kind="stable"), rows=3)
    assert [part.tolist() for part in made.members] == [[0, 3], [1, 2], [4, 5]]
    assert EVEN[made.cells_RC[:, 0]] == pytest.approx([0.35 * 6, 0.15 * 6, 0], rel=0.05)


def test_rows_and_columns_of_the_heatmap_are_few_and_hold_each_prototype_once() -> None:
    history = UsageHistory(1000)
    for report in range(1, 301):
        history.add(shares(1000, report), samples=report)
    made = heatmap(*history.columns(), np.random.default_rng(0).permutation(1000), rows=128)
    assert made.cells_RC.shape == (128, len(made.samples))
    assert len(made.samples) <= COLUMNS
    assert sorted(np.concatenate(made.members)) == list(range(1000))


def test_a_restarted_run_has_its_past_up_to_where_it_goes_on(tmp_path: Path) -> None:
    history, path = UsageHistory(4, columns=16), tmp_path / "usage.safetensors"
    for report in range(1, 41):
        history.add(shares(4, report), samples=64 * report)
    history.save(path)
    again = UsageHistory(4, columns=16)
    assert again.load(path, samples=64 * 30)
    samples, columns = history.columns()
    kept = [at for at in samples if at <= 64 * 30]
    assert again.columns()[0] == kept
    assert [one.tolist() for one in again.columns()[1]] == [one.tolist() for one in columns[: len(kept)]]
    for report in range(31, 400):
        again.add(shares(4, report), samples=64 * report)
    assert len(again.columns()[0]) <= 16


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_a_damaged_or_foreign_file_changes_nothing(tmp_path: Path, content: bytes | None) -> None:
    path, history = tmp_path / "usage.safetensors", UsageHistory(4)
    if content is None:
        UsageHistory(5).save(path)
    else:
        path.write_bytes(content)
    assert not history.load(path, samples=10)
    assert history.columns() == ([], [])
