"""What the photometric draws of a batch come to: which rows something is done to, in which order, how much.

R rows (views x samples of one kind of crop, or some of them)   U uniforms
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from learner.config import AugmentConfig
from learner.transfer import sent_together

UNIFORMS = (
    "jitter: applied if below jitter_probability",
    "brightness factor, from max(0, 1 - 0.8 s) to 1 + 0.8 s",
    "contrast factor, the same",
    "saturation factor, the same",
    "hue turn, from -0.2 s to 0.2 s of the circle",
    "order of the four, one of 24",
    "grayscale: applied if below grayscale_probability",
    "blur: applied if below blur_probability",
    "blur sigma, from blur_sigma_min to blur_sigma_max",
)
"""What each of the uniforms of a view is for, in order; the rest is not used."""

ORDERS = tuple(itertools.permutations(range(4)))
"""Orders of brightness, contrast, saturation and hue (0 to 3), numbered as the uniform picks them."""


class Turn(NamedTuple):
    """What happens in one of the four places of the orders of jitter."""

    counts: list[int]
    """Rows that brightness, contrast, saturation and hue come to now; in this order they lie."""
    move_R: Tensor
    """Where each row was in the turn before."""
    amount_R: Tensor


class Plan(NamedTuple):
    """Which rows something is done to, and how much of it; tensors on the device."""

    jitter_R: Tensor
    turns: list[Turn]
    """Four; none where no row has jitter."""
    back_R: Tensor
    """The row that each came from, as they lie after the last turn."""
    gray_R: Tensor
    blur_R: Tensor
    sigma_R: Tensor


def plan_of(u_RU: Tensor, config: AugmentConfig, device: torch.device) -> Plan:
    """What the draws of some rows come to.

    Worked out on the CPU, where the sizes that follow from it are needed, and sent over in one copy.

    Args:
        u_RU: [R, >= 9] on the CPU, in [0, 1); see UNIFORMS.
        config: strengths and probabilities.
        device: where the plan is needed.
    """
    jitter_R, gray_R, blur_R = (
        torch.nonzero(u_RU[:, column] < probability).squeeze(1)
        for column, probability in (
            (0, config.jitter_probability),
            (6, config.grayscale_probability),
            (7, config.blur_probability),
        )
    )
    turns: list[Turn] = []
    back_R = jitter_R
    if config.jitter > 0 and len(jitter_R) > 0:
        turns, layout_R = _turns(u_RU[jitter_R], config.jitter)
        back_R = jitter_R[layout_R]
    spread = config.blur_sigma_max - config.blur_sigma_min
    sigma_R = config.blur_sigma_min + spread * u_RU[blur_R, 8]
    moves = [part for turn in turns for part in (turn.move_R, turn.amount_R)]
    jitter_R, back_R, gray_R, blur_R, sigma_R, *moves = sent_together(
        [jitter_R, back_R, gray_R, blur_R, sigma_R, *moves], device
    )
    there = [
        Turn(turn.counts, move_R, amount_R)
        for turn, move_R, amount_R in zip(turns, moves[::2], moves[1::2], strict=True)
    ]
    return Plan(jitter_R, there, back_R, gray_R, blur_R, sigma_R)


def _turns(u_RU: Tensor, strength: float) -> tuple[list[Turn], Tensor]:
    """The four turns of some rows, and which of them lies where after the last.

    In each of the four places of the order, rows that have the same operation there are brought next to each
    other, so that every operation runs on whole slices: four gathers in place of 24 groups of rows.
    """
    low = max(0.0, 1 - 0.8 * strength)
    factors_R3 = low + (1 + 0.8 * strength - low) * u_RU[:, 1:4]
    turn_R1 = (2 * u_RU[:, 4:5] - 1) * min(0.5, 0.2 * strength)
    amounts_R4 = torch.cat([factors_R3, turn_R1], dim=1)
    order_R4 = torch.tensor(ORDERS)[(u_RU[:, 5] * len(ORDERS)).long().clamp_(0, len(ORDERS) - 1)]
    layout_R = torch.arange(len(u_RU))
    turns = []
    for place in range(4):
        next_R = order_R4[:, place].argsort(stable=True)
        move_R = torch.empty_like(layout_R).scatter_(0, layout_R, torch.arange(len(u_RU)))[next_R]
        layout_R = next_R
        counts = torch.bincount(order_R4[:, place], minlength=4).tolist()
        turns.append(Turn(counts, move_R, amounts_R4[layout_R, order_R4[layout_R, place]]))
    return turns, layout_R
