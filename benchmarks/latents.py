"""Pixels against latents on clothes: what a sample costs at the same Frechet distance, and what the latents need.

    python benchmarks/latents.py          # about a quarter of an hour on one CPU core

Writes companion/results/latents.json, which chapter 8 reads. Needs the networks that
`python -m companion.weights.fashion_classifier`, `fashion_autoencoder` and `fashion_denoisers` train. Four parts:

- "cost": samples of both denoisers by the number of network calls. The distance is between 1,000 samples, 100 a class,
  and the 5,000 training images of the subset; a cost is multiply-adds of one sample, the decoder's included. The
  processor's clock is measured for both in turn. Draw i of a row starts from the seed of draw i of every other row.
- "scale": the same short training on the latents of the subset, multiplied by different numbers.
- "shifted": the same on the latents as they are, under the schedule that latents of those scales would meet.
- "kl": autoencoders trained shortly with different weights of the KL term; 1e-9 stands for draws without the term.

The last three are made for each seed; a row is the mean over them, with each beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from companion import data, latents, metrics, networks, predictions, schedules, training, weights
from companion.weights import fashion_denoisers

OUT = Path(__file__).parents[1] / "companion" / "results" / "latents.json"
SETTINGS: dict[str, Any] = {
    "samples": 1000,
    "draws": 4,
    "seeds": [0, 1, 2],
    "pixel_calls": [4, 6, 8, 10, 20],
    "latent_calls": [4, 5, 6, 7, 8, 10, 12, 20],
    "scales": [0.18215, 1.0, 5.49],
    "scale_steps": 200,
    "scale_calls": 20,
    "kl_weights": [0.0, 1e-9, 1e-4, 1e-3, 1e-2, 1e-1],
    "kl_seeds": list(range(9)),
    "kl_steps": 150,
    "kl_batch": 32,
    "kl_arguments": {"channels": 1, "width": 8},
}


def multiply_adds(net: nn.Module, *inputs: Any) -> int:
    """Return how many multiply-adds one call makes, in convolutions, dense layers and attention."""
    total = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d | nn.Linear):
            total += out.numel() * module.weight[0].numel()
        elif type(module).__name__ == "_Attention":
            total += 2 * out.numel() * out[0, 0].numel()  # queries by keys, then weights by values

    hooks = [module.register_forward_hook(count) for module in net.modules()]
    with torch.no_grad():
        net(*inputs)
    for hook in hooks:
        hook.remove()
    return total


def costs() -> dict[str, int]:
    """Return the multiply-adds of one image: a call of each denoiser, and the decoder."""
    space, t = fashion_denoisers.space(), torch.tensor([0.5])
    z = torch.zeros(1, *space.shape)
    return {
        "pixels": multiply_adds(weights.load("fashion_pixels_denoiser"), torch.zeros(1, 1, 32, 32), t, 0),
        "latents": multiply_adds(weights.load("fashion_latents_denoiser"), z, t, 0),
        "decoder": multiply_adds(space.autoencoder.decoder, z),
    }


def compare(options: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return distance and cost of both kinds by the number of calls, and what the autoencoder alone costs.

    Rows that an earlier run made with the same networks, samples and draws are kept.
    """
    space, one, rows = fashion_denoisers.space(), costs(), {}
    labels = torch.arange(options["samples"]) % 10
    for kind, calls in (("pixels", options["pixel_calls"]), ("latents", options["latent_calls"])):
        net = weights.load(f"fashion_{kind}_denoiser")
        made_with = {"samples": options["samples"], "draws": options["draws"], "network": sha256(kind)}
        for num_calls in calls:
            name = f"{kind}, {num_calls}"
            if before.get(name, {}).get("made_with") == made_with:
                rows[name] = before[name]
                continue
            each = []
            for seed in range(options["draws"]):
                x = fashion_denoisers.sample(net, labels, num_calls=num_calls, seed=seed)
                each.append(fashion_denoisers.distance(space.decode(x) if kind == "latents" else x))
            products = num_calls * one[kind] + (one["decoder"] if kind == "latents" else 0)
            rows[name] = {
                "distance": sum(each) / len(each), "each": each, "multiply_adds": products, "made_with": made_with,
            }  # fmt: skip
            print(f"{name} calls: {each}", flush=True)
    held_out = data.fashion("held-out", size=32)[0]
    restored = space.decode(space.encode(held_out))
    floor = {"held out": fashion_denoisers.distance(held_out), "restored": fashion_denoisers.distance(restored)}
    return {
        "one_call": one, "clock": clock(), "rows": rows, "floor": floor, "cheaper": cheaper(rows),
    }  # fmt: skip


