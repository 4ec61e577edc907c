"""Draw the book's diagrams into book/_static/diagrams: python scripts/diagrams.py [--folder FOLDER] (ten seconds).

Every shape, channel count and parameter count in a diagram is read from the network that it shows: `Traced` runs it
once on a small input with hooks on all its parts. The pictures inside are computed too, by the exact denoiser of the
Swiss roll or by the networks that ship with the package. The same code gives the same bytes.

A diagram is 360 units wide and tall rather than wide, so that its text is legible at the width of a phone.
"""

import argparse
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import torch
from torch import Tensor, nn

from companion import data, denoisers, encodings, guidance, networks, noise, predictions, samplers, schedules, weights
from companion.plots import COLORS
from companion.weights import emoji_text_to_image as painter
from companion.weights import fashion_denoisers

FOLDER = Path(__file__).parents[1] / "book" / "_static" / "diagrams"
WIDTH, SHOWN = 360, 1.4  # units, and pixels for each where the page has room
SIZE, SMALL = 13.6, 12.8
INK, LINE = "#222222", "#444444"
ROLES = {"data": COLORS[0], "noise": COLORS[1], "told": COLORS[2], "latent": COLORS[3], "net": "#8A8A8A", "plain": LINE}
TINTS = {"data": "#E3F0F8", "noise": "#FBE9DF", "told": "#DFF3EC", "latent": "#F9EEF4", "net": "#F0F0F0"}
NAMES = {
    "data": "data, or a guess at them",
    "noise": "noise",
    "mixed": "noisy data",
    "told": "time, class, words",
    "latent": "latent",
    "net": "trained weights",
    "edge": "told the code",
}
STYLE = (
    f"text{{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','DejaVu Sans',sans-serif;"
    f"font-size:{SIZE}px;fill:{INK};text-anchor:middle}}"
    f".l{{text-anchor:start}}.r{{text-anchor:end}}.q{{font-size:{SMALL}px;fill:#333333}}.b{{font-weight:600}}"
    ".m{font-family:Cambria,Georgia,'Times New Roman','DejaVu Serif',serif;font-style:italic;font-size:1.06em}"
    ".s{font-size:12.5px}"
)
Point = tuple[float, float]
SCHEDULE = schedules.Cosine()


class Drawing:
    """An SVG under way: boxes, arrows and text, from the top down; `svg` returns it with a legend of the roles used."""

    def __init__(self, title: str, desc: str) -> None:
        self.title, self.desc = title, desc
        self.parts: list[str] = []
        self.used: set[str] = set()
        self.names = dict(NAMES)
        self.bottom = 0.0

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """One line at the baseline y, `$x_t$` as mathematics; of kind l, r (anchored so), q (small) or b (bold)."""
        attribute = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{attribute}>{marked(words)}</text>')
        self.bottom = max(self.bottom, y + 4)

    def box(
        self, x: float, y: float, w: float, h: float, lines: Sequence[str], role: str = "net", *, edge: bool = False
    ) -> None:
        """A box of a role with centred lines, the first a little larger; an edge says that it is told the code."""
        self.used |= {role} | ({"edge"} if edge else set())
        fill = "url(#mixed)" if role == "mixed" else TINTS.get(role, "#FFFFFF")
        stroke = "url(#mixed-line)" if role == "mixed" else ROLES[role]
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="5" fill="{fill}" stroke="{stroke}"/>'
        )
        if edge:
            self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="5" height="{h:g}" rx="2" fill="{ROLES["told"]}"/>')
        middle, pitch = x + w / 2 + 2 * edge, 16.0
        top = y + h / 2 - pitch * (len(lines) - 1) / 2 + 4.6
        for i, line in enumerate(lines):
            self.text(middle, top + i * pitch, line, "q" if i else "")
        self.bottom = max(self.bottom, y + h)

    def line(self, *points: Point, role: str = "plain", dashed: bool = False, head: bool = True) -> None:
        """A line through points, with an arrow's head at the last."""
        color = ROLES[role]
        if head:
            (x0, y0), (x, y) = points[-2:]
            dx, dy = ((x > x0) - (x < x0), 0) if y == y0 else (0, (y > y0) - (y < y0))
            if x != x0 and y != y0:
                length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
                dx, dy = (x - x0) / length, (y - y0) / length
            a, b = (x - 7 * dx, y - 7 * dy), (3.5 * dy, 3.5 * dx)
            tip = f"M{x:g} {y:g}L{a[0] + b[0]:.4g} {a[1] - b[1]:.4g}L{a[0] - b[0]:.4g} {a[1] + b[1]:.4g}z"
            self.parts.append(f'<path d="{tip}" fill="{color}"/>')
            points = (*points[:-1], (round(x - 5 * dx, 1), round(y - 5 * dy, 1)))
        way = "M" + "L".join(f"{px:g} {py:g}" for px, py in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(f'<path d="{way}" fill="none" stroke="{color}" stroke-width="1.3"{dash}/>')
        self.bottom = max(self.bottom, *(py for _, py in points))

    def plus(self, x: float, y: float) -> None:
        """A sum, as a circle of radius 8."""
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="8" fill="#FFFFFF" stroke="{LINE}" stroke-width="1.2"/>'
            f'<path d="M{x - 4:g} {y:g}h8M{x:g} {y - 4:g}v8" stroke="{LINE}" stroke-width="1.3"/>'
        )

    def frame(self, x: float, y: float, side: float, role: str, content: str, fill: str = "#FFFFFF") -> None:
        """A square with a thin frame of its role's colour round what was computed."""
        self.used.add(role)
        stroke = "url(#mixed-line)" if role == "mixed" else ROLES[role]
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" fill="{fill}"/>'
            f'<g class="computed" transform="translate({x:g} {y:g})">{content}</g>'
            f'<rect x="{x - 1:g}" y="{y - 1:g}" width="{side + 2:g}" height="{side + 2:g}" rx="2" fill="none" '
            f'stroke="{stroke}" stroke-width="2"/>'
        )
        self.bottom = max(self.bottom, y + side + 2)

    def pixels(self, x: float, y: float, side: float, picture: Tensor, role: str) -> None:
        """An image (C, H, W) in [-1, 1], C of 1 or 3, in 12 levels of each colour."""
        steps = ((picture.detach().clamp(-1, 1) + 1) / 2 * 11).round().long().expand(3, -1, -1)
        height, width = steps.shape[1:]
        runs: dict[str, list[str]] = {}
        for i in range(height):
            row = ["#" + "".join(f"{v * 255 // 11:02X}" for v in steps[:, i, j].tolist()) for j in range(width)]
            start = 0
            for j in range(1, width + 1):
                if j == width or row[j] != row[start]:
                    runs.setdefault(row[start], []).append(f"M{start} {i}h{j - start}v1h-{j - start}z")
                    start = j
        paths = "".join(f'<path fill="{color}" d="{"".join(d)}"/>' for color, d in sorted(runs.items()))
        inside = f'<g transform="scale({side / width:.6g})" shape-rendering="crispEdges">{paths}</g>'
        self.frame(x, y, side, role, inside)

    def dots(self, x: float, y: float, side: float, points: Tensor, role: str, reach: float = 2.3) -> None:
        """Points (N, 2) within -reach to reach, those outside left out."""
        at = ((points.detach() * torch.tensor([1.0, -1.0]) / reach + 1) / 2 * side).tolist()
        marks = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in at if 1 < a < side - 1 and 1 < b < side - 1)
        color = "url(#mixed-line)" if role == "mixed" else ROLES[role]
        stroke = "#6F5A72" if role == "mixed" else color
        path = f'<path d="{marks}" stroke="{stroke}" stroke-width="2" stroke-linecap="round" fill="none"/>'
        self.frame(x, y, side, role, path)

    def legend(self) -> None:
        """What the colours used mean, in rows at the bottom."""
        x, y = 10.0, self.bottom + 26
        self.parts.append(f'<path d="M8 {y - 14:g}H352" stroke="#DDDDDD"/>')
        for role in (r for r in self.names if r in self.used):
            width = 24 + 6.8 * len(self.names[role])
            if x + width > WIDTH - 4:
                x, y = 10.0, y + 20
            if role == "edge":
                self.parts.append(
                    f'<rect x="{x:g}" y="{y - 5:g}" width="14" height="12" rx="2" fill="{TINTS["net"]}" '
                    f'stroke="{ROLES["net"]}"/><rect x="{x:g}" y="{y - 5:g}" width="5" height="12" rx="2" '
                    f'fill="{ROLES["told"]}"/>'
                )
            else:
                fill = "url(#mixed)" if role == "mixed" else TINTS[role]
                stroke = "url(#mixed-line)" if role == "mixed" else ROLES[role]
                self.parts.append(
                    f'<rect x="{x:g}" y="{y - 5:g}" width="14" height="12" rx="2" fill="{fill}" stroke="{stroke}"/>'
                )
            self.text(x + 20, y + 5.5, self.names[role], "l q")
            x += width + 8
        self.bottom = y + 10

    def svg(self) -> str:
        """The whole file."""
        self.legend()
        height = round(self.bottom + 6)
        pair = (f'<stop stop-color="{a}"/><stop offset="1" stop-color="{b}"/></linearGradient>' for a, b in (
            (TINTS["data"], TINTS["noise"]), (ROLES["data"], ROLES["noise"])))  # fmt: skip
        ramps = "".join(f'<linearGradient id="{n}">{s}' for n, s in zip(("mixed", "mixed-line"), pair, strict=True))
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{round(WIDTH * SHOWN)}" height="{round(height * SHOWN)}" '
            f'viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title desc">',
            f'<title id="title">{escape(self.title)}</title>',
            f'<desc id="desc">{escape(self.desc)}</desc>',
            f"<style>{STYLE}</style>",
            f"<defs>{ramps}</defs>",
            f'<rect width="{WIDTH}" height="{height}" fill="#FFFFFF"/>',
            *self.parts,
            "</svg>\n",
        ])  # fmt: skip


