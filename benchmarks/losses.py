"""What does a loss weight change, and what does a perceptual loss buy?

    python benchmarks/losses.py            # about eleven minutes on one CPU core

Writes companion/results/losses.json, which chapter 4 reads. Two tables:

- "roll": one MLP trained on the Swiss roll for each pair of prediction and weight, and for each seed. `excess` is what
  its variational bound costs over that of the exact denoiser, in bits per dimension (the error of x0_hat against the
  exact one, integrated over log-SNR); `distance` is the sliced Wasserstein distance of samples from fresh data as a
  multiple of the floor.
- "digits": one U-Net trained to clean digits at one noise level, for each loss and seed. An accuracy counts cleaned
  held-out digits that a classifier reads right: `accuracy` by one that no loss has seen, `accuracy_same` by the one
  whose features the perceptual loss compares. `sharpness` is total variation over that of clean digits.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from companion import data, denoisers, losses, metrics, networks, noise, predictions, samplers, schedules, training
from companion import weights as shipped
from companion.weights import digit_classifier

OUT = Path(__file__).parents[1] / "companion" / "results" / "losses.json"
SETTINGS = {"width": 64, "depth": 3, "num_steps": 1200, "batch": 256, "lr": 2e-3, "points": 3000}
DIGITS = {"width": 16, "num_steps": 500, "batch": 64, "lr": 2e-3, "noise_to_signal": 1.0, "mix": 0.1}
SCHEDULE = schedules.Cosine()
PREDICTIONS = {"eps": predictions.EPS, "x0": predictions.X0, "v": predictions.V, "edm": predictions.edm(0.7)}
WEIGHTS = {
    "simple": losses.simple,
    "snr": losses.snr,
    "min_snr": losses.min_snr(5.0),
    "edm": losses.edm(0.7),
    "elbo": losses.elbo(SCHEDULE),
}
SAME = {("eps", "snr"): ("eps", "simple"), ("edm", "edm"): ("edm", "simple")}  # one loss under two names
PAIRS = [(p, w) for p in PREDICTIONS for w in WEIGHTS if (p, w) not in SAME]

Loss = Callable[[Tensor, Tensor], Tensor]


def exact_denoiser(components: int = 400) -> denoisers.GaussianMixture:
    """Return the Swiss roll's own denoiser."""
    means = data.swiss_roll_curve((torch.arange(components) + 0.5) / components)
    variance = (0.5 / data.SWISS_ROLL_SCALE) ** 2
    return denoisers.GaussianMixture(means, torch.full((components,), variance), torch.ones(components), SCHEDULE)


def train_roll(prediction: str, weight: str, seed: int, num_steps: int) -> denoisers.NetworkDenoiser:
    """Train one network of the first table."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    points = data.swiss_roll(50_000, generator=generator)
    net = networks.MLP(2, width=SETTINGS["width"], depth=SETTINGS["depth"])
    source = data.batches(points, size=SETTINGS["batch"], generator=generator)
    for _ in training.fit(
        net,
        source,
        SCHEDULE,
        PREDICTIONS[prediction],
        num_steps=num_steps,
        lr=SETTINGS["lr"],
        weight=WEIGHTS[weight],
        generator=generator,
        progress=False,
    ):
        pass
    return denoisers.from_network(net, SCHEDULE, PREDICTIONS[prediction])


@torch.no_grad()
def excess(model: denoisers.Denoiser, exact: denoisers.Denoiser, *, levels: int = 60, num_points: int = 1000) -> float:
    """Return the bits per dimension that a model's bound costs over the exact denoiser's."""
    generator = torch.Generator().manual_seed(99)
    first, last = (float(SCHEDULE.log_snr(t)) for t in SCHEDULE.time_grid(2)[:2])
    width = (last - first) / levels
    total = 0.0
    for k in range(levels):
        t = SCHEDULE.t_of_log_snr(first + (k + 0.5) * width)
        x, _ = noise.add_noise(data.swiss_roll(num_points, generator=generator), t, SCHEDULE, generator=generator)
        total += 0.5 * width * float(SCHEDULE.snr(t)) * float((model(x, t) - exact(x, t)).square().mean())
    return total / math.log(2)


@torch.no_grad()
def distance(model: denoisers.Denoiser, floor: float, seed: int, num_points: int, *, draws: int = 4) -> float:
    """Return the sliced Wasserstein distance of samples, as a multiple of the floor, a mean over fresh sets."""
    generator = torch.Generator().manual_seed(1000 + seed)
    ts = SCHEDULE.time_grid(20)
    found = 0.0
    for _ in range(draws):
        x = samplers.start(SCHEDULE, (num_points, 2), ts, generator=generator)
        drawn = samplers.last(samplers.dpmpp_2m(model, SCHEDULE, x, ts)).x
        found += metrics.sliced_wasserstein(drawn, data.swiss_roll(num_points, generator=generator))
    return found / draws / floor


def image_losses() -> dict[str, Loss]:
    """Return the losses of the second table."""
    feature_loss = losses.perceptual(shipped.load("digit_classifier").features)

    def mse(x0_hat: Tensor, x0: Tensor) -> Tensor:
        return (x0_hat - x0).square().flatten(1).mean(1)

    def structure(x0_hat: Tensor, x0: Tensor) -> Tensor:
        return 1 - losses.ssim(x0_hat, x0, window=7)

    mix = DIGITS["mix"]
    return {
        "mse": mse,
        "ssim": structure,
        "perceptual": feature_loss,
        "mse + ssim": lambda x, y: mse(x, y) + mix * structure(x, y),
        "mse + perceptual": lambda x, y: mse(x, y) + mix * feature_loss(x, y),
    }


def train_digits(loss: Loss, seed: int, num_steps: int) -> tuple[torch.nn.Module, Tensor]:
    """Train a U-Net that answers x0 at one noise level; return it and that level's time."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = networks.UNet(1, width=DIGITS["width"])
    optimizer = torch.optim.Adam(net.parameters(), lr=DIGITS["lr"])
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, DIGITS["lr"], total_steps=num_steps)
    t = SCHEDULE.t_of_log_snr(-2 * math.log(DIGITS["noise_to_signal"]))
    source = data.batches(data.digits("train")[0], size=DIGITS["batch"], generator=generator)
    for _, (x0, _) in zip(range(num_steps), source, strict=False):
        x, _ = noise.add_noise(x0, t, SCHEDULE, generator=generator)
        value = loss(net(x, t.float()), x0).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        decay.step()
    return net.eval(), t


