"""The losses against hand computation, against closed forms, and against exact likelihoods."""

import functools
import itertools
import math

import cases
import pytest
import torch
from cases import seeded
from torch import Tensor, nn

from companion.denoisers import GaussianMixture
from companion.losses import (
    denoising_loss,
    elbo,
    min_snr,
    perceptual,
    simple,
    snr,
    ssim,
    stratified_times,
    vlb_bits_per_dim,
)
from companion.losses import edm as edm_weight
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


def randn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def silent(x: Tensor, t: Tensor, cond: object) -> Tensor:
    return torch.zeros_like(x)


def assert_mean(losses: Tensor, want: float) -> None:
    """Each sample's loss is an independent draw: their mean lies within Z standard errors of the expectation."""
    assert abs(float(losses.mean()) - want) <= Z * float(losses.std()) / math.sqrt(len(losses)) + 1e-12


# --- hand computation ---


@each_schedule
@each_prediction
@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 2, 2)])
def test_loss_is_the_mean_square_of_output_less_target(schedule, prediction, shape):
    x0, t = randn(*shape), torch.tensor([0.0, 0.125, 0.5, 1.0], dtype=torch.float64)
    eps = torch.randn(shape, generator=seeded(7), dtype=torch.float64)

    def net(x, t, cond):
        return x.sin() + t.reshape(-1, *[1] * (x.ndim - 1))

    got = denoising_loss(net, x0, schedule, prediction, t=t, generator=seeded(7))
    assert got.shape == (4,)
    for i in range(4):
        alpha, sigma = float(schedule.alpha(t[i])), float(schedule.sigma(t[i]))
        a, b = prediction.row(alpha, sigma)
        x = alpha * x0[i] + sigma * eps[i]
        out = (prediction.input_scale(alpha, sigma) * x).sin() + float(t[i])
        want = ((out - (a * x0[i] + b * eps[i])) ** 2).sum() / x0[i].numel()
        torch.testing.assert_close(got[i], want, rtol=1e-11, atol=1e-12)


def test_weight_sees_the_schedule_and_the_row():
    x0, t = randn(5, 3), torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)

    def weight(alpha, sigma, a, b):
        return 1 + 2 * alpha + 30 * sigma + 500 * a - 7000 * b  # each argument has its own place

    plain = denoising_loss(silent, x0, FlowMatching(), V, t=t, generator=seeded())
    got = denoising_loss(silent, x0, FlowMatching(), V, t=t, generator=seeded(), weight=weight)
    alpha, sigma = 1 - t, t
    want = plain * (1 + 2 * alpha + 30 * sigma - 500 * sigma - 7000 * alpha)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    assert simple(0.8, 0.6, 0.0, 1.0) == 1
    same = denoising_loss(silent, x0, FlowMatching(), V, t=t, generator=seeded(), weight=simple)
    assert torch.equal(same, plain)


def test_a_weight_turns_one_prediction_into_another():
    """The same predictor, asked in two ways, is charged alike once each is weighted to the error in x0."""
    x0, t = randn(6, 4), torch.linspace(0.2, 0.9, 6, dtype=torch.float64)

    def on_x0(alpha, sigma, a, b):
        return (sigma / (alpha * b - sigma * a)) ** 2

    def asked(prediction):
        def net(scaled, t, cond):
            alpha, sigma = (c.unsqueeze(1) for c in (Cosine().alpha(exact), Cosine().sigma(exact)))
            x = scaled / prediction.input_scale(alpha, sigma)
            guess = x.tanh()
            return prediction.target(guess, (x - alpha * guess) / sigma, alpha, sigma)

        return net

    exact = t
    losses = [
        denoising_loss(asked(p), x0, Cosine(), p, t=t, weight=on_x0, generator=seeded()) for p in PREDICTIONS.values()
    ]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-9, atol=1e-12)


