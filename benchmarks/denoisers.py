"""How well do networks denoise digits that they have not seen? Three shapes at one budget, beside simple filters.

    python benchmarks/denoisers.py             # about ten minutes on one CPU core

Writes companion/results/denoisers.json, which chapter 2 reads. A level is noise over signal. Every denoiser sees
the same 500 held-out digits under the same noise; every network has the same batches, steps and learning rate. A row
holds, by level: "psnr", that of the mean squared error over all digits; "sharpness", the energy of the differences
between neighbouring pixels over that of the clean digits; "changed", the share of digits whose class changes; and with
more than one seed "psnr_error", the standard error over seeds. "runs" holds each seed's PSNR.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from companion import data, denoisers, metrics, networks, noise, predictions, schedules, training, weights

OUT = Path(__file__).parents[1] / "companion" / "results" / "denoisers.json"
SETTINGS = {"num_steps": 800, "batch": 64, "lr": 2e-3, "kinds_steps": 2400, "levels": [0.1, 0.2, 0.5, 1.0, 2.0, 3.0]}
KIND_LEVELS = [0.2, 0.5, 1.0]
SCHEDULE = schedules.Cosine()
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense, 128": lambda: networks.DenseDenoiser((1, 8, 8), width=128),
    "dense, 128, no time": lambda: networks.DenseDenoiser((1, 8, 8), width=128, step_dim=0),
    "dense": lambda: networks.DenseDenoiser((1, 8, 8), width=679),
    "encoder-decoder": lambda: networks.EncoderDecoder(1, width=14, multipliers=(1, 2, 2), latent=4),
    "U-Net, no attention": lambda: networks.UNet(1, width=12, multipliers=(1, 2)),
    "U-Net": lambda: networks.UNet(1, width=12, multipliers=(1, 2), attention=(1,)),
}
TARGET_V = ("dense", "encoder-decoder", "U-Net")  # trained a second time, with v for a target
Batches = Iterator[tuple[Tensor, Tensor | None]]


def train(name: str, seed: int, num_steps: int, prediction: predictions.Prediction, batches: Batches) -> Any:
    """Train a network of the table and return its denoiser."""
    torch.manual_seed(seed)
    net = NETWORKS[name]()
    generator = torch.Generator().manual_seed(seed)
    options = {"num_steps": num_steps, "lr": SETTINGS["lr"], "generator": generator, "progress": False}
    for _ in training.fit(net, batches, SCHEDULE, prediction, **options):
        pass
    return denoisers.from_network(net, SCHEDULE, prediction)


def digit_batches(seed: int) -> Batches:
    """Return batches of the training digits."""
    generator = torch.Generator().manual_seed(100 + seed)
    return data.batches(data.digits("train")[0], size=SETTINGS["batch"], generator=generator)


def toy_mixture() -> denoisers.GaussianMixture:
    """Return a world of blurred digits whose exact denoiser is known: the ten mean digits, each with round noise."""
    x, y = data.digits("train")
    means = torch.stack([x[y == k].mean(0) for k in range(10)])
    return denoisers.GaussianMixture(means, torch.full((10,), 0.05), torch.ones(10), SCHEDULE)


def toy_batches(toy: denoisers.GaussianMixture, seed: int) -> Batches:
    """Return batches drawn afresh, for ever."""
    generator = torch.Generator().manual_seed(100 + seed)
    while True:
        yield toy.sample(SETTINGS["batch"], generator=generator), None


def time_of(level: float) -> Tensor:
    """Return the time at which noise over signal is `level`."""
    return SCHEDULE.t_of_log_snr(torch.tensor(-2 * math.log(level), dtype=torch.float64))


def do_nothing(x: Tensor, t: Tensor) -> Tensor:
    """Return the noisy image, scaled so that its signal is the clean one."""
    return (x / SCHEDULE.alpha(t)).to(x.dtype)


def pooled_psnr(x: Tensor, clean: Tensor) -> float:
    """Return the PSNR of a whole set as of one sample: squared errors are averaged, not decibels."""
    return metrics.psnr(x[None], clean[None]).item()


def roughness(x: Tensor) -> Tensor:
    """Return the mean squared difference between neighbouring pixels."""
    return x.diff(dim=-1).square().mean() + x.diff(dim=-2).square().mean()


@torch.no_grad()
def judge(denoiser: Any, clean: Tensor, levels: list[float]) -> dict[str, list[float]]:
    """Return PSNR, sharpness and the share of changed digits by noise level."""
    classify, rows = weights.load("digit_classifier"), {"psnr": [], "sharpness": [], "changed": []}
    for index, level in enumerate(levels):
        t, generator = time_of(level), torch.Generator().manual_seed(1000 + index)
        x, _ = noise.add_noise(clean, t, SCHEDULE, generator=generator)
        x0_hat = denoiser(x, t)
        rows["psnr"].append(pooled_psnr(x0_hat, clean))
        rows["sharpness"].append((roughness(x0_hat) / roughness(clean)).item())
        rows["changed"].append((classify(x0_hat).argmax(1) != classify(clean).argmax(1)).double().mean().item())
    return rows


def corrupt(kind: str, x0: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Add noise of a kind whose mean squared error over all training digits is level^2."""
    if kind == "gaussian":
        return noise.gaussian(x0, level, generator=generator)
    mean, mean_square = moments()
    if kind == "salt and pepper":  # a ruined pixel is off by x - 1 or x + 1: x^2 + 1 in mean square
        return noise.salt_and_pepper(x0, level**2 / (1 + mean_square), generator=generator)
    return noise.shot(x0, 2 * (1 + mean) / level**2, generator=generator)  # variance 4 brightness / peak


