"""python -m companion evaluate: a run and real images in, a file of figures out."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from . import _images, _run
from ._problems import Problem, memory, say, writing

COMPONENTS, PAIRS, AT_MOST = 32, 8, 2000
FEATURES = (
    "the first {components} principal components of the real images' pixels, and the length of what they leave over, "
    "which sees noise and blur; both per pixel on the scale from -1 to 1. Not Inception's features: compare runs on "
    "the same images, not with a published FID"
)
NEAREST = (
    "root mean square difference per pixel, on the scale from -1 to 1, between an image and the nearest one that was "
    "trained on; share_nearer is the share of samples that are nearer than the nearest twentieth of the images kept "
    "back: 0.05 is expected, much more means copying"
)


def evaluate(options: Namespace) -> int:
    """Judge a run, write the figures, and return the exit code."""
    began = time.monotonic()
    run = _run.load(options.run, _run.device_of(options.device))
    _run.refuse_guidance(options.run, run.classes, options.scale)
    out: Path = options.run / "metrics.json" if options.out is None else options.out
    replaced = _try_to_write(out)
    real, shown, unseen, why = _real(options, run)
    num = min(options.num, len(real) // 2)
    if num < 2:
        raise Problem(f"there are {len(real)} real images, and two halves of 2 or more are needed: give more images.")
    if num < options.num:
        say(f"  {num} samples in the place of {options.num}: half of the {len(real)} real images")
    unseen = unseen[torch.randperm(len(unseen), generator=torch.Generator().manual_seed(options.seed))[: options.num]]
    calls: list[int] = []
    hook = run.net.register_forward_pre_hook(lambda net, inputs: calls.append(len(inputs[0])))
    labels = _labels(run, num, options.seed)
    with memory(_run.LESS):
        x = run.draw(num, labels, steps=options.steps, sampler=options.sampler, scale=options.scale, seed=options.seed)
    hook.remove()
    found: dict[str, Any] = {
        "run": str(options.run), "step": run.step,
        "images": {"source": _source(options, run), "count": len(real)},
        "samples": {
            "num": num, "steps": options.steps, "sampler": options.sampler, "scale": options.scale,
            "seed": options.seed, "network_calls_per_sample": sum(calls) / num,
        },
        "frechet_distance": frechet(x, real, options.seed),
        "nearest_training_image": nearest(x, shown, unseen) if why is None else {"not_measured": why},
        "seconds": round(time.monotonic() - began, 1), "device": str(run.device), "versions": _run.versions(),
    }  # fmt: skip
    _run.write_json(out, found)
    for line in table(found):
        say(line)
    say(f"written to {out}" + " in the place of the file that was there" * replaced)
    return 0


def _try_to_write(path: Path) -> bool:
    """Refuse a file that cannot be written before the work and not after it; return whether there is one already."""
    path = Path(os.path.realpath(path))  # a link is left as it is
    with writing():
        there = path.exists()
        path.open("a").close()
        if not there:
            path.unlink()
    return there


def _source(options: Namespace, run: _run.Trained) -> str:
    source: str = run.settings["data"]["source"]
    return source if options.images is None else _images.source_of(options.images)


def _real(options: Namespace, run: _run.Trained) -> tuple[Tensor, Tensor, Tensor, str | None]:
    """Return the images to compare with, those trained on, those not, and why the last two are missing if they are."""
    chosen, trained_on, size = run.settings["options"], run.settings["data"], run.settings["size"]

    def load(source: str, hold_out: float, strict: bool) -> _images.Images:
        grey = source not in _images.SETS and run.net.channels == 1
        return _images.load(source, size=size, grey=grey, strict=strict, hold_out=hold_out)

    source = _source(options, run)
    come = _images.SETS.get(source, (size,))
    if size not in come:
        sizes = " or ".join(map(str, sorted(set(come))))
        raise Problem(f"{options.run} draws images of {size}, but {source} come in {sizes}; name a folder.")
    images = load(source, chosen["hold_out"], options.strict)
    if images.x.shape[1] != run.net.channels:
        raise Problem(f"{source} has {images.x.shape[1]} channel(s), but {options.run} draws {run.net.channels}.")
    if images.sha256 == trained_on["sha256"]:
        why = None if images.held.any() else "no image was kept back: train with a larger --hold-out"
        return images.x, images.x[~images.held], images.x[images.held], why
    if options.images is None or source == trained_on["source"]:
        fix = "bring them back, or copy these to another folder and name that one"
        _images.refuse_others(images, run.settings, options.run, fix)
    none, gone = images.x[:0], f"{trained_on['source']}, which the run was trained on, is gone or has changed"
    if trained_on["source"] not in _images.SETS and not os.path.isdir(trained_on["source"]):
        return images.x, none, none, gone
    old = load(trained_on["source"], chosen["hold_out"], False)
    if old.sha256 != trained_on["sha256"]:
        return images.x, none, none, gone
    shown = old.x[~old.held]
    unseen = _not_among(images.x, shown)
    return images.x, shown, unseen, None if len(unseen) else "the run was trained on all these images: name others"


def _not_among(x: Tensor, shown: Tensor) -> Tensor:
    """Return the images (N, *D) that are none of those shown (M, *D)."""
    known = {one.numpy().tobytes() for one in shown}
    return x[torch.tensor([one.numpy().tobytes() not in known for one in x])]


def _labels(run: _run.Trained, num: int, seed: int) -> Tensor | None:
    """Return classes drawn in the shares that they have among the training images, or None."""
    if not run.classes:
        return None
    shares = torch.tensor(run.settings["class_counts"], dtype=torch.float64)
    return torch.multinomial(shares, num, replacement=True, generator=torch.Generator().manual_seed(seed))


def frechet(x: Tensor, real: Tensor, seed: int) -> dict[str, Any]:
    """Return the Frechet distance of samples (N, *D) from real images (2 N or more, *D), its floor, and that of noise.

    >>> x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> found = frechet(x[:10], x[10:], seed=0)
    >>> found["value"] < found["of_noise"]
    True
    """
    generator, num = torch.Generator().manual_seed(seed), len(x)
    components = max(1, min(COMPONENTS, num // 4))
    features = principal(real, components, generator)
    noise = torch.randn(x.shape, generator=generator).clamp(-1, 1)
    known, mine, theirs = features(real), features(x), features(noise)
    halves = _halves(known, num, generator)
    floor, floor_sd = metrics.floor(metrics.frechet_distance, lambda: next(halves), pairs=PAIRS)
    values = torch.tensor([metrics.frechet_distance(mine, next(halves)) for _ in range(PAIRS)])
    return {
        "value": float(values.mean()), "sd": float(values.std()), "floor": floor, "floor_sd": floor_sd,
        "of_noise": metrics.frechet_distance(theirs, next(halves)), "images_in_each_set": num,
        "features": FEATURES.format(components=components),
    }  # fmt: skip


def _halves(x: Tensor, num: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield sets of `num` images for ever; the first two have none in common, nor the next two, and so on."""
    while True:
        order = torch.randperm(len(x), generator=generator)
        yield x[order[:num]]
        yield x[order[num : 2 * num]]


