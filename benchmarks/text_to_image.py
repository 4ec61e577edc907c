"""Text to image: three ways to join text to a U-Net at one budget, and what the shipped model does with new prompts.

    python benchmarks/text_to_image.py          # under an hour on one CPU core

Writes companion/results/text_to_image.json, which chapter 10 reads. Rows that the file already has, made with the same
settings, are kept. Two parts:

- "joinings": five networks of about the same size, trained on the same batches of forty objects, and judged on pairs of
  object and colour held out and on scenes drawn afresh (training met a third of them): three joinings, no text, in
  training or in the test, and captions of other pictures. Cross-attention is judged at several scales of guidance.
- "shipped": the model of weights.load("emoji_text_to_image") on all 734 pairs held out and on new scenes, at several
  scales and seeds, with the autoencoder's own output judged beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import data, latents, losses, networks, text_to_image, training, weights
from companion.weights import emoji_text_to_image as painter

OUT = Path(__file__).parent.parent / "companion" / "results" / "text_to_image.json"
SMALL: dict[str, Any] = {
    "channels": 4, "length": painter.LENGTH, "width": 32, "multipliers": [1, 2], "blocks": 1, "attention": [0, 1],
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {  # the text's width makes the number of parameters about the same
    "concatenation": {"joining": ["concatenation"], "text_width": 84},
    "scale-and-shift": {"joining": ["scale-and-shift"], "text_width": 84},
    "cross-attention": {"joining": ["cross-attention"], "text_width": 64},
    "no text": {"joining": ["cross-attention"], "text_width": 64, "drop_cond": 1.0},
    "other captions": {"joining": ["cross-attention"], "text_width": 64, "shuffle": True},
}
BASELINES = ("no text", "other captions")
SETTINGS: dict[str, Any] = {
    "objects": 40,
    "steps": 1500,
    "batch": 64,
    "lr": 2e-3,
    "joining_seeds": [0, 1],
    "baseline_seeds": [0],
    "joining_scale": 2.0,
    "joining_scales": [1.0, 1.5, 3.0, 4.0, 6.0],
    "scales": [1.0, 2.0, 4.0],
    "pairs": 734,
    "pair_seeds": [0, 1, 2, 3],
    "scenes": 200,
    "scene_seeds": [0, 1],
}
TINY = {
    "objects": 3, "steps": 2, "batch": 4, "joining_seeds": [0], "baseline_seeds": [0], "joining_scales": [1.0],
    "scales": [1.0, 2.0], "pairs": 4, "pair_seeds": [0, 1], "scenes": 3, "scene_seeds": [0],
}  # fmt: skip


class Shuffled:
    """The batches of another source, each caption moved on to the next picture."""

    def __init__(self, source: painter.Captioned) -> None:
        self.source = source

    def __iter__(self) -> Shuffled:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        z, tokens = next(self.source)
        return z, tokens.roll(1, 0)


def train(row: dict[str, Any], space: latents.LatentSpace, seed: int, options: dict[str, Any]) -> networks.TextUNet:
    """Return a small network for one row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = networks.TextUNet(
            vocabulary=len(painter.tokenizer().words), joining=row["joining"], text_width=row["text_width"], **SMALL
        )
    among, generator = torch.arange(options["objects"]), torch.Generator().manual_seed(seed)
    source = painter.Captioned(space, options["batch"], generator, among=among)
    for _ in training.fit(
        net, Shuffled(source) if row.get("shuffle") else source, painter.SCHEDULE, painter.PREDICTION,
        num_steps=options["steps"], lr=options["lr"], drop_cond=row.get("drop_cond", 0.1), ema_decay=0.998,
        precision="bfloat16", generator=torch.Generator().manual_seed(seed + 1), progress=False,
    ):  # fmt: skip
        pass
    return net


def fresh_loss(net: networks.TextUNet, space: latents.LatentSpace, objects: int, told: bool) -> float:
    """Return the denoising loss on scenes drawn afresh, at fixed times and noise, with or without their captions."""
    asked = data.scenes(256, among=torch.arange(objects), generator=torch.Generator().manual_seed(12))
    tokens = painter.tokenizer()(asked.captions if told else [""] * 256)
    generator = torch.Generator().manual_seed(13)
    with torch.no_grad():
        loss = losses.denoising_loss(
            net, space.encode(asked.x), painter.SCHEDULE, painter.PREDICTION, cond=tokens, generator=generator
        )
    return float(loss.mean())


def shares(found: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, float]:
    """Return the mean of each, rounded."""
    return {name: round(float(found[name].float().mean()), 4) for name in names}


PAIR, SCENE = (
    ("object", "colour", "both", "right", "ratio"),
    ("objects", "colours", "strict", "swapped", "either order", "right", "ratio"),
)


def drawn(model: text_to_image.TextToImage, captions: tuple[str, ...], scale: float, seed: int, told: bool) -> Tensor:
    """Return a picture for each caption, or for as many empty ones."""
    prompts = captions if told else [""] * len(captions)
    return model(prompts, scale=scale, generator=torch.Generator().manual_seed(seed))


