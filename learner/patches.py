"""Features of small patches without gradients: whitening, online k-means, sums over quadrants of an image.

Every function is pure. It works in the floating dtype and on the device of what it is given. What is learned
from data is learned from sums that may be added over batches and ranks: `Moments`, `ClusterSums`. Rows that
went through `on_grid` have sums that are exact in float64: the order of the additions changes no bit.

Source: Coates, Lee and Ng 2011, "An analysis of single-layer networks in unsupervised feature learning".
"""

# N rows   D numbers of a patch, 3 x side x side   F width of a row   W width after whitening   K centres
# B images   M places of an image   P = h x w places of the map of an image

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from operator import add

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 6
"""Pixels of a patch in each direction."""
STRIDE = 2
"""Pixels between the patches of an encoded image."""
GRID = 2
"""Cells of an encoded image in each direction: its quadrants."""
ZCA_FLOOR = 0.1
"""Added to every eigenvalue of the covariance of contrast-normalised patches."""
CONTRAST_FLOOR = 10.0
"""Added to the variance of a patch, of pixels 0 .. 255: a flat patch stays flat."""
KMEANS_ROWS = 1000
"""Patches of one k-means step."""

_PATCH_GRID = 2.0**-10
"""Contrast-normalised numbers are at most sqrt(D): products of 2^25 patches have exact sums."""
_WHITENED_GRID = 2.0**-16
"""Whitened numbers are at most sqrt(D / 0.1), about 33: 2^31 patches have exact sums."""
_ROWS = 1024
_COLUMNS = 1024
_CHUNK_NUMBERS = 1 << 19
"""Distances that are worked on at once: they stay in the processor's cache."""
_CHUNK_NUMBERS_OF_A_DEVICE = 1 << 26
"""The same off the CPU: few launches, and at most 256 MB."""
_EXACT_SIDE = 2048
_KRYLOV_BLOCKS = 6
_KRYLOV_SPARE = 32
_RANK_TOLERANCE = 1e-9


def on_grid(rows: Tensor, step: float) -> Tensor:
    """Round to multiples of `step`, a power of two, in float64."""
    return (rows.double() / step).round_().mul_(step)


