"""How the networks take a step encoding: any function of t, and three ways to join its code to the data."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm, linear, silu

from companion import encodings, networks, schedules
from companion.networks._conditioning import Conditioning
from companion.networks.dense import JOININGS, _Block

ENCODINGS = {
    "none": (lambda: encodings.none, 1),
    "raw": (lambda: encodings.raw, 1),
    "sinusoidal": (lambda: partial(encodings.sinusoidal, dim=6), 6),
    "log_snr": (lambda: lambda t: encodings.log_snr(t, schedules.Cosine(), 10), 10),
    "fourier": (lambda: encodings.GaussianFourier(12), 12),
    "learned": (lambda: encodings.LearnedStep(50, 7), 7),
}
NETWORKS = {
    "mlp": (lambda encoding: networks.MLP(5, width=16, encoding=encoding), (5,)),
    "mlp, concatenate": (lambda encoding: networks.MLP(5, width=15, encoding=encoding, joining="concatenate"), (5,)),
    "mlp, scale_shift": (
        lambda encoding: networks.MLP(5, width=16, num_classes=3, encoding=encoding, joining="scale_shift"),
        (5,),
    ),
    "unet": (lambda encoding: networks.UNet(2, width=8, encoding=encoding), (2, 4, 4)),
    "unet, classes": (lambda encoding: networks.UNet(2, width=8, num_classes=3, encoding=encoding), (2, 4, 4)),
}
EVERY_ENCODING = pytest.mark.parametrize("name", ENCODINGS)
EVERY_NETWORK = pytest.mark.parametrize("kind", NETWORKS)


def shaken(net, seed=0):
    """The network with every weight moved, so that nothing is 0 by its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return net


def draw(shape, n=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, generator=generator), torch.rand(n, generator=generator)


# --- the default is what it was ---


def old_mlp(dim, width, depth, num_classes):
    """The parameters of MLP in the order in which they are drawn, written out."""
    yield from ((f"conditioning.of_time.{i}.", nn.Linear(width, width)) for i in (0, 2))
    if num_classes is not None:
        yield "conditioning.of_class.", nn.Embedding(num_classes + 1, width)
    yield "inward.", nn.Linear(dim, width)
    for i in range(depth):
        yield f"blocks.{i}.norm.", nn.LayerNorm(width)
        yield from ((f"blocks.{i}.{name}.", nn.Linear(width, width)) for name in ("first", "shift", "second"))
    yield "out.1.", nn.Linear(width, dim)


@pytest.mark.parametrize(("dim", "width", "depth", "num_classes"), [(2, 16, 3, None), (5, 8, 1, 3)])
def test_a_default_mlp_draws_the_same_weights_in_the_same_order(dim, width, depth, num_classes):
    torch.manual_seed(0)
    want = {
        f"{p}{name}": v
        for p, module in old_mlp(dim, width, depth, num_classes)
        for name, v in module.state_dict().items()
    }
    torch.manual_seed(0)
    got = networks.MLP(dim, width=width, depth=depth, num_classes=num_classes).state_dict()
    assert list(got) == list(want)
    for name, value in got.items():
        assert torch.equal(value, 0 * value if name.endswith("second.weight") else want[name]), name


@EVERY_NETWORK
def test_no_encoding_means_sinusoidal_of_the_conditionings_width(kind):
    make, shape = NETWORKS[kind]
    if kind == "mlp, concatenate":
        make = lambda encoding: networks.MLP(5, width=16, encoding=encoding, joining="concatenate")  # noqa: E731
    width = 32 if kind.startswith("unet") else 16
    torch.manual_seed(0)
    by_default = make(None)
    torch.manual_seed(0)
    given = make(lambda t: encodings.sinusoidal(t, width))
    assert list(by_default.state_dict()) == list(given.state_dict())
    x, t = draw(shape)
    assert torch.equal(shaken(by_default)(x, t), shaken(given)(x, t))


# --- any encoding ---


