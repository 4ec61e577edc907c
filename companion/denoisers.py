"""Denoisers: from noisy x and its time to the expected clean data, E[x0 | x].

A sampler knows nothing else. `from_network` makes one of a trained network; `GaussianMixture` and `FiniteDataset`
are exact and need no training, so they say what the best network could do. `Wiener`, the best linear denoiser, and
`MedianFilter` are what a network has to beat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from . import _checks
from .predictions import Prediction
from .schedules import Schedule


class Denoiser(Protocol):
    """The one thing a sampler knows: x (B, *D) and t, () or (B,) in [0, 1], to x0_hat (B, *D) of the same dtype."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """A network with its schedule and prediction, called as denoiser(x, t) or denoiser(x, t, cond)."""

    net: Callable[..., Tensor]
    schedule: Schedule
    prediction: Prediction

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Return x0_hat (B, *D) for x (B, *D) and t, () or (B,); cond goes to the network as it is."""
        t = _checks.batch_time(t, _checks.floating("x", x))
        coefficients = self.schedule.alpha(t), self.schedule.sigma(t)
        alpha, sigma = (_checks.over_batch(c, x) if c.ndim else float(c) for c in coefficients)
        times = t.to(x.device, torch.float32).expand(len(x))
        scaled = (self.prediction.input_scale(alpha, sigma) * x).to(x.dtype)
        out = self.net(scaled, times, cond)
        _checks.same_shape("the network's output", out, x, "its input")
        return self.prediction.to_x0(x, out.to(x.dtype), alpha, sigma)


