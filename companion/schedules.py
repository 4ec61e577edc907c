"""Schedules: how much signal alpha(t) and how much noise sigma(t) the noisy data hold at time t.

    x_t = alpha(t) * x0 + sigma(t) * eps,   t in [0, 1],   t = 0 is data, t = 1 is noise

Every formula is written so that nothing cancels: float32 agrees with float64 at both ends.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from . import _checks

NOISE_TO_SIGNAL_MAX = 80.0
"""Where a grid starts if alpha(1) is 0: EDM's sigma_max."""
NOISE_TO_SIGNAL_MIN = 0.01
"""Where a grid that is not uniform takes its last point before 0."""
Spacing = Callable[["Schedule", int, float, float], Tensor]
"""A spacing of times: a function (schedule, num_points, t_max, t_min) -> (num_points,) falling times."""


class Schedule(ABC):
    """A pair of curves alpha(t), sigma(t) on [0, 1], and what follows from them.

    Each method takes t of any shape (float32, float64 or a Python float) and answers in its shape, dtype and
    device. Raises TypeError for integer or half-precision times, ValueError for times outside [0, 1].
    """

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return the signal's coefficient.

        >>> Cosine().alpha(torch.tensor([0.0, 1.0])).tolist()
        [1.0, 0.0]
        """
        t = _checks.time(t)
        return self._alpha(t).masked_fill(t == 0, 1.0)

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return the noise's coefficient.

        >>> FlowMatching().sigma(torch.tensor([0.0, 0.25])).tolist()
        [0.0, 0.25]
        """
        t = _checks.time(t)
        return self._sigma(t).masked_fill(t == 0, 0.0)

    def alpha_bar(self, t: Tensor | float) -> Tensor:
        """Return alpha(t)^2, the share of the signal's variance that is left.

        >>> round(float(Linear().alpha_bar(1.0)), 8)
        4.036e-05
        """
        return self.alpha(t) ** 2

    def noise_to_signal(self, t: Tensor | float) -> Tensor:
        """Return sigma(t) / alpha(t), which EDM calls sigma; infinite where alpha is 0.

        >>> float(FlowMatching().noise_to_signal(0.5))
        1.0
        """
        return self.sigma(t) / self.alpha(t)

    def snr(self, t: Tensor | float) -> Tensor:
        """Return the signal-to-noise ratio alpha(t)^2 / sigma(t)^2; infinite at t = 0.

        >>> float(FlowMatching().snr(0.5))
        1.0
        """
        return (self.alpha(t) / self.sigma(t)) ** 2

    def log_snr(self, t: Tensor | float) -> Tensor:
        """Return log(alpha(t)^2 / sigma(t)^2), from +inf at t = 0 to -inf where alpha is 0.

        >>> float(FlowMatching().log_snr(0.5))
        0.0
        """
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def t_of_log_snr(self, log_snr: Tensor | float) -> Tensor:
        """Return the time at which the log signal-to-noise ratio has the given value, by bisection in float64.

        Args:
            log_snr: any shape; at least log_snr(1), which some schedules have finite.

        Returns:
            float64 times on the CPU, of the same shape.

        Raises:
            ValueError: where a value is NaN or lies below log_snr(1).

        >>> round(float(FlowMatching().t_of_log_snr(0.0)), 12)
        0.5
        """
        wanted = torch.as_tensor(log_snr, dtype=torch.float64).detach().cpu()
        lowest = float(self.log_snr(1.0))
        if wanted.numel() and not float(wanted.min()) >= lowest - 1e-9 * max(1.0, abs(lowest)):
            raise ValueError(
                f"log_snr reaches down to {float(wanted.min()):g}, but this schedule ends at {lowest:g}: "
                f"ask for more signal or take a schedule that ends in more noise."
            )
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(90):  # halves [0, 1] to far below float64's spacing at any t of use
            middle = (low + high) / 2
            too_clean = self.log_snr(middle) > wanted
            low, high = torch.where(too_clean, middle, low), torch.where(too_clean, high, middle)
        return torch.where(wanted == math.inf, 0.0, torch.where(wanted <= lowest, 1.0, high))

    def time_grid(
        self,
        num_steps: int,
        *,
        spacing: str | Spacing | None = None,
        t_max: float | None = None,
        t_min: float | None = None,
    ) -> Tensor:
        """Return the times that a sampler visits, from noise to data.

        Args:
            num_steps: how many steps the sampler takes, at least 1.
            spacing: "uniform" in t; "log_snr", uniform in the log signal-to-noise ratio; "karras", EDM's
                seventh-root spacing of noise over signal; "angle", dense where the data are decided; or
                a function (schedule, num_points, t_max, t_min) of the same kind as `uniform`. By default "log_snr".
            t_max: the first time; by default 1 where alpha(1) > 0, else where noise over signal is 80.
            t_min: the last time before 0; by default where noise over signal is 0.01, and for "uniform" the grid
                runs straight to 0.

        Returns:
            (num_steps + 1,) float64 on the CPU, strictly decreasing, ending at 0.

        Raises:
            ValueError: fewer than 1 step, an unknown spacing, or times out of order or outside (0, 1].

        >>> FlowMatching().time_grid(4, spacing="uniform", t_max=1.0).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
        """
        _checks.count("num_steps", num_steps)
        spacing = "log_snr" if spacing is None else spacing
        if isinstance(spacing, str) and spacing not in SPACINGS:
            raise ValueError(f"spacing is {spacing!r}; it must be one of {sorted(SPACINGS)} or a function.")
        first = self._default_t_max() if t_max is None else float(t_max)
        if not 0 < first <= 1:
            raise ValueError(f"t_max is {first:g}; it must lie in (0, 1].")
        if t_min is None and spacing == "uniform":
            return torch.linspace(first, 0.0, num_steps + 1, dtype=torch.float64)
        last = self._time_of_noise_to_signal(NOISE_TO_SIGNAL_MIN) if t_min is None else float(t_min)
        if not 0 < last < first:
            raise ValueError(f"t_min is {last:g} and t_max is {first:g}; they must satisfy 0 < t_min < t_max.")
        if math.isinf(float(self.log_snr(first))) and spacing in ("log_snr", "karras", "angle"):
            raise ValueError(
                f"t_max is {first:g}, where alpha is 0 and the log signal-to-noise ratio is infinite: "
                f'leave t_max out, or take spacing="uniform".'
            )
        points = (SPACINGS[spacing] if isinstance(spacing, str) else spacing)(self, num_steps, first, last)
        points = points.detach().to("cpu", torch.float64).clone()
        if points.shape != (num_steps,):
            raise ValueError(f"spacing returned shape {tuple(points.shape)}; it must return ({num_steps},) times.")
        points[0] = first
        if num_steps > 1:
            points[-1] = last
        return _checks.grid(torch.cat([points, points.new_zeros(1)]), "the grid")

    def _time_of_noise_to_signal(self, ratio: float) -> float:
        return float(self.t_of_log_snr(-2 * math.log(ratio)))

    def _default_t_max(self) -> float:
        return 1.0 if float(self.alpha(1.0)) > 0 else self._time_of_noise_to_signal(NOISE_TO_SIGNAL_MAX)