# Whitening


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over rows, float64; `a + b` is that of both together."""

    rows: int
    """N."""
    sum_F: Tensor
    products_FF: Tensor
    """Sum of the outer products of each row with itself."""

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.rows + other.rows, self.sum_F + other.sum_F, self.products_FF + other.products_FF)

    def covariance(self) -> Tensor:
        """[F, F] float64, divided by N."""
        mean_F = self.sum_F / self.rows
        return self.products_FF / self.rows - torch.outer(mean_F, mean_F)


def moments(rows_NF: Tensor) -> Moments:
    """Sums over rows [N, F] of any dtype, slice by slice in float64."""
    width = rows_NF.shape[1]
    sum_F = torch.zeros(width, dtype=torch.float64, device=rows_NF.device)
    products_FF = torch.zeros(width, width, dtype=torch.float64, device=rows_NF.device)
    for part in torch.split(rows_NF, _ROWS):
        part_NF = part.double()
        sum_F += part_NF.sum(0)
        # The other triangle is the same.
        for first in range(0, width, _COLUMNS):
            columns = slice(first, first + _COLUMNS)
            products_FF[columns, first:].addmm_(part_NF[:, columns].T, part_NF[:, first:])
    for first in range(0, width, _COLUMNS):
        last = first + _COLUMNS
        products_FF[last:, first:last] = products_FF[first:last, last:].T
    return Moments(len(rows_NF), sum_F, products_FF)


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """A linear map after which rows have mean 0 and uncorrelated numbers."""

    mean_F: Tensor
    """float64."""
    matrix_FW: Tensor
    """float64."""

    def __call__(self, rows_NF: Tensor) -> Tensor:
        """[N, F] -> [N, W] in the dtype of the rows."""
        matrix_FW = self.matrix_FW.to(rows_NF.dtype)
        shift_W = (self.mean_F @ self.matrix_FW).to(rows_NF.dtype)
        return torch.addmm(shift_W, rows_NF, matrix_FW, beta=-1)


def zca(found: Moments, floor: float) -> Whitening:
    """Whitening that stays as near to the rows as it can: W = F, and an eigenvalue v becomes v / (v + floor).

    Args:
        found: at least one row.
        floor: added to every eigenvalue, > 0.

    Source: Coates, Lee and Ng 2011, section 3.2; Krizhevsky 2009, appendix A.
    """
    values_F, vectors_FF = torch.linalg.eigh(found.covariance())
    scale_F = (values_F.clamp_min(0) + floor).rsqrt()
    return Whitening(found.sum_F / found.rows, (vectors_FF * scale_F) @ vectors_FF.T)


def pca(found: Moments, width: int) -> Whitening:
    """Whitening to the directions of the largest variance, largest first, each with variance 1.

    Args:
        found: at least two different rows.
        width: W at most; fewer where the rows span fewer directions.
    """
    values_W, vectors_FW = leading_eigenpairs(found.covariance(), width)
    return Whitening(found.sum_F / found.rows, vectors_FW * values_W.rsqrt())


def pca_of_rows(rows_NF: Tensor, width: int) -> Whitening:
    """`pca` of rows [N, F]; quicker where they are fewer than their numbers."""
    count, width_all = rows_NF.shape
    if count >= width_all:
        return pca(moments(rows_NF), width)
    # The covariance X'X / N and the smaller XX' / N have the same eigenvalues; X' takes the vectors over.
    mean_F = rows_NF.double().mean(0)
    centred_NF = rows_NF.double() - mean_F
    values_W, vectors_NW = leading_eigenpairs(centred_NF @ centred_NF.T / count, width)
    directions_FW = centred_NF.T @ vectors_NW / (count * values_W).sqrt()
    return Whitening(mean_F, directions_FW * values_W.rsqrt())


def leading_eigenpairs(symmetric_SS: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, largest first, that are not rounding, and their vectors; at most `width`.

    A large matrix is projected on a block Krylov space first. There the largest eigenvalues are found to many
    digits, and those vectors are uncorrelated under the matrix in any case.

    Source: Musco and Musco 2015, arXiv:1504.05477, algorithm 2.
    """
    side = len(symmetric_SS)
    if side <= max(_EXACT_SIDE, _KRYLOV_BLOCKS * (width + _KRYLOV_SPARE)):
        values_S, vectors_SS = torch.linalg.eigh(symmetric_SS)
    else:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(side, width + _KRYLOV_SPARE, generator=generator, dtype=symmetric_SS.dtype)
        block, blocks = start.to(symmetric_SS.device), []
        for _ in range(_KRYLOV_BLOCKS):
            block = torch.linalg.qr(symmetric_SS @ block).Q
            blocks.append(block)
        basis = torch.linalg.qr(torch.cat(blocks, dim=1)).Q
        values_S, small = torch.linalg.eigh(basis.T @ (symmetric_SS @ basis))
        vectors_SS = basis @ small
    values_W, vectors_SW = values_S.flip(0)[:width], vectors_SS.flip(1)[:, :width]
    real = values_W > _RANK_TOLERANCE * values_W[0].clamp_min(torch.finfo(values_W.dtype).tiny)
    return values_W[real], vectors_SW[:, real]


# Patches


def patches_at(images_B3HW: Tensor, top_BM: Tensor, left_BM: Tensor, side: int = SIDE) -> Tensor:
    """Patches at given places: [B M, D] in the dtype of the images, image by image.

    Args:
        images_B3HW: any dtype.
        top_BM: int64, 0 .. H - side.
        left_BM: int64, 0 .. W - side.
        side: pixels of a patch in each direction.
    """
    windows = images_B3HW.unfold(2, side, 1).unfold(3, side, 1)
    image_BM = torch.arange(len(images_B3HW), device=images_B3HW.device)[:, None].expand_as(top_BM)
    return windows[image_BM.flatten(), :, top_BM.flatten(), left_BM.flatten()].flatten(1)


def contrast_normalised(patches_ND: Tensor) -> Tensor:
    """Each patch with mean 0 and deviation 1, by its own pixels; flat ones nearly 0.

    Args:
        patches_ND: floating, pixels 0 .. 255.
    """
    centred = patches_ND - patches_ND.mean(-1, keepdim=True)
    return centred.mul_((centred.square().mean(-1, keepdim=True) + CONTRAST_FLOOR).rsqrt_())


# Online k-means


