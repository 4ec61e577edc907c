"""Every prediction on every schedule: round trips, the error identity, and the published formulas."""

import math

import pytest
import torch
from cases import SCHEDULES
from torch import Tensor

from companion.predictions import (
    EPS,
    VELOCITY,
    X0,
    Prediction,
    V,
    edm,
    eps_to_score,
    eps_to_x0,
    score_to_eps,
    x0_to_eps,
)
from companion.schedules import Cosine, FlowMatching

PREDICTIONS: dict[str, Prediction] = {
    "eps": EPS,
    "x0": X0,
    "v": V,
    "velocity": VELOCITY,
    "edm_0.5": edm(0.5),
    "edm_1.3": edm(1.3),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS.keys())
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
TIMES = [0.0, 1e-7, 1e-4, 0.01, 0.3, 0.5, 0.8, 0.99, 1 - 1e-5, 1.0]
EPS64 = torch.finfo(torch.float64).eps


def pair(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 5, generator=generator, dtype=torch.float64)
    return x0.to(dtype), eps.to(dtype)


def over(t: Tensor) -> Tensor:
    return t.unsqueeze(1)


# --- round trips ---


@each_schedule
@each_prediction
@each_dtype
def test_x0_and_eps_come_back(schedule, prediction, dtype):
    t = torch.tensor(TIMES, dtype=dtype)
    x0, eps = pair(len(t), dtype)
    alpha, sigma = over(schedule.alpha(t)), over(schedule.sigma(t))
    x, out = alpha * x0 + sigma * eps, prediction.target(x0, eps, alpha, sigma)
    a, b = (torch.as_tensor(c, dtype=torch.float64).abs() for c in prediction.row(alpha.double(), sigma.double()))
    size_x = alpha.double() * x0.abs() + sigma.double() * eps.abs()
    size_out = a * x0.abs() + b * eps.abs()
    unit = 6 * torch.finfo(dtype).eps
    blind = {  # where a prediction says nothing
        "x0": (alpha < 1e-6 * sigma) if prediction is EPS else torch.zeros_like(alpha, dtype=torch.bool),
        "eps": (sigma < 1e-6 * alpha) if prediction is X0 else torch.zeros_like(alpha, dtype=torch.bool),
    }
    rows = prediction.row(alpha.double(), sigma.double())
    divisor = (alpha.double() * rows[1] - sigma.double() * rows[0]).abs()
    for wanted, truth in (("x0", x0), ("eps", eps)):
        back = prediction.to_x0 if wanted == "x0" else prediction.to_eps
        c, d = (b, sigma) if wanted == "x0" else (a, alpha)
        cost = c * size_x + d.double() * size_out  # of rounding x and out: the terms of the inverse, over its divisor
        allowed = unit * (torch.where(divisor == 0, 0.0, cost / divisor) + truth.double().abs())
        seen = ~blind[wanted].squeeze(1)
        assert bool(seen.any())
        got = back(x[seen], out[seen], alpha[seen], sigma[seen])
        assert got.dtype == dtype and got.shape == truth[seen].shape
        assert bool(((got.double() - truth[seen].double()).abs() <= allowed[seen]).all())
        for i in range(len(t)):
            numbers = float(alpha[i]), float(sigma[i])
            tensors = alpha[i, 0], sigma[i, 0]
            for pair_of in (numbers, tensors):
                if seen[i]:
                    got = back(x[i], out[i], *pair_of)
                    assert got.dtype == dtype
                    assert bool(((got.double() - truth[i].double()).abs() <= allowed[i]).all())
                else:
                    with pytest.raises(ValueError, match=f"{prediction.name}-prediction cannot give {wanted} where"):
                        back(x[i], out[i], *pair_of)


@each_prediction
@each_schedule
def test_clean_data_come_back_exactly_whatever_the_network_says(prediction, schedule):
    x0, nonsense = pair(3)
    zero = torch.zeros((), dtype=torch.float64)
    assert torch.equal(prediction.to_x0(x0, 1e3 * nonsense, 1.0, 0.0), x0)
    assert torch.equal(prediction.to_x0(x0, 1e3 * nonsense, schedule.alpha(zero), schedule.sigma(zero)), x0)
    t = torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)
    got = prediction.to_x0(x0, 1e3 * nonsense, over(schedule.alpha(t)), over(schedule.sigma(t)))
    assert torch.equal(got[0::2], x0[0::2]) and not torch.equal(got[1], x0[1])


