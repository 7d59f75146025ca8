import numpy as np
import pytest
import torch
from torch import Tensor

from ops.evaluate import knn
from tests.oracles import nearest

"""So few at once that the tests have several pieces of each."""


def _clouds(number: int, classes: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points around one centre a class, wide enough that neighbours are often of another class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(classes, (number,), generator=generator)
    return centres[labels] + 1.5 * torch.randn(number, width, generator=generator), labels


def _pieces(bank: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    cuts = range(0, len(bank), size)
    return [(bank[cut : cut + size], labels[cut : cut + size]) for cut in cuts]


def _search(
    bank: Tensor, labels: Tensor, queries: Tensor, *, k: int, piece: int = 64
) -> knn.NearestNeighbours:
    search = knn.NearestNeighbours(queries, k=k, query_rows=25, bank_rows=50)
    for features, names in _pieces(bank, labels, piece):
        search.add(features, names)
    return search


@pytest.mark.parametrize("k", [1, 20, 200])
@pytest.mark.parametrize("piece", [7, 100, 1000])
def test_votes_equal_a_naive_float64_search_however_the_bank_is_cut(k: int, piece: int) -> None:
    bank, labels = _clouds(400, 5, 12, seed=1)
    queries, _ = _clouds(60, 5, 12, seed=2)
    expected = nearest.predict(
        bank.double().numpy(), labels.numpy(), queries.double().numpy(), k, knn.TEMPERATURE
    )
    search = _search(bank, labels, queries, k=200, piece=piece)
    assert search.vote(k).tolist() == expected


def test_accuracy_is_the_share_of_right_answers_in_percent() -> None:
    bank, labels = _clouds(300, 4, 6, seed=3)
    queries, wanted = _clouds(80, 4, 6, seed=4)
    search = _search(bank, labels, queries, k=200)
    for k in (20, 200):
        answers = nearest.predict(
            bank.double().numpy(), labels.numpy(), queries.double().numpy(), k, knn.TEMPERATURE
        )
        assert search.top1(k, wanted) == pytest.approx(100 * np.mean(np.array(answers) == wanted.numpy()))


def test_length_of_a_feature_does_not_matter() -> None:
    bank, labels = _clouds(200, 3, 8, seed=5)
    queries, _ = _clouds(50, 3, 8, seed=6)
    stretch = torch.rand(200, 1, generator=torch.Generator().manual_seed(7)) * 100 + 0.01
    one = _search(bank, labels, queries, k=20).vote(20)
    other = _search(bank * stretch, labels, queries * 37.0, k=20).vote(20)
    assert torch.equal(one, other)


def test_a_bank_smaller_than_k_votes_as_a_whole() -> None:
    bank, labels = _clouds(15, 3, 8, seed=8)
    queries, _ = _clouds(30, 3, 8, seed=9)
    search = _search(bank, labels, queries, k=200)
    assert torch.equal(search.vote(15), search.vote(200))


def test_near_neighbours_weigh_more_than_far_ones() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    search = _search(bank, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.2]]), k=3)
    assert search.vote(3).tolist() == [0]


@pytest.mark.parametrize("piece", [7, 100])
def test_a_query_that_is_in_the_bank_has_no_vote_on_itself(
    piece: int,
) -> None:
    bank, labels = _clouds(90, 5, 12, seed=12)
    # Row 3 is there twice, as with images that were kept as duplicates: both leave out both.
    bank, labels = torch.cat([bank, bank[3:4]]), torch.cat([labels, labels[3:4]])
    images = torch.cat([torch.arange(90), torch.tensor([3])])
    search = knn.NearestNeighbours(bank[:60], k=20, images_M=images[:60], query_rows=25, bank_rows=50)
    for start in range(0, 91, piece):
        rows = slice(start, start + piece)
        seen = torch.where(images[rows] < 60, images[rows], -1)
        search.add(bank[rows], labels[rows], seen)
    expected = []
    for query in range(60):
        others = images != query
        expected += nearest.predict(
            bank[others].double().numpy(),
            labels[others].numpy(),
            bank[query : query + 1].double().numpy(),
            20,
            knn.TEMPERATURE,
        )
    assert search.vote(20).tolist() == expected


def test_a_query_with_nothing_but_itself_in_the_bank_is_never_right() -> None:
    search = knn.NearestNeighbours(torch.eye(2), k=1, images_M=torch.tensor([0, 1]))
    search.add(torch.eye(2)[:1], torch.tensor([0]), torch.tensor([0]))
    assert search.vote(1).tolist() == [-1, 0]
    assert search.top1(1, torch.tensor([-1, 0])) == 50.0


def test_a_class_that_the_bank_does_not_have_counts_as_an_error() -> None:
    bank, labels = _clouds(50, 2, 4, seed=10)
    search = _search(bank, labels, bank, k=1)
    wanted = torch.where(labels == 0, 0, -1)
    assert search.top1(1, wanted) == pytest.approx(100 * float((labels == 0).double().mean()))


def test_features_of_zeros_do_not_break_the_vote() -> None:
    bank, labels = _clouds(20, 2, 4, seed=11)
    search = _search(
        torch.cat([bank, torch.zeros(1, 4)]), torch.cat([labels, torch.tensor([1])]), torch.zeros(1, 4), k=21
    )
    # Every cosine is 0, so every vote weighs the same and the commonest class wins.
    assert search.vote(21).tolist() == [int((labels == 1).sum() + 1 > (labels == 0).sum())]


def test_no_query_no_neighbour_and_no_bank_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one query"):
        knn.NearestNeighbours(torch.zeros(0, 4), k=1)
    with pytest.raises(ValueError, match="k must be >= 1"):
        knn.NearestNeighbours(torch.zeros(1, 4), k=0)
    with pytest.raises(ValueError, match="bank not empty"):
        knn.NearestNeighbours(torch.zeros(1, 4), k=1).vote(1)
