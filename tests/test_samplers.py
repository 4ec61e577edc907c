"""Samplers against closed forms, textbook formulas and an independent integrator of the probability-flow ODE."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import generators, seeded
from scipy.integrate import solve_ivp

from companion import denoisers, predictions, samplers, schedules

LINEAR, COSINE, FLOW, EXPLODING = (
    schedules.Linear(),
    schedules.Cosine(),
    schedules.FlowMatching(),
    schedules.VarianceExploding(),
)
SCHEDULES = [
    pytest.param(LINEAR, id="linear"),
    pytest.param(COSINE, id="cosine"),
    pytest.param(FLOW, id="flow"),
    pytest.param(EXPLODING, id="exploding"),
]
ENDS_IN_PURE_NOISE = [
    pytest.param(COSINE, id="cosine"),
    pytest.param(FLOW, id="flow"),
    pytest.param(schedules.zero_terminal_snr(schedules.ScaledLinear()), id="zero-terminal"),
]
WALKS = {
    "ddim": samplers.ddim,
    "ddim, eta 0.5": lambda *args, **more: samplers.ddim(*args, eta=0.5, **more),
    "ddpm": samplers.ddpm,
    "ddpm, upper": lambda *args, **more: samplers.ddpm(*args, variance="upper", **more),
    "dpmpp_2m": lambda *args, generator=None: samplers.dpmpp_2m(*args),
    "heun": lambda *args, generator=None: samplers.heun(*args),
    "adams": lambda *args, generator=None: samplers.adams(*args),
    "adams, order 2, uncorrected": lambda *args, generator=None: samplers.adams(*args, order=2, correct=False),
}


def walks(*without):
    """Every walk but some."""
    kept = {name: walk for name, walk in WALKS.items() if not name.startswith(without)}
    return pytest.mark.parametrize("walk", kept.values(), ids=kept.keys())


def adams_2(*args):
    return samplers.adams(*args, order=2, correct=False)


EVERY_WALK = walks()
ONE_CALL_A_STEP = walks("heun")
LANDS_ON_THE_LAST_ANSWER = walks("adams")
DETERMINISTIC = pytest.mark.parametrize(
    "walk", [samplers.ddim, samplers.dpmpp_2m, samplers.heun, adams_2, samplers.adams]
)
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES)

MEAN, VARIANCE = torch.tensor([0.7, -1.1, 0.2], dtype=torch.float64), 0.6


def gaussian_denoiser(schedule):
    """E[x0 | x] of N(MEAN, VARIANCE), by the regression of x0 on x."""

    def denoise(x, t):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        return MEAN.to(x) + gain * (x - alpha * MEAN.to(x))

    return denoise


def gaussian_map(schedule, x, t, s):
    """The exact solution at s of the probability-flow ODE from x at t: the standard score is kept."""
    alpha_t, alpha_s = float(schedule.alpha(t)), float(schedule.alpha(s))
    var_t, var_s = (float(schedule.alpha(u)) ** 2 * VARIANCE + float(schedule.sigma(u)) ** 2 for u in (t, s))
    return alpha_s * MEAN + math.sqrt(var_s / var_t) * (x - alpha_t * MEAN)


def between(schedule, num_steps, high=20.0, low=0.05):
    """A grid of equal steps in log SNR, from one noise-to-signal ratio to another, both inside (0, 1)."""
    first, last = (float(schedule.t_of_log_snr(-2 * math.log(ratio))) for ratio in (high, low))
    return schedules.log_snr(schedule, num_steps + 1, first, last)


def slope(errors):
    """The order of convergence when each error is for twice as many steps as the one before."""
    return math.log2(errors[-2] / errors[-1])


ORDER = {samplers.ddim: 1, samplers.dpmpp_2m: 2, samplers.heun: 2, adams_2: 2, samplers.adams: 4}
NEARLY = {1: 0.15, 2: 0.15, 4: 0.45}  # how far a measured order may be off: the fourth is still on its way up


# --- the probability-flow ODE: exact solutions and orders of convergence ---


@DETERMINISTIC
@EVERY_SCHEDULE
def test_order_on_a_gaussian(walk, schedule):
    noise = torch.randn(16, 3, generator=seeded(1), dtype=torch.float64)
    errors = []
    for num_steps in (100, 200):
        ts = between(schedule, num_steps)
        x = samplers.start(schedule, (16, 3), ts, dtype=torch.float64, generator=seeded(1))
        assert torch.equal(x, float(schedule.sigma(ts[0])) * noise)
        out = samplers.last(walk(gaussian_denoiser(schedule), schedule, x, ts))
        errors.append((out.x - gaussian_map(schedule, x, ts[0], ts[-1])).abs().max().item())
    assert errors[-1] < {1: 3e-2, 2: 4e-4, 4: 1e-8}[ORDER[walk]]
    assert slope(errors) == pytest.approx(ORDER[walk], abs=NEARLY[ORDER[walk]])


@pytest.mark.parametrize("walk", [samplers.ddim, samplers.dpmpp_2m])
@pytest.mark.parametrize("schedule", [*SCHEDULES, pytest.param(schedules.Sigmoid(), id="sigmoid")])
def test_order_on_a_gaussian_down_to_data(walk, schedule):
    """The grid ends at 0: both its last point before 0 and its steps shrink together."""
    errors = []
    for num_steps in (100, 200):
        ts = between(schedule, num_steps, low=4 / num_steps)
        ts = torch.cat([ts, ts.new_zeros(1)])
        x = samplers.start(schedule, (16, 3), ts, dtype=torch.float64, generator=seeded(1))
        out = samplers.last(walk(gaussian_denoiser(schedule), schedule, x, ts))
        assert float(out.t) == 0
        errors.append((out.x - gaussian_map(schedule, x, ts[0], 0.0)).abs().max().item())
    assert errors[-1] < {1: 4e-2, 2: 1e-3}[ORDER[walk]]
    assert slope(errors) == pytest.approx(ORDER[walk], abs=0.15)


@pytest.mark.parametrize(
    ("walk", "schedule"),
    [*((samplers.ddim, p.values[0]) for p in SCHEDULES), (samplers.dpmpp_2m, EXPLODING), (samplers.dpmpp_2m, LINEAR)],
)
def test_order_on_a_uniform_grid_down_to_data(walk, schedule):
    """Equal steps in t all the way to 0; on the exploding schedule this is EDM's grid."""
    errors = []
    for num_steps in (100, 200):
        ts = schedule.time_grid(num_steps, spacing="uniform", t_max=0.98)
        x = samplers.start(schedule, (16, 3), ts, dtype=torch.float64, generator=seeded(1))
        out = samplers.last(walk(gaussian_denoiser(schedule), schedule, x, ts))
        errors.append((out.x - gaussian_map(schedule, x, ts[0], 0.0)).abs().max().item())
    assert slope(errors) == pytest.approx(ORDER[walk], abs=0.15)


