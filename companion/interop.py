"""Interop: diffusers and k-diffusion models under our samplers, our denoisers under theirs.

Neither package is imported: a scheduler or a model is known by its attributes. The conventions that differ:

    ours            diffusers                               k-diffusion
    t = k / T       timestep k - 1 (t * T: flow matching)   sigma = sigma(t) / alpha(t)
    x               x                                       x / alpha(t)
    x0_hat          the model's output, by prediction_type  x0_hat
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks
from .denoisers import Denoiser
from .predictions import EPS, VELOCITY, X0, Prediction, V
from .schedules import FlowMatching, Schedule, Table

PREDICTIONS = {"epsilon": EPS, "v_prediction": V, "sample": X0, "flow_prediction": VELOCITY}
"""The prediction that each prediction_type of diffusers stands for."""
_BETWEEN_TIMESTEPS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_NEARLY_ZERO = 2**-24  # what the solvers of diffusers write for a last product of 0, even where the one before is less


class Output(NamedTuple):
    """What a model made by `to_diffusers` returns: out.sample, or out[0].

    >>> Output(torch.zeros(1)).sample.item()
    0.0
    """

    sample: Tensor


def schedule_from_diffusers(scheduler: Any) -> Schedule:
    """Return a diffusers scheduler's schedule: its alphas_cumprod as a table, or the straight path of flow matching.

    Timestep k - 1 stands at t = k / T. A table that ends in pure noise stays as it is. The products are float32 there,
    so sigma(1 / T) keeps about four digits. A flow-matching scheduler's shift moves its grid, not its schedule: see
    `grid_from_diffusers`.

    Raises:
        TypeError: something without a config, or alphas_cumprod that is not a floating-point tensor.
        ValueError: neither alphas_cumprod nor a shift; alphas_cumprod that does not fall within (0, 1), or has
            another length than num_train_timesteps; an inverted path.

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(num_train_timesteps=2, prediction_type="epsilon")
    >>> scheduler = SimpleNamespace(config=config, alphas_cumprod=torch.tensor([0.5, 0.25]))
    >>> schedule_from_diffusers(scheduler).alpha(1.0).item()
    0.5
    """
    return _read(scheduler).schedule


def grid_from_diffusers(scheduler: Any) -> Tensor:
    """Return the times that a diffusers scheduler visits after scheduler.set_timesteps(N), for our samplers.

    It ends at 0, or at 1 / T if the scheduler ends there (set_alpha_to_one=False, final_sigmas_type="sigma_min").
    Timesteps that come twice, as Heun's do, count once. DDIMScheduler steps by T // N whatever its timesteps are:
    it walks this grid if N divides T, and not with timestep_spacing="linspace".

    Returns:
        (N + 1,) float64 on the CPU, strictly decreasing.

    Raises:
        TypeError, ValueError: as `schedule_from_diffusers`; noise levels between the timesteps (Karras sigmas).

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(num_train_timesteps=4, prediction_type="epsilon")
    >>> abar = torch.tensor([0.8, 0.6, 0.4, 0.2])
    >>> scheduler = SimpleNamespace(config=config, alphas_cumprod=abar, timesteps=torch.tensor([3, 1]))
    >>> grid_from_diffusers(scheduler).tolist()
    [1.0, 0.5, 0.0]
    """
    read = _read(scheduler)
    if read.offset == 0:
        return _checks.grid(torch.unique(_tensor_of(scheduler, "sigmas")).flip(0).double(), "scheduler.sigmas")
    between = [name for name in _BETWEEN_TIMESTEPS if getattr(scheduler.config, name, False)]
    if between:
        raise ValueError(
            f"the scheduler has {between[0]}=True, which puts noise levels between its timesteps: use "
            f"grid_from_k_diffusion(schedule_from_diffusers(scheduler), scheduler.sigmas)."
        )
    times = (torch.unique(_tensor_of(scheduler, "timesteps")).flip(0).double().cpu() + read.offset) / read.steps
    early = getattr(scheduler.config, "set_alpha_to_one", True) is False
    early = early or getattr(scheduler.config, "final_sigmas_type", "zero") == "sigma_min"
    return _checks.grid(torch.cat([times, times.new_full((1,), early / read.steps)]), "the scheduler's grid")


def from_diffusers(model: Callable[..., Any], scheduler: Any) -> Denoiser:
    """Return the denoiser of a diffusers model, such as UNet2DModel, trained with this scheduler.

    The model is called as model(x, timesteps, **cond) in the mode it is in (call model.eval() first), with a (B,)
    float32 tensor of timesteps, t * T - 1, which need not be whole; it answers with an object that has `sample`, a
    tuple or a tensor. The scheduler gives the schedule and the prediction; its clip_sample, which is on by default
    in DDPMScheduler and DDIMScheduler, is its sampler's affair and is left out.

    Returns:
        denoiser(x, t, cond=None) with cond a mapping of the model's further arguments, such as
        {"encoder_hidden_states": text} or {"class_labels": y}.

    Raises:
        TypeError, ValueError: as `schedule_from_diffusers`; an unknown prediction_type. When called: cond that is
            not a mapping, an output of another shape than x (a learned variance must be cut off), a prediction
            that says nothing at that time.

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(num_train_timesteps=2, prediction_type="epsilon")
    >>> scheduler = SimpleNamespace(config=config, alphas_cumprod=torch.tensor([0.5, 0.25]))
    >>> denoise = from_diffusers(lambda x, timesteps: 0 * x, scheduler)
    >>> denoise(torch.ones(1, 3), torch.tensor(1.0)).tolist()        # no noise found: x0_hat = x / alpha
    [[2.0, 2.0, 2.0]]
    """
    read = _read(scheduler)
    prediction = read.known_prediction()

    def denoise(x: Tensor, t: Tensor, cond: Mapping[str, Any] | None = None) -> Tensor:
        t = _checks.batch_time(t, _checks.floating("x", x))
        timesteps = (t * read.steps - read.offset).to(x.device, torch.float32)  # in t's own dtype: float64 is exact
        out = _tensor("the model's output", model(x, timesteps.expand(len(x)), **_keywords(cond)))
        _checks.same_shape("the model's output", out, x, "its input")
        alpha, sigma = _coefficients(read.schedule, t, x)
        return prediction.to_x0(x, out.to(x.dtype), alpha, sigma)

    return denoise


def to_diffusers(denoiser: Denoiser, schedule: Schedule, scheduler: Any) -> Callable[..., Output]:
    """Return a model for a diffusers loop: model(x, timestep).sample, in the scheduler's prediction_type.

    The scheduler must add noise as the denoiser's schedule does: build it with
    trained_betas=betas_for_diffusers(schedule), or, for `FlowMatching`, take FlowMatchEulerDiscreteScheduler.

    Returns:
        model(x, timestep, cond=None) for x (B, *D) and timestep a number, () or (B,); cond goes to the denoiser.

    Raises:
        TypeError, ValueError: as `from_diffusers`; a scheduler whose alpha or sigma is more than 0.001 away from the
            schedule's. When called: a timestep outside the schedule.

    >>> from types import SimpleNamespace
    >>> from companion import schedules
    >>> config = SimpleNamespace(num_train_timesteps=2, prediction_type="sample")
    >>> scheduler = SimpleNamespace(config=config, alphas_cumprod=torch.tensor([0.5, 0.25]))
    >>> schedule = schedules.from_betas(torch.tensor([0.5, 0.5]))
    >>> to_diffusers(lambda x, t: x * t, schedule, scheduler)(torch.ones(1, 1), 0).sample.item()    # timestep 0 of 2
    0.5
    """
    read = _read(scheduler)
    prediction = read.known_prediction()
    points = torch.arange(1, read.steps + 1, dtype=torch.float64) / read.steps
    for name in ("alpha", "sigma"):
        gap = float((getattr(schedule, name)(points) - getattr(read.schedule, name)(points)).abs().max())
        if gap > 1e-3:
            raise ValueError(
                f"the scheduler's {name} is up to {gap:.3g} away from the schedule's: build the scheduler with "
                f"trained_betas=betas_for_diffusers(schedule), or pass the schedule that the denoiser was made for."
            )

    def model(x: Tensor, timestep: Tensor | float, cond: Any = None) -> Output:
        times = (torch.as_tensor(timestep).double().cpu() + read.offset) / read.steps
        t = _checks.batch_time(times, _checks.floating("x", x), "(timestep + 1) / T" if read.offset else "timestep / T")
        x0_hat = _ask(denoiser, x, t, cond)
        alpha, sigma = _coefficients(read.schedule, t, x)
        eps = X0.to_eps(x, x0_hat, alpha, sigma)
        return Output(prediction.target(x0_hat, eps, alpha, sigma).to(x.dtype))

    return model


def betas_for_diffusers(schedule: Schedule, num_steps: int = 1000) -> list[float]:
    """Return betas that make a diffusers scheduler follow a schedule: DDIMScheduler(trained_betas=...).

    beta_k = 1 - alpha_bar(k / T) / alpha_bar((k - 1) / T). The last one is 1 if the schedule ends in pure noise; set
    prediction_type="v_prediction" or "sample" then.

    Args:
        schedule: with alpha^2 + sigma^2 = 1.
        num_steps: T, the scheduler's num_train_timesteps.

    Raises:
        ValueError: a schedule that does not preserve the variance, fewer than 1 step.

    >>> from companion import schedules
    >>> [round(beta, 12) for beta in betas_for_diffusers(schedules.Linear(2, 0.1, 0.3), 2)]
    [0.1, 0.3]
    """
    points = torch.arange(_checks.count("num_steps", num_steps) + 1, dtype=torch.float64) / num_steps
    total = schedule.alpha(points) ** 2 + schedule.sigma(points) ** 2
    if not bool((total - 1).abs().max() < 1e-9):
        raise ValueError(
            f"alpha^2 + sigma^2 runs from {float(total.min()):g} to {float(total.max()):g}; betas hold schedules "
            f"where it is 1: for FlowMatching take FlowMatchEulerDiscreteScheduler, for others k-diffusion's samplers."
        )
    return (-torch.expm1(2 * schedule.alpha(points).log().diff())).tolist()


def from_k_diffusion(model: Callable[..., Tensor], schedule: Schedule) -> Denoiser:
    """Return the denoiser, on any schedule, of a k-diffusion model(x / alpha, sigma / alpha, **cond) -> x0_hat.

    Returns:
        denoiser(x, t, cond=None), with cond a mapping of the model's further arguments (its extra_args).

    Raises (when called):
        TypeError: cond that is not a mapping.
        ValueError: a time where alpha is 0, an answer of another shape than x.

    >>> from companion import schedules
    >>> denoise = from_k_diffusion(lambda x, sigma: x - sigma[:, None], schedules.FlowMatching())
    >>> denoise(torch.ones(1, 1), torch.tensor(0.5)).item()          # 1 / 0.5 - 0.5 / 0.5
    1.0
    """

    def denoise(x: Tensor, t: Tensor, cond: Mapping[str, Any] | None = None) -> Tensor:
        t = _checks.batch_time(t, _checks.floating("x", x))
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        if alpha.device.type == "cpu" and not bool((alpha > 0).all()):
            raise ValueError(
                f"alpha is 0 at t = {float(t.max()):g}, where k-diffusion's sigma is infinite: start the grid at a "
                f"smaller t_max, such as schedule.time_grid's default."
            )
        x_ve = (x / _checks.over_batch(alpha.to(x.device), x)).to(x.dtype)
        x0_hat = model(x_ve, (sigma / alpha).to(x.device, x.dtype).expand(len(x)), **_keywords(cond))
        x0_hat = _tensor("the model's answer", x0_hat)
        return _checks.same_shape("the model's answer", x0_hat, x, "x").to(x.dtype)

    return denoise


def to_k_diffusion(denoiser: Denoiser, schedule: Schedule) -> Callable[..., Tensor]:
    """Return a k-diffusion model(x, sigma) for its samplers, where x = x_t / alpha(t) and sigma = sigma(t) / alpha(t).

    Start from samplers.start(...) / schedule.alpha(ts[0]); at sigma 0 the result is x0 itself.

    Returns:
        model(x, sigma, cond=None) for x (B, *D) and sigma () or (B,); cond goes to the denoiser.

    Raises (when called):
        ValueError: a sigma that is negative, or beyond the schedule's largest.

    >>> from companion import schedules
    >>> model = to_k_diffusion(lambda x, t: x, schedules.FlowMatching())
    >>> model(torch.ones(2, 1), torch.tensor([1.0, 3.0])).tolist()        # t is 0.5 and 0.75: alpha 0.5 and 0.25
    [[0.5], [0.25]]
    """

    def model(x: Tensor, sigma: Tensor | float, cond: Any = None) -> Tensor:
        _checks.floating("x", x)
        levels, place = torch.unique(torch.as_tensor(sigma).detach().cpu(), return_inverse=True)
        times = _times(schedule, levels)  # one bisection for each level, not for each sample
        t = _checks.batch_time(times[place], x, "sigma")
        t = times[0] if len(times) == 1 else t
        alpha = _checks.over_batch(schedule.alpha(t), x)
        return _ask(denoiser, (x * alpha.to(x.device)).to(x.dtype), t, cond)

    return model


def sigmas_for_k_diffusion(schedule: Schedule, ts: Tensor) -> Tensor:
    """Return the noise over signal on a grid, the `sigmas` that k-diffusion's samplers take.

    Args:
        ts: (N + 1,) falling times, such as schedule.time_grid(N).

    Returns:
        (N + 1,) float64 on the CPU, 0 at t = 0.

    Raises:
        TypeError, ValueError: not a grid; a first point where alpha is 0.

    >>> from companion import schedules
    >>> sigmas_for_k_diffusion(schedules.FlowMatching(), torch.tensor([0.75, 0.5, 0.0])).tolist()
    [3.0, 1.0, 0.0]
    """
    sigmas = schedule.noise_to_signal(_checks.grid(ts))
    if not bool(torch.isfinite(sigmas).all()):
        raise ValueError(f"alpha is 0 at ts[0] = {float(ts[0]):g}: start the grid where noise over signal is finite.")
    return sigmas


def grid_from_k_diffusion(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """Return the times at which noise over signal has the given values: a k-diffusion grid for our samplers.

    Args:
        sigmas: (N + 1,) falling, 0 at the end, such as k_diffusion.sampling.get_sigmas_karras gives.

    Returns:
        (N + 1,) float64 on the CPU, strictly decreasing.

    Raises:
        ValueError: a sigma that is negative, or beyond the schedule's largest; sigmas that do not fall.

    >>> from companion import schedules
    >>> [round(t, 6) for t in grid_from_k_diffusion(schedules.FlowMatching(), torch.tensor([3.0, 1.0, 0.0])).tolist()]
    [0.75, 0.5, 0.0]
    """
    return _checks.grid(_times(schedule, _checks.floating("sigmas", sigmas)), "the grid of these sigmas")


# --- what a scheduler says of itself ---


@dataclass(frozen=True, eq=False)
class _Products(Table):
    log_alphas: Tensor


class _Read(NamedTuple):
    schedule: Schedule
    prediction_type: str
    steps: int
    offset: int  # timestep = t * steps - offset

    def known_prediction(self) -> Prediction:
        if self.prediction_type not in PREDICTIONS:
            raise ValueError(f"prediction_type is {self.prediction_type!r}; known are {', '.join(PREDICTIONS)}.")
        return PREDICTIONS[self.prediction_type]


def _read(scheduler: Any) -> _Read:
    config = getattr(scheduler, "config", None)
    if config is None:
        raise TypeError(f"scheduler is a {type(scheduler).__name__} without a config; pass a diffusers scheduler.")
    given: Any = getattr(config, "num_train_timesteps", None)
    steps = _checks.count("scheduler.config.num_train_timesteps", given)
    products = getattr(scheduler, "alphas_cumprod", None)
    if getattr(config, "use_flow_sigmas", False) or (products is None and getattr(config, "shift", None) is not None):
        if getattr(config, "invert_sigmas", False):
            raise ValueError("the scheduler has invert_sigmas=True: its time runs from data to noise, and ours back.")
        return _Read(FlowMatching(), getattr(config, "prediction_type", "flow_prediction"), steps, 0)
    if products is None:
        raise ValueError(
            f"{type(scheduler).__name__} has neither alphas_cumprod nor a flow-matching shift; its schedule is not "
            f"known: for EDM's path take VarianceExploding and from_k_diffusion."
        )
    log_alphas = _tensor_of(scheduler, "alphas_cumprod").detach().to("cpu", torch.float64).log() / 2
    table = torch.cat([log_alphas.new_zeros(1), log_alphas])
    falls = table.diff() < 0
    if log_alphas.shape != (steps,) or not bool(falls[:-1].all() and (falls[-1] or products[-1] == _NEARLY_ZERO)):
        raise ValueError(
            f"alphas_cumprod has shape {tuple(log_alphas.shape)}; it must hold {steps} products that fall strictly, "
            f"below 1 and at least 0: betas inside (0, 1)."
        )
    return _Read(_Products(table), getattr(config, "prediction_type", "epsilon"), steps, 1)


def _tensor_of(scheduler: Any, name: str) -> Tensor:
    value = getattr(scheduler, name, None)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"scheduler.{name} is a {type(value).__name__}; it must be a tensor: if it is None, call "
            f"scheduler.set_timesteps first."
        )
    return value


# --- calling models ---


def _keywords(cond: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if cond is not None and not isinstance(cond, Mapping):
        raise TypeError(
            f"cond is a {type(cond).__name__}; it must be a mapping of the model's arguments, such as "
            f'{{"class_labels": y}} or {{"encoder_hidden_states": text}}.'
        )
    return cond or {}


def _tensor(name: str, out: Any) -> Tensor:
    """Return the tensor in a model's output: out.sample, out[0] or out."""
    out = getattr(out, "sample", out[0] if isinstance(out, tuple) else out)
    return _checks.floating(name, out)


def _ask(denoiser: Callable[..., Tensor], x: Tensor, t: Tensor, cond: Any) -> Tensor:
    x0_hat = denoiser(x, t) if cond is None else denoiser(x, t, cond)
    return _checks.same_shape("the denoiser's answer", x0_hat, x, "x")


def _coefficients(schedule: Schedule, t: Tensor, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if not t.ndim:
        return float(alpha), float(sigma)
    return _checks.over_batch(alpha.to(x.device), x), _checks.over_batch(sigma.to(x.device), x)


def _times(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """Return the times of these values of noise over signal, float64; the largest may be rounded up."""
    sigmas = sigmas.detach().to("cpu", torch.float64)
    largest = float(schedule.noise_to_signal(1.0))
    if not bool(((sigmas >= 0) & (sigmas <= largest * (1 + 1e-6))).all()):
        raise ValueError(
            f"sigma runs from {float(sigmas.min()):g} to {float(sigmas.max()):g}; on this schedule it lies in "
            f"[0, {largest:g}]: start at sigmas_for_k_diffusion(schedule, ts)[0]."
        )
    return schedule.t_of_log_snr(-2 * sigmas.clamp(max=largest).log())
