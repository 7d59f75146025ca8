"""What changed between two snapshots, on constructed cases with known answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.report import Snapshot
from ops.errors import SnapshotError
from ops.evaluate.snapshot_diff import churn, compare, compare_prototypes, compare_usage
from ops.snapshots.reader import LoadedSnapshot
from ops.snapshots.types import SnapshotInfo
from tests.ops import synthetic


def loaded(shot: Snapshot, version: int) -> LoadedSnapshot:
    rows, dim = shot.tensors["prototypes"].shape
    info = SnapshotInfo(
        version=version, digest=shot.digest, samples=100 * version, updates=version, prototypes=rows, dim=dim,
        health=shot.health, healthy=True, parent=None, epoch=1, created=0.0, blob_sha256="", blob_bytes=0,
        encoder_digest=shot.encoder_digest, encoder="", run_dir="", config_hash="", publisher="",
    )  # fmt: skip
    return LoadedSnapshot(info=info, tensors=dict(shot.tensors), encoder=shot.encoder)


def test_a_snapshot_does_not_differ_from_itself() -> None:
    one = loaded(synthetic.snapshot(1), 3)
    found = compare(one, one)
    assert found.equal
    assert found.prototypes.cosine_min == pytest.approx(1.0)
    assert (found.prototypes.moved, found.prototypes.nearest_elsewhere, found.prototypes.reseeded) == (
        0,
        0,
        (),
    )
    assert (found.usage.total_variation, found.usage.gained, found.usage.lost) == (0.0, (), ())


def test_prototypes_that_turned_by_a_known_angle_are_counted() -> None:
    eye = torch.eye(8, 16)
    turned = eye.clone()
    turned[2, 2], turned[2, 12] = 0.6, 0.8  # cosine 0.6
    turned[5, 5], turned[5, 13] = 0.96, 0.28  # cosine 0.96: not far enough
    none = torch.zeros(8, dtype=torch.int64)
    found = compare_prototypes(
        {"prototypes": eye, "generation": none}, {"prototypes": turned, "generation": none}
    )
    assert (found.moved, found.nearest_elsewhere) == (1, 0)
    assert found.cosine_min == pytest.approx(0.6)
    assert found.cosine_p50 == pytest.approx(1.0)


def test_renamed_prototypes_are_nearest_to_another_index() -> None:
    eye, none = torch.eye(8), torch.zeros(8, dtype=torch.int64)
    swapped = eye[[1, 0, *range(2, 8)]]
    found = compare_prototypes(
        {"prototypes": eye, "generation": none}, {"prototypes": swapped, "generation": none}
    )
    assert (found.moved, found.nearest_elsewhere) == (2, 2)


def test_what_was_reseeded_is_not_counted_as_moved() -> None:
    eye, before, after = torch.eye(4), torch.tensor([0, 1, 0, 0]), torch.tensor([0, 1, 2, 0])
    other = eye.clone()
    other[2] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    found = compare_prototypes(
        {"prototypes": eye, "generation": before}, {"prototypes": other, "generation": after}
    )
    assert (found.reseeded, found.moved) == ((2,), 0)
    assert found.cosine_min == pytest.approx(1.0)
    all_anew = compare_prototypes(
        {"prototypes": eye, "generation": before}, {"prototypes": eye, "generation": before + 1}
    )
    assert (len(all_anew.reseeded), all_anew.cosine_p50) == (4, None)


def test_shifts_of_usage_are_half_the_sum_of_differences_and_name_the_largest() -> None:
    found = compare_usage(torch.tensor([0.5, 0.25, 0.25, 0.0]), torch.tensor([0.2, 0.25, 0.25, 0.3]))
    assert found.total_variation == pytest.approx(0.3)
    assert [k for k, _, _ in found.gained] == [3]
    assert [k for k, _, _ in found.lost] == [0]
    assert found.perplexity_a == pytest.approx(2.828, abs=1e-3)


def test_churn_is_the_share_of_images_with_another_prototype() -> None:
    a = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    b = np.array([0, 0, 1, 1, 1, 2, 2, 2, 0, 3])
    by_index, best = churn(a, b)
    assert by_index == pytest.approx(0.2)
    assert best == pytest.approx(0.2)


def test_churn_after_renaming_is_nothing_when_prototypes_were_only_renamed() -> None:
    a = np.random.default_rng(0).integers(0, 16, 500)
    renamed = np.random.default_rng(1).permutation(16)[a]
    by_index, best = churn(a, renamed)
    assert by_index > 0.5
    assert best == pytest.approx(0.0)


def test_renaming_never_makes_churn_worse() -> None:
    draw = np.random.default_rng(2)
    for _ in range(50):
        by_index, best = churn(draw.integers(0, 5, 30), draw.integers(0, 5, 30))
        assert best <= by_index


def test_snapshots_of_different_shapes_are_not_compared() -> None:
    one = loaded(synthetic.snapshot(1), 1)
    other = loaded(synthetic.snapshot(2, prototypes=9), 2)
    with pytest.raises(SnapshotError, match=r"\(8, 4\) prototypes, 2 has \(9, 4\)"):
        compare(one, replace(other))
