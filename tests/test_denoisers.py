"""Exact denoisers against brute force, and networks that know the exact answer."""

import dataclasses
import math

import pytest
import torch
from cases import seeded
from torch import Tensor

from companion.denoisers import FiniteDataset, GaussianMixture, NetworkDenoiser, from_network
from companion.predictions import EPS, VELOCITY, X0, V, edm
from companion.schedules import Cosine, FlowMatching, Linear, Schedule, VarianceExploding, zero_terminal_snr

SCHEDULES: dict[str, Schedule] = {
    "linear": Linear(),
    "cosine": Cosine(),
    "flow": FlowMatching(),
    "exploding": VarianceExploding(),
    "zero_terminal": zero_terminal_snr(Linear()),
}
PREDICTIONS = {"eps": EPS, "x0": X0, "v": V, "velocity": VELOCITY, "edm_0.5": edm(0.5), "edm_1.3": edm(1.3)}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
EPS32, EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))
Z = 4.5


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def mixture(schedule: Schedule, *, dtype: torch.dtype = torch.float64, image: bool = False) -> GaussianMixture:
    means = torch.tensor([[-2.0, 0.5], [1.0, 1.5], [0.3, -1.0]], dtype=dtype)
    variances = torch.tensor([0.3, 0.05, 1.2], dtype=dtype)
    weights = torch.tensor([1.0, 3.0, 2.0], dtype=dtype)  # not normalised
    return GaussianMixture(means.reshape(3, 1, 2, 1) if image else means, variances, weights, schedule)


def line(schedule: Schedule) -> GaussianMixture:
    means = torch.tensor([[-1.5], [0.2], [2.0]], dtype=torch.float64)
    variances = torch.tensor([0.2, 0.5, 0.04], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    return GaussianMixture(means, variances, weights, schedule)


def normal(x: Tensor, mean: Tensor | float, variance: Tensor | float) -> Tensor:
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance) ** 0.5


# --- mixtures ---


@each_schedule
@pytest.mark.parametrize("t", [0.02, 0.3, 0.6, 0.9])
def test_bayes_rule_by_quadrature(schedule, t):
    model = line(schedule)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    if sigma > 0.05:  # else the likelihood is narrower than the grid resolves
        step = 0.002
        x0 = torch.arange(-8.0, 8.0, step, dtype=torch.float64)
        prior = (model.weights * normal(x0[:, None], model.means.T, model.variances)).sum(1)
        x = torch.linspace(-3, 3, 13, dtype=torch.float64) * (alpha + sigma)
        joint = prior * normal(x[:, None], alpha * x0, sigma**2)  # (13, n)
        evidence = joint.sum(1) * step
        want = (joint * x0).sum(1) * step / evidence
        torch.testing.assert_close(model(x[:, None], t)[:, 0], want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.log_prob(x[:, None], t), evidence.log(), rtol=1e-9, atol=1e-9)


@each_schedule
def test_the_cleaner_the_data_the_closer_the_answer(schedule):
    model, x = line(schedule), randn(9, 1)
    assert torch.equal(model(x, 0.0).isfinite(), torch.ones(9, 1, dtype=torch.bool))
    torch.testing.assert_close(model(x, 0.0), x, rtol=4 * EPS64, atol=4 * EPS64)
    torch.testing.assert_close(model(x, 1e-7), x, rtol=0, atol=1e-3)


def test_at_pure_noise_the_answer_is_the_mean_of_the_data():
    model = mixture(Cosine())
    mean = (model.weights / 6) @ model.means
    torch.testing.assert_close(model(randn(5, 2), 1.0), mean.expand(5, 2), rtol=4 * EPS64, atol=4 * EPS64)
    torch.testing.assert_close(model.score(randn(5, 2), 1.0), -randn(5, 2), rtol=4 * EPS64, atol=0)
    want = -0.5 * (randn(5, 2) ** 2).sum(1) - math.log(2 * math.pi)
    torch.testing.assert_close(model.log_prob(randn(5, 2), 1.0), want, rtol=8 * EPS64, atol=0)


