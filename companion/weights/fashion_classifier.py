"""Train the judge of clothes that ships with the package: python -m companion.weights.fashion_classifier.

Two minutes of one CPU core make it. It sees the training split of `data.fashion` at 32x32, the full set unless told
otherwise; the card states its accuracy on both splits of the subset. Its features tell how far samples are from data.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from .. import data, networks
from . import _scripts

NAME = "fashion_classifier"
ARGUMENTS: dict[str, Any] = {"channels": 1, "size": 32, "num_classes": 10, "width": 16}
SETTINGS: dict[str, Any] = {"batch": 128, "lr": 2e-3, "input_noise": 0.1, "smoothing": 0.05}


def train(
    *, num_steps: int = 2000, seed: int = 0, device: str = "cpu", source: str | Path = "full"
) -> networks.Classifier:
    """Return a classifier of clothes in evaluation mode, rounded to half precision, in which it ships."""
    generator = torch.Generator().manual_seed(seed)
    batches = data.batches(*data.fashion("train", source=source, size=32), size=SETTINGS["batch"], generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights and dropout draw from the global generator
        net = networks.Classifier(**ARGUMENTS).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=SETTINGS["lr"], weight_decay=0.01)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, SETTINGS["lr"], total_steps=num_steps)
        for _, (x, y) in zip(range(num_steps), batches, strict=False):
            assert y is not None
            noisy = x + SETTINGS["input_noise"] * torch.randn(x.shape, generator=generator)
            scores = net(noisy.to(device))
            loss = torch.nn.functional.cross_entropy(scores, y.to(device), label_smoothing=SETTINGS["smoothing"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return net.half().float().eval()


@torch.no_grad()
def evaluate(net: networks.Classifier) -> dict[str, float]:
    """Return the share of the subset's images that are classified right."""
    device, found = next(net.parameters()).device, {}
    for split in ("train", "held-out"):
        x, y = data.fashion(split, size=32)
        found[f"accuracy, {split}"] = round(float((net(x.to(device)).argmax(1).cpu() == y).float().mean()), 4)
    return found


def main(argv: list[str] | None = None) -> None:
    """Train, and write the weights and their card."""
    options = _scripts.parser(__doc__, 2000, "--device", "--source").parse_args(argv)
    began = time.process_time()
    net = train(num_steps=options.num_steps, seed=options.seed, device=options.device, source=options.source)
    _scripts.ship(
        net, NAME, options, began,
        arguments=ARGUMENTS,
        data=f"data.fashion, training split, {_scripts.described(options.source)}, 32x32",
        settings=SETTINGS,
        metrics=evaluate(net),
    )  # fmt: skip


if __name__ == "__main__":
    main()
