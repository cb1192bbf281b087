"""A second device for machines without a GPU: its tensors compute on the CPU, but must not be mixed with the CPU's."""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")  # the name of a device that autograd accepts without a driver
MAY_MIX = ("aten.to.", "aten._to_copy.", "aten.copy_.", "aten._has_compatible_shallow_copy_type.")
INDEXING = ("aten.index.", "aten.index_put")  # a tensor elsewhere takes indices on the CPU, but not the reverse


class Elsewhere(torch.Tensor):
    """A tensor that says it is on DEVICE. Its values are in `inner`, on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE, requires_grad=inner.requires_grad,
        )  # fmt: skip

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return call(function, args, kwargs or {})

    def __deepcopy__(self, memo):
        copied = Elsewhere(self.inner.detach().clone()).requires_grad_(self.requires_grad)
        copied.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "inner"}
        return copied

    def __reduce_ex__(self, protocol):  # saved as a tensor on the CPU
        return self.inner.detach().__reduce_ex__(protocol)

    def __repr__(self):
        return f"Elsewhere({self.inner})"

    def tolist(self):
        return self.inner.tolist()

    def new_tensor(self, data, **options):
        return Elsewhere(self.inner.new_tensor(data, **options))


class OnBoth(TorchDispatchMode):
    """Inside, DEVICE exists, also for functions that make a tensor of nothing, such as torch.zeros."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return call(function, args, kwargs or {})


def call(function, args, kwargs):
    """Call an operator of PyTorch with the values of all tensors; the result is on the device that it would be on."""
    leaves = tree_leaves((args, kwargs))
    elsewhere = [value for value in leaves if isinstance(value, Elsewhere)]
    here = [value for value in leaves if isinstance(value, torch.Tensor) and not isinstance(value, Elsewhere)]
    may_mix = MAY_MIX + (INDEXING if args and isinstance(args[0], Elsewhere) else ())
    if elsewhere and any(value.dim() for value in here) and not str(function).startswith(may_mix):
        shapes = ", ".join(str(tuple(value.shape)) for value in here)
        raise RuntimeError(f"{function} got tensors on both devices, on the CPU {shapes}")
    wanted = next((value for value in leaves if isinstance(value, torch.device)), None)
    inner_args, inner_kwargs = tree_map_only(Elsewhere, lambda value: value.inner, (args, kwargs))
    inner_args, inner_kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), (inner_args, inner_kwargs))
    found = function(*inner_args, **inner_kwargs)
    if wanted is not None:
        is_elsewhere = wanted.type == DEVICE.type
    elif function is torch.ops.aten.copy_.default:
        is_elsewhere = isinstance(args[0], Elsewhere)
    else:
        is_elsewhere = bool(elsewhere)
    if not is_elsewhere:
        return found
    found = tree_map_only(torch.Tensor, Elsewhere, found)
    return return_and_correct_aliasing(function, args, kwargs, found) if elsewhere else found


@contextlib.contextmanager
def a_second_device():
    """A context with a second device. Yields it. There is no autocast there."""
    torch_tensor = torch.tensor

    def tensor(data, *, device=None, **options):  # it makes its result before the mode is asked
        made = torch_tensor(data, **options)
        return made if device is None else made.to(device)

    with (
        mock.patch.object(torch, "tensor", tensor),
        mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()),
        mock.patch.object(torch, "is_autocast_enabled", lambda *_: False),
        OnBoth(),
    ):
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # by Module.to
        try:
            yield DEVICE
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
