"""What is each trick of training worth? One row a trick, three seeds, judged by samples; and three runs watched.

    python benchmarks/training.py              # about a quarter of an hour of one CPU core; stops and goes on

Writes companion/results/training.json, which chapter 6 reads. Every row trains the same small U-Net on the digits,
class-conditional, with one setting changed, draws a sample for each of the chosen training labels with 20 steps of
dpmpp_2m, and measures the Frechet distance to the held-out digits. A row and seed that is in the file with the same
settings is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from companion import data, denoisers, losses, metrics, networks, predictions, samplers, schedules, training, weights

OUT = Path(__file__).parents[1] / "companion" / "results" / "training.json"
BASE: dict[str, Any] = {"width": 12, "num_steps": 240, "batch": 64, "lr": 3e-3, "warmup": 24, "samples": 500}
LATER = {"num_steps": 600, "look": 100}  # loss and samples during a longer training
FEW = {"images": 64, "num_steps": 500, "batch": 32, "look": 100}  # too few data


def shift(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Move each image by -1, 0 or 1 pixel both ways; what enters is background."""
    down, right = torch.randint(3, (2, len(x), 1), generator=generator)
    padded = nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)[:, 0]
    rows, columns = (move + torch.arange(8) for move in (down, right))
    return padded[torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


def flip(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Mirror half of the images."""
    turned = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(turned[:, None, None, None], x.flip(-1), x)


def free_times(n: int, *, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Draw each time by itself."""
    return 1 - torch.rand(n, generator=generator, device=device)


# name -> what is changed: an argument of fit, or one of OURS, which `prepare` and `Judge` read
ROWS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "no EMA": {"ema_decay": 0.0},
    "EMA 0.999 without its warm-up": {"ema_warmup": False},
    "constant learning rate": {"lr_decay": training.constant},
    "constant learning rate, no EMA": {"lr_decay": training.constant, "ema_decay": 0.0},
    "no warm-up": {"warmup": 0},
    "no clipping": {"clip": math.inf},
    "lr x 10": {"lr": 3e-2},
    "lr x 10, no clipping": {"lr": 3e-2, "clip": math.inf},
    "lr x 10, no warm-up": {"lr": 3e-2, "warmup": 0},
    "lr x 10, neither": {"lr": 3e-2, "warmup": 0, "clip": math.inf},
    "lr / 10": {"lr": 3e-4},
    "batch 16, same steps": {"batch": 16},
    "batch 16, same samples": {"batch": 16, "num_steps": 960, "warmup": 96},
    "batch 256, same steps": {"batch": 256},
    "batch 256, same samples": {"batch": 256, "num_steps": 60, "warmup": 6},
    "accumulate 4 x 16": {"batch": 16, "accumulate": 4},
    "data in [0, 1]": {"data": (0.0, 1.0)},
    "data in [0, 255]": {"data": (0.0, 255.0)},
    "bfloat16": {"precision": "bfloat16"},
    "activation checkpointing": {"net": {"checkpointing": True}},
    "dropout 0.1": {"net": {"dropout": 0.1}},
    "shifts by a pixel": {"transform": shift},
    "mirrored": {"transform": flip},
    "free times": {"times": free_times},
    "linear schedule": {"schedule": schedules.Linear()},
    "sigmoid schedule": {"schedule": schedules.Sigmoid()},
    "flow matching": {"schedule": schedules.FlowMatching(), "prediction": predictions.VELOCITY},
}
OURS = ("width", "num_steps", "batch", "samples", "data", "net", "schedule", "prediction", "transform")


def settings_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return all settings of a row."""
    cosine = {"schedule": schedules.Cosine(), "prediction": predictions.V, "data": (-1.0, 1.0), "net": {}}
    return {**BASE, **cosine, "transform": None, **row}


def written(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's changes as JSON can hold them."""
    return json.loads(json.dumps(row, default=lambda value: getattr(value, "__name__", type(value).__name__)))


def prepare(settings: dict[str, Any], seed: int) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Return an untrained network, its training steps, and the arguments that made them."""
    x, y = data.digits("train")
    low, high = settings["data"]
    x = (x + 1) / 2 * (high - low) + low
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = networks.UNet(1, width=settings["width"], num_classes=10, **settings["net"])
    source = data.batches(x, y, size=settings["batch"], generator=generator, transform=settings["transform"])
    options = {key: value for key, value in settings.items() if key not in OURS}
    steps = training.fit(
        net, source, settings["schedule"], settings["prediction"], num_steps=settings["num_steps"],
        generator=generator, progress=False, **options,
    )  # fmt: skip
    return net, steps, options


class Judge:
    """Draws samples with a network and measures them."""

    def __init__(self, samples: int) -> None:
        train, labels = data.digits("train")
        self.labels = labels[:samples]
        self.held_out, self.held_out_labels = data.digits("held-out")
        self.classifier = weights.load("digit_classifier")
        self.floor = self.frechet(train[:samples])

    def frechet(self, x: Tensor) -> float:
        """Return the Frechet distance of images to the held-out digits."""
        return metrics.frechet_distance(x, self.held_out, features=self.classifier.features)

    def sample(self, net: nn.Module, settings: dict[str, Any], seed: int) -> Tensor:
        """Draw an image in [-1, 1] for each label."""
        schedule, labels = settings["schedule"], self.labels
        denoiser = denoisers.from_network(net, schedule, settings["prediction"])
        ts = schedule.time_grid(20)
        start = samplers.start(schedule, (len(labels), 1, 8, 8), ts, generator=torch.Generator().manual_seed(seed))
        x = samplers.last(samplers.dpmpp_2m(lambda x, t: denoiser(x, t, labels), schedule, start, ts)).x
        low, high = settings["data"]
        return ((x - low) / (high - low) * 2 - 1).clamp(-1, 1)

    def judge(self, net: nn.Module, settings: dict[str, Any], seed: int) -> dict[str, float]:
        """Return the Frechet distance of samples and the share that shows the digit asked for."""
        x = self.sample(net, settings, 1000 + seed)
        right = (self.classifier(x).argmax(1) == self.labels).float().mean()
        return {"frechet": round(self.frechet(x), 4), "as asked": round(float(right), 4)}


def run_row(row: dict[str, Any], seed: int, judge: Judge) -> dict[str, Any]:
    """Train one network and judge it; where training stops with an error, say at which step."""
    settings = settings_of(row)
    net, steps, _ = prepare(settings, seed)
    norms, values = [], []
    try:
        for step in steps:
            norms.append(float(step.grad_norm))
            values.append(float(step.loss))
    except ValueError as error:
        return {"stopped": len(values) + 1, "error": str(error).split(";")[0]}
    late = values[-len(values) // 5 :]
    found = {"loss": round(sum(late) / len(late), 5), "largest norm": round(max(norms), 3)}
    return judge.judge(net, settings, seed) | found


def saved_bytes(row: dict[str, Any]) -> int:
    """Return how many bytes one forward pass keeps for the way back, the weights themselves not counted."""
    settings = settings_of(row)
    net, _, options = prepare(settings, 0)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    x, y = torch.randn(settings["batch"], 1, 8, 8), torch.arange(settings["batch"]) % 10
    half = options.get("precision") == "bfloat16"
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", enabled=half):
        out = net(x, torch.rand(len(x)), y)
    total = sum(kept.values())
    out.sum().backward()
    return total


def time_ratios(rows: dict[str, dict[str, Any]], rounds: int, steps: int) -> dict[str, float]:
    """Return the processor time of a step, as a multiple of the baseline's, measured in turns."""
    runs = {name: prepare({**settings_of(row), "num_steps": 10_000}, 0)[1] for name, row in rows.items()}
    spent: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            for _ in range(steps):
                next(run)
            spent[name].append(time.process_time() - began)
    return {
        name: round(statistics.median(a / b for a, b in zip(mine[1:], spent["baseline"][1:], strict=True)), 3)
        for name, mine in spent.items()
    }


TIMED = (
    "baseline", "no EMA", "no clipping", "batch 16, same steps", "batch 256, same steps", "accumulate 4 x 16",
    "bfloat16", "activation checkpointing", "dropout 0.1", "shifts by a pixel",
)  # fmt: skip


@torch.no_grad()
def fixed_loss(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the loss on the same times and noise at every call."""
    x, y = x.repeat(-(-512 // len(x)), 1, 1, 1), y.repeat(-(-512 // len(y)))
    generator = torch.Generator().manual_seed(5)
    return float(losses.denoising_loss(net, x, schedules.Cosine(), predictions.V, cond=y, generator=generator).mean())


def watch_longer(seed: int, judge: Judge, num_steps: int, look: int) -> dict[str, list[float]]:
    """Train longer, and note loss and samples of the averaged network on the way."""
    settings = settings_of({"num_steps": num_steps})
    _, steps, _ = prepare(settings, seed)
    real, labels = data.digits("held-out")
    curve: dict[str, list[float]] = {"step": [], "training loss": [], "held-out loss": [], "frechet": []}
    recent = []
    for step in steps:
        recent.append(float(step.loss))
        if step.index % look == 0:
            curve["step"].append(step.index)
            curve["training loss"].append(round(sum(recent) / len(recent), 5))
            curve["held-out loss"].append(round(fixed_loss(step.ema, real, labels), 5))
            curve["frechet"].append(judge.judge(step.ema, settings, seed)["frechet"])
            recent = []
    return curve


def watch_few(seed: int, judge: Judge, images: int, num_steps: int, batch: int, look: int) -> dict[str, list[float]]:
    """Train on too few images, and note losses and how near samples come to those images."""
    settings = settings_of({"num_steps": num_steps, "batch": batch})
    x, y = (part[:images] for part in data.digits("train"))
    real, labels = data.digits("held-out")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = networks.UNet(1, width=BASE["width"], num_classes=10)
    reference = float(metrics.nearest_distance(real, x).median())
    names = ("step", "training loss", "held-out loss", "nearest")
    curve: dict[str, list[float]] = {name: [] for name in names}
    for step in training.fit(
        net, data.batches(x, y, size=batch, generator=generator), schedules.Cosine(), predictions.V,
        num_steps=num_steps, lr=BASE["lr"], generator=generator, progress=False,
    ):  # fmt: skip
        if step.index % look == 0:
            near = metrics.nearest_distance(judge.sample(step.ema, settings, 1000 + seed)[:200], x).median()
            numbers = (step.index, fixed_loss(step.ema, x, y), fixed_loss(step.ema, real, labels), near / reference)
            for name, number in zip(names, numbers, strict=True):
                curve[name].append(round(float(number), 5))
    return curve


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and write after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default: 3)")
    parser.add_argument("--shrink", type=int, default=1, help="divide all numbers of steps by this, for a dry run")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="some rows only")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    small = options.shrink

    judge = Judge(BASE["samples"] if small == 1 else 40)
    result: dict[str, Any] = json.loads(options.out.read_text(encoding="utf8")) if options.out.exists() else {}
    head = {
        "script": "benchmarks/training.py", "settings": BASE, "seeds": list(range(options.seeds)),
        "later": LATER, "few": FEW, "floor": round(judge.floor, 4), "real as asked": round(float(
            (judge.classifier(judge.held_out).argmax(1) == judge.held_out_labels).float().mean()), 4),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    result = {**result, **head}

    def store(part: str, name: str, changes: dict[str, Any], runs: int, run: Callable[[int], Any]) -> None:
        entry = result.setdefault(part, {}).setdefault(name, {})
        if entry.get("changes") != changes:
            entry.clear()
            entry |= {"changes": changes, "runs": []}
        for seed in range(len(entry["runs"]), runs):
            entry["runs"].append(run(seed))
            print(part, name, seed, str(entry["runs"][-1])[:120], flush=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")

    for name in options.rows:
        row = ROWS[name]
        if small > 1:
            row = {**row, "num_steps": max(2, row.get("num_steps", BASE["num_steps"]) // small)}
        store("rows", name, written(row), options.seeds, lambda seed, row=row: run_row(row, seed, judge))
        if "kept bytes" not in result["rows"][name]:
            result["rows"][name]["kept bytes"] = saved_bytes(row)
    later = {"num_steps": max(2, LATER["num_steps"] // small), "look": max(1, LATER["look"] // small)}
    store("watched", "longer", later, options.seeds, lambda seed: watch_longer(seed, judge, **later))
    few = {**FEW, "num_steps": max(2, FEW["num_steps"] // small), "look": max(1, FEW["look"] // small)}
    store("watched", "few", few, options.seeds, lambda seed: watch_few(seed, judge, **few))
    if "time" not in result:
        rows = {name: ROWS[name] for name in TIMED}
        result["time"] = time_ratios(rows, 5 if small == 1 else 1, 4 if small == 1 else 1)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
