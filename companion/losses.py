"""The training loss, its weights, the variational bound, and losses for images.

A weight multiplies the squared error of the network's output. With D = alpha * b - sigma * a, from the prediction's
row (a, b), an error in the output is D / sigma times an error in x0 and D / alpha times an error in eps. So every
weight below is a charge for the error in x0 that depends on the signal-to-noise ratio alone, written in the output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _checks, noise
from .denoisers import Denoiser
from .predictions import Number, Prediction
from .schedules import Schedule

Weight = Callable[[Number, Number, Number, Number], Number]
"""A loss weight: a function (alpha, sigma, a, b) of the coefficients and of the prediction's row."""


def simple(alpha: Number, sigma: Number, a: Number, b: Number) -> float:
    """Return 1: each time's squared error of the output counts alike (Ho et al. 2020, equation 14).

    What that charges for an error in x0 depends on the prediction: 1 for X0, the SNR for EPS.

    >>> simple(0.8, 0.6, 0.0, 1.0)
    1.0
    """
    return 1.0


def snr(alpha: Number, sigma: Number, a: Number, b: Number) -> Tensor:
    """Charge the SNR for an error in x0: the plain loss of eps-prediction, whatever the network outputs.

    Infinite at t = 0 for a network that outputs x0.

    >>> snr(0.8, 0.6, 0.0, 1.0).item(), round(snr(0.8, 0.6, 1.0, 0.0).item(), 4)       # for EPS; for X0, 0.64 / 0.36
    (1.0, 1.7778)
    """
    return _per_error(alpha, sigma, a, b)[1]


def min_snr(gamma: float = 5.0) -> Weight:
    """Return the weight that charges min(SNR, gamma) for an error in x0 (Hang et al. 2023).

    It is finite at every time for every prediction.

    Args:
        gamma: where the charge stops growing, positive.

    >>> weight = min_snr(5.0)
    >>> round(weight(0.96, 0.28, 1.0, 0.0).item(), 4), round(weight(0.6, 0.8, 1.0, 0.0).item(), 4)     # SNR 11.8, 0.56
    (5.0, 0.5625)
    """
    _positive("gamma", gamma, "5 is usual")

    def weight(alpha: Number, sigma: Number, a: Number, b: Number) -> Tensor:
        per_x0, per_eps = _per_error(alpha, sigma, a, b)
        return torch.minimum(per_eps, gamma * per_x0)

    return weight


def edm(sigma_data: float = 0.5) -> Weight:
    """Return the weight that charges SNR + 1 / sigma_data^2 for an error in x0 (Karras et al. 2022, table 1).

    For `predictions.edm` of the same sigma_data it is 1.

    Args:
        sigma_data: the data's standard deviation, positive.

    >>> from companion import predictions
    >>> round(edm(0.7)(0.8, 0.6, *predictions.edm(0.7).row(0.8, 0.6)).item(), 6)
    1.0
    """
    _positive("sigma_data", sigma_data, "the data's standard deviation")

    def weight(alpha: Number, sigma: Number, a: Number, b: Number) -> Tensor:
        per_x0, per_eps = _per_error(alpha, sigma, a, b)
        return per_eps + per_x0 / sigma_data**2

    return weight


