"""Guidance: functions from denoiser to denoiser, so that no sampler ever sees a class, a prompt or a scale.

`condition` fixes what a denoiser is told. `extrapolate` moves its answer away from that of a worse denoiser: one told
nothing (classifier-free guidance), one told what is not wanted (a negative prompt), or a weaker network
(autoguidance). `classifier` has a classifier's gradient do it. A scale of 1 is off, except for `classifier`, where 0
is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import _checks
from .denoisers import Denoiser
from .schedules import Schedule

Cond = Tensor | int | None
"""A condition: one for each sample, (B, *C), one for all, or None for nothing."""


@dataclass(frozen=True, eq=False)
class Conditional:
    """A denoiser(x, t, cond) whose condition is fixed, called as (x, t); made by `condition`.

    >>> from companion import denoisers, networks, predictions, schedules
    >>> model = denoisers.from_network(networks.MLP(2, num_classes=3), schedules.Cosine(), predictions.V)
    >>> condition(model, 1).cond
    1
    """

    denoiser: Callable[..., Tensor]
    cond: Cond

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return x0_hat (B, *D) for x (B, *D) and t, () or (B,)."""
        told = (self._for_batch(x),) if self.cond is not None or self._takes_cond else ()
        return _checks.same_shape("the denoiser's answer", self.denoiser(x, t, *told), x, "x")

    @cached_property
    def _takes_cond(self) -> bool:
        return _takes_cond(self.denoiser)

    def _for_batch(self, x: Tensor) -> Tensor | None:
        """Return the condition of each sample, (B, *C), on x's device, or None."""
        if self.cond is None:
            return None
        cond = torch.as_tensor(self.cond, device=x.device)
        cond = cond.unsqueeze(0) if cond.ndim == 0 else cond
        if len(cond) not in (1, len(x)):
            raise ValueError(
                f"cond has shape {tuple(cond.shape)} but x has batch {len(x)}; give ({len(x)}, ...), one condition "
                f"for each sample, or (1, ...) or an int for all of them."
            )
        return cond.expand(len(x), *cond.shape[1:])


def condition(denoiser: Callable[..., Tensor], cond: Cond) -> Conditional:
    """Return a denoiser (x, t) that is told cond, whatever the sample.

    Args:
        denoiser: denoiser(x, t, cond) -> x0_hat, such as `denoisers.from_network` makes.
        cond: an int or a tensor of integers: one condition for each sample (B, *C), or one for all of them, an int,
            () or (1, *C). Classes are (B,), tokens (B, L). None tells nothing.

    Returns:
        A frozen object that keeps `.denoiser` and `.cond`.

    Raises:
        TypeError: a cond that is not of integers, or one for a denoiser that takes none.
        ValueError: a network without conditions; when called, a cond that does not fit the batch of x.

    >>> from companion import denoisers, networks, predictions, schedules
    >>> net = networks.MLP(2, num_classes=3)
    >>> model = denoisers.from_network(net, schedules.Cosine(), predictions.V)
    >>> x, t = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)
    >>> torch.equal(condition(model, 1)(x, t), model(x, t, torch.tensor([1, 1, 1, 1])))
    True
    """
    if cond is None:
        return Conditional(denoiser, None)
    if isinstance(cond, bool) or not isinstance(cond, Tensor | int):
        raise TypeError(f"cond is a {type(cond).__name__}; it must be an int, a tensor of integers, or None.")
    if isinstance(cond, Tensor) and (cond.is_floating_point() or cond.is_complex() or cond.dtype == torch.bool):
        raise TypeError(f"cond has dtype {cond.dtype}; classes and tokens are integers: use cond.long().")
    if not _takes_cond(denoiser):
        raise TypeError(
            f"{_name(denoiser)} takes no condition: it is called as (x, t), but cond was given: "
            f"use cond=None, or a denoiser (x, t, cond)."
        )
    net = getattr(denoiser, "net", denoiser)
    if getattr(net, "null_cond", -1) is None:  # a network of this package that was built without classes
        raise ValueError(f"{_name(net)} takes no condition, but cond was given: build it with num_classes=...")
    return Conditional(denoiser, cond)


