"""Samplers: walk from noise to data with any denoiser.

Each is a generator that yields a `Step` for each interval of the grid. The coefficients are computed once, in
float64 on the CPU, before the walk begins; each interval then costs the denoiser and a few multiplications.
"""

from __future__ import annotations

import functools
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
    """Walk with DDIM (Song et al. 2021, equation 12): deterministic at eta 0, ancestral sampling at eta 1.

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
    """Walk with ancestral sampling (Ho et al. 2020, algorithm 2), on any grid.

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
    """Walk the probability-flow ODE with DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): one call a step, order 2.

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
    steps: list[tuple[_Sum | None, _Sum]] = []
    before = None
    for jump in _jumps(schedule, ts):
        keep, move = _ddim(jump)
        regular = jump.alpha_t > 0 and jump.sigma_s > 0
        width = jump.half_log_snr_s - jump.half_log_snr_t if regular else None
        push = width / (2 * before) if width is not None and before is not None else 0.0
        steps.append((None, (keep, [move * (1 + push), -move * push])))
        before = width
    return _adams_walk(denoiser, x, ts, steps, 2)


def heun(denoiser: Denoiser, schedule: Schedule, x: Tensor, ts: Tensor) -> Iterator[Step]:
    """Walk the probability-flow ODE with Heun's method (Karras et al. 2022, algorithm 1): two calls a step, order 2.

    The ODE is d(x / alpha) = eps_hat d(sigma / alpha). The step follows the slope eps_hat at t to s, asks again
    there, and takes the mean of the two slopes. From where alpha is 0 and onto data the step is DDIM's, with one
    call: N steps onto data cost 2 N - 1 calls.

    Args:
        denoiser: denoiser(x, t) -> x0_hat.
        x: noise (B, *D) at ts[0].
        ts: (N + 1,) falling times.

    Yields:
        N steps; x0_hat is the first of the two answers.

    Raises:
        TypeError, ValueError: as `ddim`.

    >>> from companion import denoisers, schedules
    >>> schedule = schedules.Cosine()
    >>> exact = denoisers.FiniteDataset(torch.tensor([[-1.0], [1.0]]), schedule)
    >>> ts = grid(heun, schedule, 10)
    >>> x = start(schedule, (100, 1), ts, generator=torch.Generator().manual_seed(0))
    >>> last(heun(exact, schedule, x, ts)).x.abs().mean().item()
    1.0
    """
    ts = _prepare(x, ts)
    steps = []
    for jump in _jumps(schedule, ts):
        keep, move = _ddim(jump)
        if jump.alpha_t == 0 or jump.sigma_s == 0:
            steps.append((keep, move, 0.0, 0.0))
            continue
        n_t, n_s = jump.sigma_t / jump.alpha_t, jump.sigma_s / jump.alpha_s
        half = jump.alpha_s * (n_t - n_s) / 2
        steps.append((keep, move, half * (1 / n_t - move / jump.sigma_s), half / n_s))
    return _heun_walk(denoiser, x, ts, steps)


def adams(
    denoiser: Denoiser, schedule: Schedule, x: Tensor, ts: Tensor, *, order: int = 4, correct: bool = True
) -> Iterator[Step]:
    """Walk the probability-flow ODE with an exponential Adams method: one call a step, of any order.

    With r = alpha / sigma the ODE is d(x / sigma) = x0_hat dr. The step puts a polynomial through the last answers,
    in the variable r / sqrt(1 + r^2), which runs from 0 at pure noise to 1 at data and never leaves [0, 1], and
    integrates it exactly over r. When the next answer is in, the corrector takes the last step again through that
    answer too, at no further call. Onto data the polynomial is read off at 1.

    Args:
        denoiser: denoiser(x, t) -> x0_hat.
        x: noise (B, *D) at ts[0].
        ts: (N + 1,) falling times, such as grid(adams, schedule, N).
        order: how many answers the polynomial goes through, at least 1; while there are fewer, all of them.
        correct: take each step again when the next answer is in.

    Yields:
        N steps; x is the predicted one, from before its correction.

    Raises:
        TypeError, ValueError: as `ddim`; an order below 1.

    >>> from companion import denoisers, schedules
    >>> schedule = schedules.Cosine()
    >>> exact = denoisers.FiniteDataset(torch.tensor([[-1.0], [1.0]]), schedule)
    >>> ts = grid(adams, schedule, 10)
    >>> x = start(schedule, (100, 1), ts, generator=torch.Generator().manual_seed(0))
    >>> round(last(adams(exact, schedule, x, ts)).x.abs().mean().item(), 3)
    1.0
    """
    _checks.count("order", order)
    ts = _prepare(x, ts)
    jumps = _jumps(schedule, ts)
    ratios = [jump.alpha_t / jump.sigma_t for jump in jumps]
    steps = []
    for i, jump in enumerate(jumps):
        nodes = ratios[max(0, i + 1 - order) : i + 1][::-1]  # the newest first, as the walk keeps its answers
        again = None
        if correct and i > 0:
            again = (jump.sigma_t / jumps[i - 1].sigma_t, _integrals(ratios[i - 1], ratios[i], nodes, jump.sigma_t))
        if jump.sigma_s > 0:
            step = (
                jump.sigma_s / jump.sigma_t,
                _integrals(ratios[i], jump.alpha_s / jump.sigma_s, nodes, jump.sigma_s),
            )
        else:
            at_data = _lagrange(_short_of_1(nodes), torch.zeros(1, dtype=torch.float64)).squeeze(1)
            step = (0.0, (jump.alpha_s * at_data).tolist())
        steps.append((again, step))
    return _adams_walk(denoiser, x, ts, steps, order)


def grid(sampler: Callable[..., Iterator[Step]], schedule: Schedule, num_steps: int) -> Tensor:
    """Return the grid of times on which a sampler measured best: over 14 mixtures, `ddpm` on the roll (chapters 7, 5).

    Args:
        sampler: `ddim`, `ddpm`, `heun`, `dpmpp_2m` or `adams`.
        num_steps: how many steps, at least 1.

    Returns:
        (num_steps + 1,) float64 on the CPU, as schedule.time_grid.

    Raises:
        ValueError: another function.

    >>> from companion import schedules
    >>> len(grid(ddpm, schedules.Cosine(), 20))
    21
    """
    if sampler not in GRIDS:
        raise ValueError(f"sampler is {sampler!r}; the grids known are for {', '.join(f.__name__ for f in GRIDS)}.")
    return schedule.time_grid(num_steps, spacing=GRIDS[sampler])


GRIDS: dict[Callable[..., Iterator[Step]], str] = {
    ddim: "angle",
    ddpm: "uniform",
    heun: "uniform",
    dpmpp_2m: "angle",
    adams: "angle",
}
"""The spacing of the grid that `grid` takes for each sampler."""


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
def _heun_walk(
    denoiser: Denoiser, x: Tensor, ts: Tensor, steps: list[tuple[float, float, float, float]]
) -> Iterator[Step]:
    dtype, x = x.dtype, x.to(_checks.wide(x.dtype))
    for i, (keep, move, first, second) in enumerate(steps):
        x0_hat = _answer(denoiser, x, ts[i], dtype, at_end=i + 1 == len(steps))
        ahead = (keep * x).add_(x0_hat, alpha=move)
        if second:
            there = _answer(denoiser, ahead, ts[i + 1], dtype, at_end=False)
            ahead = (keep * x).add_(x0_hat, alpha=first).add_(there, alpha=second)
        x = ahead
        yield Step(ts[i + 1], x.to(dtype), x0_hat.to(dtype))


_Sum = tuple[float, list[float]]  # of x, and of the answers, the newest first


@torch.no_grad()
def _adams_walk(
    denoiser: Denoiser, x: Tensor, ts: Tensor, steps: list[tuple[_Sum | None, _Sum]], order: int
) -> Iterator[Step]:
    """Walk with sums of the last answers: first correct the x that was predicted, then predict the next one."""
    dtype, x = x.dtype, x.to(_checks.wide(x.dtype))
    answers: deque[Tensor] = deque(maxlen=order)
    settled = x
    for i, (again, step) in enumerate(steps):
        x0_hat = _answer(denoiser, x, ts[i], dtype, at_end=i + 1 == len(steps))
        answers.appendleft(x0_hat)
        settled = x if again is None else _sum(again, settled, answers)
        x = _sum(step, settled, answers)
        yield Step(ts[i + 1], x.to(dtype), x0_hat.to(dtype))


def _sum(coefficients: _Sum, x: Tensor, answers: Iterable[Tensor]) -> Tensor:
    keep, weights = coefficients
    total = keep * x
    for weight, answer in zip(weights, answers, strict=False):
        if weight:
            total.add_(answer, alpha=weight)
    return total


def _integrals(r_t: float, r_s: float, nodes: list[float], sigma_s: float) -> list[float]:
    """Return sigma_s times the integral over r, from r_t to r_s, of each node's Lagrange polynomial.

    Gauss-Legendre quadrature in float64: in log r, where the polynomials are smooth, or in atan r from r = 0.
    """
    if r_t > 0:
        low, high = math.log(r_t), math.log(r_s)
    else:
        low, high = 0.0, math.atan(r_s)
    points, weights = _quadrature()
    points, weights = (low + high) / 2 + (high - low) / 2 * points, (high - low) / 2 * weights
    r, slope = (points.exp(), points.exp()) if r_t > 0 else (points.tan(), 1 / points.cos() ** 2)
    return (sigma_s * _lagrange(_short_of_1(nodes), _short_of_1(r)) @ (weights * slope)).tolist()


@functools.cache
def _quadrature(points: int = 64) -> tuple[Tensor, Tensor]:
    from numpy.polynomial.legendre import leggauss

    at, weights = leggauss(points)
    return torch.from_numpy(at), torch.from_numpy(weights)


def _short_of_1(r: Tensor | list[float]) -> Tensor:
    """Return 1 - u for u = r / sqrt(1 + r^2), which keeps its digits where u rounds to 1; as good a variable as u."""
    r = torch.as_tensor(r, dtype=torch.float64)
    root = (1 + r**2).sqrt()
    return 1 / (root * (r + root))


def _lagrange(nodes: Tensor, u: Tensor) -> Tensor:
    """Return the value at each u (P,) of the polynomial that is 1 at one node and 0 at the others, (N, P)."""
    rows = []
    for j, node in enumerate(nodes):
        others = torch.cat([nodes[:j], nodes[j + 1 :]]).unsqueeze(1)
        rows.append(((u - others) / (node - others)).prod(0))
    return torch.stack(rows)


def _ddim(jump: _Jump) -> tuple[float, float]:
    """Return what x and x0_hat are multiplied by in a deterministic DDIM step."""
    keep = jump.sigma_s / jump.sigma_t
    return keep, jump.alpha_s - keep * jump.alpha_t


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
