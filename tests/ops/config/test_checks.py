"""What `recipes show` says of a machine and a stream: each warning where it applies, and nowhere else."""

import json
from pathlib import Path

import pytest

from learner.backbone import BACKBONES
from ops.cli.main import run as command
from ops.config import recipes
from ops.config.checks import Machine, Stream, advice, warnings
from ops.config.load import build, load_values
from ops.config.recipe_report import resolve
from ops.demo.feed import encoded
from ops.errors import ConfigError
from tests.ops.small_runs import write_stream

SMALLEST_CROP = 8
LARGE = Machine(host_bytes=2**50, device_bytes=(2**45,))
CIFAR = Stream(records=50_000, shards=50, sealed=True)


def said(name: str, *assignments: str, ranks: int = 1, machine: Machine = LARGE) -> str:
    return "\n".join(resolve(name, assignments, ranks=ranks, machine=machine).warnings)


def said_of(stream: Stream, monkeypatch: pytest.MonkeyPatch, name: str, *assignments: str) -> str:
    monkeypatch.setattr("ops.config.recipe_report.look", lambda _: stream)
    monkeypatch.setattr("ops.config.recipe_report.look_at_batch", lambda _, _config: None)
    return "\n".join(resolve(name, assignments, stream="there", machine=LARGE).warnings)


@pytest.mark.parametrize("name", [name for name in recipes.names() if name != "uncurated-continuous"])
def test_a_recipe_as_it_is_fits_a_machine_that_is_large_enough(name: str) -> None:
    assert said(name) == ""


