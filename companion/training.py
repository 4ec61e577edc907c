"""Training: a loop that yields its state, and the averaged weights that sampling wants."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import _checks, losses
from .predictions import Prediction
from .schedules import Schedule


class EMA:
    """A running average of a network's weights, `ema.net`, whose decay warms up.

    After k updates the decay is min(decay, (1 + k) / (10 + k)), so the random initial weights are soon forgotten.
    Buffers are copied, not averaged.

    Args:
        net: the network that trains; it is copied, not changed.
        decay: in [0, 1).

    >>> net = nn.Linear(1, 1)
    >>> ema = EMA(net)
    >>> ema.update(net)
    >>> bool(torch.allclose(ema.net.weight, net.weight))
    True
    """

    def __init__(self, net: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must lie in [0, 1): 0.999 averages over about 1,000 steps.")
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average towards the weights of `net`."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for mine, theirs in zip(self.net.parameters(), net.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - decay)
        for buffer, source in zip(self.net.buffers(), net.buffers(), strict=True):
            buffer.copy_(source)


@dataclass(frozen=True, eq=False)
class TrainStep:
    """What `fit` yields after each step."""

    index: int
    """The step, counted from 1."""
    loss: Tensor
    """The batch's mean loss, a 0-dim tensor without graph: float(step.loss) waits for the accelerator."""
    ema: nn.Module
    """The averaged network so far, in evaluation mode; it changes as training goes on."""


def fit(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    schedule: Schedule,
    prediction: Prediction,
    *,
    num_steps: int,
    lr: float = 2e-3,
    warmup: int = 100,
    clip: float = 1.0,
    ema_decay: float = 0.999,
    drop_cond: float = 0.0,
    weight: losses.Weight = losses.simple,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Iterator[TrainStep]:
    """Train a denoising network with Adam, and yield after each step.

    The learning rate rises over `warmup` steps and then falls to 0 along a half cosine; gradients are clipped; an
    average of the weights is kept. When the loop is exhausted, `net` holds the averaged weights and is in evaluation
    mode.

    Args:
        net: net(x, t, cond) -> a tensor of x's shape, on the device to train on.
        batches: yields (x, cond), such as `data.batches`; cond may be None.
        num_steps: how many batches to train on.
        lr: the highest learning rate.
        warmup: steps over which the learning rate rises from 0.
        clip: the largest norm of the gradient.
        ema_decay: of the averaged weights.
        drop_cond: the share of conditions replaced by net.null_cond, for classifier-free guidance.
        weight: of the loss.
        generator: where times, noise and dropped conditions come from.
        progress: show a bar, if tqdm is installed and the environment does not set TQDM_DISABLE.

    Yields:
        num_steps values of `TrainStep`.

    Raises:
        TypeError: integer data.
        ValueError: settings out of range, batches without labels for a conditional network, batches that end early,
            a loss that is NaN or infinite.

    >>> from companion import data, networks, predictions, schedules
    >>> net = networks.MLP(2, width=16)
    >>> source = data.batches(data.swiss_roll(256), size=64)
    >>> steps = fit(net, source, schedules.Cosine(), predictions.V, num_steps=3, progress=False)
    >>> [step.index for step in steps]
    [1, 2, 3]
    """
    _checks.count("num_steps", num_steps)
    _checks.count("warmup", warmup, 0)
    if not (0 < lr < math.inf and clip > 0):
        raise ValueError(f"lr is {lr} and clip {clip}; both must be positive.")
    if not 0 <= drop_cond <= 1:
        raise ValueError(f"drop_cond is {drop_cond}; it is a share and must lie in [0, 1].")
    if drop_cond and getattr(net, "null_cond", None) is None:
        raise ValueError(f"drop_cond is {drop_cond} but {type(net).__name__} has no null_cond: give it num_classes.")
    ema = EMA(net, ema_decay)
    fused = next(net.parameters()).device.type in ("cpu", "cuda")  # one kernel instead of a dozen
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, fused=fused)
    source = iter(batches)

    def run() -> Iterator[TrainStep]:
        net.train()
        for index in _bar(num_steps, progress):
            x, cond = _next_batch(source, net, index, num_steps)
            if cond is not None and drop_cond:
                cond = _drop(cond, drop_cond, net.null_cond, generator)  # type: ignore[arg-type]
            for group in optimizer.param_groups:
                group["lr"] = lr * _lr_factor(index, num_steps, warmup)
            with torch.enable_grad():
                loss = losses.denoising_loss(
                    net, x, schedule, prediction, cond=cond, weight=weight, generator=generator
                ).mean()
                _refuse_bad_loss(loss.detach(), index, num_steps)
                optimizer.zero_grad()
                loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            ema.update(net)
            yield TrainStep(index, loss.detach(), ema.net)
        net.load_state_dict(ema.net.state_dict())
        net.eval()

    return run()


def _next_batch(
    source: Iterator[tuple[Tensor, Tensor | None]], net: nn.Module, index: int, num_steps: int
) -> tuple[Tensor, Tensor | None]:
    """Return the next (x, cond) on the network's device."""
    try:
        x, cond = next(source)
    except StopIteration:
        raise ValueError(f"the batches ended at step {index} of {num_steps}: data.batches goes on for ever.") from None
    if cond is None and getattr(net, "null_cond", None) is not None:
        raise ValueError("the network takes classes but the batches give none: use data.batches(x, y, size=...).")
    device = next(net.parameters()).device
    return x.to(device), None if cond is None else cond.to(device)


def _drop(cond: Tensor, share: float, null_cond: int, generator: torch.Generator | None) -> Tensor:
    """Replace a share of the conditions by the one that means nothing."""
    device = cond.device if generator is None else generator.device
    dropped = torch.rand(len(cond), generator=generator, device=device).to(cond.device) < share
    return cond.masked_fill(dropped, null_cond)


def _lr_factor(index: int, num_steps: int, warmup: int) -> float:
    """Return the learning rate at a step, counted from 1, as a share of its highest."""
    done = max(0, index - 1 - warmup) / max(1, num_steps - warmup)
    return min(1.0, index / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * done))


def _refuse_bad_loss(loss: Tensor, index: int, num_steps: int) -> None:
    look = loss.device.type == "cpu" or index % 100 == 0 or index == num_steps  # a look stops an accelerator's queue
    if look and not bool(torch.isfinite(loss)):
        raise ValueError(
            f"the loss at step {index} is {float(loss):g}; it must be finite: lower lr, and look for NaN or a wrong "
            f"range in the data."
        )


def _bar(num_steps: int, progress: bool) -> Iterable[int]:
    indices = range(1, num_steps + 1)
    if not progress or os.environ.get("TQDM_DISABLE"):  # the notebook bar of tqdm does not look there itself
        return indices
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return indices
    return tqdm(indices, desc="training", leave=False)
