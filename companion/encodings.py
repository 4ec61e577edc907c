"""Step encodings: how a network is told the time."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks


def sinusoidal(t: Tensor, dim: int, *, scale: float = 1000.0, max_period: float = 10_000.0) -> Tensor:
    """Encode times as cosines and sines of geometrically spaced frequencies (Vaswani et al. 2017; Ho et al. 2020).

    Args:
        t: (B,) times in [0, 1], or ().
        dim: the length of the encoding, even.
        scale: what t = 1 counts as; 1,000 makes t = k / 1000 the integer step k of DDPM.
        max_period: the longest wavelength, in units of t * scale.

    Returns:
        (B, dim) in t's dtype, or (dim,) for t of shape (): dim / 2 cosines, then dim / 2 sines.

    Raises:
        TypeError: integer timesteps.
        ValueError: an odd dim, or t outside [0, 1].

    >>> sinusoidal(torch.tensor([0.0, 1.0]), 4)[0].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    _checks.count("dim", dim, 2)
    if dim % 2:
        raise ValueError(f"dim is {dim}; it must be even: half cosines, half sines.")
    if not (scale > 0 and max_period > 1):
        raise ValueError(f"scale is {scale} and max_period {max_period}; scale is positive and max_period above 1.")
    t = _checks.time(t)
    half = dim // 2
    frequencies = max_period ** (-torch.arange(half, dtype=t.dtype, device=t.device) / half)
    angles = scale * t.unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