@dataclass(frozen=True, eq=False)
class Extrapolated:
    """A denoiser moved away from a worse one; made by `extrapolate`.

    >>> one, two = (lambda x, t: x), (lambda x, t: 2 * x)
    >>> extrapolate(two, one, 3.0).scale
    3.0
    """

    good: Denoiser
    bad: Denoiser
    scale: Tensor | float
    t_range: tuple[float, float]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the guided x0_hat (B, *D) for x (B, *D) and t, () or (B,)."""
        return self.both(x, t)[1]

    def both(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `good` answers and the guided answer, each (B, *D)."""
        t = _checks.batch_time(t, _checks.floating("x", x))
        extra = _where_active(_per_sample(self.scale, x) - 1, t, self.t_range)
        if _is_zero(extra):
            good = _ask(self.good, x, t)
            return good, good
        good, bad = self._ask_both(x, t)
        wide, against = good.to(_checks.wide(x.dtype)), bad.to(_checks.wide(x.dtype))
        return good, (wide + _coefficient(extra, wide) * (wide - against)).to(good.dtype)  # good itself at scale 1

    def _ask_both(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Ask good and bad, in one call where they share a denoiser and their conditions are of one shape."""
        good, bad = self.good, self.bad
        if isinstance(good, Conditional) and isinstance(bad, Conditional) and good.denoiser is bad.denoiser:
            wanted, other = good._for_batch(x), bad._for_batch(x)
            null = getattr(getattr(good.denoiser, "net", good.denoiser), "null_cond", None)
            if null is not None:
                wanted = torch.full_like(other, null) if wanted is None and other is not None else wanted
                other = torch.full_like(wanted, null) if other is None and wanted is not None else other
            if wanted is not None and other is not None and wanted.shape == other.shape:
                twice, times = torch.cat([x, x]), torch.cat([t, t]) if t.ndim else t
                answer = good.denoiser(twice, times, torch.cat([wanted, other]))
                first, second = _checks.same_shape("the denoiser's answer", answer, twice, "x, twice,").chunk(2)
                return first, second
        return _ask(good, x, t), _ask(bad, x, t)


def extrapolate(
    good: Denoiser, bad: Denoiser, scale: Tensor | float, *, t_range: tuple[float, float] = (0.0, 1.0)
) -> Extrapolated:
    """Return the denoiser bad + scale * (good - bad): the answer of `good`, moved away from that of `bad`.

    The same extrapolation of eps, v or the score follows, for each is linear in x0_hat at a fixed x. What it is called
    depends on the two:

    - classifier-free guidance: a model told the condition, the same model told nothing (Ho and Salimans 2022, eq. 6,
      whose w is scale - 1);
    - a negative prompt: `bad` is told what is not wanted;
    - autoguidance: both are told the same, `bad` is a smaller or less trained network (Karras et al. 2024).

    Where both are `condition` of one denoiser and their conditions have one shape, both are asked in one call of it,
    with twice the batch; "nothing" is then the network's `null_cond`.

    Args:
        good, bad: denoisers (x, t) -> x0_hat.
        scale: 1 is off, 0 is `bad`, above 1 extrapolates; one number, or one for each sample, (B,).
        t_range: (low, high), both ends included. At other times the answer is that of `good`, and `bad` is not asked
            (Kynkaanniemi et al. 2024).

    Raises:
        TypeError: a scale that is not a number.
        ValueError: a scale that is not finite, a t_range that is reversed or leaves [0, 1]; when called, a scale that
            does not fit the batch, or an answer of another shape than x.

    >>> good, bad = (lambda x, t: 0 * x + 2.0), (lambda x, t: 0 * x + 1.0)
    >>> x, t = torch.zeros(1, 1), torch.tensor(0.5)
    >>> extrapolate(good, bad, 3.0)(x, t).item()                  # 1 + 3 * (2 - 1)
    4.0
    >>> extrapolate(good, bad, 3.0, t_range=(0.6, 1.0))(x, t).item()
    2.0
    """
    return Extrapolated(good, bad, _scale(scale), _interval(t_range))


def classifier(
    denoiser: Denoiser,
    log_prob: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    scale: Tensor | float = 1.0,
    *,
    t_range: tuple[float, float] = (0.0, 1.0),
) -> Denoiser:
    """Return the denoiser moved along a classifier's gradient (Dhariwal and Nichol 2021, section 4).

    By Bayes' rule the score of p_t(x | c) is that of p_t(x) plus the gradient of log p_t(c | x). With
    x0_hat = (x + sigma^2 score) / alpha the answer is x0_hat + scale * (sigma^2 / alpha) * grad log p_t(c | x), which
    at scale 1 is the conditional denoiser, if both are exact. So here a scale of 0 leaves the denoiser as it is.

    Args:
        denoiser: (x, t) -> x0_hat, unconditional.
        log_prob: (x, t) -> (B,), the log-probability of the wanted class given the noisy x, differentiable in x.
        schedule: that of the denoiser.
        scale: what the gradient is multiplied by; one number, or one for each sample, (B,).
        t_range: (low, high), both ends included; at other times the answer is the denoiser's, and the classifier is not
            asked.

    Raises:
        TypeError: a scale that is not a number.
        ValueError: a scale that is not finite, a t_range that is reversed or leaves [0, 1]; when called, a time in
            it at which alpha is 0 (the gradient is 0 there, and sigma^2 / alpha infinite), a log_prob of another shape
            than (B,) or without a gradient, or an answer of another shape than x.

    >>> from companion import denoisers, schedules
    >>> schedule = schedules.FlowMatching()
    >>> def gaussian(mean):
    ...     return denoisers.GaussianMixture(torch.tensor([[mean]]), torch.ones(1), torch.ones(1), schedule)
    >>> everything, wanted = gaussian(0.0), gaussian(1.0)
    >>> guided = classifier(everything, lambda x, t: wanted.log_prob(x, t) - everything.log_prob(x, t), schedule)
    >>> x, t = torch.tensor([[0.3]]), torch.tensor(0.5)
    >>> torch.allclose(guided(x, t), wanted(x, t))
    True
    """
    factor, limits = _scale(scale), _interval(t_range)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        t = _checks.batch_time(t, _checks.floating("x", x))
        x0_hat = _ask(denoiser, x, t)
        active = _where_active(_per_sample(factor, x), t, limits)
        if _is_zero(active):
            return x0_hat
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        empty = alpha <= 1e-6 * sigma
        if alpha.device.type == "cpu" and bool((empty & (active.cpu() != 0)).any()):
            raise ValueError(
                f"alpha is {float(alpha.min()):.1e} at t = {float(t.max()):g}, where x holds no signal to classify and "
                f"sigma^2 / alpha is infinite: start the grid at a smaller t_max, as time_grid does by default, or end "
                f"t_range before it."
            )
        wide = x0_hat.to(_checks.wide(x.dtype))
        gain = _coefficient(sigma**2 / torch.where(empty, 1.0, alpha), wide) * _coefficient(active, wide)
        return (wide + gain * _gradient(log_prob, x, t)).to(x0_hat.dtype)

    return guided


def rescale(guided: Denoiser, conditional: Denoiser, phi: float) -> Denoiser:
    """Return the guided denoiser with the spread of its answer brought back to that of the conditional one's.

    Each sample is multiplied by 1 - phi + phi * std(conditional) / std(guided), where the standard deviation is over
    all elements of the sample's x0_hat (Lin et al. 2024, eq. 15 and 16, who take that of the network's output instead:
    v, and in diffusers whatever the network predicts). If `guided` is an `extrapolate` of `conditional`, nothing is
    asked twice.

    Args:
        guided, conditional: denoisers (x, t) -> x0_hat.
        phi: in [0, 1]; 0 is off, the paper takes 0.7.

    Raises:
        ValueError: phi outside [0, 1]; when called, samples of one element, or an answer of another shape than x.

    >>> good, bad = (lambda x, t: x), (lambda x, t: 0 * x)
    >>> x, t = torch.tensor([[1.0, -1.0]]), torch.tensor(0.5)
    >>> guided = extrapolate(good, bad, 4.0)
    >>> guided(x, t).tolist(), rescale(guided, good, 1.0)(x, t).tolist()
    ([[4.0, -4.0]], [[1.0, -1.0]])
    """
    if not 0 <= phi <= 1:
        raise ValueError(f"phi is {phi}; it must lie in [0, 1]: 0 is off, 1 takes all of the rescaling.")

    def rescaled(x: Tensor, t: Tensor) -> Tensor:
        if _checks.floating("x", x)[0].numel() < 2:
            raise ValueError(f"x has shape {tuple(x.shape)}; a sample of one element has no spread to bring back.")
        if isinstance(guided, Extrapolated) and guided.good is conditional:
            like, answer = guided.both(x, t)
        else:
            like, answer = _ask(conditional, x, t), _ask(guided, x, t)
        wide = answer.to(_checks.wide(x.dtype))
        wanted, found = like.to(wide).flatten(1).std(1, correction=0), wide.flatten(1).std(1, correction=0)
        ratio = torch.where(found > 0, wanted / torch.where(found > 0, found, 1.0), 1.0)
        return (_checks.over_batch(1 + phi * (ratio - 1), wide) * wide).to(answer.dtype)

    return rescaled


def clip_x0(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Return the denoiser with its answer clipped to [low, high], the range of the data.

    It hides what a large scale does to the answer, and it puts a kink there that costs a sampler its order.

    Raises:
        ValueError: low that is not below high, or an answer of another shape than x.

    >>> clip_x0(lambda x, t: 3 * x)(torch.tensor([[0.1, -0.7]]), torch.tensor(0.5)).tolist()
    [[0.30000001192092896, -1.0]]
    """
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}; low must be below high: -1 and 1 for images.")
    return lambda x, t: _ask(denoiser, x, t).clamp(low, high)