def from_network(net: Callable[..., Tensor], schedule: Schedule, prediction: Prediction) -> NetworkDenoiser:
    """Return the denoiser of a network net(x, t, cond=None), where the network sees t as a (B,) float32 tensor.

    The network is called in the mode it is in: call net.eval() first if it has dropout.

    Raises (when called):
        ValueError: an output of another shape than x, or a prediction that says nothing at that time.

    >>> from companion import predictions, schedules
    >>> denoise = from_network(lambda x, t, cond: 0 * x, schedules.FlowMatching(), predictions.EPS)
    >>> denoise(torch.ones(2, 3), torch.tensor(0.5))[0].tolist()      # no noise found: x0_hat = x / alpha
    [2.0, 2.0, 2.0]
    """
    return NetworkDenoiser(net, schedule, prediction)


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """The exact denoiser of a mixture of round Gaussians, with its score and density at every time.

    Args:
        means: (K, D), or (K, *D) for data of more dimensions.
        variances: (K,), positive: the variance of each component in every direction.
        weights: (K,), positive; they are scaled to sum to 1.
        schedule: how noise is added.

    Raises:
        ValueError: shapes that do not fit, variances or weights that are not positive and finite.

    >>> from companion import schedules
    >>> one = GaussianMixture(torch.zeros(1, 2), torch.ones(1), torch.ones(1), schedules.FlowMatching())
    >>> one(torch.ones(1, 2), torch.tensor(0.5)).tolist()     # half of x is signal: (0.5 / (0.25 + 0.25)) x
    [[1.0, 1.0]]
    """

    means: Tensor
    variances: Tensor
    weights: Tensor
    schedule: Schedule

    def __post_init__(self) -> None:
        _checks.finite("means", _checks.floating("means", self.means, min_dims=2))
        for name, value in (("variances", self.variances), ("weights", self.weights)):
            _checks.finite(name, _checks.floating(name, value))
            if value.shape != self.means.shape[:1]:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)} with {len(self.means)} means; give one for each component."
                )
            if not bool((value > 0).all()):
                raise ValueError(f"{name} goes down to {float(value.min()):g}; each must be positive.")

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return E[x0 | x_t = x], (B, *D), for x (B, *D) and t, () or (B,)."""
        flat, means, alpha, sigma = self._prepare(x, t)
        variances = self.variances.to(flat)
        total = alpha**2 * variances + sigma**2  # (K,) or (B, K): the variance of each component of x_t
        r = torch.softmax(self._log_joint(flat, means, alpha, total), dim=1)
        gain = alpha * variances / total
        x0 = (r * (1 - gain * alpha)) @ means + (r * gain).sum(1, keepdim=True) * flat
        return x0.reshape(x.shape).to(x.dtype)

    def score(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the gradient of log p_t at x, (B, *D); t above 0.

        >>> from companion import schedules
        >>> one = GaussianMixture(torch.zeros(1, 2), torch.ones(1), torch.ones(1), schedules.Cosine())
        >>> torch.allclose(one.score(torch.ones(1, 2), 0.5), -torch.ones(1, 2))
        True
        """
        flat, means, alpha, sigma = self._prepare(x, t)
        total = alpha**2 * self.variances.to(flat) + sigma**2
        r = torch.softmax(self._log_joint(flat, means, alpha, total), dim=1) / total
        score = (alpha * r) @ means - r.sum(1, keepdim=True) * flat
        return score.reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, t: Tensor | float = 0.0) -> Tensor:
        """Return log p_t(x) in nats, (B,); by default of clean data.

        >>> from companion import schedules
        >>> one = GaussianMixture(torch.zeros(1, 2), torch.ones(1), torch.ones(1), schedules.Cosine())
        >>> round(one.log_prob(torch.zeros(1, 2)).item(), 4)          # -log(2 pi)
        -1.8379
        """
        flat, means, alpha, sigma = self._prepare(x, t)
        total = alpha**2 * self.variances.to(flat) + sigma**2
        return torch.logsumexp(self._log_joint(flat, means, alpha, total), dim=1).to(_checks.wide(x.dtype))

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw n clean samples, (n, *D).

        >>> from companion import schedules
        >>> one = GaussianMixture(torch.zeros(1, 2), torch.ones(1), torch.ones(1), schedules.Cosine())
        >>> one.sample(5).shape
        torch.Size([5, 2])
        """
        device = self.means.device if generator is None else generator.device
        k = torch.multinomial(self.weights.to(device), _checks.count("n", n), replacement=True, generator=generator)
        k = k.to(self.means.device)
        spread = _checks.over_batch(self.variances[k].sqrt(), self.means[k])
        return self.means[k] + spread * _checks.randn(self.means[k].shape, self.means, generator)

    def _prepare(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t = _checks.batch_time(t, _checks.floating("x", x))
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(f"x has shape {tuple(x.shape)} but a component has {tuple(self.means.shape[1:])}.")
        dtype = torch.promote_types(_checks.wide(x.dtype), self.means.dtype)
        flat, means = x.reshape(len(x), -1).to(dtype), self.means.reshape(len(self.means), -1).to(x.device, dtype)
        t = t.to(x.device, dtype).unsqueeze(-1) if t.ndim else t
        return flat, means, self.schedule.alpha(t), self.schedule.sigma(t)

    def _log_joint(self, flat: Tensor, means: Tensor, alpha: Tensor, total: Tensor) -> Tensor:
        """Return log(weight_k p_t(x | k)), (B, K)."""
        weights = self.weights.to(flat)
        log_norm = -0.5 * flat.shape[1] * torch.log(2 * torch.pi * total)
        return (weights / weights.sum()).log() + log_norm - _squared_distance(flat, means, alpha) / (2 * total)


@dataclass(frozen=True, eq=False)
class FiniteDataset:
    """The exact denoiser of a finite data set: the mean of its points, each weighted by how well it explains x.

    This is what a network that fits its training set perfectly would learn, and it copies: sampling with it gives
    the training points back.

    Args:
        data: (N, *D).
        schedule: how noise is added.

    >>> from companion import schedules
    >>> two = FiniteDataset(torch.tensor([[-1.0], [1.0]]), schedules.FlowMatching())
    >>> two(torch.zeros(1, 1), torch.tensor(0.5)).item()
    0.0
    """

    data: Tensor
    schedule: Schedule

    def __post_init__(self) -> None:
        _checks.finite("data", _checks.floating("data", self.data, min_dims=2))
        if not len(self.data):
            raise ValueError(f"data has shape {tuple(self.data.shape)}; it needs at least one point.")

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return E[x0 | x_t = x], (B, *D), for x (B, *D) and t, () or (B,) and above 0."""
        t = _checks.batch_time(t, _checks.floating("x", x))
        if x.shape[1:] != self.data.shape[1:]:
            raise ValueError(f"x has shape {tuple(x.shape)} but a data point has {tuple(self.data.shape[1:])}.")
        dtype = torch.promote_types(_checks.wide(x.dtype), self.data.dtype)
        flat, data = x.reshape(len(x), -1).to(dtype), self.data.reshape(len(self.data), -1).to(x.device, dtype)
        t = t.to(x.device, dtype).unsqueeze(-1) if t.ndim else t
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if sigma.device.type == "cpu" and not bool((sigma > 0).all()):
            raise ValueError("sigma is 0 at t = 0; a finite data set says nothing between its points: take t above 0.")
        distance = _squared_distance(flat, data, alpha)
        further = distance - distance.amin(1, keepdim=True)  # than the nearest point: no overflow where sigma is tiny
        r = torch.softmax(-further / (2 * sigma**2).clamp(min=torch.finfo(dtype).tiny), dim=1)
        return (r @ data).reshape(x.shape).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Wiener:
    """The best linear denoiser: of all affine maps of x, the one with the least mean squared error (Wiener 1949).

    x0_hat = mean + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha mean), with C the covariance of the data. It knows
    nothing of the data but their mean and covariance, and it is the exact denoiser if they are Gaussian.

    Args:
        mean: (*D).
        covariance: (N, N), N the number of elements of `mean`, in the order of mean.flatten().
        schedule: how noise is added.

    Raises:
        TypeError: integer tensors.
        ValueError: shapes that do not fit, NaN, or a covariance that is not symmetric or has a negative variance in it.

    >>> from companion import schedules
    >>> one = Wiener(torch.zeros(2), torch.eye(2), schedules.FlowMatching())
    >>> one(torch.ones(1, 2), torch.tensor(0.5)).tolist()     # half of x is signal: (0.5 / (0.25 + 0.25)) x
    [[1.0, 1.0]]
    """

    mean: Tensor
    covariance: Tensor
    schedule: Schedule

    def __post_init__(self) -> None:
        _checks.finite("mean", _checks.floating("mean", self.mean))
        covariance = _checks.finite("covariance", _checks.floating("covariance", self.covariance))
        n = self.mean.numel()
        if covariance.shape != (n, n):
            raise ValueError(f"covariance has shape {tuple(covariance.shape)}; the mean has {n} elements: ({n}, {n}).")
        if not torch.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * float(covariance.abs().max())):
            raise ValueError("covariance is not symmetric; it is E[(x0 - mean)(x0 - mean)^T]: average it with its .T.")
        least, most = (float(self._axes[0][i]) for i in (0, -1))
        if least < -1e-4 * most:  # rounding leaves such of a variance of 0
            raise ValueError(f"covariance has an eigenvalue of {least:g}; a variance is at least 0 in every direction.")

    @classmethod
    def fit(cls, data: Tensor, schedule: Schedule) -> Wiener:
        """Return the best linear denoiser of data (M, *D): no affine map has less error on noisy copies of them.

        The covariance divides by M, not by M - 1.

        Raises:
            TypeError: integer data.
            ValueError: no data, or data with NaN.

        >>> from companion import schedules
        >>> Wiener.fit(torch.tensor([[-1.0], [3.0]]), schedules.Cosine()).covariance.item()
        4.0
        """
        _checks.finite("data", _checks.floating("data", data, min_dims=2))
        if not data.numel():
            raise ValueError(f"data has shape {tuple(data.shape)}; a covariance needs at least one sample.")
        wide = data.to(_checks.wide(data.dtype))
        centred = (wide - wide.mean(0)).flatten(1)
        return cls(wide.mean(0), centred.T @ centred / len(data), schedule)

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the linear estimate of x0, (B, *D), for x (B, *D) and t, () or (B,)."""
        t = _checks.batch_time(t, _checks.floating("x", x))
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"x has shape {tuple(x.shape)} but the mean has {tuple(self.mean.shape)}.")
        dtype = torch.promote_types(_checks.wide(x.dtype), self.mean.dtype)
        variances, axes = (part.to(x.device, dtype) for part in self._axes)
        flat, mean = x.reshape(len(x), -1).to(dtype), self.mean.reshape(-1).to(x.device, dtype)
        t = t.to(x.device, dtype).unsqueeze(-1) if t.ndim else t
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        total = (alpha**2 * variances + sigma**2).clamp(min=torch.finfo(dtype).tiny)  # 0 if t = 0 and no variance
        gain = alpha * variances / total
        return (mean + ((flat - alpha * mean) @ axes * gain) @ axes.T).reshape(x.shape).to(x.dtype)

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """The variances (N,), rising, and the directions (N, N), in columns, along which the data do not correlate."""
        variances, axes = torch.linalg.eigh(self.covariance.detach().to("cpu", torch.float64))
        return variances, axes


@dataclass(frozen=True)
class MedianFilter:
    """The median over a square window of x / alpha: the classical remedy for single wrong pixels.

    The image is continued by its edge pixels. The time serves only to scale x: the filter does as much to a clean
    image as to a noisy one.

    Args:
        size: the side of the window in pixels, odd; 1 does nothing.
        schedule: how noise is added.

    Raises:
        TypeError, ValueError: a size that is not a whole odd number of at least 1.

    >>> from companion import schedules
    >>> x = torch.zeros(1, 1, 5, 5)
    >>> x[0, 0, 2, 2] = 9.0                                   # one wrong pixel
    >>> MedianFilter(3, schedules.VarianceExploding())(x, 0.5).abs().max().item()
    0.0
    """

    size: int
    schedule: Schedule

    def __post_init__(self) -> None:
        if _checks.count("size", self.size) % 2 == 0:
            raise ValueError(f"size is {self.size}; it must be odd, so that the window has a pixel in its middle.")

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the filtered image (B, C, H, W) for x (B, C, H, W) and t, () or (B,), where alpha is above 0."""
        t = _checks.batch_time(t, _checks.floating("x", x))
        if x.ndim != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}; a median filter takes images (B, C, H, W).")
        alpha = self.schedule.alpha(t.to(x.device, _checks.wide(x.dtype)) if t.ndim else t)
        if alpha.device.type == "cpu" and not bool((alpha > 0).all()):
            raise ValueError("alpha is 0 where t is 1; nothing is left of x0 to filter: take t below 1.")
        reach = self.size // 2
        image = x.to(_checks.wide(x.dtype)) / _checks.over_batch(alpha, x)
        padded = torch.nn.functional.pad(image, (reach,) * 4, mode="replicate")
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(-2).median(-1).values.to(x.dtype)


def _squared_distance(x: Tensor, means: Tensor, alpha: Tensor) -> Tensor:
    """Return |x - alpha * mean|^2, (B, K), by differences: products would cancel close to a mean."""
    if alpha.ndim:  # one time for each sample
        return torch.cdist(x.unsqueeze(1), alpha.unsqueeze(-1) * means, compute_mode=_EXACT).squeeze(1) ** 2
    return torch.cdist(x, alpha * means, compute_mode=_EXACT) ** 2


_EXACT = "donot_use_mm_for_euclid_dist"
