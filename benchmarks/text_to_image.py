"""Text to image: three ways to join text to a U-Net at one budget, and what the shipped model does with new prompts.

python benchmarks/text_to_image.py [--parts joinings shipped] -> companion/results/text_to_image.json

joinings  Five networks of about the same size, trained on the same batches of forty objects, and judged on pairs of
          object and colour held out and on new scenes: three joinings, no text, and captions of other pictures.
shipped   The model of weights.load("emoji_text_to_image") on all 734 pairs held out and on new scenes, at several
          scales and seeds, with the autoencoder's own output judged beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import data, latents, losses, networks, text_to_image, training
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
OBJECTS, STEPS, BATCH, LR = 40, 1500, 64, 2e-3
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Shuffled:
    """The batches of another source, each caption moved on to the next picture."""

    def __init__(self, source: painter.Captioned) -> None:
        self.source = source

    def __iter__(self) -> Shuffled:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        z, tokens = next(self.source)
        return z, tokens.roll(1, 0)


def train(
    row: dict[str, Any], space: latents.LatentSpace, seed: int, num_steps: int, objects: int
) -> networks.TextUNet:
    """Return a small network for one row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = networks.TextUNet(
            vocabulary=len(painter.tokenizer().words), joining=row["joining"], text_width=row["text_width"], **SMALL
        )
    source = painter.Captioned(space, BATCH, torch.Generator().manual_seed(seed), among=torch.arange(objects))
    for _ in training.fit(
        net, Shuffled(source) if row.get("shuffle") else source, painter.SCHEDULE, painter.PREDICTION,
        num_steps=num_steps, lr=LR, drop_cond=row.get("drop_cond", 0.1), ema_decay=0.998, precision="bfloat16",
        generator=torch.Generator().manual_seed(seed + 1), progress=False,
    ):  # fmt: skip
        pass
    return net


def held_out_loss(net: networks.TextUNet, space: latents.LatentSpace, objects: int) -> float:
    """Return the denoising loss on scenes that were not trained on, at fixed times and noise."""
    asked = data.scenes(256, among=torch.arange(objects), generator=torch.Generator().manual_seed(12))
    tokens, generator = painter.tokenizer()(asked.captions), torch.Generator().manual_seed(13)
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


def on_pairs(model: text_to_image.TextToImage, asked: data.ColouredEmoji, scale: float, seed: int) -> dict[str, float]:
    """Return the judge's shares on single objects."""
    x = model(asked.captions, scale=scale, generator=torch.Generator().manual_seed(seed))
    return shares(painter.judge(x, asked, model.space), PAIR)


def on_scenes(model: text_to_image.TextToImage, asked: data.Scenes, scale: float, seed: int) -> dict[str, float]:
    """Return the judge's shares on scenes."""
    x = model(asked.captions, scale=scale, generator=torch.Generator().manual_seed(seed))
    return shares(painter.judge_scenes(x, asked, model.space), SCENE)


def joinings(
    num_steps: int = STEPS, seeds: tuple[int, ...] = (0, 1), objects: int = OBJECTS, scenes: int = 200
) -> list[dict[str, Any]]:
    """Train and judge every row."""
    space = painter.latent_space()
    held_out = data.coloured_emoji("held-out")
    held_out = painter.some(held_out, (held_out.objects < objects).nonzero()[:, 0])
    asked = data.scenes(scenes, among=torch.arange(objects), generator=torch.Generator().manual_seed(11))
    rows = []
    for seed in seeds:
        for name, row in ROWS.items():
            net = train(row, space, seed, num_steps, objects)
            model = text_to_image.TextToImage(net, painter.tokenizer(), space, painter.SCHEDULE, painter.PREDICTION)
            rows.append({
                "name": name, "seed": seed, "parameters": sum(p.numel() for p in net.parameters()),
                "loss on new scenes": round(held_out_loss(net, space, objects), 4),
                "pairs": on_pairs(model, held_out, 2.0, seed), "scenes": on_scenes(model, asked, 2.0, seed),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def shipped(
    seeds: tuple[int, ...] = (0, 1, 2, 3), scales: tuple[float, ...] = SCALES, scenes: int = 400, pairs: int = 734
) -> dict[str, Any]:
    """Judge the shipped model, and the autoencoder's own output."""
    model = painter.load()
    held_out = painter.some(data.coloured_emoji("held-out"), torch.arange(pairs))
    asked = {
        split: data.scenes(scenes, split, generator=torch.Generator().manual_seed(21))
        for split in ("train", "held-out")
    }

    def decoded(x: Tensor) -> Tensor:
        return model.space.decode(model.space.encode(x)).clamp(-1, 1)

    result: dict[str, Any] = {"pairs": [], "scenes": [], "ceiling": {
        "pairs": shares(painter.judge(decoded(held_out.x), held_out, model.space), PAIR),
        "scenes": {
            split: shares(painter.judge_scenes(decoded(s.x), s, model.space), SCENE) for split, s in asked.items()
        },
    }}  # fmt: skip
    for scale in scales:
        for seed in seeds:
            row = {"scale": scale, "seed": seed}
            result["pairs"].append(row | on_pairs(model, held_out, scale, seed))
            for split in asked if seed < 2 else ():
                result["scenes"].append(row | {"split": split} | on_scenes(model, asked[split], scale, seed))
            print(result["pairs"][-1], result["scenes"][-1], flush=True)
    return result


def main() -> None:
    """Run the parts asked for and store what they give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("joinings", "shipped"), default=["joinings", "shipped"])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    result["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    result["settings"] = {"objects": OBJECTS, "steps": STEPS, "batch": BATCH, "lr": LR, "network": SMALL, "rows": ROWS}
    for part in options.parts:
        result[part] = {"joinings": joinings, "shipped": shipped}[part]()
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
