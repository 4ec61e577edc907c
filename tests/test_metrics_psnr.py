"""PSNR by hand, and what it must not do in silence."""

import math
import re

import pytest
import torch

from companion.metrics import psnr


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 8, 8), (3, 4, 5)])
@pytest.mark.parametrize("data_range", [1.0, 2.0, 255.0])
def test_a_constant_error(shape, data_range):
    clean = torch.linspace(-0.5, 0.5, 3 * math.prod(shape)).reshape(3, *shape).double()
    for error in (0.01, 0.1, 1.0):
        off = torch.tensor([error, -error, 2 * error], dtype=torch.float64).reshape(3, *[1] * len(shape))
        want = torch.full((3,), 20 * math.log10(data_range / error), dtype=torch.float64)
        want[2] -= 20 * math.log10(2)
        found = psnr(clean + off, clean, data_range=data_range)
        assert found.shape == (3,) and found.dtype == torch.float64
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)


def test_the_mean_is_over_the_elements_of_each_sample():
    x = torch.tensor([[0.2, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, -0.1]])
    torch.testing.assert_close(
        psnr(x, torch.zeros(2, 4)), torch.full((2,), 10 * math.log10(4 / 0.01), dtype=torch.float64)
    )


def test_by_default_the_range_is_that_of_data_in_minus_one_to_one():
    x, y = torch.full((1, 2), 0.3), torch.full((1, 2), -0.4)
    assert torch.equal(psnr(x, y), psnr(x, y, data_range=2.0))
    assert psnr(-torch.ones(1, 2), torch.ones(1, 2)).item() == 0.0


def test_symmetric_and_infinite_where_equal():
    x, y = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert torch.equal(psnr(x, y), psnr(y, x))
    y[2] = x[2]
    assert psnr(x, y).isinf().tolist() == [False, False, True, False] and psnr(x, y)[2] > 0


def test_gaussian_noise():
    """Noise of standard deviation s is 20 log10(2 / s) dB, to the precision of a sample variance."""
    n = 200_000
    noise = torch.randn(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3
    assert (psnr(noise, torch.zeros_like(noise)) - 20 * math.log10(2 / 0.3)).abs().max() < 4.5 * 4.35 * (2 / n) ** 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_errors_are_squared_in_float64(dtype):
    x = torch.full((2, 3), 2.0**-60, dtype=dtype)  # squared, it would vanish in float32's normal range
    torch.testing.assert_close(
        psnr(x, torch.zeros_like(x)), torch.full((2,), 20 * 61 * math.log10(2), dtype=torch.float64)
    )


def test_on_each_device_without_graph(device):
    x = torch.full((2, 3), 0.2, device=device, requires_grad=True)
    found = psnr(x, torch.zeros(2, 3, device=device))
    assert found.device.type == "cpu" and not found.requires_grad


@pytest.mark.parametrize(
    ("x", "y", "more", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), {}, ValueError, "y has shape (3, 2) but x has (2, 3)"),
        (torch.zeros(2, 3), torch.zeros(1, 3), {}, ValueError, "nothing is broadcast"),
        (torch.zeros(3), torch.zeros(3), {}, ValueError, "x has shape (3,); it needs at least 2"),
        (torch.zeros(0, 3), torch.zeros(0, 3), {}, ValueError, "a distance needs samples"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3), {}, TypeError, "x has dtype torch.int64"),
        (torch.zeros(2, 3), torch.full((2, 3), math.nan), {}, ValueError, "y holds NaN"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"data_range": 0.0}, ValueError, "data_range is 0.0; it must be pos"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"data_range": -2.0}, ValueError, "data_range is -2.0"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"data_range": math.inf}, ValueError, "data_range is inf"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"data_range": math.nan}, ValueError, "data_range is nan"),
    ],
)
def test_refuses(x, y, more, error, message):
    with pytest.raises(error, match=re.escape(message)):
        psnr(x, y, **more)
