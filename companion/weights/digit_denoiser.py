"""Train the digit denoiser that ships with the package: python -m companion.weights.digit_denoiser.

It is class-conditional, and two minutes of two CPU cores make it. It sees only the training split of `data.digits`, and
one digit in ten without its class, so that it also answers for no class; the card states how many of its samples are
what was asked for, and their Frechet distance over its floor.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from .. import data, denoisers, metrics, networks, predictions, samplers, schedules, training, weights
from . import _scripts

ARGUMENTS: dict[str, Any] = {"channels": 1, "width": 16, "multipliers": [1, 2], "attention": [1], "num_classes": 10}
SCHEDULE = schedules.Cosine()
SETTINGS: dict[str, Any] = {"schedule": "Cosine", "prediction": "V", "batch": 96, "lr": 3e-3, "drop_cond": 0.1}


def train(*, num_steps: int = 2000, seed: int = 0, device: str = "cpu") -> networks.UNet:
    """Return a denoising network of the digits, its averaged weights, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights draw from the global generator
        net = networks.UNet(**ARGUMENTS).to(device)
    source = data.batches(*data.digits("train"), size=SETTINGS["batch"], generator=generator)
    options = {name: SETTINGS[name] for name in ("lr", "drop_cond")}
    for _ in training.fit(net, source, SCHEDULE, predictions.V, num_steps=num_steps, generator=generator, **options):
        pass
    return net


def sample(net: networks.UNet, labels: torch.Tensor, seed: int, num_steps: int = 20) -> torch.Tensor:
    """Return one digit (1, 8, 8) for each class in labels, (N, 1, 8, 8)."""
    model = denoisers.from_network(net, SCHEDULE, predictions.V)
    ts, generator = samplers.grid(samplers.adams, SCHEDULE, num_steps), torch.Generator().manual_seed(seed)
    x = samplers.start(SCHEDULE, (len(labels), 1, 8, 8), ts, generator=generator, device=labels.device)
    return samplers.last(samplers.adams(lambda x, t: model(x, t, labels), SCHEDULE, x, ts)).x


def evaluate(net: networks.UNet, draws: int = 3) -> dict[str, float]:
    """Return the share of samples that are as asked, and their Frechet distance over that of held-out digits."""
    judge = weights.load("digit_classifier")
    assert isinstance(judge, networks.Classifier)
    images, labels = data.digits("train")
    held_out, _ = data.digits("held-out")
    floor = metrics.frechet_distance(images, held_out, features=judge.features)
    where = next(net.parameters()).device
    distances, right = [], []
    for seed in range(draws):
        x = sample(net, labels.to(where), seed).cpu()
        distances.append(metrics.frechet_distance(x, held_out, features=judge.features))
        right.append(float((judge(x).argmax(1) == labels).float().mean()))
    mean = sum(distances) / draws
    return {"as asked": round(sum(right) / draws, 4), "Frechet distance over its floor": round(mean / floor, 3)}


def main(argv: list[str] | None = None) -> None:
    """Train, and write the weights and their card."""
    options = _scripts.parser(__doc__, 2000, "--device").parse_args(argv)
    began = time.process_time()
    net = train(num_steps=options.num_steps, seed=options.seed, device=options.device)
    _scripts.ship(
        net, "digit_denoiser", options, began,
        arguments=ARGUMENTS,
        data="data.digits, training split (1,297 images 8x8)",
        settings=SETTINGS,
        metrics=evaluate(net),
        half=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
