"""The encoder-decoder: a denoising network like the others, and nothing goes past its middle."""

import math

import pytest
import torch
from cases import ENCODER_DECODERS, batch, seeded, shaken

from companion import networks
from companion.networks import EncoderDecoder

EVERY_NET = pytest.mark.parametrize(
    ("settings", "shape", "middle"), ENCODER_DECODERS.values(), ids=ENCODER_DECODERS.keys()
)
CONDITIONAL = [(ENCODER_DECODERS[name][0], ENCODER_DECODERS[name][1]) for name in ("classes", "3 levels")]
EVERY_CONDITIONAL = pytest.mark.parametrize(("settings", "shape"), CONDITIONAL, ids=["classes", "3 levels"])


@EVERY_NET
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("time_dtype", [torch.float32, torch.float64])
def test_shape_and_dtype(settings, shape, middle, dtype, time_dtype):
    net, (x, t) = EncoderDecoder(**settings).to(dtype), batch(shape)
    out, z = net(x.to(dtype), t.to(time_dtype)), net.encode(x.to(dtype), t.to(time_dtype))
    assert out.shape == x.shape and out.dtype == dtype and out.isfinite().all()
    assert z.shape == (4, *middle) and z.dtype == dtype


@EVERY_NET
def test_nothing_goes_past_the_middle(settings, shape, middle):
    """The derivative of the output by the input has no more independent directions than there are numbers in it."""
    net, (x, t) = shaken(EncoderDecoder(**settings)), batch(shape, n=1)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, t), x).reshape(x.numel(), x.numel())
    values = torch.linalg.svdvals(jacobian)
    narrow = min(math.prod(middle), x.numel())
    assert values[narrow - 1] > 1e-7 * values[0]
    assert (values[narrow:] < 1e-12 * values[0]).all()


def test_a_unet_has_such_a_path():
    net, (x, t) = shaken(networks.UNet(1, width=8, multipliers=(1, 2, 3))), batch((1, 8, 4), n=1)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, t), x).reshape(32, 32)
    values = torch.linalg.svdvals(jacobian)
    assert values[-1] > 1e-7 * values[0]


@EVERY_NET
def test_the_answer_follows_from_the_middle(settings, shape, middle):
    """With the middle held fixed, other data change nothing; the time and the class still do."""
    net, (x, t) = shaken(EncoderDecoder(**settings)), batch(shape)
    fixed = torch.randn(4, *middle, generator=seeded(5), dtype=torch.float64)
    hook = net.to_latent.register_forward_hook(lambda *_: fixed)
    assert torch.equal(net(x, t), net(x + 1, t)) and torch.equal(net.encode(x, t), fixed)
    assert not torch.equal(net(x, t), net(x, 1 - t))
    if net.num_classes:
        assert not torch.equal(net(x, t, 0), net(x, t, 1))
    hook.remove()
    assert not torch.equal(net(x, t), net(x + 1, t))


@EVERY_NET
def test_encode_returns_what_the_way_up_starts_from(settings, shape, middle):
    net, (x, t) = shaken(EncoderDecoder(**settings)), batch(shape)
    seen = []
    hook = net.from_latent.register_forward_hook(lambda _, given, out: seen.append(given[0]))
    net(x, t)
    hook.remove()
    assert torch.equal(seen[0], net.encode(x, t))


@EVERY_NET
def test_the_middle_knows_the_time_and_the_data_everywhere(settings, shape, middle):
    net, (x, t) = shaken(EncoderDecoder(**settings)), batch(shape)
    assert (net.encode(x, t) - net.encode(x, 1 - t)).flatten(1).norm(dim=1).min() > 1e-4
    for call in (net, net.encode):
        moved = x.clone().requires_grad_()
        call(moved, t).square().sum().backward()
        assert (moved.grad.abs() > 1e-9).all()


@EVERY_NET
def test_deterministic_and_zero_at_first(settings, shape, middle):
    torch.manual_seed(3)
    net = EncoderDecoder(**settings)
    torch.manual_seed(3)
    twin = EncoderDecoder(**settings)
    x, t = (z.float() for z in batch(shape))
    kept, state = x.clone(), torch.get_rng_state()
    assert torch.equal(net.encode(x, t), twin.encode(x, t)) and net.encode(x, t).abs().max() > 0
    assert (net(x, t) == 0).all()
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), state)