def uniform(schedule: Schedule, num_points: int, t_max: float, t_min: float) -> Tensor:
    """Return times equally spaced in t.

    >>> uniform(FlowMatching(), 3, 1.0, 0.5).tolist()
    [1.0, 0.75, 0.5]
    """
    return torch.linspace(t_max, t_min, num_points, dtype=torch.float64)


def log_snr(schedule: Schedule, num_points: int, t_max: float, t_min: float) -> Tensor:
    """Return times equally spaced in the log signal-to-noise ratio.

    >>> [round(t, 4) for t in log_snr(FlowMatching(), 3, 0.9, 0.1).tolist()]
    [0.9, 0.5, 0.1]
    """
    first, last = (float(schedule.log_snr(t)) for t in (t_max, t_min))
    return schedule.t_of_log_snr(torch.linspace(first, last, num_points, dtype=torch.float64))


def karras(schedule: Schedule, num_points: int, t_max: float, t_min: float, *, rho: float = 7.0) -> Tensor:
    """Return times whose noise over signal follows equation 5 of Karras et al. (2022).

    >>> ts = karras(VarianceExploding(), 3, 1.0, 0.5)
    >>> [round(t, 4) for t in ts.tolist()]
    [1.0, 0.75, 0.5]
    """
    first, last = (float(schedule.noise_to_signal(t)) ** (1 / rho) for t in (t_max, t_min))
    ratios = torch.linspace(first, last, num_points, dtype=torch.float64) ** rho
    return schedule.t_of_log_snr(-2 * ratios.log())


