"""How far apart two sets of samples are, and how far apart two sets of real data already are.

No distance means anything without its floor: what fresh real data score against real data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _checks

Metric = Callable[[Tensor, Tensor], float]
"""A metric: a function of two sets (N, *D) that answers with a number."""
_EXACT = "donot_use_mm_for_euclid_dist"  # by differences: with products, a copy would be 1e-8 from itself


def floor(metric: Metric, draw: Callable[[], Tensor], pairs: int = 24) -> tuple[float, float]:
    """Return the mean and standard deviation of a metric between two fresh sets of real data.

    The standard error of the mean is the deviation over the square root of `pairs`.

    Args:
        metric: metric(x, y) -> float.
        draw: draw() -> a fresh set (N, *D), as large as the sets that are to be judged.
        pairs: how many pairs of sets, at least 2.

    >>> mean, sd = floor(wasserstein, lambda: torch.randn(100, 1), pairs=8)
    >>> 0 < mean < 1 and sd > 0
    True
    """
    _checks.count("pairs", pairs, 2)
    values = torch.tensor([metric(draw(), draw()) for _ in range(pairs)], dtype=torch.float64)
    return float(values.mean()), float(values.std())


def wasserstein(x: Tensor, y: Tensor) -> float:
    """Return the 2-Wasserstein distance between two sets of equal size, exact, by optimal assignment.

    In one dimension sorting gives the assignment; in more, scipy's solver does: about a second for 3,000 points.

    Args:
        x, y: (N, *D), in the data's units, as is the distance.

    Raises:
        ValueError: sets that are empty, of different shape, or hold NaN.
        ImportError: more than one dimension without scipy.

    >>> wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [2.0]]))
    2.0
    """
    x, y = _pair(x, y)
    _checks.same_shape("y", y, x, "x")
    if x.shape[1] == 1:
        return float(((x.sort(0).values - y.sort(0).values) ** 2).mean().sqrt())
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("metrics.wasserstein needs scipy in more than 1-D: pip install scipy") from error
    cost = torch.cdist(x, y, compute_mode=_EXACT) ** 2
    rows, columns = linear_sum_assignment(cost.numpy())
    return float(cost[rows, columns].mean().sqrt())


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, projections: int = 128, generator: torch.Generator | None = None
) -> float:
    """Return the root mean square of the 2-Wasserstein distances along random directions.

    Much cheaper than `wasserstein`, and never more than it.

    Args:
        x, y: (N, *D), of equal shape.
        projections: how many directions.
        generator: where directions come from; without one they are the same at each call.

    Raises:
        ValueError: sets that are empty, of different shape, or hold NaN.

    >>> sliced_wasserstein(torch.zeros(5, 1), torch.ones(5, 1))
    1.0
    """
    x, y = _pair(x, y)
    _checks.same_shape("y", y, x, "x")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    shape = (x.shape[1], _checks.count("projections", projections))
    directions = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64).to(x.device)
    directions = directions / directions.norm(dim=0)
    along_x, along_y = (x @ directions).sort(0).values, (y @ directions).sort(0).values
    return float(((along_x - along_y) ** 2).mean().sqrt())


def frechet_distance(x: Tensor, y: Tensor, *, features: Callable[[Tensor], Tensor] | None = None) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017).

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)): a squared distance, as in FID. Its value depends on how many
    samples there are: compare only figures made with equal numbers.

    Args:
        x, y: (N, *D) and (M, *D), at least 2 samples each.
        features: maps samples to (N, F); without it the samples themselves are compared.

    Raises:
        ValueError: sets of fewer than 2 samples, of different width, or with NaN.

    >>> frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]]))
    9.0
    """
    if features is not None:
        with torch.no_grad():
            x, y = features(x), features(y)
    x, y = _pair(x, y)
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; give 2 or more samples of equal width.")
    mean = ((x.mean(0) - y.mean(0)) ** 2).sum()
    cov_x, cov_y = (torch.atleast_2d(torch.cov(z.T)) for z in (x, y))
    values, vectors = torch.linalg.eigh(cov_x)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp(min=0).sqrt().sum()
    return float(mean + cov_x.trace() + cov_y.trace() - 2 * cross)


def nearest_distance(x: Tensor, reference: Tensor) -> Tensor:
    """Return how far each sample is from its nearest neighbour in a reference set, (N,) float64.

    A sample that copies a training image is far closer to the training set than held-out data are.

    Args:
        x: (N, *D).
        reference: (M, *D).

    Raises:
        ValueError: sets that are empty, of different width, or hold NaN.

    >>> nearest_distance(torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [9.0]])).tolist()
    [1.0, 4.0]
    """
    x, reference = _pair(x, reference)
    if x.shape[1] != reference.shape[1]:
        raise ValueError(f"x has {x.shape[1]} values a sample but the reference has {reference.shape[1]}.")
    return torch.cdist(x, reference, compute_mode=_EXACT).min(1).values


def psnr(x: Tensor, y: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Return the peak signal-to-noise ratio of each sample in decibels, 10 log10(data_range^2 / mean((x - y)^2)).

    Half the error is 6.02 dB more. The mean is over the elements of one sample. A perfect sample has infinitely many
    decibels; to average squared errors over a set instead, take the set as one sample: psnr(x[None], y[None]).

    Args:
        x, y: (B, *D), of equal shape; one holds the clean samples.
        data_range: how far apart the lowest and the highest possible value are; 2 for data in [-1, 1].

    Returns:
        (B,) float64 on the CPU; infinite where a sample of x equals that of y.

    Raises:
        ValueError: x and y of different shape, empty, or with NaN; a data_range that is not positive and finite.

    >>> psnr(torch.full((3, 1, 8, 8), 0.2), torch.zeros(3, 1, 8, 8)).round(decimals=4).tolist()
    [20.0, 20.0, 20.0]
    """
    x, y = _pair(x, y)
    _checks.same_shape("y", y, x, "x")
    if not 0 < data_range < float("inf"):
        raise ValueError(f"data_range is {data_range}; it must be positive and finite: 2 for data in [-1, 1].")
    return 10 * torch.log10(data_range**2 / (x - y).square().mean(1))


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets flattened to (N, D) in float64 on the CPU, checked."""
    pair = []
    for name, z in (("x", x), ("y", y)):
        _checks.floating(name, z, min_dims=2)
        if not z.numel():
            raise ValueError(f"{name} has shape {tuple(z.shape)}; a distance needs samples.")
        pair.append(_checks.finite(name, z.detach().to("cpu", torch.float64).flatten(1)))
    return pair[0], pair[1]