@EVERY_CONDITIONAL
def test_classes(settings, shape):
    net, (x, t) = shaken(EncoderDecoder(**settings)), batch(shape)
    assert net.null_cond == net.num_classes == 3
    assert torch.equal(net(x, t), net(x, t, 3)) and torch.equal(net.encode(x, t), net.encode(x, t, 3))
    outs = [net(x, t, y) for y in range(4)]
    for i in range(4):
        for j in range(i):
            assert ((outs[i] - outs[j]).flatten(1).norm(dim=1) > 1e-4).all()
    mixed = net(x, t, torch.tensor([2, 0, 3, 1]))
    for i, y in enumerate([2, 0, 3, 1]):
        torch.testing.assert_close(mixed[i], outs[y][i])


def test_more_blocks_and_more_width_are_more_parameters():
    def size(**more):
        return sum(p.numel() for p in EncoderDecoder(1, **{"width": 8, **more}).parameters())

    assert size() < size(blocks=2) and size() < size(width=10) and size() < size(multipliers=(1, 2, 2))
    assert size(latent=5) - size(latent=4) == (16 + 1) + 16  # one more channel in the middle: out of 16, into 16
    net = EncoderDecoder(1, width=8, multipliers=(1, 2, 2), blocks=3)
    assert (len(net.down), len(net.up), net.halvings) == (11, 11, 2)


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (4, 12)])
def test_any_size_that_halves(size):
    net = EncoderDecoder(1, width=8, multipliers=(1, 2, 2), latent=4)
    x = torch.zeros(2, 1, *size)
    t = torch.tensor(0.5)
    assert net(x, t).shape == x.shape and net.encode(x, t).shape == (2, 4, size[0] // 4, size[1] // 4)


@pytest.mark.parametrize("call", ["forward", "encode"])
@pytest.mark.parametrize(
    ("x", "t", "cond", "error", "message"),
    [
        ((4, 3, 8, 8), 0.5, None, ValueError, r"x has shape \(4, 3, 8, 8\).*built for \(B, 2, H, W\)"),
        ((2, 8, 8), 0.5, None, ValueError, r"x has shape \(2, 8, 8\)"),
        ((4, 2, 8), 0.5, None, ValueError, r"x has shape \(4, 2, 8\)"),
        ((4, 2, 8, 8, 1), 0.5, None, ValueError, r"x has shape \(4, 2, 8, 8, 1\)"),
        ((4, 2, 9, 8), 0.5, None, ValueError, "x is 9x8; with 1 halvings both sides must be multiples of 2: pad"),
        ((4, 2, 8, 7), 0.5, None, ValueError, "x is 8x7"),
        ((4, 2, 8, 8), 1.5, None, ValueError, r"t ranges from 1\.5"),
        ((4, 2, 8, 8), torch.tensor([1, 2, 3, 4]), None, TypeError, r"t has dtype torch.int64"),
        ((4, 2, 8, 8), torch.zeros(3), None, ValueError, r"t has shape \(3,\) but x has batch 4"),
        ((4, 2, 8, 8), 0.5, 1, ValueError, "takes no class.*num_classes"),
    ],
)
def test_bad_input(call, x, t, cond, error, message):
    with pytest.raises(error, match=message):
        getattr(EncoderDecoder(2, width=8), call)(torch.zeros(x), torch.as_tensor(t), cond)


@pytest.mark.parametrize(("cond", "error"), [(4, ValueError), (-1, ValueError), (torch.zeros(4), TypeError)])
def test_bad_class(cond, error):
    with pytest.raises(error, match="cond"):
        EncoderDecoder(2, width=8, num_classes=3)(torch.zeros(4, 2, 8, 8), torch.tensor(0.5), cond)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"channels": 0}, ValueError, "channels is 0; it must be at least 1"),
        ({"width": 0}, ValueError, "width is 0"),
        ({"width": 8.0}, TypeError, r"width is 8\.0; it must be an int"),
        ({"blocks": 0}, ValueError, "blocks is 0"),
        ({"latent": 0}, ValueError, "latent is 0"),
        ({"latent": 2.5}, TypeError, r"latent is 2\.5"),
        ({"multipliers": ()}, ValueError, "multipliers is empty; give one width for each level"),
        ({"multipliers": (1, 0)}, ValueError, "each multiplier is 0"),
        ({"num_classes": 0}, ValueError, "num_classes is 0"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        EncoderDecoder(**{"channels": 1, **settings})
