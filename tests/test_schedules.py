"""Schedules against published constants and against their textbook formulas in 40 digits."""

import math

import mpmath
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from companion.schedules import (
    Cosine,
    FlowMatching,
    Linear,
    ScaledLinear,
    Schedule,
    Sigmoid,
    Table,
    VarianceExploding,
    angle,
    cosine_betas,
    from_betas,
    karras,
    log_snr,
    uniform,
    zero_terminal_snr,
)

EPS32, EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))
MP = mpmath.mp.clone()
MP.dps = 40


# --- the textbook, naively, in 40 digits: t -> alpha(t)^2, sigma(t)^2 ---


def table_book(betas: list, *, zero_terminal: bool = False):
    """alpha_bar as the running product of 1 - beta, log-linear between the grid points t = k / T."""
    products = [MP.mpf(1)]
    for beta in betas:
        products.append(products[-1] * (1 - MP.mpf(beta)))
    roots = [MP.sqrt(p) for p in products]
    if zero_terminal:  # algorithm 1 of Lin et al. (2024)
        first, last = roots[1], roots[-1]
        roots[1:] = [(root - last) * first / (first - last) for root in roots[1:]]

    def book(t):
        k = min(int(MP.floor(t * len(betas))), len(betas) - 1)
        w = t * len(betas) - k
        alpha = roots[k] ** (1 - w) * roots[k + 1] ** w
        if roots[k + 1] == 0:
            alpha = (1 - w) * roots[k]
        return alpha**2, 1 - alpha**2

    return book


def linspace(first, last, n):
    first, last = MP.mpf(first), MP.mpf(last)
    return [first + (last - first) * k / (n - 1) for k in range(n)]


def cosine_book(s=0.008):
    s = MP.mpf(s)

    def f(t):  # eq. 17 of Nichol and Dhariwal (2021)
        return MP.cos((t + s) / (1 + s) * MP.pi / 2) ** 2

    return lambda t: (f(t) / f(MP.mpf(0)), 1 - f(t) / f(MP.mpf(0)))


def cosine_betas_book(n, s=0.008):
    alpha_bar = cosine_book(s)
    return [min(1 - alpha_bar(MP.mpf(k + 1) / n)[0] / alpha_bar(MP.mpf(k) / n)[0], MP.mpf(0.999)) for k in range(n)]


def sigmoid_book(start=-3, end=3, tau=1):
    start, end, tau = MP.mpf(start), MP.mpf(end), MP.mpf(tau)

    def logistic(v):
        return 1 / (1 + MP.exp(-v))

    def book(t):  # gamma(t) of Jabri, Fleet and Chen (2022), appendix
        v_start, v_end = logistic(start / tau), logistic(end / tau)
        alpha_bar = (v_end - logistic((t * (end - start) + start) / tau)) / (v_end - v_start)
        return alpha_bar, 1 - alpha_bar

    return book


SCALED = [root**2 for root in linspace(MP.sqrt(0.00085), MP.sqrt(0.012), 1000)]
CASES: dict[str, tuple[Schedule, object]] = {
    "linear": (Linear(), table_book(linspace(1e-4, 0.02, 1000))),
    "linear_250": (Linear(250), table_book(linspace(1e-4, 0.02, 250))),
    "scaled_linear": (ScaledLinear(), table_book(SCALED)),
    "cosine": (Cosine(), cosine_book()),
    "cosine_s": (Cosine(0.1), cosine_book(0.1)),
    "sigmoid": (Sigmoid(), sigmoid_book()),
    "sigmoid_uneven": (Sigmoid(-2.0, 4.0, 0.7), sigmoid_book(-2, 4, 0.7)),
    "flow": (FlowMatching(), lambda t: ((1 - t) ** 2, t**2)),
    "exploding": (VarianceExploding(), lambda t: (MP.mpf(1), (80 * t**7) ** 2)),
    "exploding_5": (VarianceExploding(20.0, 5.0), lambda t: (MP.mpf(1), (20 * t**5) ** 2)),
    "cosine_betas": (from_betas(cosine_betas()), table_book(cosine_betas_book(1000))),
    "zero_terminal": (zero_terminal_snr(ScaledLinear()), table_book(SCALED, zero_terminal=True)),
    "one_step": (from_betas(torch.tensor([0.5])), table_book([0.5])),
    "three_steps": (from_betas(torch.tensor([0.125, 0.5, 0.25])), table_book([0.125, 0.5, 0.25])),
}
ENDS_IN_NOISE = ("cosine", "cosine_s", "sigmoid", "sigmoid_uneven", "flow", "zero_terminal")  # alpha(1) = 0 exactly
EXPLODING = ("exploding", "exploding_5")
TABLES = [name for name, (schedule, _) in CASES.items() if isinstance(schedule, Table)]
each = pytest.mark.parametrize("name", CASES)
NEAR_0 = [1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3]
INSIDE = [0.0123, 0.1, 0.25, 1 / 3, 0.49951, 0.5, 0.5004, 0.66, 0.7, 0.9, 0.97]
NEAR_1 = [0.999, 1 - 7e-4, 1 - 1e-4, 1 - 1e-5, 1 - 1e-6]


