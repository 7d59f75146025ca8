"""The loss of the paper as a loop over pairs of views, samples and prototypes."""

import math


def swapped_loss(
    scores: list[list[list[float]]], codes: list[list[list[float]]], temperature: float
) -> list[float]:
    """Loss of each sample; `scores[v][b][k]`, `codes[i][b][k]`, codes belong to the first views."""
    losses = []
    for b in range(len(scores[0])):
        total = 0.0
        for i, code in enumerate(codes):
            others = [v for v in range(len(scores)) if v != i]
            for v in others:
                logits = [s / temperature for s in scores[v][b]]
                log_sum = math.log(sum(math.exp(x) for x in logits))
                total -= sum(q * (x - log_sum) for q, x in zip(code[b], logits, strict=True)) / len(others)
        losses.append(total / len(codes))
    return losses