def test_what_the_network_is_given():
    calls = []

    def net(x, t, cond):
        calls.append((x, t, cond))
        return x

    cond, x0, t = object(), randn(3, 2), torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    denoising_loss(net, x0, VarianceExploding(), edm(0.5), cond=cond, t=t, generator=seeded())
    x, time, given = calls.pop()
    assert given is cond
    assert time.dtype == torch.float32 and time.tolist() == [0.25, 0.5, 1.0]
    sigma = 80 * t[:, None] ** 7
    noisy = x0 + sigma * torch.randn(3, 2, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(x, noisy / (sigma**2 + 0.25).sqrt(), rtol=1e-12, atol=1e-12)
    denoising_loss(net, x0, Cosine(), V)
    assert calls[-1][2] is None and calls[-1][1].shape == (3,)
    for one in (0.5, torch.tensor(0.5)):  # one time for the whole batch
        denoising_loss(net, x0, Cosine(), V, t=one)
        assert calls[-1][1].tolist() == [0.5] * 3


def test_times_are_drawn_first_then_noise():
    x0, generator = randn(8, 2), seeded(3)
    t = stratified_times(8, generator=generator)
    given = denoising_loss(silent, x0, Cosine(), V, t=t, generator=generator)
    state = torch.get_rng_state()
    assert torch.equal(denoising_loss(silent, x0, Cosine(), V, generator=seeded(3)), given)
    assert not torch.equal(denoising_loss(silent, x0, Cosine(), V, generator=seeded(4)), given)
    assert torch.equal(torch.get_rng_state(), state)


# --- closed forms ---

N, D = 4000, 25
MEAN, SD = 0.4, 0.7
SECOND = MEAN**2 + SD**2  # E[x0^2]


@each_schedule
@pytest.mark.parametrize("t", [0.05, 0.3, 0.6, 1.0])
def test_silence_costs_what_it_should(schedule, t):
    x0 = MEAN + SD * randn(N, D)
    ts = torch.full((N,), t, dtype=torch.float64)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    costs = {
        EPS: 1.0,
        X0: SECOND,
        V: alpha**2 + sigma**2 * SECOND,
        VELOCITY: 1 + SECOND,
    }
    for i, (prediction, want) in enumerate(costs.items()):
        assert_mean(denoising_loss(silent, x0, schedule, prediction, t=ts, generator=seeded(10 + i)), want)


@each_schedule
@pytest.mark.parametrize("sd", [0.5, 1.3])
def test_silence_costs_edm_one_at_every_noise_level(schedule, sd):
    x0 = sd * randn(N, D)
    for i, t in enumerate((0.01, 0.2, 0.5, 0.8, 1.0)):
        ts = torch.full((N,), t, dtype=torch.float64)
        assert_mean(denoising_loss(silent, x0, schedule, edm(sd), t=ts, generator=seeded(10 + i)), 1.0)


@each_schedule
def test_the_best_network_costs_the_posterior_variance(schedule):
    x0 = MEAN + SD * randn(N, D)
    for i, t in enumerate((0.25, 0.5, 0.75)):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        total = alpha**2 * SD**2 + sigma**2

        def best(x, t, cond, alpha=alpha, sigma=sigma, total=total):
            return sigma / total * (x - alpha * MEAN)  # E[eps | x]

        ts = torch.full((N,), t, dtype=torch.float64)
        want = alpha**2 * SD**2 / total  # Var[eps | x]
        assert_mean(denoising_loss(best, x0, schedule, EPS, t=ts, generator=seeded(10 + i)), want)


@each_schedule
@each_prediction
def test_a_network_that_knows_the_data_costs_nothing(schedule, prediction):
    point = randn(1, 6)

    def knows(scaled, t, cond):
        t = t.double()
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        x = scaled / prediction.input_scale(alpha, sigma)
        return prediction.target(point, (x - alpha * point) / sigma, alpha, sigma)

    t = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)  # what float32 holds exactly
    losses = denoising_loss(knows, point.expand(4, 6), schedule, prediction, t=t, generator=seeded())
    assert float(losses.max()) <= 1e-20


# --- shapes, dtypes, gradients ---


@each_prediction
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_finite_loss_for_each_sample(prediction, dtype, device):
    x0 = randn(6, 1, 4, 4).to(device, dtype)
    before = x0.clone()
    seen = []

    def net(x, t, cond):
        seen.append((x.dtype, x.device, t.device))
        return x

    for t in (None, torch.linspace(0, 1, 6, device=device)):
        loss = denoising_loss(net, x0, Cosine(), prediction, t=t, generator=seeded())
        assert loss.shape == (6,) and loss.device == x0.device and bool(loss.isfinite().all())
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        assert seen.pop() == (dtype, x0.device, x0.device)
    assert torch.equal(x0, before)


def test_one_samples_loss_is_its_own():
    x0, t = randn(5, 3), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    moved = x0.clone()
    moved[2] += 1
    first, second = (denoising_loss(silent, v, Cosine(), V, t=t, generator=seeded()) for v in (x0, moved))
    assert (first != second).tolist() == [False, False, True, False, False]


