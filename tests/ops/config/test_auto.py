"""What `--recipe auto` chooses, from facts about images, machine and speed alone."""

from typing import Any

import pytest

from ops.config.auto import BRANCH_COST, NETS, Choice, Host, Images, Net, beforehand, choose
from ops.config.checks import advice, refusals
from ops.config.run_length import run_samples
from ops.errors import ConfigError, NoImagesYet
from stream.config import ReaderConfig

MS = (3.2, 7.5, 12.5, 19.0, 19.9, 43.9, 67.0, 70.0, 150.0, 249.0, 341.0, 900.0, 1500.0)
"""Of an update for each image, by net: as measured on one core of an AMD EPYC, the last two drawn on."""
SLOW: dict[Net, float] = dict(zip(NETS, (ms / 1000 for ms in MS), strict=True))
QUICK = {net: seconds / 500 for net, seconds in SLOW.items()}
CPU = Host(cores=2, memory_bytes=16 << 30, bfloat16=False)
GPU = Host(cores=16, memory_bytes=128 << 30, bfloat16=True, gpu_bytes=(80 << 30,), name="GPU")
GPUS = Host(cores=64, memory_bytes=512 << 30, bfloat16=True, gpu_bytes=(80 << 30,) * 8, name="GPU")


def of(records: int, side: int, **more: Any) -> Images:
    facts: dict[str, Any] = {
        "records": records,
        "sealed": True,
        "short_side_px": side,
        "sampled": 24,
        "decode_s": 0.002,
    }
    return Images(**(facts | more))


def chosen(images: Images, host: Host = CPU, **more: Any) -> Choice:
    cost = QUICK if host.gpu_bytes else SLOW
    facts: dict[str, Any] = {"cost": cost.get, "ranks": max(1, len(host.gpu_bytes))}
    return choose(images, host, **(facts | more))


# images, machine -> net, sizes of views, batch, lanes, K, passes, updates, schedule, precision, centres
TABLE = [
    (of(100, 384), CPU, ("resnet8-w64", 64, 32, 32, 16, 8, 100, 1, "cosine", "float32", 160)),
    (of(588, 384), CPU, ("resnet14-w32", 64, 32, 64, 16, 32, 59, 1, "cosine", "float32", 400)),
    (of(3_588, 84), CPU, ("resnet8-w32", 48, 24, 256, 64, 256, 30, 1, "cosine", "float32", 400)),
    (of(50_000, 32), CPU, ("resnet8-w32", 32, 16, 256, 64, 256, 1, 3, "cosine", "float32", 400)),
    (of(10**6, 384), CPU, ("resnet8-w16", 32, 16, 256, 64, 256, 1, 1, "cosine", "float32", 400)),
    (of(588, 24), CPU, ("resnet8-w64", 32, 16, 64, 16, 32, 100, 1, "cosine", "float32", 400)),
    (
        of(5_000, 384, sealed=False),
        CPU,
        ("resnet8-w32", 48, 24, 256, 64, 256, 1, 4, "constant", "float32", 400),
    ),
    (of(3_588, 384), GPU, ("resnet50", 224, 96, 256, 64, 256, 100, 1, "cosine", "bfloat16", 400)),
    (of(10**6, 384), GPU, ("resnet50", 160, 96, 256, 64, 256, 1, 1, "cosine", "bfloat16", 0)),
    (of(10**6, 384), GPUS, ("resnet50", 224, 96, 2048, 64, 1024, 1, 4, "cosine", "bfloat16", 0)),
    (
        of(10**6, 384, sealed=False),
        GPUS,
        ("resnet50", 224, 96, 2048, 64, 1024, 1, 1, "constant", "bfloat16", 0),
    ),
]


@pytest.mark.parametrize(("images", "host", "expected"), TABLE)
def test_choices_by_images_and_machine(images: Images, host: Host, expected: tuple[object, ...]) -> None:
    config = chosen(images, host).config
    found = (
        config.model.backbone,
        *(kind.size for kind in config.crops),
        config.batch,
        config.lanes,
        config.swav.prototypes[0],
        config.passes,
        config.replay.updates,
        config.optim.schedule,
        config.precision,
        config.model.branch_centres,
    )
    assert found == expected