@each_prediction
def test_the_larger_dtype_of_a_coefficient_does_not_leak(prediction):
    x0, eps = pair(4, torch.float32)
    alpha, sigma = (torch.full((4, 1), v, dtype=torch.float64) for v in (0.8, 0.6))
    assert prediction.to_x0(x0, eps, alpha, sigma).dtype == torch.float32
    assert prediction.to_eps(x0, eps, alpha, sigma).dtype == torch.float32


@each_prediction
def test_pure_noise_comes_back_exactly_whatever_the_network_says(prediction):
    eps, nonsense = pair(3)
    assert torch.equal(prediction.to_eps(eps, 1e3 * nonsense, 0.0, 1.0), eps)
    assert torch.equal(prediction.to_eps(eps, 1e3 * nonsense, torch.tensor(0.0), torch.tensor(1.0)), eps)
    alpha, sigma = torch.tensor([[0.0], [0.8], [0.0]]), torch.tensor([[1.0], [0.6], [1.0]])
    got = prediction.to_eps(eps, 1e3 * nonsense, alpha, sigma)
    assert torch.equal(got[0::2], eps[0::2]) and not torch.equal(got[1], eps[1])


@each_prediction
def test_gradients_are_finite_at_both_ends(prediction):
    x, out = (v.requires_grad_() for v in pair(3))
    for back, blind in ((prediction.to_x0, EPS), (prediction.to_eps, X0)):
        alpha = torch.tensor([[1.0], [0.8], [0.0]], dtype=torch.float64)
        if prediction is blind:
            alpha[2 if blind is EPS else 0] = 0.3
        sigma = (1 - alpha**2).sqrt()
        assert torch.autograd.gradcheck(lambda x, out, c=(alpha, sigma), f=back: f(x, out, *c), (x, out))


# --- the identity behind every loss weight ---


@each_prediction
@each_schedule
def test_an_error_in_the_output_is_a_known_multiple_of_the_error_in_x0(prediction, schedule):
    t = torch.tensor([0.02, 0.3, 0.5, 0.8, 0.99], dtype=torch.float64)
    alpha, sigma = over(schedule.alpha(t)), over(schedule.sigma(t))
    x0, eps = pair(5)
    x = alpha * x0 + sigma * eps
    wrong_x0 = x0 + 0.1 * eps.flip(0)
    wrong_eps = (x - alpha * wrong_x0) / sigma  # the same x, explained by another pair
    error = prediction.target(wrong_x0, wrong_eps, alpha, sigma) - prediction.target(x0, eps, alpha, sigma)
    a, b = prediction.row(alpha, sigma)
    factor = ((alpha * b - sigma * a) / sigma) ** 2
    want = factor * (wrong_x0 - x0) ** 2
    cancelled = (torch.as_tensor(b).abs() * (x.abs() / sigma)) ** 2
    assert bool(((error**2 - want).abs() <= 1e-9 * want + 1e-13 * cancelled).all())
    got = prediction.to_x0(x, prediction.target(x0, eps, alpha, sigma) + error, alpha, sigma)
    assert bool(((got - wrong_x0).abs() <= 1e-9 * (1 + wrong_x0.abs())).all())


# --- what each one is ---


def test_rows_are_the_published_ones():
    alpha, sigma = 0.8, 0.6
    assert EPS.row(alpha, sigma) == (0, 1)
    assert X0.row(alpha, sigma) == (1, 0)
    assert V.row(alpha, sigma) == (-0.6, 0.8)  # Salimans and Ho (2022): v = alpha eps - sigma x0
    assert VELOCITY.row(alpha, sigma) == (-1, 1)  # Lipman et al. (2023): the noise less the data
    assert [p.name for p in (EPS, X0, V, VELOCITY, edm())] == ["eps", "x0", "v", "velocity", "edm"]
    for p in (EPS, X0, V, VELOCITY):
        assert p.input_scale(alpha, sigma) == 1


def test_v_of_salimans_and_ho():
    x0, eps = pair(7)
    phi = torch.linspace(0, math.pi / 2, 7, dtype=torch.float64).unsqueeze(1)
    alpha, sigma = phi.cos(), phi.sin()
    x = alpha * x0 + sigma * eps
    v = V.target(x0, eps, alpha, sigma)
    close = {"rtol": 0.0, "atol": 32 * EPS64}
    torch.testing.assert_close(v, alpha * eps - sigma * x0, **close)
    torch.testing.assert_close(V.to_x0(x, v, alpha, sigma), alpha * x - sigma * v, **close)
    torch.testing.assert_close(V.to_eps(x, v, alpha, sigma), sigma * x + alpha * v, **close)
    step = 1e-5  # v is the velocity along the angle phi
    ahead, behind = ((phi + s).cos() * x0 + (phi + s).sin() * eps for s in (step, -step))
    torch.testing.assert_close(v, (ahead - behind) / (2 * step), rtol=0, atol=step**2)


