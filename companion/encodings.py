"""Step encodings: how a network is told the time.

An encoding is any function, or module, from times (B,) to vectors (B, n). `networks.MLP` and `networks.UNet` take one
as `encoding`; without it they use `sinusoidal`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import _checks
from .schedules import Schedule


def sinusoidal(t: Tensor, dim: int, *, scale: float = 1000.0, max_period: float = 10_000.0) -> Tensor:
    """Encode times as cosines and sines of geometrically spaced frequencies (Vaswani et al. 2017; Ho et al. 2020).

    Frequency i of dim / 2 is max_period^(-2 i / dim) radians per unit of t * scale, i counted from 0. The longest
    wavelength is therefore 2 pi max_period^((dim - 2) / dim), in units of t * scale: max_period itself, as a frequency,
    is one place beyond the last.

    Args:
        t: (B,) times in [0, 1], or ().
        dim: the length of the encoding, even.
        scale: what t = 1 counts as; 1,000 makes t = k / 1000 the integer step k of DDPM.
        max_period: sets the ratio of neighbouring frequencies, max_period^(2 / dim); above 1.

    Returns:
        (B, dim) in t's dtype, or (dim,) for t of shape (): dim / 2 cosines, then dim / 2 sines.

    Raises:
        TypeError: integer timesteps.
        ValueError: an odd dim, or t outside [0, 1].

    >>> sinusoidal(torch.tensor([0.0, 1.0]), 4)[0].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    _even(dim)
    if not (scale > 0 and max_period > 1):
        raise ValueError(f"scale is {scale} and max_period {max_period}; scale is positive and max_period above 1.")
    t = _checks.time(t)
    half = dim // 2
    frequencies = max_period ** (-torch.arange(half, dtype=t.dtype, device=t.device) / half)
    angles = scale * t.unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def log_snr(t: Tensor, schedule: Schedule, dim: int, *, limit: float = 20.0, scale: float = 1000.0) -> Tensor:
    """Encode times by their log signal-to-noise ratio: the sinusoidal code of (limit - log_snr) / (2 limit).

    Two schedules that reach the same ratio give the same code there, so what a network learned of one holds for the
    other (Kingma et al. 2021). The ratio is infinite at t = 0, and at t = 1 on schedules that end in pure noise; it is
    clamped to [-limit, limit], and times beyond the limit share one code.

    Args:
        t: (B,) times in [0, 1], or ().
        schedule: whose log_snr(t) is meant.
        dim: the length of the encoding, even.
        limit: the largest log signal-to-noise ratio told apart, and its negative the least; 20 is a noise of
            4.5e-5 of the signal.
        scale: what the whole range counts as, from the cleanest to the noisiest.

    Returns:
        (B, dim) in t's dtype, or (dim,) for t of shape ().

    Raises:
        TypeError: integer timesteps.
        ValueError: an odd dim, t outside [0, 1], or a limit that is not positive and finite.

    >>> from companion import schedules
    >>> codes = [log_snr(s.t_of_log_snr(1.5), s, 8) for s in (schedules.Cosine(), schedules.FlowMatching())]
    >>> bool(torch.allclose(*codes))
    True
    """
    if not 0 < limit < math.inf:
        raise ValueError(f"limit is {limit}; it must be positive and finite: log_snr is infinite at t = 0.")
    ratio = schedule.log_snr(_checks.time(t)).clamp(-limit, limit)
    return sinusoidal((limit - ratio) / (2 * limit), dim, scale=scale)


def raw(t: Tensor) -> Tensor:
    """Return the number itself, (B, 1), or (1,) for t of shape ().

    >>> raw(torch.tensor([0.25, 1.0])).tolist()
    [[0.25], [1.0]]
    """
    return _checks.time(t).unsqueeze(-1)


def none(t: Tensor) -> Tensor:
    """Return zeros, (B, 1), or (1,) for t of shape (): a network that is told nothing.

    >>> none(torch.tensor([0.25, 1.0])).tolist()
    [[0.0], [0.0]]
    """
    return torch.zeros_like(_checks.time(t)).unsqueeze(-1)


class GaussianFourier(nn.Module):
    """Encode times as cosines and sines of random frequencies (Tancik et al. 2020; Song et al. 2021).

    The frequencies, in turns per unit of t, are drawn once from N(0, scale^2) and never trained. Two codes have, over
    many frequencies, the cosine similarity exp(-2 (pi scale (t - s))^2): times closer than about 1 / (2 pi scale) look
    alike.

    Args:
        dim: the length of the encoding, even.
        scale: standard deviation of the frequencies, positive.
        generator: where they are drawn from, on the CPU.

    >>> GaussianFourier(8)(torch.rand(5)).shape
    torch.Size([5, 8])
    """

    frequencies: Tensor

    def __init__(self, dim: int, *, scale: float = 1.0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale}; it must be positive and finite: turns per unit of t.")
        self.register_buffer("frequencies", scale * torch.randn(_even(dim) // 2, generator=generator))

    def forward(self, t: Tensor) -> Tensor:
        """Return (B, dim) for t (B,) in [0, 1], or (dim,) for t of shape (); in t's dtype."""
        t = _checks.time(t)
        angles = 2 * math.pi * t.unsqueeze(-1) * self.frequencies.to(t.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class LearnedStep(nn.Module):
    """Encode times by a table of vectors that train with the network, one for each step k = 0 to num_steps.

    A time takes the row of the nearest step, round(t * num_steps), without interpolation: a row whose step is never
    trained on stays as it was drawn.

    Args:
        num_steps: T, the steps in [0, 1]; the table has T + 1 rows.
        dim: the length of the encoding.

    >>> code = LearnedStep(10, 4)
    >>> torch.equal(code(torch.tensor([0.29, 0.32])), code.rows.weight[[3, 3]])
    True
    """

    def __init__(self, num_steps: int, dim: int) -> None:
        super().__init__()
        self.num_steps = _checks.count("num_steps", num_steps)
        self.rows = nn.Embedding(num_steps + 1, _checks.count("dim", dim))

    def forward(self, t: Tensor) -> Tensor:
        """Return (B, dim) for t (B,) in [0, 1], or (dim,) for t of shape ()."""
        return self.rows((_checks.time(t) * self.num_steps).round().long())


def _even(dim: int) -> int:
    if _checks.count("dim", dim, 2) % 2:
        raise ValueError(f"dim is {dim}; it must be even: half cosines, half sines.")
    return dim
