"""Metrics against closed forms, brute force and scipy."""

import itertools
import math
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from cases import seeded

from companion import metrics


def points(n, dim, seed=0, dtype=torch.float64):
    return torch.randn(n, dim, generator=seeded(seed), dtype=dtype)


PAIRED = [metrics.wasserstein, metrics.sliced_wasserstein]
EVERY_METRIC = [*PAIRED, metrics.frechet_distance]


# --- wasserstein ---


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("far", [0.0, 1e5])
def test_a_shift_costs_its_length(dim, far):
    """Also for points far from the origin, where a distance by products would cancel."""
    x, shift = points(60, dim) + far, torch.full((dim,), 0.75, dtype=torch.float64)
    wanted = 0.75 * math.sqrt(dim)
    assert metrics.wasserstein(x, x + shift) == pytest.approx(wanted, rel=1e-9)
    assert metrics.wasserstein(x, x) == 0


@pytest.mark.parametrize("dim", [1, 3])
def test_order_does_not_count_and_sides_are_equal(dim):
    x, y = points(40, dim), points(40, dim, 1) + 0.3
    order = torch.randperm(40, generator=seeded(2))
    for metric in EVERY_METRIC:
        assert metric(x, y) == pytest.approx(metric(y, x), rel=1e-9)
        assert metric(x[order], y) == pytest.approx(metric(x, y), rel=1e-9)
        assert metric(x, x[order]) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_wasserstein_by_brute_force(dim):
    """All 720 assignments of six points."""
    for seed in range(5):
        x, y = points(6, dim, seed), 2 * points(6, dim, seed + 50)
        squared = ((x[:, None] - y[None]) ** 2).sum(-1)
        best = min(sum(squared[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(6)))
        assert metrics.wasserstein(x, y) == pytest.approx(math.sqrt(best / 6), rel=1e-12)


def test_wasserstein_in_one_dimension_is_that_of_the_quantiles():
    x, y = points(500, 1), 3 * points(500, 1, 1).abs()
    u = (np.arange(500) + 0.5) / 500
    inverse = [np.quantile(z.flatten().numpy(), u, method="inverted_cdf") for z in (x, y)]
    assert metrics.wasserstein(x, y) == pytest.approx(math.sqrt(np.mean((inverse[0] - inverse[1]) ** 2)), rel=1e-12)
    moved = x + 2  # for a shift the distance of order 1, which scipy has, is that of order 2
    theirs = scipy.stats.wasserstein_distance(x.flatten().numpy(), moved.flatten().numpy())
    assert metrics.wasserstein(x, moved) == pytest.approx(theirs, rel=1e-12)


def test_wasserstein_of_gaussian_quantiles():
    """W2 of N(m, s^2) and N(0, 1) is sqrt(m^2 + (s - 1)^2)."""
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    z = torch.special.ndtri(u)[:, None]
    assert metrics.wasserstein(z, 1.5 + 3 * z) == pytest.approx(math.sqrt(1.5**2 + 2**2), rel=1e-3)


def test_wasserstein_of_images_is_that_of_vectors():
    x, y = points(10, 12), points(10, 12, 1)
    for metric in PAIRED:
        assert metric(x.reshape(10, 3, 2, 2), y.reshape(10, 3, 2, 2)) == metric(x, y)


# --- sliced ---


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_sliced_is_never_more_than_exact(dim):
    for seed in range(4):
        x, y = points(50, dim, seed), 1.5 * points(50, dim, seed + 9) + 0.2
        assert 0 < metrics.sliced_wasserstein(x, y) < metrics.wasserstein(x, y)


def test_sliced_in_one_dimension_is_exact():
    x, y = points(50, 1), points(50, 1, 1) ** 2
    assert metrics.sliced_wasserstein(x, y, projections=3) == pytest.approx(metrics.wasserstein(x, y), rel=1e-12)


@pytest.mark.parametrize("dim", [2, 4])
def test_sliced_of_a_shift(dim):
    """A shift of length a costs a <u, e> along u: in mean square a / sqrt(D)."""
    x = points(30, dim)
    shift = torch.zeros(dim, dtype=torch.float64)
    shift[0] = 2.0
    found = metrics.sliced_wasserstein(x, x + shift, projections=20_000)
    assert found == pytest.approx(2 / math.sqrt(dim), rel=0.02)


def test_sliced_directions():
    x, y = points(40, 3), points(40, 3, 1)
    one, two = (metrics.sliced_wasserstein(x, y, projections=5, generator=seeded(s)) for s in (1, 2))
    assert metrics.sliced_wasserstein(x, y) == metrics.sliced_wasserstein(x, y) and one != two
    directions = torch.randn(3, 5, generator=seeded(1), dtype=torch.float64)
    directions /= (directions**2).sum(0).sqrt()
    squared = [metrics.wasserstein(x @ u[:, None], y @ u[:, None]) ** 2 for u in directions.T]
    assert one == pytest.approx(math.sqrt(np.mean(squared)), rel=1e-12)


# --- Frechet ---


def with_moments(n, mean, covariance, seed=0):
    """Points whose mean and covariance are exactly these."""
    z = points(n, len(mean), seed)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    return z @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_of_commuting_covariances():
    """With diagonal covariances it is |m - n|^2 + sum (s_i - r_i)^2."""
    s, r = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.3, 2.5, 4.0]).double()
    m, n = torch.tensor([0.0, 1.0, -1.0]).double(), torch.tensor([2.0, 1.0, 0.5]).double()
    x, y = with_moments(30, m, torch.diag(s**2)), with_moments(50, n, torch.diag(r**2), 1)
    wanted = ((m - n) ** 2).sum() + ((s - r) ** 2).sum()
    assert metrics.frechet_distance(x, y) == pytest.approx(wanted.item(), rel=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_frechet_is_the_textbook_formula(dim):
    for seed in range(4):
        x, y = points(30, dim, seed) @ points(dim, dim, seed + 5), 0.4 + points(45, dim, seed + 9)
        a, b = (np.atleast_2d(np.cov(z.numpy().T)) for z in (x, y))
        root = scipy.linalg.sqrtm(a @ b).real
        away = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
        assert metrics.frechet_distance(x, y) == pytest.approx(away + np.trace(a + b - 2 * root), rel=1e-8)
        assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
        assert metrics.frechet_distance(x, x + 3) == pytest.approx(9 * dim, rel=1e-9)


def test_frechet_of_fewer_samples_than_dimensions():
    """Covariances without full rank: the eigenvalues below 0 are rounding."""
    x, y = points(4, 10), points(5, 10, 1)
    found = metrics.frechet_distance(x, y)
    root = scipy.linalg.sqrtm(np.cov(x.numpy().T) @ np.cov(y.numpy().T) + 1e-14 * np.eye(10)).real
    away = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
    wanted = away + np.trace(np.cov(x.numpy().T)) + np.trace(np.cov(y.numpy().T)) - 2 * np.trace(root)
    assert math.isfinite(found) and found == pytest.approx(wanted, rel=1e-4)


def test_frechet_of_features():
    x, y = points(20, 4), points(20, 4, 1)
    weights = points(4, 2, 2).requires_grad_()
    seen = []

    def features(z):
        seen.append((z.shape, torch.is_grad_enabled()))
        return z @ weights

    found = metrics.frechet_distance(x, y, features=features)
    assert found == pytest.approx(metrics.frechet_distance((x @ weights).detach(), (y @ weights).detach()), rel=1e-12)
    assert seen == [((20, 4), False)] * 2
    assert metrics.frechet_distance(x, y, features=lambda z: z) == metrics.frechet_distance(x, y)


# --- the floor ---


def test_floor_is_the_mean_and_deviation_over_fresh_pairs():
    drawn = iter(range(100))
    seen = []

    def metric(x, y):
        seen.append((x, y))
        return float(y - x) * x**2

    mean, sd = metrics.floor(metric, lambda: next(drawn), pairs=5)
    assert seen == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]  # never the same set twice
    values = [0.0, 4.0, 16.0, 36.0, 64.0]
    assert mean == pytest.approx(np.mean(values)) and sd == pytest.approx(np.std(values, ddof=1))