def angle(
    schedule: Schedule, num_points: int, t_max: float, t_min: float, *, center: float = 0.4, width: float = 1.5
) -> Tensor:
    """Return times dense where data of about unit variance are decided, at a noise over signal near `center`.

    In l = log(alpha / sigma) the density is 1 / cosh((l - l_0) / width) + 0.02. At width 1 and without the 0.02, which
    keeps the ends from being empty, that is equal steps of the angle atan(center * alpha / sigma).

    >>> ts = angle(FlowMatching(), 3, 0.9, 0.1, center=1.0)
    >>> [round(t, 4) for t in ts.tolist()]
    [0.9, 0.5, 0.1]
    """
    first, last = (float(schedule.log_snr(t)) / 2 for t in (t_max, t_min))
    fine = torch.linspace(first, last, 20_001, dtype=torch.float64)
    away = fine + math.log(center)
    place = 2 * width * torch.atan(torch.tanh(away / (2 * width))) + 0.02 * away
    wanted = torch.linspace(float(place[0]), float(place[-1]), num_points, dtype=torch.float64)
    right = torch.searchsorted(place, wanted).clamp(1, len(fine) - 1)
    share = (wanted - place[right - 1]) / (place[right] - place[right - 1])
    return schedule.t_of_log_snr(2 * torch.lerp(fine[right - 1], fine[right], share))


SPACINGS: dict[str, Spacing] = {"uniform": uniform, "log_snr": log_snr, "karras": karras, "angle": angle}
"""The spacings that `Schedule.time_grid` knows by name."""


@dataclass(frozen=True)
class Cosine(Schedule):
    """The cosine schedule of Nichol and Dhariwal (2021), continuous, with alpha(1) = 0 exactly.

    alpha(t) = cos(c (t + s)) / cos(c s) with c = pi / (2 (1 + s)), written from the end that keeps its digits.

    >>> round(float(Cosine().alpha_bar(0.5)), 8)
    0.49384359
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if not self.s >= 0:
            raise ValueError(f"s is {self.s}; the offset must be at least 0, and 0.008 is usual.")

    @property
    def _c(self) -> float:
        return math.pi / (2 * (1 + self.s))

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin(self._c * (1 - t)) / math.cos(self._c * self.s)

    def _sigma(self, t: Tensor) -> Tensor:
        c, s = self._c, self.s
        sigma = (torch.sin(c * t) * torch.sin(c * (t + 2 * s))).sqrt() / math.cos(c * s)
        return sigma.masked_fill(t == 1, 1.0)


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """The normalised sigmoid schedule of Jabri, Fleet and Chen (2022): alpha_bar falls like a sigmoid from 1 to 0.

    >>> round(float(Sigmoid().alpha_bar(0.5)), 8)
    0.5
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        if not (self.tau > 0 and self.end > self.start):
            raise ValueError(
                f"start, end, tau are {self.start}, {self.end}, {self.tau}; tau must be positive and end above start."
            )

    def _share(self, t: Tensor, distance: Tensor, other_end: float) -> Tensor:
        # sigmoid(a) - sigmoid(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)): no difference of near-equals
        span = (self.end - self.start) / self.tau
        middle = (self.start + (self.end - self.start) * t) / self.tau
        ratio = torch.sinh(span * distance / 2) / math.sinh(span / 2)
        return (ratio * math.cosh(other_end / self.tau / 2) / torch.cosh(middle / 2)).sqrt()

    def _alpha(self, t: Tensor) -> Tensor:
        return self._share(t, 1 - t, self.start)

    def _sigma(self, t: Tensor) -> Tensor:
        return self._share(t, t, self.end).masked_fill(t == 1, 1.0)


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """The straight path of flow matching (Lipman et al. 2023): alpha = 1 - t, sigma = t.

    >>> FlowMatching().alpha(0.25).item()
    0.75
    """

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """EDM's path (Karras et al. 2022): alpha = 1, sigma = sigma_max t^7, on which a uniform grid is EDM's.

    >>> VarianceExploding().sigma(1.0).item()
    80.0
    """

    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (self.sigma_max > 0 and self.rho > 0):
            raise ValueError(f"sigma_max and rho are {self.sigma_max} and {self.rho}; both must be positive.")

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t**self.rho