def marked(words: str) -> str:
    """Text with `$...$` set as mathematics: letters slanted, _x and _{xy} lowered, ^x and ^{xy} raised."""
    pieces: list[tuple[str, str, float]] = []  # what, classes, how far below the line
    for i, part in enumerate(words.split("$")):
        if i % 2 == 0:
            pieces += [(part, "", 0.0)] if part else []
            continue
        for mark, inner, plain in re.findall(r"([_^])(\{[^}]*\}|.)|([^_^]+)", part):
            inside, low = (inner.strip("{}"), 3.5 if mark == "_" else -5.0) if mark else (plain, 0.0)
            for run in re.findall(r"(?:[A-Za-zα-ωε]\u0302?)+|[^A-Za-zα-ωε]+", inside):
                classes = ["m"] * (run[0].isalpha()) + ["s"] * bool(mark)
                pieces.append((run, " ".join(classes), low))
    out, depth = "", 0.0
    for what, classes, low in pieces:
        attributes = (f' class="{classes}"' if classes else "") + (f' dy="{low - depth:g}"' if low != depth else "")
        out += f"<tspan{attributes}>{escape(what)}</tspan>" if attributes else escape(what)
        depth = low
    return out


class Traced:
    """A network, run once on these inputs: what goes into each of its parts, and what comes out.

    Args:
        net: any network.
        inputs: of one call, in a batch of 1.
    """

    def __init__(self, net: nn.Module, *inputs: Any) -> None:
        self.net = net
        self.into: dict[nn.Module, list[tuple[int, ...]]] = {}
        self.out: dict[nn.Module, tuple[int, ...]] = {}
        hooks = [part.register_forward_hook(self._note) for part in net.modules()]
        with torch.no_grad():
            self.answer = net(*inputs)
        for hook in hooks:
            hook.remove()

    def _note(self, part: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        self.into[part] = [tuple(x.shape[1:]) for x in given if isinstance(x, Tensor)]
        self.out[part] = tuple((out[0] if isinstance(out, tuple) else out).shape[1:])

    def shape(self, part: nn.Module) -> str:
        """The shape that comes out of a part, such as 16×8×8."""
        return times(self.out[part])

    def change(self, part: nn.Module) -> str:
        """What a part does to the channels, such as 48 → 16×8×8, or only the shape where they stay."""
        before, after = self.into[part][0][0], self.out[part]
        return times(after) if before == after[0] else f"{before} → {times(after)}"


def times(shape: Sequence[int]) -> str:
    """A shape as 16×8×8."""
    return "×".join(map(str, shape))


def size(net: nn.Module) -> str:
    """How many parameters, as 109,417."""
    return f"{sum(p.numel() for p in net.parameters()):,}"


def layer_name(layer: nn.Module) -> str:
    """What a part of the U-Net is called in a diagram."""
    kind = type(layer).__name__
    if kind == "_Layer":
        return "block" if isinstance(layer.attention, nn.Identity) else "block + attention"
    return {"_Down": "halve", "_Up": "double", "Conv2d": "conv 3×3"}[kind]


@lru_cache(maxsize=1)
def noisy_digit() -> tuple[Tensor, Tensor]:
    """A held-out digit and the same under noise, each (1, 8, 8)."""
    x0 = data.digits("held-out")[0][3]
    x, _ = noise.add_noise(x0[None], torch.tensor([0.35]), SCHEDULE, generator=torch.Generator().manual_seed(5))
    return x0, x[0]


def three_networks(width: int = 12) -> Drawing:
    """Chapter 2: dense network, encoder-decoder and U-Net, at one budget."""
    dense = networks.DenseDenoiser((1, 8, 8), width=679)
    funnel = networks.EncoderDecoder(1, width=14, multipliers=(1, 2, 2), latent=4)
    unet = networks.UNet(1, width=width, multipliers=(1, 2), attention=(1,))
    x, t = torch.zeros(1, 1, 8, 8), torch.zeros(1)
    d = Drawing(
        "Three denoising networks at one budget",
        "The dense network flattens the picture, joins the time and has one hidden layer. The encoder-decoder halves "
        "the picture twice, passes it through 16 numbers and doubles it again. The U-Net halves once, and hands what "
        "it had at each size across to the way up, by skips.",
    )
    d.names["edge"] = "told the time"
    y = 22.0
    d.text(8, y, "Dense network", "l b")
    d.text(352, y, f"{size(dense)} parameters", "r q")
    traced = Traced(dense, x, t)
    pixels, hidden = traced.out[dense.out][0], traced.out[dense.hidden][0]
    d.pixels(9, y + 17, 48, noisy_digit()[1], "mixed")
    d.line((60, y + 41), (84, y + 41))
    d.box(84, y + 12, 66, 36, [f"{pixels}", "pixels"], "mixed")
    d.box(84, y + 54, 66, 26, [f"{dense.step_dim} for $t$"], "told")
    d.line((150, y + 33), (174, y + 33))
    d.line((150, y + 67), (174, y + 67), role="told")
    d.box(174, y + 12, 80, 68, [f"{hidden}", "hidden", "units"])
    d.line((254, y + 41), (274, y + 41))
    d.box(274, y + 16, 78, 50, ["guess $x̂_0$", traced.shape(dense)], "data")
    y = shown_u(d, y + 114, "Encoder-decoder", Traced(funnel, x, t))
    shown_u(d, y + 40, "U-Net", Traced(unet, x, t))
    return d


def shown_u(d: Drawing, y: float, name: str, traced: Traced) -> float:
    """One network of convolutions at a glance, a row for each size; returns where it ends."""
    net: Any = traced.net
    skips, levels = name == "U-Net", net.halvings + 1
    d.text(8, y, name, "l b")
    d.text(352, y, f"{size(net)} parameters", "r q")
    y += 12
    d.pixels(49, y + 3, 48, noisy_digit()[1], "mixed")
    d.box(222, y + 3, 130, 48, ["guess $x̂_0$", traced.shape(net)], "data")
    d.text(279, y + 70, "norm, conv", "r q")
    down = [m for m in net.down if type(m).__name__ == "_Layer"]
    up = [m for m in net.up if type(m).__name__ == "_Layer"][:: -2 if skips else -1]
    doubles = [m for m in net.up if type(m).__name__ == "_Up"][::-1]
    d.line((73, y + 54), (73, y + 76))
    for k in range(levels):
        top, left, right = y + 76 + 58 * k, 8 + 8 * k, 222 - 8 * k
        first = ("halve, " if k else "conv, ") + layer_name(down[k]).replace(" + attention", "*")
        last = ("2 blocks" if skips else "block") + ("*" if "attention" in layer_name(up[k]) else "")
        d.box(left, top, 130, 40, [first, traced.shape(down[k])], edge=True)
        out = doubles[k - 1] if k else up[k]
        d.box(right, top, 130, 40, [last + (", double" if k else ""), traced.shape(out)], edge=True)
        if k:
            d.line((73, top - 18), (73, top))
        d.line((287, top), (287, top - (18 if k else 25)))
        if skips:
            d.line((left + 130, top + 20), (right, top + 20))
            d.text(180, top + 14, "2 skips", "q")
    foot = y + 76 + 58 * levels
    d.line((73, foot - 18), (73, foot + 20), (92, foot + 20))
    d.line((268, foot + 20), (287, foot + 20), (287, foot - 18))
    if skips:
        d.box(92, foot, 176, 40, ["block*, block", traced.shape(net.middle[-1])], edge=True)
        d.text(180, foot + 60, "* with attention: every pixel", "q")
        d.text(180, foot + 76, "looks at every other one", "q")
        return foot + 80
    neck = traced.out[net.to_latent]
    d.box(92, foot, 176, 40, [times(neck), f"= {torch.Size(neck).numel()} numbers"], "latent")
    d.text(180, foot - 103, "nothing", "q")
    d.text(180, foot - 87, "crosses", "q")
    return foot + 40


def unet(
    title: str = "The U-Net that draws digits", *, width: int = 16, num_classes: int | None = 10, answer: str = "$v̂$"
) -> Drawing:
    """Chapters 2 and 5: every layer of a U-Net for 8×8 digits, its skips, and where the time and the class enter."""
    net = networks.UNet(1, width=width, multipliers=(1, 2), attention=(1,), num_classes=num_classes)
    traced = Traced(net, torch.zeros(1, 1, 8, 8), torch.zeros(1))
    classes = "" if num_classes is None else " and the class"
    d = Drawing(
        title,
        f"On the left the noisy picture goes down: convolution, block, halving, block with attention. At the bottom "
        f"are two more blocks. On the right the way up; each block there is also handed, by a skip, what the left had "
        f"in the same row. A code of the time{classes} reaches every block.",
    )
    d.text(8, 22, "UNet", "l b")
    d.text(352, 22, f"{size(net)} parameters", "r q")
    y = code_row(d, 34, net.conditioning, traced)
    d.text(180, y + 16, "the code $c$ goes to every block with a green edge", "q")
    rows: list[Any] = [net.inward, *net.down]
    ups = [m for m in net.up if type(m).__name__ == "_Layer"][::-1]
    doubles = [m for m in net.up if type(m).__name__ == "_Up"][::-1]
    y += 30
    d.pixels(49, y, 44, noisy_digit()[1], "mixed")
    d.text(98, y + 20, "$x_t$", "l")
    d.text(98, y + 38, times(traced.into[net][0]), "l q")
    d.box(218, y, 134, 40, [f"answer {answer}", traced.shape(net)], "data")
    d.box(218, y + 58, 134, 26, ["norm, SiLU, conv"])
    d.line((285, y + 58), (285, y + 40))
    top, level, before = y + 102, 0, (71.0, y + 47)
    above = y + 84
    for row, (left, right) in enumerate(zip(rows, ups, strict=True)):
        if type(left).__name__ == "_Down":
            level += 1
            double = doubles.pop(0)
            d.box(218 - 8 * (level - 1), top, 134, 26, [f"double, {traced.shape(double)}"])
            d.line((285, top), (285, above))
            above, top = top + 26, top + 44
        x, r = 8 + 8 * level, 218 - 8 * level
        told = type(left).__name__ == "_Layer"
        d.box(x, top, 134, 40, [layer_name(left), traced.change(left)], edge=told)
        d.box(r, top, 134, 40, [layer_name(right), traced.change(right)], edge=True)
        d.line(before, (71, top))
        d.line((285, top), (285, above))
        d.line((x + 134, top + 20), (r, top + 20))
        d.text(180, top + 14, ("skip, " if row == 0 else "") + f"+ {traced.out[left][0]}", "q")
        before, above, top = (71, top + 40), top + 40, top + 58
    x, r = 8 + 8 * (level + 1), 218 - 8 * (level + 1)
    first, second = net.middle
    d.box(x, top, 134, 40, [layer_name(first), traced.change(first)], edge=True)
    d.box(r, top, 134, 40, [layer_name(second), traced.change(second)], edge=True)
    d.line(before, (71, top))
    d.line((x + 134, top + 20), (r, top + 20))
    d.line((285, top), (285, above))
    d.text(180, top + 62, "A skip is joined as more channels: the first number", "q")
    d.text(180, top + 78, "of a block on the right counts both. A block is two", "q")
    d.text(180, top + 94, "convolutions and a way past them.", "q")
    return d


def code_row(d: Drawing, y: float, conditioning: Any, traced: Traced) -> float:
    """How the time, and the class where there is one, become the code; returns where it ends."""
    inward, _, outward = conditioning.of_time
    wide, code = inward.in_features, traced.out[outward][0]
    d.box(8, y, 30, 40, ["$t$"], "told")
    d.line((38, y + 20), (56, y + 20), role="told")
    d.box(56, y, 92, 40, ["clocks $e$($t$)", f"{wide} numbers"], "told")
    d.line((148, y + 20), (166, y + 20), role="told")
    d.box(166, y, 86, 40, ["2 layers", f"{wide} → {code}"])
    classes = conditioning.num_classes is not None
    d.line((252, y + 20), (266 if classes else 298, y + 20), role="told")
    d.box(298, y, 54, 40, ["code $c$", f"{code}"], "told")
    if not classes:
        return y + 40
    d.plus(274, y + 20)
    d.line((282, y + 20), (298, y + 20), role="told")
    d.box(8, y + 50, 62, 40, ["class", "or none"], "told")
    d.line((70, y + 70), (88, y + 70), role="told")
    d.box(88, y + 50, 100, 40, ["table", times(conditioning.of_class.weight.shape)])
    d.line((188, y + 70), (274, y + 70), (274, y + 28), role="told")
    return y + 90


def step_encoding(width: int = 64) -> Drawing:
    """Chapter 3: from the time to a code, and how the code meets the hidden units of a block."""
    joined = {j: networks.MLP(2, width=width, joining=j) for j in ("add", "scale_shift", "concatenate")}
    traced = {j: Traced(net, torch.zeros(1, 2), torch.zeros(1)) for j, net in joined.items()}
    conditioning, blocks = joined["add"].conditioning, len(joined["add"].blocks)
    d = Drawing(
        "From the time to the hidden units",
        "The time becomes a vector of cosines and sines, and two layers make a code of it. In each block the code "
        "either adds a vector to the hidden units, or scales and shifts them. Or it is joined to the data once, before "
        "the first block.",
    )
    inward, _, outward = conditioning.of_time
    d.text(8, 22, "1. The code of the time", "l b")
    d.box(8, 34, 74, 40, ["$t$ = 0.37", "1 number"], "told")
    d.line((82, 54), (98, 54), role="told")
    d.box(98, 34, 254, 58, [], "told")
    strip(d, 105, 42, 240, encodings.sinusoidal(torch.tensor([0.37]), conditioning.length)[0])
    half = conditioning.length // 2
    d.text(163, 79, f"{half} cosines", "q")
    d.text(283, 79, f"{half} sines", "q")
    d.line((223, 92), (223, 110), role="told")
    d.box(128, 110, 190, 40, ["Linear, SiLU, Linear", f"{inward.in_features} → {inward.out_features} → "
                              f"{outward.out_features}"])  # fmt: skip
    d.line((223, 150), (223, 168), role="told")
    d.box(178, 168, 90, 40, ["code $c$", f"{traced['add'].out[conditioning][0]} numbers"], "told")
    d.text(8, 201, f"2. In each of {blocks} blocks", "l b")
    d.line((223, 208), (223, 222), role="told", head=False)
    d.line((146, 222), (326, 222), role="told", head=False)
    for left, name, title in ((8, "add", "add"), (188, "scale_shift", "scale_shift")):
        joined_block(d, left, 248, traced[name], joined[name].blocks[0], title)
        d.line((left + 138, 222), (left + 138, 228), role="told", head=False)
    y = 620.0
    d.text(8, y, "3. Or once, before the blocks", "l b")
    both = joined["concatenate"].inward
    d.box(8, y + 12, 58, 40, ["$x$", f"{joined['concatenate'].dim}"], "mixed")
    d.box(8, y + 60, 58, 40, ["$c$", f"{width}"], "told")
    d.line((66, y + 32), (86, y + 32), (86, y + 50), (106, y + 50))
    d.line((66, y + 80), (86, y + 80), (86, y + 62), (106, y + 62), role="told")
    d.box(106, y + 36, 84, 40, ["Linear", f"{both.in_features} → {both.out_features}"])
    d.line((190, y + 56), (208, y + 56))
    d.box(208, y + 36, 34, 40, ["$h$"], "plain")
    d.line((242, y + 56), (260, y + 56))
    d.box(260, y + 36, 92, 40, [f"{blocks} blocks", "without $c$"])
    return d


def joined_block(d: Drawing, x: float, y: float, traced: Traced, block: Any, title: str) -> None:
    """One residual block in a column 164 wide: the code shifts, or scales and shifts, the hidden units."""
    d.text(x + 57, y + 12, f"“{title}”", "")
    first, second, shift = block.first, block.second, block.shift
    centre, w = x + 61, 86
    d.box(centre - 43, y + 22, w, 40, ["$h$", f"{traced.out[block][0]} units"], "plain")
    d.line((centre, y + 62), (centre, y + 80))
    d.box(centre - 43, y + 80, w, 40, ["LayerNorm,", "SiLU"])
    d.line((centre, y + 120), (centre, y + 138))
    d.box(centre - 43, y + 138, w, 40, ["Linear", f"{first.in_features} → {first.out_features}"])
    d.line((centre, y + 178), (centre, y + 200))
    d.text(centre + 8, y + 193, "$u$", "l")
    twice = shift.out_features == 2 * first.out_features
    d.box(centre - 48, y + 200, 96, 30, ["(1 + $a$) $u$ + $b$" if twice else "$u$ + $b$"], "plain")
    d.box(x + 112, y + 108, 52, 56, ["Linear", f"{shift.in_features} →", f"{shift.out_features}"])
    d.line((x + 138, y - 26), (x + 138, y + 108), role="told")
    d.text(x + 146, y + 12, "$c$", "l")
    d.line((x + 138, y + 164), (x + 138, y + 215), (centre + 48, y + 215), role="told")
    d.text(x + 142, y + 193, "$a$, $b$" if twice else "$b$", "l")
    d.line((centre, y + 230), (centre, y + 248))
    d.box(centre - 43, y + 248, w, 40, ["SiLU, Linear", f"{second.in_features} → {second.out_features}"])
    d.line((centre, y + 288), (centre, y + 304))
    d.plus(centre, y + 312)
    d.line((centre - 43, y + 42), (x + 6, y + 42), (x + 6, y + 312), (centre - 8, y + 312))
    d.line((centre, y + 320), (centre, y + 342))
    d.text(centre + 8, y + 337, "new $h$", "l")


def strip(d: Drawing, x: float, y: float, width: float, code: Tensor) -> None:
    """Numbers in [-1, 1] as a strip of cells, white to green."""
    cell = width / len(code)
    dark = torch.tensor([0.0, 158.0, 115.0])
    cells = ""
    for i, v in enumerate(((code + 1) / 2 * 8).round().div(8).tolist()):
        r, g, b = (round(float(255 + (c - 255) * v)) for c in dark)
        cells += f'<path fill="#{r:02X}{g:02X}{b:02X}" d="M{i} 0h1v1h-1z"/>'
    d.parts.append(
        f'<g class="computed" transform="translate({x:g} {y:g}) scale({cell:g} 20)" shape-rendering="crispEdges">'
        f'{cells}</g><rect x="{x:g}" y="{y:g}" width="{width:g}" height="20" fill="none" stroke="{ROLES["told"]}"/>'
    )


@lru_cache(maxsize=1)
def roll_points() -> dict[str, Tensor]:
    """Points of the Swiss roll: what training draws, and a walk of 40 ancestral steps with the exact denoiser."""
    g = torch.Generator().manual_seed(0)
    line = data.swiss_roll_curve((torch.arange(300) + 0.5) / 300)
    exact = denoisers.GaussianMixture(line, torch.full((300,), 0.05**2), torch.ones(300), SCHEDULE)
    x0, t = exact.sample(260, generator=g).float(), torch.tensor(0.22)
    x, eps = noise.add_noise(x0, t, SCHEDULE, generator=g)
    ts = SCHEDULE.time_grid(40)
    start = samplers.start(SCHEDULE, (260, 2), ts, generator=g)
    steps = list(samplers.ddpm(exact, SCHEDULE, start, ts, variance="upper", generator=g))
    k = next(i for i, step in enumerate(steps) if step.t < 0.22)
    return {
        "x0": x0, "eps": eps, "x": x,
        "start": start, "mid": steps[k - 1].x, "guess": steps[k].x0_hat, "end": steps[-1].x,
    }  # fmt: skip


def training_and_sampling() -> Drawing:
    """Chapter 5: one step of training, and the loop that samples, as a flow of data."""
    p = roll_points()
    d = Drawing(
        "Training and sampling of full DDPM",
        "Training: data, noise and a random time give noisy data; the network answers with the noise; the squared "
        "error is the loss, whose gradient changes the weights. Sampling: from pure noise the network's answer gives a "
        "guess at the data, a step moves towards it and adds a little fresh noise, again and again until time 0.",
    )
    d.text(8, 22, "Training, one step", "l b")
    d.box(8, 52, 58, 42, ["time $t$", "random"], "told")
    d.dots(114, 36, 74, p["x0"], "data")
    d.dots(246, 36, 74, p["eps"], "noise")
    d.text(151, 128, "data $x_0$")
    d.text(283, 128, "noise $ε$")
    d.line((151, 134), (151, 152))
    d.line((283, 134), (283, 152))
    d.box(96, 152, 240, 32, ["$x_t$ = $α$($t$) $x_0$ + $σ$($t$) $ε$"], "mixed")
    d.line((37, 94), (37, 168), (96, 168), role="told")
    d.line((163, 184), (163, 200))
    d.dots(126, 201, 74, p["x"], "mixed")
    d.text(208, 232, "noisy data $x_t$", "l")
    d.line((163, 277), (163, 296))
    d.box(96, 296, 134, 36, ["network"])
    d.line((37, 168), (37, 306), (96, 306), role="told")
    d.line((163, 332), (163, 362))
    d.text(172, 352, "$ε̂$, its guess at $ε$", "l")
    d.box(96, 362, 240, 36, ["loss = mean of ($ε̂$ − $ε$)²"], "plain")
    d.line((321, 73), (350, 73), (350, 380), (336, 380), role="noise")
    d.line((96, 380), (66, 380), (66, 322), (96, 322), dashed=True)
    d.text(12, 416, "dashed: the gradient changes the weights", "l q")
    y = 432.0
    d.parts.append(f'<path d="M8 {y:g}H352" stroke="#DDDDDD"/>')
    d.text(8, y + 24, "Sampling, step after step", "l b")
    d.dots(36, y + 38, 74, p["start"], "noise")
    d.text(120, y + 70, "pure noise, $t$ ≈ 1", "l")
    d.text(120, y + 88, "drawn once", "l q")
    d.line((73, y + 114), (73, y + 136))
    top = y + 137
    d.dots(36, top, 74, p["mid"], "mixed")
    d.text(82, top + 98, "$x_t$", "l")
    d.line((112, top + 37), (136, top + 37))
    d.box(136, top + 15, 84, 44, ["network", "told $t$"], edge=True)
    d.line((220, top + 37), (258, top + 37))
    d.text(239, top + 30, "$ε̂$")
    d.dots(260, top, 74, p["guess"], "data")
    d.text(297, top + 94, "guess $x̂_0$ =", "")
    d.text(297, top + 112, "($x_t$ − $σ_t$ $ε̂$) / $α_t$", "")
    d.box(126, top + 112, 112, 34, ["fresh noise $z$"], "noise")
    d.line((73, top + 77), (73, top + 168))
    d.line((182, top + 146), (182, top + 168), role="noise")
    d.line((297, top + 120), (297, top + 168))
    d.box(36, top + 168, 316, 50, ["one step, from $t$ to the earlier $s$:", "$x_s$ = keep · $x_t$ + move · $x̂_0$ + "
                                   "std · $z$"], "plain")  # fmt: skip
    d.line((36, top + 193), (14, top + 193), (14, top + 37), (34, top + 37))
    d.text(22, top + 238, "again: $x_s$ is the next $x_t$", "l q")
    d.line((297, top + 218), (297, top + 248))
    d.text(288, top + 238, "at $s$ = 0", "r q")
    d.dots(260, top + 250, 74, p["end"], "data")
    d.text(250, top + 282, "new data,", "r")
    d.text(250, top + 300, "no noise added last", "r q")
    return d


@lru_cache(maxsize=1)
def latent_pictures() -> dict[str, Tensor]:
    """A held-out piece of clothing, its latent and what the shipped autoencoder restores; noise, and a sample of it."""
    net: Any = weights.load("fashion_autoencoder")
    x = data.fashion("held-out", size=32)[0][:1]
    space = fashion_denoisers.space()
    model = denoisers.from_network(weights.load("fashion_latents_denoiser"), SCHEDULE, predictions.V)
    ts = samplers.grid(samplers.adams, SCHEDULE, 12)
    start = samplers.start(SCHEDULE, (1, *space.shape), ts, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        z = space.encode(x)
        end = samplers.last(samplers.adams(lambda z, t: model(z, t, 1), SCHEDULE, start, ts)).x
        return {"x": x[0], "z": z[0], "back": net.decode(net.encode(x))[0], "start": start[0], "end": end[0],
                "sample": space.decode(end)[0]}  # fmt: skip


def latent_picture(d: Drawing, x: float, y: float, side: float, z: Tensor, role: str) -> None:
    """The first three channels of a latent as colours."""
    d.pixels(x, y, side, z[:3] / 3, role)


def latent_diffusion() -> Drawing:
    """Chapter 8: the autoencoder layer by layer, and sampling among its latents."""
    net: Any = weights.load("fashion_autoencoder")
    unet: Any = weights.load("fashion_latents_denoiser")
    x = torch.zeros(1, net.channels, 32, 32)
    traced, p = Traced(net, x), latent_pictures()
    coder, decoder = Traced(net.encoder, x), Traced(net.decoder, net.encode(x))
    z = decoder.into[net.decoder][0]
    walked = Traced(unet, torch.zeros(1, *z), torch.zeros(1))
    d = Drawing(
        "An autoencoder, and diffusion among its latents",
        "First an autoencoder is trained: the encoder halves the picture twice and leaves a small latent, the decoder "
        "doubles it again. Then a U-Net is trained on the latents. To sample, a sampler walks from noise to a latent, "
        "calling the U-Net at each step, and the decoder is called once.",
    )
    d.text(8, 22, "First: train the autoencoder", "l b")
    d.pixels(38, 36, 66, p["x"], "data")
    d.text(112, 64, "$x$", "l")
    d.text(112, 82, times(traced.into[net][0]), "l q")
    d.pixels(256, 36, 66, p["back"], "data")
    d.text(248, 64, "restored", "r")
    d.text(248, 82, traced.shape(net), "r q")
    left = stages(net.encoder, coder, ("Conv2d", "_Residual"))
    right = stages(net.decoder, decoder, ("Upsample", "_Residual"))[::-1]
    top, before, above = 124.0, 104.0, 104.0
    for k, ((a, shape_a), (b, shape_b)) in enumerate(zip(left, right, strict=True)):
        d.box(8, top, 139, 40, [a, shape_a])
        d.box(213, top, 139, 40, [b, shape_b])
        d.line((71, before), (71, top))
        d.line((289, top), (289, above))
        before = above = top + 40
        if k == 0:
            d.text(180, top + 16, "encoder", "q")
            d.line((162, top + 24), (151, top + 24), head=True)
            d.text(180, top + 48, size(net.encoder), "q")
            d.text(180, top + 64, "weights", "q")
            d.text(180, top + 96, "decoder", "q")
            d.line((198, top + 104), (209, top + 104), head=True)
            d.text(180, top + 128, size(net.decoder), "q")
            d.text(180, top + 144, "weights", "q")
        top += 58
    latent_picture(d, 150, top, 60, p["z"], "latent")
    d.line((71, before), (71, top + 30), (148, top + 30))
    d.line((212, top + 30), (289, top + 30), (289, above))
    d.text(107, top + 24, "$E$($x$)", "")
    d.text(253, top + 24, "$D$($z$)", "")
    d.text(144, top + 48, "$μ$; log $s^2$ is dropped", "r q")
    numbers = torch.Size(z).numel()
    d.text(180, top + 80, f"latent $z$: {times(z)} = {numbers} numbers", "")
    d.text(180, top + 97, f"for {x.numel():,} pixels; shifted and scaled to mean 0, std 1", "q")
    y = top + 112
    d.parts.append(f'<path d="M8 {y:g}H352" stroke="#DDDDDD"/>')
    d.text(8, y + 24, "Then: train a U-Net on latents, sample there", "l b")
    y += 38
    latent_picture(d, 10, y, 60, p["start"], "noise")
    d.text(40, y + 80, "noise")
    d.text(40, y + 97, times(walked.into[unet][0]), "q")
    d.line((72, y + 30), (96, y + 30))
    d.box(96, y, 124, 60, ["U-Net", walked.shape(unet), f"{size(unet)} param."], edge=True)
    d.line((158, y + 78), (158, y + 60), role="told")
    d.box(112, y + 78, 92, 26, ["$t$ and class"], "told")
    d.line((208, y + 60), (208, y + 118), (84, y + 118), (84, y + 42), (96, y + 42))
    d.text(146, y + 136, "once for each step of the sampler", "q")
    d.line((220, y + 30), (254, y + 30))
    latent_picture(d, 256, y, 60, p["end"], "latent")
    d.text(325, y + 34, "$z$", "l")
    d.line((286, y + 62), (286, y + 84))
    d.box(246, y + 84, 80, 40, ["decoder", "once"])
    d.line((286, y + 124), (286, y + 146))
    d.pixels(253, y + 148, 66, p["sample"], "data")
    d.text(244, y + 178, "picture", "r")
    d.text(244, y + 195, traced.shape(net), "r q")
    return d


def stages(part: Any, traced: Traced, kinds: tuple[str, str]) -> list[tuple[str, str]]:
    """The layers of an encoder or decoder, gathered into stages of one size: what is in each, and what comes out."""
    found: list[tuple[list[str], str]] = []
    for layer in part:
        kind, shape = type(layer).__name__, times(traced.out[layer])
        step = {"Conv2d": "conv", "_Residual": "block", "Upsample": "double"}.get(kind)
        if kind == "Conv2d" and layer.stride == (2, 2):
            step = "halve"
        if step == "halve" or step == "double" or not found:
            found.append(([], shape))
        if step is not None and not (kind == "Conv2d" and found[-1][0][-1:] == ["double"]):
            found[-1][0].append(step)
        found[-1] = (found[-1][0], shape)
    return [(", ".join(names), shape) for names, shape in found]


def classifier_free(scale: float = 3.0) -> Drawing:
    """Chapter 9: two answers out of one call, and the extrapolation."""
    net: Any = weights.load("digit_denoiser")
    model = denoisers.from_network(net, SCHEDULE, predictions.V)
    labels = torch.arange(10)
    t, x = torch.tensor(0.75, dtype=torch.float64), torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    told, untold = guidance.condition(model, labels), guidance.condition(model, None)
    guided = guidance.extrapolate(told, untold, scale)
    seen: list[Tensor] = []
    hook = net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        out = guided(x, t)
    hook.remove()
    (both,) = (times(call.shape) for call in seen)
    with torch.no_grad():
        good, bad = told(x, t), untold(x, t)
    k = 2
    d = Drawing(
        "Classifier-free guidance",
        "The noisy batch goes into the network twice in one call, once told the class and once told nothing. The two "
        "guesses at the data are extrapolated: from the one told nothing, through the one told the class, and beyond.",
    )
    d.text(8, 22, "Two answers, one call", "l b")
    d.pixels(153, 36, 54, x[k], "mixed")
    d.text(216, 60, "$x_t$", "l")
    d.text(216, 77, times(x.shape), "l q")
    d.line((180, 91), (180, 101), (90, 101), (90, 112))
    d.line((180, 101), (270, 101), (270, 112))
    d.box(20, 112, 140, 40, ["$x_t$, class $c$", f"such as {k}"], "told")
    d.box(200, 112, 140, 40, ["$x_t$, no class $∅$", f"which is class {net.null_cond}"], "told")
    d.line((90, 152), (90, 174))
    d.line((270, 152), (270, 174))
    d.box(20, 174, 320, 40, ["the same network, called once", f"batch {both}"])
    d.line((90, 214), (90, 236))
    d.line((270, 214), (270, 236))
    d.pixels(58, 238, 64, good[k], "data")
    d.pixels(238, 238, 64, bad[k], "data")
    d.text(132, 268, "$x̂^c$", "l")
    d.text(230, 268, "$x̂^∅$", "r")
    d.text(90, 322, f"told “{k}”", "q")
    d.text(270, 322, "told nothing", "q")
    d.text(8, 358, "Extrapolated", "l b")
    d.box(50, 370, 260, 34, ["$x̂^w$ = $x̂^∅$ + $w$ ($x̂^c$ − $x̂^∅$)"], "plain")
    y = 424.0
    d.line((30, y + 96), (350, y + 96))
    with torch.no_grad():
        between = guidance.extrapolate(told, untold, (1 + scale) / 2)(x, t)
    for i, (w, picture) in enumerate(((0, bad[k]), (1, good[k]), ((1 + scale) / 2, between[k]), (scale, out[k]))):
        at = 52 + 80 * w * 3 / scale
        d.pixels(at - 28, y, 56, picture, "data")
        d.parts.append(f'<circle cx="{at}" cy="{y + 96:g}" r="4.5" fill="{ROLES["data"]}"/>')
        d.line((at, y + 60), (at, y + 90), head=False)
        d.text(at, y + 118, f"$w$ = {w:g}")
        d.text(at, y + 136, ("no class", "as it is", "guided", "more so")[i], "q")
    d.text(180, y + 164, "The sampler takes $x̂^w$ for $x̂_0$. It is never told $c$ or $w$.", "q")
    return d


@lru_cache(maxsize=1)
def text_model() -> Any:
    """The shipped text-to-image model."""
    return painter.load()


def text_to_image(prompt: str = "a red fox") -> Drawing:
    """Chapter 10: from a prompt to pixels, with the shapes on the way."""
    model = text_model()
    net, tokens = model.net, model.tokenizer(prompt)
    z, decoder = torch.zeros(1, *model.space.shape), model.space.autoencoder
    traced = Traced(net, z, torch.zeros(1), tokens)
    decoded: Any = Traced(decoder.decoder, z)
    words, length = traced.out[net.text]
    ts = samplers.grid(samplers.dpmpp_2m, model.schedule, 20)
    start = samplers.start(model.schedule, tuple(z.shape), ts, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        end = samplers.last(samplers.dpmpp_2m(model.denoiser(prompt, scale=2.0), model.schedule, start, ts)).x
        picture = model.space.decode(end)[0]
    d = Drawing(
        "From a prompt to a picture",
        "The tokenizer makes numbers of the words, the text encoder a vector for each. The U-Net starts from noise "
        "among latents and gets the words in two ways: their mean scales and shifts every block, and cross-attention "
        "lets every place look at every word. A sampler calls it twenty times with guidance, and the decoder paints.",
    )
    d.box(8, 12, 344, 34, [f"prompt: “{prompt}”"], "told")
    d.line((180, 46), (180, 64), role="told")
    d.box(100, 64, 160, 26, ["Tokenizer"], "plain")
    d.line((180, 90), (180, 108), role="told")
    cell = 344 / tokens.shape[1]
    for k, token in enumerate(tokens[0].tolist()):
        d.box(8 + k * cell, 108, cell, 26, [str(token)], "told" if token else "plain")
    d.text(180, 151, f"{times(tokens.shape)} numbers, 0 where there is no word", "q")
    d.line((180, 157), (180, 174), role="told")
    d.box(60, 174, 240, 40, [f"TextEncoder, {len(net.text.layers)} layers", f"{size(net.text)} parameters"])
    d.line((180, 214), (180, 232), role="told")
    names = ["start", *prompt.split()]
    for k in range(words):
        w = 344 / words
        d.box(8 + k * w, 232, w, 22, [], "told" if k < len(names) else "plain")
    d.text(180, 271, f"{words} vectors of {length} numbers: start, {', '.join(prompt.split())},", "q")
    d.text(180, 287, "and empty places that nobody looks at", "q")
    d.line((60, 294), (60, 316), role="told")
    d.box(8, 316, 104, 56, ["mean, Linear", f"{net.to_code.in_features} → {net.to_code.out_features}",
                            "+ code of $t$"], "net")  # fmt: skip
    d.line((60, 372), (60, 404), role="told")
    d.text(68, 393, "scales, shifts", "l q")
    d.line((300, 294), (300, 404), role="told")
    d.text(292, 332, "each word by itself:", "r q")
    d.text(292, 348, "cross-attention,", "r q")
    d.text(292, 364, "keys and values", "r q")
    y = unet_levels(d, 404, traced)
    latent_picture(d, 10, y + 30, 60, start[0], "noise")
    d.text(40, y + 110, "noise")
    d.text(40, y + 127, times(z.shape[1:]), "q")
    d.line((40, y + 28), (40, y))
    d.text(46, y + 19, "$z_t$ in", "l q")
    d.line((180, y), (180, y + 32))
    d.text(190, y + 18, "$v̂$ out", "l q")
    d.box(
        92,
        y + 32,
        180,
        60,
        ["20 steps of the sampler,", "each one call, guided:", "twice the batch"],
        "plain",
    )
    d.line((92, y + 60), (82, y + 60), (82, y))
    d.line((272, y + 60), (288, y + 60))
    latent_picture(d, 290, y + 30, 60, end[0], "latent")
    d.text(320, y + 110, f"$z$: {times(decoded.into[decoder.decoder][0])}")
    d.line((320, y + 117), (320, y + 136))
    d.box(238, y + 136, 114, 40, ["decoder, once", f"{size(decoder.decoder)} param."])
    d.line((238, y + 156), (204, y + 156))
    d.pixels(136, y + 122, 66, picture, "data")
    d.text(126, y + 152, "picture", "r")
    d.text(126, y + 170, decoded.shape(decoder.decoder), "r q")
    return d


def unet_levels(d: Drawing, y: float, traced: Traced) -> float:
    """The U-Net of the text model at a glance, in a box; returns where it ends."""
    net: Any = traced.net
    layers = [m for m in net.down if type(m).__name__ == "_Layer"]
    ups = [m for m in net.up if type(m).__name__ == "_Layer"]
    doubles = [m for m in net.up if type(m).__name__ == "_Up"][::-1]
    each = len(ups) // len(layers)
    foot = y + 34 + 56 * len(layers)
    d.box(8, y, 344, foot - y + 68, [], "net")
    d.text(20, y + 22, "TextUNet", "l b")
    d.text(340, y + 22, f"{size(net)} parameters, text included", "r q")
    for k, layer in enumerate(layers):
        top, inset = y + 34 + 56 * k, 6 * k
        d.box(
            20 + inset,
            top,
            128,
            40,
            ["halve, block*" if k else "conv, block*", traced.shape(layer)],
            "plain",
            edge=True,
        )
        out, last = (doubles[k - 1], f"{each} blocks*, double") if k else (ups[-1], f"{each} blocks*, conv")
        d.box(212 - inset, top, 128, 40, [last, traced.shape(out)], "plain", edge=True)
        d.line((148 + inset, top + 20), (212 - inset, top + 20))
        d.text(180, top + 14, f"{each} skips", "q")
        if k:
            d.line((81, top - 16), (81, top))
            d.line((279, top), (279, top - 16))
    d.box(110, foot, 140, 40, ["block*, block", traced.shape(net.middle[-1])], "plain", edge=True)
    d.line((81, foot - 16), (81, foot + 20), (110, foot + 20))
    d.line((250, foot + 20), (279, foot + 20), (279, foot - 16))
    d.text(180, foot + 58, "* residual block, self-attention, cross-attention", "q")
    return foot + 68


def text_block(prompt: str = "a red fox") -> Drawing:
    """Chapter 10: what one block of the text U-Net does, from its first layer."""
    model = text_model()
    net: Any = model.net
    traced = Traced(net, torch.zeros(1, *model.space.shape), torch.zeros(1), model.tokenizer(prompt))
    layer = net.down[0]
    channels, height, wide = traced.out[layer]
    places, (words, length) = height * wide, traced.out[net.text]
    look, reading = layer.attention, layer.reading
    d = Drawing(
        "One block of the U-Net that reads",
        "Three parts, each added to what went in. The residual block has two convolutions, and the code scales and "
        "shifts between them. In self-attention every place looks at every place. In cross-attention every place looks "
        "at every word: questions come from the places, keys and values from the words.",
    )
    d.text(8, 22, "One block", "l b")
    d.text(352, 22, f"{size(layer)} parameters", "r q")
    s = layer.scale_shift
    d.box(84, 36, 132, 40, ["$h$", traced.shape(layer)], "plain")
    residual = [["norm, SiLU, conv"], ["norm"], ["$h$ (1 + $a$) + $b$"], ["SiLU, conv"]]
    y = block_part(d, 76, "residual block", residual)
    d.text(344, 136, "code of $t$ and text", "r q")
    d.line((296, 143), (296, 158), role="told")
    d.box(248, 158, 96, 40, ["SiLU, Linear", f"{s.in_features} → {s.out_features}"])
    d.line((296, 198), (296, 217), (216, 217), role="told")
    d.text(289, 212, "$a$, $b$", "r")
    top = y
    attention = [
        ["norm, conv 1×1", f"{look.qkv.in_channels} → 3 × {look.qkv.out_channels // 3}"],
        [f"{look.heads} heads, each", f"{places} × {places} weights"],
        ["mix, conv 1×1"],
    ]
    y = block_part(d, top, "self-attention", attention)
    d.text(224, top + 65, "$q$, $k$, $v$", "l q")
    d.text(224, top + 81, "of the places", "l q")
    d.text(224, top + 117, "every place looks", "l q")
    d.text(224, top + 133, "at every place", "l q")
    top = y
    attention = [
        ["norm, conv 1×1", f"{reading.query.in_channels} → {reading.query.out_channels}"],
        [f"{reading.heads} heads, each", f"{places} × {words} weights"],
        ["mix, conv 1×1"],
    ]
    y = block_part(d, top, "cross-attention", attention)
    d.text(224, top + 71, "$q$ of the places", "l q")
    d.line((248, top + 121), (216, top + 121), role="told")
    d.box(248, top + 101, 96, 40, ["words", f"{words} × {length}"], "told")
    d.text(344, top + 159, "$k$, $v$ of the words", "r q")
    d.line((150, y), (150, y + 18))
    d.box(84, y + 18, 132, 40, ["new $h$", times((channels, height, wide))], "plain")
    return d


def block_part(d: Drawing, y: float, name: str, boxes: Sequence[Sequence[str]]) -> float:
    """A panel with boxes in a column and a way past them, entered at y; returns where it is left."""
    top = y + 12
    tall = [10 + 16 * len(lines) for lines in boxes]
    plus = top + 34 + sum(tall) + 16 * len(boxes) + 8
    d.parts.append(
        f'<rect x="8" y="{top:g}" width="344" height="{plus + 20 - top:g}" rx="8" fill="#FAFAFA" stroke="#DDDDDD"/>'
    )
    d.text(344, top + 21, name, "r b")
    before, at = y, top + 34
    for lines, h in zip(boxes, tall, strict=True):
        d.line((150, before), (150, at))
        d.box(84, at, 132, h, lines)
        before, at = at + h, at + h + 16
    d.line((150, before), (150, plus - 8))
    d.plus(150, plus)
    d.line((150, top + 14), (48, top + 14), (48, plus), (142, plus))
    d.line((150, plus + 8), (150, plus + 20), head=False)
    return plus + 20


DIAGRAMS = {
    "three-networks": three_networks,
    "unet": lambda: unet("The U-Net of this chapter", width=12, num_classes=None, answer="$x̂_0$"),
    "unet-digits": unet,
    "step-encoding": step_encoding,
    "training-and-sampling": training_and_sampling,
    "latent-diffusion": latent_diffusion,
    "classifier-free-guidance": classifier_free,
    "text-to-image": text_to_image,
    "text-block": text_block,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw those named, or all."""
    parser = argparse.ArgumentParser(description="Draw the book's diagrams.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(DIAGRAMS)}; all by default")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write them")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.names) - set(DIAGRAMS))
    if unknown:
        parser.error(f"there is no diagram {', '.join(unknown)}; there are {', '.join(DIAGRAMS)}.")
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name in asked.names or DIAGRAMS:
        (asked.folder / f"{name}.svg").write_text(DIAGRAMS[name]().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