@EVERY_SCHEDULE
def test_default_grid_reaches_the_gaussian(schedule):
    """What a reader runs: the default grid and 200 steps give the exact map to within the grid's t_min."""
    ts = schedule.time_grid(200)
    x = samplers.start(schedule, (16, 3), ts, dtype=torch.float64, generator=seeded(1))
    out = samplers.last(samplers.dpmpp_2m(gaussian_denoiser(schedule), schedule, x, ts))
    assert (out.x - gaussian_map(schedule, x, ts[0], 0.0)).abs().max().item() < 2e-3


MEANS = np.array([[1.0, 0.0], [-0.4, 0.9], [-0.5, -0.8]])
VARIANCES = np.array([0.15, 0.05, 0.1])
WEIGHTS = np.array([0.5, 0.2, 0.3])


def mixture(schedule):
    return denoisers.GaussianMixture(*(torch.as_tensor(a) for a in (MEANS, VARIANCES, WEIGHTS)), schedule)


def mixture_score(y, noise):
    """The score of the mixture with N(0, noise^2) added, written out."""
    total = VARIANCES + noise**2
    away = MEANS - y[:, None, :]
    log_p = np.log(WEIGHTS) - np.log(2 * np.pi * total) - (away**2).sum(-1) / (2 * total)
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return (p[:, :, None] * away / total[:, None]).sum(1)


