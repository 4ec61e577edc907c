"""Draw the two pictures of the front page into book/_static: python scripts/front_page.py (about two minutes)."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from companion import data, denoisers, networks, plots, predictions, samplers, schedules, training

FOLDER = Path(__file__).parents[1] / "book" / "_static"
SCHEDULE = schedules.Cosine()


def save(figure: Figure, name: str) -> None:
    """Write a figure without a margin."""
    figure.savefig(FOLDER / name, dpi=110, bbox_inches="tight", pad_inches=0.04, metadata={"Software": None})


def roll() -> None:
    """Noise, three stages, and the Swiss roll, by a network trained for 4,000 steps."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = networks.MLP(2, width=96)
    source = data.batches(data.swiss_roll(20_000, generator=generator), size=512, generator=generator)
    for _ in training.fit(net, source, SCHEDULE, predictions.V, num_steps=4000, generator=generator):
        pass
    model = denoisers.from_network(net, SCHEDULE, predictions.V)
    ts = SCHEDULE.time_grid(20)
    x = samplers.start(SCHEDULE, (2000, 2), ts, generator=generator)
    path = [x] + [step.x for step in samplers.dpmpp_2m(model, SCHEDULE, x, ts)]
    save(
        plots.points({f"t = {float(ts[i]):.2f}": path[i] for i in (0, 11, 13, 15, 20)}, width=1.8), "noise-to-roll.png"
    )


def digits() -> None:
    """One digit of each class, by the network of chapter 5."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = networks.UNet(1, width=16, multipliers=(1, 2), blocks=1, attention=(1,), num_classes=10)
    source = data.batches(*data.digits("train"), size=96, generator=generator)
    for _ in training.fit(net, source, SCHEDULE, predictions.V, num_steps=900, lr=3e-3, generator=generator):
        pass
    model = denoisers.from_network(net, SCHEDULE, predictions.V)
    ts = SCHEDULE.time_grid(20)
    x = samplers.start(SCHEDULE, (10, 1, 8, 8), ts, generator=generator)
    asked = torch.arange(10)
    drawn = samplers.last(samplers.dpmpp_2m(lambda x, t: model(x, t, asked), SCHEDULE, x, ts)).x
    save(plots.images(drawn, titles=[str(c) for c in range(10)], size=0.9), "digits-on-request.png")


if __name__ == "__main__":
    roll()
    digits()
