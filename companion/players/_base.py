"""What every player is made of: the figure with its data, style and script, and the checks of what goes in."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from .. import _checks

QUIET = 'data-lm-suppress-shortcuts="true"'  # else JupyterLab takes the arrow keys


@dataclass(frozen=True, eq=False, repr=False)
class Player:
    """A player: the last value of a notebook cell shows it.

    Attributes:
        html: the whole figure, self-contained; the same input gives the same text.
        label: the caption, which is also what a screen reader says.
        num_frames: how many frames the slider has.
    """

    html: str
    label: str
    num_frames: int

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Player({self.label!r}, {self.num_frames} frames)"


def player(
    kind: str,
    spec: dict[str, Any],
    picture: str,
    label: str,
    ts: Any,
    count: int,
    fps: float,
    wide: int,
    *,
    labels: list[str] | None = None,
    first: int | None = None,
) -> Player:
    """Put the picture, the controls, the caption, the style and the script into one figure.

    It opens on the frame `first`, by default the last one.
    """
    first = count - 1 if first is None else first
    labels, caption = labels or _time_labels(ts, count), text("label", label)
    spec = {"labels": labels, "fps": positive("fps", fps)} | spec
    data = html.escape(json.dumps(spec, separators=(",", ":")))
    slider = (
        f'<input {QUIET} type="range" min="0" max="{count - 1}" value="{first}" autocomplete="off" '
        f'aria-label="{"Frame" if ts is None else "Time"} of: {caption}" aria-valuetext="{html.escape(labels[first])}">'
    )
    room = max(map(len, labels)) / 2  # so that the slider keeps its length
    output = f'<output aria-live="off" style="min-width:{room:g}em">{html.escape(labels[first])}</output>'
    return Player(
        f'<figure class="companion-player" data-kind="{kind}" style="max-width:{max(wide, 320)}px" '
        f'data-spec="{data}">\n<style>{source("player.css")}</style>\n{picture}\n<div class="cp-controls">'
        f'<button {QUIET} type="button">Play</button>{slider}{output}</div>\n'
        f"<figcaption>{caption}</figcaption>\n<script>{source('player.js')}</script>\n</figure>",
        label,
        count,
    )


def stack(name: str, given: Tensor | Sequence[Tensor]) -> Tensor:
    """Return a tensor, or a list of tensors of one shape, as one tensor."""
    if isinstance(given, Tensor):
        return given
    if not isinstance(given, list | tuple) or not all(isinstance(frame, Tensor) for frame in given):
        raise TypeError(
            f"{name} is a {type(given).__name__}; it must be a tensor or a list of tensors, one a frame: "
            f"use [step.x for step in steps] for a sampler's steps, torch.as_tensor for an array."
        )
    shapes = sorted({tuple(frame.shape) for frame in given})
    if len(shapes) != 1:
        raise ValueError(f"{name} has frames of shapes {shapes}; give at least 2 frames, all of one shape.")
    return torch.stack([frame.detach().cpu() for frame in given])


def checked(name: str, x: Tensor, axes: str, dtype: torch.dtype) -> Tensor:
    """Return x on the CPU if it is finite and of a shape such as "F, N, 2", where F is at least 2."""
    x = _checks.floating(name, x, min_dims=0).detach().to("cpu", dtype)
    wanted, shape = axes.split(", "), tuple(x.shape)
    fits = len(wanted) == len(shape) and (wanted[-1] != "2" or shape[-1] == 2)
    if not fits or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; it must be ({axes}), none of them 0: use reshape.")
    if wanted[0] == "F" and len(x) < 2:
        raise ValueError(f"{name} has 1 frame, shape {shape}; a player needs 2 or more: plot it instead.")
    return _checks.finite(name, x)


def text(name: str, text: str) -> str:
    """Return a text that is not blank, escaped for HTML."""
    if not isinstance(text, str):
        raise TypeError(f"{name} has {text!r}; it must be text: use str() or write a sentence.")
    if not text.strip():
        raise ValueError(f"{name} is empty or blank; a screen reader reads it out: say what to see.")
    return html.escape(text)


def positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a positive finite number.")
    return value


def _time_labels(ts: Tensor | Sequence[float] | None, count: int) -> list[str]:
    """Return one text a frame, with as few decimals (2 to 4) as tell the times apart."""
    if ts is None:
        return [f"frame {i + 1} of {count}" for i in range(count)]
    times = [float(t) for t in ts]
    if len(times) != count:
        raise ValueError(f"ts has {len(times)} times for {count} frames; give one a frame.")
    if not all(map(math.isfinite, times)):
        raise ValueError(f"ts is {times}; each time must be finite.")
    for digits in (2, 3, 4):
        labels = [f"t = {t:.{digits}f}" for t in times]
        if len(set(labels)) == len(set(times)):
            break
    return labels


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return about five round numbers: the place of each in [0, 1], and its text."""
    base = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(m * base for m in (1, 2, 5, 10, 20) if m * base >= (high - low) / 5)
    values = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    for digits in (6, 9, 12, 15):
        texts = [f"{v:.{digits}g}" for v in values]
        if len(set(texts)) == len(values):
            break
    places = [round((v - low) / (high - low), 6) for v in values]
    return [(place, text.replace("-", "\u2212")) for place, text in zip(places, texts, strict=True)]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def source(name: str) -> str:
    """Return a style or script of this folder, with page.js in its place and without remarks: each player holds one."""
    folder = files(__package__)
    text = folder.joinpath(name).read_text(encoding="utf8")
    text = text.replace("  // page.js\n", folder.joinpath("page.js").read_text(encoding="utf8"))
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))
