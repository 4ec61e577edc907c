"""A second device on a machine that has one: its tensors are computed on the CPU and may not be mixed with others.

PyTorch calls it "away". It refuses what CUDA refuses: two tensors of two devices in one operation (a CPU tensor
without dimensions apart), a CPU generator for its random numbers, its indices into a CPU tensor, and `numpy`. It has
no generator of its own. `scripts/second_device.py` runs the chapters on it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "away"
SUPPORTED = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")  # not in the oldest PyTorch
FACTORIES = ["arange", "empty", "empty_strided", "eye", "full", "linspace", "rand", "randint", "randn", "randperm"]
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
OF_TWO = ("embedding", "gather", "index_select", "scatter")  # these take no CPU tensor, not even without dimensions
REGISTERED: list[torch.library.Library] = []


class Away(Tensor):
    """A tensor on the second device; `here` is its content, and `calls` counts the operations of all of them."""

    here: Tensor
    calls = 0

    @staticmethod
    def __new__(cls, here: Tensor) -> "Away":
        away = Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        away.here = here
        return away

    def __repr__(self) -> str:
        return f"{self.here!r} on {NAME}"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else self, spec)

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Away.calls += 1
        kwargs = kwargs or {}
        goes = checked(function._schema.name.split("::")[1], args, kwargs)
        plain, named = tree_map(inner, args), tree_map(inner, kwargs)
        if "device" in named:
            goes = named["device"] is None or torch.device(named["device"]).type == NAME
            named["device"] = torch.device("cpu")
        out = function(*plain, **named)
        if function._schema.is_mutable and out is plain[0]:
            return args[0]
        return tree_map(lambda a: Away(a) if isinstance(a, Tensor) else a, out) if goes else out


def inner(a: Any) -> Any:
    """Return what a tensor of the second device holds, and anything else as it is."""
    return a.here if isinstance(a, Away) else a


def checked(name: str, args: Any, kwargs: Any) -> bool:
    """Return whether the result of an operation is on the second device, or raise where the devices do not fit."""
    if name in ("_to_copy", "copy_"):
        return isinstance(args[0], Away)
    generator(args, kwargs)
    if name in INDEXED:
        away = isinstance(args[0], Away)
        wrong = any(isinstance(a, Tensor) and isinstance(a, Away) != away and (a.ndim or not away) for a in args[2:])
        if wrong or (not away and any(isinstance(a, Away) for a in tree_leaves(args[1]))):
            raise RuntimeError(f"expected indices and values on the device of the tensor ({name})")
        return away
    for a in tree_leaves((args, kwargs)):
        if isinstance(a, Tensor) and not isinstance(a, Away) and (a.ndim or name in OF_TWO):
            raise RuntimeError(f"expected all tensors on one device, found {NAME}:0 and cpu ({name}, {tuple(a.shape)})")
    return name not in ("_local_scalar_dense", "is_same_size", "equal")


def generator(args: Any, kwargs: Any) -> None:
    """Refuse a generator: those that exist are all of the CPU."""
    if any(isinstance(a, torch.Generator) for a in (*args, *kwargs.values())):
        raise RuntimeError(f"expected a '{NAME}' device type for generator but found 'cpu'")


def register() -> torch.device:
    """Make the device known to PyTorch, once, and return it."""
    if not REGISTERED:
        backend_registration._setup_privateuseone_for_python_backend(NAME)
        type(getattr(torch, NAME)).get_amp_supported_dtype = lambda self: [torch.float16, torch.bfloat16]
        library = torch.library.Library("aten", "IMPL")
        library.impl("_copy_from", lambda a, to, non_blocking=False: inner(to).copy_(inner(a)), "PrivateUse1")
        for name in FACTORIES:
            packet = getattr(torch.ops.aten, name)
            for overload in packet.overloads():
                if "out" not in overload and "names" not in overload:
                    made = f"{name}.{overload}".removesuffix(".default")
                    library.impl(made, factory(getattr(packet, overload)), "PrivateUse1")
        REGISTERED.append(library)
    return torch.device(NAME)


def factory(function: Any) -> Any:
    """Return the function as it makes its tensors on the second device."""

    def make(*args: Any, **kwargs: Any) -> Away:
        generator(args, kwargs)
        return Away(function(*args, **kwargs | {"device": torch.device("cpu")}))

    return make
