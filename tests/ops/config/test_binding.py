"""Configs: every way to give a setting, and what a wrong one is told."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import tomli_w

from learner.config import LearnerConfig
from ops.config import binding
from ops.config.checks import advice, enough_queue
from ops.config.load import build, load_values
from ops.config.schema import IDENTITY, RunConfig, is_identity
from ops.errors import EXIT_AGAIN, ConfigError


def told(values: dict[str, Any], *assignments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(values, assignments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_the_papers_layout_of_views() -> None:
    config = RunConfig()
    assert [(kind.count, kind.size) for kind in config.crops] == [(2, 224), (6, 96)]
    assert config.chunk * config.lanes == config.batch


def test_a_file_of_all_settings_reads_back_equal(tmp_path: Path) -> None:
    config = build({}, ["swav.prototypes=[30, 40]", "optim.learning_rate=1e-3", "device=cpu", "seed=9"])
    file = tmp_path / "all.toml"
    file.write_text(tomli_w.dumps(config.to_dict()), encoding="utf-8")
    assert build(load_values(file)) == config


def test_the_recipe_table_of_a_file_is_not_a_setting(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('seed = 3\n[recipe]\ntitle = "mine"\n', encoding="utf-8")
    assert build(load_values(file)).seed == 3


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        load_values(tmp_path / "nowhere.toml")


def test_a_file_that_is_not_toml_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("seed = \n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: .*line 1"):
        load_values(file)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("swav.epsilom", "swav.epsilon"),
        ("epsilon", "swav.epsilon"),
        ("learning_rate", "optim.learning_rate"),
        ("swav.learning_rate", "optim.learning_rate"),
        ("lane", "lanes"),
        ("optimizer", "optim.optimizer"),
        ("checkpoint.every_sample", "checkpoint.every_samples"),
        ("crops.0.scale_mn", "crops.0.scale_min"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, near: str) -> None:
    assert told({}, f"{key}=1") == f"unknown config key `{key}`: did you mean `{near}`?"


def test_an_unknown_key_like_no_other_lists_what_there_is() -> None:
    assert "known here are seed, device" in told({"zzzzzz": 1})


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed=x", "config key `seed` must be a whole number, got 'x'"),
        ("seed=1.5", "config key `seed` must be a whole number, got 1.5"),
        ("seed=true", "config key `seed` must be a whole number, got True"),
        ("optim.learning_rate=fast", "config key `optim.learning_rate` must be a number, got 'fast'"),
        ("device=3", "config key `device` must be a string, got 3"),
        ("swav.hard_codes=1", "config key `swav.hard_codes` must be true or false, got 1"),
        ("optim.betas=[0.9]", "config key `optim.betas` needs 2 values, got [0.9]"),
        ("swav=3", "config key `swav` is a table, got 3"),
        ("crops={count=2}", "config key `crops` is a list, got one table: write [[crops]]"),
        ("crops=[{count=2}]", "config key `crops.0.size` is missing"),
        ("seed", "--set needs the form a.b=value, got 'seed'"),
        ("=3", "--set needs the form a.b=value, got '=3'"),
        ("seed.a=3", "config key `seed` is a value, not a table: cannot set 'seed.a'"),
        ("crops.7.count=3", "config key `crops.7`: the list has elements 0 to 1"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_what_is_wanted(assignment: str, message: str) -> None:
    assert told({}, assignment) == message


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("seed=-1", "seed must be in"),
        ("precision=float16", "precision must be float32, bfloat16 or float64, got 'float16'"),
        ("device=gpu", "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("on_nonfinite=ignore", "on_nonfinite must be stop or skip, got 'ignore'"),
        ("workers=-1", "workers must be >= 0, got -1"),
        ("checkpoint.keep=0", "checkpoint.keep must be >= 1, got 0"),
        ("server.port=70000", "server.port must be in -1..65535, got 70000"),
        ("swav.epsilon=0.001", "swav.epsilon must be in [0.005, 1], got 0.001"),
        ("swav.assign_views=3", "the first kind of crops gives 2"),
        ("reader.prefetch=0", "reader.prefetch must be >= 1"),
        ("crops.1.scale_min=0.9", "scale_min <= scale_max"),
        ("crops=[]", "crops needs at least one kind of view"),
    ],
)
def test_a_value_out_of_bounds_says_the_bounds(assignment: str, part: str) -> None:
    assert part in told({}, assignment)


def test_a_batch_that_lanes_do_not_divide_lists_what_fits() -> None:
    message = told({}, "batch=100")
    assert "batch 100 is not a whole multiple of 64 lanes" in message
    assert "batch 64 or 128" in message
    assert "lanes 10, 20, 25, 50, 100" in message
    build({}, ["batch=100", "lanes=25"])
    build({}, ["batch=128"])


def test_settings_that_fit_only_together_may_be_given_in_any_order() -> None:
    values = {"batch": 100}
    assert build(values, ["lanes=50"]).chunk == 2


def test_set_reaches_into_lists_and_later_wins() -> None:
    config = build({}, ["crops.1.count=4", "swav.epsilon=0.05", "swav.epsilon=0.03", "swav.prototypes=64"])
    assert config.crops[1].count == 4
    assert config.swav.epsilon == 0.03
    assert config.swav.prototypes == (64,)


def test_whole_numbers_may_be_written_as_people_write_a_million() -> None:
    assert build({}, ["optim.warmup_samples=1e6"]).optim.warmup_samples == 1_000_000


def test_a_config_error_is_a_value_error_that_a_restart_meets_again() -> None:
    assert ConfigError.exit_code == EXIT_AGAIN
    assert issubclass(ConfigError, ValueError)


def test_the_digest_changes_with_any_setting_and_with_nothing_else() -> None:
    assert build({}, ["seed=1"]).digest() == build({"seed": 1}).digest()
    assert build({}, ["seed=1"]).digest() != RunConfig().digest()


def test_identity_settings_exist_and_tunable_ones_are_not_among_them() -> None:
    names = binding.dotted_names(RunConfig)
    assert set(IDENTITY) <= set(names)
    for name in ("optim.learning_rate", "optim.weight_decay", "swav.epsilon", "workers", "server.port"):
        assert name in names
        assert not is_identity(name, 1, 2)
    assert is_identity("precision", "float32", "float64")
    assert not is_identity("precision", "float32", "bfloat16")


def test_differences_name_each_setting_once() -> None:
    one, other = build({}).to_dict(), build({}, ["seed=2", "swav.epsilon=0.1", "crops.0.size=96"]).to_dict()
    found = binding.differences(one, other)
    assert list(found) == ["seed", "crops", "swav.epsilon"]
    assert found["swav.epsilon"] == (0.05, 0.1)


def test_advice_warns_of_fewer_samples_than_prototypes_and_not_otherwise() -> None:
    assert any("batch + queue is 256, fewer than the 3000 prototypes" in line for line in advice(build({})))
    assert advice(build({}, ["swav.queue_samples=3840"])) == []


@pytest.mark.parametrize(
    ("prototypes", "batch"), [(3000, 256), (16_000, 4096), (100, 64), (512, 512), (2, 4096)]
)
def test_the_queue_that_is_advised_holds_whole_batches_and_is_enough(prototypes: int, batch: int) -> None:
    queue = enough_queue(prototypes, batch)
    assert queue % batch == 0
    assert batch + queue >= prototypes
    assert queue == 0 or batch + queue - batch < prototypes
    binding = [f"swav.prototypes={prototypes}", f"batch={batch}", "lanes=64", "swav.queue_samples="]
    assert not any(
        "batch + queue" in line for line in advice(build({}, [*binding[:3], f"{binding[3]}{queue}"]))
    )


def test_a_queue_whose_last_batch_does_not_fit_is_not_counted_whole() -> None:
    (line,) = advice(build({}, ["batch=256", "swav.prototypes=3000", "swav.queue_samples=2744"]))
    assert "batch + queue is 2816" in line
    assert "raise swav.queue_samples to 2816" in line


def test_a_sharp_epsilon_with_few_iterations_is_warned_of() -> None:
    few = ["swav.prototypes=100", "swav.epsilon=0.01"]
    assert any("raise swav.sinkhorn_iterations to 10" in line for line in advice(build({}, few)))
    assert advice(build({}, [*few, "swav.sinkhorn_iterations=10"])) == []


def test_a_prototype_that_is_given_up_too_soon_is_warned_of() -> None:
    binding = ["swav.prototypes=100", "reseed.after_samples=500"]
    assert any("set it to 1000" in line for line in advice(build({}, binding)))
    assert advice(build({}, [*binding, "reseed.after_samples=1000"])) == []


def test_the_length_of_a_run_is_that_of_its_stream_or_its_own() -> None:
    assert [build({}).length(samples) for samples in (None, 500)] == [None, 500]
    bounded = build({}, ["end_samples=300"])
    assert [bounded.length(samples) for samples in (None, 500, 200)] == [300, 300, 200]


def test_the_learner_sees_its_own_sections() -> None:
    config = build({}, ["swav.epsilon=0.5", "model.projection_dim=16", "reseed.share=0.5"])
    assert config.learner.reseed.share == 0.5
    assert isinstance(config.learner, LearnerConfig)
    assert config.learner.swav.epsilon == 0.5
    assert config.learner.model.projection_dim == 16


def test_every_setting_has_a_kind_that_toml_can_hold() -> None:
    def walk(kind: type[Any]) -> None:
        hints = get_type_hints(kind)
        for field in fields(kind):
            hint = hints[field.name]
            if is_dataclass(hint) and isinstance(hint, type):
                walk(hint)
            elif getattr(hint, "__origin__", hint) is not tuple:
                assert hint in {int, float, bool, str}, field.name

    walk(RunConfig)