def relative(got: Tensor, want: Tensor) -> Tensor:
    return (got.double() - want).abs() / want.abs()


def rounding(name: str, alpha: Tensor) -> Tensor:
    """Return how far alpha may be off, in units of eps: a table exponentiates log alpha, which is itself rounded."""
    return 4 + 2 * alpha.log().abs() if name in TABLES else torch.full_like(alpha, 4.0)


# --- values ---


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_alpha_and_sigma_match_the_textbook_at_relative_precision(name, dtype):
    schedule, book = CASES[name]
    t = torch.tensor(NEAR_0 + INSIDE + NEAR_1, dtype=dtype)
    if name in EXPLODING and dtype == torch.float32:
        t = t[t > 1e-5]  # below, 80 t^7 is smaller than any normal float32
    answers = [book(MP.mpf(float(v))) for v in t]
    alpha = torch.tensor([float(MP.sqrt(a)) for a, _ in answers], dtype=torch.float64)
    sigma = torch.tensor([float(MP.sqrt(s)) for _, s in answers], dtype=torch.float64)
    eps = torch.finfo(dtype).eps
    # betas of 1e-4 carry their own float64 rounding, and a table adds 1,000 of them
    floor = 1e-12 if name in TABLES and dtype == torch.float64 else 0.0
    assert bool((relative(schedule.alpha(t), alpha) <= rounding(name, alpha) * eps + floor).all())
    assert bool((relative(schedule.sigma(t), sigma) <= 4 * eps + floor).all())


@each
@pytest.mark.parametrize("method", ["alpha", "sigma", "alpha_bar", "noise_to_signal", "snr", "log_snr"])
def test_float32_agrees_with_float64_at_both_ends(name, method):
    schedule, _ = CASES[name]
    t = torch.cat([torch.logspace(-7, -3, 41), torch.linspace(0.001, 0.999, 57), 1 - torch.logspace(-6, -3, 41)])
    if name in EXPLODING:
        t = t[t > (5e-3 if method in ("snr", "log_snr") else 1e-5)]  # t^14 leaves float32's range
    fine, coarse = getattr(schedule, method)(t.double()), getattr(schedule, method)(t)
    assert coarse.dtype == torch.float32 and fine.dtype == torch.float64
    size = fine.abs() + (1 if method == "log_snr" else 0)  # log_snr crosses 0: there its error is that of a ratio
    allowed = 4 * rounding(name, schedule.alpha(t.double())) * EPS32
    assert bool(((coarse.double() - fine).abs() <= allowed * size).all())


