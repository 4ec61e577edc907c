"""Train the autoencoder of clothes that ships with the package: python -m companion.weights.fashion_autoencoder.

It takes 32x32x1 to 8x8x4 and back, and six minutes of one CPU core make it, from the training split of `data.fashion`,
the full set unless told otherwise. The card states the error on images held out.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from .. import data, networks, training
from . import _scripts

NAME = "fashion_autoencoder"
ARGUMENTS: dict[str, Any] = {"channels": 1, "width": 16, "multipliers": [1, 2, 4], "latent": 4, "blocks": 1}
SETTINGS: dict[str, Any] = {"batch": 64, "lr": 2e-3, "kl_weight": 1e-4, "precision": "bfloat16"}


def train(
    *,
    num_steps: int = 2000,
    seed: int = 0,
    device: str = "cpu",
    source: str | Path = "full",
    checkpoint: Path | None = None,
) -> networks.Autoencoder:
    """Return the autoencoder, its averaged weights rounded to half precision; a checkpoint is gone on from."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights draw from the global generator
        net = networks.Autoencoder(**ARGUMENTS).to(device)
    batches = data.batches(
        data.fashion("train", source=source, size=32)[0], size=SETTINGS["batch"], generator=generator
    )
    options = {name: value for name, value in SETTINGS.items() if name != "batch"}
    for step in training.fit_autoencoder(
        net, batches, num_steps=num_steps, generator=torch.Generator().manual_seed(seed + 1), checkpoint=checkpoint,
        save_every=None if checkpoint is None else 200, resume=True, **options,
    ):  # fmt: skip
        if step.index % 200 == 0:
            print(step.index, f"{float(step.loss):.4f}", flush=True)
    return net.half().float()


def evaluate(net: networks.Autoencoder) -> dict[str, float]:
    """Return the PSNR in dB on the subset held out: of all pixels pooled, and the mean and quantiles over images."""
    return _scripts.restored(net, data.fashion("held-out", size=32)[0])


def main(argv: list[str] | None = None) -> None:
    """Train, and write the weights and their card."""
    options = _scripts.parser(__doc__, 2000, "--device", "--source", "--checkpoint").parse_args(argv)
    began = time.process_time()
    net = train(
        num_steps=options.num_steps, seed=options.seed, device=options.device, source=options.source,
        checkpoint=options.checkpoint,
    )  # fmt: skip
    _scripts.ship(
        net, NAME, options, began,
        arguments=ARGUMENTS,
        data=f"data.fashion, training split, {_scripts.described(options.source)}, 32x32",
        settings=SETTINGS,
        metrics=evaluate(net),
    )  # fmt: skip


if __name__ == "__main__":
    main()