def solve_ode(y, first, last):
    """Integrate dy / d(log r) = -r^2 score(y, r), y = x / alpha and r = sigma / alpha, to 1e-11."""

    def right_side(log_r, flat):
        r = math.exp(log_r)
        return -(r**2) * mixture_score(flat.reshape(-1, 2), r).ravel()

    span = math.log(first), math.log(last)
    solution = solve_ivp(right_side, span, y.ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
    assert solution.success
    return solution.y[:, -1].reshape(-1, 2)


HIGH, LOW = 20.0, 0.05
Y_START = HIGH * np.random.default_rng(3).standard_normal((12, 2))


@pytest.fixture(scope="module")
def y_end():
    return solve_ode(Y_START, HIGH, LOW)


def test_the_integrator_is_right_on_one_gaussian(monkeypatch):
    for name, value in (("MEANS", MEANS[:1]), ("VARIANCES", VARIANCES[:1]), ("WEIGHTS", np.ones(1))):
        monkeypatch.setitem(globals(), name, value)
    root = np.sqrt((VARIANCES[0] + LOW**2) / (VARIANCES[0] + HIGH**2))
    np.testing.assert_allclose(solve_ode(Y_START, HIGH, LOW), MEANS + root * (Y_START - MEANS), atol=1e-9)


@DETERMINISTIC
@EVERY_SCHEDULE
def test_order_on_a_mixture(walk, schedule, y_end):
    errors = []
    for num_steps in (400, 800) if walk is samplers.adams else (100, 200):
        ts = between(schedule, num_steps, HIGH, LOW)
        x = float(schedule.alpha(ts[0])) * torch.as_tensor(Y_START)
        y = samplers.last(walk(mixture(schedule), schedule, x, ts)).x / float(schedule.alpha(ts[-1]))
        errors.append((y - torch.as_tensor(y_end)).square().mean().sqrt().item())
    assert errors[-1] < {1: 6e-3, 2: 2e-4, 4: 2e-7}[ORDER[walk]]
    assert slope(errors) == pytest.approx(ORDER[walk], abs=NEARLY[ORDER[walk]])


@pytest.mark.parametrize("walk", [samplers.ddim, samplers.dpmpp_2m, samplers.heun])
@EVERY_SCHEDULE
def test_order_on_a_mixture_down_to_data(walk, schedule, y_end):
    """The last step takes the exact point at t_min to the exact denoiser's answer there, at the walk's order."""
    errors = []
    for num_steps in (100, 200):
        ts = between(schedule, num_steps, HIGH, LOW)
        t_min = ts[-1]
        x = float(schedule.alpha(ts[0])) * torch.as_tensor(Y_START)
        out = samplers.last(walk(mixture(schedule), schedule, x, torch.cat([ts, ts.new_zeros(1)])))
        clean = y_end + LOW**2 * mixture_score(y_end, LOW)  # Tweedie
        errors.append((out.x - torch.as_tensor(clean)).square().mean().sqrt().item())
        assert float(t_min) > 0 and float(out.t) == 0
    assert slope(errors) == pytest.approx(ORDER[walk], abs=0.15)


# --- DDPM: exact coefficients and exact moments ---


def coefficients(walk, schedule, t, s, **more):
    """Read off x_s = keep * x_t + move * x0_hat + std * z from one step."""
    ts = torch.tensor([t, s], dtype=torch.float64)

    def take(x, answer):
        x = torch.tensor([[x]], dtype=torch.float64)
        return samplers.last(
            walk(lambda x, t: torch.full_like(x, answer), schedule, x, ts, generator=seeded(5), **more)
        ).x.item()

    noise = take(0.0, 0.0)
    z = torch.randn(1, 1, generator=seeded(5), dtype=torch.float64).item()
    return take(1.0, 0.0) - noise, take(0.0, 1.0) - noise, noise / z


@pytest.mark.parametrize("variance", ["posterior", "upper"])
def test_ddpm_is_the_textbook_on_every_integer_step(variance):
    """Ho et al. (2020), eq. 6, 7 and algorithm 2, on all 1,000 steps."""
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bars = np.concatenate([[1.0], np.cumprod(1 - betas)])
    ts = torch.arange(1000, -1, -1, dtype=torch.float64) / 1000
    answers = torch.randn(1000, 2, 3, generator=seeded(7), dtype=torch.float64)
    x = torch.randn(2, 3, generator=seeded(8), dtype=torch.float64)
    given = iter(answers)
    steps = samplers.ddpm(lambda x, t: next(given), LINEAR, x, ts, variance=variance, generator=seeded(9))
    noise = seeded(9)
    for k, answer, step in zip(range(1000, 0, -1), answers, steps, strict=True):
        beta, now, before = betas[k - 1], alpha_bars[k], alpha_bars[k - 1]
        mean = np.sqrt(before) * beta / (1 - now) * answer + np.sqrt(1 - beta) * (1 - before) / (1 - now) * x
        beta_tilde = (1 - before) / (1 - now) * beta
        wanted = mean
        if k > 1:
            spread = np.sqrt(beta_tilde if variance == "posterior" else beta)
            wanted = mean + spread * torch.randn(2, 3, generator=noise, dtype=torch.float64)
        torch.testing.assert_close(step.x, wanted, rtol=1e-9, atol=1e-9)
        assert float(step.t) == pytest.approx((k - 1) / 1000, abs=1e-15)
        assert torch.equal(step.x0_hat, answer)
        x = step.x
    assert torch.equal(step.x, answers[-1])


PAIRS = [(0.9, 0.6), (0.5, 0.49), (0.31, 0.02), (1.0, 0.4)]


@EVERY_SCHEDULE
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_ddpm_step_is_the_conditioned_gaussian(schedule, t, s):
    """q(x_s | x_t, x0) from the joint covariance of (x_s, x_t), for any schedule and any two times."""
    alpha_t, sigma_t, alpha_s, sigma_s = (float(f(u)) for u in (t, s) for f in (schedule.alpha, schedule.sigma))
    ratio = alpha_t / alpha_s
    covariance = np.array([[sigma_s**2, ratio * sigma_s**2], [ratio * sigma_s**2, sigma_t**2]])
    gain = covariance[0, 1] / covariance[1, 1]
    variance = covariance[0, 0] - gain * covariance[1, 0]
    keep, move, std = coefficients(samplers.ddpm, schedule, t, s)
    assert (keep, move) == pytest.approx((gain, alpha_s - gain * alpha_t), rel=1e-9, abs=1e-12)
    assert std**2 == pytest.approx(variance, rel=1e-9)
    added = sigma_t**2 - ratio**2 * sigma_s**2  # what the forward step from s to t adds: eq. 2 of Ho et al.
    upper = coefficients(samplers.ddpm, schedule, t, s, variance="upper")
    assert upper[:2] == pytest.approx((keep, move), rel=1e-9, abs=1e-12)
    assert upper[2] ** 2 == pytest.approx(added, rel=1e-9)


@EVERY_SCHEDULE
@pytest.mark.parametrize("variance", ["posterior", "upper"])
def test_moments_of_ancestral_steps(schedule, variance):
    """Three coarse steps from the exact Gaussian at t: mean and variance within 5 standard errors of linear algebra."""
    n, ts = 100_000, torch.tensor([0.95, 0.7, 0.45, 0.3], dtype=torch.float64)
    alpha, sigma = (f(ts).tolist() for f in (schedule.alpha, schedule.sigma))
    var = alpha[0] ** 2 * VARIANCE + sigma[0] ** 2
    x = alpha[0] * MEAN + math.sqrt(var) * torch.randn(n, 3, generator=seeded(11), dtype=torch.float64)
    denoise = gaussian_denoiser(schedule)
    steps = samplers.ddpm(denoise, schedule, x, ts, variance=variance, generator=seeded(12))
    for (a_t, a_s), (s_t, s_s), step in zip(pairwise(alpha), pairwise(sigma), steps, strict=True):
        ratio = a_t / a_s
        added = s_t**2 - ratio**2 * s_s**2
        gain = ratio * s_s**2 / s_t**2
        slope_of_x = gain + (a_s - gain * a_t) * a_t * VARIANCE / (a_t**2 * VARIANCE + s_t**2)
        var = slope_of_x**2 * var + (added if variance == "upper" else added * s_s**2 / s_t**2)
        mean = step.x.mean(0)
        assert ((mean - a_s * MEAN).abs() < 5 * math.sqrt(var / n)).all()
        assert ((step.x.var(0) / var - 1).abs() < 5 * math.sqrt(2 / n)).all()


def test_many_ancestral_steps_give_the_data():
    """With 300 steps both variances give N(MEAN, VARIANCE): within 2 % in variance and 5 standard errors in mean."""
    n, ts = 40_000, COSINE.time_grid(300)
    for variance in ("posterior", "upper"):
        x = samplers.start(COSINE, (n, 3), ts, generator=seeded(13))
        out = samplers.last(
            samplers.ddpm(gaussian_denoiser(COSINE), COSINE, x, ts, variance=variance, generator=seeded(14))
        ).x
        assert ((out.mean(0) - MEAN).abs() < 5 * math.sqrt(VARIANCE / n)).all()
        assert out.var(0).div(VARIANCE).mean().item() == pytest.approx(1, abs=0.05)


# --- DDIM: eta ---


@EVERY_SCHEDULE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ddim_at_eta_1_is_ddpm(schedule, dtype):
    ts = schedule.time_grid(12)
    x = samplers.start(schedule, (6, 3), ts, dtype=dtype, generator=seeded(1))
    denoise = gaussian_denoiser(schedule)
    one = list(samplers.ddim(denoise, schedule, x, ts, eta=1.0, generator=seeded(2)))
    other = list(samplers.ddpm(denoise, schedule, x, ts, generator=seeded(2)))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.x0_hat, b.x0_hat) and torch.equal(a.t, b.t)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize(("t", "s"), PAIRS[:3])
def test_ddim_is_equation_12(eta, t, s):
    """Song et al. (2021), eq. 12 and 16, whose alpha is our alpha_bar: cosine and linear schedule."""
    for schedule in (COSINE, LINEAR):
        a_t, a_s = (float(schedule.alpha(u)) ** 2 for u in (t, s))
        w = eta * math.sqrt((1 - a_s) / (1 - a_t)) * math.sqrt(1 - a_t / a_s)
        of_eps = math.sqrt(1 - a_s - w**2)
        keep = of_eps / math.sqrt(1 - a_t)  # eps_hat = (x - sqrt(a_t) x0_hat) / sqrt(1 - a_t)
        wanted = keep, math.sqrt(a_s) - keep * math.sqrt(a_t), w
        assert coefficients(samplers.ddim, schedule, t, s, eta=eta) == pytest.approx(wanted, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("schedule", [FLOW, EXPLODING])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_keeps_the_variance_of_the_noise(schedule, eta):
    """Fresh noise and kept noise add up to sigma_s^2, and the fresh share is eta^2 of the posterior's variance."""
    for t, s in PAIRS[:3]:
        alpha_t, sigma_t, alpha_s, sigma_s = (float(f(u)) for u in (t, s) for f in (schedule.alpha, schedule.sigma))
        keep, move, std = coefficients(samplers.ddim, schedule, t, s, eta=eta)
        assert (keep * sigma_t) ** 2 + std**2 == pytest.approx(sigma_s**2, rel=1e-9)
        assert keep * alpha_t + move == pytest.approx(alpha_s, rel=1e-9)
        posterior = coefficients(samplers.ddpm, schedule, t, s)[2]
        assert std == pytest.approx(eta * posterior, rel=1e-9, abs=1e-14)


def test_ddim_at_eta_0_is_euler_on_the_straight_path():
    """On alpha = 1 - t, sigma = t the velocity (x - x0_hat) / t is followed by Euler's method."""
    ts = FLOW.time_grid(7, spacing="uniform", t_max=1.0)
    x = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)

    def denoise(x, t):
        return torch.tanh(x) * torch.cos(t)

    for t, s, step in zip(ts, ts[1:], samplers.ddim(denoise, FLOW, x, ts), strict=False):
        x = x + (s - t) * (x - denoise(x, t)) / t
        torch.testing.assert_close(step.x, x, rtol=1e-12, atol=1e-12)


