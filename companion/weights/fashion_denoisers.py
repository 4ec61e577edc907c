"""Train the two denoisers of clothes that ship with the package: python -m companion.weights.fashion_denoisers pixels.

Or "latents" in the place of "pixels". The one works on 32x32 pixels, the other on the 8x8x4 latents of
`fashion_autoencoder`; both are class-conditional U-Nets and see the training split of `data.fashion`, the full set
unless told otherwise, one image in ten without its class. Each takes about a quarter of an hour of one CPU core.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import data, denoisers, latents, metrics, networks, predictions, samplers, schedules, training, weights
from . import _scripts

SCHEDULE = schedules.Cosine()
ARGUMENTS: dict[str, dict[str, Any]] = {
    "pixels": {"channels": 1, "width": 16, "multipliers": [1, 2, 4], "attention": [2], "num_classes": 10},
    "latents": {"channels": 4, "width": 20, "multipliers": [1, 2], "attention": [0, 1], "num_classes": 10},
}
COMMON: dict[str, Any] = {"schedule": "Cosine", "prediction": "V", "drop_cond": 0.1, "precision": "bfloat16"}
SETTINGS: dict[str, dict[str, Any]] = {
    "pixels": {"num_steps": 2400, "batch": 64, "lr": 2e-3, **COMMON},
    "latents": {"num_steps": 9000, "batch": 128, "lr": 3e-3, **COMMON},
}


def space() -> latents.LatentSpace:
    """Return the latent space of the shipped autoencoder, measured on the subset's first 1,000 training images.

    >>> space().shape
    (4, 8, 8)
    """
    net = weights.load("fashion_autoencoder")
    assert isinstance(net, networks.Autoencoder)
    return latents.LatentSpace.measure(net, data.fashion("train", size=32)[0][:1000])


def train(
    kind: str,
    *,
    num_steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    source: str | Path = "full",
    checkpoint: Path | None = None,
) -> networks.UNet:
    """Return a denoising network, its averaged weights rounded to half precision; a checkpoint is gone on from."""
    settings = SETTINGS[kind]
    x, y = data.fashion("train", source=source, size=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights draw from the global generator
        net = networks.UNet(**ARGUMENTS[kind]).to(device)
        x = space().encode(x) if kind == "latents" else x
    batches = data.batches(x, y, size=settings["batch"], generator=torch.Generator().manual_seed(seed))
    for step in training.fit(
        net, batches, SCHEDULE, predictions.V, num_steps=num_steps or settings["num_steps"],
        generator=torch.Generator().manual_seed(seed + 1), checkpoint=checkpoint,
        save_every=None if checkpoint is None else 200, resume=True,
        **{name: settings[name] for name in ("lr", "drop_cond", "precision")},
    ):  # fmt: skip
        if step.index % 200 == 0:
            print(step.index, f"{float(step.loss):.4f}", flush=True)
    return net.half().float()


def sample(
    net: networks.UNet,
    labels: Tensor,
    *,
    num_calls: int,
    seed: int = 0,
    batch: int = 250,
    schedule: schedules.Schedule = SCHEDULE,
) -> Tensor:
    """Return one sample for each class in labels (N,), what the network draws: pixels or latents."""
    model, ts = denoisers.from_network(net, schedule, predictions.V), samplers.grid(samplers.adams, schedule, num_calls)
    shape = (1, 32, 32) if net.channels == 1 else (net.channels, 8, 8)
    start = samplers.start(
        schedule, (len(labels), *shape), ts, generator=torch.Generator().manual_seed(seed), device=labels.device
    )
    parts = []
    for x, y in zip(start.split(batch), labels.split(batch), strict=True):
        parts.append(samplers.last(samplers.adams(lambda x, t, y=y: model(x, t, y), schedule, x, ts)).x)
    return torch.cat(parts)


def distance(x: Tensor) -> float:
    """Return the Frechet distance of images (N, 1, 32, 32) from the subset's training split."""
    judge = weights.load("fashion_classifier")
    assert isinstance(judge, networks.Classifier)
    return metrics.frechet_distance(x.clamp(-1, 1), data.fashion("train", size=32)[0], features=judge.features)


def evaluate(kind: str, net: networks.UNet, count: int = 1000) -> dict[str, float]:
    """Return the Frechet distance of samples of 20 calls, and that of images held out."""
    labels = torch.arange(count, device=next(net.parameters()).device) % 10
    x = sample(net, labels, num_calls=20).cpu()
    x = space().decode(x) if kind == "latents" else x
    held_out = data.fashion("held-out", size=32)[0][:count]
    return {
        "Frechet distance, 20 calls": round(distance(x), 3),
        "Frechet distance, floor": round(distance(held_out), 3),
    }


def main(argv: list[str] | None = None) -> None:
    """Train, and write the weights and their card."""
    parser = _scripts.parser(__doc__, None, "--device", "--source", "--checkpoint")
    parser.add_argument("kind", choices=tuple(SETTINGS))
    options = parser.parse_args(argv)
    began, kind = time.process_time(), options.kind
    net = train(
        kind, num_steps=options.num_steps, seed=options.seed, device=options.device, source=options.source,
        checkpoint=options.checkpoint,
    )  # fmt: skip
    _scripts.ship(
        net, f"fashion_{kind}_denoiser", options, began,
        arguments=ARGUMENTS[kind],
        data=f"data.fashion, training split, {_scripts.described(options.source)}, 32x32"
        + " as latents" * (kind == "latents"),
        settings=SETTINGS[kind],
        metrics=evaluate(kind, net),
        script=f"fashion_denoisers {kind}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