@dataclass(frozen=True, slots=True, eq=False)
class ClusterSums:
    """What rows say about the centres that are nearest to them; `a + b` is that of both together."""

    counts_K: Tensor
    """int64."""
    sums_KF: Tensor
    """float64."""

    def __add__(self, other: "ClusterSums") -> "ClusterSums":
        return ClusterSums(self.counts_K + other.counts_K, self.sums_KF + other.sums_KF)


def cluster_sums(rows_NF: Tensor, centres_KF: Tensor) -> ClusterSums:
    """Number and sum of the rows whose nearest centre is each; of equally near ones the first."""
    # |x|^2 is the same for every centre.
    scores_NK = torch.addmm(centres_KF.square().sum(1), rows_NF, centres_KF.T, alpha=-2)
    nearest_N = scores_NK.argmin(1)
    counts_K = torch.bincount(nearest_N, minlength=len(centres_KF))
    sums_KF = torch.zeros(centres_KF.shape, dtype=torch.float64, device=centres_KF.device)
    return ClusterSums(counts_K, sums_KF.index_add_(0, nearest_N, rows_NF.double()))


def kmeans_step(centres_KF: Tensor, seen_K: Tensor, found: ClusterSums) -> tuple[Tensor, Tensor]:
    """Centres and counts after one batch: a centre is the mean of all rows that it ever got.

    Args:
        centres_KF: as they were when `found` was made.
        seen_K: int64, how many rows each centre got before; where it is 0 the centre gives way to its rows.
        found: of the batch, summed over ranks.

    Returns:
        Centres in their dtype, and counts; a centre without rows stays.

    Source: Sculley 2010, "Web-scale k-means clustering", algorithm 1, for a whole batch at once.
    """
    total_K = seen_K + found.counts_K
    share_K1 = found.counts_K.double().div(total_K.clamp_min(1))[:, None]
    mean_KF = found.sums_KF / found.counts_K.clamp_min(1)[:, None]
    return torch.lerp(centres_KF.double(), mean_KF, share_K1).to(centres_KF.dtype), total_K


@dataclass(frozen=True, slots=True, eq=False)
class PatchDictionary:
    """What encoding an image needs."""

    whitening: Whitening
    """Of contrast-normalised patches."""
    centres_KD: Tensor
    """Of whitened ones."""
    local: Whitening | None = None
    """Map [K, E] of the activations of a patch; None: they are used as they are."""

    @property
    def width(self) -> int:
        """Numbers of a cell of an encoded image."""
        return len(self.centres_KD) if self.local is None else 2 * self.local.matrix_FW.shape[1]

    def activations(self, patches_ND: Tensor) -> Tensor:
        """[N, K] of patches with pixels 0 .. 255: max(0, mean distance - distance) for each centre."""
        return _triangle(self.whitening(contrast_normalised(patches_ND)), self.centres_KD)


def learn_dictionary(patches_ND: Tensor, *, centres: int, generator: torch.Generator) -> PatchDictionary:
    """Whitening and centres from patches that fit into memory, in one pass in a random order.

    Args:
        patches_ND: uint8 or floating, pixels 0 .. 255, N >= 2.
        centres: K; as many as there are patches where those are fewer.
        generator: draws the order, whose first patches are the first centres.
    """
    parts = torch.split(patches_ND, _ROWS)
    normalised = (on_grid(contrast_normalised(_floating(part)), _PATCH_GRID) for part in parts)
    whitening = zca(functools.reduce(add, map(moments, normalised)), ZCA_FLOOR)
    order_N = torch.randperm(len(patches_ND), generator=generator).to(patches_ND.device)

    def rows(places: Tensor) -> Tensor:
        return whitening(contrast_normalised(_floating(patches_ND[places])))

    centres_KD = rows(order_N[:centres])
    seen_K = torch.zeros(len(centres_KD), dtype=torch.int64, device=patches_ND.device)
    for places in torch.split(order_N, KMEANS_ROWS):
        batch = on_grid(rows(places), _WHITENED_GRID).to(centres_KD.dtype)
        centres_KD, seen_K = kmeans_step(centres_KD, seen_K, cluster_sums(batch, centres_KD))
    return PatchDictionary(whitening, centres_KD)


# Encoding


