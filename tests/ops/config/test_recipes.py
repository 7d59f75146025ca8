"""Recipes: each loads, and the published ones have the published numbers."""

from pathlib import Path

import pytest
import tomli_w

from ingest.config import IngestConfig
from ops.config import binding, recipes
from ops.config.checks import Machine, advice
from ops.config.load import build, load_values
from ops.config.recipe_report import resolve
from ops.config.run_length import run_samples
from ops.errors import ConfigError

EPOCH_4096 = 312 * 4096
EPOCH_256 = 5004 * 256
# name: batch, epochs, views, peak and final learning rate, warm-up and frozen prototypes and queue start in
# samples, queue. From the paper's appendix and the settings of the published runs.
PUBLISHED = {
    "imagenet-800ep-4096": (4096, 800, "2x224+6x96", 4.8, 0.0048, 10 * EPOCH_4096, 313 * 4096, 0, 0),
    "imagenet-100ep-4096": (4096, 100, "2x224+6x96", 4.8, 0.0048, 10 * EPOCH_4096, 313 * 4096, 0, 0),
    "imagenet-200ep-4096": (4096, 200, "2x224+6x96", 4.8, 0.0048, 10 * EPOCH_4096, 313 * 4096, 0, 0),
    "imagenet-400ep-4096": (4096, 400, "2x224+6x96", 4.8, 0.0048, 10 * EPOCH_4096, 313 * 4096, 0, 0),
    "2x224": (4096, 400, "2x224", 4.8, 0.0048, 10 * EPOCH_4096, 313 * 4096, 0, 0),
    "imagenet-400ep-256": (256, 400, "2x224+6x96", 0.6, 0.0006, 0, 5005 * 256, 15 * EPOCH_256, 3840),
    "imagenet-200ep-256": (256, 200, "2x224+6x96", 0.6, 0.0006, 0, 5005 * 256, 15 * EPOCH_256, 3840),
    "2x160-4x96": (4096, 400, "2x160+4x96", 4.8, 0.0048, 10 * EPOCH_4096, 313 * 4096, 0, 0),
    "rn50w2": (4096, 400, "2x224+4x96", 4.8, 0.0048, 10 * EPOCH_4096, 313 * 4096, 0, 0),
    "rn50w4": (2560, 400, "2x224+4x96", 4.8, 0.0048, 10 * 500 * 2560, 313 * 2560, 0, 2560),
    "rn50w5": (1536, 400, "2x224+4x96", 4.8, 0.0048, 10 * 834 * 1536, 313 * 1536, 0, 1536),
}
TOP1 = {
    "imagenet-800ep-4096": "75.3",
    "imagenet-100ep-4096": "72.1",
    "imagenet-200ep-4096": "73.9",
    "imagenet-400ep-4096": "74.6",
    "2x224": "70.1",
    "imagenet-400ep-256": "74.3",
    "imagenet-200ep-256": "72.7",
    "2x160-4x96": "73.9",
    "rn50w2": "77.3",
    "rn50w4": "77.9",
    "rn50w5": "78.5",
    "uncurated-1b": "74.03",
    "uncurated-continuous": "75.96",
}


PHOTOS = ("photos-1gpu", "photos-8gpu", "photos-cpu")
OURS = ("cifar10-onepass", "cifar100-onepass", "mini84-onepass", "smoke", *PHOTOS)


def test_every_promised_recipe_is_there() -> None:
    assert {*PUBLISHED, *TOP1, *OURS} <= set(recipes.names())


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_loads_and_says_what_it_is(name: str) -> None:
    recipe = recipes.load(name)
    assert recipe.about.title
    assert recipe.about.source
    assert recipe.config.lanes in {16, 64, 256}