@cache
def moments() -> tuple[float, float]:
    """Return the mean and the mean square of the training digits' pixels."""
    x = data.digits("train")[0]
    return x.mean().item(), x.square().mean().item()


KINDS = ("gaussian", "salt and pepper", "shot")


def train_on_kinds(seed: int, num_steps: int) -> Any:
    """Train the dense network on all three kinds, a kind and a level for each batch."""
    torch.manual_seed(seed)
    net, generator = NETWORKS["dense"](), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters())
    for step, (x0, _) in zip(range(num_steps), digit_batches(seed), strict=False):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / num_steps)
        level = 0.1 * 12 ** torch.rand(1, generator=generator).item()  # 0.1 to 1.2; at 1.3 all pixels are ruined
        t = time_of(level)
        x = SCHEDULE.alpha(t) * corrupt(KINDS[step % 3], x0, level, generator)
        loss = (net(x.float(), t) - x0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return denoisers.from_network(net, SCHEDULE, predictions.X0)


@torch.no_grad()
def judge_kinds(denoiser: Any, clean: Tensor) -> dict[str, list[float]]:
    """Return PSNR by kind of noise and level; a denoiser is told the time of Gaussian noise of the same error."""
    found: dict[str, list[float]] = {}
    for kind in KINDS:
        for index, level in enumerate(KIND_LEVELS):
            t, generator = time_of(level), torch.Generator().manual_seed(2000 + index)
            x = (SCHEDULE.alpha(t) * corrupt(kind, clean, level, generator)).float()
            found.setdefault(kind, []).append(pooled_psnr(denoiser(x, t), clean))
    return found


def over_seeds(runs: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Return the mean of every figure over the seeds, and with several seeds the error and the runs of the PSNR."""
    row = {key: torch.tensor([run[key] for run in runs]).double().mean(0).tolist() for key in runs[0]}
    if len(runs) > 1 and "psnr" in row:
        row["psnr_error"] = (torch.tensor([run["psnr"] for run in runs]).std(0) / len(runs) ** 0.5).tolist()
        row["runs"] = [run["psnr"] for run in runs]
    return {key: _rounded(values) for key, values in row.items()}


def _rounded(values: Any) -> Any:
    return [_rounded(v) for v in values] if isinstance(values, list) else round(values, 4)


def cost(net: nn.Module) -> dict[str, int]:
    """Return the parameters of a network and its multiply-adds for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
    }


def main(argv: list[str] | None = None) -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each network (default: 3)")
    parser.add_argument("--num-steps", type=int, default=SETTINGS["num_steps"], help="of training")
    parser.add_argument("--kinds-steps", type=int, default=SETTINGS["kinds_steps"], help="of training on three kinds")
    parser.add_argument("--images", type=int, default=500, help="held-out digits to judge by (default: all 500)")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)

    train_set, held_out = data.digits("train")[0], data.digits("held-out")[0][: options.images]
    levels, seeds, began = SETTINGS["levels"], range(options.seeds), time.perf_counter()
    untrained = {
        "noisy": do_nothing,
        "median": denoisers.MedianFilter(3, SCHEDULE),
        "Wiener": denoisers.Wiener.fit(train_set, SCHEDULE),
        "training set": denoisers.FiniteDataset(train_set, SCHEDULE),
    }
    rows = {name: over_seeds([judge(denoiser, held_out, levels)]) for name, denoiser in untrained.items()}
    kinds = {name: over_seeds([judge_kinds(untrained[name], held_out)]) for name in ("noisy", "median", "Wiener")}
    cases = [(name, predictions.X0, name) for name in NETWORKS]
    cases += [(name, predictions.V, f"{name}, target v") for name in TARGET_V]
    for name, prediction, row in cases:
        models = [train(name, seed, options.num_steps, prediction, digit_batches(seed)) for seed in seeds]
        rows[row] = over_seeds([judge(model, held_out, levels) for model in models])
        if row in ("dense", "U-Net"):
            kinds[row] = over_seeds([judge_kinds(model, held_out) for model in models])
        print(f"{time.perf_counter() - began:5.0f} s  {row:28s}", *(f"{v:6.2f}" for v in rows[row]["psnr"]), flush=True)
    models = [train_on_kinds(seed, options.kinds_steps) for seed in seeds]
    kinds["dense, all three"] = over_seeds([judge_kinds(model, held_out) for model in models])

    toy = toy_mixture()
    fresh, many = (toy.sample(n, generator=torch.Generator().manual_seed(n)) for n in (options.images, 20_000))
    toys = {"exact": over_seeds([judge(toy, fresh, levels)])}
    toys["Wiener"] = over_seeds([judge(denoisers.Wiener.fit(many, SCHEDULE), fresh, levels)])
    for name in ("dense", "U-Net"):
        models = [train(name, seed, options.num_steps, predictions.X0, toy_batches(toy, seed)) for seed in seeds]
        toys[name] = over_seeds([judge(model, fresh, levels) for model in models])
        print(f"{time.perf_counter() - began:5.0f} s  toy: {name:23s}", *(f"{v:6.2f}" for v in toys[name]["psnr"]))
    result = {
        "script": "benchmarks/denoisers.py",
        "settings": {**SETTINGS, "num_steps": options.num_steps, "kinds_steps": options.kinds_steps},
        "kind_levels": KIND_LEVELS,
        "seeds": list(seeds),
        "seconds": round(time.perf_counter() - began),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "cost": {name: cost(make()) for name, make in NETWORKS.items()},
        "rows": rows,
        "kinds": kinds,
        "toy": toys,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
