"""The patch branch: its maps against oracles in float64, what weighs how much, what it adds to features."""

import numpy as np
import pytest
import torch
from torch import Tensor

from learner import patches
from learner.discriminant import RIDGE, discriminant_map
from learner.learner import Learner
from learner.patch_branch import PatchBranch
from tests.learner.small_run import BATCH, batch, pictures, run, same_bits, small_config, small_learner

WIDTH = 4
BRANCH: dict[str, object] = {
    "branch_centres": 6,
    "branch_width": WIDTH,
    "branch_samples": 2 * BATCH,
    "branch_pairs": 4 * BATCH,
}

MAPPED = BRANCH | {"branch_patch_width": 3, "branch_scales": 2}
STILL: dict[str, object] = {"jitter": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0}
both_kinds = pytest.mark.parametrize("model", [BRANCH, MAPPED], ids=["plain", "mapped, two scales"])


def spd(side: int, seed: int) -> Tensor:
    rows = torch.randn(3 * side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows.T @ rows / len(rows)


def test_the_map_solves_the_generalised_eigenproblem() -> None:
    within, between = spd(12, 1), 4 * spd(12, 2)
    found = discriminant_map(within, between, 5).numpy()
    steadied = within.numpy() + RIDGE * np.trace(within.numpy()) / 12 * np.eye(12)
    ratios, vectors = np.linalg.eig(np.linalg.solve(steadied, between.numpy()))
    order = np.argsort(-ratios.real)[:5]
    expected = []
    for direction in vectors.real[:, order].T:
        vector = direction / np.sqrt(direction @ steadied @ direction)
        expected.append(vector * np.sign(vector[np.abs(vector).argmax()]))
    stacked = np.stack(expected, axis=1)
    stacked /= np.sqrt(np.trace(stacked.T @ (within + between).numpy() @ stacked))
    np.testing.assert_allclose(found, stacked, rtol=1e-8, atol=1e-10)


def test_directions_that_views_share_come_first_and_missing_ones_are_zero() -> None:
    within = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    between = torch.diag(torch.tensor([0.0, 9.0, 0.0, 1.0], dtype=torch.float64))
    found = discriminant_map(within, between, 3)
    assert found[:, 0].abs().argmax() == 1
    assert found[:, 1].abs().argmax() == 3
    assert torch.equal(found[:, 2], torch.zeros(4, dtype=torch.float64))


def features_of(learner: Learner, images: Tensor) -> Tensor:
    """Patch features of float images, by loops in float64."""
    branch = learner._model.branch
    assert branch is not None
    pyramid = [images.double()]
    for _ in range(1, branch.scales):
        large = pyramid[-1]
        small = (
            large[..., ::2, ::2] + large[..., 1::2, ::2] + large[..., ::2, 1::2] + large[..., 1::2, 1::2]
        ) / 4
        pyramid.append(small.round())
    scales = [
        torch.stack([cells_of(branch, image, stride) for image in size])
        for size, stride in zip(pyramid, (patches.STRIDE, 1), strict=False)
    ]
    return torch.cat(scales, dim=1)


def cells_of(branch: PatchBranch, image: Tensor, stride: int) -> Tensor:
    """Roots of the sums over cells of the patches of one image, by loops in float64."""
    places = range(0, image.shape[-1] - patches.SIDE + 1, stride)
    count = len(places)
    found: dict[tuple[int, ...], Tensor] = {}
    for i, top in enumerate(places):
        for j, left in enumerate(places):
            active = activation(branch, image[:, top : top + patches.SIDE, left : left + patches.SIDE])
            if branch.mean_K is not None and branch.map_KE is not None:
                mapped = (active - branch.mean_K.double()) @ branch.map_KE.double()
                mapped /= mapped.norm()
                active = torch.cat([mapped.clamp_min(0), (-mapped).clamp_min(0)])
            cell = tuple(next(c for c in range(3) if p < count * (c + 1) // 3) for p in (i, j))
            found[cell] = found.get(cell, 0) + active
    return torch.cat([found[cell].sqrt() for cell in sorted(found)])


def activation(branch: PatchBranch, patch: Tensor) -> Tensor:
    """Triangle activation of one patch."""
    mean, matrix, centres = (
        value.double() for value in (branch.mean_D, branch.whitening_DD, branch.centres_KD)
    )
    centred = patch.flatten() - patch.mean()
    normal = centred / torch.sqrt(centred.square().mean() + patches.CONTRAST_FLOOR)
    distance: Tensor = torch.linalg.vector_norm((normal - mean) @ matrix - centres, dim=1)
    return (distance.mean() - distance).clamp_min(0)


def oracle_map(one: Tensor, other: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Mean and map from pairs of rows."""
    middle, apart = (one + other) / 2, one - other
    within = apart.T @ apart / len(one) / 2
    between = np.cov(middle.T.numpy(), bias=True) - within.numpy() / 2
    return middle.mean(0), discriminant_map(within, torch.from_numpy(between), width)


@both_kinds
def test_pairs_of_views_give_the_map_that_a_plain_loop_gives(model: dict[str, object]) -> None:
    learner = small_learner(small_config(model=model, augment=STILL), precision="float64")
    run(learner, 0, 3)  # two for the patches, one quarter of a period
    views = batch(2).crops[0]
    mean, expected = oracle_map(features_of(learner, views[0]), features_of(learner, views[1]), WIDTH)
    branch = learner._model.branch
    assert branch is not None
    torch.testing.assert_close(branch.mean_F, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(branch.map_FW, expected, rtol=1e-6, atol=1e-8)


def test_neighbouring_patches_give_the_map_of_patches_that_a_plain_loop_gives() -> None:
    learner = small_learner(small_config(model=MAPPED), precision="float64")
    learner.step(batch(0))
    blocks = learner.state_dict()["tensors"]["branch_fit.patches"]
    learner.step(batch(1))
    branch = learner._model.branch
    assert branch is not None
    assert branch.mean_K is not None
    assert branch.map_KE is not None
    again = small_learner(small_config(model=MAPPED), precision="float64")
    again.step(batch(1))
    blocks = torch.cat([blocks, again.state_dict()["tensors"]["branch_fit.patches"]])
    side = patches.SIDE + 2
    blocks = blocks.double().view(-1, 3, side, side)
    here, right, below = (
        torch.stack([activation(branch, block[:, top : top + 6, left : left + 6]) for block in blocks])
        for top, left in ((0, 0), (0, 2), (2, 0))
    )
    mean, expected = oracle_map(torch.cat([here, here]), torch.cat([right, below]), 3)
    torch.testing.assert_close(branch.mean_K, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(branch.map_KE, expected, rtol=1e-6, atol=1e-8)


def test_every_arrival_weighs_the_same_and_the_work_becomes_less() -> None:
    learner = small_learner(small_config(model=BRANCH))
    run(learner, 0, 2)
    taken = []
    for step in range(2, 90):
        before = learner.state_dict()["values"]["branch_fit"]["weight"]
        learner.step(batch(step))
        taken.append(learner.state_dict()["values"]["branch_fit"]["weight"] - before)
    # A fresh update a batch, so at most one of the three pairs that each arrival may give is there.
    assert sum(taken[:4]) == 4 * BATCH
    later = [weight for weight in taken[40:] if weight]
    assert len(later) < len(taken[40:]) / 2
    # Twice as much in the second period, three times from the third on; never what was not spent before.
    assert max(sum(taken[step : step + 8]) for step in range(80)) <= 3 * 8 * BATCH + max(taken)
    assert sum(later) / (len(taken[40:]) * BATCH) == pytest.approx(3, rel=0.35)


@both_kinds
def test_features_are_encoder_and_branch_side_by_side(model: dict[str, object]) -> None:
    plain, learner = small_learner(small_config()), small_learner(small_config(model=model))
    images = pictures(torch.Generator().manual_seed(0), 1, 16)[0]
    width = plain.features(images).shape[1]
    fresh = learner.features(images)
    torch.testing.assert_close(fresh[:, :width], torch.nn.functional.normalize(plain.features(images)))
    assert torch.equal(fresh[:, width:], torch.zeros(len(images), WIDTH))
    run(learner, 0, 6)
    learned = learner.features(images)
    torch.testing.assert_close(learned[:, width:].norm(dim=1), torch.ones(len(images)))
    branch = learner._model.branch
    assert branch is not None
    raw = (features_of(learner, images).float() - branch.mean_F) @ branch.map_FW
    torch.testing.assert_close(learned[:, width:], torch.nn.functional.normalize(raw), rtol=1e-3, atol=1e-4)


@both_kinds
def test_the_network_learns_as_without_it(model: dict[str, object]) -> None:
    plain, learner = small_learner(small_config()), small_learner(small_config(model=model))
    assert [report.loss for report in run(plain, 0, 6)] == [report.loss for report in run(learner, 0, 6)]
    ours, theirs = learner.snapshot(), plain.snapshot()
    assert same_bits(theirs.encoder, {name: ours.encoder[name] for name in theirs.encoder})
    assert {
        name for name in ours.encoder if name.startswith("branch.")
    } == ours.encoder.keys() - theirs.encoder.keys()
    assert not any("branch" in name for name in plain.state_dict()["tensors"])


def test_a_branch_that_comes_with_first_weights_stays_as_it_is() -> None:
    config = small_config(model=BRANCH)
    first, other = small_learner(config), small_learner(config, seed=1)
    run(first, 0, 6)
    shot = first.snapshot()
    other.load_weights(shot.encoder, shot.tensors)
    run(other, 0, 6)
    after = other.snapshot().encoder
    assert all(torch.equal(after[name], shot.encoder[name]) for name in after if name.startswith("branch."))


def test_larger_images_are_shrunk() -> None:
    learner = small_learner(small_config(model=BRANCH | {"branch_px": 18}))
    run(learner, 0, 4)
    images = pictures(torch.Generator().manual_seed(0), 1, 40)[0]
    assert learner.features(images).isfinite().all()
    branch = learner._model.branch
    assert branch is not None
    small = branch.shrunk(images)
    assert small.shape[-2:] == (18, 18)
    assert torch.equal(branch.patch_features(images), branch.patch_features(small))


def test_each_further_scale_needs_images_of_twice_the_side() -> None:
    small_config(model=MAPPED | {"branch_px": 18})
    with pytest.raises(ValueError, match=r"model.branch_px must be in \[32, 224\]"):
        small_config(model=MAPPED | {"branch_scales": 3, "branch_px": 31})


def test_one_crop_of_the_first_kind_is_refused() -> None:
    learner = small_learner(small_config(model=BRANCH, swav={"assign_views": 1}))
    whole = batch(0)
    views = type(whole)(
        crops=(whole.crops[0][:1], whole.crops[1]), uniforms=whole.uniforms[1:], lane_B=whole.lane_B
    )
    with pytest.raises(ValueError, match="two crops of the first kind"):
        learner.step(views)


@pytest.mark.parametrize(
    "change",
    [
        {"branch_width": 0},
        {"branch_px": 10},
        {"branch_pairs": 3},
        {"branch_scales": 4},
        {"branch_patch_width": -1},
    ],
)
def test_settings_out_of_bounds_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"model.{next(iter(change))}"):
        small_config(model=change)
