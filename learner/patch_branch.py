"""The patch branch: features of small patches beside the encoder, learned in closed form from pairs of views.

It is ready after the first minutes of a stream, long before a network has learned as much. Three steps, each
from sums over all ranks:

1. whitening and k-means centres of small patches of the first arrivals (`learner.patches`),
2. sums of products over pairs of views of one image: how far images differ, and how far views of one do,
3. the linear map to the directions in which images differ most compared with their views.

Source: the patches are those of Coates, Lee and Ng 2011, "An analysis of single-layer networks in
unsupervised feature learning". The map is linear discriminant analysis with each image as a class of its own
(Fisher 1936; Hatch, Kajarekar and Stolcke 2006: within-class covariance normalisation).
"""

# B samples of this rank   N samples over all ranks   F patch features, cells x K   W width of the branch
# D numbers of a patch   K centres   S side of a crop

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from learner import patches
from learner.augment import Views, photometric
from learner.collective import Group, gather_rows, sent, sum_together
from learner.config import AugmentConfig, ModelConfig

PATCHES = 100
"""Taken of each arrival for the centres."""
PAIRS_PER_ARRIVAL = 3
"""Pairs of views that count at most, for each arrival, in the first period; half as many in each next one."""
SOLUTIONS = 4
"""In a period, evenly spread over its pairs."""
RIDGE = 0.3
"""Share of the mean variance between views that is added to that of every direction: sums over few pairs see
some directions as steadier than they are."""

_LEAST_RATIO = 1e-6

_STEPS = (0.7548776662466927, 0.5698402909980532)
"""Of a sequence that fills the square evenly: Roberts 2018, "The unreasonable effectiveness of quasirandom
sequences"."""


