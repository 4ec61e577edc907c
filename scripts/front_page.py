"""Draw the pictures of the front page into book/_static: python scripts/front_page.py [NAME ...] (about three minutes).

The names are those of PICTURES; without one, all are drawn. Nothing is chosen by eye: what is shown is what the first
seed gave, and the prompts are the first of a seeded order of pairs that the model was not trained on. A picture is
1,440 pixels wide for a page of 720, and its text is legible at the width of a phone.
"""

import argparse
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from companion import data, denoisers, networks, plots, predictions, samplers, schedules, training
from companion.weights import emoji_text_to_image as painter

FOLDER = Path(__file__).parents[1] / "book" / "_static"
SCHEDULE = schedules.Cosine()
WIDTH, DPI = 7.2, 200
TEXT = 17.6  # points, of a picture 7.2 inches wide: 11 pixels where that picture is shown 326 pixels wide
INK, QUIET, TEAL = "#222222", "#555555", "#0E4F6B"  # teal as the favicon


@lru_cache(maxsize=1)
def roll_path() -> tuple[Tensor, list[Tensor]]:
    """The grid and the 21 states of 2,000 points, by a network trained for 4,000 steps."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = networks.MLP(2, width=96)
    source = data.batches(data.swiss_roll(20_000, generator=generator), size=512, generator=generator)
    for _ in training.fit(net, source, SCHEDULE, predictions.V, num_steps=4000, generator=generator, progress=False):
        pass
    model = denoisers.from_network(net, SCHEDULE, predictions.V)
    ts = SCHEDULE.time_grid(20)
    x = samplers.start(SCHEDULE, (2000, 2), ts, generator=generator)
    return ts, [x] + [step.x for step in samplers.dpmpp_2m(model, SCHEDULE, x, ts)]


@lru_cache(maxsize=1)
def painted() -> tuple[list[str], Tensor]:
    """The first twelve held-out pairs of a seeded order as prompts, and what the shipped model paints."""
    captions = data.coloured_emoji("held-out").captions
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0))[:12]
    prompts = [captions[k] for k in order.tolist()]
    return prompts, painter.load()(prompts, scale=2.0, generator=torch.Generator().manual_seed(0))


def roll() -> Figure:
    """Noise, two stages, and the Swiss roll."""
    ts, path = roll_path()
    figure, axes = plots.figure(4, width=WIDTH / 4, height=WIDTH / 4 + 0.4)
    for ax, i in zip(axes, (0, 11, 13, 20), strict=True):
        points(ax, path[i], reach=2.8)
        ax.set_title("noise" if i == 0 else f"t = {float(ts[i]):.2f}".removesuffix(".00"), fontsize=TEXT)
    return figure


def digits() -> Figure:
    """One digit of each class, by the network of chapter 5."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = networks.UNet(1, width=16, multipliers=(1, 2), blocks=1, attention=(1,), num_classes=10)
    source = data.batches(*data.digits("train"), size=96, generator=generator)
    for _ in training.fit(
        net, source, SCHEDULE, predictions.V, num_steps=900, lr=3e-3, generator=generator, progress=False
    ):
        pass
    model = denoisers.from_network(net, SCHEDULE, predictions.V)
    ts = SCHEDULE.time_grid(20)
    x = samplers.start(SCHEDULE, (10, 1, 8, 8), ts, generator=generator)
    asked = torch.arange(10)
    drawn = samplers.last(samplers.dpmpp_2m(lambda x, t: model(x, t, asked), SCHEDULE, x, ts)).x
    return gallery(drawn, [f"“{c}”" for c in range(10)], columns=5, lines=1)


def prompts() -> Figure:
    """Eight pictures under the prompts that they were painted from."""
    captions, x = painted()
    return gallery(x[:8], captions[:8], columns=4, lines=2)


def walk() -> Figure:
    """One scene of two objects on its way: the latent above, the guess at the picture, decoded, below."""
    generator = torch.Generator().manual_seed(0)
    scene = data.scenes(1, split="held-out", generator=generator)
    model = painter.load()
    ts = samplers.grid(samplers.dpmpp_2m, model.schedule, 20)
    z = samplers.start(model.schedule, (1, *model.space.shape), ts, generator=generator)
    with torch.no_grad():
        steps = list(samplers.dpmpp_2m(model.denoiser(scene.captions, scale=2.0), model.schedule, z, ts))
    shown = (0, 5, 10, 19)
    figure, axes = plots.figure(4, 2, width=WIDTH / 4, height=WIDTH / 4 + 0.25)
    for column, i in enumerate(shown):
        before = z if i == 0 else steps[i - 1].x  # the noisy latent that guess i was made from
        paint(axes[0, column], (before[0, :3] if i < 19 else steps[i].x[0, :3]) / 3)
        paint(axes[1, column], model.space.decode(steps[i].x0_hat)[0])
        axes[0, column].set_title(f"step {i + 1}", fontsize=TEXT)
    for row, name in enumerate(("latent", "picture")):
        axes[row, 0].set_ylabel(name, fontsize=TEXT, color=INK)
    figure.suptitle(f"“{scene.captions[0]}”", fontsize=TEXT, color=INK)
    return figure