def test_floor_of_a_known_metric():
    """The difference of two means of n normal values is N(0, 2 / n)."""
    generator = seeded()
    mean, sd = metrics.floor(
        lambda x, y: float(x.mean() - y.mean()), lambda: torch.randn(50, 1, generator=generator), pairs=400
    )
    assert abs(mean) < 5 * math.sqrt(2 / 50 / 400) and sd == pytest.approx(math.sqrt(2 / 50), rel=0.2)


def test_floor_takes_24_pairs():
    drawn = []
    metrics.floor(lambda x, y: 0.0, lambda: drawn.append(1))
    assert len(drawn) == 48


# --- nearest ---


def test_nearest_distance_by_brute_force():
    x, reference = points(7, 3), points(11, 3, 1)
    wanted = [min(math.dist(a, b) for b in reference.tolist()) for a in x.tolist()]
    found = metrics.nearest_distance(x, reference)
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx(wanted, rel=1e-12)
    images = metrics.nearest_distance(x.reshape(7, 1, 3), reference.reshape(11, 1, 3))
    assert torch.equal(images, found)


@pytest.mark.parametrize("far", [0.0, 1e5])
def test_a_copy_is_at_distance_0(far):
    reference = points(60, 4) + far
    assert (metrics.nearest_distance(reference[10:40], reference) == 0).all()
    assert metrics.nearest_distance(reference + 1e-6, reference).tolist() == pytest.approx([2e-6] * 60, rel=1e-4)


