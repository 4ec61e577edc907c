"""Train the autoencoder of clothes that ships with the package: python -m companion.weights.fashion_autoencoder.

It takes 32x32x1 to 8x8x4 and back, and six minutes of one CPU core make it, from the training split of `data.fashion`,
the full set unless told otherwise. The card states the error on images held out.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch

from .. import data, networks, training, weights
from .fashion_classifier import described

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


@torch.no_grad()
def evaluate(net: networks.Autoencoder) -> dict[str, float]:
    """Return the PSNR in dB on the subset held out: of all pixels pooled, and the mean and quantiles over images."""
    x = data.fashion("held-out", size=32)[0]
    device = next(net.parameters()).device
    error = (net(x.to(device)).cpu().clamp(-1, 1) - x).square().mean((1, 2, 3))
    each = 10 * torch.log10(4 / error)
    figures = {"pooled": 10 * torch.log10(4 / error.mean()), "mean": each.mean()}
    figures |= {f"{name} quantile": each.quantile(q) for name, q in (("0.1", 0.1), ("0.5", 0.5), ("0.9", 0.9))}
    return {f"held-out PSNR, {name}": round(float(value), 2) for name, value in figures.items()}


def main(argv: list[str] | None = None) -> None:
    """Train, and write the weights and their card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-steps", type=int, default=2000, help="batches to train on (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the noise (default: 0)")
    parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--source", default="full", help='of data.fashion: "full", "subset" or a folder')
    parser.add_argument("--folder", type=Path, default=weights.FOLDER, help="where to write (default: the package)")
    parser.add_argument("--checkpoint", type=Path, help="a file to save the run in and to go on from")
    options = parser.parse_args(argv)
    began = time.process_time()
    net = train(
        num_steps=options.num_steps, seed=options.seed, device=options.device,
        source=options.source, checkpoint=options.checkpoint,
    )  # fmt: skip
    about = {
        "network": "Autoencoder",
        "arguments": ARGUMENTS,
        "data": f"data.fashion, training split, {described(options.source)}, 32x32",
        "script": f"python -m companion.weights.{NAME}",
        "settings": {"num_steps": options.num_steps, **SETTINGS},
        "seed": options.seed,
        "seconds": round(time.process_time() - began, 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "metrics": evaluate(net),
    }
    weights.save(NAME, net.cpu().half(), about, options.folder)
    print(about["metrics"])


if __name__ == "__main__":
    main()