def social() -> Figure:
    """The card that a link to the book is shown with, 1200 x 630."""
    x, path = painted()[1], roll_path()[1]
    with plt.rc_context({**plots.STYLE, "mathtext.fontset": "stix"}):
        figure = plt.figure(figsize=(6, 3.15))
    plt.close(figure)
    figure.patches.append(plt.Rectangle((0, 0), 0.014, 1, color=TEAL, transform=figure.transFigure))
    figure.text(0.06, 0.845, "Diffusion Models,", fontsize=30, fontweight="bold", color=INK, va="center")
    figure.text(0.06, 0.695, "Built and Tested", fontsize=30, fontweight="bold", color=TEAL, va="center")
    figure.text(0.06, 0.565, "From noise to pictures in plain PyTorch, every claim measured", fontsize=12.5,
                color=QUIET, va="center")  # fmt: skip
    with plt.rc_context({"mathtext.fontset": "stix"}):
        figure.text(0.06, 0.435, r"$x_t \;=\; \alpha(t)\,x_0 \;+\; \sigma(t)\,\varepsilon$", fontsize=23, color=INK,
                    va="center")  # fmt: skip
    side, gap = 0.130, 0.0175
    for k in range(6):
        ax = figure.add_axes((0.06 + k * (side + gap), 0.07, side, side * 6 / 3.15))
        if k < 3:
            points(ax, path[(0, 13, 20)[k]], reach=(3.0, 2.0, 1.6)[k])
        else:
            paint(ax, x[k - 3])
    return figure


def gallery(x: Tensor, titles: Sequence[str], *, columns: int, lines: int) -> Figure:
    """Pictures in rows, each under its title, which is wrapped to so many lines."""
    rows = -(-len(x) // columns)
    figure, axes = plots.figure(columns, rows, width=WIDTH / columns, height=WIDTH / columns + 0.15 + 0.27 * lines)
    for ax in axes.flat[len(x) :]:
        ax.set_axis_off()
    for ax, picture, title in zip(axes.flat, x, titles, strict=False):
        paint(ax, picture)
        for k, line in enumerate(reversed(textwrap.wrap(title, 11))):
            ax.annotate(line, (0.5, 1), xycoords="axes fraction", xytext=(0, 6 + 1.15 * TEXT * k),
                        textcoords="offset points", ha="center", fontsize=TEXT, color=INK)  # fmt: skip
    return figure


def points(ax: Axes, x: Tensor, *, reach: float) -> None:
    """Points in the plane, without axes."""
    ax.scatter(*x.detach().numpy().T, s=5, color=plots.COLORS[0], alpha=0.6, linewidths=0)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    bare(ax)


def paint(ax: Axes, picture: Tensor) -> None:
    """One image (C, H, W) in [-1, 1], clipped."""
    shown = ((picture.detach().clamp(-1, 1) + 1) / 2).permute(1, 2, 0)
    ax.imshow(shown.expand(-1, -1, 3).numpy(), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    bare(ax)


def bare(ax: Axes) -> None:
    """No grid, no frame."""
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


PICTURES = {
    "noise-to-roll": roll,
    "digits-on-request": digits,
    "pictures-from-prompts": prompts,
    "prompt-to-picture": walk,
    "social-preview": social,
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure with 128 colours, which halves the file and cannot be seen."""
    buffer = BytesIO()
    tight = {} if figure.get_layout_engine() is None else {"bbox_inches": "tight", "pad_inches": 0.05}
    figure.savefig(buffer, dpi=DPI, facecolor="white", **tight)
    Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw those named, or all."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the front page.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(PICTURES)}; all by default")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write them")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.names) - set(PICTURES))
    if unknown:
        parser.error(f"there is no picture {', '.join(unknown)}; there are {', '.join(PICTURES)}.")
    for name in asked.names or PICTURES:
        save(PICTURES[name](), asked.folder / f"{name}.png")


if __name__ == "__main__":
    main()