@each
def test_derived_quantities_follow_from_alpha_and_sigma(name):
    schedule, _ = CASES[name]
    t = torch.tensor(NEAR_0 + INSIDE + NEAR_1, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    exactly = {"rtol": 8 * EPS64, "atol": 0.0}
    torch.testing.assert_close(schedule.alpha_bar(t), alpha * alpha, **exactly)
    torch.testing.assert_close(schedule.noise_to_signal(t), sigma / alpha, **exactly)
    torch.testing.assert_close(schedule.snr(t), alpha * alpha / (sigma * sigma), **exactly)
    torch.testing.assert_close(schedule.log_snr(t).exp(), alpha**2 / sigma**2, rtol=500 * EPS64, atol=0.0)


@each
def test_variance_is_preserved(name):
    schedule, _ = CASES[name]
    t = torch.linspace(0, 1, 997, dtype=torch.float64)
    total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    if name == "flow":
        torch.testing.assert_close(schedule.alpha(t) + schedule.sigma(t), torch.ones_like(t), rtol=2 * EPS64, atol=0)
    elif name in EXPLODING:
        assert bool((schedule.alpha(t) == 1).all())
    else:
        torch.testing.assert_close(total, torch.ones_like(t), rtol=8 * EPS64, atol=0)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_ends_are_exact(name, dtype):
    schedule, book = CASES[name]
    zero, one = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)
    assert schedule.alpha(zero).item() == 1.0
    assert schedule.sigma(zero).item() == 0.0
    assert schedule.alpha_bar(zero).item() == 1.0
    assert schedule.noise_to_signal(zero).item() == 0.0
    assert schedule.snr(zero).item() == schedule.log_snr(zero).item() == math.inf
    if name in ENDS_IN_NOISE:
        assert schedule.alpha(one).item() == 0.0
        assert schedule.sigma(one).item() == 1.0
        assert schedule.snr(one).item() == 0.0
        assert schedule.log_snr(one).item() == -math.inf
        assert schedule.noise_to_signal(one).item() == math.inf
    elif name in EXPLODING:
        assert schedule.alpha(one).item() == 1.0
        assert schedule.sigma(one).item() == schedule.sigma_max
    else:
        alpha = torch.tensor(float(MP.sqrt(book(MP.mpf(1))[0])), dtype=torch.float64)
        assert alpha > 0
        assert relative(schedule.alpha(one), alpha) <= rounding(name, alpha) * torch.finfo(dtype).eps + 1e-12


# --- published constants ---


def test_linear_alpha_bar_is_the_published_one():
    alpha_bar = Linear().alpha_bar(torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    for got, want, unit in zip(
        alpha_bar.tolist(), (0.52408537, 0.07858724, 0.00335055, 4.035830e-5), (1e-8, 1e-8, 1e-8, 1e-11), strict=True
    ):
        assert abs(got - want) <= unit / 2


def test_cosine_constants_are_the_published_ones():
    betas = cosine_betas()
    assert betas.shape == (1000,) and betas.dtype == torch.float64
    assert abs(betas[0].item() - 4.128422e-5) <= 5e-12
    assert abs(Cosine().alpha_bar(0.5).item() - 0.49384359) <= 5e-9
    assert abs(from_betas(betas).alpha_bar(0.5).item() - 0.49384359) <= 5e-9
    assert (betas == 0.999).nonzero().tolist() == [[999]]  # exactly one is clipped, the last
    assert bool((betas.diff() > 0).all())


@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000])
def test_cosine_betas_match_the_textbook(num_steps):
    want = torch.tensor([float(b) for b in cosine_betas_book(num_steps)], dtype=torch.float64)
    t = torch.arange(num_steps, dtype=torch.float64) / num_steps
    assert bool(((cosine_betas(num_steps) - want).abs() <= 4 * EPS64 / (1 - t)).all())  # 1 - t keeps that many digits


def test_cosine_betas_take_another_offset_and_clip():
    want = torch.tensor([float(min(b, MP.mpf(0.25))) for b in cosine_betas_book(20, 0.05)], dtype=torch.float64)
    torch.testing.assert_close(cosine_betas(20, s=0.05, max_beta=0.25), want, rtol=0, atol=8 * EPS64)


def test_scaled_linear_does_not_end_in_noise():
    assert abs(ScaledLinear().snr(1.0).item() - 0.0047) <= 0.00005


def test_linear_table_of_250_steps_leaves_signal():
    assert abs(Linear(250).alpha_bar(1.0).item() - 0.08) <= 0.005


