"""What the doctor says of constructed facts, and of runs that are not live."""

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ops.cli.main import cli
from ops.config.binding import dotted_names
from ops.config.schema import RunConfig
from ops.doctor.diagnosis import CAUSES, depth, examine
from ops.doctor.facts import gather
from ops.errors import RunNotFound
from ops.monitoring.facts import Facts
from ops.monitoring.rules import RULES
from ops.rundir.files import append_line
from ops.rundir.summary import RunSummary
from tests.ops.faults import write as write_stream
from tests.ops.small_runs import config_of, run

CONFIG = config_of("snapshot.every_samples=640").to_dict()
WELL: dict[str, Any] = {
    "config": CONFIG, "samples": 10_000, "updates": 400, "loss_over_ln_k": 0.7, "code_entropy_over_ln_k": 0.4,
    "feature_std_ratio": 0.8, "usage_perplexity_ratio": 0.9, "usage_window_fill": 1.0,
    "dead_prototypes_ratio": 0.02, "prototype_twins_ratio": 0.0, "sinkhorn_residual": 0.2, "drift_psi": 0.01,
    "novelty_ratio": 0.01, "stream_autocorrelation": 0.02, "batch_similarity": 0.01, "lag": 10,
    "since_step_s": 0.2, "used": 10_000, "skipped": {"truncated": 20}, "snapshot_samples": 9_600,
}  # fmt: skip


SICK = Facts(
    status="left", live=True, config=CONFIG, samples=10_000, updates=400, loss_over_ln_k=1.5,
    feature_std_ratio=0.5, usage_perplexity_ratio=0.01, usage_window_fill=1.0, dead_prototypes_ratio=0.9,
    prototype_twins_ratio=0.9, sinkhorn_residual=1.5, drift_psi=1.0, batch_similarity=0.9, lag=5000,
    since_step_s=500.0, reader_restarts=9, used=10, skipped={"truncated": 10}, not_finite=1, stale_epochs=1,
    unhealthy="twins", redis_error="away", redis_warnings=("x",), checkpoint_errors=1, same_images_ratio=0.9,
)  # fmt: skip
"""Nearly everything at once."""


