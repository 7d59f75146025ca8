"""The patch branch: features of small patches beside the encoder, learned in closed form from pairs of views.

It is ready after the first minutes of a stream, long before a network has learned as much. Three steps, each
from sums over all ranks:

1. whitening and k-means centres of small patches of the first arrivals (`learner.patches`), and the linear
   map of their activations to the directions in which patches differ most compared with their neighbours,
2. sums of products over pairs of views of one image: how far images differ, and how far views of one do,
3. the linear map of the summed patches to the directions in which images differ most compared with their
   views (`learner.discriminant`).

Source: the patches are those of Coates, Lee and Ng 2011, "An analysis of single-layer networks in
unsupervised feature learning"; maps from neighbours in space: Chen, Yun, Ma, Olshausen and LeCun 2022,
arXiv:2209.15261.
"""

# B samples of this rank   N samples over all ranks   F patch features, scales x cells x numbers of a patch
# D numbers of a patch   K centres   E numbers of a mapped patch   W width of the branch   S side of a crop

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from learner import patches
from learner.augment import Views, photometric
from learner.collective import Group, gather_rows, sent, sum_together
from learner.config import AugmentConfig, ModelConfig
from learner.discriminant import add_pairs, from_triangle, map_of_pairs, pair_sums, triangle

PATCHES = 100
"""Taken of each arrival for the centres, of all scales together."""
NEIGHBOUR_PX = patches.STRIDE
"""From a patch to its neighbours, the one to the right and the one below."""
PAIRS_PER_ARRIVAL = 3
"""Pairs of views that count at most, for each arrival, in the first period; half as many in each next one."""
SOLUTIONS = 4
"""In a period, evenly spread over its pairs."""

_ROWS = 4096
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
        self._px, self.scales = config.branch_px, config.branch_scales
        numbers, centres, mapped = 3 * patches.SIDE**2, config.branch_centres, config.branch_patch_width
        wide = self.scales * self.GRID**2 * (2 * mapped or centres)
        self.mean_D: Tensor
        self.whitening_DD: Tensor
        self.centres_KD: Tensor
        self.mean_K: Tensor | None
        self.map_KE: Tensor | None
        self.mean_F: Tensor
        self.map_FW: Tensor
        self.register_buffer("mean_D", torch.zeros(numbers))
        self.register_buffer("whitening_DD", torch.zeros(numbers, numbers))
        self.register_buffer("centres_KD", torch.zeros(centres, numbers))
        self.register_buffer("mean_K", torch.zeros(centres) if mapped else None)
        self.register_buffer("map_KE", torch.zeros(centres, mapped) if mapped else None)
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

    def pyramid(self, images_B3SS: Tensor) -> list[Tensor]:
        """The `scales` sizes at which images are looked at, largest first, each half of the one before."""
        sizes = [self.shrunk(images_B3SS)]
        while len(sizes) < self.scales:
            halved = nn.functional.avg_pool2d(sizes[-1].to(self.centres_KD.dtype), 2)
            sizes.append(halved.round_())
        return sizes

    def patch_features(self, pixels_B3SS: Tensor) -> Tensor:
        """[B, F] before the last linear map."""
        whitening, local = patches.Whitening(self.mean_D, self.whitening_DD), None
        if self.mean_K is not None and self.map_KE is not None:
            local = patches.Whitening(self.mean_K, self.map_KE)
        dictionary = patches.PatchDictionary(whitening, self.centres_KD, local)
        # Smaller images have fewer places: there every pixel is one.
        strides = [patches.STRIDE, *[1] * (self.scales - 1)]
        encoded = [
            patches.encode(images, dictionary, stride=stride, grid=self.GRID)
            for images, stride in zip(self.pyramid(pixels_B3SS), strides, strict=True)
        ]
        return torch.cat(encoded, dim=1)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """[B, W] of images with pixels 0 .. 255, of any dtype."""
        with torch.autocast(self.device.type, enabled=False):
            return (self.patch_features(pixels_B3SS) - self.mean_F) @ self.map_FW