def test_edm_grid_is_the_published_one():
    want = [80, 17.5278320, 2.51521898, 0.169752756, 0.002, 0]
    units = [0, 1e-7, 1e-8, 1e-9, 0, 0]
    schedule = VarianceExploding()
    last = (0.002 / 80) ** (1 / 7)
    for spacing in ("uniform", "karras"):
        ratios = schedule.noise_to_signal(schedule.time_grid(5, spacing=spacing, t_min=last)).tolist()
        for got, expected, unit in zip(ratios, want, units, strict=True):
            assert abs(got - expected) <= unit / 2 + 8 * EPS64 * expected
    flow = FlowMatching()
    ratios = flow.noise_to_signal(flow.time_grid(5, spacing="karras", t_max=80 / 81, t_min=0.002 / 1.002)).tolist()
    for got, expected, unit in zip(ratios, want, units, strict=True):
        assert abs(got - expected) <= unit / 2 + 400 * EPS64 * expected  # 1 - t keeps 1/81 of its digits


# --- tables of betas ---


@pytest.mark.parametrize("name", TABLES)
def test_between_grid_points_log_alpha_is_linear(name):
    schedule, _ = CASES[name]
    steps = len(schedule.betas)
    k = torch.arange(0, steps - (name == "zero_terminal"), dtype=torch.float64)  # the last interval there: next test
    left, right = (schedule.alpha(v / steps).log() for v in (k, k + 1))
    for w in (0.25, 0.5, 0.8):
        torch.testing.assert_close(
            schedule.alpha((k + w) / steps).log(), (1 - w) * left + w * right, rtol=1e-11, atol=1e-14
        )


def test_last_interval_of_a_zero_terminal_table_is_linear_in_alpha():
    schedule, _ = CASES["zero_terminal"]
    w = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha((999 + w) / 1000), (1 - w) * schedule.alpha(0.999), rtol=1e-11, atol=0)


@pytest.mark.parametrize("steps", [2, 3, 1000])
def test_zero_terminal_snr_shifts_and_scales_alpha(steps):
    before = Linear(steps)
    nodes = before.log_alphas.clone()
    after = zero_terminal_snr(before)
    alpha, new = before.log_alphas.exp(), after.log_alphas.exp()
    first, last = alpha[1].item(), alpha[-1].item()
    torch.testing.assert_close(new[1:], first * (alpha[1:] - last) / (first - last), rtol=4 * EPS64, atol=EPS64)
    torch.testing.assert_close(new[1], alpha[1], rtol=4 * EPS64, atol=0)  # the first step keeps its alpha
    assert new[0] == 1 and new[-1] == 0
    assert after.betas[-1] == 1
    assert after.snr(1.0) == 0 and math.isinf(after.log_snr(1.0))
    assert torch.equal(before.log_alphas, nodes)
    torch.testing.assert_close(zero_terminal_snr(after).log_alphas, after.log_alphas, rtol=8 * EPS64, atol=8 * EPS64)


def test_zero_terminal_snr_changes_the_ratio_it_is_named_after():
    before, after = ScaledLinear(), CASES["zero_terminal"][0]
    t = torch.arange(1, 1000, dtype=torch.float64) / 1000
    assert bool((after.snr(t[1:]) < before.snr(t[1:])).all())
    shift = (before.alpha(t) - before.alpha(1.0)) / after.alpha(t)  # one affine map for every step
    torch.testing.assert_close(shift, shift[:1].expand(999), rtol=1e-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("betas", [[0.5], [0.1, 0.5, 0.3], [1e-4] * 50, [0.999, 1e-6, 0.5]])
def test_betas_survive_the_round_trip(betas, dtype):
    betas = torch.tensor(betas, dtype=dtype)
    before = betas.clone()
    table = from_betas(betas)
    torch.testing.assert_close(table.betas, betas.double(), rtol=0, atol=16 * EPS64)
    assert table.betas.dtype == torch.float64
    assert torch.equal(betas, before)


def test_betas_of_the_named_tables():
    want = torch.tensor([1e-4 + (0.02 - 1e-4) * k / 999 for k in range(1000)], dtype=torch.float64)
    torch.testing.assert_close(Linear().betas, want, rtol=0, atol=16 * EPS64)
    roots = ScaledLinear().betas.sqrt()
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(999), rtol=0, atol=1e-13)
    assert abs(roots[0].item() ** 2 - 0.00085) < 1e-14 and abs(roots[-1].item() ** 2 - 0.012) < 1e-14
    torch.testing.assert_close(from_betas(cosine_betas()).betas, cosine_betas(), rtol=0, atol=64 * EPS64)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine_betas"])
