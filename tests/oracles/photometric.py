"""The photometric half for one image, by torchvision's functional operations."""

import itertools
from collections.abc import Sequence

import torch
import torchvision.transforms.functional as tv
from torch import Tensor

from learner.config import AugmentConfig


def photometric_one(image: Tensor, uniforms: Sequence[float], config: AugmentConfig) -> Tensor:
    """uint8 [3, S, S] -> float64 [3, S, S], normalised."""
    x = image.double() / 255
    strength = config.jitter
    if uniforms[0] < config.jitter_probability:
        low, high = max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength
        brightness, contrast, saturation = (low + (high - low) * u for u in uniforms[1:4])
        hue = (2 * uniforms[4] - 1) * min(0.5, 0.2 * strength)
        steps = [
            lambda y: tv.adjust_brightness(y, brightness),
            lambda y: tv.adjust_contrast(y, contrast),
            lambda y: tv.adjust_saturation(y, saturation),
            lambda y: tv.adjust_hue(y, hue),
        ]
        for step in list(itertools.permutations(range(4)))[int(uniforms[5] * 24)]:
            x = steps[step](x)
    if uniforms[6] < config.grayscale_probability:
        x = tv.rgb_to_grayscale(x, num_output_channels=3)
    if uniforms[7] < config.blur_probability:
        sigma = config.blur_sigma_min + (config.blur_sigma_max - config.blur_sigma_min) * uniforms[8]
        reach = min(-int(-3 * config.blur_sigma_max // 1), x.shape[-1] - 1)
        side = 2 * reach + 1
        x = tv.gaussian_blur(x, [side, side], [sigma, sigma])
    result: Tensor = tv.normalize(x, list(config.mean), list(config.std))
    return result


def photometric_all(crops: Tensor, uniforms: Tensor, config: AugmentConfig) -> Tensor:
    """uint8 [count, B, 3, S, S] -> float64 [count x B, 3, S, S], image by image."""
    images, drawn = crops.flatten(0, 1), uniforms.flatten(0, 1).double().tolist()
    return torch.stack([photometric_one(*pair, config) for pair in zip(images, drawn, strict=True)])
