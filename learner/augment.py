"""Photometric half of multi-crop: colour jitter, grayscale, blur and normalisation, drawn per view.

The geometric half (random resized crop, flip) was done on uint8 where the image was decoded. Here each view
has its own parameters, taken from uniforms that travel with the sample, so a sample looks the same in
whatever batch, rank or attempt it turns up.

n views   B samples   R rows (views x samples of one kind of crop, or some of them)   S side in pixels
U uniforms
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from learner.collective import Deal, sent, sent_together
from learner.config import AugmentConfig

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


GRAY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in luma, as in torchvision."""

BLUR_REACH = 3.0
"""The Gaussian is cut at so many sigma; beyond lies 0.3 % of it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Views:
    """The crops of one batch of one rank, before colour.

    n views in all, kinds in order, the views of one kind together; B samples in lane order.
    """

    crops: tuple[Tensor, ...]
    """One for each kind of crop: uint8 [count, B, 3, S, S]."""
    uniforms: Tensor
    """[n, B, 16] float32 on the CPU, in [0, 1): the draws of the photometric half, see `draws.UNIFORMS`."""
    lane_B: Tensor | None = None
    """[B] int64 on the CPU, lane of each sample: batch-norm groups and the queue's shards follow it. None =
    each sample is a lane of its own, which one rank alone can have."""

    def __post_init__(self) -> None:
        shapes = [tuple(crop.shape) for crop in self.crops]
        if not shapes or any(len(shape) != 5 or shape[2] != 3 for shape in shapes):
            raise ValueError(f"crops must be [count, B, 3, S, S], got {shapes}")
        views, samples = sum(shape[0] for shape in shapes), shapes[0][1]
        if any(shape[1] != samples for shape in shapes) or samples == 0:
            raise ValueError(
                f"every kind of crop must have the same number of samples, at least one; got {shapes}"
            )
        if self.uniforms.shape[:2] != (views, samples) or self.uniforms.shape[2] < len(UNIFORMS):
            raise ValueError(
                f"uniforms must be [{views}, {samples}, >= {len(UNIFORMS)}], got {tuple(self.uniforms.shape)}"
            )
        if self.lane_B is not None and self.lane_B.shape != (samples,):
            raise ValueError(f"lane_B must be [{samples}], got {tuple(self.lane_B.shape)}")

    def lanes(self, deal: Deal) -> Tensor:
        """[B] int64 on the CPU: the lanes; on one rank, where none are named, a lane of its own each.

        Raises:
            ValueError: a lane that belongs to another rank, or none are named on several ranks.
        """
        if self.lane_B is None and deal.ranks.world_size == 1:
            return torch.arange(self.crops[0].shape[1])
        if self.lane_B is None:
            raise ValueError("with several ranks each sample needs to name its lane")
        lane_B = self.lane_B.cpu()
        foreign = lane_B[~deal.mine(lane_B)]
        if len(foreign) > 0:
            raise ValueError(
                f"rank {deal.ranks.rank} of {deal.ranks.world_size} brings a sample of lane "
                f"{int(foreign[0])}, which is another rank's"
            )
        return lane_B

    def part(self, index_B: Tensor) -> "Views":
        """Some of the samples; crops in page-locked memory stay in such."""
        return Views(
            crops=tuple(_some(crop, index_B) for crop in self.crops),
            uniforms=self.uniforms[:, index_B],
            lane_B=None if self.lane_B is None else self.lane_B[index_B],
        )


def photometric(
    crops: Tensor, uniforms: Tensor, config: AugmentConfig, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Colour jitter, grayscale, blur and normalisation of one kind of crop.

    The operations are torchvision's on float images in [0, 1] (clamped after brightness, contrast and
    saturation, as there), in one of the 24 orders, drawn per view. The blur is a Gaussian cut at 3 sigma
    with reflected edges.

    Args:
        crops: uint8 [count, B, 3, S, S].
        uniforms: [count, B, >= 9] on the CPU, in [0, 1).
        config: strengths and probabilities.
        device: where the work is done.
        dtype: float32 or float64.

    Returns:
        [count x B, 3, S, S], views one after the other.

    Source: Chen et al. 2020, arXiv:2002.05709, appendix A; Caron et al. 2020, arXiv:2006.09882, A.1.
    """
    x_R3SS = sent(crops, device).flatten(0, 1).to(dtype).div_(255)
    plan = plan_of(uniforms.flatten(0, 1).to(dtype), config, device)
    if plan.turns:
        _jitter(x_R3SS, plan)
    if len(plan.gray_R) > 0:
        x_R3SS[plan.gray_R] = _gray(x_R3SS[plan.gray_R]).expand(-1, 3, -1, -1)
    if len(plan.blur_R) > 0:
        reach_px = BLUR_REACH * config.blur_sigma_max
        x_R3SS[plan.blur_R] = blur(x_R3SS[plan.blur_R], plan.sigma_R, reach_px=reach_px)
    return normalise_(x_R3SS, config)


