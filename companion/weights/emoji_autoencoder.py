"""Train the autoencoder of the emoji that ships with the package: python -m companion.weights.emoji_autoencoder.

It takes 32x32x3 to 8x8x4 and back, and under an hour of two CPU cores makes it. One emoji in ten is held out, in every
colour. A batch is half emoji as they are (turned, mirrored, moved, their colour channels swapped), a quarter objects
of the coloured set and a quarter scenes of two. The card states the error on the emoji held out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import data, networks, training
from . import _scripts

NAME = "emoji_autoencoder"
ARGUMENTS: dict[str, Any] = {"channels": 3, "width": 32, "multipliers": [1, 2, 4], "latent": 4, "blocks": 1}
SETTINGS: dict[str, Any] = {"batch": 32, "lr": 2e-3, "kl_weight": 1e-4, "ema_decay": 0.998, "precision": "bfloat16"}
HELD_OUT = 159


def split() -> tuple[Tensor, Tensor]:
    """Return the numbers of the emoji to train on (1,432) and of those held out (159)."""
    order = torch.randperm(len(data.emoji().x), generator=torch.Generator().manual_seed(0))
    return order[HELD_OUT:], order[:HELD_OUT]


class Pictures:
    """Batches of emoji, coloured objects and scenes, none of which shows an emoji held out."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        everything, coloured = data.emoji(), data.coloured_emoji("train")
        shown, hidden = split()
        names = {everything.names[k] for k in hidden.tolist()}
        allowed = torch.tensor([name not in names for name in data.emoji_objects()])[coloured.objects]
        self.emoji, self.size, self.generator = everything.x[shown], size, generator
        self.x, self.objects, self.colours = coloured.x[allowed], coloured.objects[allowed], coloured.colours[allowed]

    def __iter__(self) -> Iterator[tuple[Tensor, None]]:
        return self

    def __next__(self) -> tuple[Tensor, None]:
        half, quarter = self.size // 2, self.size // 4
        plain = moved(self.emoji[self._draw(len(self.emoji), half)], self.generator)
        pairs = self._draw(len(self.x), 2, quarter)
        scenes = data.compose(self.objects[pairs].T, self.colours[pairs].T, self._draw(len(data.RELATIONS), quarter))
        single = self.x[self._draw(len(self.x), self.size - half - quarter)]
        return torch.cat([plain, single, scenes.x]), None

    def _draw(self, most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Return where the iterator is."""
        return {"generator": self.generator.get_state(), "size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken."""
        self.generator.set_state(state["generator"])


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return each picture (N, 3, 32, 32) turned, mirrored, moved by up to 3 pixels, its channels in any order."""
    orders = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    out = []
    for picture, (order, turn, mirror, down, right) in zip(
        x, torch.randint(2 * 3 * 4 * 7, (len(x), 5), generator=generator).tolist(), strict=True
    ):
        y = torch.rot90(picture[orders[order % 6]], turn % 4, (1, 2))
        y = y.flip(2) if mirror % 2 else y
        y = pad(y, (3, 3, 3, 3), value=1.0)
        out.append(y[:, down % 7 : down % 7 + 32, right % 7 : right % 7 + 32])
    return torch.stack(out)


def train(
    *, num_steps: int = 9000, seed: int = 0, device: str = "cpu", checkpoint: Path | None = None
) -> networks.Autoencoder:
    """Return the autoencoder, its averaged weights rounded to half precision; a checkpoint is gone on from."""
    options = {name: value for name, value in SETTINGS.items() if name != "batch"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights draw from the global generator
        net = networks.Autoencoder(**ARGUMENTS).to(device)
    source = Pictures(SETTINGS["batch"], torch.Generator().manual_seed(seed))
    for step in training.fit_autoencoder(
        net, source, num_steps=num_steps, generator=torch.Generator().manual_seed(seed + 1), checkpoint=checkpoint,
        save_every=None if checkpoint is None else 500, resume=True, **options,
    ):  # fmt: skip
        if step.index % 500 == 0:
            print(step.index, evaluate(step.ema), flush=True)
    return net.half().float()


def evaluate(net: torch.nn.Module) -> dict[str, float]:
    """Return the PSNR in dB on the emoji held out: of all pixels pooled, and the mean and quantiles over the emoji."""
    return _scripts.restored(net, data.emoji().x[split()[1]])


def main(argv: list[str] | None = None) -> None:
    """Train, and write the weights and their card."""
    options = _scripts.parser(__doc__, 9000, "--device", "--checkpoint").parse_args(argv)
    began = time.process_time()
    net = train(num_steps=options.num_steps, seed=options.seed, device=options.device, checkpoint=options.checkpoint)
    _scripts.ship(
        net, NAME, options, began,
        arguments=ARGUMENTS,
        data="data.emoji without 159 held out, data.coloured_emoji and scenes without them",
        settings=SETTINGS,
        metrics=evaluate(net),
    )  # fmt: skip


if __name__ == "__main__":
    main()
