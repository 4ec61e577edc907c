"""What does guidance do to digits: how many are as asked, how far are they from real ones, and how varied?

    python benchmarks/guidance.py                                   # about ten minutes on one CPU core
    python benchmarks/guidance.py --choice --rows "plain, 1.1"      # this row alone; the others stay as they are

Writes companion/results/guidance.json, which chapter 9 reads. Each set has 500 digits, with the classes of the held-out
ones, drawn from the shipped network. Three figures of each set:

- "distance": the Frechet distance to the held-out digits, over its floor, which is what training images of the same
  classes score;
- "as asked": the share that the shipped classifier takes for what was asked;
- "spread": the mean distance in pixels between two digits of one class, over that of the held-out digits.

The settings of the interval are chosen on four seeds ("choice") and confirmed on eight others ("rows"). The weaker
network of autoguidance is trained here, for a fifth of the steps of the shipped one, and so is the classifier of noisy
digits, which guides the unconditional answers of the shipped network.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from companion import data, denoisers, guidance, metrics, predictions, samplers, schedules, weights
from companion.weights import digit_denoiser

OUT = Path(__file__).parents[1] / "companion" / "results" / "guidance.json"
SCHEDULE = schedules.Cosine()
CANDIDATES = [  # scale and interval
    (2.0, 0.0, 0.1),
    (3.0, 0.0, 0.1),
    (2.0, 0.1, 0.2),
    (2.0, 0.0, 0.2),
    (3.0, 0.0, 0.2),
    (2.0, 0.1, 0.3),
    (1.5, 0.0, 0.4),
    (2.0, 0.0, 0.5),
    (2.0, 0.5, 1.0),
]
Denoise = Callable[[Tensor, Tensor], Tensor]


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, held-out images and labels."""
    return *data.digits("train"), *data.digits("held-out")


@cache
def model() -> denoisers.NetworkDenoiser:
    """Return the shipped denoiser."""
    return denoisers.from_network(weights.load("digit_denoiser"), SCHEDULE, predictions.V)


def weaker(num_steps: int, seed: int = 1) -> denoisers.NetworkDenoiser:
    """Return a denoiser like the shipped one, trained for fewer steps."""
    net = digit_denoiser.train(num_steps=num_steps, seed=seed).requires_grad_(False).eval()
    return denoisers.from_network(net, SCHEDULE, predictions.V)


@cache
def references() -> dict[str, float]:
    """Return the floor of the Frechet distance with its error, and the spread of real digits."""
    images, labels, held_out, wanted = digits()
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(16):
        parts = []
        for c in range(10):
            mine = (labels == c).nonzero().squeeze(1)
            parts.append(mine[torch.randperm(len(mine), generator=generator)[: int((wanted == c).sum())]])
        found.append(frechet(images[torch.cat(parts)]))
    return {
        "floor": statistics.fmean(found),
        "floor error": statistics.stdev(found) / 4,
        "spread": spread(held_out),
    }


def frechet(x: Tensor) -> float:
    """Return the Frechet distance to the held-out digits, on the shipped classifier's features."""
    judge = weights.load("digit_classifier")
    return metrics.frechet_distance(x, digits()[2], features=judge.features)  # type: ignore[arg-type]


def spread(x: Tensor) -> float:
    """Return the mean distance between two digits of one class, for digits in the order of the held-out ones."""
    wanted = digits()[3]
    return statistics.fmean(float(torch.pdist(x[wanted == c].flatten(1).double()).mean()) for c in range(10))


def draw(denoise: Denoise, seed: int, num_steps: int = 20) -> Tensor:
    """Draw one digit for each held-out one."""
    ts = samplers.grid(samplers.dpmpp_2m, SCHEDULE, num_steps)
    x = samplers.start(SCHEDULE, (len(digits()[3]), 1, 8, 8), ts, generator=torch.Generator().manual_seed(seed))
    return samplers.last(samplers.dpmpp_2m(denoise, SCHEDULE, x, ts)).x


def measure(denoise: Denoise, seeds: range, num_steps: int) -> dict[str, Any]:
    """Return distance, share as asked and spread: mean and standard deviation over seeds, and each seed's."""
    judge, wanted, by_seed = weights.load("digit_classifier"), digits()[3], []
    for seed in seeds:
        x = draw(denoise, seed, num_steps)
        right = float((judge(x).argmax(1) == wanted).double().mean())
        by_seed.append((frechet(x) / references()["floor"], right, spread(x) / references()["spread"]))
    row: dict[str, Any] = {"samples": len(wanted) * len(seeds), "seeds": list(seeds)}
    for name, values in zip(("distance", "as asked", "spread"), zip(*by_seed, strict=True), strict=True):
        row[name] = statistics.fmean(values)
        row[f"{name}, sd"] = statistics.stdev(values)
        row[f"{name}, by seed"] = [round(v, 4) for v in values]
    return row


