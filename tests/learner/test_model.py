"""Encoder, head and prototypes."""

import pytest
import torch
from torch import nn

from learner.config import ModelConfig
from learner.model import (
    SwavModel,
    cosines,
    encoder_tensors,
    head_tensors,
    load_weights,
    on_the_sphere,
)


def small(**change: object) -> SwavModel:
    torch.manual_seed(0)
    fields: dict[str, object] = {"backbone": "resnet8-w32", "projection_hidden": 16, "projection_dim": 8}
    return SwavModel(ModelConfig(**(fields | change)), (6, 4))  # type: ignore[arg-type]  # fields vary by test


def test_prototypes_have_unit_norm_and_no_bias() -> None:
    model = small()
    assert [tuple(prototypes.shape) for prototypes in model.prototypes] == [(6, 8), (4, 8)]
    for prototypes in model.prototypes:
        torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(len(prototypes)))
    assert [name for name, _ in model.named_parameters() if "prototypes" in name] == [
        "prototypes.0",
        "prototypes.1",
    ]


def test_a_zero_prototype_stays_finite() -> None:
    model = small()
    with torch.no_grad():
        model.prototypes[0][2] = 0
    model.normalise_prototypes()
    assert bool(torch.isfinite(model.prototypes[0]).all())


def test_the_encoder_runs_once_for_each_size_and_views_keep_their_order() -> None:
    model = small().eval()
    sizes = []
    model.encoder.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape)))
    kinds = [torch.randn(n, 3, side, side) for n, side in ((4, 16), (2, 16), (6, 8))]
    together = model.embed(kinds)
    assert sizes == [(6, 3, 16, 16), (6, 3, 8, 8)]
    apart = torch.cat([model.embed([kind]) for kind in kinds])
    torch.testing.assert_close(together, apart)


def test_features_have_unit_norm_in_float32_under_autocast() -> None:
    model = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model.embed([torch.randn(8, 3, 16, 16)])
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(8))


def test_a_short_half_precision_row_is_not_lost_to_underflow() -> None:
    row = torch.tensor([[3e-7, 4e-7]], dtype=torch.float16)
    z = on_the_sphere(row)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(1))


def test_scores_keep_the_precision_of_the_prototypes_under_autocast() -> None:
    z, c = on_the_sphere(torch.randn(50, 8)), on_the_sphere(torch.randn(6, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = cosines(z, c)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, z @ c.T)


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({}, [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]),
        ({"projection_norm": False}, [nn.Linear, nn.ReLU, nn.Linear]),
        ({"projection_hidden": 0}, [nn.Linear]),
    ],
)
def test_the_head_is_built_as_configured(change: dict[str, object], kinds: list[type]) -> None:
    assert [type(layer) for layer in small(**change).head] == kinds


def test_weights_of_a_snapshot_are_taken_over_with_prototypes_of_unit_norm() -> None:
    source, target = small(), small()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(2).add_(0.1)
    load_weights(target, encoder_tensors(source), head_tensors(source))
    source.normalise_prototypes()
    torch.testing.assert_close(target.state_dict(), source.state_dict())


def test_weights_that_do_not_fit_are_refused_and_change_nothing() -> None:
    target = small()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    other = small(projection_dim=5)
    with pytest.raises(ValueError, match="has shape"):
        load_weights(target, encoder_tensors(other), head_tensors(other))
    with pytest.raises(ValueError, match=r"missing \['head.0.bias'"):
        load_weights(target, encoder_tensors(target), {})
    torch.testing.assert_close(target.state_dict(), before, rtol=0, atol=0)