@pytest.mark.parametrize("name", recipes.names())
def test_what_a_recipe_shows_is_a_config_file_that_gives_the_same_settings(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    file = tmp_path / "shown.toml"
    shown = {**recipe.config.to_dict(), "recipe": binding.plain(recipe.about)}
    file.write_text(tomli_w.dumps(shown), encoding="utf-8")
    assert build(load_values(file)) == recipe.config


def test_a_shown_recipe_with_changes_reads_back_equal(tmp_path: Path) -> None:
    changes = (
        "swav.prototypes=[30, 40]",
        "optim.learning_rate=1e-7",
        'kafka.username="a\\"b\\\\ \\u00e9\\u007f"',
    )
    shown = resolve("demo", changes)
    file = tmp_path / "shown.toml"
    file.write_text(shown.to_toml(), encoding="utf-8")
    assert build(load_values(file)) == shown.config


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_those_published(name: str) -> None:
    config = recipes.load(name).config
    swav, optim = config.swav, config.optim
    found = (
        config.batch,
        config.passes,
        "+".join(f"{kind.count}x{kind.size}" for kind in config.crops),
        optim.learning_rate,
        optim.final_learning_rate,
        optim.warmup_samples,
        swav.freeze_samples,
        swav.queue_start_samples,
        swav.queue_samples,
    )
    assert found == PUBLISHED[name]
    assert (swav.prototypes, swav.temperature, swav.epsilon, swav.sinkhorn_iterations) == (
        (3000,),
        0.1,
        0.05,
        3,
    )
    assert (optim.optimizer, optim.momentum, optim.weight_decay, optim.schedule) == (
        "lars",
        0.9,
        1e-6,
        "cosine",
    )
    assert optim.trust_coefficient == 0.001
    assert optim.warmup_start == (0.3 if optim.warmup_samples else 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_schedule_ends_with_the_run(name: str) -> None:
    recipe = recipes.load(name)
    assert recipe.config.optim.schedule_samples == run_samples(recipe.config, recipe.about.images)


@pytest.mark.parametrize("name", ["cifar100-onepass", "mini84-onepass", *PHOTOS])
def test_a_recipe_that_was_not_measured_says_so_and_claims_no_result(name: str) -> None:
    about = recipes.load(name).about
    assert about.notes.strip().startswith("Not measured.")
    assert about.published == ""


@pytest.mark.parametrize(("name", "ranks"), [("photos-1gpu", 1), ("photos-8gpu", 8)])
def test_photographs_on_gpus_fit_their_devices_and_say_that_they_have_not_run(name: str, ranks: int) -> None:
    gpus = Machine(host_bytes=512 << 30, device_bytes=(80 << 30,) * ranks)
    assert resolve(name, machine=gpus).warnings == ()
    assert "has not run on a GPU" in recipes.load(name).about.notes


def test_photographs_on_a_cpu_have_a_resnet18_and_a_patch_branch() -> None:
    config = recipes.load("photos-cpu").config
    assert config.model.backbone == "resnet18"
    assert config.model.branch_centres > 0
    assert 96 <= config.crops[0].size <= 160


def test_cifar100_has_what_was_measured_on_cifar10_and_no_queue() -> None:
    """One batch of 256 in a queue for 512 prototypes narrowed the features from its first use on."""
    config = recipes.load("cifar100-onepass").config
    assert config == recipes.load("cifar10-onepass").config
    assert config.swav.queue_samples == 0
    assert config.batch >= max(config.swav.prototypes)


def test_frozen_prototypes_and_their_number_are_one_line_each() -> None:
    changed = build(recipes.load("smoke").values, ["swav.prototypes=77", "swav.freeze_samples=1e12"])
    assert changed.swav.prototypes == (77,)
    assert changed.swav.freeze_samples == 10**12


@pytest.mark.parametrize("name", TOP1)
def test_the_published_result_stands_in_the_recipe(name: str) -> None:
    assert recipes.load(name).about.published.startswith(TOP1[name] + " % linear top-1")


def test_views_without_small_ones_begin_at_8_percent_of_the_image() -> None:
    (kind,) = recipes.load("2x224").config.crops
    assert (kind.scale_min, kind.scale_max) == (0.08, 1.0)


UNCURATED = ("uncurated-1b", "uncurated-1b-rn50", "uncurated-continuous")


@pytest.mark.parametrize("name", UNCURATED)
def test_one_pass_freezes_prototypes_as_its_source_does(name: str) -> None:
    assert recipes.load(name).config.swav.freeze_samples == 313 * 4096


@pytest.mark.parametrize("name", [*PUBLISHED, *UNCURATED])
def test_a_published_recipe_says_that_images_are_to_be_stored_whole(name: str) -> None:
    assert "ingest --set short_side=0" in recipes.load(name).about.notes
    assert IngestConfig().short_side == 384


@pytest.mark.parametrize("name", ["uncurated-1b", "uncurated-1b-rn50"])
def test_one_pass_over_a_billion_is_as_long_as_published(name: str) -> None:
    recipe = recipes.load(name)
    assert recipe.config.passes == 1
    assert run_samples(recipe.config, recipe.about.images) == 244_140 * 4096
    assert recipe.config.optim.warmup_samples == 3125 * 4096
    assert recipe.config.optim.learning_rate == 0.3 * 4096 / 256


def test_the_endless_recipe_needs_no_end() -> None:
    recipe = recipes.load("uncurated-continuous")
    assert recipe.config.optim.schedule == "constant"
    assert recipe.config.optim.warmup_samples == 8000 * 4096
    assert recipe.config.swav.prototypes == (16_000,)
    assert (recipe.config.swav.epsilon, recipe.config.swav.sinkhorn_iterations) == (0.03, 10)
    assert recipe.config.batch // recipe.config.model.bn_groups == 64 * 32
    assert run_samples(recipe.config, recipe.about.images) == 0


@pytest.mark.parametrize("name", [name for name in recipes.names() if name != "uncurated-continuous"])
def test_no_recipe_but_the_one_of_16000_prototypes_is_warned_about(name: str) -> None:
    assert advice(recipes.load(name).config) == []


def test_a_misspelt_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no recipe `smoek`: did you mean `smoke`"):
        recipes.load("smoek")


def test_a_recipe_like_no_other_lists_all() -> None:
    with pytest.raises(ConfigError, match=r"there are .*smoke.*uncurated-1b"):
        recipes.load("zzzz")