def test_step_k_stands_at_k_over_T(name):
    schedule, _ = CASES[name]
    for dtype in (torch.float32, torch.float64):
        t = torch.arange(1001, dtype=dtype) / 1000  # how a user writes it: k / T rounds, the answer must not jump
        want = torch.cat([torch.ones(1, dtype=torch.float64), (1 - schedule.betas).cumprod(0)])
        allowed = 8 * (4 - want.log()) * torch.finfo(dtype).eps + 1e-12
        allowed[1:] += 2000 * schedule.betas * torch.finfo(dtype).eps / (1 - schedule.betas)  # t's own rounding
        assert bool((relative(schedule.alpha_bar(t), want) <= allowed).all())


def test_named_schedules_are_values():
    assert Linear() == Linear(1000, 1e-4, 0.02) and Linear() != Linear(250)
    assert hash(Cosine()) == hash(Cosine(0.008)) and Cosine() != Cosine(0.01)
    with pytest.raises(AttributeError):
        Cosine().s = 0.1


# --- shape, dtype, device ---


@each
def test_any_shape_dtype_and_device_is_kept(name, device):
    schedule, _ = CASES[name]
    flat = torch.linspace(0, 1, 12, dtype=torch.float64, device=device)
    for dtype in (torch.float32, torch.float64):
        t = flat.to(dtype)
        before = t.clone()
        for method in (schedule.alpha, schedule.sigma, schedule.alpha_bar, schedule.snr, schedule.log_snr):
            want = torch.stack([method(v) for v in t])
            for shape in ((12,), (3, 4), (2, 1, 6)):
                got = method(t.reshape(shape))
                assert got.shape == shape and got.dtype == dtype and got.device == t.device
                torch.testing.assert_close(
                    got.reshape(12), want, rtol=64 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps
                )
            assert method(t[:0]).shape == (0,)
        schedule.sigma(t).add_(1)  # an answer is no view of the question
        schedule.alpha(t).add_(1)
        assert torch.equal(t, before)


@each
def test_a_python_number_is_float64(name):
    schedule, _ = CASES[name]
    got = schedule.alpha(0.3)
    assert got.shape == () and got.dtype == torch.float64
    assert torch.equal(got, schedule.alpha(torch.tensor(0.3, dtype=torch.float64)))
    assert schedule.sigma(1).item() == schedule.sigma(1.0).item()


# --- log signal-to-noise ratio and its inverse ---


@each
def test_log_snr_falls(name):
    schedule, _ = CASES[name]
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    values = schedule.log_snr(t)
    assert bool((values.diff() < 0).all())


@each
def test_t_of_log_snr_is_the_inverse(name):
    schedule, _ = CASES[name]
    t = torch.tensor([1e-6, 1e-3, 0.05, 0.2, 0.4999, 0.5, 0.73, 0.9, 0.99, 0.9995], dtype=torch.float64)
    found = schedule.t_of_log_snr(schedule.log_snr(t))
    assert found.dtype == torch.float64 and found.device.type == "cpu"
    lower, upper = schedule.log_snr(t * (1 - 1e-9)), schedule.log_snr((t * (1 + 1e-9)).clamp(max=1))
    slope = (lower - upper) / (2e-9 * t)
    allowed = 4 * EPS64 * ((1 + schedule.log_snr(t).abs()) / slope + t)
    assert bool(((found - t).abs() <= allowed).all())
    square = schedule.t_of_log_snr(schedule.log_snr(t).reshape(2, 5).float())
    assert square.shape == (2, 5)


@each
def test_t_of_log_snr_at_the_ends(name):
    schedule, _ = CASES[name]
    assert schedule.t_of_log_snr(math.inf).item() == 0.0
    assert schedule.t_of_log_snr(schedule.log_snr(1.0)).item() == 1.0
    if name not in ENDS_IN_NOISE:
        lowest = schedule.log_snr(1.0).item()
        with pytest.raises(ValueError, match=r"this schedule ends at.*take a schedule that ends in more noise"):
            schedule.t_of_log_snr(lowest - 0.01)
    with pytest.raises(ValueError, match="reaches down to nan"):
        schedule.t_of_log_snr(torch.tensor([0.0, math.nan]))


