"""The classical denoisers: nothing linear beats Wiener, and the median is a median."""

import math
import re

import pytest
import torch
from cases import SCHEDULES, seeded

from companion.denoisers import FiniteDataset, GaussianMixture, MedianFilter, Wiener
from companion.schedules import Cosine, FlowMatching, Linear, VarianceExploding

EACH_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
EPS64 = torch.finfo(torch.float64).eps
TIMES = (0.05, 0.4, 0.8)


def randn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def spread(n, seed=2):
    """A covariance with variances from 0.05 to 2 along random directions."""
    axes, _ = torch.linalg.qr(randn(n, n, seed=seed))
    return axes * torch.linspace(0.05, 2.0, n, dtype=torch.float64) @ axes.T


# --- Wiener ---


@EACH_SCHEDULE
@pytest.mark.parametrize("shape", [(1,), (3,), (1, 2, 3)])
def test_the_textbook_formula(schedule, shape):
    n = math.prod(shape)
    mean, covariance, x = randn(*shape), spread(n), randn(5, *shape, seed=3)
    for t in TIMES:
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        of_x = alpha**2 * covariance + sigma**2 * torch.eye(n, dtype=torch.float64)
        gain = alpha * covariance @ torch.linalg.inv(of_x)
        want = mean.flatten() + (x.flatten(1) - alpha * mean.flatten()) @ gain.T
        found = Wiener(mean, covariance, schedule)(x, t)
        assert found.shape == x.shape
        torch.testing.assert_close(found.flatten(1), want, rtol=1e-8, atol=1e-8)