# --- the contract ---


@pytest.mark.parametrize("metric", [*EVERY_METRIC, metrics.nearest_distance])
def test_dtype_device_and_inputs(metric, device):
    x, y = points(20, 3, dtype=torch.float32), points(20, 3, 1, dtype=torch.float32)
    wanted = torch.as_tensor(metric(x.double(), y.double()))
    kept, state = (x.clone(), y.clone()), torch.get_rng_state()
    found = metric(x.to(device).requires_grad_(), y.to(device))
    if metric is metrics.nearest_distance:
        assert found.dtype == torch.float64 and not found.requires_grad
    else:
        assert type(found) is float
    torch.testing.assert_close(torch.as_tensor(found).cpu(), wanted.cpu(), rtol=1e-12, atol=1e-12)
    half = torch.as_tensor(metric(x.bfloat16(), y.bfloat16()))
    torch.testing.assert_close(half, wanted, rtol=0.05, atol=0.01)
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1]) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("metric", [*EVERY_METRIC, metrics.nearest_distance])
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        pytest.param(
            points(0, 2), points(0, 2), ValueError, r"x has shape \(0, 2\); a distance needs samples", id="empty"
        ),
        pytest.param(points(5, 2), points(0, 2), ValueError, r"y has shape \(0, 2\); a distance needs", id="one empty"),
        pytest.param(points(5, 2) / 0, points(5, 2), ValueError, "x holds NaN or infinity", id="infinity"),
        pytest.param(points(5, 2), points(5, 2) * math.nan, ValueError, "y holds NaN or infinity", id="nan"),
        pytest.param(points(5, 2).long(), points(5, 2), TypeError, r"x has dtype torch.int64.*x\.float", id="integers"),
        pytest.param(points(5, 2)[:, 0], points(5, 2), ValueError, r"x has shape \(5,\).*at least 2 dim", id="1-D"),
        pytest.param(points(5, 2).numpy(), points(5, 2), TypeError, "x is a ndarray", id="numpy"),
    ],
)
def test_bad_sets(metric, x, y, error, message):
    with pytest.raises(error, match=message):
        metric(x, y)


@pytest.mark.parametrize("metric", PAIRED)
@pytest.mark.parametrize("shape", [(4, 2), (5, 3), (6, 2)], ids=str)
def test_misaligned_sets(metric, shape):
    with pytest.raises(ValueError, match=r"y has shape .* but x has \(5, 2\); the two must be equal"):
        metric(points(5, 2), points(*shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: metrics.frechet_distance(points(1, 2), points(5, 2)),
            r"x has shape \(1, 2\) and y \(5, 2\); give 2 or more samples of equal width",
        ),
        (lambda: metrics.frechet_distance(points(5, 2), points(1, 2)), "give 2 or more samples"),
        (lambda: metrics.frechet_distance(points(5, 2), points(5, 3)), "of equal width"),
        (
            lambda: metrics.nearest_distance(points(5, 2), points(5, 3)),
            "x has 2 values a sample but the reference has 3",
        ),
        (
            lambda: metrics.floor(metrics.wasserstein, lambda: points(5, 2), pairs=1),
            "pairs is 1; it must be at least 2",
        ),
        (lambda: metrics.sliced_wasserstein(points(5, 2), points(5, 2), projections=0), "projections is 0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wasserstein_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"more than 1-D: pip install scipy"):
        metrics.wasserstein(points(5, 2), points(5, 2))
    assert metrics.wasserstein(points(5, 1), points(5, 1)) == 0