@each_schedule
@pytest.mark.parametrize("image", [False, True])
def test_score_is_the_gradient_of_log_prob_and_tweedie_holds(schedule, image):
    model = mixture(schedule, image=image)
    shape = (7, 1, 2, 1) if image else (7, 2)
    for t in (1e-3, 0.1, 0.5, 0.9, torch.linspace(0.05, 0.95, 7, dtype=torch.float64)):
        alpha, sigma = (c.reshape(-1, *[1] * (len(shape) - 1)) for c in (schedule.alpha(t), schedule.sigma(t)))
        x = (2 * (alpha + sigma) * randn(*shape)).requires_grad_()
        (gradient,) = torch.autograd.grad(model.log_prob(x, t).sum(), x)
        score = model.score(x, t)
        assert score.shape == shape and model.log_prob(x, t).shape == (7,)
        torch.testing.assert_close(score, gradient, rtol=1e-11, atol=1e-11)
        tweedie = (x + sigma**2 * score) / alpha
        torch.testing.assert_close(model(x, t), tweedie, rtol=1e-10, atol=1e-10)


@each_schedule
def test_the_density_integrates_to_one(schedule):
    for t in (0.0, 0.3, 0.7):
        model = line(schedule)
        reach = 10 * (1 + float(schedule.sigma(t)))
        x = torch.linspace(-reach, reach, 8001, dtype=torch.float64)
        density = model.log_prob(x[:, None], t).exp()
        assert abs(float(density.sum() * (x[1] - x[0])) - 1) <= 1e-12
        mean = (density * x).sum() * (x[1] - x[0])
        assert abs(float(mean) - float(schedule.alpha(t)) * (-0.75 + 0.04 + 0.6)) <= 1e-11
    side = torch.linspace(-8, 8, 401, dtype=torch.float64)
    plane = torch.cartesian_prod(side, side)
    total = mixture(schedule).log_prob(plane).exp().sum() * (side[1] - side[0]) ** 2
    assert abs(float(total) - 1) <= 1e-9