@pytest.mark.parametrize(("images", "host", "expected"), TABLE)
def test_a_choice_is_neither_refused_nor_warned_about(
    images: Images, host: Host, expected: tuple[object, ...]
) -> None:
    config = chosen(images, host).config
    assert list(refusals(config, max(1, len(host.gpu_bytes)))) == []
    assert advice(config) == []


@pytest.mark.parametrize(
    ("images", "host", "every"),
    [
        (of(50_000, 32), CPU, 49_920 // 8),
        (of(10**6, 384), CPU, 10_240),
        (of(10**6, 384), GPUS, 40 * 2_048),
        (of(10**5, 384), GPUS, 98_304 // 8),
        (of(10**6, 384, sealed=False), GPUS, 40 * 2_048),
        (of(100, 384, sealed=False), CPU, 10_240),
    ],
)
def test_forty_batches_or_an_eighth_of_the_run_lie_between_checkpoints(
    images: Images, host: Host, every: int
) -> None:
    config = chosen(images, host).config
    assert (config.checkpoint.every_samples, config.snapshot.every_samples) == (every, every)


def test_hundreds_of_updates_fit_into_the_time_that_was_given() -> None:
    for minutes in (10.0, 30.0, 120.0):
        choice = chosen(of(3_588, 384), budget_minutes=minutes)
        config = choice.config
        net = next(
            net
            for net in NETS
            if (net.backbone, net.large_px) == (config.model.backbone, config.crops[0].size)
        )
        updates = run_samples(config, 3_588) // config.batch * config.replay.updates
        assert 350 <= updates <= 1_400
        assert 0.7 <= updates * config.batch * (BRANCH_COST * SLOW[net] + 0.002) / 60 / minutes <= 1.0


def test_more_time_gives_a_larger_net() -> None:
    order = [net.backbone + str(net.large_px) for net in NETS]
    configs = [chosen(of(3_588, 384), budget_minutes=minutes).config for minutes in (5, 30, 120, 600)]
    places = [order.index(config.model.backbone + str(config.crops[0].size)) for config in configs]
    assert places == sorted(set(places))


def test_nets_are_measured_only_until_one_is_too_dear() -> None:
    asked: list[Net] = []

    def cost(net: Net) -> float:
        asked.append(net)
        return SLOW[net]

    chosen(of(3_588, 384), cost=cost)
    assert asked == list(NETS[:4])


def test_without_a_measurement_the_cheapest_net_is_taken_and_that_is_said() -> None:
    choice = chosen(of(3_588, 384), cost=lambda _net: None)
    assert choice.config.model.backbone == NETS[0].backbone
    assert "its speed is not known" in "\n".join(choice.lines())


def test_a_net_that_does_not_fit_into_memory_gives_way_to_a_cheaper_one() -> None:
    choice = chosen(of(3_588, 384), GPU, fits=lambda config: config.model.backbone != "resnet50")
    assert choice.config.model.backbone == "resnet18"
    why = {reason.setting: reason.why for reason in choice.reasons}
    assert "resnet50 with views of 160 pixels is quick enough, but does not fit" in why["model.backbone"]
    assert why["crops"].endswith("the time and memory allow it")
    roomy = {reason.setting: reason.why for reason in chosen(of(3_588, 384), GPU).reasons}
    assert "memory" not in roomy["model.backbone"] + roomy["crops"]


def test_a_topic_has_a_lane_for_each_partition_and_grows() -> None:
    config = chosen(of(700, 384, sealed=False, shards=0, partitions=6)).config
    assert (config.lanes, config.batch, config.replay.updates) == (6, 258, 1)
    assert config.optim.schedule == "constant"


def test_more_ranks_than_lanes_get_more_lanes() -> None:
    assert chosen(of(588, 384), ranks=24).config.lanes == 32


def test_what_is_given_wins_and_what_follows_from_it_follows() -> None:
    given = ("batch=48", "model.backbone=resnet8-w16", "optim.learning_rate=3e-3", "crops.1.count=6")
    choice = chosen(of(588, 384), given=given)
    config = choice.config
    assert (config.batch, config.lanes, config.swav.prototypes) == (48, 16, (32,))
    assert (config.model.backbone, config.optim.learning_rate, config.crops[1].count) == (
        "resnet8-w16",
        3e-3,
        6,
    )
    reasons = {reason.setting: reason for reason in choice.reasons}
    assert str(reasons["batch"]) == "batch = 48: as given"
    assert reasons["model.backbone"].why == "as given"
    assert reasons["crops"].value == f"2 x {config.crops[0].size} + 6 x {config.crops[1].size} pixels"
    assert reasons["lanes"].why != "as given"


def test_passes_that_are_given_leave_the_rest_of_the_time_to_replay() -> None:
    config = chosen(of(588, 384), given=("passes=1",)).config
    assert (config.passes, config.replay.updates, config.replay.window_samples) == (1, 16, 576)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_batch_of_more_images_than_are_replayed_is_replayed_whole(sealed: bool) -> None:
    config = chosen(of(10**5, 32, sealed=sealed), given=("batch=16384", "replay.updates=2")).config
    assert (config.batch, config.replay.window_samples) == (16_384, 16_384)


def test_every_line_names_a_choice_its_value_and_why() -> None:
    choice = chosen(of(3_588, 84))
    lines = choice.lines()
    assert lines[0] == "images: 3,588 images in 1 shards, sealed; short side 84 pixels (median of 24)"
    assert "swav.prototypes = [256]: no more than a batch has images, and 12 images or more for each" in lines
    assert all("\n" not in line for line in lines)
    body = choice.to_json()
    assert {"setting", "value", "why"} == set(body["chosen"][0])
    assert body["images"]["records"] == 3_588
    assert body["machine"]["gpu_bytes"] == []


def test_a_pass_that_takes_longer_than_the_time_given_is_said_and_not_cut() -> None:
    choice = chosen(of(10**6, 384))
    assert run_samples(choice.config, 10**6) == 10**6 // 256 * 256
    assert "more than the 30 asked for: --set end_samples=N ends earlier" in "\n".join(choice.lines())


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        (of(0, 0, sampled=0), {}, "sealed with 0 images, and auto needs at least 64"),
        (of(9, 0, sampled=0), {}, "none of the first records can be decoded"),
        (of(63, 384), {}, "sealed with 63 images, and auto needs at least 64 for batches: bring more images"),
        (of(100, 384), {"given": ("batch=96",)}, "batches of 96 over 16 lanes, which need 112: bring"),
        (of(588, 384), {"given": ("batch=none",)}, "`batch` must be a whole number >= 1, got 'none'"),
        (of(588, 384), {"given": ("swav.prototype=3",)}, "did you mean `swav.prototypes`"),
        (of(588, 384), {"budget_minutes": 0.0}, "the budget must be > 0 minutes, got 0.0"),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_what_to_do(
    images: Images, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("`", ".").replace("(", r"\(")):
        chosen(images, **more)


def test_an_open_stream_without_images_is_an_error_that_a_restart_may_not_meet() -> None:
    message = r"nothing to choose from yet; bring some with .swavstream ingest., give .learn. --wait"
    with pytest.raises(NoImagesYet, match=message) as refused:
        chosen(of(0, 0, sampled=0, sealed=False))
    assert refused.value.exit_code == 1


def test_what_the_look_at_a_stream_needs_is_taken_from_what_is_given() -> None:
    read = ("reader.max_pixels=99", "reader.thumbnail_px=8")
    config = beforehand(("batch=48", "device=cpu", "kafka.patience_s=3", "precision=float64", *read))
    assert (config.device, config.kafka.patience_s, config.precision, config.batch) == (
        "cpu",
        3.0,
        "float64",
        256,
    )
    assert config.reader == ReaderConfig(max_pixels=99)
