"""Training an autoencoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from .. import _checks
from ..networks import Autoencoder
from ._run import EMA, Run, Saving, TrainStep, next_batch, rate_of, refuse_settings, steps


def fit_autoencoder(
    net: Autoencoder,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    *,
    num_steps: int,
    kl_weight: float = 0.0,
    lr: float = 2e-3,
    warmup: int = 100,
    clip: float = 1.0,
    ema_decay: float = 0.999,
    precision: str = "float32",
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    save_every: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Iterator[TrainStep]:
    """Train an autoencoder with Adam to give back what went in, and yield after each step.

    The loss is the mean squared error of a pixel, plus, where kl_weight is above 0, kl_weight times the mean over the
    latent's numbers of their Kullback-Leibler divergence from N(0, 1), with the latent drawn from its posterior
    (Kingma and Welling 2014). The rest is as in `fit`.

    Args:
        net: on the device to train on.
        batches: yields (x, y), such as `data.batches`; y is not looked at.
        num_steps: how many steps of the optimizer.
        kl_weight: at least 0; 0 trains a plain autoencoder and draws nothing.
        lr, warmup, clip, ema_decay, precision, checkpoint, save_every, resume, progress: as in `fit`.
        generator: where the latents' noise comes from.

    Yields:
        num_steps values of `TrainStep`, or those that are left; step.loss includes the KL term.

    Raises:
        TypeError, ValueError, FileExistsError: as `fit`; also a kl_weight that is negative or not finite.

    >>> from companion import data, networks
    >>> net = networks.Autoencoder(1, width=8, multipliers=(1, 2))
    >>> source = data.batches(torch.zeros(8, 1, 8, 8), size=4)
    >>> [step.index for step in fit_autoencoder(net, source, num_steps=2, progress=False)]
    [1, 2]
    """
    _checks.count("num_steps", num_steps)
    _checks.count("warmup", warmup, 0)
    if not 0 <= kl_weight < float("inf"):
        raise ValueError(f"kl_weight is {kl_weight}; it must be finite and at least 0.")
    refuse_settings(lr, clip, precision)
    run = Run(net, iter(batches), EMA(net, ema_decay), precision, generator)
    saving = Saving(run, checkpoint, save_every, {
        "num_steps": num_steps, "kl_weight": kl_weight, "lr": lr, "warmup": warmup, "clip": clip, "ema_decay":
        ema_decay, "precision": precision,
    })  # fmt: skip
    if checkpoint is not None:
        saving.look(resume, {})

    def next_loss(index: int) -> Tensor:
        x, _ = next_batch(run.source, net, index, num_steps)
        with run.autocast():
            mean, log_variance = net.posterior(x)
            z = mean
            if kl_weight:
                z = mean + (log_variance / 2).exp() * _checks.randn(mean.shape, mean.detach(), generator)
            restored = net.decode(z)
        loss = (restored.float() - x).square().mean()
        return loss + kl_weight * kl_divergence(mean, log_variance).mean() if kl_weight else loss

    return steps(run, saving, next_loss, rate_of(lr, warmup, num_steps), num_steps, 1, clip, progress)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the divergence of N(mean, exp(log_variance)) from N(0, 1) in nats, of the shape of both, in float32.

    >>> kl_divergence(torch.tensor([0.0, 1.0]), torch.zeros(2)).tolist()
    [0.0, 0.5]
    """
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