@pytest.mark.parametrize(
    ("settings", "ranks", "says"),
    [
        (["swav.prototypes=3000"], 1, "batch + queue is 256, fewer than the 3000 prototypes"),
        (
            ["crops.0.size=8"],
            1,
            "model.branch_centres needs two crops of the first kind, of at least 16 pixels",
        ),
        (["crops.0.count=1", "swav.assign_views=1"], 1, "got 1 of 32"),
        (["swav.queue_samples=100"], 1, "swav.queue_samples = 100 does not hold one batch of 256"),
        ([], 65, "65 ranks are more than 64 lanes"),
        (["model.bn_groups=12"], 6, "64 lanes cannot be dealt evenly to 6 ranks: those with 11 lanes"),
        ([], 2, "model.bn_groups = 1 is no multiple of 2 ranks"),
        (["model.bn_groups=32"], 1, "leaves 8 samples to a group of batch norm"),
        (["model.bn_groups=128"], 1, "model.bn_groups = 128 is more than the 64 lanes"),
        (["accumulate=2"], 1, "needs model.bn_groups to be a multiple of 2, got 1"),
        (
            ["batch=1024"],
            1,
            "learning_rate = 0.002 was chosen for batches of 256: for 1024 it would be 0.004",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_warned_of(settings: list[str], ranks: int, says: str) -> None:
    assert says in said("cifar10-onepass", *settings, ranks=ranks)


@pytest.mark.parametrize("backbone", [name for name, row in BACKBONES.items() if row.stride > SMALLEST_CROP])
def test_a_crop_smaller_than_the_stride_of_an_encoder_is_warned_of(backbone: str) -> None:
    stride = BACKBONES[backbone].stride
    config = build(
        recipes.load("smoke").values,
        [f"crops.0.size={stride}", f"crops.1.size={stride - 1}", f"model.backbone={backbone}"],
    )
    (found,) = warnings(config, base=config, machine=LARGE, ranks=1, memory=None, stream=None)
    assert f"crops.1.size = {stride - 1} is less than the stride of {backbone}, {stride} pixels" in found


def test_no_other_encoder_has_a_stride_that_a_crop_can_be_smaller_than() -> None:
    with pytest.raises(ConfigError, match="size must be >= 8"):
        build(recipes.load("smoke").values, [f"crops.1.size={SMALLEST_CROP - 1}"])


def test_the_rate_of_lars_goes_with_the_batch_and_one_that_was_set_is_believed() -> None:
    assert "for 512 it would be 1.2" in said("imagenet-200ep-256", "batch=512")
    assert "learning_rate" not in said("imagenet-200ep-256", "batch=512", "optim.learning_rate=1.2")


def test_more_memory_than_the_machine_has_is_warned_of_where_it_is_needed() -> None:
    small_device = Machine(host_bytes=2**40, device_bytes=(8 * 2**30,))
    assert "the device has 8.0 GiB" in said("imagenet-200ep-256", machine=small_device)
    small_host = Machine(host_bytes=8 * 2**30)
    assert "of the 8.0 GiB here" in said("imagenet-200ep-256", machine=small_host)
    assert said("cifar10-onepass", machine=small_host) == ""


def test_each_rank_of_a_machine_without_devices_takes_memory_of_its_own() -> None:
    whole = resolve("cifar10-onepass", machine=LARGE).memory
    assert whole is not None
    host = Machine(host_bytes=int(1.7 * (whole.device + whole.host)))
    assert said("cifar10-onepass", machine=host) == ""
    assert "GiB here" in said("rn50w4", machine=Machine(host_bytes=60 * 2**30), ranks=64)


@pytest.mark.parametrize(
    ("stream", "settings", "says"),
    [
        (Stream(records=200, shards=1, sealed=True), [], "200 records, fewer than one batch of 256"),
        (Stream(records=2_000, shards=9, sealed=True), [], "warmup_samples = 2,560, but the run has 1,792"),
        (Stream(records=2_000, shards=9, sealed=True), [], "freeze_samples = 2,560, but the run has 1,792"),
        (Stream(records=3_000, shards=9, sealed=True), [], "warmup_samples = 2,560 is most of the 2,816"),
        (Stream(records=3_000, shards=9, sealed=True), [], "window_samples = 8,192, but the run has 2,816"),
        (CIFAR, ["swav.queue_start_samples=50000"], "the queue never begins to fill"),
        (CIFAR, ["optim.schedule_samples=1000000"], "schedule_samples = 1,000,000, but the run has 49,920"),
        (CIFAR, ["window=2"], "a shuffle window holds 2 of 50 shards, 4.0 % of the records"),
        (Stream(records=9, shards=3, sealed=False), [], "a cosine does not know its end"),
        (Stream(records=9, shards=3, sealed=False), [], "the stream has 3 shards so far"),
        (Stream(records=9, shards=3, sealed=False), ["passes=2"], "the first of 2 passes ends only when"),
    ],
)
def test_a_stream_that_does_not_go_with_the_recipe_is_warned_of(
    stream: Stream, settings: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert says in said_of(stream, monkeypatch, "cifar10-onepass", *settings)


def test_the_stream_of_the_recipe_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said_of(CIFAR, monkeypatch, "cifar10-onepass") == ""


def test_steps_and_updates_are_those_of_the_stream_where_one_is_given(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", 331)
    mean = sum(len(encoded(5, number, 24)[0]) for number in range(331)) // 331
    shown = resolve("smoke", stream=stream)
    assert shown.stream == Stream(records=331, shards=6, sealed=True, image_bytes=mean)
    assert (shown.samples, shown.steps, shown.updates) == (320, 5, 5)
    shown = resolve("cifar10-onepass")
    assert (shown.samples, shown.steps, shown.updates) == (49_920, 195, 1_170)
    assert resolve("cifar10-onepass", ("end_samples=1000",)).samples == 1_024


def test_images_for_replay_in_checkpoints_are_told_by_their_size_in_the_stream(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", 331)
    settings = ("replay.updates=2", "replay.window_samples=128")
    assert "for replay" not in resolve("smoke", settings, stream=stream).to_toml()
    shown = resolve("smoke", (*settings, "replay.policy=prototypes"), stream=stream)
    mean = sum(len(encoded(5, number, 24)[0]) for number in range(331)) // 331
    assert shown.to_json()["memory_bytes"]["checkpoint_images"] == 128 * mean
    assert "each checkpoint holds 128 encoded images for replay, about 0 MiB; 3" in shown.to_toml()


def test_a_memory_for_replay_with_fewer_images_than_prototypes_is_told() -> None:
    settings = ("replay.updates=2", "replay.window_samples=128", "replay.policy=prototypes")
    few = "replay.window_samples = 128 is fewer than 300 prototypes"
    found = advice(build(recipes.load("smoke").values, (*settings, "swav.prototypes=300")))
    assert any(few in sentence for sentence in found)
    found = advice(build(recipes.load("smoke").values, (*settings, "swav.prototypes=100")))
    assert not any("replay" in sentence for sentence in found)


def test_the_command_prints_a_config_file_with_length_memory_and_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["recipes", "show", "cifar10-onepass", "--set", "swav.prototypes=300"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "# recipe cifar10-onepass: 49,920 samples, 195 steps, 1,170 updates\n"
        "# memory of one rank of 1, estimated: "
    )
    assert "# warning: batch + queue is 256, fewer than the 300 prototypes" in text
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    wanted = build(recipes.load("cifar10-onepass").values, ["swav.prototypes=300"])
    assert build(load_values(tmp_path / "mine.toml")) == wanted


def test_the_command_prints_all_of_it_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["recipes", "show", "imagenet-200ep-256", "--ranks", "4", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["ranks"], body["samples"], body["steps"]) == (4, 256_204_800, 1_000_800)
    assert body["memory_bytes"]["device"] > body["memory_bytes"]["activations"] > 10**9
    assert body["stream"] is None