class PatchBranch(nn.Module):
    """Features of small patches: triangle activation over a grid, and a linear map; no parameters.

    All buffers are zero, and so is the output, until `learner.patch_branch.PatchBranchFit` has learned them.

    Args:
        config: `branch_*`.

    Source: Coates, Lee and Ng 2011, "An analysis of single-layer networks in unsupervised feature learning".
    """

    GRID = 3
    """Cells in each direction over which the patches are summed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._px = config.branch_px
        numbers, wide = 3 * patches.SIDE**2, self.GRID**2 * config.branch_centres
        self.mean_D: Tensor
        self.whitening_DD: Tensor
        self.centres_KD: Tensor
        self.mean_F: Tensor
        self.map_FW: Tensor
        self.register_buffer("mean_D", torch.zeros(numbers))
        self.register_buffer("whitening_DD", torch.zeros(numbers, numbers))
        self.register_buffer("centres_KD", torch.zeros(config.branch_centres, numbers))
        self.register_buffer("mean_F", torch.zeros(wide))
        self.register_buffer("map_FW", torch.zeros(wide, config.branch_width))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.map_FW.device

    @property
    def width(self) -> int:
        """W, numbers of an output."""
        return self.map_FW.shape[1]

    @property
    def learned(self) -> bool:
        """Whether the output is more than zero; waits for the device."""
        return bool(self.map_FW.any())

    def shrunk(self, images_B3SS: Tensor) -> Tensor:
        """Images as the branch looks at them: at most `branch_px` a side, whole numbers where shrunk."""
        if images_B3SS.shape[-1] <= self._px and images_B3SS.shape[-2] <= self._px:
            return images_B3SS
        floating = images_B3SS.to(self.centres_KD.dtype)
        size = (self._px, self._px)
        small = nn.functional.interpolate(floating, size, mode="bilinear", antialias=True)
        return small.round_().clamp_(0, 255)

    def patch_features(self, pixels_B3SS: Tensor) -> Tensor:
        """[B, F] before the linear map."""
        dictionary = patches.PatchDictionary(
            patches.Whitening(self.mean_D, self.whitening_DD), self.centres_KD
        )
        return patches.encode(self.shrunk(pixels_B3SS), dictionary, grid=self.GRID)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """[B, W] of images with pixels 0 .. 255, of any dtype."""
        with torch.autocast(self.device.type, enabled=False):
            return (self.patch_features(pixels_B3SS) - self.mean_F) @ self.map_FW


class PatchBranchFit:
    """Learns a `PatchBranch` from the batches of a run.

    The centres come from the first `branch_samples` arrivals. After them pairs of views are counted, in
    periods of `branch_pairs` each. A period lasts for twice as many arrivals as the one before; its pairs are
    counted half as often and weigh twice as much. So all arrivals weigh nearly alike, whatever their order,
    and the work becomes less and less. The map is solved for at every quarter of a period.

    With several ranks all call the same methods together; all get the same branch, whatever their number.

    Args:
        branch: what is learned, in place. A branch that has been learned elsewhere stays as it is.
        config: `branch_*`.
        augment: the colour of views.
        group: the ranks.
    """

    def __init__(
        self, branch: PatchBranch, config: ModelConfig, augment: AugmentConfig, group: Group
    ) -> None:
        self._branch = branch
        self._config = config
        self._augment = replace(augment, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self._group = group
        self._foreign = branch.learned
        self._patches: list[Tensor] = []
        self._samples = 0
        self._period = 0
        self._pairs = 0
        """Of this period."""
        self._credit = 0
        """Pairs that may count, in units of 1 / 2 ** period."""
        self._weight = 0
        """Of all pairs in the sums."""
        self._sums: list[Tensor] = []
        """Of this rank: the mean of two views [F], products of it and of their difference [F, F]; in the
        dtype of the branch, which keeps checkpoints small."""

    @torch.no_grad()
    def observe(self, views: Views, lane_B: Tensor, counts: Sequence[int], *, fresh: bool) -> None:
        """Take in a batch after its update.

        Args:
            views: at least two crops of the first kind.
            lane_B: [B] int64 on the CPU, lanes of the samples.
            counts: samples of every rank.
            fresh: these samples are arrivals.
        """
        if self._foreign:
            return
        total = sum(counts)
        if self._samples < self._config.branch_samples:
            if fresh:
                self._collect(views, lane_B, counts)
                if self._samples >= self._config.branch_samples:
                    self._learn_centres()
            return
        price = total << self._period
        if fresh:
            # Of what too few updates could not spend, late arrivals get nothing: they would weigh more.
            self._credit = min(self._credit, price - 1) + PAIRS_PER_ARRIVAL * total
        if self._credit < price:
            return
        self._credit -= price
        self._compare(views, weight=1 << self._period)
        self._weight += price
        quarter = self._pairs * SOLUTIONS // self._config.branch_pairs
        self._pairs += total
        if self._pairs * SOLUTIONS // self._config.branch_pairs > quarter:
            self._learn_map()
        if self._pairs >= self._config.branch_pairs:
            self._period, self._pairs = self._period + 1, 0

    def _collect(self, views: Views, lane_B: Tensor, counts: Sequence[int]) -> None:
        """Patches of the first view, at places that follow from the sample's own draws."""
        device = self._branch.device
        images_B3SS = self._branch.shrunk(sent(views.crops[0][0], device)).to(torch.uint8)
        free = images_B3SS.shape[-1] - patches.SIDE + 1
        index_M = torch.arange(PATCHES, dtype=torch.float64)
        drawn_2B = views.uniforms[0, :, :2].cpu().double().T
        places = [
            ((first_B[:, None] + index_M * step) % 1.0 * free).long().to(device)
            for first_B, step in zip(drawn_2B, _STEPS, strict=True)
        ]
        rows_BP = patches.patches_at(images_B3SS, places[0], places[1]).view(len(lane_B), -1)
        # In the order of lanes, whichever rank has them.
        lanes_N = gather_rows(self._group, lane_B, counts)
        rows_NP = gather_rows(self._group, rows_BP, counts)
        self._patches.append(rows_NP[sent(torch.argsort(lanes_N, stable=True), device)])
        self._samples += sum(counts)

    def _learn_centres(self) -> None:
        branch = self._branch
        rows_ND = torch.cat(self._patches).view(-1, branch.centres_KD.shape[1])
        if branch.centres_KD.dtype == torch.float64:  # of bytes float32 would be made, piece by piece
            rows_ND = rows_ND.double()
        self._patches.clear()
        generator = torch.Generator().manual_seed(0)
        learned = patches.learn_dictionary(rows_ND, centres=len(branch.centres_KD), generator=generator)
        # Fewer patches than centres: some centres are there more than once.
        index_K = torch.arange(len(branch.centres_KD), device=branch.device) % len(learned.centres_KD)
        self._agree(branch.mean_D, learned.whitening.mean_F)
        self._agree(branch.whitening_DD, learned.whitening.matrix_FW)
        self._agree(branch.centres_KD, learned.centres_KD[index_K])

    def _compare(self, views: Views, *, weight: int) -> None:
        """Add the pairs of views of this batch to the sums."""
        device, dtype = self._branch.device, self._branch.centres_KD.dtype
        crops, uniforms = views.crops[0][:2], views.uniforms[:2]
        images = photometric(crops, uniforms, self._augment, device=device, dtype=dtype).mul_(255)
        one_BF, other_BF = self._branch.patch_features(images).chunk(2)
        middle_BF, apart_BF = one_BF.add(other_BF).div_(2), one_BF.sub(other_BF)
        if not self._sums:
            wide = len(self._branch.mean_F)
            self._sums = [
                torch.zeros(shape, dtype=dtype, device=device) for shape in (wide, (wide, wide), (wide, wide))
            ]
        self._sums[0].add_(middle_BF.sum(0), alpha=weight)
        for total_FF, rows_BF in zip(self._sums[1:], (middle_BF, apart_BF), strict=True):
            total_FF.addmm_(rows_BF.T, rows_BF, alpha=weight)

    def _learn_map(self) -> None:
        """Solve for the directions, on all ranks."""
        # Of the products the half that a checkpoint keeps: a resumed run finds the same bits.
        sums = [self._sums[0].clone(), *map(_triangle, self._sums[1:])]
        sum_together(sums, self._group)
        mean_F, *products = (total.double().div_(self._weight) for total in sums)
        products_FF, apart_FF = map(_whole, products)
        # The difference of two views has twice their variance, their mean half of it.
        within_FF = apart_FF.div_(2)
        between_FF = products_FF.sub_(torch.outer(mean_F, mean_F)).sub_(within_FF, alpha=0.5)
        self._agree(self._branch.map_FW, discriminant_map(within_FF, between_FF, self._branch.width))
        self._agree(self._branch.mean_F, mean_F)

    def _agree(self, target: Tensor, value: Tensor) -> None:
        """Set to what the first rank found: another machine may round otherwise."""
        found = value.to(target.dtype) * (1 if self._group.rank == 0 else 0)
        self._group.sum_(found)
        target.copy_(found)

    def hand_over(self) -> None:
        """The part of `state_dict` that other ranks wait for; nothing is copied to the CPU."""
        for total in self._sums:
            self._group.sum(total)

    def state_dict(self) -> dict[str, Any]:
        """What the next batches need, of all ranks; every rank calls it."""
        tensors = {}
        if self._patches:
            tensors["patches"] = torch.cat(self._patches).cpu()
        if self._sums:
            middle_F, *products = (self._group.sum(total).cpu() for total in self._sums)
            tensors["middle"] = middle_F
            tensors |= {name: _triangle(total_FF) for name, total_FF in zip(_PRODUCTS, products, strict=True)}
        values = {name: getattr(self, f"_{name}") for name in _COUNTERS}
        return {"tensors": tensors, "values": values}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state, of any number of ranks."""
        device, tensors = self._branch.device, saved["tensors"]
        for name in _COUNTERS:
            setattr(self, f"_{name}", saved["values"][name])
        self._patches = [tensors["patches"].to(device)] if "patches" in tensors else []
        self._sums = []
        if "middle" in tensors:
            whole = [tensors["middle"].clone(), *(_whole(tensors[name]) for name in _PRODUCTS)]
            # The sums of all ranks count once.
            first = self._group.rank == 0
            self._sums = [(total if first else torch.zeros_like(total)).to(device) for total in whole]


_PRODUCTS = ("middle_products", "apart_products")
_COUNTERS = ("foreign", "samples", "period", "pairs", "credit", "weight")


def _triangle(symmetric_FF: Tensor) -> Tensor:
    """The upper triangle, row by row: half the bytes."""
    rows, columns = torch.triu_indices(*symmetric_FF.shape, device=symmetric_FF.device)
    return symmetric_FF[rows, columns]


def _whole(triangle: Tensor) -> Tensor:
    """The symmetric matrix of an upper triangle."""
    side = math.isqrt(2 * len(triangle))
    rows, columns = torch.triu_indices(side, side, device=triangle.device)
    out = torch.zeros(side, side, dtype=triangle.dtype, device=triangle.device)
    out[rows, columns] = triangle
    out[columns, rows] = triangle
    return out


def discriminant_map(within_FF: Tensor, between_FF: Tensor, width: int) -> Tensor:
    """The linear map to the directions in which images differ most compared with their views.

    Args:
        within_FF: float64, covariance of the views of one image.
        between_FF: float64, covariance of images, without that of their views.
        width: W; columns of zeros where fewer directions tell images apart at all.

    Returns:
        [F, W] float64; mapped images have a mean squared length of 1. The first has the largest ratio.
    """
    side = len(within_FF)
    steadied_FF = within_FF.clone()
    # Views that never differ leave nothing to divide by.
    least = _LEAST_RATIO * between_FF.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    steadied_FF.diagonal().add_(RIDGE * torch.maximum(within_FF.diagonal().mean(), least))
    factor_FF = torch.linalg.cholesky(steadied_FF)
    half_FF = torch.linalg.solve_triangular(factor_FF, between_FF, upper=False)
    ratio_FF = torch.linalg.solve_triangular(factor_FF, half_FF.T, upper=False)
    ratio_FF = ratio_FF.add_(ratio_FF.T.clone()).div_(2)
    _, vectors_FW = patches.leading_eigenpairs(ratio_FF, width)
    directions_FW = torch.linalg.solve_triangular(factor_FF.T, vectors_FW, upper=True)
    largest_W = directions_FW.abs().argmax(0, keepdim=True)
    directions_FW *= directions_FW.gather(0, largest_W).sign()
    lengths = (directions_FW * ((within_FF + between_FF) @ directions_FW)).sum()
    directions_FW /= lengths.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    out = torch.zeros(side, width, dtype=directions_FW.dtype, device=directions_FW.device)
    out[:, : directions_FW.shape[1]] = directions_FW
    return out