@EACH_SCHEDULE
def test_exact_for_one_round_gaussian(schedule):
    mean, x = randn(1, 4), randn(6, 4, seed=3)
    exact = GaussianMixture(mean, torch.tensor([0.3], dtype=torch.float64), torch.ones(1).double(), schedule)
    linear = Wiener(mean[0], 0.3 * torch.eye(4, dtype=torch.float64), schedule)
    for t in (0.0, *TIMES, 1.0):
        torch.testing.assert_close(linear(x, t), exact(x, t), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", [Linear(), FlowMatching(), VarianceExploding()])
@pytest.mark.parametrize("t", [0.4, 0.6, 0.8])
def test_no_other_affine_map_has_less_error(schedule, t):
    """The expected error over data and noise, exact: moving the map in any direction can only add to it."""
    data, n = randn(7, 3) ** 3, 3  # seven points, far from Gaussian
    model = Wiener.fit(data, schedule)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    offset = model(torch.zeros(1, n).double(), t)
    matrix = model(torch.eye(n).double(), t) - offset  # rows: what each direction of x turns into

    def error(matrix, offset):
        miss = alpha * data @ matrix + offset - data
        return miss.square().sum(1).mean() + sigma**2 * matrix.square().sum()

    least = error(matrix, offset)
    for seed in range(20):
        move, shift = randn(n, n, seed=seed) / (alpha + sigma), randn(1, n, seed=seed + 100)
        # a quadratic around its least value: no slope, so both sides cost the same, and more than the middle
        after, before = (error(matrix + s * 1e-2 * move, offset + s * 1e-2 * shift) for s in (1, -1))
        assert min(after, before) > least
        torch.testing.assert_close(after - least, before - least, rtol=1e-6, atol=1e-13)
    assert least < error(torch.eye(n).double() / alpha, torch.zeros(1, n).double())  # than doing nothing
    assert least < error(torch.zeros(n, n).double(), data.mean(0, keepdim=True))  # than answering the mean


@pytest.mark.parametrize("shape", [(2,), (1, 4, 2)])
def test_fit_takes_the_moments_of_the_data(shape):
    data = randn(9, *shape)
    model = Wiener.fit(data, Cosine())
    torch.testing.assert_close(model.mean, data.mean(0), rtol=4 * EPS64, atol=4 * EPS64)
    want = torch.cov(data.flatten(1).T, correction=0)
    torch.testing.assert_close(model.covariance, want, rtol=1e-13, atol=1e-14)
    assert model.schedule == Cosine()


def test_fit_of_one_sample_answers_it():
    one = randn(1, 3)
    model = Wiener.fit(one, Cosine())
    for t in (0.0, 0.5, 1.0):
        torch.testing.assert_close(model(randn(4, 3, seed=3), t), one.expand(4, 3), rtol=1e-14, atol=1e-14)


@EACH_SCHEDULE
def test_the_ends(schedule):
    """Clean data pass, but for directions in which the data never vary; pure noise gives the mean."""
    data = torch.cat([randn(9, 2), torch.full((9, 1), 0.25).double()], dim=1)  # the last element is constant
    model, x = Wiener.fit(data, schedule), randn(5, 3, seed=3)
    want = torch.cat([x[:, :2], torch.full((5, 1), 0.25).double()], dim=1)
    torch.testing.assert_close(model(x, 0.0), want, rtol=1e-12, atol=1e-12)
    if float(schedule.alpha(1.0)) == 0:
        torch.testing.assert_close(model(x, 1.0), data.mean(0).expand(5, 3), rtol=1e-14, atol=1e-14)


@EACH_SCHEDULE
@pytest.mark.parametrize("time_dtype", [torch.float32, torch.float64])
def test_wiener_with_one_time_each(schedule, time_dtype):
    model, x = Wiener(randn(1, 2, 2), spread(4), schedule), randn(3, 1, 2, 2, seed=3)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=time_dtype)
    together = model(x, t)
    for i in range(3):
        # a float32 time is widened to float64 in the batch; a 0-dim one is worked with as it is
        torch.testing.assert_close(together[i : i + 1], model(x[i : i + 1], t[i].double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("of_model", [torch.float32, torch.float64])
def test_wiener_keeps_the_dtype_and_its_input(dtype, of_model):
    model = Wiener(randn(4).to(of_model), spread(4).to(of_model), Cosine())
    x = randn(5, 4, seed=3).to(dtype)
    kept = x.clone()
    found = model(x, 0.4)
    assert found.dtype == dtype and torch.equal(x, kept)
    wide = Wiener(model.mean.double(), model.covariance.double(), Cosine())(x.double(), 0.4)
    tolerance = 4 * max(torch.finfo(dtype).eps, torch.finfo(of_model).eps)
    torch.testing.assert_close(found.double(), wide, rtol=tolerance, atol=4 * tolerance)


def test_wiener_in_float32_of_data_that_hardly_vary():
    """Eigenvalues are found in float64: the covariance of images is nearly singular."""
    data = (randn(400, 3) @ torch.tensor([[1.0, 1.0, 0.0], [0.0, 1e-3, 0.0], [0.0, 0.0, 1e-3]]).double()).float()
    x, t = data[:9] + 0.001 * randn(9, 3, seed=3).float(), 0.05
    narrow, wide = (Wiener.fit(d, FlowMatching())(x.to(d), t) for d in (data, data.double()))
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-4)


def test_wiener_on_each_device(device):
    mean, covariance, x = randn(4), spread(4), randn(5, 4, seed=3)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    for time in (t, torch.tensor(0.4, dtype=torch.float64)):
        here = Wiener(mean, covariance, Cosine())(x, time)
        there = Wiener(mean.to(device), covariance.to(device), Cosine())(x.to(device), time.to(device))
        assert there.device.type == device.type
        torch.testing.assert_close(there.cpu(), here, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("mean", "covariance", "error", "message"),
    [
        (torch.zeros(2, dtype=torch.long), torch.eye(2), TypeError, "mean has dtype torch.int64"),
        (torch.zeros(2), torch.eye(2).long(), TypeError, "covariance has dtype torch.int64"),
        (torch.tensor([0.0, math.nan]), torch.eye(2), ValueError, "mean holds NaN"),
        (torch.zeros(2), torch.full((2, 2), math.inf), ValueError, "covariance holds NaN or infinity"),
        (torch.zeros(2), torch.eye(3), ValueError, "covariance has shape (3, 3); the mean has 2 elements: (2, 2)"),
        (torch.zeros(1, 2), torch.ones(2), ValueError, "covariance has shape (2,); the mean has 2"),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), ValueError, "covariance is not symmetric"),
        (torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), ValueError, "an eigenvalue of -1"),
        (torch.zeros(2), -torch.eye(2), ValueError, "an eigenvalue of -1"),
        (torch.zeros(2), torch.tensor([[1e-6, 2e-6], [2e-6, 1e-6]]), ValueError, "an eigenvalue of -1e-06"),
    ],
)
def test_wiener_refuses(mean, covariance, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Wiener(mean, covariance, Cosine())


def test_wiener_takes_a_covariance_with_rounding_errors():
    covariance = spread(6).float()
    covariance[0, 1] += 1e-6
    Wiener(torch.zeros(6), covariance, Cosine())
    Wiener(torch.zeros(2), torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-6]]), Cosine())  # an eigenvalue of -5e-7
    Wiener(torch.zeros(2), torch.zeros(2, 2), Cosine())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.long), TypeError, "data has dtype torch.int64"),
        (torch.zeros(3), ValueError, "data has shape (3,); it needs at least 2"),
        (torch.zeros(0, 2), ValueError, "data has shape (0, 2); a covariance needs at least one sample"),
        (torch.full((3, 2), math.nan), ValueError, "data holds NaN"),
    ],
)
def test_wiener_fit_refuses(data, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Wiener.fit(data, Cosine())


# --- the median ---


def by_loops(x, size):
    """The median of each window, one by one."""
    reach, (height, width) = size // 2, x.shape[2:]
    out = torch.empty_like(x)
    for i in range(height):
        for j in range(width):
            rows = torch.arange(i - reach, i + reach + 1).clamp(0, height - 1)
            columns = torch.arange(j - reach, j + reach + 1).clamp(0, width - 1)
            window = x[:, :, rows][:, :, :, columns].flatten(2)
            out[:, :, i, j] = window.sort(-1).values[..., (size**2 - 1) // 2]
    return out


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 2, 7), (2, 1, 1)])
def test_median_of_each_window(size, shape):
    x = randn(4, *shape)
    found = MedianFilter(size, VarianceExploding())(x, 0.3)  # alpha is 1
    assert torch.equal(found, by_loops(x, size))


