"""Checks shared by every module: each error states the value got, the rule and the fix.

Shapes and dtypes are checked always. Values (range, NaN) are checked on the CPU only: on an accelerator
reading a value back would stop the queue.
"""

from __future__ import annotations

import math
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor


def floating(name: str, x: Tensor, *, min_dims: int = 1) -> Tensor:
    """Return x if it is a floating-point tensor of at least `min_dims` dimensions."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be a torch.Tensor: use torch.as_tensor({name}).")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} has dtype {x.dtype}; it must be floating point: use {name}.float(), scaled to [-1, 1] for images."
        )
    if x.ndim < min_dims:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; it needs at least {min_dims} dimension(s), the batch first: "
            f"use {name}.unsqueeze(0)."
        )
    return x


def finite(name: str, x: Tensor, fix: str = "remove or repair those values") -> Tensor:
    """Return x if it holds no NaN and no infinity (looked at on the CPU only)."""
    if x.device.type == "cpu" and x.numel() and not math.isfinite(x.detach().sum()):  # NaN and infinity stay in a sum
        low, high = (float(v) for v in torch.aminmax(x.detach()))  # a sum may also overflow by itself
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise ValueError(f"{name} holds NaN or infinity (min {low}, max {high}); it must be finite: {fix}.")
    return x


def time(t: Tensor | float, name: str = "t") -> Tensor:
    """Return t as a float32 or float64 tensor in [0, 1]."""
    if isinstance(t, bool) or not isinstance(t, Tensor | float | int):
        raise TypeError(f"{name} is a {type(t).__name__}; it must be a tensor or a float in [0, 1].")
    if not isinstance(t, Tensor):
        t = torch.tensor(float(t), dtype=torch.float64)
    if t.dtype not in (torch.float32, torch.float64):
        hint = f"a timestep k of T is {name} = k / T" if not t.is_floating_point() else "0.999 in bfloat16 is 1"
        raise TypeError(f"{name} has dtype {t.dtype}; times are float32 or float64 in [0, 1]: {hint}.")
    if t.device.type == "cpu" and t.numel():
        low, high = (float(v) for v in torch.aminmax(t.detach()))
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(
                f"{name} ranges from {low:g} to {high:g}; times lie in [0, 1], 0 is data and 1 is noise: "
                f"divide integer timesteps by the number of steps."
            )
    return t


def batch_time(t: Tensor | float, x: Tensor, name: str = "t") -> Tensor:
    """Return t as a () tensor, or as a (B,) tensor that fits the batch of x."""
    t = time(t, name)
    if t.ndim == 0:
        return t
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(t.shape)} but x has batch {x.shape[0]}; {name} is () for the whole batch or "
            f"({x.shape[0]},): one time for each sample."
        )
    return t


def grid(ts: Tensor, name: str = "ts") -> Tensor:
    """Return ts as a strictly decreasing (N + 1,) float64 grid on the CPU, within [0, 1]."""
    if not isinstance(ts, Tensor):
        raise TypeError(f"{name} is a {type(ts).__name__}; it must be a tensor such as schedule.time_grid(20).")
    ts = time(ts, name).detach().to("cpu", torch.float64)
    if ts.ndim != 1 or len(ts) < 2:
        raise ValueError(
            f"{name} has shape {tuple(ts.shape)}; a grid is 1-D with at least 2 points, from noise to data."
        )
    time(ts, name)
    if not bool((ts[1:] < ts[:-1]).all()):
        raise ValueError(
            f"{name} does not fall strictly; a sampler walks from noise to data: use {name}.flip(0) or unique."
        )
    return ts


def same_shape(name: str, x: Tensor, like: Tensor, like_name: str) -> Tensor:
    """Return x if it has the shape of `like`."""
    if x.shape != like.shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} but {like_name} has {tuple(like.shape)}; the two must be equal: "
            f"nothing is broadcast."
        )
    return x


def count(name: str, n: int, least: int = 1) -> int:
    """Return n if it is an integer of at least `least`."""
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"{name} is {n!r}; it must be an int of at least {least}.")
    if n < least:
        raise ValueError(f"{name} is {n}; it must be at least {least}.")
    return n


def labels(cond: Tensor | int, batch: int, num_classes: int, *, device: torch.device | None = None) -> Tensor:
    """Return class labels as a (B,) int64 tensor in [0, num_classes]; num_classes itself means "no class"."""
    if isinstance(cond, bool) or not isinstance(cond, Tensor | int):
        raise TypeError(f"cond is a {type(cond).__name__}; it must be an int, a (B,) tensor of classes, or None.")
    y = torch.as_tensor(cond, device=device)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"cond has dtype {y.dtype}; classes are integers: use cond.long().")
    if y.ndim == 0:
        y = y.expand(batch)
    if y.shape != (batch,):
        raise ValueError(f"cond has shape {tuple(y.shape)} but the batch is {batch}; give () or ({batch},).")
    if y.device.type == "cpu" and y.numel():
        low, high = (int(v) for v in torch.aminmax(y))
        if low < 0 or high > num_classes:
            raise ValueError(
                f"cond ranges from {low} to {high}; classes are 0 to {num_classes - 1}, and {num_classes} or None "
                f"means no class."
            )
    return y.long()


def images(x: Tensor, channels: int, halvings: int) -> Tensor:
    """Return x if it is (B, channels, H, W) and both sides can be halved so often."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x has shape {tuple(x.shape)} but the network was built for (B, {channels}, H, W).")
    if x.shape[2] % 2**halvings or x.shape[3] % 2**halvings:
        raise ValueError(
            f"x is {x.shape[2]}x{x.shape[3]}; with {halvings} halvings both sides must be multiples of "
            f"{2**halvings}: pad or resize the images."
        )
    return x


def beside(c: Tensor, x: Tensor) -> Tensor:
    """Return c on x's device; float64 becomes float32 where that device, MPS, has none."""
    return c.to(x.device, torch.float32 if x.device.type == "mps" and c.dtype == torch.float64 else c.dtype)


def over_batch(c: Tensor, x: Tensor) -> Tensor:
    """Shape a coefficient () or (B,) so that it multiplies x (B, *D), on whichever device that is."""
    return c if c.ndim == 0 else beside(c, x).reshape(-1, *([1] * (x.ndim - 1)))


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float32, or float64 where that came in."""
    return torch.promote_types(dtype, torch.float32)


def randn(shape: torch.Size | tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw N(0, I) on the generator's device (else on like's), in float32 or wider, and move it to like."""
    device = like.device if generator is None else generator.device
    noise = torch.randn(shape, generator=generator, device=device, dtype=wide(like.dtype))
    return noise.to(like.device, like.dtype)


def needed(module: str, user: str, package: str) -> ModuleType:
    """Return a module that not every function needs, or say which package to install for the one that does."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{user} needs {package}: pip install {package}") from error
