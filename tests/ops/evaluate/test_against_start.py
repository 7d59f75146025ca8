"""A network beside its own start, by views that find each other: known answers, and whole runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ops.doctor.diagnosis import examine
from ops.doctor.facts import gather
from ops.evaluate.against_start import AgainstStart, ViewFigures, compare, two_views, view_figures
from ops.rundir.files import FIRST_WEIGHTS
from ops.rundir.summary import FINISHED, read_summary
from ops.snapshots import probe_images
from tests.ops.small_runs import StopAfter, config_of, run, write_stream

pytestmark = pytest.mark.usefixtures("one_thread")


def against(trained: float, start: float) -> AgainstStart:
    return AgainstStart(
        images=256,
        trained=ViewFigures(views_found=trained, view_agreement=0.5),
        start=ViewFigures(views_found=start, view_agreement=0.5),
    )


class Told:
    """Gives the features and scores that it is told, whatever the images."""

    def __init__(self, features_VF: Tensor, scores_VK: Tensor | None = None) -> None:
        self._features_VF = features_VF
        self._scores_VK = torch.ones(len(features_VF), 1) if scores_VK is None else scores_VK

    def features(self, _images: Tensor) -> Tensor:
        return self._features_VF

    def scores(self, _images: Tensor) -> Tensor:
        return self._scores_VK


def figures(features_VF: Tensor, scores_VK: Tensor | None = None) -> ViewFigures:
    views = torch.zeros(len(features_VF), 3, 8, 8, dtype=torch.uint8)
    return view_figures(Told(features_VF, scores_VK), views)  # type: ignore[arg-type]


def test_views_with_a_direction_of_their_image_all_find_each_other() -> None:
    eye = torch.eye(6)
    assert figures(torch.cat([eye, 3 * eye]), torch.cat([eye, eye])) == ViewFigures(
        views_found=1.0, view_agreement=1.0
    )


def test_views_of_a_collapsed_or_random_network_find_no_more_than_chance() -> None:
    assert figures(torch.ones(80, 5)).views_found <= 2 / 80
    generator = torch.Generator().manual_seed(0)
    found = figures(torch.randn(400, 64, generator=generator), torch.randn(400, 8, generator=generator))
    assert found.views_found < 0.03
    assert abs(found.view_agreement) < 0.15


def test_one_prototype_for_all_agrees_no_more_than_chance() -> None:
    eye = torch.eye(6)
    assert figures(torch.cat([eye, eye]), torch.eye(12)[:1].expand(12, 12)).view_agreement == 0.0


def test_views_are_the_same_every_time_and_two_of_each_image() -> None:
    generator = np.random.default_rng(0)
    thumbs = generator.integers(0, 256, (300, 3, 16, 16), dtype=np.uint8)
    config = config_of()
    views = two_views(thumbs, config)
    assert views.shape == (300, 3, 16, 16)  # of every second image
    assert torch.equal(views, two_views(thumbs, config))
    assert not torch.equal(views[:150], views[150:])
    assert not torch.equal(views, two_views(thumbs, config_of("seed=1")))


def test_a_rise_of_less_than_two_points_is_no_learning() -> None:
    assert against(0.53, 0.5).better
    assert not against(0.51, 0.5).better
    assert not against(0.4, 0.5).better


def test_near_the_most_that_can_be_found_half_of_what_is_left_is_enough() -> None:
    assert against(1.0, 0.99).better
    assert against(0.9952, 0.99).better
    assert against(1.0, 1.0).better
    assert not against(0.994, 0.99).better
    assert not against(0.998, 1.0).better


def test_two_networks_are_compared_on_the_same_views() -> None:
    eye = torch.eye(20)
    trained, start = Told(torch.cat([eye, eye])), Told(torch.ones(40, 5))
    views = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    found = compare(trained, start, views)  # type: ignore[arg-type]
    assert (found.images, found.trained.views_found, found.better) == (20, 1.0, True)
    assert found.start.views_found <= 2 / 40


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_stream(tmp_path_factory.mktemp("against") / "stream")


def test_a_run_that_cannot_learn_says_so_at_its_end_and_to_the_doctor(
    stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = config_of("optim.learning_rate=1e-12", "optim.schedule=cosine")
    summary = run(stream, tmp_path / "run", still)
    found = summary.against_start
    assert found is not None
    assert found["better"] is False
    assert abs(found["trained"]["views_found"] - found["start"]["views_found"]) < 0.1
    told = summary.render()
    assert "before the first step" in told
    assert "nothing was learned beyond the start" in told
    assert f"{summary.updates} updates are few (bring more images, or in a new run raise" in told
    findings = [finding.name for finding in examine(gather(tmp_path / "run"))]
    assert {"no-better-than-start", "not-learning"} & set(findings)
    capsys.readouterr()


def test_a_run_that_learns_beats_its_start(stream: str, tmp_path: Path) -> None:
    config = config_of(
        "passes=4", "model.branch_centres=24", "model.branch_samples=128", "model.branch_pairs=512"
    )
    found = run(stream, tmp_path / "run", config).against_start
    assert found is not None
    assert found["better"] is True
    assert 160 <= found["images"] <= 166  # every second one of 320 to 331, however often each arrived


def test_the_comparison_is_the_same_after_a_resume_and_for_a_finished_run_again(
    stream: str, tmp_path: Path
) -> None:
    whole = run(stream, tmp_path / "whole", config_of())
    stopped = run(stream, tmp_path / "parts", config_of(), stop=StopAfter(tmp_path / "parts", 4))
    assert stopped.against_start is None
    assert run(stream, tmp_path / "parts", config_of()).against_start == whole.against_start
    assert run(stream, tmp_path / "whole", config_of()).against_start == whole.against_start
    assert read_summary(tmp_path / "whole") == whole


def test_weights_of_another_run_are_the_start_that_counts(stream: str, tmp_path: Path) -> None:
    first = run(stream, tmp_path / "first", config_of()).against_start
    more = config_of("optim.learning_rate=1e-12", "seed=0")
    second = run(stream, tmp_path / "second", more, init_from=str(tmp_path / "first")).against_start
    assert first is not None
    assert second is not None
    assert second["start"] == first["trained"]


def test_a_run_whose_first_weights_are_gone_at_its_end_finishes_without_a_comparison(
    stream: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(stream, tmp_path / "first", config_of("passes=1"))
    stop = StopAfter(tmp_path / "run", 4)
    run(stream, tmp_path / "run", config_of("seed=0"), init_from=str(tmp_path / "first"), stop=stop)
    (tmp_path / "run" / FIRST_WEIGHTS).unlink()
    ended = run(stream, tmp_path / "run", config_of("seed=0"))
    assert (ended.status, ended.against_start) == (FINISHED, None)
    assert read_summary(tmp_path / "run") == ended
    assert "the network is not compared with its start: the first weights of the run" in caplog.text


def test_few_images_say_nothing(tmp_path: Path) -> None:
    few = config_of("passes=4", "lanes=2", "batch=16")
    summary = run(write_stream(tmp_path / "few", 31), tmp_path / "run", few)
    assert (summary.status, summary.against_start) == (FINISHED, None)
    assert (tmp_path / "run" / probe_images.FILE).exists()
    more = run(write_stream(tmp_path / "more", 34), tmp_path / "second", few)
    assert more.against_start is not None


def test_without_probe_images_nothing_is_compared(stream: str, tmp_path: Path) -> None:
    assert run(stream, tmp_path / "run", config_of("reader.thumbnail_px=0")).against_start is None
    assert not (tmp_path / "run" / probe_images.FILE).exists()
