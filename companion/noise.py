"""The noise-addition layer, the Markov chain it replaces, and other ways to corrupt data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from . import _checks
from .schedules import Schedule


def add_noise(
    x0: Tensor,
    t: Tensor | float,
    schedule: Schedule,
    eps: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Jump from data to time t: x_t = alpha(t) * x0 + sigma(t) * eps (Ho et al. 2020, equation 4).

    Args:
        x0: data (B, *D), floating point.
        t: () or (B,) in [0, 1].
        eps: noise of x0's shape; drawn from N(0, I) if None.
        generator: where the noise comes from.

    Returns:
        (x_t, eps), both in x0's shape and dtype.

    Raises:
        TypeError: integer data or integer timesteps.
        ValueError: t outside [0, 1] or of another batch, eps of another shape.

    >>> from companion.schedules import FlowMatching
    >>> x0 = torch.ones(2, 3)
    >>> x_t, eps = add_noise(x0, torch.tensor([0.0, 1.0]), FlowMatching())
    >>> bool((x_t[0] == x0[0]).all()), bool((x_t[1] == eps[1]).all())
    (True, True)
    """
    _checks.finite("x0", _checks.floating("x0", x0))
    t = _checks.batch_time(t, x0)
    if eps is None:
        eps = _checks.randn(x0.shape, x0, generator)
    else:
        _checks.same_shape("eps", _checks.floating("eps", eps), x0, "x0")
    t = t.to(torch.promote_types(t.dtype, _checks.wide(x0.dtype))) if t.ndim else t
    alpha, sigma = (_checks.over_batch(c, x0) for c in (schedule.alpha(t), schedule.sigma(t)))
    return (alpha * x0 + sigma * eps).to(x0.dtype), eps


def markov_chain(
    x0: Tensor, schedule: Schedule, ts: Tensor, *, generator: torch.Generator | None = None
) -> Iterator[Tensor]:
    """Add the noise step by step; the jump of `add_noise` has the same distribution at each time.

    x_t = ratio * x_s + sqrt(sigma_t^2 - ratio^2 sigma_s^2) * z with ratio = alpha_t / alpha_s, for each step s to t.

    Args:
        x0: data (B, *D).
        ts: (T + 1,) rising times; the first is 0, where the chain stands at x0.

    Yields:
        x at ts[1], ts[2], ..., each (B, *D).

    Raises:
        ValueError: times that do not rise from 0, or that step on from where alpha is 0.

    >>> from companion.schedules import FlowMatching
    >>> chain = markov_chain(torch.zeros(4, 2), FlowMatching(), torch.linspace(0, 1, 11))
    >>> len(list(chain))
    10
    """
    _checks.finite("x0", _checks.floating("x0", x0))
    ts = _checks.time(torch.as_tensor(ts), "ts")
    if ts.ndim == 1 and bool((ts[1:] <= ts[:-1]).any()):
        raise ValueError("ts does not rise strictly; a chain walks from data to noise: use ts.flip(0) or unique.")
    down = _checks.grid(ts.flip(0) if ts.ndim else ts)
    if float(down[-1]) != 0:
        raise ValueError(f"ts starts at {float(down[-1]):g}; a chain starts at the data, t = 0.")
    up = down.flip(0)
    alpha, sigma = schedule.alpha(up), schedule.sigma(up)
    if float(alpha[:-1].min()) == 0:
        raise ValueError("alpha is 0 before the last time in ts; nothing can follow pure noise: end the chain there.")
    ratios = alpha[1:] / alpha[:-1]
    spreads = (sigma[1:] ** 2 - ratios**2 * sigma[:-1] ** 2).clamp(min=0).sqrt()
    return _walk(x0, ratios.tolist(), spreads.tolist(), generator)


def _walk(x: Tensor, ratios: list[float], spreads: list[float], generator: torch.Generator | None) -> Iterator[Tensor]:
    dtype, x = x.dtype, x.to(_checks.wide(x.dtype))  # in bfloat16 a ratio of 0.9999 would be 1
    for ratio, spread in zip(ratios, spreads, strict=True):
        x = ratio * x + spread * _checks.randn(x.shape, x, generator)
        yield x.to(dtype)


