"""A device that is not the CPU and needs no GPU: it computes there, and knows when a GPU would be waited for.

`far` takes the place of CUDA in everything that the learner may ask of a device. Its tensors hide ordinary
ones; each operation on them comes by here, so what on CUDA would make the host stand still, or fail, is seen:

- a value, or a size that depends on values, is read back (`item`, `nonzero`, an index of booleans, ...);
- a copy from the device, or one to it that the host waits for: asked to, or out of memory that is not
  page-locked (CUDA copies that to a staging buffer first, and may wait for the stream);
- an index on the CPU into a tensor on the device: torch sends it over in a blocking copy;
- operands on both devices, which CUDA refuses: an error.

torch has one place for a device of this kind in a process, and keeps it: to be used in a process of its own.
"""

# mypy: disallow-untyped-calls=False
# What of torch is made for devices and modes carries no types.

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "far"
ROOT = Path(__file__).parents[2]

READS_BACK = {
    "_local_scalar_dense": "reads a value back",
    "is_nonzero": "reads a value back",
    "equal": "reads a value back",
    "nonzero": "has a size that depends on values",
    "masked_select": "has a size that depends on values",
    "_unique2": "has a size that depends on values",
    "unique_dim": "has a size that depends on values",
    "unique_consecutive": "has a size that depends on values",
    "bincount": "has a size that depends on values",
    "repeat_interleave": "has a size that depends on values",
    "linalg_eigh": "looks at the error flag of its solver",
    "_linalg_eigh": "looks at the error flag of its solver",
    "_linalg_svd": "looks at the error flag of its solver",
    "linalg_inv_ex": "looks at the error flag of its solver",
    "multinomial": "looks at its probabilities",
}
"""Operations after which the host waits on CUDA, and why; by name without overload."""

TAKES_BOTH = {"_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that take tensors of both devices."""

_CAST = ("conv2d", "linear", "matmul")
"""Of what autocast makes lower precision on CUDA, that which the learner uses under it."""


class FarTensor(Tensor):
    """A tensor on the far device; `near` holds the values."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "FarTensor":
        """Hide an ordinary tensor."""
        made: FarTensor = Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=torch.device(NAME, 0),
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # as torch calls it
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Reached where no mode is active: between two watches."""
        return _call(func, tuple(args), kwargs or {})

    def tolist(self) -> Any:
        """As of any tensor: by way of the CPU."""
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]  # nothing to choose
        return f"FarTensor({self.near!r})"


class Watch(TorchDispatchMode):
    """While active, the far device takes tensors, and every wait of the host is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        """`file:line: what` of each, in order; the innermost line of this repository."""
        self.sent = 0
        """Copies to the device that are not waited for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every operation comes by, also those that make a tensor."""
        return _call(func, tuple(args), kwargs or {})

    def __enter__(self) -> Self:
        _active.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        _active.remove(self)


_active: list[Watch] = []
"""The watch that notes, innermost last; those of the threads of backward too."""

_locked: dict[int, Tensor] = {}
"""Page-locked memory by its address; kept, so that no address is used again."""


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do an operation on the hidden tensors, note whether the host waits, and hide what comes out."""
    name = func.overloadpacket.__name__
    if name in {"is_pinned", "pin_memory", "_pin_memory"}:
        return _page_lock(name, args[0])
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    wanted = kwargs.get("device")
    far = any(isinstance(one, FarTensor) for one in tensors)
    to_far = far if wanted is None else torch.device(wanted).type == NAME
    if far or to_far:
        _look(name, args, kwargs, tensors, to_far=to_far)
    near_kwargs = {key: value for key, value in kwargs.items() if key not in {"pin_memory", "non_blocking"}}
    if wanted is not None:
        near_kwargs["device"] = "cpu"
    near_args, near_kwargs = tree_map(_uncovered, (args, near_kwargs))
    out = func(*near_args, **near_kwargs)
    if kwargs.get("pin_memory") and not to_far:
        _locked[out.untyped_storage().data_ptr()] = out
    if not to_far:
        return out if not far else return_and_correct_aliasing(func, args, kwargs, out)
    hidden = tree_map(lambda one: FarTensor(one) if isinstance(one, Tensor) else one, out)
    return return_and_correct_aliasing(func, args, kwargs, hidden) if far else hidden


