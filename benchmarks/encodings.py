"""How should a network be told the time? Step encodings and ways to join them, against the exact denoiser.

    python benchmarks/encodings.py             # about fifteen minutes on one CPU core

Writes companion/results/encodings.json, which chapter 3 reads. The data are Gaussian mixtures, whose exact denoiser is
known, so each loss is given as what it has above the least possible loss: the mean squared distance between the
network's output and the exact one. Sample quality is the sliced Wasserstein distance over its floor. Every run is
stored; a row of the chapter is the mean of the runs over the seeds, with its standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from companion import (
    data,
    denoisers,
    encodings,
    losses,
    metrics,
    networks,
    noise,
    predictions,
    samplers,
    schedules,
)

OUT = Path(__file__).parents[1] / "companion" / "results" / "encodings.json"
SETTINGS = {"dim": 64, "width": 64, "depth": 3, "num_steps": 1000, "unseen_steps": 600, "batch": 512, "lr": 2e-3}
WIDTHS = {"add": 64, "concatenate": 71, "scale_shift": 56}  # about 46,500 parameters each, for points in the plane
BANDS = 5
DRAWS = 4  # of samples and fresh data in a distance
SIGMA_MIN = 0.01  # of the steep schedule: training draws the noise over signal log-uniformly from here to 80

Encoding = Callable[[], Callable[[Tensor], Tensor]]  # made anew for each run: a module draws its weights


def roll(schedule: schedules.Schedule) -> denoisers.GaussianMixture:
    """Return the Swiss roll's exact denoiser."""
    means = data.swiss_roll_curve((torch.arange(300) + 0.5) / 300)
    return denoisers.GaussianMixture(means, torch.full((300,), 0.05**2), torch.ones(300), schedule)


def digits(schedule: schedules.Schedule) -> denoisers.GaussianMixture:
    """Return a mixture in 64 dimensions: two training digits of each class, each with a blur of 0.2."""
    x, y = data.digits()
    means = torch.cat([x[y == c][:2] for c in range(10)]).flatten(1)
    return denoisers.GaussianMixture(means, torch.full((20,), 0.2**2), torch.ones(20), schedule)


def steep_times(u: Tensor) -> Tensor:
    """Return times of the steep schedule, t = sigma / 80, for u in [0, 1]: log-uniform in sigma."""
    return (torch.exp(math.log(SIGMA_MIN / 80) * (1 - u))).clamp(max=1.0)


def every_twentieth(u: Tensor) -> Tensor:
    """Return the times k / 20 only."""
    return (u * 20).ceil() / 20


def with_a_gap(u: Tensor) -> Tensor:
    """Return times outside (0.4, 0.6]."""
    return torch.where(u <= 0.5, 0.8 * u, 0.2 + 0.8 * u).clamp(max=1.0)


def choices(schedule: schedules.Schedule) -> dict[str, Encoding]:
    """Return the encodings compared, by name."""
    dim = SETTINGS["dim"]
    return {
        "none": lambda: encodings.none,
        "raw number": lambda: encodings.raw,
        "raw integer": lambda: lambda t: 1000 * t[:, None],
        "sinusoidal": lambda: lambda t: encodings.sinusoidal(t, dim),
        "Fourier": lambda: encodings.GaussianFourier(dim),
        "Fourier, scale 4": lambda: encodings.GaussianFourier(dim, scale=4.0),
        "Fourier, scale 16": lambda: encodings.GaussianFourier(dim, scale=16.0),
        "learned": lambda: encodings.LearnedStep(1000, dim),
        "log-SNR": lambda: lambda t: encodings.log_snr(t, schedule, dim),
        "raw log-SNR": lambda: lambda t: schedule.log_snr(t)[:, None] / 8,
    }


def train(
    exact: denoisers.GaussianMixture,
    prediction: predictions.Prediction,
    encoding: Encoding,
    seed: int,
    num_steps: int,
    *,
    times: Callable[[Tensor], Tensor] = lambda u: u,
    joining: str = "add",
    width: int = SETTINGS["width"],
) -> nn.Module:
    """Train an MLP on fresh draws of the mixture, at the times that `times` makes of uniform ones."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = networks.MLP(exact.means.shape[1], width=width, encoding=encoding(), joining=joining)
    adam = torch.optim.Adam(net.parameters(), lr=SETTINGS["lr"])
    for k in range(num_steps):
        adam.param_groups[0]["lr"] = SETTINGS["lr"] * min(1, k / 50) * (1 + math.cos(math.pi * k / num_steps)) / 2
        x0 = exact.sample(SETTINGS["batch"], generator=generator)
        t = times(losses.stratified_times(len(x0), generator=generator))
        loss = losses.denoising_loss(net, x0, exact.schedule, prediction, t=t, generator=generator)
        adam.zero_grad()
        loss.mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
    return net


@torch.no_grad()
def above_floor(
    net: nn.Module, exact: denoisers.GaussianMixture, prediction: predictions.Prediction, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Return, at each time t (N,), the squared distance of the output from the exact output, and the exact loss."""
    generator = torch.Generator().manual_seed(9)
    x0, t = exact.sample(len(t), generator=generator), t.double()
    x, eps = noise.add_noise(x0.double(), t, exact.schedule, generator=generator)
    alpha, sigma = exact.schedule.alpha(t)[:, None], exact.schedule.sigma(t)[:, None]
    x0_hat = exact(x, t)
    best = prediction.target(x0_hat, (x - alpha * x0_hat) / sigma, alpha, sigma)
    out = net((prediction.input_scale(alpha, sigma) * x).float(), t.float())
    least = (prediction.target(x0, eps, alpha, sigma) - best) ** 2
    return ((out - best) ** 2).mean(1), least.mean(1)