def sha256(kind: str) -> str:
    """Return the first digits of the checksum of a denoiser and, for latents, of the autoencoder."""
    names = ["pixels_denoiser"] if kind == "pixels" else ["latents_denoiser", "autoencoder"]
    return " ".join(weights.card(f"fashion_{name}")["sha256"][:12] for name in names)


def clock(turns: int = 5, batch: int = 20) -> dict[str, float]:
    """Return the processor seconds of one image: a call of each denoiser, and the decoder, measured in turn."""
    space, t, y = fashion_denoisers.space(), torch.full((batch,), 0.5), torch.arange(batch) % 10
    nets = {kind: weights.load(f"fashion_{kind}_denoiser") for kind in ("pixels", "latents")}
    z, seconds = torch.randn(batch, *space.shape), {"pixels": [], "latents": [], "decoder": []}
    calls: dict[str, Callable[[], Tensor]] = {
        "pixels": lambda: nets["pixels"](torch.zeros(batch, 1, 32, 32), t, y),
        "latents": lambda: nets["latents"](z, t, y),
        "decoder": lambda: space.decode(z),
    }
    for _ in range(turns):
        for name, call in calls.items():
            began = time.process_time()
            with torch.no_grad():
                call()
            seconds[name].append((time.process_time() - began) / batch)
    return {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}


def cheaper(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return, for each row of pixels, the cheapest of latents that is at least as good, and how much cheaper it is."""
    found = {}
    for name, row in rows.items():
        good = [n for n, r in rows.items() if n.startswith("latents") and r["distance"] <= row["distance"]]
        if name.startswith("pixels") and good:
            best = min(good, key=lambda n: rows[n]["multiply_adds"])
            found[name] = {"by": best, "times": row["multiply_adds"] / rows[best]["multiply_adds"]}
    return found


def scaled(space: latents.LatentSpace, factor: float) -> latents.LatentSpace:
    """Return the space with every latent `factor` times as large."""
    return latents.LatentSpace(space.autoencoder, space.shift, space.scale * factor, space.shape)


class Shifted(schedules.Schedule):
    """The schedule that the usual one is to latents `factor` times as large: log-SNR higher by 2 log(factor)."""

    base = fashion_denoisers.SCHEDULE

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def _norm(self, t: Tensor) -> Tensor:
        return torch.hypot(self.factor * self.base.alpha(t), self.base.sigma(t))

    def _alpha(self, t: Tensor) -> Tensor:
        return self.factor * self.base.alpha(t) / self._norm(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.base.sigma(t) / self._norm(t)


def train_scaled(factor: float, options: dict[str, Any], seed: int) -> dict[str, float]:
    """Train a denoiser shortly on latents of the wrong scale, and return the distance of its samples."""
    return train_latents(factor, fashion_denoisers.SCHEDULE, options, seed)


def train_shifted(factor: float, options: dict[str, Any], seed: int) -> dict[str, float]:
    """Train one on latents of the right scale under the schedule of the wrong one."""
    return train_latents(1.0, Shifted(factor), options, seed)


def train_latents(factor: float, schedule: schedules.Schedule, options: dict[str, Any], seed: int) -> dict[str, float]:
    """Train a denoiser shortly on latents `factor` times as large, and return the distance of its samples."""
    space, (x, y) = scaled(fashion_denoisers.space(), factor), data.fashion("train", size=32)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = networks.UNet(**fashion_denoisers.ARGUMENTS["latents"])
    z = space.encode(x)
    for _ in training.fit(
        net, data.batches(z, y, size=128, generator=generator), schedule, predictions.V,
        num_steps=options["scale_steps"], generator=generator, warmup=20, ema_decay=0.98, precision="bfloat16",
        progress=False,
    ):  # fmt: skip
        pass
    labels = torch.arange(options["samples"]) % 10
    drawn = fashion_denoisers.sample(net, labels, num_calls=options["scale_calls"], seed=seed, schedule=schedule)
    found = {
        "std": z.std().item(), "drawn std": drawn.std().item(),
        "distance": fashion_denoisers.distance(space.decode(drawn)),
    }  # fmt: skip
    print(f"scale {factor}, {type(schedule).__name__}, seed {seed}: {found}", flush=True)
    return found


def train_kl(kl_weight: float, options: dict[str, Any], seed: int) -> dict[str, float]:
    """Train a small autoencoder shortly, and return what its latents look like and how well it restores."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = networks.Autoencoder(**options["kl_arguments"])
    batches = data.batches(data.fashion("train", size=32)[0], size=options["kl_batch"], generator=generator)
    for _ in training.fit_autoencoder(
        net, batches, num_steps=options["kl_steps"], kl_weight=kl_weight, generator=generator, warmup=20,
        ema_decay=0.95, progress=False,
    ):  # fmt: skip
        pass
    x = data.fashion("held-out", size=32)[0]
    with torch.no_grad():
        mean, log_variance = net.posterior(x)
        drawn = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator)
        found = {
            "psnr": metrics.psnr(net(x)[None], x[None]).item(),
            "psnr of drawn latents": metrics.psnr(net.decode(drawn)[None], x[None]).item(),
            "std": mean.std().item(),
            "posterior std": (log_variance / 2).exp().mean().item(),
        }
    print(f"KL weight {kl_weight}, seed {seed}: {found}", flush=True)
    return found


