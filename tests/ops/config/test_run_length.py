"""The length of a run, computed from what its stream holds, against hand-counted values."""

from pathlib import Path

from ops.config.recipe_report import resolve
from ops.config.run_length import pass_samples, run_samples
from tests.ops.small_runs import RECORDS, config_of, run, write_stream


def test_a_pass_is_the_whole_steps_that_every_lane_can_fill() -> None:
    config = config_of()  # 8 lanes, chunks of 4
    assert pass_samples(config, 331) == 320
    assert pass_samples(config, [40, 40, 40, 40, 40, 40, 40, 11]) == 2 * 32
    assert pass_samples(config, [40, 40, 40, 40, 40, 40, 40, 11], available=True) == 9 * 32
    assert pass_samples(config, 31) == 0


def test_a_tail_that_is_trained_counts_when_it_has_a_sample_for_each_lane() -> None:
    config = config_of("tail=train")
    assert pass_samples(config, 331) == 331
    assert pass_samples(config, 320 + 7) == 320
    assert pass_samples(config, [40, 40, 40, 40, 40, 40, 40, 11]) == 64 + 227 - 227 % 32


def test_a_run_is_all_of_its_passes_or_ends_after_the_batch_that_reaches_end_samples() -> None:
    assert run_samples(config_of("passes=3"), 331) == 960
    assert run_samples(config_of("passes=3", "end_samples=100"), 331) == 128
    assert run_samples(config_of("end_samples=100000"), 331) == 320


def test_what_recipes_show_says_of_a_stream_is_what_learn_does_with_it(tmp_path: Path) -> None:
    settings = ("lanes=8", "batch=32", "workers=0", "passes=2", "tail=train")
    stream = write_stream(tmp_path / "stream")
    shown = resolve("smoke", settings, stream=stream)
    assert shown.samples == 2 * RECORDS
    assert run(stream, tmp_path / "run", config_of(*settings[3:])).samples == shown.samples


def test_a_stream_that_only_a_tail_can_use_is_not_called_too_small(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", 20)
    small = ("lanes=8", "batch=32")
    assert any("nothing could be learned" in text for text in resolve("smoke", small, stream=stream).warnings)
    shown = resolve("smoke", (*small, "tail=train"), stream=stream)
    assert shown.samples == 20
    assert not any("nothing could be learned" in text for text in shown.warnings)