def on_pairs(
    model: text_to_image.TextToImage, asked: data.ColouredEmoji, scale: float, seed: int, told: bool = True
) -> dict[str, float]:
    """Return the judge's shares on single objects, drawn from their captions or from none."""
    return shares(painter.judge(drawn(model, asked.captions, scale, seed, told), asked, model.space), PAIR)


def on_scenes(
    model: text_to_image.TextToImage, asked: data.Scenes, scale: float, seed: int, told: bool = True
) -> dict[str, float]:
    """Return the judge's shares on scenes, drawn from their captions or from none."""
    return shares(painter.judge_scenes(drawn(model, asked.captions, scale, seed, told), asked, model.space), SCENE)


def joinings(options: dict[str, Any], before: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Train and judge every row, and yield the rows so far after each."""
    space, held_out = painter.latent_space(), data.coloured_emoji("held-out")
    held_out = painter.some(held_out, (held_out.objects < options["objects"]).nonzero()[:, 0])
    among = torch.arange(options["objects"])
    asked = data.scenes(options["scenes"], among=among, generator=torch.Generator().manual_seed(11))
    names = ("objects", "steps", "batch", "lr", "joining_scale", "joining_scales", "scenes")
    rows: list[dict[str, Any]] = []
    for seed in options["joining_seeds"]:
        for name, row in ROWS.items():
            if name in BASELINES and seed not in options["baseline_seeds"]:
                continue
            made_with = {key: options[key] for key in names} | {"network": SMALL} | row
            kept = [r for r in before if r["name"] == name and r["seed"] == seed and r["made_with"] == made_with]
            if not kept:
                net = train(row, space, seed, options)
                model = text_to_image.TextToImage(net, painter.tokenizer(), space, painter.SCHEDULE, painter.PREDICTION)
                scale, told = options["joining_scale"], name != "no text"
                kept = [{
                    "name": name, "seed": seed, "parameters": sum(p.numel() for p in net.parameters()),
                    "loss": round(fresh_loss(net, space, options["objects"], told), 4),
                    "pairs": on_pairs(model, held_out, scale, seed, told),
                    "scenes": on_scenes(model, asked, scale, seed, told),
                    "made_with": made_with,
                }]  # fmt: skip
                if name == "cross-attention":
                    at = {scale: kept[0]["scenes"]}
                    at |= {other: on_scenes(model, asked, other, seed) for other in options["joining_scales"]}
                    kept[0]["scenes by scale"] = [{"scale": other, **at[other]} for other in sorted(at)]
                print(kept[0], flush=True)
            rows += kept
            yield rows


def shipped(options: dict[str, Any], before: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Judge the shipped model, and the autoencoder's own output; yield what there is so far after each scale."""
    model, made_with = painter.load(), weights.card(painter.NAME)["sha256"][:12]
    held_out = painter.some(data.coloured_emoji("held-out"), torch.arange(options["pairs"]))
    asked = {
        split: data.scenes(options["scenes"], split, generator=torch.Generator().manual_seed(21))
        for split in ("train", "held-out")
    }

    def decoded(x: Tensor) -> Tensor:
        return model.space.decode(model.space.encode(x)).clamp(-1, 1)

    found: dict[str, Any] = {"pairs": [], "scenes": [], "ceiling": {
        "pairs": shares(painter.judge(decoded(held_out.x), held_out, model.space), PAIR),
        "scenes": {
            split: shares(painter.judge_scenes(decoded(s.x), s, model.space), SCENE) for split, s in asked.items()
        },
    }}  # fmt: skip

    def row(part: str, count: int, make: Callable[[], dict[str, float]], **about: Any) -> None:
        about |= {"count": count, "network": made_with}
        kept = [r for r in before.get(part, []) if about.items() <= r.items()]
        made = kept[0] if kept else about | make()
        found[part].append(made)
        print(made, flush=True)

    for scale in options["scales"]:
        for seed in options["pair_seeds"]:
            row("pairs", options["pairs"], partial(on_pairs, model, held_out, scale, seed), scale=scale, seed=seed)
        for seed in options["scene_seeds"]:
            for split, scenes in asked.items():
                make = partial(on_scenes, model, scenes, scale, seed)
                row("scenes", options["scenes"], make, scale=scale, seed=seed, split=split)
        yield found


def main(argv: list[str] | None = None) -> None:
    """Run the parts asked for, keep what the file says of the other, and write after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("joinings", "shipped"), action="append", help="a part (default: both)")
    parser.add_argument("--tiny", action="store_true", help="a few steps and samples, to see that it runs")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    settings = {**SETTINGS, **TINY} if options.tiny else SETTINGS
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    result |= {
        "script": "benchmarks/text_to_image.py",
        "settings": settings,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name, part, empty in (("joinings", joinings, []), ("shipped", shipped, {})):
        if name in (options.only or (name,)):
            for found in part(settings, result.get(name, empty)):
                options.out.write_text(json.dumps({**result, name: found}, indent=1) + "\n")
            result[name] = found


if __name__ == "__main__":
    main()
