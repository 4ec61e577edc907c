"""A small trained network that samples in the page: the reader sets the sampler, the steps and the guidance."""

from __future__ import annotations

import functools
import html
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks, encodings, networks, predictions, schedules
from ._base import QUIET, Player, checked, encoded, source, text, ticks
from ._trajectory import Extent, _extent, _sixteen_bit

SAMPLERS = ("ddpm", "ddim", "heun", "dpmpp_2m", "adams")
PREDICTIONS = (predictions.EPS, predictions.X0, predictions.V, predictions.VELOCITY)
LARGEST = 50_000
"""How many weights a network of the page may have: 100 kB at half precision."""


def live(
    net: nn.Module,
    schedule: schedules.Cosine,
    prediction: predictions.Prediction,
    *,
    label: str,
    choices: Sequence[str] = SAMPLERS,
    sampler: str = "ddim",
    num_steps: int = 10,
    max_steps: int = 60,
    classes: Sequence[str] | None = None,
    scale: float = 1.0,
    max_scale: float = 8.0,
    goal: bool = False,
    reference: Tensor | None = None,
    num_points: int = 400,
    extent: Extent | None = None,
    seed: int = 0,
    height: int = 360,
) -> Player:
    """Put a trained network of 2-D data into the page, with controls: it samples there, without a kernel.

    The page does what `samplers` and `guidance` do, in float64, on the grid of `samplers.grid`. It draws its own noise,
    from a seed, so that a control moves the samples and nothing else; "New noise" takes the next seed. Weights that
    half precision holds exactly are stored in half precision. The first walk waits until the figure comes near.

    Args:
        net: a `networks.MLP` of dim 2 as it is built by default: sinusoidal encoding, joined by "add".
        schedule: a `Cosine`; the page knows no other.
        prediction: `EPS`, `X0`, `V` or `VELOCITY`.
        label: one sentence that says what to see: the caption, and the picture's text for a screen reader.
        choices: the samplers to choose from, of "ddpm", "ddim", "heun", "dpmpp_2m" and "adams". With "ddim" comes a
            control of eta, with "ddpm" one of the variance.
        sampler, num_steps: what the player opens with.
        max_steps: the end of the slider of steps.
        classes: the names of the network's classes, in order; the reader may also choose no class.
        scale: the guidance scale that the player opens with, 1 is off; only with classes, from 0 to `max_scale`.
        goal: whether to draw a line from each sample to where 40 steps of "adams" take the same noise, and to say
            the root mean square length, for walks without fresh noise.
        reference: (M, 2) points that stay, drawn faint behind the others: the data, for instance.
        num_points: how many samples, a multiple of 4 up to 1,000.
        extent: (xmin, xmax, ymin, ymax) to show, one scale for both axes; by default the reference and most noise.
        seed: of the first noise, 0 or above.
        height: CSS pixels of the picture, at least 100; it shrinks where the page is narrow.

    Raises:
        TypeError: another network, schedule or prediction, or a label or name that is not text.
        ValueError: a network that the page does not know, an unknown sampler, names that do not fit the network's
            classes, or a number out of its range.

    Example:
        >>> net = networks.MLP(2, width=16, depth=1)
        >>> live(net, schedules.Cosine(), predictions.V, label="An untrained network moves noise about.")
        Player('An untrained network moves noise about.', 11 frames)
    """
    _known(schedule, prediction, choices, sampler)
    stored = _stored(net, classes)
    if classes is None and scale != 1:
        raise ValueError(f"scale is {scale}, but guidance needs classes: leave it out, or name the classes.")
    if _checks.count("num_points", num_points, 4) % 4 or num_points > 1000:
        raise ValueError(f"num_points is {num_points}; it must be a multiple of 4 up to 1,000.")
    if _checks.count("num_steps", num_steps) > _checks.count("max_steps", max_steps):
        raise ValueError(f"num_steps is {num_steps} and max_steps {max_steps}; the player opens within its slider.")
    still = torch.zeros(0, 2, dtype=torch.float64)
    still = still if reference is None else checked("reference", reference, "M, 2", torch.float64)
    window = _extent(_around(still) if extent is None else extent)
    size = (window[1] - window[0], window[3] - window[2])
    spec = {
        "net": stored,
        "s": schedule.s,
        "prediction": prediction.name,
        "goal": bool(goal),
        "count": num_points,
        "seed": _checks.count("seed", seed, 0),
        "reference": encoded(_sixteen_bit(still, window)),
        "extent": window,
        "ticks": [ticks(*window[:2]), ticks(*window[2:])],
        "radius": 3 if num_points <= 200 else 2.2,
    }
    controls = [_select("sampler", "Sampler", choices, sampler), _range("steps", "Steps", 1, max_steps, 1, num_steps)]
    controls += _of_some_samplers(choices) + ([] if classes is None else _of_classes(classes, scale, max_scale))
    wide = round(44 + (_checks.count("height", height, 100) - 28) * size[0] / size[1])
    return _figure(spec, controls, text("label", label), label, num_steps, wide, height)


def _figure(
    spec: dict[str, Any], controls: list[str], caption: str, label: str, num_steps: int, wide: int, height: int
) -> Player:
    data = html.escape(json.dumps(spec, separators=(",", ":")))
    return Player(
        f'<figure class="companion-player" data-kind="live" data-ready style="max-width:{max(wide, 600)}px" '
        f'data-spec="{data}">\n<style>{source("player.css")}</style>\n'
        f'<canvas role="img" aria-label="{caption}" style="aspect-ratio:{wide}/{height};max-width:{wide}px"></canvas>\n'
        f'<div class="cp-controls"><button {QUIET} type="button">Play</button><input {QUIET} type="range" min="0" '
        f'max="{num_steps}" value="{num_steps}" autocomplete="off" aria-label="Time of: {caption}" '
        f'aria-valuetext="t = 0.000"><output aria-live="off" style="min-width:4.5em">t = 0.000</output></div>\n'
        f'<div class="cp-live">{"".join(controls)}<button {QUIET} type="button">New noise</button></div>\n'
        f'<p class="cp-status" role="status" aria-live="polite"></p>\n<figcaption>{caption}</figcaption>\n'
        f"<script>{source('live.js')}</script>\n</figure>",
        label,
        num_steps + 1,
    )


