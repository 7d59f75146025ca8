"""The paper's loop in plain torch over images in memory: what ours must beat at equal processor time.

Net, crops, colour, batch, prototypes, optimiser and schedule are those of a recipe. Everything else is the
loop that the paper describes, written apart from the package: one update a batch, epoch after epoch. Images
are transformed by torchvision one by one. It makes as many epochs as the recipe makes updates a batch: both
make the same number of updates.

Source: Caron et al. 2020, arXiv:2006.09882, algorithm 1 and appendix A.
"""

# B samples   K prototypes   D embedding size   n views

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from learner.backbone import BACKBONES, build_backbone
from ops.config.schema import RunConfig


class PlainNet(nn.Module):
    """Encoder, two-layer head and prototypes."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        model = config.model
        self.encoder = build_backbone(model.backbone)
        self.head = nn.Sequential(
            nn.Linear(BACKBONES[model.backbone].width, model.projection_hidden),
            nn.BatchNorm1d(model.projection_hidden),
            nn.ReLU(),
            nn.Linear(model.projection_hidden, model.projection_dim),
        )
        self.prototypes = nn.Linear(model.projection_dim, config.swav.prototypes[0], bias=False)

    def forward(self, crops: Sequence[Tensor]) -> Tensor:
        """Scores [n B, K] of crops, a batch [count x B, 3, S, S] for each size."""
        features = torch.cat([self.encoder(batch) for batch in crops])
        scores: Tensor = self.prototypes(functional.normalize(self.head(features).float(), dim=1))
        return scores


@torch.no_grad()
def sinkhorn(scores_BK: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes [B, K] of one batch."""
    codes_KB = ((scores_BK - scores_BK.max()).double() / epsilon).exp().T
    codes_KB /= codes_KB.sum()
    for _ in range(iterations):
        codes_KB /= codes_KB.sum(1, keepdim=True) * len(codes_KB)
        codes_KB /= codes_KB.sum(0, keepdim=True) * codes_KB.shape[1]
    return (codes_KB * codes_KB.shape[1]).T.float()


def swapped_loss(scores_nBK: Tensor, config: RunConfig) -> Tensor:
    """Every view predicts the codes of the first two, but not its own."""
    loss = scores_nBK.new_zeros(())
    for assigned in (0, 1):
        codes_BK = sinkhorn(scores_nBK[assigned], config.swav.epsilon, config.swav.sinkhorn_iterations)
        others = [view for view in range(len(scores_nBK)) if view != assigned]
        for view in others:
            log_p_BK = functional.log_softmax(scores_nBK[view] / config.swav.temperature, dim=1)
            loss -= (codes_BK * log_p_BK).sum(1).mean() / (2 * len(others))
    return loss


def transforms(config: RunConfig) -> list[tuple[int, Callable[[Image.Image], Tensor]]]:
    """For each kind of crop how many, and how one is made of an image: uint8 [3, S, S]."""
    colour = config.augment
    strength = colour.jitter
    jitter = v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, min(0.5, 0.2 * strength))
    made = []
    for crop in config.crops:
        steps = [
            v2.RandomResizedCrop(crop.size, scale=(crop.scale_min, crop.scale_max)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([jitter], colour.jitter_probability),
            v2.RandomGrayscale(colour.grayscale_probability),
        ]
        if colour.blur_probability:
            blur = v2.GaussianBlur(2 * (crop.size // 20) + 1, (colour.blur_sigma_min, colour.blur_sigma_max))
            steps.append(v2.RandomApply([blur], colour.blur_probability))
        made.append((crop.count, v2.Compose([*steps, v2.PILToTensor()])))
    return made


def _optimizer(net: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    rate, decay = config.optim.learning_rate, config.optim.weight_decay
    if config.optim.optimizer == "adamw":
        return torch.optim.AdamW(net.parameters(), rate, betas=config.optim.betas, weight_decay=decay)
    return torch.optim.SGD(net.parameters(), rate, momentum=config.optim.momentum, weight_decay=decay)


def _rate(config: RunConfig, progress: float, images: int) -> float:
    """Share of the learning rate after a share of the run: linear warm-up, then a cosine if there is one."""
    warm = config.optim.warmup_samples / images
    if progress < warm:
        return progress / warm
    if config.optim.schedule != "cosine":
        return 1.0
    last = config.optim.final_learning_rate / config.optim.learning_rate
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (progress - warm) / max(1 - warm, 1e-9)))


def learn(
    images: Sequence[Image.Image], config: RunConfig, *, seed: int, shuffle: bool, points: int
) -> Iterator[tuple[int, int, float, PlainNet]]:
    """Learn, and stop for a look several times.

    Args:
        images: RGB, in the order of the stream.
        config: of the recipe.
        seed: of weights, order and crops.
        shuffle: draw a new order for each epoch; else every epoch follows the stream.
        points: how many looks.

    Yields:
        Images used, updates made, processor seconds so far without the looks, and the net.
    """
    torch.manual_seed(seed)
    net = PlainNet(config)
    optimizer = _optimizer(net, config)
    made = transforms(config)
    mean, std = (torch.tensor(value)[:, None, None] for value in (config.augment.mean, config.augment.std))
    batch = min(config.batch, len(images))
    epochs, steps = config.replay.updates, len(images) // batch
    looks = {math.ceil(epochs * steps * (look + 1) / points) for look in range(points)}
    low = config.precision == "bfloat16"
    spent, began, done = 0.0, time.process_time(), 0
    for _ in range(epochs):
        order = torch.randperm(len(images)) if shuffle else torch.arange(len(images))
        for places in torch.split(order[: steps * batch], batch):
            for group in optimizer.param_groups:
                group["lr"] = config.optim.learning_rate * _rate(config, done / (epochs * steps), len(images))
            chosen = [images[int(place)] for place in places]
            crops = [
                torch.stack([crop(image) for _ in range(count) for image in chosen]).float().div_(255)
                for count, crop in made
            ]
            context: AbstractContextManager[object] = (
                torch.autocast("cpu", torch.bfloat16) if low else nullcontext()
            )
            with torch.no_grad():
                net.prototypes.weight.copy_(functional.normalize(net.prototypes.weight, dim=1))
            with context:
                scores = net([(views - mean) / std for views in crops]).float()
            loss = swapped_loss(scores.view(-1, batch, scores.shape[1]), config)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if done * batch < config.swav.freeze_samples * epochs:
                net.prototypes.weight.grad = None
            optimizer.step()
            done += 1
            if done in looks:
                spent += time.process_time() - began
                yield done * batch, done, spent, net
                began = time.process_time()