# --- DPM-Solver++(2M) ---


def curved(x, t):
    """A denoiser that is nobody's exact one: nonlinear in x and in t."""
    return torch.tanh(2 * x) * math.cos(3 * float(t)) + 0.1 * x.roll(1, -1)


@EVERY_SCHEDULE
def test_dpmpp_2m_is_algorithm_2(schedule):
    """Lu et al. (2022), algorithm 2, line by line, on a grid of unequal steps that does not reach data."""
    ts = torch.tensor([0.97, 0.9, 0.7, 0.65, 0.4, 0.38, 0.2], dtype=torch.float64)
    alpha, sigma = (f(ts).tolist() for f in (schedule.alpha, schedule.sigma))
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    x = sigma[0] * torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    steps = list(samplers.dpmpp_2m(curved, schedule, x, ts))
    assert len(steps) == 6
    answers = []
    for i in range(1, 7):
        h = lam[i] - lam[i - 1]
        answers.append(curved(x, ts[i - 1]))
        guess = answers[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            guess = (1 + 1 / (2 * r)) * answers[-1] - 1 / (2 * r) * answers[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (math.exp(-h) - 1) * guess
        torch.testing.assert_close(steps[i - 1].x, x, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(steps[i - 1].x0_hat, answers[-1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("schedule", ENDS_IN_PURE_NOISE)
def test_dpmpp_2m_from_pure_noise(schedule):
    """From alpha = 0 a DDIM step, the next one without history, and only then two answers."""
    ts = torch.tensor([1.0, 0.8, 0.55, 0.3, 0.1, 0.0], dtype=torch.float64)
    assert float(schedule.alpha(ts[0])) == 0
    x = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    steps = list(samplers.dpmpp_2m(curved, schedule, x, ts))
    first, second = samplers.ddim(curved, schedule, x, ts[:3])
    torch.testing.assert_close(steps[0].x, first.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(steps[1].x, second.x, rtol=1e-12, atol=1e-12)
    rest = list(samplers.dpmpp_2m(curved, schedule, first.x, ts[1:]))
    for a, b in zip(steps[1:], rest, strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=1e-12, atol=1e-12)
    one_more = samplers.last(samplers.ddim(curved, schedule, steps[1].x, ts[2:4]))
    assert not torch.allclose(steps[2].x, one_more.x, rtol=1e-3, atol=1e-3)  # here the history counts
    assert torch.equal(steps[-1].x, steps[-1].x0_hat)


@pytest.mark.parametrize("schedule", ENDS_IN_PURE_NOISE)
@EVERY_WALK
def test_every_sampler_starts_from_pure_noise(walk, schedule):
    """From alpha = 0 the noise says nothing: x_s is alpha_s x0_hat plus noise of standard deviation sigma_s."""
    ts = torch.tensor([1.0, 0.5], dtype=torch.float64)
    x = torch.randn(50_000, 2, generator=seeded(1), dtype=torch.float64)
    out = samplers.last(walk(lambda x, t: torch.full_like(x, 3.0), schedule, x, ts, generator=seeded(2))).x
    alpha, sigma = float(schedule.alpha(ts[1])), float(schedule.sigma(ts[1]))
    if walk is WALKS["ddpm, upper"]:
        sigma = 1.0  # the forward step from data to pure noise adds all of it
    assert ((out.mean(0) - 3 * alpha).abs() < 5 * sigma / math.sqrt(50_000)).all()
    assert ((out.var(0) / sigma**2 - 1).abs() < 5 * math.sqrt(2 / 50_000)).all()


# --- Heun ---


@EVERY_SCHEDULE
def test_heun_is_algorithm_1(schedule):
    """Karras et al. (2022), algorithm 1 without churn, on x / alpha and noise over signal, line by line."""
    ts = torch.tensor([0.97, 0.9, 0.7, 0.65, 0.2, 0.0], dtype=torch.float64)
    alpha, noise = (f(ts).tolist() for f in (schedule.alpha, schedule.noise_to_signal))
    x = float(schedule.sigma(ts[0])) * torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    denoise = Recorder(curved)
    steps = list(samplers.heun(denoise, schedule, x, ts))
    assert len(steps) == 5 and len(denoise.asked) == 9
    y = x / alpha[0]
    for i, step in enumerate(steps):
        first = (y - curved(alpha[i] * y, ts[i])) / noise[i]
        torch.testing.assert_close(step.x0_hat, curved(alpha[i] * y, ts[i]), rtol=1e-11, atol=1e-11)
        ahead = y + (noise[i + 1] - noise[i]) * first
        if noise[i + 1] > 0:
            second = (ahead - curved(alpha[i + 1] * ahead, ts[i + 1])) / noise[i + 1]
            ahead = y + (noise[i + 1] - noise[i]) * (first + second) / 2
        y = ahead
        torch.testing.assert_close(step.x, alpha[i + 1] * y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("schedule", ENDS_IN_PURE_NOISE)
def test_heun_from_pure_noise(schedule):
    ts = torch.tensor([1.0, 0.8, 0.5], dtype=torch.float64)
    x = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    denoise = Recorder(curved)
    first, second = samplers.heun(denoise, schedule, x, ts)
    assert [float(t) for _, t in denoise.asked] == [1.0, 0.8, 0.5]  # one call, then two
    torch.testing.assert_close(first.x, samplers.last(samplers.ddim(curved, schedule, x, ts[:2])).x)
    torch.testing.assert_close(second.x, samplers.last(samplers.heun(curved, schedule, first.x, ts[1:])).x)


# --- the exponential Adams method ---


@pytest.mark.parametrize(
    ("r_t", "r_s"), [(0.01, 0.3), (0.3, 0.31), (2.0, 50.0), (1e-3, 100.0), (0.0, 0.02), (0.0, 5.0)]
)
def test_adams_integrates_polynomials_exactly(r_t, r_s):
    """Cubics in u = r / sqrt(1 + r^2) have closed integrals over r, and four nodes give them, wherever they stand."""
    closed = [
        lambda r: r,
        lambda r: math.sqrt(1 + r * r),
        lambda r: r - math.atan(r),
        lambda r: math.sqrt(1 + r * r) + 1 / math.sqrt(1 + r * r),
    ]
    nodes = [0.9 * r_t + 0.001, 0.4, 0.1, 3.0]
    u = [r / math.sqrt(1 + r * r) for r in nodes]
    for order in (1, 2, 3, 4):
        weights = samplers._integrals(r_t, r_s, nodes[:order], 0.7)
        for power in range(order):
            got = sum(w * at**power for w, at in zip(weights, u, strict=False))
            assert got == pytest.approx(0.7 * (closed[power](r_s) - closed[power](r_t)), rel=1e-7, abs=1e-9), power


def in_u(schedule, ts):
    """alpha / sqrt(alpha^2 + sigma^2) and alpha / sigma at each time."""
    alpha, sigma = schedule.alpha(ts), schedule.sigma(ts)
    return alpha / (alpha**2 + sigma**2).sqrt(), alpha / sigma


@EVERY_SCHEDULE
@pytest.mark.parametrize(("order", "correct"), [(2, True), (3, True), (4, True), (2, False), (3, False)])
def test_adams_is_exact_where_the_answer_is_a_line_in_u(schedule, order, correct):
    """x0_hat = 2 - 3 u: y = x / sigma grows by the integral 2 r - 3 sqrt(1 + r^2); the corrector mends the start."""
    ts = torch.tensor([0.97, 0.9, 0.7, 0.65, 0.4, 0.05, 0.0], dtype=torch.float64)
    _, r = in_u(schedule, ts)
    answer = lambda x, t: torch.full_like(x, 2 - 3 * float(in_u(schedule, t)[0]))  # noqa: E731
    x = float(schedule.sigma(ts[0])) * torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    steps = list(samplers.adams(answer, schedule, x, ts, order=order, correct=correct))
    grown = 2 * r - 3 * (1 + r**2).sqrt()
    begin = 0 if correct else 1
    y = x / schedule.sigma(ts[0]) if correct else steps[0].x / schedule.sigma(ts[1])
    for i in range(1, 5):
        wanted = schedule.sigma(ts[i + 1]) * (y + grown[i + 1] - grown[begin])
        torch.testing.assert_close(steps[i].x, wanted, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(steps[-1].x, torch.full_like(x, -1.0), rtol=1e-9, atol=1e-9)  # read off at u = 1


@EVERY_SCHEDULE
def test_adams_line_by_line(schedule):
    """Order 3 with its corrector, every sum written out with integrals from an independent quadrature."""
    from scipy.integrate import quad

    ts = torch.tensor([0.95, 0.9, 0.7, 0.6, 0.35, 0.2], dtype=torch.float64)
    u, r = (z.tolist() for z in in_u(schedule, ts))
    sigma = schedule.sigma(ts).tolist()

    def grow(i, s, nodes, answers):
        total = 0
        for j in nodes:
            basis = lambda at, j=j: math.prod(  # noqa: E731
                (at / math.sqrt(1 + at * at) - u[k]) / (u[j] - u[k]) for k in nodes if k != j
            )
            total = total + quad(basis, r[i], r[s], epsabs=1e-12, epsrel=1e-12)[0] * answers[j]
        return total

    x = sigma[0] * torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    steps = list(samplers.adams(curved, schedule, x, ts, order=3))
    y, answers = x / sigma[0], []
    for i, step in enumerate(steps):
        answers.append(curved(x, ts[i]))
        newest = list(range(max(0, i - 2), i + 1))
        if i:
            y = y + grow(i - 1, i, newest, answers)
        x = sigma[i + 1] * (y + grow(i, i + 1, newest, answers))
        torch.testing.assert_close(step.x, x, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(step.x0_hat, answers[-1], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("t_min", [1e-6, 1e-9, 1e-12])
def test_adams_down_to_almost_no_noise(t_min):
    """Where u rounds to 1 its nodes would coincide; 1 - u keeps them apart."""
    ts = FLOW.time_grid(40, spacing="log_snr", t_min=t_min)
    x = samplers.start(FLOW, (16, 3), ts, dtype=torch.float64, generator=seeded(1))
    out = samplers.last(samplers.adams(gaussian_denoiser(FLOW), FLOW, x, ts))
    assert (out.x - gaussian_map(FLOW, x, ts[0], 0.0)).abs().max().item() < 2e-2


def test_adams_of_order_1_is_ddim():
    ts = LINEAR.time_grid(7)
    x = samplers.start(LINEAR, (4, 3), ts, dtype=torch.float64, generator=seeded(1))
    pairs = zip(
        samplers.adams(curved, LINEAR, x, ts, order=1, correct=False), samplers.ddim(curved, LINEAR, x, ts), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a.x, b.x, rtol=1e-9, atol=1e-9)


def test_the_corrector_mends_the_start():
    """Without it the first steps, of order 1 and 2, hold the fourth order back to 2."""
    errors = {}
    for correct in (True, False):
        for num_steps in (200, 400):
            ts = between(LINEAR, num_steps)
            x = samplers.start(LINEAR, (16, 3), ts, dtype=torch.float64, generator=seeded(1))
            out = samplers.last(samplers.adams(gaussian_denoiser(LINEAR), LINEAR, x, ts, correct=correct))
            errors.setdefault(correct, []).append((out.x - gaussian_map(LINEAR, x, ts[0], ts[-1])).abs().max().item())
    assert slope(errors[True]) > 3.5 and slope(errors[False]) < 2.5
    assert errors[False][-1] > 500 * errors[True][-1]


@pytest.mark.parametrize("schedule", ENDS_IN_PURE_NOISE)
def test_adams_from_pure_noise(schedule):
    """alpha = 0 is a node like any other: the answer there is the mean of the data, and u is 0."""
    ts = torch.cat([torch.ones(1, dtype=torch.float64), between(schedule, 60, high=20.0, low=0.05)])
    x = torch.randn(16, 3, generator=seeded(1), dtype=torch.float64)
    out = samplers.last(samplers.adams(gaussian_denoiser(schedule), schedule, x, ts))
    assert (out.x - gaussian_map(schedule, x, ts[0], ts[-1])).abs().max().item() < 2e-4


@pytest.mark.parametrize(("order", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_order(order, error):
    with pytest.raises(error, match="order is"):
        samplers.adams(Recorder(), FLOW, torch.zeros(2, 3), FLOW.time_grid(3), order=order)


def test_each_sampler_has_its_grid():
    for walk, spacing in (
        (samplers.ddpm, "uniform"),
        (samplers.ddim, "angle"),
        (samplers.heun, "uniform"),
        (samplers.dpmpp_2m, "angle"),
        (samplers.adams, "angle"),
    ):
        assert torch.equal(samplers.grid(walk, LINEAR, 7), LINEAR.time_grid(7, spacing=spacing))
    with pytest.raises(ValueError, match="grids known are for ddim, ddpm, heun, dpmpp_2m, adams"):
        samplers.grid(samplers.last, COSINE, 9)


# --- landing on data ---


@LANDS_ON_THE_LAST_ANSWER
@EVERY_SCHEDULE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_last_step_lands_on_the_last_answer(walk, schedule, dtype):
    ts = schedule.time_grid(6)
    x = samplers.start(schedule, (8, 2), ts, dtype=dtype, generator=seeded(1))
    answers = []

    def denoise(x, t):
        answers.append(torch.tanh(x))
        return answers[-1]

    *path, end = walk(denoise, schedule, x, ts, generator=seeded(2))
    assert len(path) == 5 and float(end.t) == 0
    assert torch.equal(end.x, end.x0_hat) and torch.equal(end.x, answers[-1])
    assert not any(torch.equal(step.x, step.x0_hat) for step in path)


@EVERY_WALK
@EVERY_SCHEDULE
def test_samples_of_a_finite_data_set_are_its_points(walk, schedule):
    data = torch.randn(20, 2, generator=seeded(1))
    ts = schedule.time_grid(25)
    x = samplers.start(schedule, (60, 2), ts, generator=seeded(2))
    out = samplers.last(walk(denoisers.FiniteDataset(data, schedule), schedule, x, ts, generator=seeded(3))).x
    distance = (out[:, None] - data).norm(dim=-1).min(1)
    assert distance.values.max().item() < 1e-4
    assert len(set(distance.indices.tolist())) > 8  # and not all at one point


# --- the contract: what is yielded, what the denoiser is asked, what is left alone ---


class Recorder:
    """A denoiser that keeps what it was asked."""

    def __init__(self, denoise=lambda x, t: torch.tanh(x)):
        self.asked, self.denoise = [], denoise

    def __call__(self, x, t):
        self.asked.append((x.clone(), t))
        return self.denoise(x, t)


@ONE_CALL_A_STEP
@pytest.mark.parametrize("shape", [(5, 3), (2, 1, 4, 6), (1, 2), (3, 2, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_a_step_holds(walk, shape, dtype):
    ts = COSINE.time_grid(5)
    denoise = Recorder()
    x = samplers.start(COSINE, shape, ts, dtype=dtype, generator=seeded(1))
    steps = list(walk(denoise, COSINE, x, ts, generator=seeded(2)))
    assert len(steps) == len(denoise.asked) == 5
    at = [x, *(step.x for step in steps)]
    for i, (step, (seen, t)) in enumerate(zip(steps, denoise.asked, strict=True)):
        assert isinstance(step, samplers.Step)
        assert seen.dtype == step.x.dtype == step.x0_hat.dtype == dtype
        assert seen.shape == step.x.shape == step.x0_hat.shape == shape
        assert torch.equal(seen, at[i]) and torch.equal(step.x0_hat, torch.tanh(at[i]))  # from before the step
        assert t.shape == () and t.dtype == torch.float64 and t.device.type == "cpu" and float(t) == float(ts[i])
        assert step.t.shape == () and step.t.dtype == torch.float64 and float(step.t) == float(ts[i + 1])


@EVERY_WALK
def test_images_are_walked_like_points(walk):
    """A pixel does not know the shape that it stands in."""
    ts = COSINE.time_grid(6)
    x = samplers.start(COSINE, (4, 3, 2, 5), ts, generator=seeded(1))
    images, points = (
        samplers.last(walk(lambda x, t: torch.tanh(x), COSINE, z, ts, generator=seeded(2))).x for z in (x, x.flatten(1))
    )
    assert images.std() > 0.1 and torch.equal(images.flatten(1), points)


@EVERY_WALK
def test_same_seed_same_samples_and_nothing_else_touched(walk):
    ts = FLOW.time_grid(6)
    x = samplers.start(FLOW, (4, 3), ts, generator=seeded(1))
    before = x.clone(), ts.clone(), torch.get_rng_state()

    def take(seed):
        return samplers.last(walk(lambda x, t: torch.tanh(x), FLOW, x, ts, generator=seeded(seed))).x

    assert torch.equal(take(2), take(2))
    assert torch.equal(take(2), take(3)) == (walk not in (WALKS["ddim, eta 0.5"], WALKS["ddpm"], WALKS["ddpm, upper"]))
    assert torch.equal(x, before[0]) and torch.equal(ts, before[1]) and torch.equal(torch.get_rng_state(), before[2])


@DETERMINISTIC
def test_a_deterministic_walk_draws_nothing(walk):
    ts, state = FLOW.time_grid(6), torch.get_rng_state()
    samplers.last(walk(lambda x, t: torch.tanh(x), FLOW, torch.ones(4, 3), ts))
    generator = seeded(1)
    samplers.last(samplers.ddim(lambda x, t: torch.tanh(x), FLOW, torch.ones(4, 3), ts, generator=generator))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(generator.get_state(), seeded(1).get_state())


def test_the_last_step_draws_nothing():
    generator, one = seeded(1), seeded(1)
    ts = torch.tensor([0.9, 0.4, 0.0], dtype=torch.float64)
    samplers.last(samplers.ddpm(lambda x, t: torch.tanh(x), FLOW, torch.ones(4, 3), ts, generator=generator))
    torch.randn(4, 3, generator=one)
    assert torch.equal(generator.get_state(), one.get_state())


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_fresh_noise_is_fresh(eta):
    """Each step and each sample draws its own noise, independent and standard normal."""
    schedule, ts = EXPLODING, torch.tensor([0.9, 0.8, 0.7, 0.6], dtype=torch.float64)
    x = torch.zeros(20_000, 2, dtype=torch.float64)
    steps = list(samplers.ddim(lambda x, t: 0 * x, schedule, x, ts, eta=eta, generator=seeded(1)))
    noise = []
    for t, s, step in zip(ts.tolist(), ts.tolist()[1:], steps, strict=False):
        keep, _, std = coefficients(samplers.ddim, schedule, t, s, eta=eta)
        noise.append((step.x - keep * x) / std)
        x = step.x
    noise = torch.cat(noise, dim=1)
    correlation = torch.corrcoef(noise.T)
    assert (noise.var(0) - 1).abs().max().item() < 5 * math.sqrt(2 / 20_000)
    assert (correlation - torch.eye(6)).abs().max().item() < 5 / math.sqrt(20_000)


@EVERY_WALK
def test_no_graph_and_no_leak_of_grad_mode(walk):
    net = torch.nn.Linear(3, 3)
    ts = FLOW.time_grid(4)
    x = samplers.start(FLOW, (4, 3), ts).requires_grad_()
    modes = []

    def denoise(x, t):
        modes.append(torch.is_grad_enabled())
        return net(x)

    for step in walk(denoise, FLOW, x, ts):
        assert torch.is_grad_enabled()
        assert not step.x.requires_grad and not step.x0_hat.requires_grad
        assert net(step.x).requires_grad  # the consumer may train between two steps
    assert modes == [False] * len(modes) and len(modes) in (4, 7)
    walk_left = walk(denoise, FLOW, x, ts)
    next(walk_left)
    walk_left.close()
    assert torch.is_grad_enabled()
    with torch.no_grad():
        for _ in walk(denoise, FLOW, x, ts):
            assert not torch.is_grad_enabled()


@EVERY_WALK
def test_lazy_but_checked_at_once(walk):
    denoise = Recorder()
    ts = FLOW.time_grid(4)
    x = samplers.start(FLOW, (4, 3), ts)
    steps = walk(denoise, FLOW, x, ts)
    assert not denoise.asked
    next(steps)
    assert len(denoise.asked) == 1 + (walk is WALKS["heun"])
    with pytest.raises(ValueError, match="does not fall"):
        walk(denoise, FLOW, x, ts.flip(0))  # no next() needed


@EVERY_WALK
@pytest.mark.parametrize("schedule", [COSINE, EXPLODING], ids=["cosine", "exploding"])
def test_float32_agrees_with_float64(walk, schedule):
    ts = schedule.time_grid(30)
    x = samplers.start(schedule, (16, 3), ts, generator=seeded(1))
    narrow = samplers.last(walk(gaussian_denoiser(schedule), schedule, x, ts, generator=seeded(2))).x
    noise = seeded(2)
    with pytest.MonkeyPatch.context() as patch:  # the same noise in float64
        patch.setattr(
            samplers._checks, "randn", lambda shape, like, g: torch.randn(shape, generator=noise).to(like.dtype)
        )
        wide = samplers.last(walk(gaussian_denoiser(schedule), schedule, x.double(), ts, generator=seeded(2))).x
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-5)


@EVERY_WALK
def test_bfloat16_rounds_only_what_is_shown(walk):
    """The state is float32: after 400 steps with a constant answer the error is one rounding, not 400."""
    ts = torch.cat([between(FLOW, 400), torch.zeros(1, dtype=torch.float64)])[:-1]
    answer = torch.tensor(0.4375)  # exact in bfloat16

    def take(dtype):
        x = torch.full((3, 2), 1.25, dtype=dtype)
        denoise = lambda x, t: answer.expand_as(x).to(x.dtype)  # noqa: E731
        return samplers.last(walk(denoise, FLOW, x, ts, generator=seeded(4))).x

    half, single = take(torch.bfloat16), take(torch.float32)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, rtol=2**-8, atol=1e-6)


@EVERY_WALK
def test_on_each_device(walk, device):
    """x stays where it is, coefficients and times on the CPU; a CPU generator gives the same samples everywhere."""
    ts = COSINE.time_grid(8).to(device)
    x = samplers.start(COSINE, (16, 2), ts, generator=seeded(1), device=device)
    assert x.device.type == device.type
    exact = mixture(COSINE)
    seen = []

    def denoise(x, t):
        seen.append((x.device.type, t.device.type))
        return exact(x, t)

    out = samplers.last(walk(denoise, COSINE, x, ts, generator=seeded(2)))
    assert out.x.device.type == out.x0_hat.device.type == device.type and out.t.device.type == "cpu"
    assert set(seen) == {(device.type, "cpu")}
    here = samplers.last(walk(exact, COSINE, x.cpu(), ts.cpu(), generator=seeded(2)))
    torch.testing.assert_close(out.x.cpu(), here.x, rtol=1e-4, atol=1e-4)


def test_network_denoiser_in_a_sampler(device):
    """`from_network` in the loop: the network sees (B,) float32 times on its device and x in its dtype."""
    seen = []

    def net(x, t, cond):
        seen.append((t.shape, t.dtype, t.device.type, x.dtype, cond))
        return torch.zeros_like(x)

    ts = FLOW.time_grid(3)
    x = samplers.start(FLOW, (4, 2), ts, device=device)
    denoise = denoisers.from_network(net, FLOW, predictions.VELOCITY)
    out = samplers.last(samplers.ddim(denoise, FLOW, x, ts)).x
    assert seen == [(torch.Size([4]), torch.float32, device.type, torch.float32, None)] * 3
    torch.testing.assert_close(out, x)  # no velocity, no motion


# --- start and last ---


@EVERY_SCHEDULE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_start_is_sigma_times_noise(schedule, dtype, device):
    ts = schedule.time_grid(5, t_max=0.8)
    x = samplers.start(schedule, (3, 2, 4, 4), ts, generator=seeded(1), device=device, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    noise = torch.randn(3, 2, 4, 4, generator=seeded(1), dtype=wide).to(device, dtype)
    assert x.device.type == device.type and x.dtype == dtype
    assert torch.equal(x, float(schedule.sigma(0.8)) * noise)


def test_start_on_the_generators_device(device):
    for generator in generators(device)[2:]:
        assert samplers.start(FLOW, (2, 2), FLOW.time_grid(3), generator=generator).device.type == device.type


@pytest.mark.parametrize("shape", [(), (0, 2), (3, -1)], ids=str)
def test_start_refuses_a_shape(shape):
    with pytest.raises(ValueError, match=r"shape is .*it must be \(B, \*D\) with positive sizes"):
        samplers.start(FLOW, shape, FLOW.time_grid(3))


def test_last_holds_no_other():
    held = []

    def steps():
        for i in range(4):
            held.append(i)
            yield i

    assert samplers.last(steps()) == 3 and held == [0, 1, 2, 3]


def test_last_of_nothing():
    with pytest.raises(ValueError, match="no last step: the iterator was empty"):
        samplers.last([])
    used = iter([1])
    samplers.last(used)
    with pytest.raises(ValueError, match="no last step"):
        samplers.last(used)


# --- bad input ---


def grid(*times, dtype=torch.float64):
    return torch.tensor(times, dtype=dtype)


BAD_GRIDS = [
    pytest.param(grid(0.0, 0.5, 1.0), ValueError, r"ts does not fall strictly.*use ts\.flip", id="rises"),
    pytest.param(grid(1.0, 0.5, 0.5, 0.0), ValueError, "ts does not fall strictly", id="stands still"),
    pytest.param(grid(1.0, 0.2, 0.5, 0.0), ValueError, "ts does not fall strictly", id="goes back"),
    pytest.param(grid(1.0), ValueError, r"ts has shape \(1,\).*at least 2 points", id="one point"),
    pytest.param(grid(), ValueError, r"ts has shape \(0,\).*at least 2 points", id="no point"),
    pytest.param(torch.rand(3, 2), ValueError, r"ts has shape \(3, 2\).*1-D", id="two-dimensional"),
    pytest.param(grid(1.5, 0.5, 0.0), ValueError, r"ts ranges from 0 to 1\.5; times lie in \[0, 1\]", id="above 1"),
    pytest.param(grid(1.0, 0.0, -0.1), ValueError, r"ts ranges from -0\.1 to 1; times lie in \[0, 1\]", id="below 0"),
    pytest.param(grid(1.0, math.nan, 0.0), ValueError, r"ts ranges from nan.*times lie in \[0, 1\]", id="nan"),
    pytest.param(
        grid(999, 500, 0, dtype=torch.int64), TypeError, r"ts has dtype torch.int64.*ts = k / T", id="integers"
    ),
    pytest.param(grid(1.0, 0.0, dtype=torch.float16), TypeError, "ts has dtype torch.float16", id="half"),
    pytest.param([1.0, 0.0], TypeError, r"ts is a list.*schedule\.time_grid\(20\)", id="list"),
]


@EVERY_WALK
@pytest.mark.parametrize(("ts", "error", "message"), BAD_GRIDS)
def test_bad_grid(walk, ts, error, message):
    with pytest.raises(error, match=message):
        walk(Recorder(), FLOW, torch.zeros(2, 3), ts)


@pytest.mark.parametrize(("ts", "error", "message"), BAD_GRIDS)
def test_bad_grid_at_the_start(ts, error, message):
    with pytest.raises(error, match=message):
        samplers.start(FLOW, (2, 3), ts)


BAD_X = [
    pytest.param(
        torch.zeros(2, 3, dtype=torch.int64), TypeError, r"x has dtype torch.int64.*use x\.float\(\)", id="int"
    ),
    pytest.param(torch.tensor([[0.0, math.nan]]), ValueError, r"x holds NaN or infinity.*sigma\(ts\[0\]\)", id="nan"),
    pytest.param(torch.tensor([[0.0, math.inf]]), ValueError, "x holds NaN or infinity", id="infinity"),
    pytest.param(torch.zeros(3), ValueError, r"x has shape \(3,\).*at least 2 dimension.*unsqueeze", id="no batch"),
    pytest.param(np.zeros((2, 3)), TypeError, r"x is a ndarray.*torch\.as_tensor\(x\)", id="numpy"),
]


@EVERY_WALK
@pytest.mark.parametrize(("x", "error", "message"), BAD_X)
def test_bad_x(walk, x, error, message):
    with pytest.raises(error, match=message):
        walk(Recorder(), FLOW, x, FLOW.time_grid(3))


BAD_ANSWERS = [
    pytest.param(
        lambda x, t: x[:1], ValueError, r"denoiser's answer has shape \(1, 3\) but x has \(2, 3\)", id="one sample"
    ),
    pytest.param(lambda x, t: x[:, :1], ValueError, r"denoiser's answer has shape \(2, 1\)", id="one column"),
    pytest.param(lambda x, t: x.mean(), ValueError, r"denoiser's answer has shape \(\)", id="scalar"),
    pytest.param(
        lambda x, t: x.double(), TypeError, r"answered in torch.float64 to x in torch.float32", id="other dtype"
    ),
    pytest.param(lambda x, t: x.bfloat16(), TypeError, r"answered in torch.bfloat16", id="narrower dtype"),
    pytest.param(lambda x, t: x / 0, ValueError, r"denoiser's answer at t = 0\.\d+ holds NaN.*division by 0", id="nan"),
    pytest.param(lambda x, t: x + math.inf, ValueError, "denoiser's answer at t = .* holds NaN or inf", id="infinity"),
]


@EVERY_WALK
@pytest.mark.parametrize(("denoise", "error", "message"), BAD_ANSWERS)
def test_bad_denoiser(walk, denoise, error, message):
    steps = walk(denoise, FLOW, torch.zeros(2, 3), FLOW.time_grid(3))
    with pytest.raises(error, match=message):
        next(steps)


def test_nan_late_in_the_walk_on_each_device(device):
    """On an accelerator values are looked at once, at the end; NaN never comes out."""
    ts = FLOW.time_grid(4)
    calls = iter([1.0, 1.0, math.nan, 1.0])
    with pytest.raises(ValueError, match="holds NaN"):
        samplers.last(samplers.ddim(lambda x, t: x * next(calls), FLOW, torch.ones(2, 3, device=device), ts))


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan, math.inf])
def test_bad_eta(eta):
    with pytest.raises(ValueError, match=rf"eta is {eta}; it must lie in \[0, 1\]: 0 is deterministic"):
        samplers.ddim(Recorder(), FLOW, torch.zeros(2, 3), FLOW.time_grid(3), eta=eta)


@pytest.mark.parametrize("variance", ["lower", "Posterior", None, 1.0])
def test_bad_variance(variance):
    with pytest.raises(ValueError, match=r"variance is .*it must be \"posterior\" or \"upper\""):
        samplers.ddpm(Recorder(), FLOW, torch.zeros(2, 3), FLOW.time_grid(3), variance=variance)


def test_large_but_finite_is_not_refused():
    """The quick look at a sum may overflow; the second look finds nothing wrong."""
    x = torch.full((2, 3), 3e38)
    assert not torch.isfinite(x.sum())
    out = samplers.last(samplers.ddim(lambda x, t: 0 * x, FLOW, x, FLOW.time_grid(3)))
    assert torch.equal(out.x, torch.zeros(2, 3))