def _scale(scale: Any) -> Tensor | float:
    """Return a scale as a finite number or tensor of floats, () or (B,)."""
    if isinstance(scale, bool) or not isinstance(scale, Tensor | float | int):
        raise TypeError(f"scale is a {type(scale).__name__}; it must be a number, or a tensor (B,): 1 is off.")
    if isinstance(scale, Tensor):
        scale = scale.detach().clone()  # what is frozen does not change with the caller's tensor
        if scale.ndim > 1 or scale.dtype == torch.bool or scale.is_complex():
            raise ValueError(
                f"scale has shape {tuple(scale.shape)} and dtype {scale.dtype}; it is a number, or (B,) real numbers, "
                f"one for each sample."
            )
        scale = scale if scale.is_floating_point() else scale.double()
    if not bool(torch.isfinite(torch.as_tensor(scale)).all()):
        raise ValueError(f"scale is {scale}; it must be finite: 1 is off, 1.5 to 8 are usual.")
    return scale if isinstance(scale, Tensor) else float(scale)


def _interval(t_range: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(t_range, tuple | list) or len(t_range) != 2:
        raise ValueError(f"t_range is {t_range!r}; it must be two times, (low, high).")
    low, high = (float(end) for end in t_range)
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"t_range is ({low:g}, {high:g}); it must be (low, high) with 0 <= low <= high <= 1, where 0 is data: a "
            f"noise-to-signal ratio n is the time schedule.t_of_log_snr(-2 * math.log(n))."
        )
    return low, high