def gaussian(x: Tensor, std: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Add Gaussian noise: x + std * eps, in x's shape and dtype.

    >>> gaussian(torch.zeros(2, 3), 0.1).shape
    torch.Size([2, 3])
    """
    _level("std", std, 0.0, float("inf"))
    return _checks.floating("x", x) + std * _checks.randn(x.shape, x, generator)


def salt_and_pepper(
    x: Tensor,
    amount: float,
    *,
    data_range: tuple[float, float] = (-1.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Replace a share `amount` of the values, half by the lowest and half by the highest.

    >>> salt_and_pepper(torch.zeros(1000), 1.0).abs().min().item()
    1.0
    """
    _level("amount", amount, 0.0, 1.0)
    low, high = data_range
    u = _uniform(_checks.floating("x", x), generator)
    return x.masked_fill(u < amount / 2, low).masked_fill(u >= 1 - amount / 2, high)


def shot(
    x: Tensor,
    peak: float,
    *,
    data_range: tuple[float, float] = (-1.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Count photons: Poisson noise whose mean is x and whose variance grows with brightness.

    Args:
        x: (B, *D) within data_range.
        peak: the expected count at the highest value; fewer photons, more noise.

    >>> shot(torch.full((5,), -1.0), 10.0).tolist()          # no light, no noise
    [-1.0, -1.0, -1.0, -1.0, -1.0]
    """
    _level("peak", peak, 0.0, float("inf"))
    low, high = data_range
    brightness = (_checks.floating("x", x).to(_checks.wide(x.dtype)) - low) / (high - low)
    light = brightness.detach()
    if x.device.type == "cpu" and x.numel() and not (float(light.min()) >= 0 and float(light.max()) <= 1):
        least, most = (float(v) for v in torch.aminmax(x.detach()))
        raise ValueError(
            f"x ranges from {least:g} to {most:g}, outside data_range {data_range}; "
            f"light cannot be negative: clamp x or give its range."
        )
    device = x.device if generator is None else generator.device
    counts = torch.poisson((light * peak).to(device), generator=generator).to(x.device)
    seen = counts / peak + (brightness - light)  # the same value; counts alone would stop the gradient of their mean
    return (seen * (high - low) + low).to(x.dtype)


class NoiseAddition(nn.Module):
    """A layer that corrupts what passes through it while training, and lets it pass unchanged in evaluation.

    First in a network it is input noise; between layers it is activation noise.

    Args:
        level: how much: the std of `gaussian`, the amount of `salt_and_pepper`, the peak of `shot`.
        kind: a function (x, level, generator=...) such as `gaussian`, `salt_and_pepper` or `shot`.

    >>> layer = NoiseAddition(0.1)
    >>> x = torch.zeros(2, 3)
    >>> bool((layer.eval()(x) == x).all()), bool((layer.train()(x) == x).any())
    (True, False)
    """

    def __init__(
        self,
        level: float,
        kind: Callable[..., Tensor] = gaussian,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.level, self.kind, self.generator = level, kind, generator
        kind(torch.zeros(1), level, generator=torch.Generator())  # a bad level is refused here, not in the first batch

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, *D) corrupted in training mode, x itself in evaluation mode."""
        return self.kind(x, self.level, generator=self.generator) if self.training else x

    def extra_repr(self) -> str:
        """Return what print(layer) shows."""
        return f"level={self.level}, kind={getattr(self.kind, '__name__', self.kind)}"


def _uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    device = x.device if generator is None else generator.device
    return torch.rand(x.shape, generator=generator, device=device).to(x.device)


def _level(name: str, level: float, low: float, high: float) -> None:
    if not low <= level <= high or level == float("inf") or (name == "peak" and level == 0):
        raise ValueError(f"{name} is {level}; it must be finite and lie in [{low:g}, {high:g}]; a peak is above 0.")