def test_velocity_is_the_time_derivative_of_flow_matching():
    x0, eps = pair(3)
    early, late = (FlowMatching().alpha(t) * x0 + FlowMatching().sigma(t) * eps for t in (0.25, 0.75))
    torch.testing.assert_close(VELOCITY.target(x0, eps, 0.5, 0.5), (late - early) / 0.5, rtol=0, atol=16 * EPS64)


def test_target_is_linear_in_both():
    x0, eps = pair(2)
    odd = Prediction("odd", lambda alpha, sigma: (2.0 * alpha, 3.0 * sigma))
    torch.testing.assert_close(odd.target(x0, eps, 0.5, 0.25), x0 + 0.75 * eps, rtol=4 * EPS64, atol=4 * EPS64)
    back = odd.to_x0(0.5 * x0 + 0.25 * eps, odd.target(x0, eps, 0.5, 0.25), 0.5, 0.25)
    # the divisor alpha b - sigma a is 0.375 - 0.25
    torch.testing.assert_close(back, x0, rtol=1e-13, atol=1e-13)


# --- EDM ---


@pytest.mark.parametrize("sd", [0.5, 1.3])
@each_schedule
def test_edm_input_and_target_have_unit_variance_and_nothing_in_common(schedule, sd):
    t = torch.tensor(TIMES, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p = edm(sd)
    scale, (a, b) = p.input_scale(alpha, sigma), p.row(alpha, sigma)
    ones = torch.ones_like(t)
    close = {"rtol": 0.0, "atol": 8 * EPS64}
    torch.testing.assert_close(scale**2 * (alpha**2 * sd**2 + sigma**2), ones, **close)
    torch.testing.assert_close(a**2 * sd**2 + b**2, ones, **close)
    torch.testing.assert_close(scale * (a * alpha * sd**2 + b * sigma), 0 * ones, **close)  # covariance of the two


@pytest.mark.parametrize("sd", [0.5, 1.3])
@pytest.mark.parametrize("alpha", [1.0, 0.8, 0.05])
def test_edm_is_table_1_of_karras(alpha, sd):
    x0, eps = pair(3)
    for noise_to_signal in (0.002, 0.3, 1.0, 80.0):
        s = noise_to_signal  # EDM's sigma
        c_skip = sd**2 / (s**2 + sd**2)
        c_out = s * sd / math.sqrt(s**2 + sd**2)
        c_in = 1 / math.sqrt(s**2 + sd**2)
        y = x0 + s * eps  # EDM's noisy data, x / alpha
        x, sigma = alpha * y, alpha * s
        p = edm(sd)
        close = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(p.input_scale(alpha, sigma) * x, c_in * y, **close)
        f = (x0 - c_skip * y) / c_out  # the effective target, eq. 8
        torch.testing.assert_close(p.target(x0, eps, alpha, sigma), f, rtol=1e-12, atol=1e-12 * (1 + s + 1 / s))
        out = x0.flip(0) - eps  # any output of the network
        torch.testing.assert_close(p.to_x0(x, out, alpha, sigma), c_skip * y + c_out * out, **close)
        a, b = p.row(alpha, sigma)
        weight = ((alpha * b - sigma * a) / sigma) ** 2  # on the error in x0: EDM's lambda(sigma)
        assert abs(weight / ((s**2 + sd**2) / (s * sd) ** 2) - 1) <= 1e-12


def test_edm_defaults_to_the_papers_sigma_data():
    assert edm().row(0.8, 0.6) == edm(0.5).row(0.8, 0.6)


@pytest.mark.parametrize("sd", [0.0, -0.5, math.inf, math.nan])
def test_edm_refuses_a_bad_sigma_data(sd):
    with pytest.raises(ValueError, match=f"sigma_data is {sd}; it must be positive: the data's standard deviation"):
        edm(sd)


# --- conversions ---


@each_schedule
def test_eps_x0_and_score_are_one_thing(schedule):
    x0, eps = pair(5)
    t = torch.tensor([0.3, 0.4, 0.5, 0.8, 0.97], dtype=torch.float64)
    alpha, sigma = over(schedule.alpha(t)), over(schedule.sigma(t))
    x = (alpha * x0 + sigma * eps).requires_grad_()
    torch.testing.assert_close(eps_to_x0(x, eps, alpha, sigma), x0, rtol=1e-9, atol=1e-10)
    got = x0_to_eps(x, x0, alpha, sigma)
    assert bool(((got - eps).abs() <= 8 * EPS64 * (x.abs() + alpha * x0.abs() + sigma) / sigma).all())
    (score,) = torch.autograd.grad(
        (-((x - alpha * x0) ** 2) / (2 * sigma**2)).sum(), x
    )  # of log N(x; alpha x0, sigma^2)
    close = {"rtol": 1e-9, "atol": 1e-6}
    torch.testing.assert_close(eps_to_score(eps, sigma) * sigma, score * sigma, **close)
    torch.testing.assert_close(score_to_eps(score, sigma), eps, **close)
    torch.testing.assert_close(score_to_eps(eps_to_score(eps, sigma), sigma), eps, rtol=4 * EPS64, atol=0)


def test_score_of_numbers():
    assert eps_to_score(torch.tensor([1.0, -3.0]), 0.5).tolist() == [-2.0, 6.0]
    assert score_to_eps(torch.tensor([-2.0, 6.0]), 0.5).tolist() == [1.0, -3.0]


def test_inputs_are_left_alone():
    x0, eps = pair(3)
    alpha, sigma = torch.tensor([[1.0], [0.8], [0.6]]).double(), torch.tensor([[0.0], [0.6], [0.8]]).double()
    before = [v.clone() for v in (x0, eps, alpha, sigma)]
    for p in PREDICTIONS.values():
        p.target(x0, eps, alpha, sigma)
        p.to_x0(x0, eps, alpha, sigma)
        p.to_eps(x0, eps, alpha[1:2], sigma[1:2])
    assert all(torch.equal(a, b) for a, b in zip((x0, eps, alpha, sigma), before, strict=True))


@each_prediction
def test_predictions_on_each_device(prediction, device):
    x0, eps = (v.to(device) for v in pair(3))
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=device)
    alpha, sigma = over(Cosine().alpha(t)), over(Cosine().sigma(t))
    x, out = alpha * x0 + sigma * eps, prediction.target(x0, eps, alpha, sigma)
    for got, want in ((prediction.to_x0, x0), (prediction.to_eps, eps)):
        answer = got(x, out, alpha, sigma)
        assert answer.device == x0.device
        torch.testing.assert_close(answer, want, rtol=1e-12, atol=1e-12)