# --- grids ---


def density(half_log_snr):
    """Where the angle grid spends its points by default: around a noise over signal of 0.4."""
    return 1 / math.cosh((half_log_snr - math.log(1 / 0.4)) / 1.5) + 0.02


def test_angle_of_width_1_is_an_angle():
    """Without its small floor it would be equal steps of atan(center * alpha / sigma)."""
    schedule = FlowMatching()
    ts = schedule.time_grid(40, spacing=lambda *given: angle(*given, center=2.0, width=1.0), t_max=0.9, t_min=0.1)
    steps = torch.atan(2.0 * schedule.alpha(ts[:-1]) / schedule.sigma(ts[:-1])).diff()
    assert float(steps.max() / steps.min()) < 1.15
    without = torch.atan(schedule.alpha(ts[:-1]) / schedule.sigma(ts[:-1])).diff()
    assert float(without.max() / without.min()) > 2


GRID_CASES = ["linear", "scaled_linear", "cosine", "sigmoid", "flow", "exploding", "cosine_betas", "zero_terminal"]


@pytest.mark.parametrize("spacing", [None, "uniform", "log_snr", "karras", "angle"])
@pytest.mark.parametrize("name", GRID_CASES)
def test_every_grid_falls_from_noise_to_data(name, spacing):
    schedule, _ = CASES[name]
    for num_steps in (1, 2, 7, 40):
        ts = schedule.time_grid(num_steps, spacing=spacing)
        assert ts.shape == (num_steps + 1,) and ts.dtype == torch.float64 and ts.device.type == "cpu"
        assert bool((ts.diff() < 0).all())
        assert ts[-1] == 0.0 and ts[0] <= 1.0
        if name in ENDS_IN_NOISE:
            assert abs(schedule.noise_to_signal(ts[0]).item() / 80 - 1) <= 1e-11
        else:
            assert ts[0] == 1.0
        if num_steps == 1:
            continue
        if spacing == "uniform":
            even = ts[0] * (1 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps)
            torch.testing.assert_close(ts, even, rtol=0, atol=4 * EPS64)
            continue
        assert abs(schedule.noise_to_signal(ts[-2]).item() / 0.01 - 1) <= 1e-11
        level = schedule.log_snr(ts[:-1])
        if spacing == "angle":  # each step holds as much of 1 / cosh + 0.02 as any other
            low = (level[:-1] / 2).tolist()
            held = [quad(density, a, b)[0] for a, b in zip(low, (level[1:] / 2).tolist(), strict=True)]
            assert max(held) - min(held) < 1e-5
            continue
        if spacing == "karras":
            level = schedule.noise_to_signal(ts[:-1]) ** (1 / 7)
        even = torch.linspace(level[0], level[-1], num_steps, dtype=torch.float64)
        torch.testing.assert_close(level, even, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("spacing", ["uniform", "log_snr", "karras", "angle"])
def test_a_grid_runs_from_t_max_to_t_min(spacing):
    for name in ("linear", "flow", "exploding"):
        ts = CASES[name][0].time_grid(4, spacing=spacing, t_max=0.9, t_min=0.2)
        assert (ts[0].item(), ts[3].item(), ts[4].item()) == (0.9, 0.2, 0.0)
    assert CASES["flow"][0].time_grid(1, spacing=spacing, t_max=0.9, t_min=0.2).tolist() == [0.9, 0.0]


def test_uniform_spacing_with_t_min_is_even_down_to_it():
    ts = FlowMatching().time_grid(4, spacing="uniform", t_max=1.0, t_min=0.25)
    assert ts.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert uniform(FlowMatching(), 3, 1.0, 0.5).tolist() == [1.0, 0.75, 0.5]


def test_default_spacing_is_log_snr():
    assert torch.equal(Cosine().time_grid(6), Cosine().time_grid(6, spacing="log_snr"))
    assert torch.equal(Cosine().time_grid(6), Cosine().time_grid(6, spacing=log_snr))
    assert not torch.equal(Cosine().time_grid(6), Cosine().time_grid(6, spacing=karras))


def test_uniform_grid_may_start_where_alpha_is_zero():
    assert Cosine().time_grid(2, spacing="uniform", t_max=1.0).tolist() == [1.0, 0.5, 0.0]


def test_karras_takes_another_rho():
    schedule = FlowMatching()
    ts = schedule.time_grid(4, spacing=lambda *given: karras(*given, rho=3.0), t_max=0.9, t_min=0.1)
    roots = schedule.noise_to_signal(ts[:-1]) ** (1 / 3)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(3), rtol=1e-12, atol=0)