@EVERY_NETWORK
@EVERY_ENCODING
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_network_takes_every_encoding(kind, name, dtype):
    (make, shape), (encoding, _) = NETWORKS[kind], ENCODINGS[name]
    net = shaken(make(encoding())).to(dtype)
    x, t = draw(shape)
    out = net(x.to(dtype), t)
    assert out.shape == x.shape and out.dtype == dtype and bool(torch.isfinite(out).all())
    assert (not torch.equal(net(x.to(dtype), 1 - t), out)) == (name != "none")
    assert net(x.to(dtype), torch.tensor(0.5, dtype=torch.float64)).dtype == dtype  # as samplers hand it over
    assert net(x[:0].to(dtype), t[:0]).shape == (0, *shape)


@EVERY_ENCODING
@pytest.mark.parametrize("num_classes", [None, 3])
def test_conditioning_written_out(name, num_classes):
    encoding, length = ENCODINGS[name]
    net = Conditioning(9, num_classes, encoding()).double()
    x, t = draw((2,))
    first, _, second = net.of_time
    assert first.in_features == length
    cond = None if num_classes is None else torch.tensor([0, 1, 2, 3])
    got = net(x, t.double(), cond)
    want = second(silu(first(net.encoding(t.double()))))
    torch.testing.assert_close(got, want if cond is None else want + net.of_class.weight[cond], rtol=0, atol=1e-14)


def test_conditioning_takes_two_arguments():
    net = Conditioning(8, None)
    x, t = draw((2,))
    torch.testing.assert_close(net(x, t, None), net.of_time(encodings.sinusoidal(t, 8)), rtol=0, atol=0)


@EVERY_NETWORK
def test_an_encoding_with_weights_trains_and_is_saved_with_the_network(kind):
    make, shape = NETWORKS[kind]
    net = shaken(make(encodings.LearnedStep(10, 4)))
    x, t = draw(shape)
    net(x, torch.full_like(t, 0.3)).square().sum().backward()
    moved = net.conditioning.encoding.rows.weight.grad.abs().sum(1)
    assert moved.nonzero().flatten().tolist() == [3]
    other = make(encodings.LearnedStep(10, 4))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x, t), net(x, t)) and torch.equal(copy.deepcopy(net)(x, t), net(x, t))


def test_random_frequencies_are_saved_with_the_network():
    net, other = (networks.MLP(2, width=8, encoding=encodings.GaussianFourier(6)) for _ in range(2))
    other.load_state_dict(net.state_dict())
    x, t = draw((2,))
    assert torch.equal(other(x, t), net(x, t))


@EVERY_ENCODING
def test_on_each_device(name, device):
    x, t = draw((5,))
    net = shaken(networks.MLP(5, width=16, encoding=ENCODINGS[name][0]()))
    want = net(x, t)
    torch.testing.assert_close(net.to(device)(x.to(device), t.to(device)).cpu(), want, rtol=1e-4, atol=1e-4)


def test_an_odd_width_needs_an_encoding():
    with pytest.raises(ValueError, match="width is 9; it must be even: half of the time's encoding is cosines"):
        networks.MLP(2, width=9)
    assert networks.MLP(2, width=9, encoding=encodings.raw)(*draw((2,))).shape == (4, 2)


@pytest.mark.parametrize("joining", JOININGS)
def test_no_sample_sees_anothers_time(joining):
    net = shaken(networks.MLP(2, width=8, joining=joining)).double()
    x, t = (v.double() for v in draw((2,)))
    later = torch.cat([t[:3], 1 - t[3:]])
    torch.testing.assert_close(net(x, later)[:3], net(x, t)[:3], rtol=0, atol=1e-14)
    assert not torch.allclose(net(x, later)[3], net(x, t)[3])


# --- joining ---