@torch.no_grad()
def judge(net: Callable[..., Tensor], t: Tensor, other: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Measure cleaned held-out digits."""
    x0, labels = data.digits("held-out")
    x, _ = noise.add_noise(x0, t, SCHEDULE, generator=torch.Generator().manual_seed(5))
    cleaned = net(x, t.float())
    variation = [(v.diff(dim=2).abs().mean() + v.diff(dim=3).abs().mean()) for v in (cleaned, x0)]
    same = shipped.load("digit_classifier")
    return {
        "psnr": float(10 * (4 / (cleaned - x0).square().flatten(1).mean(1)).log10().mean()),
        "ssim": float(losses.ssim(cleaned, x0, window=7).mean()),
        "sharpness": float(variation[0] / variation[1]),
        "accuracy": float((other(cleaned).argmax(1) == labels).float().mean()),
        "accuracy_same": float((same(cleaned).argmax(1) == labels).float().mean()),
    }


def summary(values: list[float]) -> dict[str, float]:
    """Return mean and standard error over the seeds (0 for a single one)."""
    v = torch.tensor(values, dtype=torch.float64)
    error = float(v.std()) / len(v) ** 0.5 if len(v) > 1 else 0.0
    return {"mean": float(v.mean()), "error": error, "values": values}  # type: ignore[dict-item]


def main(argv: list[str] | None = None) -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings (default: 3)")
    parser.add_argument("--num-steps", type=int, default=SETTINGS["num_steps"], help="of training on the roll")
    parser.add_argument("--digit-steps", type=int, default=DIGITS["num_steps"], help="of training on the digits")
    parser.add_argument("--judge-steps", type=int, default=1500, help="of training the other classifier")
    parser.add_argument("--points", type=int, default=SETTINGS["points"], help="in a set of samples")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    seeds = list(range(options.seeds))
    generator = torch.Generator().manual_seed(7)
    floor, _ = metrics.floor(
        metrics.sliced_wasserstein, lambda: data.swiss_roll(options.points, generator=generator), pairs=48
    )
    exact, roll = exact_denoiser(), {}
    for prediction, weight in PAIRS:
        models = [train_roll(prediction, weight, seed, options.num_steps) for seed in seeds]
        roll[f"{prediction}, {weight}"] = {
            "excess": summary([excess(model, exact) for model in models]),
            "distance": summary([distance(model, floor, i, options.points) for i, model in enumerate(models)]),
        }
        row = roll[f"{prediction}, {weight}"]
        print(
            f"{prediction}, {weight}:", {k: f"{r['mean']:.4g} +- {r['error']:.2g}" for k, r in row.items()}, flush=True
        )
    other = digit_classifier.train(num_steps=options.judge_steps, seed=1)
    digits = {}
    for name, loss in image_losses().items():
        found = [judge(*train_digits(loss, seed, options.digit_steps), other) for seed in seeds]
        digits[name] = {key: summary([one[key] for one in found]) for key in found[0]}
        print(name, {k: f"{r['mean']:.4g} +- {r['error']:.2g}" for k, r in digits[name].items()}, flush=True)
    clean = data.digits("held-out")
    result = {
        "script": "benchmarks/losses.py",
        "settings": {**SETTINGS, "num_steps": options.num_steps, "points": options.points},
        "digit_settings": {**DIGITS, "num_steps": options.digit_steps},
        "seeds": seeds,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "floor": floor,
        "exact_distance": distance(exact, floor, 0, options.points),
        "judge_accuracy": float((other(clean[0]).argmax(1) == clean[1]).float().mean()),
        "roll": roll,
        "digits": digits,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