def elbo(schedule: Schedule) -> Weight:
    """Return the variational bound's weight: -1/2 d log_snr / dt for an error in eps (Kingma et al. 2021, equation 17).

    With times uniform on (0, 1] the mean of `denoising_loss` is then the bound's diffusion part in nats per dimension.
    The slope is infinite at t = 0 and where alpha is 0; log-SNRs outside [-40, 100] count as the nearest inside, so
    that the weight stays finite for V, VELOCITY and predictions.edm. A table of times is made once; each call reads
    the slope on the CPU in float64.

    Args:
        schedule: the one that training uses; the weight sees only alpha / sigma and cannot tell another.

    >>> from companion.schedules import FlowMatching
    >>> round(elbo(FlowMatching())(0.75, 0.25, 0.0, 1.0).item(), 6)                    # 1 / (t (1 - t)) at t = 1/4
    5.333333
    """
    low, high = max(-40.0, float(schedule.log_snr(1.0))), 100.0
    size = 2**16
    times = schedule.t_of_log_snr(torch.linspace(low, high, size, dtype=torch.float64))

    def weight(alpha: Number, sigma: Number, a: Number, b: Number) -> Tensor:
        per_eps = _per_error(alpha, sigma, a, b)[1]
        a64, s64 = (torch.as_tensor(c, device="cpu", dtype=torch.float64) for c in (alpha, sigma))
        place = ((2 * (a64 / s64).log()).clamp(low, high) - low) * (size - 1) / (high - low)
        left = place.long().clamp(max=size - 2)
        with torch.inference_mode(False), torch.enable_grad():
            t = torch.lerp(times[left], times[left + 1], place - left).clamp(max=1 - 1e-12).clone().requires_grad_()
            (slope,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
        return -0.5 * slope.to(per_eps) * per_eps

    return weight


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
        weight: a function (alpha, sigma, a, b) of the schedule and of the prediction's row, such as `min_snr()`.
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
    t = _checks.beside(_checks.batch_time(t, x0), x0).expand(len(x0))
    eps = _checks.randn(x0.shape, x0, generator)
    wide = _checks.wide(x0.dtype)  # a bfloat16 mean of squares keeps two digits
    exact_t = t.to(torch.promote_types(t.dtype, wide))
    alpha, sigma = (_checks.over_batch(c, x0) for c in (schedule.alpha(exact_t), schedule.sigma(exact_t)))
    x = (alpha * x0 + sigma * eps).to(x0.dtype)  # noise.add_noise, without asking the schedule twice
    a, b = prediction.row(alpha, sigma)
    out = net((prediction.input_scale(alpha, sigma) * x).to(x0.dtype), t.float(), cond)
    _checks.same_shape("the network's output", out, x0, "its input")
    error = weight(alpha, sigma, a, b) * (out - (a * x0.to(wide) + b * eps.to(wide))) ** 2
    return error.flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class Bound:
    """A variational bound on -log2 p(x0) in bits per dimension, as its three parts, each (B,): one for each sample.

    >>> bound = Bound(torch.zeros(2), torch.tensor([3.0, 2.5]), torch.tensor([-1.0, -1.5]))
    >>> bound.total.tolist()
    [2.0, 1.0]
    """

    prior: Tensor
    """What is left of x0 at the noisy end, where sampling starts from pure noise."""
    diffusion: Tensor
    """What the steps cost; the only part that training can change much."""
    reconstruction: Tensor
    """From the cleanest noisy state to x0; negative where data are sharper than a cube of side 1."""

    @property
    def total(self) -> Tensor:
        """The bound, (B,).

        >>> Bound(torch.ones(1), torch.ones(1), torch.ones(1)).total.item()
        3.0
        """
        return self.prior + self.diffusion + self.reconstruction


@torch.no_grad()
def vlb_bits_per_dim(
    denoiser: Denoiser,
    x0: Tensor,
    schedule: Schedule,
    *,
    ts: Tensor | None = None,
    t_range: tuple[float, float] | None = None,
    draws: int = 32,
    generator: torch.Generator | None = None,
) -> Bound:
    """Return an unbiased estimate of a bound on the bits that each sample costs under the model that a denoiser is.

    The model starts from N(0, sigma^2 I) at the first time, walks with the posterior variance of `samplers.ddpm`, and
    ends in N(x0_hat, (sigma / alpha)^2 I) at the last time above 0. Given ts, the steps are that grid's; else they are
    infinitely many, and their sum is an integral over log-SNR (Kingma et al. 2021). With the exact denoiser the
    integral brings the bound down to -log2 p(x0) / D, but for what the two ends leave (Guo et al. 2005).

    The bound is one of a density, so it needs continuous data: for data on a lattice, such as 8-bit pixels, it falls
    for ever as the last time nears 0, until you add noise of the lattice's width. It is in the units of x0: data scaled
    down by s gain log2(s) bits.

    Args:
        denoiser: (x, t) -> x0_hat.
        x0: clean data (B, *D).
        ts: a grid as for a sampler, decreasing and ending at 0.
        t_range: without ts: the last and the first time, (t_min, t_max); by default those of schedule.time_grid.
        draws: without ts: evaluations for each sample, one in each of `draws` equal parts of the log-SNR's range.
        generator: where noise and log-SNRs come from.

    Raises:
        TypeError: integer data.
        ValueError: NaN in x0, both ts and t_range, times out of order, infinite log-SNR at an end of t_range.

    >>> from companion import denoisers, schedules
    >>> one = denoisers.GaussianMixture(torch.zeros(1, 2), torch.ones(1), torch.ones(1), schedules.Cosine())
    >>> x0 = one.sample(2000, generator=torch.Generator().manual_seed(0))
    >>> bound = vlb_bits_per_dim(one, x0, one.schedule, generator=torch.Generator().manual_seed(1))
    >>> exact = -one.log_prob(x0) / (2 * math.log(2))                       # 2.05 bits: log2(2 pi e) / 2
    >>> abs(bound.total.mean() - exact.mean()).item() < 0.02
    True
    """
    _checks.finite("x0", _checks.floating("x0", x0, min_dims=2))
    if ts is not None and t_range is not None:
        raise ValueError("both ts and t_range are given; ts has its own ends: leave one out.")
    if ts is None:
        first, last = _ends(schedule, t_range)
        diffusion = _integral(denoiser, x0, schedule, first, last, _checks.count("draws", draws), generator)
    else:
        ts = _checks.grid(ts)
        if float(ts[-1]) != 0:
            raise ValueError(f"ts ends at {float(ts[-1]):g}; the walk must end on data, at 0.")
        first, last = float(ts[0]), float(ts[-2])
        diffusion = _steps(denoiser, x0, schedule, ts[:-1], generator)
    prior = 0.5 * schedule.snr(first) * _mean_square(x0)
    ratio = schedule.noise_to_signal(last)
    error = _error(denoiser, x0, torch.tensor(last, dtype=torch.float64), schedule, generator)
    reconstruction = 0.5 * (2 * math.pi * ratio**2).log() + 0.5 * error / ratio**2
    return Bound(*(part.to(error) / math.log(2) for part in (prior, diffusion, reconstruction)))


def _ends(schedule: Schedule, t_range: tuple[float, float] | None) -> tuple[float, float]:
    """Return (t_max, t_min), checked."""
    if t_range is None:
        first, last, _ = schedule.time_grid(2).tolist()
        return first, last
    last, first = (float(t) for t in t_range)
    if not 0 < last < first <= 1 or math.isinf(float(schedule.log_snr(first))):
        raise ValueError(
            f"t_range is ({last:g}, {first:g}); it must satisfy 0 < t_min < t_max <= 1 with alpha(t_max) above 0, for "
            f"the integral runs over the log-SNR."
        )
    return first, last


def _integral(
    denoiser: Denoiser,
    x0: Tensor,
    schedule: Schedule,
    first: float,
    last: float,
    draws: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Return 1/2 of the integral over log-SNR of the mean squared error in eps, (B,), in nats."""
    low, high = (float(schedule.log_snr(t)) for t in (first, last))
    device = x0.device if generator is None else generator.device
    total = torch.zeros((), device=x0.device)
    for k in range(draws):
        jitter = torch.rand(len(x0), generator=generator, device=device)
        t = schedule.t_of_log_snr(low + (high - low) * (k + jitter.double().cpu()) / draws)
        t = t.to(x0.device, _checks.wide(x0.dtype))
        total = total + schedule.snr(t) * _error(denoiser, x0, t, schedule, generator)
    return 0.5 * (high - low) * total / draws


def _steps(denoiser: Denoiser, x0: Tensor, schedule: Schedule, ts: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return the sum over steps t to s of 1/2 (SNR(s) - SNR(t)) times the squared error in x0, (B,), in nats."""
    total = torch.zeros(len(x0), device=x0.device)
    for t, s in itertools.pairwise(ts):
        error = _error(denoiser, x0, t, schedule, generator)
        total = total + 0.5 * (schedule.snr(s) - schedule.snr(t)).to(error) * error
    return total


def _error(denoiser: Denoiser, x0: Tensor, t: Tensor, schedule: Schedule, generator: torch.Generator | None) -> Tensor:
    """Return the mean squared error of x0_hat for each sample, (B,), with fresh noise.

    Where there is little noise the error is nearly that noise's size, |eps|^2 / SNR: what |eps|^2 has over its mean is
    taken off, with a factor that is best for Gaussian data of variance 1 and changes no expectation.
    """
    x, eps = noise.add_noise(x0, t, schedule, generator=generator)
    x0_hat = denoiser(x, t)
    _checks.same_shape("the denoiser's answer", x0_hat, x0, "its input")
    snr_t = schedule.snr(t)
    return _mean_square(x0_hat - x0) - snr_t / (1 + snr_t) ** 2 * (_mean_square(eps) - 1)


def _mean_square(x: Tensor) -> Tensor:
    return (x.to(_checks.wide(x.dtype)) ** 2).flatten(1).mean(1)


def perceptual(features: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss (x0_hat, x0) -> (B,) that compares features instead of pixels (Johnson et al. 2016).

    It is the mean squared difference of features(x0_hat) and features(x0). Its best answer is not the posterior mean
    E[x0 | x]: of use in one-step denoising, wrong as the only loss of a diffusion model.

    Args:
        features: images (B, C, H, W) -> (B, *F), such as weights.load("digit_classifier").features; in evaluation
            mode, and with its own weights frozen.

    >>> loss = perceptual(lambda x: x.mean((2, 3)))                       # the mean of each channel
    >>> loss(torch.full((2, 1, 8, 8), 0.5), torch.zeros(2, 1, 8, 8)).tolist()
    [0.25, 0.25]
    """

    def loss(x0_hat: Tensor, x0: Tensor) -> Tensor:
        _checks.same_shape("x0_hat", _checks.floating("x0_hat", x0_hat, min_dims=2), x0, "x0")
        with torch.no_grad():
            wanted = features(x0)
        return _mean_square(_checks.same_shape("features(x0_hat)", features(x0_hat), wanted, "features(x0)") - wanted)

    return loss


def ssim(x: Tensor, y: Tensor, *, data_range: float = 2.0, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Return the structural similarity of images, 1 for equal ones (Wang et al. 2004); 1 - ssim is a loss.

    Means, variances and the covariance are taken under a Gaussian window around each pixel where it fits, and the
    index is averaged over those places and the channels.

    Args:
        x, y: images (B, C, H, W) of one floating dtype.
        data_range: the width of the data's interval, 2 for [-1, 1].
        window: width of the window, odd; 7 for images of 8 x 8.
        sigma: standard deviation of the window, in pixels.

    Returns:
        (B,) in [-1, 1].

    Raises:
        ValueError: shapes that differ or are no images, a window that is even or larger than the image.

    >>> x = torch.rand(3, 1, 16, 16)
    >>> [round(value, 4) for value in ssim(x, x).tolist()]
    [1.0, 1.0, 1.0]
    """
    _checks.floating("x", x, min_dims=4)
    _checks.same_shape("y", _checks.floating("y", y, min_dims=4), x, "x")
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; images are (B, C, H, W).")
    if _checks.count("window", window) % 2 == 0 or window > min(x.shape[2:]):
        raise ValueError(
            f"window is {window} for images of {x.shape[2]} x {x.shape[3]}; it must be odd and fit inside: 7 for 8 x 8."
        )
    _positive("data_range", data_range, "2 for data in [-1, 1]")
    _positive("sigma", sigma, "1.5 is usual")
    x, y = (v.to(_checks.wide(v.dtype)) for v in (x, y))
    place = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    kernel = torch.softmax(-(place**2) / (2 * sigma**2), dim=0)

    def blur(v: Tensor) -> Tensor:
        return torch.einsum("bchwij,i,j->bchw", v.unfold(2, window, 1).unfold(3, window, 1), kernel, kernel)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x**2) - mean_x**2, blur(y**2) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _per_error(alpha: Number, sigma: Number, a: Number, b: Number) -> tuple[Tensor, Tensor]:
    """Return the weights that charge 1 for an error in x0 and 1 for an error in eps: (sigma / D)^2, (alpha / D)^2.

    A zero is replaced by the smallest normal number: where D is 0 too the ratio then takes its limit.
    """
    dtype = next((c.dtype for c in (alpha, sigma) if isinstance(c, Tensor)), torch.float64)
    tiny = torch.finfo(dtype).tiny
    alpha, sigma = (torch.as_tensor(c, dtype=dtype).clamp(min=tiny) for c in (alpha, sigma))
    gain = alpha * b - sigma * a
    return (sigma / gain) ** 2, (alpha / gain) ** 2


def _positive(name: str, value: float, hint: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be positive and finite: {hint}.")
