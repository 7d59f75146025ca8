import numpy as np
import pytest
import torch
from torch import Tensor

from learner import patches
from tests.oracles import patches as oracle


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rows(count: int, width: int, seed: int = 0) -> Tensor:
    """Correlated numbers whose variances fall, away from 0; float64."""
    scale = torch.arange(1, width + 1, dtype=torch.float64) ** -0.7
    mix = torch.randn(width, width, generator=_generator(99), dtype=torch.float64)
    rows = torch.randn(count, width, generator=_generator(seed), dtype=torch.float64) * scale
    turned: Tensor = rows @ torch.linalg.qr(mix).Q
    return turned + 3


def _images(count: int, side: int = 16, seed: int = 0) -> Tensor:
    """Smooth pictures, uint8."""
    rough = torch.rand(count, 3, 5, 5, generator=_generator(seed))
    smooth = torch.nn.functional.interpolate(rough, (side, side), mode="bilinear")
    return (smooth * 255).to(torch.uint8)


def _covariance(rows: Tensor) -> Tensor:
    return torch.from_numpy(oracle.covariance(rows.double().numpy()))


def _dictionary(
    centres: int = 7, side: int = 16, dtype: torch.dtype = torch.float64
) -> patches.PatchDictionary:
    images = _images(40, side)
    top, left = torch.randint(side - 5, (2, 40, 30), generator=_generator(1))
    rows = patches.patches_at(images, top, left).to(dtype)
    return patches.learn_dictionary(rows, centres=centres, generator=_generator(2))


@pytest.mark.parametrize("width", [30, 1500])
def test_moments_are_those_of_numpy_however_the_rows_are_cut(width: int) -> None:
    rows = _rows(60, width)
    parts = [patches.moments(part) for part in torch.split(rows, 17)]
    found = parts[0] + parts[1] + parts[2] + parts[3]
    assert found.rows == 60
    assert torch.allclose(found.covariance(), _covariance(rows), rtol=0, atol=1e-12)


def test_moments_of_rows_on_a_grid_do_not_depend_on_the_order_by_a_bit() -> None:
    rows = patches.on_grid(patches.contrast_normalised(_rows(5000, 108).float()), 2.0**-10)
    mixed = rows[torch.randperm(5000, generator=_generator())]
    one, other = patches.moments(rows), patches.moments(mixed[:900]) + patches.moments(mixed[900:])
    assert torch.equal(one.sum_F, other.sum_F)
    assert torch.equal(one.products_FF, other.products_FF)


@pytest.mark.parametrize(
    ("count", "width", "kept"), [(500, 40, 16), (500, 12, 12), (50, 200, 16), (10, 40, 9)]
)
def test_whitened_rows_have_the_identity_as_covariance(count: int, width: int, kept: int) -> None:
    rows = _rows(count, width)
    white = patches.pca_of_rows(rows, 16)(rows)
    assert white.shape == (count, kept)
    assert white.mean(0).abs().max() < 1e-9
    assert (_covariance(white) - torch.eye(kept)).abs().max() < 1e-8


@pytest.mark.parametrize(("count", "width"), [(400, 60), (60, 400)])
def test_whitened_cosines_are_those_of_numpy(count: int, width: int) -> None:
    rows, others = _rows(count, width), _rows(30, width, seed=5)
    found = torch.nn.functional.normalize(patches.pca_of_rows(rows, 24)(others))
    wanted = oracle.pca_whitened(rows.numpy(), others.numpy(), 24)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    # Directions may have either sign: cosines do not.
    assert np.abs((found @ found.T).numpy() - wanted @ wanted.T).max() < 1e-9


def test_a_large_matrix_gives_the_directions_of_a_full_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "_EXACT_SIDE", 300)
    rows = _rows(900, 700)
    found = patches.pca(patches.moments(rows), 32)
    values = torch.linalg.eigvalsh(_covariance(rows)).flip(0)[:32]
    # A column has length 1 / root of the eigenvalue.
    assert torch.allclose(found.matrix_FW.norm(dim=0) ** -2, values, rtol=1e-6)
    white = found(rows)
    assert (_covariance(white) - torch.eye(32)).abs().max() < 1e-9


def test_rows_that_are_all_alike_have_no_direction() -> None:
    assert patches.pca_of_rows(torch.full((9, 4), 2.5), 3)(torch.ones(2, 4)).shape == (2, 0)


def test_zca_divides_by_the_root_of_variance_and_floor_and_turns_nothing() -> None:
    rows = _rows(800, 20)
    white = patches.zca(patches.moments(rows), 0.1)
    assert torch.allclose(white.matrix_FW, white.matrix_FW.T, atol=1e-12)
    covariance = _covariance(rows)
    # The square of the matrix is the inverse of the covariance with the floor on its diagonal.
    square = white.matrix_FW @ white.matrix_FW @ (covariance + 0.1 * torch.eye(20, dtype=torch.float64))
    assert (square - torch.eye(20)).abs().max() < 1e-10
    assert white(rows).mean(0).abs().max() < 1e-12


