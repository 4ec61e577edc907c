"""The images that a command works on, and the pictures that it writes."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from .. import data
from ._problems import Problem, foreseen, memory, say

SETS = {"digits": (8, 8), "fashion": (28, 32), "emoji": (32, 32)}
"""The sets that ship with the package: the sizes that they come in, the default first."""


class Images(NamedTuple):
    """Images, their classes, and which of them are kept back from training."""

    x: Tensor  # (N, C, size, size) in [-1, 1]
    y: Tensor | None  # (N,)
    classes: tuple[str, ...]
    held: Tensor  # (N,) bool

    @property
    def sha256(self) -> str:
        """A fingerprint of all of it, by which a command knows the images again."""
        total = hashlib.sha256(repr((self.x.shape, self.classes)).encode())
        for part in ((self.x * 127.5 + 127.5).round().byte(), self.y, self.held):
            if part is not None:
                total.update(part.numpy().tobytes())
        return total.hexdigest()

    def counts(self) -> list[int]:
        """How many images of each class there are to train on."""
        return [] if self.y is None else self.y[~self.held].bincount(minlength=len(self.classes)).tolist()


def refuse_others(images: Images, settings: dict[str, Any], run: Path, fix: str) -> None:
    """Refuse images that are not those that a run began with, by their pixels, classes and number."""
    about = settings["data"]
    if images.sha256 != about["sha256"]:
        now, then = len(images.x), about["images"]
        change = f"{now} now, {then} then" if now != then else "as many, but not the same"
        raise Problem(f"the images in {about['source']} are not those that {run} was trained on ({change}); {fix}.")


def source_of(words: str) -> str:
    """Return the name of a set as it is, and a folder as a path from the root."""
    return words if words in SETS else os.path.realpath(os.path.expanduser(words))


def load(source: str, *, size: int, grey: bool, strict: bool, hold_out: float) -> Images:
    """Return the images of a set or a folder, and say what was found."""
    if source in SETS:
        x, y, classes, held = _shipped(source, size, grey)
    else:
        with foreseen(ValueError, OSError, ImportError), memory("give a smaller --size, or fewer images"):
            found = data.folder(source, size=size, channels=1 if grey else 3, strict=strict)
        _report(source, found, size)
        x, y, classes, held = found.x, found.labels, found.classes, None
    if held is None:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # the same whatever the seed
        held = torch.zeros(len(x), dtype=torch.bool)
        held[order[: round(hold_out * len(x))]] = True
    kinds = f"{len(classes)} classes, " if classes else ""
    say(f"{len(x)} images of {size}x{size}: {kinds}{int((~held).sum())} to train on, {int(held.sum())} kept back")
    return Images(x, y, classes, held)


def _shipped(name: str, size: int, grey: bool) -> tuple[Tensor, Tensor | None, tuple[str, ...], Tensor | None]:
    """Return a shipped set; digits and clothes have held-out images of their own."""
    if size not in SETS[name]:
        raise Problem(f"--size is {size} but {name} come in {' or '.join(map(str, set(SETS[name])))}; leave it out.", 2)
    if grey and name == "emoji":
        raise Problem("--grey is for images of your own; emoji are in colour: leave it out.", 2)
    with foreseen(ImportError):
        if name == "emoji":
            found = data.emoji()
            classes = tuple(sorted(set(found.categories)))
            return found.x, torch.tensor([classes.index(c) for c in found.categories]), classes, None
        parts = [data.digits(s) if name == "digits" else data.fashion(s, size=size) for s in ("train", "held-out")]
    classes = tuple("0123456789") if name == "digits" else tuple(data.FASHION_CLASSES)
    held = torch.cat([torch.full((len(x),), i == 1) for i, (x, _) in enumerate(parts)])
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]), classes, held


def _report(source: str, found: data.Folder, size: int) -> None:
    """Say what of a folder was changed or left out."""
    total, files = len(found.x), found.skipped
    cropped = sum(n for (w, h), n in found.sizes.items() if w != h)
    resized = sum(n for (w, h), n in found.sizes.items() if min(w, h) != size)
    enlarged = sum(n for (w, h), n in found.sizes.items() if min(w, h) < size)
    say(f"read {source}")
    if cropped or resized:
        say(
            f"  {len(found.sizes)} size(s): {cropped} of {total} cropped to the middle square, {resized} resized"
            + f" ({enlarged} of them enlarged)" * bool(enlarged)
        )
    if files:
        shown = "; ".join(f"{name}: {reason}" for name, reason in files[:3])
        say(f"  {len(files)} file(s) skipped that cannot be read: {shown}" + "; ..." * (len(files) > 3))
    if found.ignored:
        say(f"  {len(found.ignored)} file(s) ignored that are no images or hidden, such as {found.ignored[0]}")


def write(path: Path, x: Tensor) -> None:
    """Write an image (C, H, W) in [-1, 1] as a PNG."""
    with foreseen(ImportError):
        try:
            from PIL import Image
        except ImportError:
            raise ImportError("writing PNG files needs Pillow: pip install pillow") from None
    pixels = (x.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


def sheet(x: Tensor) -> Tensor:
    """Return images (N, C, H, W) side by side on white, small ones enlarged to 64 pixels or more."""
    columns = math.ceil(math.sqrt(len(x)))
    factor = max(1, math.ceil(64 / x.shape[-1]))
    tiles = pad(interpolate(x, scale_factor=factor, mode="nearest"), (2, 2, 2, 2), value=1.0)
    rows = [torch.cat(list(row), dim=2) for row in tiles.split(columns)]
    wide = rows[0].shape[2]
    return torch.cat([pad(row, (0, wide - row.shape[2], 0, 0), value=1.0) for row in rows], dim=1)