def test_spacing_may_be_a_function():
    given = []

    def squares(schedule, num_points, t_max, t_min):
        given.append((schedule, num_points, t_max, t_min))
        return torch.linspace(t_max**0.5, t_min**0.5, num_points) ** 2  # float32: the grid is float64 all the same

    schedule = Linear()
    ts = schedule.time_grid(3, spacing=squares, t_min=0.04)
    assert given == [(schedule, 3, 1.0, 0.04)]
    assert ts.dtype == torch.float64
    assert (ts[0].item(), ts[2].item(), ts[3].item()) == (1.0, 0.04, 0.0)
    assert abs(ts[1].item() - 0.36) <= 2 * EPS32


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (lambda s, n, a, b: torch.linspace(a, b, n + 1), r"returned shape \(4,\).*must return \(3,\)"),
        (lambda s, n, a, b: torch.tensor([a, a, b]), "does not fall strictly"),
        (lambda s, n, a, b: torch.tensor([a, math.nan, b]), "ranges from nan"),
        (lambda s, n, a, b: torch.tensor([a, -0.5, b]), "times lie in"),
    ],
)
def test_a_spacing_function_is_checked(points, message):
    with pytest.raises(ValueError, match=message):
        Linear().time_grid(3, spacing=points, t_min=0.1)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps is 0; it must be at least 1"),
        ({"num_steps": -3}, ValueError, "num_steps is -3; it must be at least 1"),
        ({"num_steps": 10.0}, TypeError, "num_steps is 10.0; it must be an int"),
        ({"num_steps": True}, TypeError, "num_steps is True; it must be an int"),
        (
            {"spacing": "quadratic"},
            ValueError,
            "spacing is 'quadratic'.*angle.*karras.*log_snr.*uniform.*or a",
        ),
        ({"t_max": 0.5, "t_min": 0.5}, ValueError, "t_min is 0.5 and t_max is 0.5.*0 < t_min < t_max"),
        ({"t_max": 0.3, "t_min": 0.6}, ValueError, "t_min is 0.6 and t_max is 0.3"),
        ({"t_min": 0.0}, ValueError, "t_min is 0 and.*0 < t_min"),
        ({"t_min": -0.1, "spacing": "uniform"}, ValueError, "t_min is -0.1"),
        ({"t_min": math.nan}, ValueError, "t_min is nan"),
        ({"t_max": 1.5}, ValueError, r"t_max is 1.5; it must lie in \(0, 1\]"),
        ({"t_max": 0.0}, ValueError, r"t_max is 0; it must lie in \(0, 1\]"),
        ({"t_max": math.nan}, ValueError, r"t_max is nan; it must lie in \(0, 1\]"),
        ({"t_max": 1.0}, ValueError, "t_max is 1, where alpha is 0.*leave t_max out, or take spacing"),
        ({"t_max": 1.0, "spacing": "karras"}, ValueError, "t_max is 1, where alpha is 0"),
        ({"t_max": 1.0, "spacing": "angle"}, ValueError, "t_max is 1, where alpha is 0"),
    ],
)
def test_bad_grids_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        Cosine().time_grid(**{"num_steps": 5, **kwargs})


# --- bad input ---


