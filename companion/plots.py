"""Figures in one style: white, quiet, colour-blind safe, legible at half size.

Each function returns a matplotlib Figure that a notebook shows once; end a cell with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from . import _checks

try:
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("companion.plots needs matplotlib: pip install matplotlib") from error

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A8A8A")
"""Okabe and Ito's palette, without its yellow (too faint on white), and a grey."""

STYLE: dict[str, Any] = {
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "axes.titlesize": "medium",
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "font.size": 11,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "figure.dpi": 110,
    "savefig.facecolor": "white",
}


def figure(columns: int = 1, rows: int = 1, *, width: float = 3.0, height: float = 2.6) -> tuple[Figure, Any]:
    """Return a figure in the book's style and its axes: one Axes, or an array of them.

    Args:
        columns, rows: how many panels.
        width, height: of one panel, in inches.

    >>> fig, axes = figure(2)
    >>> len(axes)
    2
    """
    _checks.count("columns", columns)
    _checks.count("rows", rows)
    with mpl.rc_context(STYLE):
        fig, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), layout="constrained")
    plt.close(fig)  # shown when a cell ends with it, and not a second time
    return fig, axes


def curves(
    x: Tensor,
    panels: Mapping[str, Mapping[str, Tensor]],
    *,
    xlabel: str,
    log: Sequence[str] = (),
    width: float = 2.7,
) -> Figure:
    """Draw named curves over a common x, one panel a quantity, with one legend.

    Args:
        x: (N,).
        panels: quantity -> {name: (N,)}; the quantity labels the vertical axis.
        xlabel: of every panel.
        log: the quantities drawn on a logarithmic axis.

    >>> import torch
    >>> t = torch.linspace(0, 1, 11)
    >>> len(curves(t, {"alpha": {"flow": 1 - t}, "sigma": {"flow": t}}, xlabel="t").axes)
    2
    """
    fig, axes = figure(len(panels), width=width, height=3.0)
    for ax, (quantity, lines) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for i, (name, y) in enumerate(lines.items()):
            _checks.same_shape(f"{quantity} of {name}", y, x, "x")
            ax.plot(
                _array(x), _array(y), label=name, color=COLORS[i % len(COLORS)], linestyle=_DASHES[i % len(_DASHES)]
            )
        ax.set(xlabel=xlabel, ylabel=quantity, yscale="log" if quantity in log else "linear")
    handles, names = np.atleast_1d(axes)[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return fig


def points(
    panels: Mapping[str, Tensor], *, reference: Tensor | None = None, colors: Tensor | None = None, width: float = 2.4
) -> Figure:
    """Draw sets of points in the plane side by side, on the same axes, each under its name.

    Args:
        panels: name -> (N, 2).
        reference: (M, 2) drawn in light grey behind each.
        colors: (N,) classes of the points.

    >>> import torch
    >>> len(points({"data": torch.randn(9, 2), "samples": torch.randn(9, 2)}).axes)
    2
    """
    fig, axes = figure(len(panels), width=width, height=width + 0.3)
    for ax, (name, x) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        if x.ndim != 2 or x.shape[1] != 2:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; points in the plane are (N, 2).")
        if reference is not None:
            ax.scatter(*_array(reference).T, s=2, color="#CFCFCF", linewidths=0)
        shades = COLORS[0] if colors is None else [COLORS[c % len(COLORS)] for c in colors.tolist()]
        ax.scatter(*_array(x).T, s=3, c=shades, alpha=0.7, linewidths=0)
        ax.set(title=name, aspect="equal", xticks=[], yticks=[])
        _bare(ax)
    everything = [_array(x) for x in panels.values()] + ([_array(reference)] if reference is not None else [])
    reach = float(np.quantile(np.abs(np.concatenate(everything)), 0.999)) * 1.08
    for ax in np.atleast_1d(axes):
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
    return fig


def images(x: Tensor, *, columns: int | None = None, titles: Sequence[str] | None = None, size: float = 0.7) -> Figure:
    """Draw images in a grid.

    Args:
        x: (N, C, H, W) in [-1, 1], C of 1 or 3; values outside are clipped for the picture.
        columns: by default all in one row.
        titles: one for each column, over the first row.
        size: of one image, in inches.

    >>> import torch
    >>> len(images(torch.zeros(6, 1, 8, 8), columns=3).axes)
    6
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"x has shape {tuple(x.shape)}; images are (N, C, H, W) with 1 or 3 channels.")
    columns = len(x) if columns is None else columns
    rows = -(-len(x) // columns)
    with mpl.rc_context(STYLE):
        fig, axes = plt.subplots(
            rows,
            columns,
            figsize=(size * columns, size * rows + (0.3 if titles else 0)),
            layout="constrained",
            squeeze=False,
        )
        fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    plt.close(fig)
    for i, ax in enumerate(axes.flat):
        ax.set(xticks=[], yticks=[])
        _bare(ax)
        if i < len(x):
            picture = _array((x[i].clamp(-1, 1) + 1) / 2).transpose(1, 2, 0)
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if titles is not None and i < columns:
            ax.set_title(titles[i], fontsize="small")
    return fig


_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


def _bare(ax: Axes) -> None:
    ax.grid(False)
    ax.spines[:].set_visible(False)
