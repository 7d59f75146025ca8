"""Encoder, projection head and prototypes.

n views   B samples   F features of the encoder   D embedding size   K prototypes
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from learner.backbone import BACKBONES, build_backbone
from learner.config import ModelConfig
from learner.patch_branch import PatchBranch

UNIT_TOLERANCE = 1e-5
"""Prototypes nearer to unit norm than this are left to the bit, so that a digest survives a round trip."""


class SwavModel(nn.Module):
    """f: image -> features -> z on the unit sphere, and the prototypes that z is compared with.

    Weights are drawn from torch's default generator. Prototypes have no bias and keep unit norm: call
    `normalise_prototypes` after every change of them.

    Args:
        config: names and widths.
        prototypes: K of each head.

    Source: Caron et al. 2020, arXiv:2006.09882, sec. 3.1 and A.1.
    """

    def __init__(self, config: ModelConfig, prototypes: Sequence[int]) -> None:
        super().__init__()
        self.encoder = build_backbone(
            config.backbone, activation_checkpointing=config.activation_checkpointing
        )
        self.head = _head(BACKBONES[config.backbone].width, config)
        self.branch = PatchBranch(config) if config.branch_centres else None
        # Normal and then normalised: even on the sphere.
        self.prototypes = nn.ParameterList([torch.randn(k, config.projection_dim) for k in prototypes])
        self.normalise_prototypes()

    def embed(self, kinds: Sequence[Tensor]) -> Tensor:
        """Features z of all views: one encoder pass a size of crop, one head pass over all views.

        Args:
            kinds: a tensor [count x B, 3, S, S] for each kind of crop; neighbours of one size share a pass.

        Returns:
            [n x B, D] of unit norm, float32 (float64 for a float64 model) also under autocast.
        """
        passes: list[list[Tensor]] = []
        for images in kinds:
            if passes and passes[-1][0].shape[1:] == images.shape[1:]:
                passes[-1].append(images)
            else:
                passes.append([images])
        features = [
            self.encoder(torch.cat(together) if len(together) > 1 else together[0]) for together in passes
        ]
        return on_the_sphere(self.head(torch.cat(features) if len(features) > 1 else features[0]))

    def features(self, images_B3HW: Tensor, pixels_B3HW: Tensor | None = None) -> Tensor:
        """What describes an image to others: [B, F].

        Without a patch branch the encoder's output. With one both, each of length 1 (the branch is zero until
        it is learned), so that cosines weigh them alike.

        Args:
            images_B3HW: normalised.
            pixels_B3HW: the same images, 0 .. 255; asked for with a branch only.
        """
        described: Tensor = self.encoder(images_B3HW)
        if self.branch is None:
            return described
        assert pixels_B3HW is not None, "a patch branch looks at pixels"
        unit_BF = on_the_sphere(described)
        return torch.cat([unit_BF, on_the_sphere(self.branch(pixels_B3HW)).to(unit_BF.dtype)], dim=1)

    @torch.no_grad()
    def normalise_prototypes(self) -> None:
        """Bring every prototype to unit norm, in place; never between forward and backward."""
        for prototypes_KD in self.prototypes:
            prototypes_KD.copy_(nn.functional.normalize(prototypes_KD, dim=1))


def _head(width: int, config: ModelConfig) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear; or a single linear layer when there is no hidden one."""
    hidden = config.projection_hidden
    if hidden == 0:
        return nn.Sequential(nn.Linear(width, config.projection_dim))
    norm = [nn.BatchNorm1d(hidden)] if config.projection_norm else []
    return nn.Sequential(
        nn.Linear(width, hidden), *norm, nn.ReLU(inplace=True), nn.Linear(hidden, config.projection_dim)
    )


def on_the_sphere(x: Tensor) -> Tensor:
    """Rows of unit norm, in at least float32 (half precision would lose short rows to underflow)."""
    return nn.functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def cosines(z: Tensor, prototypes_KD: Tensor) -> Tensor:
    """Scores: [..., D] x [K, D] -> [..., K], in the precision of the prototypes whatever autocast says."""
    with torch.autocast(z.device.type, enabled=False):
        return z.to(prototypes_KD.dtype) @ prototypes_KD.T


def encoder_tensors(model: SwavModel) -> dict[str, Tensor]:
    """Weights and buffers of the encoder, and `branch.*`; not copies, channels in torch's row-major order."""
    branch = {} if model.branch is None else model.branch.state_dict()
    return dict(model.encoder.state_dict()) | {f"branch.{name}": value for name, value in branch.items()}


def head_tensors(model: SwavModel) -> dict[str, Tensor]:
    """`head.*` and `prototypes` (further heads: `prototypes.1` and so on), as they are."""
    tensors = {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    for index, prototypes_KD in enumerate(model.prototypes):
        tensors[numbered("prototypes", index)] = prototypes_KD.detach()
    return tensors


def numbered(name: str, head: int) -> str:
    """The first head's tensors bear the plain name."""
    return name if head == 0 else f"{name}.{head}"


@torch.no_grad()
def load_weights(model: SwavModel, encoder: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Take over encoder, head and prototypes; the latter are brought to unit norm where they are not.

    Raises:
        ValueError: names or shapes differ; nothing has been changed then.
    """
    targets = encoder_tensors(model) | head_tensors(model)
    sources = dict(encoder) | {name: tensors[name] for name in head_tensors(model) if name in tensors}
    copy_all(targets, sources)
    if any(bool(((c.norm(dim=1) - 1).abs() > UNIT_TOLERANCE).any()) for c in model.prototypes):
        model.normalise_prototypes()


@torch.no_grad()
def copy_all(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Copy values by name, after all names and shapes have been compared.

    Raises:
        ValueError: the first name that is missing, too much, or of another shape.
    """
    missing, surplus = sorted(targets.keys() - sources.keys()), sorted(sources.keys() - targets.keys())
    if missing or surplus:
        raise ValueError(f"weights do not fit: missing {missing[:3]}, not known {surplus[:3]}")
    for name, target in targets.items():
        if target.shape != sources[name].shape:
            raise ValueError(
                f"weights do not fit: {name} has shape {tuple(sources[name].shape)}, this network needs "
                f"{tuple(target.shape)}"
            )
    for name, target in targets.items():
        target.copy_(sources[name])
