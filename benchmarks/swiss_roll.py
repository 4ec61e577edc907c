"""How close do samples of the Swiss roll come to fresh data? Three trained networks beside the exact denoiser.

    python benchmarks/swiss_roll.py            # about ten minutes on two CPU cores

Writes companion/results/swiss_roll.json, which chapter 5 reads. Every row is the mean 2-Wasserstein distance between
3,000 samples and 3,000 fresh points over all draws, as a ratio to the floor, the same distance between two sets of
fresh points. Draw i of a row uses the same fresh points, the same starting noise and the same fresh noise as draw i of
every other row, so that rows differ by what they are about.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import scipy
import torch
from torch import Tensor

from companion import data, denoisers, metrics, networks, predictions, samplers, schedules, training

OUT = Path(__file__).parents[1] / "companion" / "results" / "swiss_roll.json"
SETTINGS = {"width": 96, "depth": 3, "num_steps": 3300, "batch": 512, "lr": 2e-3}
SCHEDULE = schedules.Cosine()


def train(seed: int, num_steps: int) -> denoisers.NetworkDenoiser:
    """Train the network of chapter 5."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    points = data.swiss_roll(200_000, generator=generator)
    net = networks.MLP(2, width=SETTINGS["width"], depth=SETTINGS["depth"])
    source = data.batches(points, size=SETTINGS["batch"], generator=generator)
    for _ in training.fit(
        net,
        source,
        SCHEDULE,
        predictions.V,
        num_steps=num_steps,
        lr=SETTINGS["lr"],
        generator=generator,
        progress=False,
    ):
        pass
    return denoisers.from_network(net, SCHEDULE, predictions.V)


def exact_denoiser(components: int = 1000) -> denoisers.GaussianMixture:
    """Return the Swiss roll's own denoiser: it is a mixture of Gaussians along its middle line."""
    means = data.swiss_roll_curve((torch.arange(components) + 0.5) / components)
    return denoisers.GaussianMixture(
        means, torch.full((components,), (0.5 / data.SWISS_ROLL_SCALE) ** 2), torch.ones(components), SCHEDULE
    )


def sample(denoiser: denoisers.Denoiser, sampler: str, num_points: int, seed: int) -> Tensor:
    """Draw samples with one of the chapter's three samplers."""
    generator = torch.Generator().manual_seed(seed)
    ts = SCHEDULE.time_grid(20) if sampler == "dpmpp_2m, 20" else SCHEDULE.time_grid(40, spacing="uniform")
    x = samplers.start(SCHEDULE, (num_points, 2), ts, generator=generator)
    if sampler == "dpmpp_2m, 20":
        return samplers.last(samplers.dpmpp_2m(denoiser, SCHEDULE, x, ts)).x
    variance = sampler.removeprefix("ddpm, 40, ")
    return samplers.last(samplers.ddpm(denoiser, SCHEDULE, x, ts, variance=variance, generator=generator)).x


def main(argv: list[str] | None = None) -> None:
    """Train, draw, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings (default: 3)")
    parser.add_argument("--draws", type=int, default=8, help="draws for each training (default: 8)")
    parser.add_argument("--points", type=int, default=3000, help="points in a draw (default: 3000)")
    parser.add_argument("--num-steps", type=int, default=SETTINGS["num_steps"], help="of training")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)

    seconds, models = [], []
    for seed in range(options.seeds):
        began = time.perf_counter()
        models.append(train(seed, options.num_steps))
        seconds.append(round(time.perf_counter() - began, 1))
        print(f"training {seed}: {seconds[-1]} s", flush=True)
    exact = exact_denoiser()
    names = ("dpmpp_2m, 20", "ddpm, 40, posterior", "ddpm, 40, upper")
    distances: dict[str, list[float]] = {"floor": []}
    for draw in range(options.seeds * options.draws):
        generator = torch.Generator().manual_seed(10_000 + draw)
        fresh, other = (data.swiss_roll(options.points, generator=generator) for _ in range(2))
        distances["floor"].append(metrics.wasserstein(other, fresh))
        for name in names:
            for who, denoiser in (("network", models[draw % options.seeds]), ("exact", exact)):
                drawn = sample(denoiser, name, options.points, 20_000 + draw)
                distances.setdefault(f"{who}, {name}", []).append(metrics.wasserstein(drawn, fresh))
        print(f"draw {draw + 1} of {options.seeds * options.draws}", flush=True)

    rows = {}
    floor = torch.tensor(distances["floor"], dtype=torch.float64)
    for name, values in distances.items():
        v = torch.tensor(values, dtype=torch.float64)
        ratio = v.mean() / floor.mean()
        # the standard error of a ratio of means whose parts share their fresh points
        error = ((v - ratio * floor) if name != "floor" else v).std() / floor.mean() / len(v) ** 0.5
        rows[name] = {"mean": v.mean().item(), "sd": v.std().item(), "ratio": ratio.item(), "error": error.item()}
        print(f"{name:32s} {ratio:.3f} +- {error:.3f} times the floor", flush=True)
    result = {
        "script": "benchmarks/swiss_roll.py",
        "settings": {**SETTINGS, "num_steps": options.num_steps, "points": options.points},
        "seeds": list(range(options.seeds)),
        "draws": len(distances["floor"]),
        "training_seconds": seconds,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__},
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
