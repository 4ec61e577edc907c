"""Samplers: walk from noise to data with any denoiser.

Each is a generator that yields a `Step` for each interval of the grid. The coefficients are computed once, in
float64 on the CPU, before the walk begins; each interval then costs the denoiser and a few multiplications.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks
from .denoisers import Denoiser
from .schedules import Schedule


class Step(NamedTuple):
    """What a sampler yields: the time after the step, x there, and the x0_hat that the step was taken with."""

    t: Tensor
    x: Tensor
    x0_hat: Tensor


def start(
    schedule: Schedule,
    shape: tuple[int, ...],
    ts: Tensor,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw the noise that a sampler starts from: sigma(ts[0]) * N(0, I).

    Args:
        shape: (B, *D).
        ts: the grid that the sampler will walk, (N + 1,).
        generator: where the noise comes from; its device is the default for x.

    >>> from companion import schedules
    >>> schedule = schedules.VarianceExploding()
    >>> x = start(schedule, (1000, 2), schedule.time_grid(10), generator=torch.Generator().manual_seed(0))
    >>> 78 < x.std().item() < 82
    True
    """
    ts = _checks.grid(ts)
    if not shape or any(n < 1 for n in shape):
        raise ValueError(f"shape is {tuple(shape)}; it must be (B, *D) with positive sizes.")
    where = device if device is not None else generator.device if generator is not None else None
    noise = _checks.randn(tuple(shape), torch.empty(0, device=where, dtype=dtype), generator)
    return float(schedule.sigma(ts[0])) * noise