def found(**change: Any) -> list[str]:
    return [finding.name for finding in examine(Facts(**{**WELL, **change}))]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"same_images_ratio": 0.8}, "same-images"),
        ({"status": "left", "live": False}, "left"),
        ({"stale_epochs": 2}, "two-learners"),
        ({"since_step_s": 500.0}, "stalled"),
        ({"loss_over_ln_k": 1.6}, "learning-rate"),
        ({"not_finite": 3}, "not-finite"),
        ({"feature_std_ratio": 0.01, "loss_over_ln_k": 1.0}, "collapse"),
        ({"loss_over_ln_k": 0.999}, "not-learning"),
        (
            {
                "status": "finished",
                "live": False,
                "learned_beyond_start": False,
                "views_found": 0.41,
                "start_views_found": 0.4,
            },
            "no-better-than-start",
        ),
        ({"usage_perplexity_ratio": 0.02}, "usage"),
        ({"dead_prototypes_ratio": 0.4}, "dead-prototypes"),
        ({"prototype_twins_ratio": 0.3}, "twins"),
        ({"sinkhorn_residual": 1.1}, "codes"),
        ({"batch_similarity": 0.3}, "sorted"),
        ({"stream_autocorrelation": 0.5}, "sorted"),
        ({"drift_psi": 0.6}, "drift"),
        ({"skipped": {"truncated": 4000, "non_finite": 64}}, "bad-records"),
        ({"waiting": True, "lag": 500}, "starved"),
        ({"reader_restarts": 5}, "readers"),
        ({"checkpoint_errors": 1}, "checkpoints"),
        ({"redis_error": "Redis does not answer"}, "redis"),
        ({"last_publish": "error", "publish_errors": 4}, "redis"),
        ({"snapshot_samples": 640}, "snapshots-late"),
        ({"redis_warnings": ("maxmemory-policy is allkeys-lru",)}, "redis-settings"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_is_found_alone(change: Mapping[str, Any], name: str) -> None:
    assert found(**change) == [name]


def test_nothing_is_found_where_all_is_well_or_nothing_is_known() -> None:
    assert found() == []
    assert examine(Facts()) == []


def test_a_finished_run_is_judged_however_short_it_was() -> None:
    short = {"status": "finished", "live": False, "updates": 9, "samples": 576, "since_step_s": None}
    assert found(**short, loss_over_ln_k=1.01, start_loss_over_ln_k=1.15) == ["not-learning"]
    assert found(**short, loss_over_ln_k=1.3, start_loss_over_ln_k=1.31) == ["not-learning"]
    assert found(**{**short, "status": "stopped"}, loss_over_ln_k=1.01) == []
    # Worse than at its start, although below ln K.
    assert found(**short, loss_over_ln_k=0.9, start_loss_over_ln_k=0.8) == ["not-learning"]
    assert found(**short, loss_over_ln_k=0.81, start_loss_over_ln_k=0.8) == []
    rose = {"start_view_agreement": 0.1, "view_agreement": 0.3}
    assert found(**short, loss_over_ln_k=0.9, start_loss_over_ln_k=0.8, **rose) == []


def test_a_loss_that_never_moved_is_not_blamed_on_a_high_rate() -> None:
    assert found(loss_over_ln_k=1.16, start_loss_over_ln_k=1.17) == ["not-learning"]
    assert found(loss_over_ln_k=1.4, start_loss_over_ln_k=1.17) == ["learning-rate"]


def advice(*settings: str, **change: Any) -> tuple[str, str]:
    """Setting and advice of the only finding that is no consequence."""
    config = config_of(*settings).to_dict()
    facts = Facts(**{**WELL, "config": config, "loss_over_ln_k": 0.99, **change})
    first = examine(facts)[0]
    return first.setting, first.advice


def test_what_is_advised_of_a_loss_at_ln_k_is_not_set_already() -> None:
    assert advice("swav.epsilon=0.05") == ("swav.epsilon", "Lower it from 0.05 to 0.03.")
    setting, told = advice("swav.epsilon=0.03")
    assert setting == "optim.learning_rate"
    assert "Lower it three times to 0.00067" in told
    assert advice("swav.epsilon=0.02", "optim.learning_rate=1e-7")[1].startswith(
        "Raise it ten times to 1e-06"
    )


def test_batch_and_queue_below_the_prototypes_come_first() -> None:
    setting, told = advice("batch=8", "swav.prototypes=3000", "swav.queue_samples=0", samples=800)
    assert setting == "swav.prototypes"
    assert "hold 8 samples for 3,000 prototypes" in told
    assert "In a new run take 8 or fewer" in told
    setting, told = advice("batch=32", "swav.prototypes=300", "swav.queue_samples=64", samples=100_000)
    assert setting == "swav.queue_samples"
    assert "In a new run set it to 288 or more" in told
    config_of("batch=32", "swav.prototypes=300", "swav.queue_samples=288")  # what is advised is not refused


def test_a_warm_up_that_is_not_over_explains_a_loss_at_ln_k() -> None:
    long = ("optim.warmup_samples=100000",)
    assert advice(*long, samples=10_000) == (
        "", "Wait: the warm-up of the learning rate lasts until 100,000 samples."
    )  # fmt: skip
    setting, told = advice(*long, samples=10_000, status="finished", live=False)
    assert setting == "optim.warmup_samples"
    assert "in a new run make it 1,000 or less" in told


def test_a_run_of_few_updates_is_told_to_make_more_of_them() -> None:
    short = {"status": "finished", "live": False, "updates": 9}
    setting, told = advice(**short)
    assert setting == "replay.updates"
    assert "replay.updates above 1" in told
    # Neither more of what there is much of, nor what the configuration refuses.
    many = ("replay.updates=16", "replay.window_samples=320")
    assert advice(*many, **short)[0] == ""
    assert advice("mode=available", **short)[0] == ""


@pytest.mark.parametrize(
    ("settings", "change", "setting", "without"),
    [
        (("on_nonfinite=skip",), {"not_finite": 3}, "optim.learning_rate", "set it to skip"),
        (("swav.sinkhorn_iterations=10",), {"sinkhorn_residual": 1.1}, "swav.epsilon", "sinkhorn_iterations"),
        (
            ("swav.sinkhorn_iterations=10", "swav.epsilon=0.5"), {"sinkhorn_residual": 1.1},
            "optim.learning_rate", "epsilon",
        ),
        (("swav.epsilon=0.03",), {"prototype_twins_ratio": 0.3}, "swav.freeze_samples", "epsilon"),
        (("swav.prior=powerlaw",), {"usage_perplexity_ratio": 0.02}, "", "powerlaw"),
        (("swav.epsilon=0.2",), {"dead_prototypes_ratio": 0.4}, "reseed.after_samples", "epsilon"),
        (("reseed.after_samples=5000",), {"dead_prototypes_ratio": 0.4}, "swav.epsilon", "reseed"),
        (("workers=1", "reader.prefetch=2"), {"reader_restarts": 5}, "reader.prefetch", "fewer workers"),
        (("workers=1", "reader.prefetch=1"), {"reader_restarts": 5}, "reader.max_pixels", "prefetch"),
        (("window=1",), {"waiting": True, "lag": 500}, "", "smaller"),
        (("checkpoint.keep=1",), {"checkpoint_errors": 1}, "", "fewer"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_no_advice_names_what_is_set_already_or_would_be_refused(
    settings: tuple[str, ...], change: dict[str, Any], setting: str, without: str
) -> None:
    found_setting, told = advice(*settings, loss_over_ln_k=0.7, **change)
    assert found_setting == setting
    assert without not in told


def test_a_stream_of_one_picture_is_found_in_the_images_that_arrived(tmp_path: Path) -> None:
    for name, pictures in (("same", 1), ("different", 64)):
        folder = tmp_path / name / "stream"
        numbers = [number % pictures for number in range(256)]
        write_stream(folder, numbers)
        run_dir = tmp_path / name / "run"
        run(str(folder), run_dir, config_of("swav.queue_samples=0", "window=1"))
        facts = gather(run_dir)
        assert facts.same_images_ratio is not None
        names = [finding.name for finding in examine(facts)]
        assert (names[0] == "same-images") == (name == "same")
        assert (facts.same_images_ratio == 1.0) == (name == "same")
        assert facts.start_loss_over_ln_k is not None
        assert facts.view_agreement is not None


def test_what_is_no_fault_yet_is_not_told() -> None:
    assert found(loss_over_ln_k=1.0, updates=20) == []
    assert found(dead_prototypes_ratio=0.6, usage_perplexity_ratio=0.05, usage_window_fill=0.2) == []
    assert found(since_step_s=5000.0, waiting=True) == []
    assert found(since_step_s=5000.0, lag=0) == []
    assert found(skipped={"non_finite": 5000}) == []


def test_a_rate_that_was_raised_or_is_wild_explains_a_collapse() -> None:
    raised = {"setting": "optim.learning_rate", "old": 0.001, "new": 0.01, "samples": 640}
    assert found(feature_std_ratio=0.01, changes=(raised,)) == ["learning-rate", "collapse"]
    wild = config_of("optim.learning_rate=10").to_dict()
    assert found(not_finite=1, config=wild) == ["learning-rate", "not-finite"]
    assert found(config=wild) == []
    assert found(prototype_twins_ratio=0.3, config=wild) == ["learning-rate", "twins"]
    assert found(sinkhorn_residual=1.1, config=wild) == ["learning-rate", "codes"]


@pytest.mark.parametrize(
    ("change", "chain"),
    [
        (
            {"skipped": {"truncated": 4000}, "waiting": True, "lag": 500},
            {"bad-records": "", "starved": "bad-records"},
        ),
        (
            {"redis_error": "Redis does not answer", "snapshot_samples": 640},
            {"redis": "", "snapshots-late": "redis"},
        ),
        (
            {"stale_epochs": 2, "snapshot_samples": 640},
            {"two-learners": "", "snapshots-late": "two-learners"},
        ),
        (
            {"feature_std_ratio": 0.01, "dead_prototypes_ratio": 0.9, "unhealthy": "feature_std_ratio"},
            {"collapse": "", "dead-prototypes": "collapse", "snapshots-unhealthy": "collapse"},
        ),
        (
            {"loss_over_ln_k": 1.6, "not_finite": 3, "sinkhorn_residual": 1.1},
            {"learning-rate": "", "not-finite": "learning-rate", "codes": "learning-rate"},
        ),
        (
            {"batch_similarity": 0.3, "drift_psi": 0.6, "dead_prototypes_ratio": 0.4, "reader_restarts": 5},
            {"sorted": "", "drift": "sorted", "dead-prototypes": "sorted", "readers": ""},
        ),
        (
            {
                "same_images_ratio": 1.0,
                "feature_std_ratio": 0.01,
                "loss_over_ln_k": 1.6,
                "dead_prototypes_ratio": 0.9,
            },
            {"same-images": "", "collapse": "same-images", "dead-prototypes": "collapse"},
        ),
        (
            {"same_images_ratio": 1.0, "loss_over_ln_k": 1.6, "start_loss_over_ln_k": 1.1},
            {"same-images": "", "not-learning": "same-images"},
        ),
        (
            {"reader_restarts": 5, "since_step_s": 500.0, "checkpoint_errors": 1},
            {"readers": "", "stalled": "readers", "checkpoints": ""},
        ),
    ],
    ids=lambda value: next(iter(value)) if "" in value.values() else "",
)
def test_what_follows_from_a_finding_stands_under_it(change: dict[str, Any], chain: dict[str, str]) -> None:
    findings = examine(Facts(**{**WELL, **change}))
    assert [(finding.name, finding.follows_from) for finding in findings] == list(chain.items())


def test_a_consequence_of_a_consequence_stands_two_below() -> None:
    wild = config_of("optim.learning_rate=10").to_dict()
    findings = examine(
        Facts(**{**WELL, "config": wild, "feature_std_ratio": 0.01, "dead_prototypes_ratio": 0.9})
    )
    assert [(one.name, one.follows_from, depth(one, findings)) for one in findings] == [
        ("learning-rate", "", 0), ("collapse", "learning-rate", 1), ("dead-prototypes", "collapse", 2),
    ]  # fmt: skip


def test_snapshots_that_are_unhealthy_for_no_known_reason_are_no_finding() -> None:
    assert found(unhealthy="prototype_drift") == []


def test_no_finding_is_its_own_cause_and_all_that_are_named_exist() -> None:
    sick = {finding.name for finding in examine(SICK)}
    sick |= {"collapse", "not-learning", "starved", "learning-rate"}
    assert sick >= {*CAUSES, *(cause for causes in CAUSES.values() for cause in causes)}

    def above(name: str, seen: tuple[str, ...] = ()) -> None:
        assert name not in seen
        for cause in CAUSES.get(name, ()):
            above(cause, (*seen, name))

    for name in CAUSES:
        above(name)


def test_dead_prototypes_of_a_short_queue_are_told_to_lengthen_it() -> None:
    short = config_of("swav.prototypes=200", "swav.queue_samples=64").to_dict()
    (finding,) = examine(Facts(**{**WELL, "config": short, "dead_prototypes_ratio": 0.5}))
    assert finding.setting == "swav.queue_samples"


def test_a_lane_of_kafka_without_records_is_not_a_matter_of_the_window() -> None:
    (finding,) = examine(Facts(**{**WELL, "waiting": True, "lag": 500, "kafka": True}))
    assert finding.setting == ""
    assert "partition" in finding.cause


def test_settings_and_pages_that_are_named_exist() -> None:
    known = set(dotted_names(RunConfig))
    pages = {page.name for page in resources.files("ops.monitoring").joinpath("runbooks").iterdir()}
    findings = examine(SICK)
    assert len(findings) >= len(RULES) - 5
    for finding in findings:
        assert finding.setting == "" or finding.setting in known
        assert f"{finding.runbook}.md" in pages
        for word in re.findall(
            r"\b(?:optim|swav|reader|health|snapshot|checkpoint)\.[a-z_]+", finding.advice
        ):
            assert word in known


def test_a_finished_run_is_examined_from_its_files(whole_run: tuple[Path, RunSummary]) -> None:
    facts = gather(whole_run[0])
    assert (facts.status, facts.live, facts.samples) == ("finished", False, whole_run[1].samples)
    assert facts.prototype_twins_ratio is not None
    assert facts.loss_over_ln_k is not None


def test_the_command_prints_findings_for_people_and_programs(
    tmp_path: Path, whole_run: tuple[Path, RunSummary]
) -> None:
    place = tmp_path / "run"
    place.mkdir()
    for name in ("run.json", "summary.json", "history.jsonl"):
        (place / name).write_bytes((whole_run[0] / name).read_bytes())
    append_line(place / "nonfinite.jsonl", {"what": "loss", "value": "nan"})
    told = CliRunner().invoke(cli, ["doctor", str(place)], standalone_mode=False)
    assert told.return_value == 1
    assert "1 steps refused, see nonfinite.jsonl" in told.output
    assert "setting  on_nonfinite" in told.output
    asked = CliRunner().invoke(cli, ["doctor", str(place), "--json"], standalone_mode=False)
    assert {row["name"]: row["follows_from"] for row in json.loads(asked.output)["findings"]} == {
        "not-finite": "",
        "not-learning": "",
    }


def test_the_command_shows_a_consequence_under_its_cause(
    monkeypatch: pytest.MonkeyPatch, whole_run: tuple[Path, RunSummary]
) -> None:
    facts = Facts(**{**WELL, "redis_error": "Redis does not answer", "snapshot_samples": 640})
    monkeypatch.setattr("ops.doctor.facts.gather", lambda _run_dir: facts)
    told = CliRunner().invoke(cli, ["doctor", str(whole_run[0])], standalone_mode=False)
    lines = [line.rstrip() for line in told.output.splitlines()]
    assert lines[0].endswith("2 found")
    assert lines[1].startswith("1. Redis is away")
    assert "   setting  snapshot.url" in lines
    assert "   2. Readers get no newer snapshots. (follows from 1)" in lines
    assert "      seen     the newest is 9,360 samples old, 640 are set" in lines
    assert told.return_value == 1


def test_a_directory_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound):
        gather(tmp_path)