@pytest.mark.parametrize(("width", "depth", "classes"), [(6, 1, None), (8, 3, 4)])
@pytest.mark.parametrize("joining", JOININGS)
def test_joining_written_out(joining, width, depth, classes):
    net = shaken(networks.MLP(3, width=width, depth=depth, num_classes=classes, joining=joining)).double()
    x, t = (v.double() for v in draw((3,)))
    cond = None if classes is None else torch.tensor([0, 1, 2, 3])
    code = net.conditioning(x, t, cond)
    w, b = net.inward.weight, net.inward.bias
    h = x @ w[:, :3].T + b + (code @ w[:, 3:].T if joining == "concatenate" else 0)
    for block in net.blocks:
        u = linear(
            silu(layer_norm(h, (width,), block.norm.weight, block.norm.bias)), block.first.weight, block.first.bias
        )
        if joining == "add":
            u = u + linear(code, block.shift.weight, block.shift.bias)
        if joining == "scale_shift":
            scale, shift = (
                linear(code, *part) for part in zip(block.shift.weight.chunk(2), block.shift.bias.chunk(2), strict=True)
            )
            u = (1 + scale) * u + shift
        h = h + linear(silu(u), block.second.weight, block.second.bias)
    want = linear(silu(h), net.out[1].weight, net.out[1].bias)
    torch.testing.assert_close(net(x, t, cond), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("joining", JOININGS)
def test_parameters_of_each_joining(joining):
    w, dim = 16, 2
    net = networks.MLP(dim, width=w, depth=2, joining=joining)
    linear_of = lambda before, after: before * after + after  # noqa: E731
    code = {"add": linear_of(w, w), "concatenate": 0, "scale_shift": linear_of(w, 2 * w)}[joining]
    inward = linear_of(dim + (w if joining == "concatenate" else 0), w)
    want = 2 * linear_of(w, w) + inward + 2 * (2 * w + 2 * linear_of(w, w) + code) + linear_of(w, dim)
    assert sum(p.numel() for p in net.parameters()) == want


def test_joining_adds_by_default_and_a_block_begins_as_the_identity():
    assert networks.MLP(2, width=8).joining == "add" and _Block(8).joining == "add"
    h, code = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    for joining in JOININGS:
        block = _Block(8, joining)
        torch.testing.assert_close(block(h, code), h + block.second.bias, rtol=0, atol=0)


# --- what is refused ---


def wrong_shape(t):
    return torch.zeros(len(t) if len(t) == 1 else 3, 4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: networks.MLP(2, joining="film"),
            ValueError,
            "joining is 'film'; it must be one of add, concatenate, scale_shift",
        ),
        (lambda: networks.MLP(2, encoding=3), TypeError, "encoding is a int; it must be a function or a module"),
        (lambda: networks.MLP(2, encoding="sinusoidal"), TypeError, "encoding is a str; .*such as encodings.raw"),
        (lambda: networks.UNet(1, encoding=torch.zeros(3)), TypeError, "encoding is a Tensor"),
        (lambda: networks.MLP(2, encoding=lambda t: t), ValueError, r"returned shape \(1,\) for times of shape \(1,\)"),
        (lambda: networks.MLP(2, encoding=lambda t: t[None, None]), ValueError, r"returned shape \(1, 1, 1\)"),
        (
            lambda: networks.MLP(2, encoding=lambda t: torch.zeros(2, 4)),
            ValueError,
            r"shape \(2, 4\).*must be \(1, n\)",
        ),
        (lambda: networks.MLP(2, encoding=lambda t: t[:, None][:, :0]), ValueError, r"returned shape \(1, 0\)"),
        (lambda: networks.MLP(2, encoding=lambda t: 1.0), ValueError, "returned a float for times"),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


@EVERY_NETWORK
def test_an_encoding_that_changes_its_shape_is_refused(kind):
    make, shape = NETWORKS[kind]
    x, t = draw(shape)
    with pytest.raises(
        ValueError, match=r"encoding returned shape \(3, 4\) for 4 times; it must be \(4, 4\), one row for"
    ):
        make(wrong_shape)(x, t)
    with pytest.raises(ValueError, match=r"encoding returned shape \(1, 4\) for 4 times"):  # not broadcast
        make(lambda t: torch.zeros(1, 4))(x, t)
    with pytest.raises(ValueError, match=r"encoding returned shape \(4, 2\) for 4 times"):
        make(lambda t: torch.zeros(len(t), 4 if len(t) == 1 else 2))(x, t)
