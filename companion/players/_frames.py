"""A grid of small images that change from frame to frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from ._base import Player, checked, encoded, player, positive, stack, text


def frames(
    images: Tensor | Sequence[Tensor],
    ts: Tensor | Sequence[float] | None = None,
    *,
    titles: Sequence[str] | None = None,
    label: str,
    columns: int | None = None,
    scale: float | None = None,
    fps: float = 8,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Player:
    """Play a grid of small images that change from frame to frame, each pixel drawn as a square.

    Args:
        images: (F, N, C, H, W) floating point, or F tensors (N, C, H, W); F >= 2, C is 1 or 3 (RGB).
        ts: (F,) times, shown as "t = 0.35"; without them the player shows "frame 3 of 41".
        titles: N texts, one under each image: the class asked for, for instance.
        label: one sentence that says what to see: the caption, and the grid's text for a screen reader.
        columns: images in a row; by default rows of equal length, of at most ten.
        scale: CSS pixels of one image pixel; by default the images are at most 640 wide together, if not larger by
            themselves. Narrow pages shrink the grid.
        fps: frames a second while playing.
        value_range: (black, white). Values beyond it, which noise has, are shown as black or white.

    Raises:
        TypeError: images are not floating point, or a title or label is not text.
        ValueError: a shape does not fit, a value is not finite, or a number asked for is out of its range.

    Example:
        >>> frames(torch.zeros(3, 2, 1, 8, 8), titles=["3", "7"], label="Two digits form.")
        Player('Two digits form.', 3 frames)
    """
    pixels = checked("images", stack("images", images), "F, N, C, H, W", torch.float32)
    num_frames, n, channels, high, wide = pixels.shape
    if channels not in (1, 3):
        shape = tuple(pixels.shape)
        raise ValueError(f"images has shape {shape}: {channels} channels; C is 1 or 3: use images[:, :, :3].")
    black, white = value_range
    if not -math.inf < black < white < math.inf:
        raise ValueError(f"value_range is {value_range}; it must be (black, white), black < white, finite.")
    if titles is not None and (isinstance(titles, str) or len(titles) != n):
        raise ValueError(f"titles is {titles!r} for {n} images; give a list of {n} texts, one an image.")
    names = [f"image {i + 1} of {n}" if titles is None else text("titles", titles[i]) for i in range(n)]
    across = math.ceil(n / math.ceil(n / 10)) if columns is None else _checks.count("columns", columns)
    zoom = max(1, min(640 // (across * wide), 160 // wide)) if scale is None else positive("scale", scale)
    total = round(across * wide * zoom + 4 * (across - 1))
    levels = ((pixels - black) / (white - black)).clamp(0, 1).mul(255).round().to(torch.uint8)
    levels = levels.permute(0, 1, 3, 4, 2).contiguous()  # channels last, as a canvas has them
    spec = {"channels": channels, "pixels": encoded(levels.numpy().tobytes())}
    cells = "".join(
        f'<div><canvas role="img" aria-label="{name}" width="{wide}" height="{high}"></canvas>'
        + ("" if titles is None else f'<span aria-hidden="true">{name}</span>')
        + "</div>"
        for name in names
    )
    picture = (
        f'<div class="cp-cells" role="group" aria-label="{text("label", label)}" '
        f'style="max-width:{total}px;grid-template-columns:repeat({across},minmax(0,1fr))">{cells}</div>'
    )
    return player("frames", spec, picture, label, ts, num_frames, fps, total)
