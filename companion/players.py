"""Players: a slider and a Play button over frames computed beforehand, with no kernel and no library.

A player is one HTML figure that holds its data (quantised, base64), its style and its script, so it works in
the rendered book, in JupyterLab and in Colab. It opens on the last frame, the result, and plays when asked.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _checks

Extent = tuple[float, float, float, float]

_STYLE = """
.companion-player{margin:.75rem 0;padding:0;width:100%;color:inherit;font-size:.9rem;line-height:1.4;
text-align:left}
.companion-player canvas{display:block;width:100%;height:auto}
.companion-player .cp-cells{display:grid;gap:4px}
.companion-player .cp-cells canvas{image-rendering:pixelated;border-radius:2px}
.companion-player .cp-cells span{display:block;margin-top:2px;font-size:.75em;line-height:1.2;opacity:.8;
text-align:center;overflow-wrap:anywhere}
.companion-player .cp-controls{display:flex;align-items:center;gap:.75rem;margin:.6rem 0 .4rem}
.companion-player button{flex:none;min-width:5em;padding:.35em .8em;font:inherit;color:inherit;cursor:pointer;
background:none;border:1px solid rgba(128,128,128,.6);border-radius:6px}
.companion-player button:hover{background:rgba(128,128,128,.15)}
.companion-player input{flex:1;min-width:0;margin:0;height:1.6em;cursor:pointer;
accent-color:#0072b2;accent-color:light-dark(#0072b2,#56b4e9)}
.companion-player :focus-visible{outline:2px solid currentColor;outline-offset:2px}
.companion-player output{flex:none;text-align:right;font-variant-numeric:tabular-nums}
.companion-player figcaption{margin:0;padding:0;color:inherit;font:inherit;text-align:left;opacity:.85}
.cell_output .text_html:has(>.companion-player){background:none!important;color:inherit!important;
padding:0!important}
"""  # the last rule: the book's theme would put a pale card behind an output on its dark page

_SCRIPT = """
"use strict";
(() => {
  // Okabe and Ito's colours; the eighth, black, follows the text so that it shows on a dark page too.
  const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442"];
  const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  // 16-bit coordinates to units of the picture: (0, 0) is its lower left corner, (1, 1) its upper right.
  const units = (text) => Float32Array.from(new Uint16Array(bytes(text).buffer), (q) => 3 * q / 65535 - 1);

  // A painter reads the data once and returns a function that draws one frame and may return a remark.
  const trajectory = (figure, spec) => {
    const canvas = figure.querySelector("canvas"), pen = canvas.getContext("2d"), [across, up] = spec.ticks;
    const points = units(spec.points), reference = units(spec.reference), classes = bytes(spec.colors);
    const stride = points.length / spec.labels.length;
    return (frame, ink) => {
      const ratio = window.devicePixelRatio || 1, wide = canvas.clientWidth, high = canvas.clientHeight;
      canvas.width = Math.round(wide * ratio);  // also clears it
      canvas.height = Math.round(high * ratio);
      pen.scale(ratio, ratio);
      const scale = Math.max(0, Math.min((wide - 44) / spec.size[0], (high - 28) / spec.size[1]));
      const w = scale * spec.size[0], h = scale * spec.size[1], left = 36 + (wide - 44 - w) / 2, top = 6;
      const x = (u) => left + u * w, y = (v) => top + (1 - v) * h;
      const say = (text, px, py, align, baseline) => {
        [pen.textAlign, pen.textBaseline] = [align, baseline];
        pen.fillText(text, px, py);
      };
      pen.fillStyle = pen.strokeStyle = ink;
      pen.font = "11px system-ui, sans-serif";
      pen.globalAlpha = 0.3;
      pen.strokeRect(left, top, w, h);
      across.forEach(([u]) => pen.fillRect(x(u) - 0.5, top + h, 1, 4));
      up.forEach(([v]) => pen.fillRect(left - 4, y(v) - 0.5, 4, 1));
      pen.globalAlpha = 0.75;
      across.forEach(([u, text]) => say(text, x(u), top + h + 7, "center", "top"));
      up.forEach(([v, text]) => say(text, left - 7, y(v), "right", "middle"));
      const dots = (data, from, to, radius, colour) => {
        let outside = 0;
        for (let i = from; i < to; i += 2) {
          if (Math.abs(data[i] - 0.5) > 0.5 || Math.abs(data[i + 1] - 0.5) > 0.5) { outside += 1; continue; }
          pen.fillStyle = colour((i - from) / 2);
          pen.beginPath();
          pen.arc(x(data[i]), y(data[i + 1]), radius, 0, 7);
          pen.fill();
        }
        return outside;
      };
      pen.globalAlpha = 0.2;
      dots(reference, 0, reference.length, 1.5, () => ink);
      pen.globalAlpha = 0.9;
      const colour = (n) => COLOURS[classes.length ? classes[n] : 0] || ink;
      const outside = dots(points, frame * stride, (frame + 1) * stride, spec.radius, colour);
      pen.fillStyle = ink;
      if (outside) say(`${outside} outside`, left + w - 6, top + 6, "right", "top");
      return outside ? `, ${outside} points outside` : "";
    };
  };
  const frames = (figure, spec) => {
    const canvases = figure.querySelectorAll("canvas"), pixels = bytes(spec.pixels), {channels} = spec;
    const {width, height} = canvases[0], size = width * height * channels;
    return (frame) => canvases.forEach((canvas, n) => {
      const image = new ImageData(width, height), start = (frame * canvases.length + n) * size;
      for (let k = 0; k < image.data.length; k += 1) {  // k runs over red, green, blue, opacity of each pixel
        const offset = (k >> 2) * channels + (channels === 3 ? k & 3 : 0);
        image.data[k] = (k & 3) === 3 ? 255 : pixels[start + offset];
      }
      canvas.getContext("2d").putImageData(image, 0, 0);
    });
  };

  // Every copy of this script sets up whatever players the page has that no copy has set up yet.
  document.querySelectorAll("figure.companion-player:not([data-ready])").forEach((figure) => {
    figure.dataset.ready = "";
    const [button, slider, output] = ["button", "input", "output"].map((name) => figure.querySelector(name));
    const spec = JSON.parse(figure.dataset.spec), last = spec.labels.length - 1;
    const paint = {trajectory, frames}[figure.dataset.kind](figure, spec);
    let timer = 0, ink = "";
    const show = () => {
      ink = getComputedStyle(figure).color;
      const [red, green, blue] = ink.match(/[0-9.]+/g).map(Number);
      figure.style.colorScheme = red + green + blue > 382 ? "dark" : "light";  // for the slider's own drawing
      output.value = spec.labels[+slider.value];
      slider.setAttribute("aria-valuetext", output.value + (paint(+slider.value, ink) || ""));
    };
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      button.textContent = "Play";
    };
    button.addEventListener("click", () => {
      if (timer) return stop();
      if (+slider.value >= last) slider.value = 0;
      show();
      button.textContent = "Pause";
      const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
      timer = setInterval(() => {
        slider.value = +slider.value + 1;
        show();
        if (+slider.value >= last || !figure.isConnected) stop();
      }, Math.max(1000 / spec.fps, calm ? 500 : 0));
    });
    slider.addEventListener("input", () => { stop(); show(); });
    // The colour of the text tells the theme: look at once, and again when a transition may have ended.
    const theme = () => { if (ink !== getComputedStyle(figure).color) show(); };
    const look = () => { theme(); setTimeout(theme, 400); };
    const attributeFilter = ["class", "style", "theme", "data-theme", "data-mode", "data-jp-theme-light"];
    const watcher = new MutationObserver(look);
    [document.documentElement, document.body].forEach((node) => watcher.observe(node, {attributeFilter}));
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", look);
    new ResizeObserver(show).observe(figure);
    show();
  });
})();
"""


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

    Raises:
        TypeError: paths or reference is not floating point, colors are not integers, or label is not text.
        ValueError: a shape does not fit, a value is not finite, or a class, extent, fps or height is wrong.

    Example:
        >>> noise = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(0))
        >>> trajectory(noise, [1.0, 0.5, 0.0], label="Noise comes to rest.")
        Player('Noise comes to rest.', 3 frames)
    """
    points = _checked("paths", _stack("paths", paths), "F, N, 2", torch.float64)
    still = points[0, :0] if reference is None else _checked("reference", reference, "M, 2", torch.float64)
    window = _extent(_robust_range(points, still) if extent is None else extent)
    num_points, size = points.shape[1], (window[1] - window[0], window[3] - window[2])
    spec = {
        "points": _base64(_sixteen_bit(points, window)),
        "reference": _base64(_sixteen_bit(still, window)),
        "colors": "" if colors is None else _base64(_classes(colors, num_points)),
        "extent": window,
        "size": size,
        "ticks": [_ticks(*window[:2]), _ticks(*window[2:])],
        "radius": 3 if num_points <= 200 else 2.2 if num_points <= 1000 else 1.5,
    }
    drawn = _checks.count("height", height, least=100) - 28  # 28 and 44 pixels go to the tick labels
    wide = round(44 + drawn * size[0] / size[1])
    picture = (
        f'<canvas role="img" aria-label="{_text("label", label)}" '
        f'style="aspect-ratio:{wide}/{height};max-width:{wide}px"></canvas>'
    )
    return _player("trajectory", spec, picture, label, ts, len(points), fps, wide)


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
        scale: CSS pixels of one image pixel; by default the grid is at most 640 wide. Narrow pages shrink it.
        fps: frames a second while playing.
        value_range: (black, white). Values beyond it, which noise has, are shown as black or white.

    Raises:
        TypeError: images are not floating point, or a title or label is not text.
        ValueError: a shape does not fit, a value is not finite, or a number asked for is out of its range.

    Example:
        >>> frames(torch.zeros(3, 2, 1, 8, 8), titles=["3", "7"], label="Two digits form.")
        Player('Two digits form.', 3 frames)
    """
    pixels = _checked("images", _stack("images", images), "F, N, C, H, W", torch.float32)
    num_frames, n, channels, high, wide = pixels.shape
    if channels not in (1, 3):
        shape = tuple(pixels.shape)
        raise ValueError(f"images has shape {shape}: {channels} channels; C is 1 or 3: use images[:, :, :3].")
    black, white = value_range
    if not -math.inf < black < white < math.inf:
        raise ValueError(f"value_range is {value_range}; it must be (black, white), black < white, finite.")
    if titles is not None and (isinstance(titles, str) or len(titles) != n):
        raise ValueError(f"titles is {titles!r} for {n} images; give a list of {n} texts, one an image.")
    names = [f"image {i + 1} of {n}" if titles is None else _text("titles", titles[i]) for i in range(n)]
    across = math.ceil(n / math.ceil(n / 10)) if columns is None else _checks.count("columns", columns)
    zoom = max(1, min(640 // (across * wide), 160 // wide)) if scale is None else _positive("scale", scale)
    total = round(across * wide * zoom + 4 * (across - 1))
    levels = ((pixels - black) / (white - black)).clamp(0, 1).mul(255).round().to(torch.uint8)
    levels = levels.permute(0, 1, 3, 4, 2).contiguous()  # channels last, as a canvas has them
    spec = {"channels": channels, "pixels": _base64(levels.numpy().tobytes())}
    cells = "".join(
        f'<div><canvas role="img" aria-label="{name}" width="{wide}" height="{high}"></canvas>'
        + ("" if titles is None else f'<span aria-hidden="true">{name}</span>')
        + "</div>"
        for name in names
    )
    picture = (
        f'<div class="cp-cells" role="group" aria-label="{_text("label", label)}" '
        f'style="max-width:{total}px;grid-template-columns:repeat({across},minmax(0,1fr))">{cells}</div>'
    )
    return _player("frames", spec, picture, label, ts, num_frames, fps, total)


def _player(
    kind: str, spec: dict[str, Any], picture: str, label: str, ts: Any, count: int, fps: float, wide: int
) -> Player:
    """Put the picture, the controls, the caption, the style and the script into one figure."""
    labels, caption = _time_labels(ts, count), _text("label", label)
    spec = {"labels": labels, "fps": _positive("fps", fps)} | spec
    data = html.escape(json.dumps(spec, separators=(",", ":")))
    quiet = 'data-lm-suppress-shortcuts="true"'  # else JupyterLab takes the arrow keys
    slider = (
        f'<input {quiet} type="range" min="0" max="{count - 1}" value="{count - 1}" autocomplete="off" '
        f'aria-label="{"Frame" if ts is None else "Time"} of: {caption}" aria-valuetext="{labels[-1]}">'
    )
    room = max(map(len, labels)) / 2  # so that the slider keeps its length
    output = f'<output aria-live="off" style="min-width:{room:g}em">{labels[-1]}</output>'
    return Player(
        f'<figure class="companion-player" data-kind="{kind}" style="max-width:{max(wide, 320)}px" '
        f'data-spec="{data}">\n<style>{_STYLE}</style>\n{picture}\n<div class="cp-controls">'
        f'<button {quiet} type="button">Play</button>{slider}{output}</div>\n'
        f"<figcaption>{caption}</figcaption>\n<script>{_SCRIPT}</script>\n</figure>",
        label,
        count,
    )


def _stack(name: str, given: Tensor | Sequence[Tensor]) -> Tensor:
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


def _checked(name: str, x: Tensor, axes: str, dtype: torch.dtype) -> Tensor:
    """Return x on the CPU if it is finite and of a shape such as "F, N, 2", where F is at least 2."""
    x = _checks.floating(name, x, min_dims=0).detach().to("cpu", dtype)
    wanted, shape = axes.split(", "), tuple(x.shape)
    fits = len(wanted) == len(shape) and (wanted[-1] != "2" or shape[-1] == 2)
    if not fits or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; it must be ({axes}), none of them 0: use reshape.")
    if wanted[0] == "F" and len(x) < 2:
        raise ValueError(f"{name} has 1 frame, shape {shape}; a player needs 2 or more: plot it instead.")
    return _checks.finite(name, x)


def _text(name: str, text: str) -> str:
    """Return a text that is not blank, escaped for HTML."""
    if not isinstance(text, str):
        raise TypeError(f"{name} has {text!r}; it must be text: use str() or write a sentence.")
    if not text.strip():
        raise ValueError(f"{name} is empty or blank; a screen reader reads it out: say what to see.")
    return html.escape(text)


def _positive(name: str, value: float) -> float:
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


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return about five round numbers: the place of each in [0, 1], and its text."""
    base = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(m * base for m in (1, 2, 5, 10, 20) if m * base >= (high - low) / 5)
    values = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(round((v - low) / (high - low), 6), f"{v:.6g}".replace("-", "\u2212")) for v in values]


def _sixteen_bit(points: Tensor, extent: Extent) -> bytes:
    """Store points (..., 2) in 16 bits a coordinate, over the extent and its own size on either side.

    Points further out stay at that border, out of the picture.
    """
    xmin, xmax, ymin, ymax = extent
    places = (points - points.new_tensor([xmin, ymin])) / points.new_tensor([xmax - xmin, ymax - ymin])
    return ((places + 1) / 3).clamp(0, 1).mul(65535).round().int().numpy().astype("<u2").tobytes()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