class PatchBranchFit:
    """Learns a `PatchBranch` from the batches of a run.

    The centres and the map of patches come from the first `branch_samples` arrivals. After them pairs of
    views are counted, in periods of `branch_pairs` each. A period lasts for twice as many arrivals as the one
    before; its pairs are counted half as often and weigh twice as much. So all arrivals weigh nearly alike,
    whatever their order, and the work becomes less and less. The map is solved for at every quarter of a
    period.

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
        """Pixels of patches, with those up to their neighbours where these are needed."""
        self._side = patches.SIDE + (NEIGHBOUR_PX if config.branch_patch_width else 0)
        self._samples = 0
        self._period = 0
        self._pairs = 0
        """Of this period."""
        self._credit = 0
        """Pairs that may count, in units of 1 / 2 ** period."""
        self._weight = 0
        """Of all pairs in the sums."""
        self._sums: list[Tensor] = []
        """Of this rank, over pairs of views; in the dtype of the branch, which keeps checkpoints small."""

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
                    self._learn_patches()
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
        device, scales = self._branch.device, self._branch.scales
        index_M = torch.arange(PATCHES // scales, dtype=torch.float64)
        drawn_2B = views.uniforms[0, :, :2].cpu().double().T
        shares = [
            (first_B[:, None] + index_M * step) % 1.0 for first_B, step in zip(drawn_2B, _STEPS, strict=True)
        ]
        rows = []
        for images in self._branch.pyramid(sent(views.crops[0][0], device)):
            free = images.shape[-1] - self._side + 1
            top_BM, left_BM = ((share_BM * free).long().to(device) for share_BM in shares)
            rows.append(
                patches.patches_at(images.to(torch.uint8), top_BM, left_BM, self._side).view(len(lane_B), -1)
            )
        # In the order of lanes, whichever rank has them.
        lanes_N = gather_rows(self._group, lane_B, counts)
        rows_NP = gather_rows(self._group, torch.cat(rows, dim=1), counts)
        self._patches.append(rows_NP[sent(torch.argsort(lanes_N, stable=True), device)])
        self._samples += sum(counts)

    def _learn_patches(self) -> None:
        """Whitening, centres and, where there is one, the map of patches."""
        branch = self._branch
        blocks_N3SS = torch.cat(self._patches).view(-1, 3, self._side, self._side)
        if branch.centres_KD.dtype == torch.float64:  # of bytes float32 would be made, piece by piece
            blocks_N3SS = blocks_N3SS.double()
        self._patches.clear()
        generator = torch.Generator().manual_seed(0)
        rows_ND = _patch_of(blocks_N3SS, 0, 0)
        learned = patches.learn_dictionary(rows_ND, centres=len(branch.centres_KD), generator=generator)
        # Fewer patches than centres: some centres are there more than once.
        index_K = torch.arange(len(branch.centres_KD), device=branch.device) % len(learned.centres_KD)
        self._agree(branch.mean_D, learned.whitening.mean_F)
        self._agree(branch.whitening_DD, learned.whitening.matrix_FW)
        self._agree(branch.centres_KD, learned.centres_KD[index_K])
        if branch.mean_K is not None and branch.map_KE is not None:
            centres_KD = branch.centres_KD
            sums = pair_sums(len(centres_KD), dtype=centres_KD.dtype, device=centres_KD.device)
            dictionary = patches.PatchDictionary(learned.whitening, centres_KD)
            for part in torch.split(blocks_N3SS, _ROWS):
                one, right, below = (
                    dictionary.activations(_patch_of(part.to(centres_KD.dtype), *place))
                    for place in ((0, 0), (0, NEIGHBOUR_PX), (NEIGHBOUR_PX, 0))
                )
                add_pairs(sums, one, right)
                add_pairs(sums, one, below)
            mean_K, map_KE = map_of_pairs(sums, 2 * len(blocks_N3SS), branch.map_KE.shape[1])
            self._agree(branch.mean_K, mean_K)
            self._agree(branch.map_KE, map_KE)

    def _compare(self, views: Views, *, weight: int) -> None:
        """Add the pairs of views of this batch to the sums."""
        device, dtype = self._branch.device, self._branch.centres_KD.dtype
        crops, uniforms = views.crops[0][:2], views.uniforms[:2]
        images = photometric(crops, uniforms, self._augment, device=device, dtype=dtype).mul_(255)
        one_BF, other_BF = self._branch.patch_features(images).chunk(2)
        if not self._sums:
            self._sums = pair_sums(len(self._branch.mean_F), dtype=dtype, device=device)
        add_pairs(self._sums, one_BF, other_BF, weight=weight)

    def _learn_map(self) -> None:
        """Solve for the directions, on all ranks."""
        # Of the products the half that a checkpoint keeps: a resumed run finds the same bits.
        sums = [self._sums[0].clone(), *map(triangle, self._sums[1:])]
        sum_together(sums, self._group)
        whole = [sums[0], *map(from_triangle, sums[1:])]
        mean_F, map_FW = map_of_pairs(whole, self._weight, self._branch.width)
        self._agree(self._branch.map_FW, map_FW)
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
            tensors |= {name: triangle(total_FF) for name, total_FF in zip(_PRODUCTS, products, strict=True)}
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
            whole = [tensors["middle"].clone(), *(from_triangle(tensors[name]) for name in _PRODUCTS)]
            # The sums of all ranks count once.
            first = self._group.rank == 0
            self._sums = [(total if first else torch.zeros_like(total)).to(device) for total in whole]


_PRODUCTS = ("middle_products", "apart_products")
_COUNTERS = ("foreign", "samples", "period", "pairs", "credit", "weight")


def _patch_of(blocks_N3SS: Tensor, top: int, left: int) -> Tensor:
    """The patch at one place of each block: [N, D]."""
    return blocks_N3SS[:, :, top : top + patches.SIDE, left : left + patches.SIDE].flatten(1)
