"""Curves with a cursor that moves along them, or curves that change from frame to frame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .. import _checks
from ._base import Player, checked, encoded, player, text, ticks

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "currentColor")  # as page.js
_DASHES = ("solid", "dashed", "dashed", "dotted")  # of the key; the script draws more exactly


def curves(
    x: Tensor,
    panels: Mapping[str, Mapping[str, Tensor]],
    ts: Tensor | Sequence[float] | None = None,
    *,
    xlabel: str,
    label: str,
    log: Sequence[str] = (),
    fps: float = 12,
    height: int = 220,
) -> Player:
    """Play named curves over a common x, one panel a quantity.

    Where every curve stands still, a cursor moves along x, and the key gives the value of each curve there. Where the
    curves change, frame i shows row i of each.

    Args:
        x: (N,) floating point, increasing, N >= 2.
        panels: quantity -> {name: (N,), or (F, N) for a curve that changes}; up to 8 curves a panel.
        ts: (F,) times of the frames, shown as "t = 0.35"; only for curves that change.
        xlabel: what x is; the cursor's place is shown as "xlabel = 0.35".
        label: one sentence that says what to see: the caption, and the picture's text for a screen reader.
        log: the quantities on a logarithmic axis; their values are positive.
        fps: frames a second while playing.
        height: CSS pixels of each panel, at least 100.

    Raises:
        TypeError: x or a curve is not floating point, or a name or label is not text.
        ValueError: a shape does not fit, a value is not finite or, on a logarithmic axis, not positive, x does not
            increase, or `log` names a quantity that is not there.

    Example:
        >>> t = torch.linspace(0, 1, 41)
        >>> curves(t, {"alpha": {"flow": 1 - t}}, xlabel="t", label="The signal fades.")
        Player('The signal fades.', 41 frames)
    """
    across = checked("x", x, "N", torch.float64)
    if len(across) < 2 or not bool((across[1:] > across[:-1]).all()):
        raise ValueError(f"x has {len(across)} value(s) that do not all increase; give 2 or more, sorted.")
    if unknown := set(log) - set(panels):
        raise ValueError(f"log names {sorted(unknown)}; the quantities are {list(panels)}.")
    _checks.count("height", height, least=100)
    lines = {
        quantity: {name: _line(f"{quantity} of {name}", y, len(across)) for name, y in named.items()}
        for quantity, named in panels.items()
    }
    counts = {len(y) for named in lines.values() for y in named.values()} - {1}
    if not lines or not all(1 <= len(named) <= 8 for named in lines.values()) or len(counts) > 1:
        sizes = {quantity: [len(y) for y in named.values()] for quantity, named in lines.items()}
        raise ValueError(f"the panels hold {sizes} frame(s); give 1 to 8 curves each, and one number of frames.")
    still = not counts
    if still and ts is not None:
        raise ValueError("ts is given, but no curve changes; give curves (F, N), or leave ts out for a cursor along x.")
    frames = len(across) if still else counts.pop()
    low, high = float(across[0]), float(across[-1])
    drawn = [_drawn(quantity, named, quantity in log) for quantity, named in lines.items()]
    span = ticks(low, high)
    spec = {
        "x": _levels((across - low) / (high - low)),
        "panels": [levels for levels, _ in drawn],
        "ticks": [[span, up] for _, up in drawn],
        "cursor": ((across - low) / (high - low)).tolist() if still else None,
        "values": [
            [[f"{value:.4g}".replace("-", "\u2212") for value in y[0].tolist()] for y in named.values()]
            if still
            else []
            for named in lines.values()
        ],
    }
    caption = text("label", label)
    picture = "".join(_panel(quantity, named, caption, height, still) for quantity, named in lines.items())
    text("xlabel", xlabel)
    names = _labels(across, xlabel) if still else None
    picture, first = f'<div class="cp-panels">{picture}</div>', frames // 2 if still else frames - 1
    return player("curves", spec, picture, label, ts, frames, fps, 720, labels=names, first=first)


def _line(name: str, y: Tensor, count: int) -> Tensor:
    """Return a curve as (1, N) or (F, N)."""
    rows = _checks.floating(name, y, min_dims=1).detach().to("cpu", torch.float64)
    if rows.ndim > 2 or rows.shape[-1] != count or len(rows) == 0:
        raise ValueError(f"{name} has shape {tuple(y.shape)}; x has {count} values: give ({count},) or (F, {count}).")
    return _checks.finite(name, rows.reshape(-1, count))


def _drawn(quantity: str, named: Mapping[str, Tensor], log: bool) -> tuple[list[str], list[tuple[float, str]]]:
    """Return the curves of a panel as levels of its height, and the ticks of its vertical axis."""
    values = torch.cat(list(named.values()))
    if log and bool((values <= 0).any()):
        raise ValueError(f"{quantity} goes down to {float(values.min())}; a logarithmic axis needs positive values.")
    values = values.log10() if log else values
    low, high = float(values.min()), float(values.max())
    pad = 0.05 * (high - low) or 0.5 * max(1.0, abs(high))
    low, high = low - pad, high + pad
    places = [((y.log10() if log else y) - low) / (high - low) for y in named.values()]
    return [_levels(place) for place in places], _decades(low, high) if log else ticks(low, high)


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """Return about five powers of ten, or, where fewer than two fit, round numbers, each with its place in [0, 1]."""
    step = max(1, math.ceil((high - low) / 5))
    powers = range(math.ceil(low / step) * step, math.floor(high) + 1, step)
    if len(powers) < 2:
        marks = ticks(10**low, 10**high)
        values = [10**low + place * (10**high - 10**low) for place, _ in marks]
        return [
            ((math.log10(v) - low) / (high - low), label) for v, (_, label) in zip(values, marks, strict=True) if v > 0
        ]
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return [((p - low) / (high - low), f"10{str(p).translate(raised)}") for p in powers]


def _levels(places: Tensor) -> str:
    """Store places in [0, 1] in 16 bits each."""
    return encoded(places.mul(65535).round().int().numpy().astype("<u2").tobytes())


def _panel(quantity: str, names: Iterable[str], caption: str, height: int, still: bool) -> str:
    """Return one panel: its title, its canvas and its key."""
    title = text("a quantity", quantity)
    return (
        f"<div><strong>{title}</strong>"
        f'<canvas role="img" aria-label="{title}: {caption}" style="height:{height}px"></canvas>'
        + "".join(_key(k, name, still) for k, name in enumerate(names))
        + "</div>"
    )


def _key(k: int, name: str, still: bool) -> str:
    """Return the line of the key for curve k: its colour, its name and room for its value."""
    value = '<output data-value aria-live="off"></output>' if still else ""
    style = f"border-top-color:{_COLOURS[k]};border-top-style:{_DASHES[k % len(_DASHES)]}"
    return f'<div class="cp-key"><i style="{style}"></i><span>{text("a name", name)}</span>{value}</div>'


def _labels(x: Tensor, name: str) -> list[str]:
    """Return "name = value" for each place of the cursor, with as few decimals as tell them apart."""
    for digits in range(7):
        labels = [f"{name} = {value:.{digits}f}" for value in x.tolist()]
        if len(set(labels)) == len(labels):
            break
    return labels