def encode(
    images_B3HW: Tensor, dictionary: PatchDictionary, *, stride: int = STRIDE, grid: int = GRID
) -> Tensor:
    """Features of images: [B, grid x grid x width], cell after cell in reading order, in the centres' dtype.

    Every patch gives max(0, mean distance - distance) for each centre (the triangle activation). With a local
    map these are mapped to E numbers, scaled to length 1 and parted into what is above and below 0. They are
    summed over the cells of the map of patches, and the root is taken.

    Args:
        images_B3HW: uint8 or floating, pixels 0 .. 255, with at least `grid` patches in each direction.
        dictionary: of patches of `SIDE`.
        stride: pixels between patches.
        grid: cells in each direction; 2 = the quadrants of the paper.

    Raises:
        ValueError: smaller images.

    Source: Coates, Lee and Ng 2011, sections 2.2.3 and 2.3; a local map of unit length: Chen, Yun, Ma,
    Olshausen and LeCun 2022, arXiv:2209.15261; both signs and the root are ours.
    """
    centres_KD = dictionary.centres_KD
    shape = [(extent - SIDE) // stride + 1 for extent in images_B3HW.shape[2:]]
    if min(shape) < grid:
        raise ValueError(
            f"patches need images of at least {SIDE + stride * (grid - 1)} pixels a side, "
            f"got {tuple(images_B3HW.shape[2:])}"
        )
    cells_CP = _cells(shape[0], shape[1], grid, centres_KD.dtype, centres_KD.device)
    numbers = _CHUNK_NUMBERS if centres_KD.device.type == "cpu" else _CHUNK_NUMBERS_OF_A_DEVICE
    chunk = max(1, numbers // (len(centres_KD) * shape[0] * shape[1]))
    pieces = [
        _pooled(_rows_of(images, dictionary.whitening, stride, centres_KD.dtype), dictionary, cells_CP)
        for images in torch.split(images_B3HW, chunk)
    ]
    return torch.cat(pieces)


def _floating(patches: Tensor) -> Tensor:
    return patches if patches.is_floating_point() else patches.float()


def _rows_of(images_B3HW: Tensor, whitening: Whitening, stride: int, dtype: torch.dtype) -> Tensor:
    """All patches of images, whitened: [B, P, D]."""
    columns_BDP = functional.unfold(images_B3HW.to(dtype), SIDE, stride=stride)
    rows = contrast_normalised(columns_BDP.transpose(1, 2))
    return whitening(rows.flatten(0, 1)).view(rows.shape)


@functools.lru_cache(maxsize=16)
def _cells(height: int, width: int, grid: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[C, P], C = grid x grid: 1 where a place of the map lies in a cell; each place lies in one.

    Kept, because sending it makes a GPU's host wait.
    """
    cells = torch.zeros(grid, grid, height, width)
    for down, rows in enumerate(_bands(height, grid)):
        for right, columns in enumerate(_bands(width, grid)):
            cells[down, right, rows, columns] = 1
    return cells.view(grid * grid, height * width).to(device=device, dtype=dtype)


def _bands(extent: int, grid: int) -> Iterator[slice]:
    for band in range(grid):
        yield slice(extent * band // grid, extent * (band + 1) // grid)


def _pooled(rows_BPD: Tensor, dictionary: PatchDictionary, cells_CP: Tensor) -> Tensor:
    """Activations of the whitened patches of some images, summed over cells: [B, C x width]."""
    active_NK = _triangle(rows_BPD.flatten(0, 1), dictionary.centres_KD)
    if dictionary.local is not None:
        mapped_NE = functional.normalize(dictionary.local(active_NK), dim=1)
        active_NK = torch.cat([mapped_NE.clamp_min(0), mapped_NE.neg_().clamp_min_(0)], dim=1)
    active_BPK = active_NK.view(*rows_BPD.shape[:2], active_NK.shape[1])
    return torch.matmul(cells_CP, active_BPK).sqrt_().flatten(1)


def _triangle(rows_ND: Tensor, centres_KD: Tensor) -> Tensor:
    """Triangle activation of whitened patches: [N, K]."""
    distance_NK = torch.addmm(centres_KD.square().sum(1), rows_ND, centres_KD.T, alpha=-2)
    distance_NK.add_(rows_ND.square().sum(1, keepdim=True)).clamp_min_(0).sqrt_()
    mean_N1 = distance_NK.mean(1, keepdim=True)
    return torch.sub(mean_N1, distance_NK, out=distance_NK).clamp_min_(0)