# --- refusals ---

ZERO, ONE = torch.zeros(()), torch.ones(())
X = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EPS.to_x0(X, X, 0.0, 1.0), r"eps-prediction cannot give x0 where alpha is 0.*0.0e\+00.*or use V"),
        (lambda: EPS.to_x0(X, X, ZERO, ONE), "eps-prediction cannot give x0 where alpha is 0, the end of pure noise"),
        (lambda: EPS.to_x0(X, X, 9e-7, 1.0), "smallest alpha: 9.0e-07.*start the grid at a smaller t_max"),
        (lambda: EPS.to_x0(X, X, torch.tensor([[0.5], [0.0]]), torch.tensor([[0.5], [1.0]])), "smallest alpha: 0.0e"),
        (lambda: eps_to_x0(X, X, 0.0, 1.0), "eps-prediction cannot give x0"),
        (lambda: X0.to_eps(X, X, 1.0, 0.0), "x0-prediction cannot give eps where sigma is 0, clean data"),
        (lambda: X0.to_eps(X, X, ONE, ZERO), "x0-prediction cannot give eps where sigma is 0"),
        (lambda: X0.to_eps(X, X, torch.tensor([[0.5], [1.0]]), torch.tensor([[0.5], [0.0]])), "x0-prediction cannot"),
        (lambda: x0_to_eps(X, X, 1.0, 0.0), "x0-prediction cannot give eps"),
        (lambda: eps_to_score(X, 0.0), "sigma is 0; the score is -eps / sigma: take a later time"),
        (lambda: eps_to_score(X, torch.tensor([[0.5], [0.0]])), "sigma is 0; the score"),
    ],
)
def test_a_prediction_that_says_nothing_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_refusal_begins_at_a_gain_of_a_million():
    assert EPS.to_x0(X, X, 1.1e-6, 1.0).isfinite().all()
    assert X0.to_eps(X, X, 1.0, 1.1e-6).isfinite().all()
    assert EPS.to_x0(X, X, 1.0, 80.0).isfinite().all()


def test_pure_noise_of_any_size():
    """Where alpha is 0 eps is x / sigma, also where sigma is not 1, for numbers as for tensors."""
    x, out = torch.tensor([[1.0, -3.0]]), torch.tensor([[0.2, 0.4]])
    for alpha, sigma in ((0.0, 0.5), (torch.tensor(0.0), torch.tensor(0.5))):
        for row in (EPS, V):
            torch.testing.assert_close(row.to_eps(x, out, alpha, sigma), 2 * x)