def test_gradient_reaches_the_network():
    net = nn.Linear(3, 3).double()
    with torch.no_grad():
        net.weight.copy_(0.1 * randn(3, 3, seed=8))
        net.bias.zero_()
    x0, t = randn(16, 3), torch.linspace(0.1, 0.9, 16, dtype=torch.float64)
    denoising_loss(lambda x, t, cond: net(x), x0, FlowMatching(), EPS, t=t, generator=seeded()).mean().backward()
    eps = torch.randn(16, 3, generator=seeded(), dtype=torch.float64)
    x = (1 - t[:, None]) * x0 + t[:, None] * eps
    error = x @ net.weight.detach().T - eps
    torch.testing.assert_close(net.weight.grad, 2 * error.T @ x / 48, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(net.bias.grad, 2 * error.sum(0) / 48, rtol=1e-12, atol=1e-14)


# --- times ---


@pytest.mark.parametrize("n", [1, 2, 7, 64, 513])
def test_one_time_in_each_stratum(n):
    for seed in range(5):
        t = stratified_times(n, generator=seeded(seed))
        assert t.shape == (n,) and t.dtype == torch.float32
        assert float(t.min()) > 0 and float(t.max()) <= 1
        stratum = (t.double() * n * (1 - EPS32 / 2)).ceil() - 1
        assert stratum.sort().values.tolist() == list(range(n))


def test_a_draw_of_zero_is_no_time_of_zero(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, **options: torch.zeros(n))  # torch.rand may return 0, never 1
    assert stratified_times(4).sort().values.tolist() == [0.25, 0.5, 0.75, 1.0]


def test_times_are_in_random_order_and_uniform():
    n, draws = 50, 400
    t = torch.stack([stratified_times(n, generator=seeded(s)) for s in range(draws)]).double()
    first = t[:, 0]  # any one of them is uniform on (0, 1]
    assert abs(float(first.mean()) - 0.5) <= Z / math.sqrt(12 * draws)
    assert abs(float((first**2).mean()) - 1 / 3) <= Z * math.sqrt(4 / 45 / draws)
    jitter = (t * n) - (t * n * (1 - EPS32 / 2)).floor()  # uniform within the stratum
    assert abs(float(jitter.mean()) - 0.5) <= Z / math.sqrt(12 * jitter.numel())
    assert abs(float(jitter.var()) - 1 / 12) <= Z * math.sqrt(1 / 180 / jitter.numel())
    order = t.argsort(1)
    assert len({tuple(row) for row in order.tolist()}) == draws
    # one stratum each: the mean of a batch varies by 1 / (12 n^3), not by 1 / (12 n)
    variance = 1 / (12 * n**3)
    assert abs(float(t.mean(1).var()) / variance - 1) <= Z * math.sqrt(2 / draws)


def test_times_are_reproducible(device):
    state = torch.get_rng_state()
    first, again, other = (stratified_times(9, generator=seeded(s), device=device) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.device.type == device.type
    assert torch.equal(torch.get_rng_state(), state)
    assert stratified_times(9, device=device).device.type == device.type
    assert torch.equal(stratified_times(9, generator=seeded(1)), first.cpu())


# --- bad input ---

X = torch.zeros(3, 2)


def loss(x0: Tensor = X, net=silent, **given):
    return denoising_loss(net, x0, Cosine(), V, **given)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: loss(X.long()), TypeError, "x0 has dtype torch.int64; it must be floating point.*scaled to"),
        (lambda: loss(X.byte()), TypeError, "x0 has dtype torch.uint8"),
        (lambda: loss([[0.0]]), TypeError, "x0 is a list; it must be a torch.Tensor"),
        (lambda: loss(X / 0), ValueError, "x0 holds NaN or infinity.*look at the data before training"),
        (lambda: loss(X + math.inf), ValueError, "x0 holds NaN or infinity"),
        (lambda: loss(X[0]), ValueError, r"x0 has shape \(2,\); it needs at least 2 dimension.*the batch first"),
        (lambda: loss(t=torch.tensor([1, 2, 3])), TypeError, "t has dtype torch.int64.*t = k / T"),
        (lambda: loss(t=torch.tensor([0.5] * 3).half()), TypeError, "t has dtype torch.float16"),
        (lambda: loss(t=torch.tensor([0.5, 0.5])), ValueError, r"t has shape \(2,\) but x has batch 3"),
        (lambda: loss(t=torch.full((3, 1), 0.5)), ValueError, r"t has shape \(3, 1\) but x has batch 3"),
        (lambda: loss(t=torch.tensor([0.5, 2.0, 1.0])), ValueError, r"t ranges from 0.5 to 2; times lie in \[0, 1\]"),
        (lambda: loss(t=torch.tensor([0.5, math.nan, 1.0])), ValueError, "t ranges from nan"),
        (
            lambda: loss(net=lambda x, t, cond: x[:, :1]),
            ValueError,
            r"the network's output has shape \(3, 1\) but its input has \(3, 2\).*nothing is broadcast",
        ),
        (lambda: loss(net=lambda x, t, cond: x.mean()), ValueError, r"the network's output has shape \(\)"),
        (lambda: stratified_times(0), ValueError, "n is 0; it must be at least 1"),
        (lambda: stratified_times(4.0), TypeError, "n is 4.0; it must be an int"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- weights ---

GAMMA, DATA_SD = 3.0, 0.7
WEIGHTS = {"snr": snr, "min_snr": min_snr(GAMMA), "edm": edm_weight(DATA_SD)}
CHARGES = {  # what each asks for an error in x0
    "snr": lambda ratio: ratio,
    "min_snr": lambda ratio: ratio.clamp(max=GAMMA),
    "edm": lambda ratio: (1 / ratio + DATA_SD**2) / (DATA_SD**2 / ratio),  # Karras: (n^2 + s^2) / (n s)^2
}
each_weight = pytest.mark.parametrize("name", WEIGHTS)
every_schedule = pytest.mark.parametrize("schedule", cases.SCHEDULES.values(), ids=cases.SCHEDULES.keys())


@every_schedule
@each_prediction
@each_weight
def test_a_weight_is_a_charge_for_the_error_in_x0(name, prediction, schedule):
    t = torch.tensor([1e-4, 0.05, 0.3, 0.5, 0.8, 0.999], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = prediction.row(alpha, sigma)
    per_x0 = ((alpha * b - sigma * a) / sigma) ** 2  # (error in the output / error in x0)^2
    torch.testing.assert_close(
        WEIGHTS[name](alpha, sigma, a, b) * per_x0, CHARGES[name](schedule.snr(t)), rtol=1e-11, atol=0
    )


@every_schedule
@each_prediction
@each_weight
def test_weights_in_float32_are_those_in_float64(name, prediction, schedule):
    t = torch.cat([torch.tensor([1e-5, 1e-4, 1e-3, 1 - 1e-6]), torch.linspace(0.01, 0.999, 50)])
    for shape in ((-1,), (-1, 1, 1)):
        coefficients = [(schedule.alpha(u).reshape(shape), schedule.sigma(u).reshape(shape)) for u in (t, t.double())]
        low, high = (WEIGHTS[name](*c, *prediction.row(*c)) for c in coefficients)
        assert low.dtype == torch.float32 and high.dtype == torch.float64 and low.shape == high.shape
        inside = high < 1e37
        torch.testing.assert_close(low[inside].double(), high[inside], rtol=2e-4, atol=1e-37)


@each_weight
@each_prediction
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_at_both_ends_take_their_limits(name, prediction, dtype):
    alpha, sigma = torch.tensor([1.0, 0.0], dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)
    got = WEIGHTS[name](alpha, sigma, *prediction.row(alpha, sigma))
    tiny = 1e-14  # close to the ends, in float64
    near = torch.tensor([1.0, tiny], dtype=torch.float64), torch.tensor([tiny, 1.0], dtype=torch.float64)
    want = WEIGHTS[name](*near, *prediction.row(*near))
    for found, close in zip(got.tolist(), want.tolist(), strict=True):
        if close > 1e20:
            assert found == math.inf
        elif close < 1e-20:
            assert found == 0 or found < 1e-20
        else:
            assert found == pytest.approx(close, rel=1e-5)
    assert not got.isnan().any()
    if name == "min_snr":
        assert bool(got.isfinite().all())


def test_weights_of_numbers():
    assert snr(0.8, 0.6, 0.0, 1.0).item() == 1
    assert snr(0.8, 0.6, 1.0, 0.0).item() == pytest.approx(16 / 9, rel=1e-12)
    assert snr(0.8, 0.6, -0.6, 0.8).item() == pytest.approx(0.64, rel=1e-12)
    assert min_snr()(0.96, 0.28, 1.0, 0.0).item() == pytest.approx(5, rel=1e-12)  # Hang et al. take gamma = 5
    assert min_snr(2.0)(0.96, 0.28, 0.0, 1.0).item() == pytest.approx(2 * (0.28 / 0.96) ** 2, rel=1e-12)
    assert edm_weight()(1.0, 2.0, 1.0, 0.0).item() == pytest.approx((4 + 0.25) / (2 * 0.5) ** 2, rel=1e-12)


@every_schedule
@pytest.mark.parametrize("sd", [0.5, 1.3])
def test_the_edm_weight_is_one_for_edms_own_prediction(schedule, sd):
    t = torch.cat([torch.zeros(1), torch.linspace(1e-4, 1, 40)]).double()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    got = edm_weight(sd)(alpha, sigma, *edm(sd).row(alpha, sigma))
    torch.testing.assert_close(got, torch.ones_like(got), rtol=1e-12, atol=0)


@pytest.mark.parametrize("weight", [*WEIGHTS.values(), elbo(Cosine())], ids=[*WEIGHTS, "elbo"])
def test_one_predictor_pays_one_loss_whatever_it_is_asked(weight):
    x0, t = randn(6, 4), torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
    alpha, sigma = (c.unsqueeze(1) for c in (Cosine().alpha(t), Cosine().sigma(t)))

    def asked(prediction):
        def net(scaled, time, cond):
            x = scaled / prediction.input_scale(alpha, sigma)
            return prediction.target(x.tanh(), (x - alpha * x.tanh()) / sigma, alpha, sigma)

        return denoising_loss(net, x0, Cosine(), prediction, t=t, weight=weight, generator=seeded())

    losses = [asked(p) for p in PREDICTIONS.values()]
    assert float(losses[0].min()) > 0
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-8, atol=1e-12)


# --- the bound's weight ---

SLOPES = {  # -1/2 d log_snr / dt, by hand
    "flow": (FlowMatching(), lambda t: 1 / (t * (1 - t))),
    "exploding": (VarianceExploding(), lambda t: 7 / t),
    "exploding_3": (VarianceExploding(20.0, 3.0), lambda t: 3 / t),
    # alpha = cos(u) / cos(cs): -1/2 d/dt 2 log(alpha / sigma) = -(alpha' / alpha) / sigma^2
    "cosine": (
        Cosine(),
        lambda t: (
            (c := math.pi / 2.016)
            * torch.tan(c * (t + 0.008))
            / (1 - (torch.cos(c * (t + 0.008)) / math.cos(c * 0.008)) ** 2)
        ),
    ),
}


@pytest.mark.parametrize("name", SLOPES)
def test_elbo_is_the_slope_by_hand(name):
    schedule, slope = SLOPES[name]
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    got = elbo(schedule)(schedule.alpha(t), schedule.sigma(t), 0.0, 1.0)
    torch.testing.assert_close(got, slope(t), rtol=1e-6, atol=0)


@functools.cache
def elbo_once(schedule: Schedule):
    return elbo(schedule)  # its table takes a while


@every_schedule
def test_elbo_is_the_slope_by_differences(schedule):
    t = (torch.arange(3, 997, 7, dtype=torch.float64) + 0.5) / 1000  # halfway between the points of a table
    step = 1e-6
    slope = (schedule.log_snr(t + step) - schedule.log_snr(t - step)) / (2 * step)
    weight = elbo_once(schedule)
    got = weight(schedule.alpha(t), schedule.sigma(t), 0.0, 1.0)
    torch.testing.assert_close(got, -0.5 * slope, rtol=2e-6, atol=0)
    t32 = t.float().reshape(-1, 1)
    low = weight(schedule.alpha(t32), schedule.sigma(t32), 0.0, 1.0)
    assert low.dtype == torch.float32 and low.shape == t32.shape
    torch.testing.assert_close(low.double()[:, 0], got, rtol=1e-4, atol=0)
    with torch.inference_mode():
        again = weight(schedule.alpha(t), schedule.sigma(t), 0.0, 1.0)
    with torch.no_grad():
        assert torch.equal(weight(schedule.alpha(t), schedule.sigma(t), 0.0, 1.0), got)
    assert torch.equal(again, got) and not got.requires_grad


@every_schedule
def test_elbo_is_finite_at_the_ends(schedule):
    weight, t = elbo_once(schedule), torch.tensor([0.0, 1e-9, 1e-5, 1 - 1e-7, 1.0])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    for prediction in (EPS, V, VELOCITY, edm(0.5)):
        got = weight(alpha, sigma, *prediction.row(alpha, sigma))
        assert bool(got.isfinite().all()) and float(got.min()) >= 0
    x0_weight = weight(alpha, sigma, *X0.row(alpha, sigma))
    assert x0_weight[0] == math.inf and not x0_weight.isnan().any()
    # the nearest inside: what is beyond counts as the edge
    beyond, edge = (weight(1.0, math.exp(-half), 0.0, 1.0).item() for half in (80.0, 50.0))
    assert beyond == pytest.approx(edge, rel=1e-6) and weight(0.5, 0.5, 0.0, 1.0).item() < edge


def test_elbo_makes_the_loss_the_bounds_diffusion_part():
    """Gaussian data: 1/2 of the integral of E|eps error|^2 over log-SNR is a difference of two softplus."""
    schedule, var = FlowMatching(), 0.49
    times = 0.02 + 0.96 * (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    total = (alpha**2 * var + sigma**2)[:, None]
    want = 0.0
    for sign, end in ((1, 0.02), (-1, 0.98)):
        want += sign * 0.5 * math.log1p(math.exp(float(schedule.log_snr(end)) + math.log(var)))

    def best(scaled, t, cond):
        return sigma[:, None] / total * scaled

    x0 = math.sqrt(var) * randn(4000, 50)
    loss = denoising_loss(best, x0, schedule, EPS, t=times, weight=elbo(schedule), generator=seeded(3))
    assert 0.96 * float(loss.mean()) == pytest.approx(want, rel=0.02)


# --- the variational bound ---

LN2 = math.log(2)


def gaussian(
    schedule: Schedule, var: float = 0.49, dims: tuple[int, ...] = (3,), dtype=torch.float64
) -> GaussianMixture:
    return GaussianMixture(
        torch.zeros(1, *dims, dtype=dtype), torch.tensor([var], dtype=dtype), torch.ones(1, dtype=dtype), schedule
    )


def two_modes(schedule: Schedule) -> GaussianMixture:
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.09, 0.25]).double(), torch.tensor([1.0, 2.0]).double(), schedule)


