"""Swapped prediction: the code of one view is predicted from the other views.

n views   A assigned views, the first of them   B samples   K prototypes
"""

import torch
from torch import Tensor


def swapped_loss(scores_nBK: Tensor, codes_ABK: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy between the codes of the assigned views and the predictions of every *other* view.

        l_b = - 1/A sum_{i in A} 1/(n-1) sum_{v != i} sum_k q_ibk log softmax(s_vb / temperature)_k

    The inner sum over v != i is taken as (sum over all v) - (v = i), so that there is no loop over pairs.

    Args:
        scores_nBK: [n, B, K] cosines, assigned views first; float64 stays, half precision is
            raised to float32, also under autocast.
        codes_ABK: [A, B, K] without gradient, each sample sums to 1.
        temperature: > 0.

    Returns:
        [B] loss of each sample, nats; their mean is the loss of the batch. About ln K when nothing is
        learned.

    Raises:
        ValueError: fewer than two views, more codes than views, or codes that would pass a gradient.

    Source: Caron et al. 2020, arXiv:2006.09882, eq. 1, 2 and 6.
    """
    num_views, num_assigned = len(scores_nBK), len(codes_ABK)
    if num_views < 2 or num_assigned > num_views:
        raise ValueError(f"{num_assigned} codes need as many views, and at least two; got {num_views} views")
    if codes_ABK.requires_grad:
        raise ValueError("codes must carry no gradient: they are the target")
    with torch.autocast(scores_nBK.device.type, enabled=False):
        scores_nBK = scores_nBK if scores_nBK.dtype == torch.float64 else scores_nBK.float()
        log_p_nBK = torch.log_softmax(scores_nBK / temperature, dim=-1)
        all_views_B = (codes_ABK.sum(0) * log_p_nBK.sum(0)).sum(-1)
        own_view_B = (codes_ABK * log_p_nBK[:num_assigned]).sum((0, -1))
        return (own_view_B - all_views_B) / (num_assigned * (num_views - 1))
