"""A GPU that is not there: tensors that say they are on it, compute on the CPU, and refuse to meet tensors of the CPU.

Code that forgets to move a tensor fails here as it would on a GPU, and code that does not gives the CPU's own bits.
What only a GPU has (kernels, streams, its generator) is not here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("cuda", 0)
_aten = torch.ops.aten
_MAY_MIX = {  # as on a GPU: copies, and indices that are on the CPU
    _aten._to_copy.default,
    _aten.copy_.default,
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}


class Far(Tensor):
    """A tensor on the far device; ``held`` is where its numbers are."""

    held: Tensor

    @staticmethod
    def __new__(cls: type["Far"], held: Tensor) -> "Far":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("cpu"),
            requires_grad=held.requires_grad,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return FAR

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.held})"

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.to, Tensor.cpu):
            return _moved(*args, **kwargs) if func is Tensor.to else _moved(args[0], "cpu")
        if func in _READ:
            return func(_near(args[0]).detach(), *args[1:], **kwargs)
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


_READ = (Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__)


class _Leaving(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, far: Tensor) -> Tensor:
        return _near(far).clone()

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        return Far(grad)


class _Watched(TorchDispatchMode):
    """Sees what makes tensors out of nothing, or out of those of the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """``torch.tensor`` fills the tensor where no dispatch sees it, and ``cuda`` without a number asks CUDA for one."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_numbered, (tuple(args), dict(kwargs or {})))
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@contextmanager
def _said_to_be_there() -> Iterator[None]:
    with (
        mock.patch("torch.cuda._lazy_init"),
        mock.patch("torch.cuda.synchronize"),
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.device_count", return_value=1),
        mock.patch("torch._C._InferenceMode", lambda on: torch.no_grad() if on else nullcontext()),  # no subclass can
    ):
        yield


@contextmanager
def far_device() -> Iterator[torch.device]:
    """Inside the block ``module.to(device)`` and ``tensor.to(device)`` go to the far device."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Watched(), _Made(), _said_to_be_there():  # type: ignore[no-untyped-call]
            yield FAR
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    far = [tensor for tensor in given if isinstance(tensor, Far)]
    near = [tensor for tensor in given if not isinstance(tensor, Far) and tensor.ndim]
    if far and near and func not in _MAY_MIX:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but those of shapes "
            f"{[tuple(tensor.shape) for tensor in near]} are on cpu and the others on cuda:0"
        )
    asked = kwargs.get("device")
    goes_far = bool(far) if asked is None else torch.device(asked).type == FAR.type
    kwargs = dict(kwargs) if asked is None else {**kwargs, "device": torch.device("cpu")}
    near_args, near_kwargs = tree_map(_near, (tuple(args), kwargs))
    made = func(*near_args, **near_kwargs)
    if func is _aten.copy_.default:
        return args[0]
    if func is _aten.convolution_backward.default:
        # a weight's gradient must lie in memory as the weight does, or autograd copies it where nobody sees
        made = (made[0], None if made[1] is None else made[1].contiguous(), made[2])
    same = {id(tensor.held): tensor for tensor in far}

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor) or not goes_far:
            return value
        return same[id(value)] if id(value) in same else Far(value)

    return tree_map(there, made)


def _numbered(value: Any) -> Any:
    return FAR if isinstance(value, (str, torch.device)) and str(value) == FAR.type else value


def _near(value: Any) -> Any:
    return value.held if isinstance(value, Far) else value


def _moved(tensor: Tensor, *where: Any, **how: Any) -> Tensor:
    """``Tensor.to`` where either side is far."""
    if where and isinstance(where[0], Tensor):
        where = (where[0].device, where[0].dtype)
    device = next((word for word in where if isinstance(word, (str, torch.device))), how.get("device"))
    dtype = next((word for word in where if isinstance(word, torch.dtype)), how.get("dtype")) or tensor.dtype
    if not isinstance(tensor, Far):
        return tensor.to(device=device, dtype=dtype, copy=how.get("copy", False))
    if device is not None and torch.device(device).type == "cpu":
        near: Tensor = _Leaving.apply(tensor)  # type: ignore[no-untyped-call]
        return near.to(dtype)
    same = dtype == tensor.dtype and not how.get("copy")
    moved: Tensor = tensor if same else _aten._to_copy.default(tensor, dtype=dtype)
    return moved
