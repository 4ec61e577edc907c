"""Emoji with captions: as they are, one in each of eight colours, and two in one picture."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .. import _checks

FOLDER = Path(__file__).parent
SIZE = 32
COLOURS = {  # hue in degrees, saturation, value
    "red": (356, 0.82, 0.90),
    "orange": (26, 0.90, 1.00),
    "yellow": (50, 0.80, 1.00),
    "green": (125, 0.70, 0.72),
    "cyan": (182, 0.70, 0.85),
    "blue": (218, 0.80, 0.90),
    "purple": (272, 0.62, 0.80),
    "pink": (328, 0.48, 1.00),
}
"""The colours of the coloured set: name to (hue in degrees, saturation, value)."""

RELATIONS = {"left of": (8, 0, 8, 16), "right of": (8, 16, 8, 0), "above": (0, 8, 16, 8), "below": (16, 8, 0, 8)}
"""The relations of a scene: name to the top left corners (row, column) of the first object and of the second."""

COLOURABLE = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places")
COLOUR_WORDS = {*COLOURS, "black", "white", "brown", "grey", "gray", "tangerine", "rainbow"}
SHARE, AREA, DISTINCT = 0.75, 0.25, 0.15  # see _colourable
HELD_OUT = 2  # colours of each object


class Emoji(NamedTuple):
    """Pictures x (N, 3, 32, 32) float32 in [-1, 1], with a name and a category for each."""

    x: Tensor
    names: tuple[str, ...]
    categories: tuple[str, ...]


class ColouredEmoji(NamedTuple):
    """Pictures x (N, 3, 32, 32) in [-1, 1] with captions, and the numbers (N,) of their objects and colours."""

    x: Tensor
    captions: tuple[str, ...]
    objects: Tensor
    colours: Tensor


class Scenes(NamedTuple):
    """Pictures x (N, 3, 32, 32) float32 in [-1, 1]; captions; objects (N, 2), colours (N, 2) and relations (N,)."""

    x: Tensor
    captions: tuple[str, ...]
    objects: Tensor
    colours: Tensor
    relations: Tensor


def emoji() -> Emoji:
    """Return the 1,591 emoji without skin tones of Fluent Emoji (Microsoft, MIT), drawn flat on white.

    Raises:
        ImportError: where Pillow is not installed.

    >>> x, names, categories = emoji()
    >>> x.shape, names[:2], categories[0]
    (torch.Size([1591, 3, 32, 32]), ('1st place medal', '2nd place medal'), 'Activities')
    """
    names = tuple(name.replace("-", " ") for name in _catalogue())
    return Emoji(_sheet() * 2 - 1, names, tuple(_catalogue().values()))


def emoji_objects() -> tuple[str, ...]:
    """Return the names of the 367 emoji of one dominant hue that are drawn in eight colours.

    >>> len(emoji_objects()), emoji_objects()[:3]
    (367, ('accordion', 'adhesive bandage', 'admission tickets'))
    """
    return tuple(_coloured()[1])


def coloured_emoji(split: str = "train") -> ColouredEmoji:
    """Return emoji in eight colours, captioned "a red fox": each object in 6 of them, or in the 2 held out.

    An emoji is taken where three quarters of its colour lie near one hue and cover a quarter of the square; the pixels
    near that hue are moved to the new one. Which colours of an object are held out is fixed and balanced: each
    colour is held out for as many objects as any other, give or take one.

    Args:
        split: "train" (2,202 pictures), "held-out" (734), or "all" (2,936, object by object, colours in order).

    Raises:
        ImportError: where Pillow is not installed.
        ValueError: an unknown split.

    >>> held_out = coloured_emoji("held-out")
    >>> held_out.x.shape, held_out.captions[:2]
    (torch.Size([734, 3, 32, 32]), ('a purple accordion', 'a pink accordion'))
    """
    x, names = _coloured()
    objects, colours = _pairs(split)
    colour_names = tuple(COLOURS)
    captions = tuple(_noun(colour_names[c], names[o]) for o, c in zip(objects.tolist(), colours.tolist(), strict=True))
    return ColouredEmoji(x[objects, colours] * 2 - 1, captions, objects.clone(), colours.clone())


def scenes(
    n: int, split: str = "train", *, among: Tensor | None = None, generator: torch.Generator | None = None
) -> Scenes:
    """Draw pictures of two objects at half their size, captioned "a red kangaroo left of a purple bed".

    Args:
        n: how many.
        split: "train" for objects in the colours that `coloured_emoji("train")` shows; "held-out" for both objects in
            a colour held out; "all" for any.
        among: the numbers of the objects to draw from, at least two; None for all.

    Raises:
        ImportError: where Pillow is not installed.
        ValueError: an unknown split, or fewer than two objects.

    >>> scene = scenes(3, generator=torch.Generator().manual_seed(0))
    >>> scene.x.shape, scene.objects.shape
    (torch.Size([3, 3, 32, 32]), torch.Size([3, 2]))
    """
    _checks.count("n", n)
    objects, colours = _pairs(split)
    if among is not None:
        chosen = torch.isin(objects, among)
        objects, colours = objects[chosen], colours[chosen]
    count = len(objects.unique())
    if count < 2:
        raise ValueError(f"among names {count} object(s); a scene has two different ones.")
    device = None if generator is None else generator.device
    first = torch.randint(len(objects), (n,), generator=generator, device=device).cpu()
    second = torch.randint(len(objects), (n,), generator=generator, device=device).cpu()
    same = objects[first] == objects[second]  # two different objects: step on to the next one's pairs
    second = torch.where(same, (second + len(objects) // count) % len(objects), second)
    relations = torch.randint(len(RELATIONS), (n,), generator=generator, device=device).cpu()
    return compose(
        torch.stack([objects[first], objects[second]], 1), torch.stack([colours[first], colours[second]], 1), relations
    )


def compose(objects: Tensor, colours: Tensor, relations: Tensor) -> Scenes:
    """Draw the scenes named: objects (N, 2) and colours (N, 2), the first and the second, and relations (N,).

    Raises:
        ImportError: where Pillow is not installed.

    >>> compose(torch.tensor([[0, 1]]), torch.tensor([[0, 6]]), torch.tensor([0])).captions
    ('a red accordion left of a purple adhesive bandage',)
    """
    small, names = _halved(), _coloured()[1]
    x = torch.ones(len(objects), 3, SIZE, SIZE)
    corners = torch.tensor(list(RELATIONS.values()))[relations].reshape(-1, 2, 2)
    steps = torch.arange(SIZE // 2)
    for k in range(2):
        rows, columns = (corners[:, k, axis, None] + steps for axis in (0, 1))
        where = torch.arange(len(x))[:, None, None], slice(None), rows[:, :, None], columns[:, None, :]
        x[where] = small[objects[:, k], colours[:, k]].permute(0, 2, 3, 1)
    colour_names, relation_names = tuple(COLOURS), tuple(RELATIONS)
    captions = tuple(
        f"{_noun(colour_names[c[0]], names[o[0]])} {relation_names[r]} {_noun(colour_names[c[1]], names[o[1]])}"
        for o, c, r in zip(objects.tolist(), colours.tolist(), relations.tolist(), strict=True)
    )
    return Scenes(x * 2 - 1, captions, objects, colours, relations)


def _noun(colour: str, name: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {name}"


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, str]:
    """Return name to category, in the order of the sheet."""
    return json.loads((FOLDER / "emoji.json").read_text())["emoji"]


@lru_cache(maxsize=1)
def _sheet() -> Tensor:
    """Return the sheet cut into pictures, (N, 3, 32, 32) in [0, 1]."""
    from ._png import read

    rows = read(FOLDER / "emoji.png")  # (3, rows * 32, columns * 32)
    cut = rows.unfold(1, SIZE, SIZE).unfold(2, SIZE, SIZE).flatten(1, 2).transpose(0, 1)
    return cut[: len(_catalogue())].contiguous()


@lru_cache(maxsize=1)
def _coloured() -> tuple[Tensor, list[str]]:
    """Return every object in every colour, (367, 8, 3, 32, 32) in [0, 1], and the objects' names."""
    suited = torch.tensor([_suits(name, category) for name, category in _catalogue().items()])
    x, names = _sheet()[suited], [n.replace("-", " ") for n, s in zip(_catalogue(), suited.tolist(), strict=True) if s]
    hue, saturation, value = _to_hsv(x)
    dominant, share = _dominant_hue(hue, saturation * value)
    part = (_distance(hue, dominant) < 40 / 360) & (saturation * value > 0.12)
    enough = (share >= SHARE) & (part.float().mean((1, 2)) >= AREA)
    coloured = _recolour(*(v[enough] for v in (x, hue, saturation, value, dominant, part)))
    flat = coloured[:, list(COLOURS).index("blue")].flatten(1)
    apart = 2 * torch.cdist(flat, flat) / flat.shape[1] ** 0.5  # root mean square, on the scale of [-1, 1]
    kept: list[int] = []
    for k in range(len(flat)):  # of two that look alike, the first
        if bool((apart[k, kept] >= DISTINCT).all()):
            kept.append(k)
    names = [n for n, e in zip(names, enough.tolist(), strict=True) if e]
    return coloured[kept], [names[k] for k in kept]