def test_patches_are_cut_where_they_are_asked_for() -> None:
    images = _images(3)
    top, left = torch.randint(11, (2, 3, 5), generator=_generator())
    found = patches.patches_at(images, top, left)
    wanted = [
        oracle.patch(image.double().numpy(), int(y), int(x), 6)
        for image, rows, columns in zip(images, top, left, strict=True)
        for y, x in zip(rows, columns, strict=True)
    ]
    assert found.dtype == torch.uint8
    assert found.tolist() == wanted


def test_contrast_is_normalised_a_patch_and_a_flat_one_stays_flat() -> None:
    rows = torch.randint(256, (20, 108), generator=_generator()).double()
    rows[3] = 77
    wanted = [oracle.contrast_normalised(row) for row in rows.tolist()]
    found = patches.contrast_normalised(rows)
    assert np.allclose(found.numpy(), wanted, atol=1e-12)
    assert (found[3] == 0).all()


def test_a_step_of_kmeans_equals_a_plain_loop_for_every_cut_into_batches_and_ranks() -> None:
    rows = _rows(90, 5) - 3
    centres, seen = rows[:6].clone(), torch.zeros(6, dtype=torch.int64)
    plain, counts = centres.tolist(), seen.tolist()
    for batch in torch.split(rows, 30):
        plain, counts = oracle.kmeans_step(plain, counts, batch.tolist())
        two_ranks = patches.cluster_sums(batch[:11], centres) + patches.cluster_sums(batch[11:], centres)
        centres, seen = patches.kmeans_step(centres, seen, two_ranks)
        assert seen.tolist() == counts
        assert np.allclose(centres.numpy(), plain, atol=1e-12)
    assert int(seen.sum()) == 90


def test_a_centre_without_rows_stays_where_it_is() -> None:
    centres = torch.tensor([[0.0, 0.0], [50.0, 50.0]])
    found = patches.cluster_sums(torch.ones(4, 2), centres)
    moved, seen = patches.kmeans_step(centres, torch.tensor([0, 3]), found)
    assert seen.tolist() == [4, 3]
    assert moved.tolist() == [[1.0, 1.0], [50.0, 50.0]]


@pytest.mark.parametrize("side", [16, 17, 8])
def test_encoded_images_equal_a_plain_loop_in_float64(side: int) -> None:
    dictionary = _dictionary()
    images = _images(3, side, seed=8)
    found = patches.encode(images, dictionary)
    assert found.dtype == torch.float64
    whitening = dictionary.whitening
    for image, features in zip(images.double().numpy(), found, strict=True):
        wanted = oracle.encode(
            image,
            whitening.mean_F.numpy(),
            whitening.matrix_FW.numpy(),
            dictionary.centres_KD.numpy(),
            side=6,
            stride=2,
        )
        assert np.allclose(features.numpy(), wanted, atol=1e-9)


def test_float32_encodes_as_float64_to_its_own_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = _dictionary(30)
    single = patches.PatchDictionary(exact.whitening, exact.centres_KD.float())
    images = _images(20, seed=9)
    wanted = patches.encode(images, exact)
    monkeypatch.setattr(patches, "_CHUNK_NUMBERS", 3 * 30 * 36)  # three images at once
    found = patches.encode(images, single)
    assert found.dtype == torch.float32
    assert found.shape == (20, 120)
    assert torch.allclose(found.double(), wanted, atol=2e-3)


def test_a_dictionary_follows_its_seed_and_its_centres_have_less_error_than_their_start() -> None:
    images = _images(60, seed=3)
    top, left = torch.randint(11, (2, 60, 40), generator=_generator(4))
    rows = patches.patches_at(images, top, left)
    one, same = (patches.learn_dictionary(rows, centres=16, generator=_generator(5)) for _ in range(2))
    other = patches.learn_dictionary(rows, centres=16, generator=_generator(6))
    assert torch.equal(one.centres_KD, same.centres_KD)
    assert not torch.equal(one.centres_KD, other.centres_KD)
    white = one.whitening(patches.contrast_normalised(rows.float()))
    start = white[torch.randperm(len(rows), generator=_generator(5))[:16]]
    assert torch.cdist(white, one.centres_KD).amin(1).mean() < 0.9 * torch.cdist(white, start).amin(1).mean()


def test_fewer_patches_than_centres_give_fewer_centres() -> None:
    rows = torch.randint(256, (5, 108), generator=_generator()).to(torch.uint8)
    assert patches.learn_dictionary(rows, centres=400, generator=_generator()).width == 5


def test_images_that_are_too_small_are_refused_and_none_gives_none() -> None:
    dictionary = _dictionary()
    with pytest.raises(ValueError, match="at least 8 pixels"):
        patches.encode(_images(1, 7), dictionary)
    assert patches.encode(_images(1)[:0], dictionary).shape == (0, 28)
