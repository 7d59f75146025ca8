"""Equal weights, equal digest; anything else, another."""

import hashlib

import pytest
import torch
from torch import Tensor

from learner.checkpoint_state import digest


def weights() -> dict[str, Tensor]:
    return {"b": torch.arange(24.0).view(1, 2, 3, 4), "a": torch.tensor(7), "c": torch.zeros(0)}


def test_the_digest_is_sha256_over_name_dtype_shape_and_bytes_in_order_of_names() -> None:
    expected = hashlib.sha256()
    expected.update(b"a\0int64\0\0" + (7).to_bytes(8, "little"))
    expected.update(b"b\0float32\x001,2,3,4\0" + torch.arange(24.0).numpy().tobytes())
    expected.update(b"c\0float32\x000\0")
    assert digest(weights()) == expected.hexdigest()


def test_order_of_names_and_order_in_memory_do_not_matter() -> None:
    other = dict(reversed(weights().items()))
    other["b"] = other["b"].contiguous(memory_format=torch.channels_last)
    assert digest(other) == digest(weights())


@pytest.mark.parametrize(
    "change",
    [
        {"b": torch.arange(24.0).view(1, 2, 4, 3)},
        {"b": torch.arange(24.0).view(1, 2, 3, 4).double()},
        {"b": torch.arange(24.0).view(1, 2, 3, 4).bfloat16()},
        {"a": torch.tensor(8)},
        {"d": torch.zeros(1)},
    ],
)
def test_another_name_shape_type_or_bit_is_another_digest(change: dict[str, Tensor]) -> None:
    assert digest(weights() | change) != digest(weights())


def test_half_precision_and_empty_tensors_have_a_digest() -> None:
    assert len(digest({"x": torch.ones(3, dtype=torch.bfloat16), "y": torch.zeros(0, 4)})) == 64
