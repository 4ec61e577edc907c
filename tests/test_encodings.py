"""The sinusoidal encoding against its definition, in float64."""

import math

import pytest
import torch

from companion.encodings import sinusoidal

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
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