@EACH_SCHEDULE
def test_median_of_the_scaled_image(schedule):
    x, t = randn(3, 1, 4, 4), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = MedianFilter(3, schedule)(x, t)
    for i in range(3):
        alpha = float(schedule.alpha(t[i]))
        torch.testing.assert_close(together[i : i + 1], by_loops(x[i : i + 1] / alpha, 3), rtol=1e-12, atol=0)
        assert torch.equal(MedianFilter(3, schedule)(x[i : i + 1], t[i]), together[i : i + 1])


@pytest.mark.parametrize("noisy", [True, False])
def test_median_removes_single_pixels_and_keeps_edges(noisy):
    image = torch.full((1, 1, 8, 8), -1.0)
    image[..., 4:] = 1.0  # a straight edge
    x = image.clone()
    if noisy:
        x[0, 0, 1, 1] = x[0, 0, 6, 2] = 1.0
        x[0, 0, 2, 6] = -1.0
    assert torch.equal(MedianFilter(3, VarianceExploding())(x, 0.3), image)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("time_dtype", [torch.float32, torch.float64])
def test_median_keeps_the_dtype_and_its_input(dtype, time_dtype):
    x = randn(2, 1, 4, 4).to(dtype)
    kept = x.clone()
    for t in (0.4, torch.tensor(0.4, dtype=time_dtype), torch.full((2,), 0.4, dtype=time_dtype)):
        found = MedianFilter(3, Cosine())(x, t)
        assert found.dtype == dtype and torch.equal(x, kept)
        want = by_loops(x.double() / float(Cosine().alpha(0.4)), 3)
        torch.testing.assert_close(found.double(), want, rtol=4 * float(torch.finfo(dtype).eps) + 1e-6, atol=0)


def test_median_on_each_device(device):
    x, t = randn(2, 1, 4, 4), torch.tensor([0.2, 0.6], dtype=torch.float64)
    here, there = MedianFilter(3, Cosine())(x, t), MedianFilter(3, Cosine())(x.to(device), t.to(device))
    assert there.device.type == device.type and torch.equal(there.cpu(), here)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (2, ValueError, "size is 2; it must be odd"),
        (0, ValueError, "size is 0; it must be at least 1"),
        (-3, ValueError, "size is -3; it must be at least 1"),
        (3.0, TypeError, "size is 3.0; it must be an int"),
    ],
)
def test_median_refuses_sizes(size, error, message):
    with pytest.raises(error, match=re.escape(message)):
        MedianFilter(size, Cosine())


@pytest.mark.parametrize("shape", [(2, 16), (2, 4, 4), (2, 1, 1, 4, 4)])
def test_median_refuses_what_is_no_image(shape):
    with pytest.raises(ValueError, match=re.escape(f"x has shape {shape}; a median filter takes images")):
        MedianFilter(3, Cosine())(torch.zeros(shape), 0.5)


@pytest.mark.parametrize("t", [1.0, torch.tensor([0.5, 1.0])])
def test_median_refuses_pure_noise(t):
    with pytest.raises(ValueError, match="alpha is 0 where t is 1"):
        MedianFilter(3, Cosine())(torch.zeros(2, 1, 4, 4), t)


# --- both ---


@pytest.mark.parametrize("model", [Wiener(torch.zeros(1, 4, 4), torch.eye(16), Cosine()), MedianFilter(3, Cosine())])
@pytest.mark.parametrize(
    ("x", "t", "error", "message"),
    [
        (torch.zeros(2, 16), 0.5, ValueError, "x has shape (2, 16)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.long), 0.5, TypeError, "x has dtype torch.int64"),
        (torch.zeros(2, 1, 4, 4), 1.5, ValueError, "t ranges from 1.5 to 1.5"),
        (torch.zeros(2, 1, 4, 4), torch.tensor(3), TypeError, "t has dtype torch.int64"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(3), ValueError, "t has shape (3,) but x has batch 2"),
    ],
)
def test_both_refuse(model, x, t, error, message):
    with pytest.raises(error, match=re.escape(message)):
        model(x, t)


def test_what_the_exact_denoiser_gains_over_the_best_linear_one():
    """On two points, which no line describes: the exact denoiser has less error at each level, up to pure noise."""
    schedule, generator = FlowMatching(), seeded()
    points = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    exact, linear = FiniteDataset(points, schedule), Wiener.fit(points, schedule)
    x0 = points[torch.randint(2, (4000,), generator=generator)]
    for t in (0.2, 0.4, 0.6):
        x = (1 - t) * x0 + t * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        assert (exact(x, t) - x0).square().mean() < (linear(x, t) - x0).square().mean()
