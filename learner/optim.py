"""The optimisers and the learning rate, which follows samples seen."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learner.config import OptimConfig

LARS_EPSILON = 1e-8
"""Added to the denominator of the trust ratio, as in the paper's runs."""

CLIP_EPSILON = 1e-6
"""Added to the gradient norm before dividing by it, as torch does."""


def learning_rate(config: OptimConfig, samples: int, total_samples: int | None) -> float:
    """Learning rate of the update that starts after `samples` samples.

    Linear from `warmup_start` to `learning_rate` over `warmup_samples`; then constant, or a half cosine
    that ends at `final_learning_rate` when `schedule_samples` (0: `total_samples`) have been seen, and
    stays there. With `anneal_samples` what would be the rate falls once more from `anneal_start_samples` on,

        final + (rate - final) (1 - sqrt((samples - start) / anneal_samples)),

    and stays at `final_learning_rate` after that.

    Raises:
        ValueError: a cosine whose end is not known.

    Source: Caron et al. 2020, arXiv:2006.09882, A.1 (there in epochs; here in samples, the only clock of a
    stream); Haegele et al. 2024, arXiv:2405.18392, for the fall of an annealed copy.
    """
    rate = _scheduled(config, samples, total_samples)
    if config.anneal_samples == 0 or samples < config.anneal_start_samples:
        return rate
    done = min(1.0, (samples - config.anneal_start_samples) / config.anneal_samples)
    final = config.final_learning_rate
    return final + (rate - final) * (1 - math.sqrt(done))


def _scheduled(config: OptimConfig, samples: int, total_samples: int | None) -> float:
    """Warm-up, then constant or cosine."""
    peak = config.learning_rate
    if samples < config.warmup_samples:
        return config.warmup_start + (peak - config.warmup_start) * samples / config.warmup_samples
    if config.schedule == "constant":
        return peak
    end = config.schedule_samples or total_samples
    if not end:
        raise ValueError(
            "optim.schedule = cosine needs to know its end: set optim.schedule_samples, or use constant"
        )
    done = (samples - config.warmup_samples) / max(1, end - config.warmup_samples)
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.final_learning_rate + (peak - config.final_learning_rate) * falling


class Lars(Optimizer):
    """SGD with momentum whose gradient is scaled, tensor by tensor, to the size of the weights.

        a = trust |w| / (|g| + decay |w| + 1e-8)
        g <- a (g + decay w)     m <- momentum m + g     w <- w - lr m

    Every parameter takes part, batch-norm and biases too, as in the paper's runs. Where |w| or |g| is 0
    there is neither scaling nor decay: a zero bias takes one plain step. Works on lists of tensors, without
    reading a value back from the device.

    Args:
        parameters: tensors with gradients; one without a gradient is left alone, momentum included.
        learning_rate: > 0; `group["lr"]` may be set before each step.
        momentum: [0, 1).
        weight_decay: >= 0.
        trust_coefficient: > 0.

    Source: You et al. 2017, arXiv:1708.03888, in the LARC form (no clipping) that arXiv:2006.09882 used.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        trust_coefficient: float,
    ) -> None:
        defaults = {
            "lr": learning_rate,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: gradients are there
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = _trusted(weights, group["weight_decay"], group["trust_coefficient"])
            for weight, gradient in zip(weights, gradients, strict=True):
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(gradient)
            momenta = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, gradients)
            torch._foreach_add_(weights, momenta, alpha=-group["lr"])


def _trusted(weights: list[Tensor], decay: float, trust_coefficient: float) -> list[Tensor]:
    """Gradients with decay added and scaled to their weights; the `.grad` of the weights stays as it is."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    w_P = torch.stack(list(torch._foreach_norm(weights)))
    g_P = torch.stack(list(torch._foreach_norm(gradients)))
    scaled_P = (w_P > 0) & (g_P > 0)
    trust_P = torch.where(scaled_P, trust_coefficient * w_P / (g_P + decay * w_P + LARS_EPSILON), 1.0)
    decay_P = scaled_P.to(w_P.dtype) * decay
    decayed = torch._foreach_mul(weights, list(decay_P.unbind()))
    torch._foreach_add_(decayed, gradients)
    torch._foreach_mul_(decayed, list(trust_P.unbind()))
    return list(decayed)


def build_optimizer(config: OptimConfig, parameters: Iterable[Tensor]) -> Optimizer:
    """The optimiser that the config names.

    lars and sgd decay every parameter, as the paper's runs do; adamw decays matrices and kernels only.
    """
    parameters = list(parameters)
    if config.optimizer == "lars":
        return Lars(
            parameters,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            trust_coefficient=config.trust_coefficient,
        )
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            foreach=True,
        )
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )


class Updater:
    """The update of the weights: gradient norm, clipping, learning rate by samples, optimiser.

    Args:
        config: settings.
        parameters: all weights that may move.
        total_samples: length of the run if it is known.

    Raises:
        ValueError: a cosine without an end.
    """

    def __init__(
        self, config: OptimConfig, parameters: Iterable[nn.Parameter], total_samples: int | None
    ) -> None:
        learning_rate(config, config.warmup_samples, total_samples)
        self._config = config
        self._parameters = list(parameters)
        self.optimizer = build_optimizer(config, self._parameters)
        self._total_samples = total_samples

    def clear(self) -> None:
        """Forget all gradients; a parameter that gets none afterwards is left alone by `apply`."""
        self.optimizer.zero_grad(set_to_none=True)

    def gradient_norm(self) -> Tensor:
        """[] 2-norm over all gradients; not finite if one of them is not."""
        norms = torch.stack(list(torch._foreach_norm(self._gradients())))
        norm: Tensor = torch.linalg.vector_norm(norms)
        return norm

    @torch.no_grad()
    def apply(self, samples: int, gradient_norm: Tensor) -> float:
        """Move the weights; returns the learning rate of this update, the one after `samples` samples."""
        rate = learning_rate(self._config, samples, self._total_samples)
        if self._config.clip_gradient_norm > 0:
            scale = (self._config.clip_gradient_norm / (gradient_norm + CLIP_EPSILON)).clamp_max(1.0)
            torch._foreach_mul_(self._gradients(), scale)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.clear()
        return rate

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]