def over_seeds(
    train: Callable[[float, dict[str, Any], int], dict[str, float]],
    value: float,
    options: dict[str, Any],
    seeds: str = "seeds",
) -> dict[str, Any]:
    """Return the mean of what a training gives over the seeds of that setting, and what each gave."""
    each = [train(value, options, seed) for seed in options[seeds]]
    return {name: sum(found[name] for found in each) / len(each) for name in each[0]} | {"each": each}


def main(argv: list[str] | None = None) -> None:
    """Run the parts asked for, keep what the file says of the others, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", choices=("cost", "scale", "shifted", "kl"), action="append", help="a part (default: all)"
    )
    parser.add_argument("--tiny", action="store_true", help="a few steps and samples, to see that it runs")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    settings = {**SETTINGS, **TINY} if options.tiny else SETTINGS
    parts = options.only or ("cost", "scale", "shifted", "kl")
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    result |= {
        "script": "benchmarks/latents.py",
        "settings": settings,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }
    if "kl" in parts:
        result["kl"] = {str(w): over_seeds(train_kl, w, settings, "kl_seeds") for w in settings["kl_weights"]}
    if "scale" in parts:
        result["scale"] = {str(s): over_seeds(train_scaled, s, settings) for s in settings["scales"]}
    if "shifted" in parts:
        shifts = [scale for scale in settings["scales"] if scale != 1]
        result["shifted"] = {str(s): over_seeds(train_shifted, s, settings) for s in shifts}
    if "cost" in parts:
        result["cost"] = compare(settings, result.get("cost", {}).get("rows", {}))
        names = ("autoencoder", "latents_denoiser", "pixels_denoiser")
        result["cost"]["training_seconds"] = {name: weights.card(f"fashion_{name}")["seconds"] for name in names}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


TINY = {"samples": 40, "draws": 1, "seeds": [0, 1], "pixel_calls": [2], "latent_calls": [2, 3], "scales": [1.0, 5.0],
        "scale_steps": 2, "scale_calls": 2, "kl_seeds": [0, 1], "kl_weights": [0.0, 0.1], "kl_steps": 2}  # fmt: skip

if __name__ == "__main__":
    main()
