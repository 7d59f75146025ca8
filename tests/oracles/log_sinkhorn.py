"""Sinkhorn in the log domain and float64: slow, and right wherever the answer exists."""

import math

import torch
from torch import Tensor


def log_sinkhorn(
    scores_BK: Tensor, *, epsilon: float, iterations: int, prior_K: Tensor | None = None
) -> Tensor:
    """[B, K] float64: alternate log-sum-exp normalisation, prototypes first, samples last."""
    log_q = scores_BK.double() / epsilon
    wanted = torch.full((log_q.shape[1],), -math.log(log_q.shape[1]), dtype=torch.float64)
    if prior_K is not None:
        wanted = prior_K.double().log()
    for _ in range(iterations):
        log_q = log_q - torch.logsumexp(log_q, dim=0, keepdim=True) + wanted
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp()
