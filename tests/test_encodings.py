"""Each encoding against its definition, in float64, and what the definitions promise."""

import copy
import math

import pytest
import torch
from cases import SCHEDULES

from companion import schedules
from companion.encodings import GaussianFourier, LearnedStep, log_snr, none, raw, sinusoidal

EPS32, EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))


def book(t: float, dim: int, scale: float = 1000.0, max_period: float = 10_000.0) -> list[float]:
    half = dim // 2
    angles = [scale * t / max_period ** (i / half) for i in range(half)]
    return [math.cos(a) for a in angles] + [math.sin(a) for a in angles]


@pytest.mark.parametrize("dim", [2, 4, 6, 64])
@pytest.mark.parametrize("options", [{}, {"scale": 10.0}, {"scale": 3.0, "max_period": 50.0}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_encoding_is_its_definition(dim, options, dtype):
    t = torch.tensor([0.0, 1e-3, 0.1, 0.37, 0.5, 0.999, 1.0], dtype=dtype)
    got = sinusoidal(t, dim, **options)
    assert got.shape == (7, dim) and got.dtype == dtype
    want = torch.tensor([book(float(v), dim, **options) for v in t], dtype=torch.float64)
    allowed = 4 * torch.finfo(dtype).eps * (1 + options.get("scale", 1000.0) * t.double())  # of the largest angle
    assert bool(((got.double() - want).abs() <= allowed.unsqueeze(1)).all())


def test_t_is_ddpms_integer_step_over_a_thousand():
    k = torch.arange(1001, dtype=torch.float64)
    i = torch.arange(8, dtype=torch.float64)
    angles = k[:, None] * torch.exp(-math.log(10_000) * i / 8)
    want = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
    torch.testing.assert_close(sinusoidal(k / 1000, 16), want, rtol=0, atol=4 * EPS64 * 1000)


def test_one_time_gives_one_row():
    t = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    rows = sinusoidal(t, 8)
    assert rows.shape == (3, 4, 8)
    assert sinusoidal(t[1, 2], 8).shape == (8,)
    torch.testing.assert_close(sinusoidal(t[1, 2], 8), rows[1, 2], rtol=0, atol=4 * EPS32)
    assert sinusoidal(t[:0, 0], 8).shape == (0, 8)


def test_a_later_time_is_a_rotation():
    t = torch.linspace(0, 0.7, 50, dtype=torch.float64)
    cos, sin = sinusoidal(t, 12).chunk(2, dim=1)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos), rtol=8 * EPS64, atol=0)
    turn_cos, turn_sin = sinusoidal(torch.tensor(0.3, dtype=torch.float64), 12).chunk(2)
    later = torch.cat([cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin], dim=1)
    torch.testing.assert_close(sinusoidal(t + 0.3, 12), later, rtol=0, atol=4 * EPS64 * 1000)


def test_a_thousand_steps_are_told_apart():
    codes = sinusoidal(torch.arange(1001) / 1000, 32)
    apart = torch.cdist(codes, codes) + 10 * torch.eye(1001)
    assert float(apart.min()) > 0.5


def test_encoding_on_each_device(device):
    t = torch.linspace(0, 1, 5, device=device)
    before = t.clone()
    got = sinusoidal(t, 8)
    assert got.device == t.device and got.dtype == t.dtype
    torch.testing.assert_close(got.cpu(), sinusoidal(t.cpu(), 8), rtol=0, atol=4 * EPS32 * 1000)
    assert torch.equal(t, before)