def denoisers_of(weak: denoisers.NetworkDenoiser, critic: nn.Module) -> dict[str, Denoise]:
    """Return the denoiser of each row, by name, given the weaker denoiser and a classifier of noisy digits."""
    asked = digits()[3]
    good, nothing = guidance.condition(model(), asked), guidance.condition(model(), None)
    worse = guidance.condition(weak, asked)
    rows: dict[str, Denoise] = {"off": good}
    for scale in (1.1, 1.15, 1.25, 1.5, 2.0, 3.0, 5.0):
        rows[f"plain, {scale:g}"] = guidance.extrapolate(good, nothing, scale)
    for scale, low, high in ((2.0, 0.1, 0.2), (2.0, 0.0, 0.5), (2.0, 0.5, 1.0)):
        rows[f"interval {low:g} to {high:g}, {scale:g}"] = interval(scale, low, high)
    for phi in (0.7, 1.0):
        rows[f"rescale {phi:g}, 2"] = guidance.rescale(rows["plain, 2"], good, phi)
    for scale in (1.5, 2.0):
        rows[f"autoguidance, {scale:g}"] = guidance.extrapolate(good, worse, scale)
    varied = rows["autoguidance, 1.5"]  # a guided denoiser can be guided again
    rows["autoguidance, then interval"] = guidance.extrapolate(varied, nothing, 2.0, t_range=(0.1, 0.2))
    rows["the weaker network"] = worse
    for scale in (1.0, 2.0, 4.0):
        rows[f"classifier, {scale:g}"] = by_classifier(critic, scale)
    rows["classifier, 4, clipped"] = guidance.clip_x0(rows.pop("classifier, 4"))
    return rows


def interval(scale: float, low: float, high: float) -> Denoise:
    """Return the denoiser that is guided between two times."""
    good, nothing = guidance.condition(model(), digits()[3]), guidance.condition(model(), None)
    return guidance.extrapolate(good, nothing, scale, t_range=(low, high))


def noisy_classifier(num_steps: int, size: int = 128, lr: float = 2e-3, seed: int = 0) -> nn.Module:
    """Return a classifier of digits at any noise, which is told sigma(t) in a second channel. About five seconds."""
    images, labels = digits()[:2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(128, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 10)]
        net = nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=0.05)
        for step in range(num_steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / num_steps)
            pick, t = torch.randint(len(images), (size,)), torch.rand(size, 1, 1, 1)
            x, sigma = images[pick], SCHEDULE.sigma(t)
            x = SCHEDULE.alpha(t) * x + sigma * torch.randn(x.shape)
            loss = nn.functional.cross_entropy(net(torch.cat([x, sigma.expand_as(x)], 1)), labels[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.requires_grad_(False).eval()


def by_classifier(critic: nn.Module, scale: float) -> Denoise:
    """Return the unconditional denoiser moved along the gradient of a classifier of noisy digits."""
    asked = digits()[3]

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        sigma = SCHEDULE.sigma(t).reshape(-1, 1, 1, 1).to(x.dtype)
        scores = critic(torch.cat([x, sigma.expand_as(x)], 1)).log_softmax(1)
        return scores.gather(1, asked[:, None])[:, 0]

    nothing = guidance.condition(model(), None)
    return guidance.classifier(nothing, log_prob, SCHEDULE, scale)


def candidates() -> dict[str, Denoise]:
    """Return what the interval is chosen from, and the unguided model beside it."""
    found: dict[str, Denoise] = {"off": guidance.condition(model(), digits()[3])}
    for scale, low, high in CANDIDATES:
        found[f"interval {low:g} to {high:g}, {scale:g}"] = interval(scale, low, high)
    return found


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on, as it is stored."""
    return {
        "network": "digit_denoiser",
        "sampler": "dpmpp_2m",
        "num_steps": options.num_steps,
        "spacing": samplers.GRIDS[samplers.dpmpp_2m],
        "weaker network": {"num_steps": options.weak_steps, "seed": 1, **digit_denoiser.SETTINGS},
        "classifier": {"num_steps": options.critic_steps, "seed": 0},
    }


def main(argv: list[str] | None = None) -> None:
    """Choose, confirm, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="sets of 500 digits for each row (default: 8)")
    parser.add_argument("--choice-seeds", type=int, default=4, help="sets for each candidate (default: 4)")
    parser.add_argument("--num-steps", type=int, default=20, help="of the sampler (default: 20)")
    parser.add_argument("--weak-steps", type=int, default=400, help="training of the weaker network (default: 400)")
    parser.add_argument("--critic-steps", type=int, default=2000, help="training of the classifier (default: 2000)")
    parser.add_argument("--rows", nargs="*", help="names to measure; the others stay (default: all, afresh)")
    parser.add_argument("--choice", nargs="*", help="the same for the choice")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    partial = options.rows is not None or options.choice is not None
    settings = settings_of(options)
    before = {}
    if partial and options.out.exists():
        before = json.loads(options.out.read_text(encoding="utf8"))
        if before["settings"] != settings:
            raise ValueError(f"{options.out} was made with other settings than {settings}; run all of it again.")
    choice, rows = before.get("choice", {}), before.get("rows", {})
    for name, denoise in candidates().items():
        if options.choice is None or name in options.choice:
            choice[name] = measure(denoise, range(100, 100 + options.choice_seeds), options.num_steps)
            print("choice:", name, round(choice[name]["distance"], 3), round(choice[name]["as asked"], 4), flush=True)
    # Not trained where no row needs it: then the shipped model and an empty network stand in.
    names = ["weaker", "auto", "classifier"] if options.rows is None else options.rows
    weak = weaker(options.weak_steps) if any("auto" in n or "weaker" in n for n in names) else model()
    critic = noisy_classifier(options.critic_steps if any("classifier" in n for n in names) else 0)
    table = denoisers_of(weak, critic)
    for name, denoise in table.items():
        if options.rows is None or name in options.rows:
            rows[name] = measure(denoise, range(options.seeds), options.num_steps)
            print(name, *(round(rows[name][k], 4) for k in ("distance", "as asked", "spread")), flush=True)
    result = {
        "script": "benchmarks/guidance.py",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": settings,
        **references(),
        "choice": {name: choice[name] for name in candidates() if name in choice},
        "rows": {name: rows[name] for name in table if name in rows},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