def _per_sample(scale: Tensor | float, x: Tensor) -> Tensor:
    """Return the scale as (), on the CPU where it is one number, or as (B,) on x's device."""
    if not isinstance(scale, Tensor):
        return torch.tensor(scale, dtype=torch.float64)
    if scale.ndim and scale.shape != x.shape[:1]:
        raise ValueError(
            f"scale has shape {tuple(scale.shape)} but x has batch {len(x)}; give one number, or ({len(x)},)."
        )
    return scale.to(x.device) if scale.ndim else scale


def _where_active(factor: Tensor, t: Tensor, t_range: tuple[float, float]) -> Tensor:
    """Return the factor where t is in the range, both ends included, and 0 elsewhere, () or (B,)."""
    if t_range == (0.0, 1.0):
        return factor
    active = (t >= t_range[0]) & (t <= t_range[1])
    if active.ndim == 0 and active.device.type == "cpu":  # as samplers hand it: decided here and now
        return factor if bool(active) else torch.zeros(())
    device = factor.device if factor.ndim else active.device
    return factor.to(device) * active.to(device)


def _is_zero(factor: Tensor) -> bool:
    """Say whether a factor is 0 for every sample, without stopping an accelerator to ask."""
    return factor.device.type == "cpu" and not bool(factor.any())


def _coefficient(factor: Tensor, x: Tensor) -> Tensor:
    """Shape a factor, () or (B,), so that it multiplies x (B, *D)."""
    return _checks.over_batch(factor.to(x) if factor.ndim else factor, x)


def _ask(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    return _checks.same_shape("the denoiser's answer", denoiser(x, t), x, "x")


def _gradient(log_prob: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    """Return the gradient of log_prob in x, also where gradients are switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        found = log_prob(leaf, t.clone())
        if not isinstance(found, Tensor) or found.shape != x.shape[:1]:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
            raise ValueError(
                f"log_prob answered with {got} for a batch of {len(x)}; it must be ({len(x)},): the log-probability of "
                f"the wanted class for each sample, such as logits.log_softmax(1)[:, c]."
            )
        if not found.requires_grad:
            raise ValueError("log_prob has no gradient in x; compute it with torch, without no_grad, detach or argmax.")
        return torch.autograd.grad(found.sum(), leaf)[0]


def _takes_cond(denoiser: Callable[..., Tensor]) -> bool:
    """Say whether a denoiser can be called as (x, t, cond)."""
    try:
        inspect.signature(denoiser).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # a function without a signature, such as one written in C
        return True
    return True


def _name(thing: object) -> str:
    return getattr(thing, "__name__", type(thing).__name__)