@pytest.mark.parametrize(("dim", "scale", "max_period"), [(2, 1000.0, 10_000.0), (8, 10.0, 100.0), (64, 7.0, 10_000.0)])
def test_the_longest_wavelength_is_the_stated_one(dim, scale, max_period):
    """The last cosine makes exactly one turn over it."""
    wavelength = 2 * math.pi * max_period ** ((dim - 2) / dim)
    t = torch.linspace(0, 1, 9, dtype=torch.float64) * min(1.0, wavelength / scale)
    last = sinusoidal(t, dim, scale=scale, max_period=max_period)[:, dim // 2 - 1]
    torch.testing.assert_close(last, torch.cos(2 * math.pi * t * scale / wavelength), rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_the_dot_product_depends_on_the_difference_alone(dim):
    t, s = torch.rand(2, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frequencies = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    want = torch.cos(1000 * (t - s)[:, None] * frequencies).sum(1)
    got = (sinusoidal(t, dim) * sinusoidal(s, dim)).sum(1)
    torch.testing.assert_close(got, want, rtol=0, atol=8 * EPS64 * 1000 * dim)


# --- log-SNR ---


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("limit", "scale"), [(20.0, 1000.0), (6.0, 50.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_snr_is_its_definition(name, limit, scale, dtype):
    schedule = SCHEDULES[name]
    t = torch.tensor([0.0, 1e-3, 0.05, 0.3, 0.5, 0.9, 0.999, 1.0], dtype=dtype)
    got = log_snr(t, schedule, 8, limit=limit, scale=scale)
    assert got.shape == (8, 8) and got.dtype == dtype
    lambdas = [max(-limit, min(limit, float(v))) for v in schedule.log_snr(t.double())]
    want = torch.tensor([book((limit - v) / (2 * limit), 8, scale) for v in lambdas], dtype=torch.float64)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=64 * torch.finfo(dtype).eps * scale)


def test_log_snr_by_default_tells_ratios_up_to_20_apart():
    t = torch.tensor([0.0, 1e-4, 0.5, 1.0], dtype=torch.float64)
    for name in ("cosine", "flow", "exploding"):
        assert torch.equal(log_snr(t, SCHEDULES[name], 8), log_snr(t, SCHEDULES[name], 8, limit=20.0, scale=1000.0))
    first = log_snr(t, SCHEDULES["flow"], 8)  # at t = 0 the ratio is infinite: the code of 0
    torch.testing.assert_close(first[0], sinusoidal(torch.zeros((), dtype=torch.float64), 8), rtol=0, atol=0)
    torch.testing.assert_close(first[3], sinusoidal(torch.ones((), dtype=torch.float64), 8), rtol=0, atol=0)


@pytest.mark.parametrize("ratio", [-5.0, 0.0, 3.0])
def test_log_snr_is_one_code_for_all_schedules(ratio):
    codes = [log_snr(s.t_of_log_snr(ratio), s, 16) for n, s in SCHEDULES.items()]
    assert all(bool(torch.isfinite(code).all()) for code in codes)
    for code in codes[1:]:
        torch.testing.assert_close(code, codes[0], rtol=0, atol=1e-8)


def test_beyond_the_limit_times_share_one_code():
    t = torch.tensor([0.0, 1e-5, 1e-4], dtype=torch.float64)
    codes = log_snr(t, schedules.FlowMatching(), 8, limit=15.0)
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[1], codes[2])
    assert not torch.equal(*log_snr(t[1:], schedules.FlowMatching(), 8, limit=20.0))


# --- the number, and nothing ---


@pytest.mark.parametrize("shape", [(), (5,), (0,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_raw_is_the_number_and_none_is_zero(shape, dtype):
    t = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert torch.equal(raw(t), t[..., None]) and raw(t).dtype == dtype
    assert torch.equal(none(t), torch.zeros(*shape, 1, dtype=dtype)) and none(t).dtype == dtype


# --- random frequencies ---


@pytest.mark.parametrize(("dim", "scale"), [(2, 1.0), (8, 16.0), (10, 0.5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fourier_is_its_definition(dim, scale, dtype):
    code = GaussianFourier(dim, scale=scale, generator=torch.Generator().manual_seed(3))
    drawn = scale * torch.randn(dim // 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(code.frequencies, drawn)
    t = torch.tensor([0.0, 0.1, 0.77, 1.0], dtype=dtype)
    got = code(t)
    assert got.shape == (4, dim) and got.dtype == dtype
    angles = [[2 * math.pi * float(f) * float(v) for f in drawn] for v in t]
    want = torch.tensor([[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles]).double()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=32 * torch.finfo(torch.float32).eps * scale)
    assert code(t[1]).shape == (dim,) and torch.equal(code(t[1]), got[1])


def test_fourier_answers_in_the_dtype_of_t():
    t = torch.tensor([0.25])
    for module_dtype in (torch.float64, torch.bfloat16):
        assert GaussianFourier(8).to(module_dtype)(t).dtype == torch.float32


def test_fourier_has_nothing_to_train_and_keeps_its_frequencies():
    code = GaussianFourier(8, generator=torch.Generator().manual_seed(0))
    assert not list(code.parameters()) and list(code.state_dict()) == ["frequencies"]
    other = GaussianFourier(8, generator=torch.Generator().manual_seed(1))
    t = torch.rand(5, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(code(t), other(t))
    other.load_state_dict(code.state_dict())
    assert torch.equal(code(t), other(t)) and torch.equal(copy.deepcopy(code)(t), code(t))


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_fourier_kernel_is_the_stated_gaussian(scale):
    """Over many frequencies the mean of cos(2 pi f d), f ~ N(0, scale^2), is exp(-2 (pi scale d)^2)."""
    n = 20_000
    code = GaussianFourier(2 * n, scale=scale, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    similarity = code(t) @ code(t[:1]).T / n
    want = torch.exp(-2 * (math.pi * scale * t) ** 2)
    torch.testing.assert_close(similarity[:, 0], want, rtol=0, atol=4 / n**0.5)


def test_fourier_of_scale_1_by_default_and_from_the_global_generator_without_one():
    torch.manual_seed(5)
    by_default = GaussianFourier(6)
    torch.manual_seed(5)
    assert torch.equal(by_default.frequencies, torch.randn(3))
    state = torch.get_rng_state()
    GaussianFourier(6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())


# --- a table ---


@pytest.mark.parametrize(("num_steps", "dim"), [(1, 3), (10, 4), (1000, 2)])
def test_each_step_has_its_row(num_steps, dim):
    code = LearnedStep(num_steps, dim)
    assert code.rows.weight.shape == (num_steps + 1, dim)
    for dtype in (torch.float32, torch.float64):
        k = torch.arange(num_steps + 1)
        assert torch.equal(code((k / num_steps).to(dtype)), code.rows.weight)
    assert code(torch.tensor(1.0)).shape == (dim,) and code(torch.zeros(0)).shape == (0, dim)


@pytest.mark.parametrize("shift", [-0.49, -0.2, 0.2, 0.49])
def test_a_time_between_steps_takes_the_nearest_row(shift):
    code, k = LearnedStep(10, 3), torch.arange(1, 10)
    assert torch.equal(code((k + shift) / 10), code.rows.weight[k])


def test_a_row_that_is_not_trained_stays():
    code = LearnedStep(10, 3)
    before = code.rows.weight.detach().clone()
    optimizer = torch.optim.Adam(code.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        code(torch.tensor([0.2, 0.7])).square().sum().backward()
        optimizer.step()
    moved = (code.rows.weight != before).any(1)
    assert moved.nonzero().flatten().tolist() == [2, 7]


# --- every encoding ---

EVERY = {
    "sinusoidal": lambda: lambda t: sinusoidal(t, 8),
    "log_snr": lambda: lambda t: log_snr(t, schedules.Cosine(), 8),
    "raw": lambda: raw,
    "none": lambda: none,
    "fourier": lambda: GaussianFourier(8),
    "learned": lambda: LearnedStep(10, 8),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_encoding_on_each_device(name, device):
    code = EVERY[name]()
    t = torch.rand(6, generator=torch.Generator().manual_seed(0))
    want = code(t)
    code = code.to(device) if isinstance(code, torch.nn.Module) else code
    there = t.to(device)
    got = code(there)
    assert got.device == there.device and got.shape[0] == 6 and torch.equal(there.cpu(), t)
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=4 * EPS32 * 1000)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (torch.tensor([1.5]), ValueError, r"t ranges from 1.5 to 1.5; times lie in \[0, 1\]"),
        (torch.tensor([-0.5]), ValueError, "t ranges from -0.5"),
        (torch.tensor([math.nan]), ValueError, "t ranges from nan"),
        (torch.tensor([5]), TypeError, "t has dtype torch.int64.*t = k / T"),
        (torch.tensor([0.999]).bfloat16(), TypeError, "t has dtype torch.bfloat16.*0.999 in bfloat16 is 1"),
    ],
)
def test_every_encoding_refuses_bad_times(name, t, error, message):
    with pytest.raises(error, match=message):
        EVERY[name]()(t)


T = torch.tensor([0.5])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sinusoidal(T, 5), ValueError, "dim is 5; it must be even: half cosines, half sines"),
        (lambda: sinusoidal(T, 0), ValueError, "dim is 0; it must be at least 2"),
        (lambda: sinusoidal(T, 8.0), TypeError, "dim is 8.0; it must be an int"),
        (lambda: sinusoidal(torch.tensor([500]), 8), TypeError, "t has dtype torch.int64.*t = k / T"),
        (lambda: sinusoidal(T.bfloat16(), 8), TypeError, "t has dtype torch.bfloat16.*0.999 in bfloat16 is 1"),
        (lambda: sinusoidal(500 * T, 8), ValueError, "t ranges from 250 to 250.*divide integer timesteps"),
        (lambda: sinusoidal(-T, 8), ValueError, r"t ranges from -0.5 to -0.5; times lie in \[0, 1\]"),
        (lambda: sinusoidal(T * math.nan, 8), ValueError, "t ranges from nan"),
        (lambda: sinusoidal(T, 8, scale=0.0), ValueError, "scale is 0.0 and max_period 10000.0; scale is positive"),
        (lambda: sinusoidal(T, 8, scale=-1.0), ValueError, "scale is -1.0"),
        (lambda: sinusoidal(T, 8, max_period=1.0), ValueError, "max_period 1.0; .*max_period above 1"),
        (lambda: sinusoidal(T, 8, max_period=math.nan), ValueError, "max_period nan"),
        (lambda: log_snr(T, schedules.Cosine(), 5), ValueError, "dim is 5; it must be even"),
        (
            lambda: log_snr(T, schedules.Cosine(), 8, limit=0.0),
            ValueError,
            "limit is 0.0; it must be positive and finite",
        ),
        (lambda: log_snr(T, schedules.Cosine(), 8, limit=math.inf), ValueError, "limit is inf.*infinite at t = 0"),
        (lambda: log_snr(T, schedules.Cosine(), 8, limit=math.nan), ValueError, "limit is nan"),
        (lambda: log_snr(T, schedules.Cosine(), 8, scale=0.0), ValueError, "scale is 0.0"),
        (lambda: GaussianFourier(5), ValueError, "dim is 5; it must be even: half cosines, half sines"),
        (lambda: GaussianFourier(8, scale=0.0), ValueError, "scale is 0.0; it must be positive and finite: turns per"),
        (lambda: GaussianFourier(8, scale=math.inf), ValueError, "scale is inf"),
        (lambda: GaussianFourier(8, scale=math.nan), ValueError, "scale is nan"),
        (lambda: LearnedStep(0, 8), ValueError, "num_steps is 0; it must be at least 1"),
        (lambda: LearnedStep(10.0, 8), TypeError, "num_steps is 10.0; it must be an int"),
        (lambda: LearnedStep(10, 0), ValueError, "dim is 0; it must be at least 1"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("more", [{"scale": 0.5}, {"max_period": 1.5}, {"scale": 1e-3, "max_period": 1.01}], ids=str)
def test_small_settings_are_allowed(more):
    """Only a scale of 0 and a period of 1 are refused, and nothing above them."""
    code = sinusoidal(torch.tensor([0.5], dtype=torch.float64), 6, **more)
    scale, period = more.get("scale", 1000.0), more.get("max_period", 10_000.0)
    angles = [scale * 0.5 * period ** (-i / 3) for i in range(3)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    torch.testing.assert_close(code[0], torch.tensor(expected, dtype=torch.float64))
