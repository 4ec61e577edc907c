"""Points in the plane that move from frame to frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ._base import Player, checked, encoded, player, stack, text, ticks

Extent = tuple[float, float, float, float]


def trajectory(
    paths: Tensor | Sequence[Tensor],
    ts: Tensor | Sequence[float] | None = None,
    *,
    colors: Tensor | Sequence[int] | None = None,
    reference: Tensor | None = None,
    label: str,
    extent: Extent | None = None,
    fps: float = 12,
    height: int = 360,
    show_ticks: bool = True,
) -> Player:
    """Play 2-D points that move from frame to frame.

    Args:
        paths: (F, N, 2) floating point, or F tensors (N, 2), with F >= 2 frames.
        ts: (F,) times, shown as "t = 0.35"; without them the player shows "frame 3 of 41".
        colors: (N,) integer classes 0 to 7, one colour each (Okabe and Ito's, safe for colour blindness).
        reference: (M, 2) points that stay, drawn faint behind the others: the data, for instance.
        label: one sentence that says what to see: the caption, and the picture's text for a screen reader.
        extent: (xmin, xmax, ymin, ymax) to show, one scale for both axes. By default what 99.8% of the points
            of a frame need, up to twice the reach of the median frame: noise of scale 80 does not hide the
            data. The player says how many points lie outside.
        fps: frames a second while playing.
        height: CSS pixels of the picture, at least 100; it shrinks where the page is narrow.
        show_ticks: False where the coordinates mean nothing.

    Raises:
        TypeError: paths or reference is not floating point, colors are not integers, or label is not text.
        ValueError: a shape does not fit, a value is not finite, or a class, extent, fps or height is wrong.

    Example:
        >>> noise = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(0))
        >>> trajectory(noise, [1.0, 0.5, 0.0], label="Noise comes to rest.")
        Player('Noise comes to rest.', 3 frames)
    """
    points = checked("paths", stack("paths", paths), "F, N, 2", torch.float64)
    still = points[0, :0] if reference is None else checked("reference", reference, "M, 2", torch.float64)
    window = _extent(_robust_range(points, still) if extent is None else extent)
    num_points, size = points.shape[1], (window[1] - window[0], window[3] - window[2])
    spec: dict[str, Any] = {
        "points": encoded(_sixteen_bit(points, window)),
        "reference": encoded(_sixteen_bit(still, window)),
        "colors": "" if colors is None else encoded(_classes(colors, num_points)),
        "extent": window,
        "size": size,
        "ticks": [ticks(*window[:2]), ticks(*window[2:])] if show_ticks else [[], []],
        "radius": 3 if num_points <= 200 else 2.2 if num_points <= 1000 else 1.5,
    }
    drawn = _checks.count("height", height, least=100) - 28  # 28 and 44 pixels go to the tick labels
    wide = round(44 + drawn * size[0] / size[1])
    picture = (
        f'<canvas role="img" aria-label="{text("label", label)}" '
        f'style="aspect-ratio:{wide}/{height};max-width:{wide}px"></canvas>'
    )
    return player("trajectory", spec, picture, label, ts, len(points), fps, wide)


def _classes(colors: Tensor | Sequence[int], num_points: int) -> bytes:
    y = torch.as_tensor(colors).detach().cpu()
    if y.is_floating_point() or y.is_complex():
        raise TypeError(f"colors has dtype {y.dtype}; it holds classes, integers 0 to 7: use colors.long().")
    if y.shape != (num_points,):
        raise ValueError(f"colors has shape {tuple(y.shape)}; it must be ({num_points},), one class a point.")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high > 7:
        raise ValueError(f"colors ranges from {low} to {high}; there are 8 colours: use classes 0 to 7.")
    return y.to(torch.uint8).numpy().tobytes()


def _robust_range(points: Tensor, still: Tensor) -> Extent:
    """Return what 99.8% of each frame needs, up to twice the reach of the median frame."""
    tails = torch.tensor([0.001, 0.999], dtype=points.dtype)
    low, high = torch.quantile(points, tails, dim=1)  # (F, 2) each
    centre = points.flatten(0, 1).median(0).values
    reach = 2 * torch.maximum(high - centre, centre - low).median(0).values
    low, high = torch.maximum(low.amin(0), centre - reach), torch.minimum(high.amax(0), centre + reach)
    if len(still):
        first, last = torch.quantile(still, tails, dim=0)
        low, high = torch.minimum(low, first), torch.maximum(high, last)
    pad = 0.05 * (high - low).max().clamp(min=1e-3 * float(high.abs().max()) or 1.0)
    (xmin, ymin), (xmax, ymax) = (low - pad).tolist(), (high + pad).tolist()
    return xmin, xmax, ymin, ymax


def _extent(extent: Extent) -> Extent:
    """Check an extent and widen its shorter side, so that the picture is between 1:2 and 5:2."""
    if len(extent) != 4 or not all(-math.inf < a < b < math.inf for a, b in (extent[:2], extent[2:])):
        raise ValueError(f"extent is {extent}; it must be (xmin, xmax, ymin, ymax), finite, each min < max.")
    xmin, xmax, ymin, ymax = (float(v) for v in extent)
    dx = max(0.0, (ymax - ymin) / 2 - (xmax - xmin)) / 2
    dy = max(0.0, (xmax - xmin) / 2.5 - (ymax - ymin)) / 2
    return xmin - dx, xmax + dx, ymin - dy, ymax + dy


def _sixteen_bit(points: Tensor, extent: Extent) -> bytes:
    """Store points (..., 2) in 16 bits a coordinate, over the extent and its own size on either side.

    Points further out stay at that border, out of the picture.
    """
    xmin, xmax, ymin, ymax = extent
    places = (points - points.new_tensor([xmin, ymin])) / points.new_tensor([xmax - xmin, ymax - ymin])
    return ((places + 1) / 3).clamp(0, 1).mul(65535).round().int().numpy().astype("<u2").tobytes()
