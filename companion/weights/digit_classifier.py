"""Train the digit classifier that ships with the package: python -m companion.weights.digit_classifier.

About a minute on two CPU cores. It sees only the training split of `data.digits`; the card states its accuracy on
the held-out split.
"""

from __future__ import annotations

import time

import torch

from .. import data, networks
from . import _scripts


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
    options = _scripts.parser(__doc__, 3000).parse_args(argv)
    began = time.process_time()
    net = train(num_steps=options.num_steps, seed=options.seed)
    _scripts.ship(
        net, "digit_classifier", options, began,
        arguments={"channels": 1, "size": 8, "num_classes": 10},
        data="data.digits, training split (1,297 images 8x8)",
        settings={"batch": 128, "lr": 2e-3, "input_noise": 0.1, "smoothing": 0.05},
        metrics={f"accuracy, {split}": round(accuracy(net, split), 4) for split in ("train", "held-out")},
        half=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