@every_schedule
def test_bound_of_gaussian_data_part_by_part(schedule):
    var, model = 0.49, gaussian(schedule)
    if math.isinf(float(schedule.log_snr(1.0))):
        first, last = (float(t) for t in schedule.time_grid(2)[:2])
        assert float(schedule.noise_to_signal(first)) == pytest.approx(80)
    else:
        first, last = 1.0, float(schedule.time_grid(2)[1])
    x0 = model.sample(1000, generator=seeded(1))
    bound = vlb_bits_per_dim(model, x0, schedule, draws=12, generator=seeded(2))
    low, high = (float(schedule.log_snr(t)) + math.log(var) for t in (first, last))
    assert_mean(bound.diffusion, 0.5 * (math.log1p(math.exp(high)) - math.log1p(math.exp(low))) / LN2)
    torch.testing.assert_close(bound.prior, 0.5 * float(schedule.snr(first)) * (x0**2).mean(1) / LN2, rtol=1e-9, atol=0)
    n2 = float(schedule.noise_to_signal(last)) ** 2
    left = n2 * var / (n2 + var)
    assert_mean(bound.reconstruction, 0.5 * (math.log(2 * math.pi * n2) + left / n2) / LN2)
    torch.testing.assert_close(bound.total, bound.prior + bound.diffusion + bound.reconstruction, rtol=1e-12, atol=0)
    # a discrete walk: each step is charged the whole drop in SNR at its noisier end
    ts = schedule.time_grid(12)
    walk = vlb_bits_per_dim(model, x0, schedule, ts=ts, generator=seeded(3))
    ratio = schedule.snr(ts[:-1])
    want = (0.5 * (ratio[1:] - ratio[:-1]) * var / (ratio[:-1] * var + 1)).sum()
    assert_mean(walk.diffusion, float(want) / LN2)
    assert_mean(walk.reconstruction, 0.5 * (math.log(2 * math.pi * n2) + left / n2) / LN2)