@each
@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (
            torch.tensor([0.0, 1.1]),
            ValueError,
            r"t ranges from 0 to 1.1; times lie in \[0, 1\].*divide integer timesteps",
        ),
        (torch.tensor([-0.1, 0.5]), ValueError, "t ranges from -0.1 to 0.5"),
        (1.0001, ValueError, "t ranges from 1.0001"),
        (torch.tensor([0.5, math.nan]), ValueError, "t ranges from nan to nan"),
        (math.nan, ValueError, "nan"),
        (500, ValueError, "t ranges from 500 to 500"),
        (torch.tensor([10, 500]), TypeError, "dtype torch.int64.*a timestep k of T is t = k / T"),
        (torch.tensor([0.5]).bfloat16(), TypeError, "dtype torch.bfloat16.*0.999 in bfloat16 is 1"),
        (torch.tensor([0.5]).half(), TypeError, "dtype torch.float16; times are float32 or float64"),
        ("0.5", TypeError, "t is a str; it must be a tensor or a float"),
        (True, TypeError, "t is a bool"),
        (None, TypeError, "t is a NoneType"),
    ],
)
def test_bad_times_are_refused(name, t, error, message):
    schedule, _ = CASES[name]
    for method in (schedule.alpha, schedule.sigma):
        with pytest.raises(error, match=message):
            method(t)


@pytest.mark.parametrize(
    ("betas", "error", "message"),
    [
        (torch.tensor([0.0, 0.5]), ValueError, r"betas range from 0 to 0.5; each must lie strictly inside \(0, 1\)"),
        (torch.tensor([0.5, 1.0]), ValueError, "betas range from 0.5 to 1.*see zero_terminal_snr"),
        (torch.tensor([-0.1]), ValueError, "betas range from -0.1"),
        (torch.tensor([0.5, math.nan]), ValueError, "betas range from nan to nan"),
        (torch.tensor([]), ValueError, r"betas has shape \(0,\); it must be \(T,\) with at least one step"),
        (torch.full((2, 3), 0.5), ValueError, r"betas has shape \(2, 3\); it must be \(T,\)"),
        (torch.tensor(0.5), ValueError, r"betas has shape \(\); it needs at least 1 dimension"),
        (torch.tensor([1, 2]), TypeError, "betas has dtype torch.int64; it must be floating point"),
        ([0.1, 0.2], TypeError, "betas is a list; it must be a torch.Tensor"),
    ],
)
def test_bad_betas_are_refused(betas, error, message):
    with pytest.raises(error, match=message):
        from_betas(betas)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Linear(beta_first=0.0), ValueError, r"betas range from 0 to 0.02.*inside \(0, 1\)"),
        (lambda: Linear(beta_last=1.0), ValueError, "betas range from 0.0001 to 1;"),
        (lambda: Linear(0), ValueError, "num_steps is 0; it must be at least 1"),
        (lambda: Linear(10.5), TypeError, "num_steps is 10.5; it must be an int"),
        (lambda: ScaledLinear(beta_first=-0.1), ValueError, "betas run from -0.1 to 0.012; every beta"),
        (lambda: ScaledLinear(beta_last=1.5), ValueError, "betas range from 0.00085 to 1.5"),
        (lambda: ScaledLinear(-1), ValueError, "num_steps is -1"),
        (lambda: Cosine(-0.1), ValueError, "s is -0.1; the offset must be at least 0, and 0.008 is usual"),
        (lambda: Cosine(math.nan), ValueError, "s is nan"),
        (lambda: Sigmoid(tau=0.0), ValueError, "start, end, tau are -3.0, 3.0, 0.0; tau must be positive"),
        (lambda: Sigmoid(3.0, -3.0), ValueError, "are 3.0, -3.0, 1.0; .*end above start"),
        (lambda: VarianceExploding(0.0), ValueError, "are 0.0 and 7.0; both must be positive"),
        (lambda: VarianceExploding(rho=-7.0), ValueError, "are 80.0 and -7.0; both must be positive"),
        (lambda: cosine_betas(0), ValueError, "num_steps is 0"),
        (lambda: zero_terminal_snr(Cosine()), TypeError, "schedule is a Cosine; it must be made of betas"),
        (lambda: zero_terminal_snr(Linear(1)), ValueError, "the table has 1 step; zero terminal SNR needs at least 2"),
    ],
)
def test_bad_schedules_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