def principal(real: Tensor, components: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a function from images (N, *D) to (N, components + 1) features, both per pixel.

    >>> x = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> principal(x, 3, torch.Generator())(x).shape
    torch.Size([20, 4])
    """
    flat = real.flatten(1).double()
    mean, pixels = flat.mean(0), flat.shape[1]
    some = flat[torch.randperm(len(flat), generator=generator)[:AT_MOST]] - mean
    if len(some) < pixels:  # the smaller of the two matrices
        values, vectors = torch.linalg.eigh(some @ some.T)
        axes = some.T @ vectors[:, -components:] / values[-components:].clamp(min=1e-12).sqrt()
    else:
        axes = torch.linalg.eigh(some.T @ some)[1][:, -components:]

    def features(x: Tensor) -> Tensor:
        centred = x.flatten(1).double() - mean
        along = centred @ axes
        rest = (centred.square().sum(1) - along.square().sum(1)).clamp(min=0).sqrt()
        return torch.cat([along, rest[:, None]], dim=1) / pixels**0.5

    return features


def nearest(x: Tensor, shown: Tensor, unseen: Tensor) -> dict[str, Any]:
    """Return how near samples, and images kept back, lie to the nearest image trained on.

    >>> shown = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> found = nearest(shown[:5] + 0.01, shown, torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(1)))
    >>> round(found["samples_median"], 3), found["share_nearer"]
    (0.01, 1.0)
    """
    pixels = x[0].numel()
    mine, theirs = (metrics.nearest_distance(z, shown) / pixels**0.5 for z in (x, unseen))
    return {
        "samples_median": float(mine.median()), "kept_back_median": float(theirs.median()),
        "share_nearer": float((mine < theirs.quantile(0.05)).double().mean()), "images_kept_back": len(unseen),
        "meaning": NEAREST,
    }  # fmt: skip


def table(found: dict[str, Any]) -> list[str]:
    """Return the figures as lines to print.

    >>> found = {"frechet_distance": {"value": 0.2, "sd": 0.01, "floor": 0.1, "floor_sd": 0.01, "of_noise": 1.0},
    ...          "nearest_training_image": {"not_measured": "no image was kept back"},
    ...          "samples": {"network_calls_per_sample": 20.0}}
    >>> print(table(found)[1])
      of the samples             0.2000 ± 0.0100
    """
    f, near, calls = (found[key] for key in ("frechet_distance", "nearest_training_image", "samples"))
    lines = [
        "Frechet distance from real images (less is better)",
        f"  of the samples             {f['value']:.4f} ± {f['sd']:.4f}",
        f"  floor: real against real   {f['floor']:.4f} ± {f['floor_sd']:.4f}",
        f"  of pure noise              {f['of_noise']:.4f}",
        "Distance to the nearest training image (median)",
    ]
    if "not_measured" in near:
        lines.append(f"  not measured: {near['not_measured']}")
    else:
        lines += [
            f"  of the samples             {near['samples_median']:.4f}",
            f"  of images kept back        {near['kept_back_median']:.4f}",
            f"  samples nearer than 95 % of those kept back: {near['share_nearer']:.1%} (5 % is expected)",
        ]
    return [*lines, f"Network calls for one sample: {calls['network_calls_per_sample']:g}"]