def normalise_(x_R3SS: Tensor, config: AugmentConfig) -> Tensor:
    """Subtract the mean and divide by the deviation of each channel, in place."""
    mean, std = (_channels(values, x_R3SS.dtype, x_R3SS.device) for values in (config.mean, config.std))
    return x_R3SS.sub_(mean).div_(std)


@functools.lru_cache(maxsize=16)
def _channels(values: tuple[float, float, float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[3, 1, 1]; kept, because sending three numbers makes a GPU's host wait."""
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def _some(crop: Tensor, index_B: Tensor) -> Tensor:
    """Some of the samples of one kind of crop."""
    if not crop.is_pinned():
        return crop[:, index_B]
    out = torch.empty((len(crop), len(index_B), *crop.shape[2:]), dtype=crop.dtype, pin_memory=True)
    return torch.index_select(crop, 1, index_B, out=out)


def _jitter(x_R3SS: Tensor, plan: Plan) -> None:
    """Brightness, contrast, saturation and hue of some rows, each in its own order, written back in place."""
    part = x_R3SS[plan.jitter_R]
    for turn in plan.turns:
        part = part[turn.move_R]
        amounts = turn.amount_R[:, None, None, None]
        for operation, slice_, amount in zip(
            _OPERATIONS, torch.split(part, turn.counts), torch.split(amounts, turn.counts), strict=True
        ):
            if len(slice_) > 0:
                operation(slice_, amount)
    x_R3SS[plan.back_R] = part


def _brightness_(x: Tensor, factor: Tensor) -> None:
    x.mul_(factor).clamp_(0, 1)


def _contrast_(x: Tensor, factor: Tensor) -> None:
    mean = _gray(x).mean((1, 2, 3), keepdim=True)
    x.mul_(factor).add_((1 - factor) * mean).clamp_(0, 1)


def _saturation_(x: Tensor, factor: Tensor) -> None:
    gray = _gray(x).mul_(1 - factor)
    x.mul_(factor).add_(gray).clamp_(0, 1)


def _hue_(x: Tensor, turn: Tensor) -> None:
    """Turn the hue.

    channel = value - chroma clamp(min(k, 4 - k), 0, 1) with k = (n + 6 hue) mod 6 and n = 5, 3, 1.
    """
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    # A gray pixel has no hue; any does, for its chroma is 0.
    scale = torch.where(chroma > 0, chroma, 1).reciprocal_()
    hue = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    hue.add_(turn[:, 0] * 6)
    for channel, n in enumerate((5, 3, 1)):
        k = (hue + n).remainder_(6)
        k = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.addcmul(value, chroma, k, value=-1, out=x[:, channel])


_OPERATIONS = (_brightness_, _contrast_, _saturation_, _hue_)


def _gray(x_R3SS: Tensor) -> Tensor:
    """[R, 1, S, S] luma."""
    red, green, blue = GRAY
    gray = x_R3SS[:, :1] * red
    return gray.add_(x_R3SS[:, 1:2], alpha=green).add_(x_R3SS[:, 2:], alpha=blue)


def blur(x_R3SS: Tensor, sigma_R: Tensor, *, reach_px: float) -> Tensor:
    """Gaussian blur with a sigma for each row.

    The kernel of a row, reflection at the edges included, is written as one [S, S] matrix T; then blurring is
    T x T^t: two batched products instead of a convolution with a kernel for every image.

    Args:
        x_R3SS: [R, 3, S, S].
        sigma_R: [R] pixels, > 0.
        reach_px: half width of the kernel; rounded up, at most S - 1.
    """
    rows, channels, side, _ = x_R3SS.shape
    reach = min(math.ceil(reach_px), side - 1)
    steps = torch.arange(-reach, reach + 1, device=x_R3SS.device)
    weight_RJ = torch.exp(-0.5 * (steps / sigma_R[:, None]).square())
    weight_RJ = weight_RJ / weight_RJ.sum(1, keepdim=True)
    pixel = torch.arange(side, device=x_R3SS.device)
    source_JS = (pixel + steps[:, None]).abs()
    source_JS = torch.where(source_JS >= side, 2 * (side - 1) - source_JS, source_JS)
    place_JSS = torch.nn.functional.one_hot(source_JS, side).to(x_R3SS.dtype)
    kernel_RSS = (weight_RJ.to(x_R3SS.dtype) @ place_JSS.flatten(1)).view(rows, side, side)
    along_rows = torch.bmm(x_R3SS.reshape(rows, channels * side, side), kernel_RSS.transpose(1, 2))
    return kernel_RSS[:, None] @ along_rows.view(rows, channels, side, side)