@pytest.mark.parametrize("name", ["cosine", "flow", "exploding", "linear"])
def test_the_exact_denoiser_brings_the_bound_down_to_the_likelihood(name):
    schedule = cases.SCHEDULES[name]
    model = two_modes(schedule)
    x0 = model.sample(2500, generator=seeded(4))
    exact = -model.log_prob(x0) / (2 * LN2)
    gap = vlb_bits_per_dim(model, x0, schedule, draws=16, generator=seeded(5)).total - exact
    assert_mean(gap, 0.0)
    assert float(gap.std()) / math.sqrt(len(gap)) < 0.025
    # for each x0 by itself, not only for the mean of the data
    one = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    alone = vlb_bits_per_dim(model, one.expand(1500, 2), schedule, draws=16, generator=seeded(6)).total
    assert_mean(alone, float(-model.log_prob(one)) / (2 * LN2))


def test_the_gap_is_positive_and_shrinks_with_steps():
    schedule = Cosine()
    model = two_modes(schedule)
    x0 = model.sample(1500, generator=seeded(7))
    exact = -model.log_prob(x0) / (2 * LN2)
    gaps = []
    for n in (20, 40, 80):
        bound = vlb_bits_per_dim(model, x0, schedule, ts=schedule.time_grid(n), generator=seeded(8))
        gaps.append(float((bound.total - exact).mean()))
    assert gaps[2] > 0.1
    for coarse, fine in itertools.pairwise(gaps):  # of first order in the step
        assert 1.9 < coarse / fine < 2.9

    def worse(x, t):
        return 0.9 * model(x, t)

    bound = vlb_bits_per_dim(worse, x0, schedule, t_range=(0.05, 0.95), generator=seeded(9))
    better = vlb_bits_per_dim(model, x0, schedule, t_range=(0.05, 0.95), generator=seeded(9))
    assert float((bound.total - better.total).mean()) > 0.1
    assert torch.equal(bound.prior, better.prior)