@lru_cache(maxsize=1)
def _halved() -> Tensor:
    """Return every object in every colour at half its size, (367, 8, 3, 16, 16) in [0, 1]."""
    x = _coloured()[0]
    return avg_pool2d(x.flatten(0, 1), 2).reshape(*x.shape[:3], SIZE // 2, SIZE // 2)


def _suits(name: str, category: str) -> bool:
    """Return whether an emoji's name and category let it be coloured."""
    words = name.split("-")
    plain = len(words) <= 2 and all(word.isalpha() for word in words)
    return plain and category in COLOURABLE and not COLOUR_WORDS.intersection(words)


def _dominant_hue(hue: Tensor, chroma: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each picture the hue (N, 1, 1) around which most colour lies, and the share (N,) within 30 degrees."""
    candidates = torch.arange(72) / 72
    mass = torch.stack([(chroma * (_distance(hue, h) < 30 / 360)).sum((1, 2)) for h in candidates], 1)
    best = candidates[mass.argmax(1)][:, None, None]
    near = chroma * (_distance(hue, best) < 30 / 360)
    angle = 2 * math.pi * hue
    middle = torch.atan2((near * angle.sin()).sum((1, 2)), (near * angle.cos()).sum((1, 2))) / (2 * math.pi)
    share = mass.max(1).values / chroma.sum((1, 2)).clamp_min(1e-6)
    return (middle % 1)[:, None, None], share


def _recolour(x: Tensor, hue: Tensor, saturation: Tensor, value: Tensor, dominant: Tensor, part: Tensor) -> Tensor:
    """Move the pixels near the dominant hue to each colour, (N, 8, 3, H, W); the middle one lands exactly on it."""
    weight = ((50 / 360 - _distance(hue, dominant)) * 360 / 20).clamp(0, 1) * (saturation * value / 0.12).clamp(0, 1)
    middle = [torch.stack([v[p].median() for v, p in zip(values, part, strict=True)])[:, None, None]
              for values in (saturation, value)]  # fmt: skip
    offset = (hue - dominant + 0.5) % 1 - 0.5
    out = []
    for degrees, s, v in COLOURS.values():
        moved = _to_rgb(
            (degrees / 360 + 0.4 * offset) % 1,
            (saturation * s / middle[0]).clamp(0, 1),
            (value * v / middle[1]).clamp(0, 1),
        )
        out.append(x + weight[:, None] * (moved - x))
    return torch.stack(out, 1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the distance of two hues on the circle, both in [0, 1)."""
    apart = (a - b).abs()
    return torch.minimum(apart, 1 - apart)


def _to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue, saturation and value, each (N, H, W) in [0, 1], of x (N, 3, H, W) in [0, 1]."""
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    r, g, b = x.unbind(1)
    safe = chroma.clamp_min(1e-8)
    hue = torch.where(value == r, ((g - b) / safe) % 6, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    return hue / 6 % 1, chroma / value.clamp_min(1e-8), value


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return x (N, 3, H, W) in [0, 1]."""
    k = (torch.tensor([5.0, 3.0, 1.0])[:, None, None] + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


@lru_cache(maxsize=3)
def _pairs(split: str) -> tuple[Tensor, Tensor]:
    """Return the objects and colours of a split, in the order of the objects."""
    if split not in ("train", "held-out", "all"):
        raise ValueError(f'split is {split!r}; it must be "train", "held-out" or "all".')
    count, colours = len(_coloured()[1]), len(COLOURS)
    held_out = torch.zeros(count, colours, dtype=torch.bool)
    turn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    for k in range(HELD_OUT):  # neighbours 1 to 7 apart, so that every pair of colours is held out somewhere
        held_out[torch.arange(count), (turn + k * (1 + turn // colours % (colours - 1))) % colours] = True
    chosen = {"train": ~held_out, "held-out": held_out, "all": torch.ones_like(held_out)}[split]
    objects, which = chosen.nonzero(as_tuple=True)
    return objects, which
