"""Settings of the learner. Whatever the literature counts in epochs is counted in samples seen."""

import math
from dataclasses import dataclass, field


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Encoder and projection head."""

    backbone: str = "resnet50"
    """Name in `learner.backbone.BACKBONES`."""
    projection_hidden: int = 2048
    """Width of the hidden layer of the projection head; 0 = one linear layer only."""
    projection_dim: int = 128
    """D, width of the embedding that is compared with prototypes; >= 2."""
    projection_norm: bool = True
    """Batch norm after the hidden layer of the head."""
    activation_checkpointing: bool = False
    """Recompute each stage in backward instead of keeping its activations."""
    channels_last: bool = True
    """Keep images and convolution weights in NHWC memory order, but for float32 on a CPU, where NCHW is
    more exact (`learner.network.memory_order` has the figures); false = never."""
    bn_groups: int = 0
    """Groups of lanes (lane modulo groups) that share batch-norm statistics; 0 or 1 = the whole global batch.
    A multiple of the ranks needs no communication, fewer groups are summed over neighbouring ranks each;
    accumulation needs a multiple of ranks x parts."""
    branch_centres: int = 0
    """Centres of the patch branch, features of small patches beside the encoder that are learned in closed
    form; 0 = no branch. With it the features are both together."""
    branch_patch_width: int = 0
    """Numbers to which a linear map, learned from neighbouring patches, brings each patch before patches are
    summed; 0 = they are summed as they are."""
    branch_scales: int = 1
    """Sizes at which the patch branch looks at an image, each half as large as the one before; 1 .. 3."""
    branch_width: int = 128
    """Numbers that the patch branch adds to the features; >= 1."""
    branch_px: int = 32
    """Larger images are shrunk to so many pixels a side for the patch branch; [18, 224], with three scales at
    least 32."""
    branch_samples: int = 1_024
    """Arrivals from whose patches the centres are learned; 1 .. 100,000."""
    branch_pairs: int = 10_240
    """Pairs of views in a period of the patch branch; its map is solved for four times in each; >= 4."""

    def __post_init__(self) -> None:
        _check(
            self.projection_hidden >= 0, f"model.projection_hidden must be >= 0, got {self.projection_hidden}"
        )
        _check(self.projection_dim >= 2, f"model.projection_dim must be >= 2, got {self.projection_dim}")
        _check(self.bn_groups >= 0, f"model.bn_groups must be >= 0, got {self.bn_groups}")
        least = {
            "branch_centres": 0, "branch_patch_width": 0, "branch_width": 1, "branch_samples": 1,
            "branch_pairs": 4,
        }  # fmt: skip
        for name, bound in least.items():
            _check(
                getattr(self, name) >= bound, f"model.{name} must be >= {bound}, got {getattr(self, name)}"
            )
        _check(
            self.branch_samples <= 100_000,
            f"model.branch_samples must be <= 100000, got {self.branch_samples}",
        )
        _check(
            1 <= self.branch_scales <= 3, f"model.branch_scales must be in [1, 3], got {self.branch_scales}"
        )
        _check(
            not self.branch_centres or self.branch_patch_width <= self.branch_centres,
            f"model.branch_patch_width must be at most model.branch_centres = {self.branch_centres}, got "
            f"{self.branch_patch_width}: a patch has no more directions",
        )
        least_px = max(18, self.branch_least_px)
        _check(
            least_px <= self.branch_px <= 224,
            f"model.branch_px must be in [{least_px}, 224] with model.branch_scales = {self.branch_scales}, "
            f"got {self.branch_px}",
        )

    @property
    def branch_least_px(self) -> int:
        """Sides of images that the patch branch can look at, at least: three cells at the smallest scale."""
        return 10 if self.branch_scales == 1 else 8 << (self.branch_scales - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SwavConfig:
    """Prototypes, codes, queue and loss (Caron et al. 2020, section 3)."""

    prototypes: tuple[int, ...] = (3000,)
    """K of each head; one head is the paper."""
    temperature: float = 0.1
    """tau of the prediction softmax; > 0."""
    epsilon: float = 0.05
    """Entropy weight of Sinkhorn; [0.005, 1]. Smaller is harder."""
    sinkhorn_iterations: int = 3
    """Rounds of prototype and sample normalisation; >= 1."""
    assign_views: int = 2
    """The first so many views give codes; they must be of one size (the first kind of crops)."""
    hard_codes: bool = False
    """Replace each code by its arg-max."""
    prior: str = "uniform"
    """Mass wanted on each prototype: uniform, or powerlaw (sorted by current usage)."""
    prior_exponent: float = 0.25
    """Exponent of the power law; >= 0."""
    freeze_samples: int = 0
    """Prototypes do not move until so many samples were seen."""
    queue_samples: int = 0
    """Length of the feature queue of each assigned view, in samples of the whole run; 0 = none."""
    queue_start_samples: int = 0
    """Samples seen before the queue begins to fill; it is used once full."""

    def __post_init__(self) -> None:
        _check(
            len(self.prototypes) >= 1 and all(k >= 2 for k in self.prototypes),
            f"swav.prototypes needs one number >= 2 a head, got {self.prototypes}",
        )
        _check(self.temperature > 0, f"swav.temperature must be > 0, got {self.temperature}")
        _check(0.005 <= self.epsilon <= 1, f"swav.epsilon must be in [0.005, 1], got {self.epsilon}")
        _check(
            self.sinkhorn_iterations >= 1,
            f"swav.sinkhorn_iterations must be >= 1, got {self.sinkhorn_iterations}",
        )
        _check(self.assign_views >= 1, f"swav.assign_views must be >= 1, got {self.assign_views}")
        _check(
            self.prior in {"uniform", "powerlaw"},
            f"swav.prior must be uniform or powerlaw, got {self.prior!r}",
        )
        _check(self.prior_exponent >= 0, f"swav.prior_exponent must be >= 0, got {self.prior_exponent}")
        for name in ("freeze_samples", "queue_samples", "queue_start_samples"):
            _check(getattr(self, name) >= 0, f"swav.{name} must be >= 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimiser and schedule, counted in samples seen."""

    optimizer: str = "lars"
    """lars, sgd or adamw."""
    learning_rate: float = 4.8
    """Peak; > 0. Not scaled by anything: it is what the optimiser gets after warm-up."""
    momentum: float = 0.9
    """Of lars and sgd; [0, 1)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adamw."""
    weight_decay: float = 1e-6
    """>= 0; on every parameter for lars and sgd (as the paper's runs), on matrices only for adamw."""
    trust_coefficient: float = 0.001
    """Of lars; > 0."""
    schedule: str = "constant"
    """constant (after warm-up, no end needed) or cosine (needs an end, see `schedule_samples`)."""
    warmup_samples: int = 0
    """Linear from `warmup_start` to `learning_rate`."""
    warmup_start: float = 0.0
    """Learning rate at the first sample."""
    schedule_samples: int = 0
    """Samples at which cosine reaches `final_learning_rate`; 0 = the length of the run, when it is known."""
    final_learning_rate: float = 0.0
    """Learning rate at the end of cosine or of an anneal; >= 0."""
    anneal_start_samples: int = 0
    """Samples at which the learning rate of an annealed copy begins to fall (`swavstream anneal` sets it)."""
    anneal_samples: int = 0
    """Samples over which it then falls to `final_learning_rate`, as 1 - sqrt; 0 = it does not."""
    clip_gradient_norm: float = 0.0
    """Largest norm of the whole gradient; 0 = no clipping."""
    average_decay: float = 0.0
    """Share of a moving average of the weights that stays at an update; evaluation and snapshots use the
    average in place of the latest weights. [0, 1); 0 = no average."""

    def __post_init__(self) -> None:
        _check(
            self.optimizer in {"lars", "sgd", "adamw"},
            f"optim.optimizer must be lars, sgd or adamw, got {self.optimizer!r}",
        )
        _check(
            math.isfinite(self.learning_rate) and self.learning_rate > 0,
            f"optim.learning_rate must be > 0, got {self.learning_rate}",
        )
        _check(0 <= self.momentum < 1, f"optim.momentum must be in [0, 1), got {self.momentum}")
        _check(
            0 <= self.average_decay < 1, f"optim.average_decay must be in [0, 1), got {self.average_decay}"
        )
        _check(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas must be two numbers in [0, 1), got {self.betas}",
        )
        _check(self.weight_decay >= 0, f"optim.weight_decay must be >= 0, got {self.weight_decay}")
        _check(
            self.trust_coefficient > 0, f"optim.trust_coefficient must be > 0, got {self.trust_coefficient}"
        )
        _check(
            self.schedule in {"constant", "cosine"},
            f"optim.schedule must be constant or cosine, got {self.schedule!r}",
        )
        for name in (
            "warmup_samples",
            "schedule_samples",
            "warmup_start",
            "final_learning_rate",
            "anneal_start_samples",
            "anneal_samples",
            "clip_gradient_norm",
        ):
            _check(getattr(self, name) >= 0, f"optim.{name} must be >= 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """The photometric half of multi-crop (SimCLR's and SwAV's; strength 1 is the paper)."""

    jitter: float = 1.0
    """Strength s of colour jitter: brightness, contrast, saturation 0.8 s, hue 0.2 s; [0, 1.25]."""
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma_min: float = 0.1
    """Pixels."""
    blur_sigma_max: float = 2.0
    """Pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of each channel, in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of each channel, in (0, 1]."""

    def __post_init__(self) -> None:
        _check(0 <= self.jitter <= 1.25, f"augment.jitter must be in [0, 1.25], got {self.jitter}")
        for name in ("jitter_probability", "grayscale_probability", "blur_probability"):
            _check(
                0 <= getattr(self, name) <= 1, f"augment.{name} must be in [0, 1], got {getattr(self, name)}"
            )
        _check(
            0 < self.blur_sigma_min <= self.blur_sigma_max,
            "augment needs 0 < blur_sigma_min <= blur_sigma_max, "
            f"got {self.blur_sigma_min} and {self.blur_sigma_max}",
        )
        _check(
            len(self.mean) == 3 and len(self.std) == 3 and all(value > 0 for value in self.std),
            f"augment.mean and augment.std need three numbers, std > 0; got {self.mean} and {self.std}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthConfig:
    """Windows of the health figures."""

    usage_window_samples: int = 0
    """Samples over which usage is counted; 0 = ten for each prototype of the largest head."""
    interval_samples: int = 4096
    """Samples between two computations of the dearer figures (twins, ranks, entropies); >= 1."""
    twin_cosine: float = 0.95
    """Two prototypes closer than this are twins; (0, 1)."""
    reference_samples: int = 500_000
    """Samples after which the frozen copy that drift and novelty are seen with is replaced, when the run is
    well; 0 = none is taken. Drift is seen for about so long, then it is the new normal."""

    def __post_init__(self) -> None:
        _check(
            self.usage_window_samples >= 0,
            f"health.usage_window_samples must be >= 0, got {self.usage_window_samples}",
        )
        _check(
            self.interval_samples >= 1, f"health.interval_samples must be >= 1, got {self.interval_samples}"
        )
        _check(
            self.reference_samples >= 0,
            f"health.reference_samples must be >= 0, got {self.reference_samples}",
        )
        _check(0 < self.twin_cosine < 1, f"health.twin_cosine must be in (0, 1), got {self.twin_cosine}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReseedConfig:
    """Prototypes that are re-seeded when no sample comes to them any more."""

    after_samples: int = 0
    """Samples without being the arg-max of any, after which a prototype is re-seeded; 0 = never."""
    interval_samples: int = 4096
    """Samples between two looks for such prototypes; >= 1."""
    share: float = 0.01
    """Largest share of the prototypes of a head that is re-seeded at one look, but at least one; (0, 1]."""

    def __post_init__(self) -> None:
        _check(self.after_samples >= 0, f"reseed.after_samples must be >= 0, got {self.after_samples}")
        _check(
            self.interval_samples >= 1, f"reseed.interval_samples must be >= 1, got {self.interval_samples}"
        )
        _check(0 < self.share <= 1, f"reseed.share must be in (0, 1], got {self.share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    """All of the learner."""

    model: ModelConfig = field(default_factory=ModelConfig)
    swav: SwavConfig = field(default_factory=SwavConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    reseed: ReseedConfig = field(default_factory=ReseedConfig)