def quality(net: nn.Module, exact: denoisers.GaussianMixture, prediction: predictions.Prediction, points: int) -> float:
    """Return the sliced Wasserstein distance of samples to fresh data over its floor, each a mean over the draws."""
    found, floor = 0.0, 0.0
    ts = exact.schedule.time_grid(20)
    model = denoisers.from_network(net, exact.schedule, prediction)
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(100 + draw)
        x = samplers.start(exact.schedule, (points, exact.means.shape[1]), ts, generator=generator)
        with torch.no_grad():
            x = samplers.last(samplers.dpmpp_2m(model, exact.schedule, x, ts)).x
        fresh, other = (exact.sample(points, generator=generator) for _ in range(2))
        found += metrics.sliced_wasserstein(x, fresh)
        floor += metrics.sliced_wasserstein(other, fresh)
    return found / floor


def tables() -> dict[str, dict]:
    """Return what is trained: table -> data, prediction, times and rows (encoding, joining, and a width of its own)."""
    cosine, steep = schedules.Cosine(), schedules.VarianceExploding(rho=1.0)
    usual = ("none", "raw number", "raw integer", "sinusoidal", "Fourier", "learned", "log-SNR")
    unseen = ("none", "raw number", "sinusoidal", "Fourier", "Fourier, scale 4", "Fourier, scale 16", "learned")
    v, edm = predictions.V, predictions.edm(0.7)
    joined = [("sinusoidal", "concatenate"), ("sinusoidal", "scale_shift")]
    wide = [("sinusoidal", "scale_shift", WIDTHS["concatenate"])]  # as many units as the widest, and more parameters
    return {
        "roll": {"exact": roll(cosine), "prediction": v, "rows": [(e, "add") for e in usual] + joined},
        "digits": {"exact": digits(cosine), "prediction": v, "rows": [(e, "add") for e in usual] + joined + wide},
        "steep": {
            "exact": roll(steep),
            "prediction": edm,
            "times": steep_times,
            "rows": [(e, "add") for e in ("none", "raw number", "raw log-SNR", "sinusoidal", "log-SNR")],
        },
        "twentieths": {
            "exact": roll(cosine),
            "prediction": v,
            "times": every_twentieth,
            "rows": [(e, "add") for e in unseen],
        },
        "gap": {"exact": roll(cosine), "prediction": v, "times": with_a_gap, "rows": [(e, "add") for e in unseen]},
    }


def measure(name: str, table: dict, net: nn.Module, points: int, num_times: int) -> dict:
    """Return the figures of one run."""

    def mean(t: Tensor) -> list[float]:
        return [float(error.mean()) for error in above_floor(net, table["exact"], table["prediction"], t)]

    u = (torch.arange(num_times) + 0.5) / num_times
    if name == "twentieths":  # from t = 0.25 on, where the loss is not dominated by the finest noise
        seen = 0.25 + every_twentieth(u * 0.75)
        return {"seen": mean(seen)[0], "unseen": mean(seen - 0.025)[0]}
    if name == "gap":
        beside = torch.where(u <= 0.5, 0.3 + 0.2 * u, 0.5 + 0.2 * u)
        return {"seen": mean(beside)[0], "unseen": mean(0.4 + 0.2 * u)[0]}
    found = [mean(part) for part in table.get("times", lambda u: u)(u).chunk(BANDS)]
    return {
        "above": [above for above, _ in found],
        "floor": [least for _, least in found],
        "quality": quality(net, table["exact"], table["prediction"], points),
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def main(argv: list[str] | None = None) -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default: 3)")
    parser.add_argument("--points", type=int, default=2000, help="samples in a distance (default: 2000)")
    parser.add_argument("--num-times", type=int, default=20_000, help="times at which losses are measured")
    parser.add_argument("--num-steps", type=int, default=SETTINGS["num_steps"], help="of training")
    parser.add_argument("--unseen-steps", type=int, default=SETTINGS["unseen_steps"], help="where times are left out")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)

    began, results = time.perf_counter(), {}
    for name, table in tables().items():
        results[name] = {}
        num_steps = options.unseen_steps if name in ("twentieths", "gap") else options.num_steps
        for encoding, joining, *width in table["rows"]:
            runs = []
            for seed in range(options.seeds):
                net = train(
                    table["exact"],
                    table["prediction"],
                    choices(table["exact"].schedule)[encoding],
                    seed,
                    num_steps,
                    times=table.get("times", lambda u: u),
                    joining=joining,
                    width=width[0] if width else WIDTHS[joining],
                )
                runs.append(measure(name, table, net, options.points, options.num_times))
            row = encoding if joining == "add" else ", ".join([encoding, joining, *(f"{w} units" for w in width)])
            results[name][row] = runs
            print(f"{time.perf_counter() - began:5.0f} s  {name:10s} {row}", flush=True)
    result = {
        "script": "benchmarks/encodings.py",
        "settings": {
            **SETTINGS,
            "num_steps": options.num_steps,
            "unseen_steps": options.unseen_steps,
            "widths": WIDTHS,
            "points": options.points,
            "num_times": options.num_times,
            "sigma_min": SIGMA_MIN,
        },
        "seeds": list(range(options.seeds)),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "tables": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