def test_a_walk_may_start_in_pure_noise():
    schedule = Cosine()
    model = gaussian(schedule)
    ts = schedule.time_grid(10, spacing="uniform", t_max=1.0)
    bound = vlb_bits_per_dim(model, model.sample(50, generator=seeded()), schedule, ts=ts, generator=seeded())
    assert float(bound.prior.abs().max()) == 0 and bool(bound.total.isfinite().all())
    only = vlb_bits_per_dim(model, randn(5, 3), schedule, ts=torch.tensor([0.5, 0.0]), generator=seeded())
    assert float(only.diffusion.abs().max()) == 0


@pytest.mark.parametrize("dims", [(3,), (1, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bound_shapes_dtypes_and_randomness(dims, dtype, device):
    schedule = FlowMatching()
    model = gaussian(schedule, dims=dims, dtype=dtype)
    model = GaussianMixture(model.means.to(device), model.variances.to(device), model.weights.to(device), schedule)
    x0 = randn(7, *dims).to(device, dtype)
    before, state, seen = x0.clone(), torch.get_rng_state(), []

    def spy(x, t):
        seen.append(t)
        return model(x, t)

    for given in ({}, {"ts": schedule.time_grid(4)}, {"t_range": (0.1, 0.9), "draws": 3}):
        seen.clear()
        first, again, other = (vlb_bits_per_dim(spy, x0, schedule, **given, generator=seeded(s)) for s in (1, 1, 2))
        assert len(seen) == 3 * {0: 33, 1: 4, 2: 4}[len(given)]
        for part in (first.prior, first.diffusion, first.reconstruction, first.total):
            assert part.shape == (7,) and part.dtype == dtype and part.device == x0.device
            assert not part.requires_grad
        assert torch.equal(first.total, again.total) and not torch.equal(first.total, other.total)
    assert torch.equal(x0, before) and torch.equal(torch.get_rng_state(), state)
    times = torch.stack(seen[:3])  # with draws=3: one time in each third of the log-SNR range, for each sample
    low, high = (float(schedule.log_snr(t)) for t in (0.9, 0.1))
    part = ((schedule.log_snr(times.double()) - low) / (high - low) * 3).floor()
    assert part.tolist() == [[0] * 7, [1] * 7, [2] * 7]
    assert all(len(set(row.tolist())) == 7 for row in times)  # and each sample's is its own


# --- losses for images ---


def test_perceptual_compares_features():
    x, y = randn(4, 1, 3, 3, seed=1), randn(4, 1, 3, 3, seed=2)
    torch.testing.assert_close(perceptual(lambda v: v)(x, y), ((x - y) ** 2).flatten(1).mean(1))
    calls = []

    def features(v):
        calls.append(v.requires_grad)
        return torch.stack([v.flatten(1).sum(1), 2 * v.amax((1, 2, 3))], dim=1)

    x.requires_grad_()
    y.requires_grad_()
    got = perceptual(features)(x, y)
    first, second = (x - y).sum((1, 2, 3)), 2 * (x.amax((1, 2, 3)) - y.amax((1, 2, 3)))
    torch.testing.assert_close(got, (first**2 + second**2) / 2)
    got.sum().backward()
    assert y.grad is None and float(x.grad.abs().min()) > 0
    wide = perceptual(lambda v: v)(torch.ones(2, 5, dtype=torch.bfloat16), torch.zeros(2, 5, dtype=torch.bfloat16))
    assert wide.dtype == torch.float32 and wide.tolist() == [1, 1]


def slow_ssim(x, y, data_range, window, sigma):
    """One image (H, W), as the paper says it, pixel by pixel."""
    half = window // 2
    weights = {
        (i, j): math.exp(-(i * i + j * j) / (2 * sigma**2))
        for i in range(-half, half + 1)
        for j in range(-half, half + 1)
    }
    whole = sum(weights.values())
    found = []
    for row in range(half, x.shape[0] - half):
        for column in range(half, x.shape[1] - half):
            triples = [
                (w / whole, float(x[row + i, column + j]), float(y[row + i, column + j]))
                for (i, j), w in weights.items()
            ]
            mx, my = sum(w * u for w, u, _ in triples), sum(w * v for w, _, v in triples)
            vx, vy = sum(w * (u - mx) ** 2 for w, u, _ in triples), sum(w * (v - my) ** 2 for w, _, v in triples)
            cov = sum(w * (u - mx) * (v - my) for w, u, v in triples)
            c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
            found.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return sum(found) / len(found)


@pytest.mark.parametrize(("window", "sigma", "data_range"), [(3, 1.5, 2.0), (5, 0.8, 1.0), (7, 1.5, 255.0)])
def test_ssim_is_the_papers(window, sigma, data_range):
    x, y = randn(2, 3, 8, 9, seed=1), randn(2, 3, 8, 9, seed=2)
    y = 0.6 * x + 0.3 * y
    got = ssim(x, y, window=window, sigma=sigma, data_range=data_range)
    for i in range(2):
        want = sum(slow_ssim(x[i, c], y[i, c], data_range, window, sigma) for c in range(3)) / 3
        assert got[i].item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, 0.21497286712727798),
        ({"window": 9, "sigma": 1.0}, 0.1239406671279474),
        ({"window": 7, "sigma": 0.9, "data_range": 1.0}, 0.13117112991672664),
    ],
)
def test_ssim_is_that_of_scikit_image(settings, want):
    """From scikit-image 0.26: structural_similarity(gaussian_weights=True, use_sample_covariance=False)."""
    i = torch.arange(16.0, dtype=torch.float64)
    x = torch.sin(i[:, None] * i / 7)
    y = 0.8 * x.roll(1, 0) + 0.1 * torch.cos(i)
    assert ssim(x[None, None], y[None, None], **settings).item() == pytest.approx(want, rel=1e-9)


