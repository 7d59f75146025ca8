"""Weighted nearest neighbours in float64, one query after the other, by plain sorting."""

import math

import numpy as np
from numpy.typing import NDArray


def predict(
    bank: NDArray[np.float64],
    labels: NDArray[np.int64],
    queries: NDArray[np.float64],
    k: int,
    temperature: float,
) -> list[int]:
    """The class of each query: the largest sum of exp(cosine / temperature) over its k nearest."""
    answers = []
    for query in queries:
        cosines = [float(np.dot(row, query) / (np.linalg.norm(row) * np.linalg.norm(query))) for row in bank]
        nearest = sorted(range(len(bank)), key=lambda place: -cosines[place])[:k]
        votes: dict[int, float] = {}
        for place in nearest:
            label = int(labels[place])
            votes[label] = votes.get(label, 0.0) + math.exp(cosines[place] / temperature)
        answers.append(max(sorted(votes), key=lambda label: votes[label]))
    return answers
