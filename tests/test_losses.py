"""The training loss against hand computation and against losses known in closed form."""

import math

import pytest
import torch
from torch import Tensor, nn

from companion.losses import denoising_loss, simple, stratified_times
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


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