class Table(Schedule):
    """A schedule given at the grid points t = k / T; between them log alpha is linear in t.

    Step k of DDPM stands at t = k / T: alpha(k / T)^2 is the product of the first k values 1 - beta. In the last
    interval of a table that ends at alpha = 0, alpha itself is linear. Built by `Linear`, `ScaledLinear`,
    `from_betas` and `zero_terminal_snr`.
    """

    log_alphas: Tensor  # (T + 1,) float64 on the CPU: 0 first, then log alpha(k / T), at most the last one -inf

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]]:
        return {}

    def _nodes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return log alpha and alpha at the grid points, on t's device and dtype, copied there once."""
        key = (t.device, t.dtype)
        if key not in self._copies:
            self._copies[key] = self.log_alphas.to(*key), self.log_alphas.exp().to(*key)
        return self._copies[key]

    def _log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return log alpha(t), and a mask of where alpha runs linearly to 0."""
        log_nodes, nodes = self._nodes(t)
        steps = len(nodes) - 1
        k = (t * steps).long().clamp(max=steps - 1)
        left = (1 - t) * steps - (steps - 1 - k)  # of the interval; near t = 1 this keeps digits that t * steps drops
        weight = torch.where(t < 0.5, t * steps - k, 1 - left)
        to_zero = nodes[k + 1] == 0
        straight = torch.lerp(log_nodes[k], log_nodes[k + 1].masked_fill(to_zero, 0.0), weight)
        falling = log_nodes[k] + left.log()
        return torch.where(to_zero, falling, straight), to_zero

    def _alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t)[0].exp()

    def _sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t)[0])).sqrt()

    @property
    def betas(self) -> Tensor:
        """Return DDPM's betas, (T,) float64: 1 - alpha_bar(k / T) / alpha_bar((k - 1) / T).

        >>> float(Linear().betas[0])
        0.0001
        """
        return -torch.expm1(2 * self.log_alphas.diff())


@dataclass(frozen=True)
class Linear(Table):
    """DDPM's schedule (Ho et al. 2020): betas equally spaced between two values.

    A shorter table is not rescaled: with 250 steps, alpha_bar(1) is 0.08 and the noise never takes over.

    >>> round(float(Linear().alpha_bar(0.25)), 8)
    0.52408537
    """

    num_steps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02

    def __post_init__(self) -> None:
        self.log_alphas  # noqa: B018  (a bad beta is refused here, not at first use)

    @cached_property
    def log_alphas(self) -> Tensor:  # type: ignore[override]
        _checks.count("num_steps", self.num_steps)
        return _log_alphas(torch.linspace(self.beta_first, self.beta_last, self.num_steps, dtype=torch.float64))


@dataclass(frozen=True)
class ScaledLinear(Table):
    """Stable Diffusion's schedule: the square roots of the betas are equally spaced (Rombach et al. 2022).

    >>> round(float(ScaledLinear().snr(1.0)), 4)
    0.0047
    """

    num_steps: int = 1000
    beta_first: float = 0.00085
    beta_last: float = 0.012

    def __post_init__(self) -> None:
        self.log_alphas  # noqa: B018

    @cached_property
    def log_alphas(self) -> Tensor:  # type: ignore[override]
        _checks.count("num_steps", self.num_steps)
        if not (self.beta_first > 0 and self.beta_last > 0):
            raise ValueError(f"betas run from {self.beta_first} to {self.beta_last}; every beta must lie in (0, 1).")
        roots = torch.linspace(self.beta_first**0.5, self.beta_last**0.5, self.num_steps, dtype=torch.float64)
        return _log_alphas(roots**2)


@dataclass(frozen=True, eq=False)
class _Given(Table):
    log_alphas: Tensor


def from_betas(betas: Tensor) -> Table:
    """Return the schedule of a table of betas.

    Args:
        betas: (T,) floating point, each in (0, 1): the variance that each step of the Markov chain adds.

    Raises:
        TypeError: betas that are not a floating-point tensor.
        ValueError: betas that are empty, not 1-D, NaN, or not inside (0, 1).

    >>> float(from_betas(torch.tensor([0.5, 0.5])).alpha_bar(1.0))
    0.25
    """
    return _Given(_log_alphas(betas))


def _log_alphas(betas: Tensor) -> Tensor:
    betas = _checks.floating("betas", betas).detach().to("cpu", torch.float64)
    if betas.ndim != 1 or not len(betas):
        raise ValueError(f"betas has shape {tuple(betas.shape)}; it must be (T,) with at least one step.")
    low, high = (float(b) for b in torch.aminmax(betas))
    if not (low > 0 and high < 1):
        raise ValueError(
            f"betas range from {low:g} to {high:g}; each must lie strictly inside (0, 1): a beta of 0 trains on no "
            f"noise, a beta of 1 erases the signal (see zero_terminal_snr)."
        )
    return torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0) / 2])


def cosine_betas(num_steps: int = 1000, *, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Return the clipped betas of the discrete cosine schedule (Nichol and Dhariwal 2021, equation 17).

    Returns:
        (num_steps,) float64; with 1,000 steps exactly one is clipped.

    >>> betas = cosine_betas()
    >>> round(float(betas[0]), 11), int((betas == 0.999).sum())
    (4.128422e-05, 1)
    """
    _checks.count("num_steps", num_steps)
    alpha = Cosine(s).alpha(torch.linspace(0, 1, num_steps + 1, dtype=torch.float64))
    return (1 - (alpha[1:] / alpha[:-1]) ** 2).clamp(max=max_beta)


def zero_terminal_snr(schedule: Table) -> Table:
    """Return the table shifted and scaled so that it ends in pure noise, alpha(1) = 0 (Lin et al. 2024, algorithm 1).

    The first step keeps its alpha. Train such a schedule with v- or x0-prediction: at t = 1 the noise says nothing.

    Args:
        schedule: a schedule made of betas, of at least 2 steps.

    >>> float(zero_terminal_snr(ScaledLinear()).alpha(1.0))
    0.0
    """
    if not isinstance(schedule, Table):
        raise TypeError(f"schedule is a {type(schedule).__name__}; it must be made of betas, such as Linear().")
    alphas = schedule.log_alphas.exp()
    if len(alphas) < 3:
        raise ValueError(f"the table has {len(alphas) - 1} step; zero terminal SNR needs at least 2.")
    first, last = alphas[1], alphas[-1]
    shifted = (alphas[1:] - last) * first / (first - last)
    return _Given(torch.cat([alphas.new_zeros(1), shifted.log()]))