def _select(name: str, title: str, options: Sequence[str], chosen: str, *, numbered: bool = False) -> str:
    items = "".join(
        f'<option value="{i if numbered else text(name, option)}"{" selected" if option == chosen else ""}>'
        f"{text(name, option)}</option>"
        for i, option in enumerate(options)
    )
    return _control(title, f'<select {QUIET} name="{name}" aria-label="{title}" autocomplete="off">{items}</select>')


def _range(name: str, title: str, least: float, most: float, step: float, value: float) -> str:
    slider = (
        f'<input {QUIET} type="range" name="{name}" aria-label="{title}" min="{least:g}" max="{most:g}" '
        f'step="{step:g}" value="{value:g}" autocomplete="off">'
    )
    return _control(title, f'{slider}<output aria-live="off">{value:g}</output>')


def _control(title: str, control: str) -> str:
    return f"<label><span>{title}</span>{control}</label>"


def _of_some_samplers(choices: Sequence[str]) -> list[str]:
    variances = ("posterior", "upper")
    of = {
        "ddim": _range("eta", "eta (ddim)", 0, 1, 0.1, 0),
        "ddpm": _select("variance", "Variance (ddpm)", variances, variances[0]),
    }
    return [control for name, control in of.items() if name in choices]


def _of_classes(classes: Sequence[str], scale: float, max_scale: float) -> list[str]:
    if not 0 <= scale <= max_scale <= 100 or scale % 0.25:
        raise ValueError(
            f"scale is {scale} and max_scale {max_scale}; they must satisfy 0 <= scale <= max_scale <= 100, and "
            "scale be a multiple of 0.25, the slider's step: 1 is off."
        )
    return [
        _select("cls", "Class", [*classes, "no class"], classes[0], numbered=True),
        _range("scale", "Guidance scale", 0, max_scale, 0.25, scale),
    ]


def _known(
    schedule: schedules.Schedule, prediction: predictions.Prediction, choices: Sequence[str], sampler: str
) -> None:
    """Refuse what the script of the page does not know."""
    if not isinstance(schedule, schedules.Cosine):
        raise TypeError(f"schedule is a {type(schedule).__name__}; the page knows one: schedules.Cosine().")
    if prediction not in PREDICTIONS:
        names = ", ".join(known.name for known in PREDICTIONS)
        raise TypeError(f"prediction is {getattr(prediction, 'name', prediction)!r}; the page knows {names}.")
    if isinstance(choices, str) or not choices or len(set(choices)) != len(choices) or set(choices) - set(SAMPLERS):
        raise ValueError(f"choices is {choices!r}; it must be a list of some of {', '.join(SAMPLERS)}.")
    if sampler not in choices:
        raise ValueError(f"sampler is {sampler!r}; it must be one of the choices: {', '.join(choices)}.")


def _stored(net: nn.Module, names: Sequence[str] | None) -> dict[str, Any]:
    """Return the network's sizes and weights, in the order of its state_dict, if the page knows its like."""
    if not isinstance(net, networks.MLP):
        raise TypeError(f"net is a {type(net).__name__}; the page knows one network: networks.MLP(2).")
    encoding, width = net.conditioning.encoding, net.conditioning.width
    default = (
        isinstance(encoding, functools.partial)
        and encoding.func is encodings.sinusoidal
        and not encoding.args
        and encoding.keywords == {"dim": width}
    )
    if net.dim != 2 or net.joining != "add" or not default:
        raise ValueError(
            f"net takes {net.dim} numbers, its joining is {net.joining!r} and its encoding {encoding!r}; the page "
            f'knows points of 2 numbers, "add" and the default encoding: networks.MLP(2, width=48, depth=3).'
        )
    classes = net.num_classes or 0
    given = 0 if names is None else len(names)
    if isinstance(names, str) or given != classes or (names is not None and not 0 < given == len(set(names))):
        raise ValueError(
            f"classes is {names!r}, but the network has {classes} classes; name each, in order, each differently."
        )
    values = torch.cat([value.detach().cpu().float().flatten() for value in net.state_dict().values()])
    _checks.finite("the network's weights", values)
    if len(values) > LARGEST:
        raise ValueError(f"net has {len(values):,} weights; a page holds up to {LARGEST:,}: take a smaller width.")
    half = bool((values.half().float() == values).all())
    data = values.half().numpy().astype("<f2") if half else values.numpy().astype("<f4")
    sizes = {"width": width, "depth": len(net.blocks), "classes": classes}
    return {**sizes, "half": half, "weights": encoded(data.tobytes())}


def _around(still: Tensor) -> Extent:
    """Return an extent of the reference points, and of all but a few in a hundred of the noise."""
    low, high = torch.full((2,), -2.4, dtype=torch.float64), torch.full((2,), 2.4, dtype=torch.float64)
    if len(still):
        low, high = torch.minimum(low, still.amin(0) - 0.1), torch.maximum(high, still.amax(0) + 0.1)
    (xmin, ymin), (xmax, ymax) = low.tolist(), high.tolist()
    return xmin, xmax, ymin, ymax