def test_ssim_of_what_is_known(device):
    x = randn(3, 2, 12, 12).to(device).clamp(-1, 1)
    torch.testing.assert_close(ssim(x, x), torch.ones(3, device=device, dtype=torch.float64))
    assert torch.equal(ssim(x, x.flip(2)), ssim(x.flip(2), x))
    low, high = (torch.full((1, 1, 11, 11), c, dtype=torch.float64) for c in (0.5, 0.3))
    want = (2 * 0.15 + 0.0004) / (0.25 + 0.09 + 0.0004)  # flat images differ in luminance only
    assert ssim(low, high).item() == pytest.approx(want, rel=1e-5)
    board = (torch.arange(12)[:, None] + torch.arange(12)).remainder(2).mul(2).sub(1).to(x)[None, None]
    assert ssim(board, -board).item() < -0.99  # of one mean, and opposite in everything else
    half = ssim(x.bfloat16(), x.bfloat16())
    assert half.dtype == torch.float32
    moved = x.clone().requires_grad_()
    ssim(moved, x.roll(1, 2)).sum().backward()
    assert bool(moved.grad.isfinite().all()) and float(moved.grad.abs().max()) > 0


IMAGE = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: min_snr(0.0), ValueError, "gamma is 0.0; it must be positive and finite: 5 is usual"),
        (lambda: min_snr(math.inf), ValueError, "gamma is inf"),
        (lambda: edm_weight(-1.0), ValueError, "sigma_data is -1.0; it must be positive"),
        (lambda: perceptual(lambda v: v)(X, X[:1]), ValueError, r"x0_hat has shape \(3, 2\) but x0 has \(1, 2\)"),
        (lambda: perceptual(lambda v: v)(X.long(), X), TypeError, "x0_hat has dtype torch.int64"),
        (
            lambda: perceptual(lambda v: v[: len(v) - int(v.sum() > 0)])(X + 1, X),
            ValueError,
            r"features\(x0_hat\) has shape \(2, 2\) but features\(x0\) has \(3, 2\)",
        ),
        (lambda: ssim(IMAGE, IMAGE), ValueError, "window is 11 for images of 8 x 8; it must be odd and fit inside"),
        (lambda: ssim(IMAGE, IMAGE, window=4), ValueError, "window is 4"),
        (lambda: ssim(IMAGE, IMAGE[:1], window=7), ValueError, "y has shape"),
        (lambda: ssim(IMAGE.long(), IMAGE.long()), TypeError, "x has dtype torch.int64"),
        (lambda: ssim(IMAGE[None], IMAGE[None], window=3), ValueError, r"x has shape \(1, 2, 1, 8, 8\); images are"),
        (lambda: ssim(X, X, window=3), ValueError, r"x has shape \(3, 2\); it needs at least 4"),
        (lambda: ssim(IMAGE, IMAGE, window=7, sigma=0.0), ValueError, "sigma is 0.0"),
        (lambda: ssim(IMAGE, IMAGE, window=7, data_range=-1.0), ValueError, "data_range is -1.0"),
        (lambda: ssim(IMAGE, IMAGE, window=7.0), TypeError, "window is 7.0"),
        (lambda: bound(X.long()), TypeError, "x0 has dtype torch.int64"),
        (lambda: bound(X / 0), ValueError, "x0 holds NaN"),
        (lambda: bound(X[0]), ValueError, "it needs at least 2"),
        (lambda: bound(ts=torch.tensor([1.0, 0.0]), t_range=(0.1, 0.9)), ValueError, "both ts and t_range"),
        (lambda: bound(ts=torch.tensor([1.0, 0.5])), ValueError, "ts ends at 0.5; the walk must end on data"),
        (lambda: bound(ts=torch.tensor([0.0, 1.0])), ValueError, "does not fall strictly"),
        (lambda: bound(t_range=(0.9, 0.1)), ValueError, r"t_range is \(0.9, 0.1\); it must satisfy"),
        (lambda: bound(t_range=(0.0, 0.9)), ValueError, r"t_range is \(0, 0.9\)"),
        (lambda: bound(t_range=(0.1, 1.0)), ValueError, r"t_range is \(0.1, 1\).*alpha\(t_max\) above 0"),
        (lambda: bound(draws=0), ValueError, "draws is 0"),
        (lambda: bound(denoiser=lambda x, t: x[:1]), ValueError, "the denoiser's answer has shape"),
    ],
)
def test_bad_input_of_the_rest_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def bound(x0: Tensor = X, denoiser=lambda x, t: x, **given):
    return vlb_bits_per_dim(denoiser, x0, Cosine(), **given)