@each_schedule
@pytest.mark.parametrize("dim", [1, 3, 12])
def test_one_gaussian_in_closed_form(schedule, dim):
    mean, v = randn(1, dim), 0.49
    model = GaussianMixture(mean, torch.tensor([v], dtype=torch.float64), torch.full((1,), 7.0).double(), schedule)
    t = torch.tensor([0.01, 0.3, 0.5, 0.99], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    x = alpha * mean + sigma * randn(4, dim, seed=2)
    total = alpha**2 * v + sigma**2
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(model(x, t), mean + alpha * v / total * (x - alpha * mean), **close)
    torch.testing.assert_close(model.score(x, t), -(x - alpha * mean) / total, **close)
    log_prob = -0.5 * ((x - alpha * mean) ** 2 / total + (2 * math.pi * total).log()).sum(1)
    torch.testing.assert_close(model.log_prob(x, t), log_prob, **close)


def test_weights_need_no_normalising_and_order_does_not_matter():
    model, x = mixture(FlowMatching()), randn(6, 2)
    scaled = GaussianMixture(model.means, model.variances, 50 * model.weights, FlowMatching())
    turned = GaussianMixture(model.means.flip(0), model.variances.flip(0), model.weights.flip(0), FlowMatching())
    for other in (scaled, turned):
        for f in (lambda m: m(x, 0.4), lambda m: m.score(x, 0.4), lambda m: m.log_prob(x, 0.4)):
            torch.testing.assert_close(f(other), f(model), rtol=1e-13, atol=1e-13)


def test_far_from_every_component_nothing_overflows():
    model = mixture(VarianceExploding(), dtype=torch.float32)
    x = torch.tensor([[300.0, -400.0], [1e4, 0.0]])
    for t in (1e-3, 0.1, 0.5, 1.0):
        assert bool(model(x, t).isfinite().all()) and bool(model.score(x, t).isfinite().all())
        assert bool(model.log_prob(x, t).isfinite().all())


@each_schedule
@pytest.mark.parametrize("image", [False, True])
def test_sample_has_the_moments_of_the_mixture(schedule, image):
    model, n = mixture(schedule, image=image), 60_000
    x = model.sample(n, generator=seeded(3))
    assert x.shape == ((n, 1, 2, 1) if image else (n, 2)) and x.dtype == torch.float64
    x, means, share = x.flatten(1), model.means.flatten(1), model.weights / 6
    mean = share @ means
    centred = means - mean
    covariance = (share * model.variances).sum() * torch.eye(2) + (share[:, None] * centred).T @ centred
    white = torch.linalg.inv(torch.linalg.cholesky(covariance)) @ (x - mean).T
    assert float(white.mean(1).abs().max()) <= Z / math.sqrt(n)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        product = white[i] * white[j]
        assert abs(float(product.mean()) - (i == j)) <= Z * float(product.std()) / math.sqrt(n)
    near = torch.cdist(x, means).argmin(1)  # the tight component, of share one half, is told apart by distance
    inside = (near == 1) & ((x - means[1]).square().sum(1) < 0.05 * 1.386294361)  # half of its own samples
    others = share[[0, 2]] @ torch.tensor(
        [count_inside(means[0], 0.3, means[1]), count_inside(means[2], 1.2, means[1])], dtype=torch.float64
    )
    p = 0.25 + float(others)
    assert abs(float(inside.double().mean()) - p) <= Z * math.sqrt(p * (1 - p) / n)


def count_inside(mean: Tensor, variance: float, centre: Tensor) -> float:
    """The mass that a round Gaussian in the plane puts on the disc about `centre` in which another has its half."""
    reach = math.sqrt(0.05 * 1.386294361)
    side = torch.linspace(-reach, reach, 801, dtype=torch.float64)
    plane = torch.cartesian_prod(side, side)
    density = normal(plane + centre, mean, variance).prod(1)
    return float(density[plane.square().sum(1) < reach**2].sum() * (side[1] - side[0]) ** 2)


def test_one_seed_one_sample():
    model, state = mixture(Cosine()), torch.get_rng_state()
    first, again, other = (model.sample(40, generator=seeded(s)) for s in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


# --- finite data sets ---


@each_schedule
@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_finite_dataset_is_an_explicit_softmax(schedule, shape):
    data, x = randn(6, *shape, seed=4), 2 * randn(5, *shape, seed=5)
    model = FiniteDataset(data, schedule)
    for t in (0.15, 0.5, 0.9, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)):
        alpha, sigma = schedule.alpha(t).expand(5), schedule.sigma(t).expand(5)
        got = model(x, t)
        assert got.shape == x.shape and got.dtype == torch.float64
        for i in range(5):
            logits = [-float(((x[i] - alpha[i] * point) ** 2).sum() / (2 * sigma[i] ** 2)) for point in data]
            weights = [math.exp(v - max(logits)) for v in logits]
            want = sum(w * point for w, point in zip(weights, data, strict=True)) / sum(weights)
            torch.testing.assert_close(got[i], want, rtol=1e-10, atol=1e-12)


@each_schedule
def test_a_mixture_of_points_is_a_finite_dataset(schedule):
    data, x = randn(6, 2, seed=4), randn(5, 2, seed=5)
    points = GaussianMixture(data, torch.full((6,), 1e-30, dtype=torch.float64), torch.ones(6).double(), schedule)
    dataset = FiniteDataset(data, schedule)
    for t in (0.5, torch.linspace(0.5, 0.9, 5, dtype=torch.float64)):
        torch.testing.assert_close(points(x, t), dataset(x, t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [FlowMatching(), VarianceExploding()], ids=["flow", "exploding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_close_to_clean_a_finite_dataset_gives_the_nearest_point(schedule, dtype):
    data, x = (5 * randn(7, 2, seed=4)).to(dtype), (5 * randn(9, 2, seed=5)).to(dtype)
    nearest = data[torch.cdist(x, data).argmin(1)]
    for t in (1e-3, 1e-5, 1e-30):  # sigma^2, then sigma, are below every float
        if schedule.sigma(t) > 0:
            assert torch.equal(FiniteDataset(data, schedule)(x, t), nearest)
            assert torch.equal(FiniteDataset(data, schedule)(data, t), data)


# --- shapes, dtypes, devices ---

EXACT = {
    "mixture": lambda schedule, dtype: mixture(schedule, dtype=dtype),
    "dataset": lambda schedule, dtype: FiniteDataset(randn(6, 2, seed=4).to(dtype), schedule),
}


@each_schedule
@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT.keys())
def test_a_time_for_each_is_that_time_for_all(make, schedule):
    model, x = make(schedule, torch.float64), 3 * randn(4, 2)
    ts = torch.tensor([0.2, 0.5, 0.5, 0.9], dtype=torch.float64)
    together = model(x, ts)
    for i, t in enumerate(ts):
        for time in (t, float(t)):
            torch.testing.assert_close(together[i : i + 1], model(x[i : i + 1], time), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT.keys())
@pytest.mark.parametrize("data_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_answers_have_the_dtype_of_x(make, dtype, data_dtype, device):
    model, x = make(Cosine(), data_dtype), randn(4, 2).to(device, dtype)
    tensors = {name: value.double() for name, value in vars(model).items() if isinstance(value, Tensor)}
    exact = dataclasses.replace(model, **tensors)(x.double().cpu(), 0.5)
    before = x.clone()
    inside = torch.finfo(torch.promote_types(torch.promote_types(dtype, torch.float32), data_dtype)).eps
    for t in (0.5, torch.tensor(0.5, dtype=torch.float64), torch.full((4,), 0.5, device=device)):
        got = model(x, t)
        assert got.dtype == dtype and got.device == x.device and got.shape == x.shape
        torch.testing.assert_close(got.double().cpu(), exact, rtol=torch.finfo(dtype).eps, atol=64 * inside)
    if isinstance(model, GaussianMixture):
        assert model.score(x, 0.5).dtype == dtype
        assert model.log_prob(x, 0.5).dtype == torch.promote_types(dtype, torch.float32)
        assert model.sample(3).dtype == data_dtype
    assert torch.equal(x, before)


# --- networks ---


@each_prediction
@each_schedule
@pytest.mark.parametrize("image", [False, True])
def test_a_network_that_knows_the_target_makes_the_exact_denoiser(prediction, schedule, image):
    exact = mixture(schedule, image=image)
    shape = (4, 1, 2, 1) if image else (4, 2)

    def net(scaled, t, cond):  # what a perfect network would do, from what it is given
        t = t.double()
        alpha, sigma = (c.reshape(-1, *[1] * (len(shape) - 1)) for c in (schedule.alpha(t), schedule.sigma(t)))
        x = scaled / prediction.input_scale(alpha, sigma)
        x0_hat = exact(x, t)
        return prediction.target(x0_hat, (x - alpha * x0_hat) / sigma, alpha, sigma)

    model = from_network(net, schedule, prediction)
    for t in (0.125, 0.5, 0.9375):  # what float32 holds exactly
        x = (float(schedule.alpha(t)) + float(schedule.sigma(t))) * randn(*shape)
        want = exact(x, t)
        for time in (t, torch.tensor(t), torch.tensor(t, dtype=torch.float64), torch.full((4,), t)):
            # a float32 time makes float32 coefficients
            low = isinstance(time, Tensor) and time.dtype == torch.float32
            size = 1 + float(schedule.noise_to_signal(t)) if prediction is EPS else 1 + float(x.abs().max())
            torch.testing.assert_close(model(x, time), want, rtol=0, atol=32 * (EPS32 if low else EPS64) * size * 4)
    t = torch.tensor([0.125, 0.5, 0.625, 0.9375], dtype=torch.float64)
    x = randn(*shape)
    size = 1 + float(schedule.noise_to_signal(t).max())
    torch.testing.assert_close(model(x, t), exact(x, t), rtol=0, atol=128 * EPS64 * size)


def test_what_the_network_is_given():
    calls = []

    def net(x, t, cond):
        calls.append((x, t, cond))
        return torch.zeros_like(x)

    schedule, x, cond = FlowMatching(), randn(3, 2), object()
    plain, scaled = (from_network(net, schedule, p) for p in (V, edm(2.0)))
    assert isinstance(plain, NetworkDenoiser) and plain.net is net and plain.prediction is V
    for t in (0.5, torch.tensor(0.5, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)):
        plain(x, t, cond)
        seen, time, given = calls.pop()
        assert torch.equal(seen, x) and given is cond
        assert time.shape == (3,) and time.dtype == torch.float32 and time.tolist() == [0.5] * 3
        plain(x, t)
        assert calls.pop()[2] is None
        scaled(x, t)
        torch.testing.assert_close(calls.pop()[0], x / math.sqrt(0.25 + 0.25 * 4), rtol=4 * EPS64, atol=0)
    plain(x, torch.tensor([0.25, 0.5, 0.75]))
    assert calls.pop()[1].tolist() == [0.25, 0.5, 0.75]
    scaled(x.float(), 0.5)
    assert calls.pop()[0].dtype == torch.float32


@each_prediction
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_network_denoiser_keeps_the_dtype_of_x(prediction, dtype, device):
    x = randn(3, 2).to(device, dtype)
    for net_dtype in (dtype, torch.bfloat16, torch.float32):  # a network in autocast answers in its own dtype
        model = from_network(lambda x, t, cond, to=net_dtype: (0.5 * x).to(to), Cosine(), prediction)
        for t in (torch.tensor(0.5, dtype=torch.float64), torch.full((3,), 0.5, device=device)):
            got = model(x, t)
            assert got.dtype == dtype and got.shape == x.shape and got.device == x.device


def test_at_time_zero_the_network_is_not_believed():
    x = randn(3, 2)
    for prediction in PREDICTIONS.values():
        model = from_network(lambda x, t, cond: 100 + x, Linear(), prediction)
        assert torch.equal(model(x, 0.0), x)
        assert torch.equal(model(x, torch.tensor([0.0, 0.5, 0.0]))[::2], x[::2])


def test_gradient_flows_through_the_denoiser():
    x = randn(3, 2).requires_grad_()
    for prediction in (X0, V, VELOCITY, edm()):
        for t in (1.0, torch.tensor([0.0, 0.5, 1.0])):
            model = from_network(lambda x, t, cond: x.sin(), Cosine(), prediction)
            (gradient,) = torch.autograd.grad(model(x, t).sum(), x)
            assert bool(gradient.isfinite().all())


# --- bad input ---

X = torch.zeros(3, 2)
MEANS, ONES = torch.zeros(4, 2), torch.ones(4)


def identity(prediction=V):
    return from_network(lambda x, t, cond: x, Cosine(), prediction)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GaussianMixture(MEANS, ONES[:3], ONES, Cosine()), ValueError, r"variances has shape \(3,\).*4 means"),
        (lambda: GaussianMixture(MEANS, ONES, ONES[:1], Cosine()), ValueError, r"weights has shape \(1,\).*4 means"),
        (lambda: GaussianMixture(MEANS, MEANS, ONES, Cosine()), ValueError, r"variances has shape \(4, 2\)"),
        (lambda: GaussianMixture(MEANS, ONES, torch.tensor(1.0), Cosine()), ValueError, r"weights has shape \(\)"),
        (
            lambda: GaussianMixture(MEANS, 0 * ONES, ONES, Cosine()),
            ValueError,
            "variances goes down to 0; each must be p",
        ),
        (lambda: GaussianMixture(MEANS, -ONES, ONES, Cosine()), ValueError, "variances goes down to -1"),
        (lambda: GaussianMixture(MEANS, ONES, 0 * ONES, Cosine()), ValueError, "weights goes down to 0"),
        (lambda: GaussianMixture(MEANS, ONES, -ONES, Cosine()), ValueError, "weights goes down to -1"),
        (lambda: GaussianMixture(MEANS, ONES / 0, ONES, Cosine()), ValueError, "variances holds NaN or infinity"),
        (lambda: GaussianMixture(MEANS, ONES, ONES * math.nan, Cosine()), ValueError, "weights holds NaN or infinity"),
        (lambda: GaussianMixture(MEANS / 0, ONES, ONES, Cosine()), ValueError, "means holds NaN or infinity"),
        (lambda: GaussianMixture(MEANS[:, 0], ONES, ONES, Cosine()), ValueError, r"means has shape \(4,\).*at least 2"),
        (lambda: GaussianMixture(MEANS.long(), ONES, ONES, Cosine()), TypeError, "means has dtype torch.int64"),
        (lambda: GaussianMixture(MEANS, ONES.long(), ONES, Cosine()), TypeError, "variances has dtype torch.int64"),
        (lambda: mixture(Cosine()).sample(0), ValueError, "n is 0; it must be at least 1"),
        (lambda: mixture(Cosine()).sample(2.5), TypeError, "n is 2.5; it must be an int"),
        (lambda: FiniteDataset(X / 0, Cosine()), ValueError, "data holds NaN or infinity.*remove or repair"),
        (lambda: FiniteDataset(X.int(), Cosine()), TypeError, "data has dtype torch.int32"),
        (lambda: FiniteDataset(X[0], Cosine()), ValueError, r"data has shape \(2,\); it needs at least 2 dimension"),
        (lambda: FiniteDataset(X[:0], Cosine()), ValueError, r"data has shape \(0, 2\); it needs at least one point"),
        (lambda: FiniteDataset(X, Cosine())(X, 0.0), ValueError, "sigma is 0 at t = 0.*take t above 0"),
        (lambda: FiniteDataset(X, Cosine())(X, torch.tensor([0.5, 0.0, 1.0])), ValueError, "sigma is 0 at t = 0"),
        (
            lambda: FiniteDataset(X, Cosine())(X[:, :1], 0.5),
            ValueError,
            r"x has shape \(3, 1\) but a data point has \(2,\)",
        ),
        (
            lambda: mixture(Cosine())(torch.zeros(3, 3), 0.5),
            ValueError,
            r"x has shape \(3, 3\) but a component has \(2,\)",
        ),
        (lambda: mixture(Cosine()).score(X[0], 0.5), ValueError, r"x has shape \(2,\) but a component has \(2,\)"),
        (lambda: mixture(Cosine()).log_prob(torch.zeros(3, 2, 1)), ValueError, r"x has shape \(3, 2, 1\)"),
        (lambda: identity()(X.long(), 0.5), TypeError, "x has dtype torch.int64; it must be floating point"),
        (lambda: identity(EPS)(X, 1.0), ValueError, "eps-prediction cannot give x0 where alpha is 0.*or use V"),
        (lambda: identity(EPS)(X, torch.tensor([0.1, 0.5, 1.0])), ValueError, "eps-prediction cannot give x0"),
        (
            lambda: from_network(lambda x, t, cond: x[:, :1], Cosine(), V)(X, 0.5),
            ValueError,
            r"the network's output has shape \(3, 1\) but its input has \(3, 2\)",
        ),
        (
            lambda: from_network(lambda x, t, cond: x[:1], Cosine(), V)(X, 0.5),
            ValueError,
            r"the network's output has shape \(1, 2\) but its input has \(3, 2\).*nothing is broadcast",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


MODELS = {"network": identity, "mixture": lambda: mixture(Cosine()), "dataset": lambda: FiniteDataset(X, Cosine())}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (torch.tensor([0.5, 0.5]), ValueError, r"t has shape \(2,\) but x has batch 3"),
        (torch.full((3, 1), 0.5), ValueError, r"t has shape \(3, 1\) but x has batch 3.*one time for each sample"),
        (torch.tensor(500), TypeError, "t has dtype torch.int64.*t = k / T"),
        (1.5, ValueError, "t ranges from 1.5"),
        (math.nan, ValueError, "t ranges from nan"),
        (torch.tensor(0.5).bfloat16(), TypeError, "t has dtype torch.bfloat16"),
    ],
)
def test_bad_times_are_refused(make, t, error, message):
    with pytest.raises(error, match=message):
        make()(X, t)
