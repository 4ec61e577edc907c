"""Train the digit classifier that ships with the package: python -m companion.weights.digit_classifier.

About a minute on two CPU cores. It sees only the training split of `data.digits`; the card states its accuracy on
the held-out split.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch

from .. import data, networks, weights


def train(*, num_steps: int = 3000, size: int = 128, lr: float = 2e-3, seed: int = 0) -> networks.Classifier:
    """Return a classifier trained on the digits, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights and dropout draw from the global generator
        net = networks.Classifier(1, 8, 10)
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=num_steps)
        source = data.batches(*data.digits("train"), size=size, generator=generator)
        for _, (x, y) in zip(range(num_steps), source, strict=False):
            assert y is not None
            noisy = x + 0.1 * torch.randn(x.shape, generator=generator)
            loss = torch.nn.functional.cross_entropy(net(noisy), y, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def accuracy(net: networks.Classifier, split: str) -> float:
    """Return the share of a split's digits that are classified right."""
    x, y = data.digits(split)
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def main(argv: list[str] | None = None) -> None:
    """Train, and write the weights and their card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-steps", type=int, default=3000, help="batches to train on (default: 3000)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the noise (default: 0)")
    parser.add_argument("--folder", type=Path, default=weights.FOLDER, help="where to write (default: the package)")
    options = parser.parse_args(argv)
    began = time.perf_counter()
    net = train(num_steps=options.num_steps, seed=options.seed)
    about = {
        "network": "Classifier",
        "arguments": {"channels": 1, "size": 8, "num_classes": 10},
        "data": "data.digits, training split (1,297 images 8x8)",
        "script": "python -m companion.weights.digit_classifier",
        "settings": {"num_steps": options.num_steps, "batch": 128, "lr": 2e-3, "input_noise": 0.1, "smoothing": 0.05},
        "seed": options.seed,
        "seconds": round(time.perf_counter() - began),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "metrics": {f"accuracy, {split}": round(accuracy(net, split), 4) for split in ("train", "held-out")},
    }
    weights.save("digit_classifier", net, about, options.folder)
    print(about["metrics"])


if __name__ == "__main__":
    main()
