"""Training: a loop that yields its state, averages the weights, and can be stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks, losses
from ..predictions import Prediction
from ..schedules import Schedule
from ._autoencoder import fit_autoencoder
from ._run import EMA, PRECISIONS, Run, Saving, TrainStep, half_cosine, next_batch, rate_of, refuse_settings, steps

__all__ = ["EMA", "PRECISIONS", "TrainStep", "constant", "fit", "fit_autoencoder", "half_cosine"]


def constant(done: float) -> float:
    """Return 1: the learning rate stays at its highest.

    >>> constant(0.7)
    1.0
    """
    return 1.0


def fit(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    schedule: Schedule,
    prediction: Prediction,
    *,
    num_steps: int,
    lr: float = 2e-3,
    warmup: int = 100,
    lr_decay: Callable[[float], float] = half_cosine,
    clip: float = 1.0,
    ema_decay: float = 0.999,
    ema_warmup: bool = True,
    drop_cond: float = 0.0,
    weight: losses.Weight = losses.simple,
    times: Callable[..., Tensor] = losses.stratified_times,
    precision: str = "float32",
    accumulate: int = 1,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    save_every: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Iterator[TrainStep]:
    """Train a denoising network with Adam, and yield after each step.

    The learning rate rises over `warmup` steps and then falls to 0 along a half cosine; gradients are clipped; an
    average of the weights is kept. When the loop is exhausted, `net` holds the averaged weights and is in evaluation
    mode.

    A run that was stopped goes on from its checkpoint as if nothing had happened: on the CPU to the last bit. Where the
    batches have no state_dict (`data.batches` have one) those already seen are drawn again and passed over, so such a
    source must start as it did the first time and must not share the generator. Whatever else you draw from
    `generator` between steps is not drawn again: give samples a generator of their own.

    Args:
        net: net(x, t, cond) -> a tensor of x's shape, on the device to train on.
        batches: yields (x, cond), such as `data.batches`; cond may be None.
        num_steps: how many steps of the optimizer.
        lr: the highest learning rate.
        warmup: steps over which the learning rate rises from 0; with fewer steps in all it never reaches `lr`.
        lr_decay: the learning rate after that as a share of `lr`, a function of the part done, in [0, 1): `half_cosine`
            or `constant`.
        clip: the largest norm of the gradient; math.inf to leave it alone.
        ema_decay: of the averaged weights; 0 for none.
        ema_warmup: whether the average's decay warms up.
        drop_cond: the share of conditions replaced by net.null_cond, for classifier-free guidance.
        weight: of the loss.
        times: times(n, generator=..., device=...) -> (n,) times in [0, 1] to train on.
        precision: "float32", or "bfloat16" or "float16" for a network that runs in autocast, the latter with a scaled
            loss.
        accumulate: batches whose mean gradient makes one step.
        generator: where times, noise and dropped conditions come from.
        checkpoint: a file to save the run in, every `save_every` steps and after the last.
        save_every: None saves after the last step only.
        resume: go on from `checkpoint` if that file exists; without it an existing file is not overwritten.
        progress: show a bar, if tqdm is installed and the environment does not set TQDM_DISABLE.

    Yields:
        num_steps values of `TrainStep`, or those that are left.

    Raises:
        TypeError: integer data.
        FileExistsError: a checkpoint that would be overwritten.
        ValueError: settings out of range, batches without labels for a conditional network, batches that end early,
            a loss or a gradient that is NaN or infinite, a checkpoint that is damaged or of another run.

    >>> from companion import data, networks, predictions, schedules
    >>> net = networks.MLP(2, width=16)
    >>> source = data.batches(data.swiss_roll(256), size=64)
    >>> steps = fit(net, source, schedules.Cosine(), predictions.V, num_steps=3, progress=False)
    >>> [step.index for step in steps]
    [1, 2, 3]
    """
    _checks.count("num_steps", num_steps)
    _checks.count("warmup", warmup, 0)
    _checks.count("accumulate", accumulate)
    refuse_settings(lr, clip, precision)
    _refuse_drop_cond(net, drop_cond)
    run = Run(net, iter(batches), EMA(net, ema_decay, warmup=ema_warmup), precision, generator)
    saving = Saving(run, checkpoint, save_every, {
        "num_steps": num_steps, "lr": lr, "warmup": warmup, "clip": clip, "ema_decay": ema_decay, "ema_warmup":
        ema_warmup, "drop_cond": drop_cond, "precision": precision, "accumulate": accumulate,
    })  # fmt: skip
    if checkpoint is not None:
        saving.look(resume, _fingerprint(schedule, prediction, weight, times, lr_decay))

    def next_loss(index: int) -> Tensor:
        x, cond = next_batch(run.source, net, index, num_steps)
        if cond is not None and drop_cond:
            cond = _drop(cond, drop_cond, net.null_cond, generator)  # type: ignore[arg-type]
        t = times(len(x), generator=generator, device=x.device)
        return losses.denoising_loss(
            run.forward, x, schedule, prediction, cond=cond, weight=weight, t=t, generator=generator
        ).mean()

    rate = rate_of(lr, warmup, num_steps, lr_decay)
    return steps(run, saving, next_loss, rate, num_steps, accumulate, clip, progress)


def _fingerprint(
    schedule: Schedule,
    prediction: Prediction,
    weight: losses.Weight,
    times: Callable[..., Tensor],
    lr_decay: Callable[[float], float],
) -> dict[str, Any]:
    """Return what tells one choice of functions from another: their values at a few points."""
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = prediction.row(alpha, sigma)
    numbers: dict[str, list[Any]] = {
        "schedule": [alpha, sigma],
        "prediction": [a, b, prediction.input_scale(alpha, sigma)],
        "weight": [weight(alpha, sigma, a, b)],
        "lr_decay": [lr_decay(k / 4) for k in range(4)],
    }
    rounded = {
        key: [round(v, 6) for value in values for v in torch.as_tensor(value).double().flatten().tolist()]
        for key, values in numbers.items()
    }
    return {**rounded, "times": getattr(times, "__qualname__", type(times).__qualname__)}


def _refuse_drop_cond(net: nn.Module, drop_cond: float) -> None:
    if not 0 <= drop_cond <= 1:
        raise ValueError(f"drop_cond is {drop_cond}; it is a share and must lie in [0, 1].")
    if drop_cond and getattr(net, "null_cond", None) is None:
        raise ValueError(f"drop_cond is {drop_cond} but {type(net).__name__} has no null_cond: give it num_classes.")


def _drop(cond: Tensor, share: float, null_cond: int, generator: torch.Generator | None) -> Tensor:
    """Replace a share of the conditions (B, *C) by the one that means nothing, filled with null_cond."""
    device = cond.device if generator is None else generator.device
    dropped = torch.rand(len(cond), generator=generator, device=device).to(cond.device) < share
    return cond.masked_fill(_checks.over_batch(dropped, cond), null_cond)