def ddim(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    ts: Tensor,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """Walk with DDIM (Song et al. 2021, eq. 12): deterministic at eta 0, ancestral sampling at eta 1.

    From t to s: x_s = alpha_s x0_hat + sqrt(sigma_s^2 - w^2) eps_hat + w z, where w^2 is eta^2 times the posterior
    variance. At eta 0 it is Euler's method in the right variables, of order 1 on the probability-flow ODE.

    Args:
        denoiser: denoiser(x, t) -> x0_hat.
        x: noise (B, *D) at ts[0], such as `start` gives.
        ts: (N + 1,) falling times, such as schedule.time_grid(N).
        eta: in [0, 1], how much of the posterior's noise is fresh.
        generator: where fresh noise comes from.

    Yields:
        N steps.

    Raises:
        TypeError: x that is not floating point, a grid of integers.
        ValueError: a grid that rises, has one point or leaves [0, 1]; eta outside [0, 1]; a denoiser that answers
            with another shape or dtype, or with NaN.

    >>> from companion import denoisers, schedules
    >>> schedule = schedules.Cosine()
    >>> exact = denoisers.FiniteDataset(torch.tensor([[-1.0], [1.0]]), schedule)
    >>> ts = schedule.time_grid(20)
    >>> x = start(schedule, (100, 1), ts, generator=torch.Generator().manual_seed(0))
    >>> last(ddim(exact, schedule, x, ts)).x.abs().mean().item()
    1.0
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it must lie in [0, 1]: 0 is deterministic, 1 is ancestral sampling.")
    return _one_step_walk(denoiser, schedule, x, ts, lambda jump: eta * jump.posterior_std, eta, generator)


def ddpm(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    ts: Tensor,
    *,
    variance: str = "posterior",
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """Walk with ancestral sampling (Ho et al. 2020, alg. 2), on any grid.

    Each step draws from a Gaussian with the mean of q(x_s | x_t, x0_hat), and with the variance of that posterior or
    with the upper one, DDPM's beta, which is right where the data spread as widely as the noise. With many steps the
    two agree; with few the choice decides the result.

    Args:
        denoiser: denoiser(x, t) -> x0_hat.
        x: noise (B, *D) at ts[0].
        ts: (N + 1,) falling times.
        variance: "posterior" or "upper".
        generator: where fresh noise comes from.

    Yields:
        N steps; the last lands on the denoiser's answer, without noise, if the grid ends at 0.

    Raises:
        TypeError, ValueError: as `ddim`; an unknown variance.

    >>> from companion import denoisers, schedules
    >>> schedule = schedules.Cosine()
    >>> exact = denoisers.FiniteDataset(torch.tensor([[-1.0], [1.0]]), schedule)
    >>> ts = schedule.time_grid(20, spacing="uniform")
    >>> x = start(schedule, (100, 1), ts, generator=torch.Generator().manual_seed(0))
    >>> last(ddpm(exact, schedule, x, ts)).x.abs().mean().item()
    1.0
    """
    if variance not in ("posterior", "upper"):
        raise ValueError(f'variance is {variance!r}; it must be "posterior" or "upper".')
    upper = variance == "upper"
    return _one_step_walk(
        denoiser, schedule, x, ts, lambda jump: jump.upper_std if upper else jump.posterior_std, 1.0, generator
    )


def dpmpp_2m(denoiser: Denoiser, schedule: Schedule, x: Tensor, ts: Tensor) -> Iterator[Step]:
    """Walk the probability-flow ODE with DPM-Solver++(2M) (Lu et al. 2022, alg. 2): one call a step, order 2.

    In log(alpha / sigma) the ODE is linear but for the denoiser; the step solves the linear part exactly and
    extrapolates the denoiser through its last two answers. Without a past, from where alpha is 0, and onto data
    (sigma 0) the step is DDIM's.

    Args:
        denoiser: denoiser(x, t) -> x0_hat.
        x: noise (B, *D) at ts[0].
        ts: (N + 1,) falling times.

    Yields:
        N steps.

    Raises:
        TypeError, ValueError: as `ddim`.

    >>> from companion import denoisers, schedules
    >>> schedule = schedules.Cosine()
    >>> exact = denoisers.FiniteDataset(torch.tensor([[-1.0], [1.0]]), schedule)
    >>> ts = schedule.time_grid(10)
    >>> x = start(schedule, (100, 1), ts, generator=torch.Generator().manual_seed(0))
    >>> last(dpmpp_2m(exact, schedule, x, ts)).x.abs().mean().item()
    1.0
    """
    ts = _prepare(x, ts)
    steps, before = [], None
    for jump in _jumps(schedule, ts):
        keep, move = jump.sigma_s / jump.sigma_t, jump.alpha_s - jump.sigma_s / jump.sigma_t * jump.alpha_t
        regular = jump.alpha_t > 0 and jump.sigma_s > 0
        width = jump.half_log_snr_s - jump.half_log_snr_t if regular else None
        push = width / (2 * before) if width is not None and before is not None else 0.0
        steps.append((keep, move * (1 + push), -move * push))
        before = width
    return _multistep_walk(denoiser, x, ts, steps)


def last(steps: Iterable[Step]) -> Step:
    """Walk to the end and return the last step, holding no other.

    >>> last(iter([1, 2, 3]))
    3
    """
    tail = deque(steps, maxlen=1)
    if not tail:
        raise ValueError("there is no last step: the iterator was empty or already used up.")
    return tail[0]


class _Jump(NamedTuple):
    """The coefficients of one interval, from t down to s, as Python floats."""

    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float

    @property
    def upper_std(self) -> float:
        """The forward step's standard deviation; 0 onto data, where no noise is left."""
        if self.sigma_s == 0:
            return 0.0
        return math.sqrt(max(self.sigma_t**2 - (self.alpha_t / self.alpha_s * self.sigma_s) ** 2, 0.0))

    @property
    def posterior_std(self) -> float:
        return self.upper_std * self.sigma_s / self.sigma_t

    @property
    def half_log_snr_t(self) -> float:
        return math.log(self.alpha_t / self.sigma_t)

    @property
    def half_log_snr_s(self) -> float:
        return math.log(self.alpha_s / self.sigma_s)


def _jumps(schedule: Schedule, ts: Tensor) -> list[_Jump]:
    alpha, sigma = schedule.alpha(ts).tolist(), schedule.sigma(ts).tolist()
    return [_Jump(*at) for at in zip(alpha, sigma, alpha[1:], sigma[1:], strict=False)]


def _one_step_walk(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    ts: Tensor,
    noise_std: Callable[[_Jump], float],
    eta: float,
    generator: torch.Generator | None,
) -> Iterator[Step]:
    """Walk x_s = keep * x_t + move * x0_hat + std * z, where the mean is that of DDIM at this eta."""
    ts = _prepare(x, ts)
    steps = []
    for jump in _jumps(schedule, ts):
        kept = jump.alpha_t / jump.alpha_s * jump.sigma_s**2 / jump.sigma_t  # of eps, if all of it is drawn afresh
        keep = math.sqrt((1 - eta**2) * jump.sigma_s**2 + (eta * kept) ** 2) / jump.sigma_t
        steps.append((keep, jump.alpha_s - keep * jump.alpha_t, noise_std(jump)))
    return _run_one_step(denoiser, x, ts, steps, generator)


@torch.no_grad()
def _run_one_step(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    steps: list[tuple[float, float, float]],
    generator: torch.Generator | None,
) -> Iterator[Step]:
    dtype, x = x.dtype, x.to(_checks.wide(x.dtype))
    for i, (keep, move, std) in enumerate(steps):
        x0_hat = _answer(denoiser, x, ts[i], dtype, at_end=i + 1 == len(steps))
        x = (keep * x).add_(x0_hat, alpha=move)
        if std > 0:
            x.add_(_checks.randn(x.shape, x, generator), alpha=std)
        yield Step(ts[i + 1], x.to(dtype), x0_hat.to(dtype))


@torch.no_grad()
def _multistep_walk(
    denoiser: Denoiser, x: Tensor, ts: Tensor, steps: list[tuple[float, float, float]]
) -> Iterator[Step]:
    dtype, x = x.dtype, x.to(_checks.wide(x.dtype))
    before: Tensor | None = None
    for i, (keep, move, move_before) in enumerate(steps):
        x0_hat = _answer(denoiser, x, ts[i], dtype, at_end=i + 1 == len(steps))
        x = (keep * x).add_(x0_hat, alpha=move)
        if before is not None and move_before:
            x.add_(before, alpha=move_before)
        before = x0_hat
        yield Step(ts[i + 1], x.to(dtype), x0_hat.to(dtype))


def _prepare(x: Tensor, ts: Tensor) -> Tensor:
    _checks.finite("x", _checks.floating("x", x, min_dims=2), "start from sigma(ts[0]) * randn")
    if x.device.type != "cpu" and not bool(torch.isfinite(x).all()):  # once, before the walk
        raise ValueError("x holds NaN or infinity; it must be finite: start from sigma(ts[0]) * randn.")
    return _checks.grid(ts)


def _answer(denoiser: Denoiser, x: Tensor, t: Tensor, dtype: torch.dtype, *, at_end: bool) -> Tensor:
    """Ask the denoiser in the caller's dtype, check what it says, and return it in x's."""
    asked = x.to(dtype)
    x0_hat = denoiser(asked, t)
    _checks.same_shape("the denoiser's answer", x0_hat, asked, "x")
    if x0_hat.dtype != dtype:
        raise TypeError(f"the denoiser answered in {x0_hat.dtype} to x in {dtype}; the two must be equal.")
    if x.device.type == "cpu":
        _checks.finite(
            f"the denoiser's answer at t = {float(t):.4g}", x0_hat, "look for a division by 0 or an overflow"
        )
    elif at_end and not bool(torch.isfinite(x0_hat).all()):
        raise ValueError("the denoiser's last answer holds NaN or infinity; run on the CPU to see at which time.")
    return x0_hat.to(x.dtype)
