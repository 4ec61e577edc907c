"""The training loss and its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _checks, noise
from .predictions import Number, Prediction
from .schedules import Schedule

Weight = Callable[[Number, Number, Number, Number], Number]


def simple(alpha: Number, sigma: Number, a: Number, b: Number) -> float:
    """Return 1: each time's squared error of the output counts alike (Ho et al. 2020, eq. 14).

    >>> simple(0.8, 0.6, 0.0, 1.0)
    1.0
    """
    return 1.0


def stratified_times(
    n: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Draw one time from each of n equal parts of (0, 1], in random order: less noise in the loss than free draws.

    Returns:
        (n,) float32.

    >>> t = stratified_times(4).sort().values
    >>> ((t * 4).ceil() - 1).tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    where = generator.device if generator is not None else device
    jitter = torch.rand(_checks.count("n", n), generator=generator, device=where)
    part = torch.randperm(n, generator=generator, device=where)
    return ((part + 1 - jitter) / n).to(device)


def denoising_loss(
    net: Callable[..., Tensor],
    x0: Tensor,
    schedule: Schedule,
    prediction: Prediction,
    *,
    cond: Any = None,
    weight: Weight = simple,
    t: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the weighted squared error of the network's output, one value for each sample.

    Noise is added at a random time, the network is asked for prediction.target, and the squared error is averaged
    over the elements of each sample.

    Args:
        net: net(x, t, cond) -> a tensor of x's shape.
        x0: clean data (B, *D), scaled to about unit variance or to [-1, 1].
        cond: what the network is told about x0; None where there is nothing to tell.
        weight: a function (alpha, sigma, a, b) of the schedule and of the prediction's row.
        t: (B,) times in [0, 1]; drawn by `stratified_times` if None.
        generator: where times and noise come from.

    Returns:
        (B,) losses with their graph; call .mean().backward().

    Raises:
        TypeError: integer data or integer timesteps.
        ValueError: NaN in x0, t of another batch, an output of another shape.

    >>> from companion import predictions, schedules
    >>> net = lambda x, t, cond: torch.zeros_like(x)
    >>> loss = denoising_loss(net, torch.randn(256, 32), schedules.Cosine(), predictions.EPS)
    >>> loss.shape, round(loss.mean().item(), 1)          # predicting no noise costs E[eps^2] = 1
    (torch.Size([256]), 1.0)
    """
    _checks.finite("x0", _checks.floating("x0", x0, min_dims=2), "look at the data before training")
    if t is None:
        t = stratified_times(len(x0), generator=generator, device=x0.device)
    t = _checks.batch_time(t, x0).expand(len(x0))
    x, eps = noise.add_noise(x0, t, schedule, generator=generator)
    alpha, sigma = (_checks.over_batch(c, x0) for c in (schedule.alpha(t), schedule.sigma(t)))
    a, b = prediction.row(alpha, sigma)
    out = net((prediction.input_scale(alpha, sigma) * x).to(x0.dtype), t.float(), cond)
    _checks.same_shape("the network's output", out, x0, "its input")
    wide = _checks.wide(x0.dtype)  # a bfloat16 mean of squares keeps two digits
    error = weight(alpha, sigma, a, b) * (out - (a * x0.to(wide) + b * eps.to(wide))) ** 2
    return error.flatten(1).mean(1)
