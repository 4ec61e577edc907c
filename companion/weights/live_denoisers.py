"""Train the small denoisers of points that run in the page: python -m companion.weights.live_denoisers.

Each takes a minute or two of one CPU core, is small enough for a phone, and is stored in half precision. `live_roll`
draws the Swiss roll. `live_modes` draws the six clusters of chapter 9 in two classes, and the class is hidden from one
point in six, so that it also answers for no class. The cards state how far samples are from the data, over what fresh
points are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import data, denoisers, metrics, networks, predictions, samplers, schedules, training
from . import _scripts

SCHEDULE = schedules.Cosine()
MODES = torch.tensor([[-1.2, 0.5], [-0.2, 0.9], [0.9, 0.5], [-1.2, -0.4], [0.0, -0.1], [0.8, -0.8]])
"""The middles of the clusters; the first three are class 0, the others class 1."""
SPREAD = 0.3
"""The standard deviation of each cluster."""
ARGUMENTS: dict[str, dict[str, Any]] = {
    "live_roll": {"dim": 2, "width": 32, "depth": 3},
    "live_modes": {"dim": 2, "width": 32, "depth": 3, "num_classes": 2},
}
SETTINGS: dict[str, Any] = {"schedule": "Cosine", "prediction": "V", "batch": 512, "lr": 3e-3, "num_steps": 5000}
DROP_COND = 1 / 6
DATA = {"live_roll": "data.swiss_roll, 200,000 points", "live_modes": "200,000 points of six round Gaussians"}


def modes(n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw points of six clusters, with their class.

    Returns:
        x (n, 2) float32; y (n,) int64, 0 for the upper three clusters and 1 for the lower three.

    >>> x, y = modes(7)
    >>> x.shape, sorted(set(y.tolist()) | {0, 1})
    (torch.Size([7, 2]), [0, 1])
    """
    cluster = torch.randint(len(MODES), (n,), generator=generator)
    return MODES[cluster] + SPREAD * torch.randn(n, 2, generator=generator), cluster // 3


def train(name: str, *, num_steps: int | None = None, seed: int = 0) -> networks.MLP:
    """Return a denoising network, its averaged weights rounded to half precision, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights draw from the global generator
        net = networks.MLP(**ARGUMENTS[name])
    size, options = SETTINGS["batch"], {"lr": SETTINGS["lr"], "generator": generator}
    if name == "live_roll":
        source = data.batches(data.swiss_roll(200_000, generator=generator), size=size, generator=generator)
    else:
        source = data.batches(*modes(200_000, generator=generator), size=size, generator=generator)
        options["drop_cond"] = DROP_COND
    steps = num_steps or SETTINGS["num_steps"]
    for _ in training.fit(net, source, SCHEDULE, predictions.V, num_steps=steps, **options):
        pass
    return net.half().float().eval()


def sample(net: networks.MLP, n: int, cond: int | None, generator: torch.Generator) -> Tensor:
    """Return n points (n, 2) after 20 steps of DPM++ 2M; cond is a class or None."""
    model = denoisers.from_network(net, SCHEDULE, predictions.V)
    ts = samplers.grid(samplers.dpmpp_2m, SCHEDULE, 20)
    x = samplers.start(SCHEDULE, (n, 2), ts, generator=generator)
    told = None if cond is None else torch.full((n,), cond)
    return samplers.last(samplers.dpmpp_2m(lambda x, t: model(x, t, told), SCHEDULE, x, ts)).x


def evaluate(name: str, net: networks.MLP, draws: int = 8, n: int = 3000) -> dict[str, float]:
    """Return the sliced Wasserstein distance of samples over that of fresh points, for each class and for none."""
    generator, found = torch.Generator().manual_seed(1000), {}

    def fresh(cond: int | None) -> Tensor:
        if name == "live_roll":
            return data.swiss_roll(n, generator=generator)
        x, y = modes(4 * n, generator=generator)
        return (x if cond is None else x[y == cond])[:n]

    metric: Callable[[Tensor, Tensor], float] = metrics.sliced_wasserstein
    for cond in (None, *range(net.num_classes or 0)):
        floor = sum(metric(fresh(cond), fresh(cond)) for _ in range(3 * draws)) / 3
        distance = sum(metric(sample(net, n, cond, generator), fresh(cond)) for _ in range(draws))
        asked = "" if net.num_classes is None else ", no class" if cond is None else f", class {cond}"
        found[f"sliced Wasserstein distance over its floor{asked}"] = round(distance / floor, 2)
    return found


def main(argv: list[str] | None = None) -> None:
    """Train, and write the weights and their card."""
    parser = _scripts.parser(__doc__, None)
    parser.add_argument("name", choices=list(ARGUMENTS), help="which network")
    options = parser.parse_args(argv)
    began = time.process_time()
    net = train(options.name, num_steps=options.num_steps, seed=options.seed)
    _scripts.ship(
        net, options.name, options, began,
        arguments=ARGUMENTS[options.name],
        data=DATA[options.name],
        settings=SETTINGS | ({"drop_cond": DROP_COND} if net.num_classes else {}),
        metrics=evaluate(options.name, net),
        script=f"live_denoisers {options.name}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