def _uncovered(leaf: Any) -> Any:
    return leaf.near if isinstance(leaf, FarTensor) else leaf


def _page_lock(name: str, tensor: Tensor) -> Any:
    """`is_pinned` and `pin_memory`, which a machine without a GPU does not have."""
    locked = tensor.untyped_storage().data_ptr() in _locked
    if name == "is_pinned":
        return locked
    if locked:
        return tensor
    copy = tensor.clone()
    _locked[copy.untyped_storage().data_ptr()] = copy
    return copy


def _look(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor], *, to_far: bool
) -> None:
    """Note a wait, or refuse what CUDA refuses."""
    near = [one for one in tensors if not isinstance(one, FarTensor) and one.dim() > 0]
    far = [one for one in tensors if isinstance(one, FarTensor)]
    if near and far and name not in TAKES_BOTH:
        raise RuntimeError(f"{_place()}: {name} has operands on the CPU and on the device: CUDA refuses this")
    if name in READS_BACK:
        _note(f"{name} {READS_BACK[name]}")
    elif name == "_to_copy":
        _look_at_copy(args[0], to_far=to_far, waits=not kwargs.get("non_blocking"))
    elif name == "copy_":
        waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        _look_at_copy(args[1], to_far=isinstance(args[0], FarTensor), waits=waits)
    elif name in TAKES_BOTH:
        indices = [one for one in args[1] if one is not None]
        if any(one.dtype in {torch.bool, torch.uint8} for one in indices):
            if name == "index" or args[2].numel() != 1:  # one value for all is filled in under the mask
                _note(f"{name} by booleans has a size that depends on values")
        elif any(not isinstance(one, FarTensor) for one in indices):
            _note(f"{name} by an index on the CPU, which is sent over in a blocking copy")


def _look_at_copy(source: Tensor, *, to_far: bool, waits: bool) -> None:
    from_far = isinstance(source, FarTensor)
    if from_far == to_far:
        return
    if from_far:
        _note(f"a copy of {tuple(source.shape)} from the device")
    elif waits:
        _note(f"a blocking copy of {tuple(source.shape)} to the device")
    elif source.untyped_storage().data_ptr() not in _locked:
        _note(f"a copy of {tuple(source.shape)} to the device, from memory that is not page-locked")
    elif _active:
        _active[-1].sent += 1


def _note(what: str) -> None:
    if _active:
        _active[-1].waits.append(f"{_place()}: {what}")


def _place() -> str:
    """`file:line` of the innermost line of this repository that is not this file."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path != Path(__file__) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward"


def lock(tensor: Tensor) -> Tensor:
    """Declare memory to be page-locked, as a loader for CUDA gives it."""
    _locked[tensor.untyped_storage().data_ptr()] = tensor
    return tensor


class _Module(backend_registration._DummyBackendModule):  # torch has no other
    """What torch asks of a device by name."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Of autocast."""
        return [torch.bfloat16]


def set_up() -> torch.device:
    """Make this process know the device; once, and for good."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    # A model that is moved gets new parameters: those of another class cannot be filled in place.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    # `torch.tensor(list, device=...)` makes its copy where it is seen.
    torch._C._set_only_lift_cpu_tensors(True)
    _REST.fallback(torch.library.fallthrough_kernel)
    for name in _CAST:
        _LIBRARY.impl(name, _in_lower_precision(name), "AutocastPrivateUse1")
    return torch.device(NAME, 0)


_LIBRARY = torch.library.Library("aten", "IMPL")
_REST = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")


def _in_lower_precision(name: str) -> Callable[..., Tensor]:
    """What autocast does on CUDA before an operation."""
    without = torch._C.DispatchKeySet(torch._C._dispatch_key_parse("AutocastPrivateUse1"))

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            return value.to(torch.get_autocast_dtype(NAME))
        return value

    def operation(*args: Any, **kwargs: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(without):
            done: Tensor = getattr(torch.ops.aten, name)(*map(cast, args), **kwargs)
            return done

    return operation
