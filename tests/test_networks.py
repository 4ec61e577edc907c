"""Networks: shapes, dtypes, what the answer depends on and what it must not depend on."""

import math

import pytest
import torch
from cases import ENCODER_DECODERS, batch, seeded, shaken
from torch import nn
from torch.nn import functional

from companion import networks
from companion.encodings import sinusoidal
from companion.networks.dense import _Block
from companion.networks.unet import _Attention, _Layer, _Up


def unet(**more):
    return networks.UNet(2, **{"width": 16, "multipliers": (1, 2), "attention": (1,), **more})


DENOISERS = {
    "dense": (lambda: networks.DenseDenoiser((2, 4, 4), width=16), (2, 4, 4)),
    "mlp": (lambda: networks.MLP(5, width=16), (5,)),
    "mlp, classes": (lambda: networks.MLP(5, width=16, num_classes=3), (5,)),
    "unet": (lambda: unet(), (2, 4, 8)),
    "unet, classes": (lambda: unet(num_classes=3), (2, 4, 8)),
    "unet, 3 levels": (lambda: unet(multipliers=(1, 2, 3), blocks=2, attention=(0, 2), num_classes=3), (2, 8, 4)),
} | {
    f"encoder-decoder, {name}": (lambda settings=settings: networks.EncoderDecoder(**settings), shape)
    for name, (settings, shape, _) in ENCODER_DECODERS.items()
}
CONDITIONAL = {name: entry for name, entry in DENOISERS.items() if "classes" in name or "levels" in name}
EVERY_NET = pytest.mark.parametrize(("make", "shape"), DENOISERS.values(), ids=DENOISERS.keys())
EVERY_CONDITIONAL = pytest.mark.parametrize(("make", "shape"), CONDITIONAL.values(), ids=CONDITIONAL.keys())


# --- every denoising network ---


@EVERY_NET
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("time_dtype", [torch.float32, torch.float64])
def test_shape_and_dtype(make, shape, dtype, time_dtype):
    net, (x, t) = make().to(dtype), batch(shape)
    out = net(x.to(dtype), t.to(time_dtype))
    assert out.shape == x.shape and out.dtype == dtype and out.isfinite().all()


@EVERY_NET
def test_bfloat16_is_close_to_float64(make, shape):
    """The time is encoded in float32: in bfloat16, 0.999 would be 1."""
    net, (x, t) = shaken(make()), batch(shape)
    t = 1 - t / 100
    wide = net(x, t)
    narrow = net.to(torch.bfloat16)(x.bfloat16(), t)
    assert (narrow.double() - wide).norm() < 0.05 * wide.norm()


@EVERY_NET
def test_on_each_device(make, shape, device):
    net, (x, t) = shaken(make()), batch(shape)
    here = net(x, t)
    there = net.to(device)(x.to(device), t.to(device))
    assert there.device.type == device.type
    torch.testing.assert_close(there.cpu(), here, rtol=1e-8, atol=1e-8)


@EVERY_NET
def test_one_time_for_the_batch(make, shape):
    net, (x, _) = shaken(make()), batch(shape)
    t = torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(net(x, t), net(x, t.expand(len(x))))


@EVERY_NET
def test_the_time_counts(make, shape):
    net, (x, t) = shaken(make()), batch(shape)
    moved = t.clone()
    moved[1] = 1 - moved[1]
    change = (net(x, t) - net(x, moved)).flatten(1).norm(dim=1)
    assert change[1] > 1e-3 and (change[[0, 2, 3]] == 0).all()


@EVERY_NET
def test_the_data_count_everywhere(make, shape):
    """Each input element moves the output: the derivative of its sum is nowhere 0."""
    net, (x, t) = shaken(make()), batch(shape)
    x.requires_grad_()
    net(x, t).square().sum().backward()
    assert (x.grad.abs() > 1e-9).all()


@EVERY_NET
def test_no_sample_sees_another(make, shape):
    net, (x, t) = shaken(make()), batch(shape)
    x.requires_grad_()
    net(x, t)[1].square().sum().backward()
    assert (x.grad[[0, 2, 3]] == 0).all() and (x.grad[1] != 0).any()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(x[order], t[order]), net(x, t)[order])


@EVERY_NET
def test_the_gradient_reaches_every_parameter(make, shape):
    net, (x, t) = shaken(make()), batch(shape)
    cond = None if net.null_cond is None else torch.tensor([0, 1, 2, 3])
    net(x, t, cond).square().mean().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9]
    assert not dead


@EVERY_NET
def test_deterministic(make, shape):
    torch.manual_seed(3)
    net = make()
    torch.manual_seed(3)
    twin = make()
    x, t = (z.float() for z in batch(shape))
    kept, state = x.clone(), torch.get_rng_state()
    assert torch.equal(net(x, t), net(x, t)) and torch.equal(net(x, t), twin(x, t))
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), state)


# --- classes ---


@EVERY_CONDITIONAL
def test_the_class_counts(make, shape):
    net, (x, t) = shaken(make()), batch(shape)
    assert net.null_cond == net.num_classes == 3
    outs = [net(x, t, torch.full((4,), y)) for y in range(4)]
    for i in range(4):
        for j in range(i):
            assert ((outs[i] - outs[j]).flatten(1).norm(dim=1) > 1e-3).all()
    mixed = net(x, t, torch.tensor([2, 0, 3, 1]))
    for i, y in enumerate([2, 0, 3, 1]):
        torch.testing.assert_close(mixed[i], outs[y][i])


@EVERY_CONDITIONAL
def test_ways_to_say_a_class(make, shape):
    net, (x, t) = shaken(make()), batch(shape)
    assert torch.equal(net(x, t), net(x, t, net.null_cond))
    assert torch.equal(net(x, t, None), net(x, t, torch.full((4,), net.null_cond)))
    assert torch.equal(net(x, t, 1), net(x, t, torch.ones(4, dtype=torch.int32)))
    assert torch.equal(net(x, t, torch.tensor(1)), net(x, t, 1))


BAD_CLASSES = [
    pytest.param(torch.tensor([0, 1, 2, 4]), ValueError, "cond ranges from 0 to 4; classes are 0 to 2", id="above"),
    pytest.param(torch.tensor([0, 1, -1, 2]), ValueError, "cond ranges from -1 to 2; classes are 0 to 2", id="below"),
    pytest.param(7, ValueError, "cond ranges from 7 to 7", id="int above"),
    pytest.param(-1, ValueError, "cond ranges from -1 to -1", id="int below"),
    pytest.param(
        torch.tensor([0.0, 1.0, 2.0, 0.0]), TypeError, r"cond has dtype torch.float32.*cond\.long", id="float"
    ),
    pytest.param(torch.ones(4, dtype=torch.bool), TypeError, "cond has dtype torch.bool", id="bool"),
    pytest.param(torch.tensor([0, 1]), ValueError, r"cond has shape \(2,\) but the batch is 4", id="other batch"),
    pytest.param(torch.zeros(4, 1, dtype=torch.int64), ValueError, r"cond has shape \(4, 1\)", id="one-hot"),
    pytest.param("two", TypeError, r"cond is a str; it must be an int, a \(B,\) tensor", id="str"),
    pytest.param(True, TypeError, "cond is a bool", id="True"),
    pytest.param(1.0, TypeError, "cond is a float", id="a float"),
]


@EVERY_CONDITIONAL
@pytest.mark.parametrize(("cond", "error", "message"), BAD_CLASSES)
def test_bad_class(make, shape, cond, error, message):
    with pytest.raises(error, match=message):
        make().double()(*batch(shape), cond)


@pytest.mark.parametrize("name", ["dense", "mlp", "unet"])
def test_a_class_for_an_unconditional_network(name):
    make, shape = DENOISERS[name]
    net = make().double()
    assert net.null_cond is None
    with pytest.raises(ValueError, match=r"takes no c.*num_classes"):
        net(*batch(shape), torch.zeros(4, dtype=torch.int64))


# --- bad times and shapes ---


BAD_TIMES = [
    pytest.param(torch.tensor([0.1, 0.2, 0.3]), ValueError, r"t has shape \(3,\) but x has batch 4", id="other batch"),
    pytest.param(torch.full((4, 1), 0.5), ValueError, r"t has shape \(4, 1\)", id="column"),
    pytest.param(torch.tensor([1, 2, 3, 4]), TypeError, r"t has dtype torch.int64.*t = k / T", id="integers"),
    pytest.param(torch.tensor(1.5), ValueError, r"t ranges from 1\.5 to 1\.5; times lie in \[0, 1\]", id="above 1"),
    pytest.param(torch.tensor(-0.5), ValueError, r"t ranges from -0\.5", id="below 0"),
    pytest.param(torch.tensor(0.5).bfloat16(), TypeError, "t has dtype torch.bfloat16.*0.999 in bfloat16", id="half"),
]


@EVERY_NET
@pytest.mark.parametrize(("t", "error", "message"), BAD_TIMES)
def test_bad_time(make, shape, t, error, message):
    with pytest.raises(error, match=message):
        make()(torch.zeros(4, *shape), t)


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (networks.MLP(5), (4, 3), r"x has shape \(4, 3\) but the network was built for \(B, 5\)"),
        (networks.MLP(5), (5,), r"x has shape \(5,\)"),
        (networks.MLP(5), (4, 5, 5), r"x has shape \(4, 5, 5\)"),
        (networks.DenseDenoiser((1, 4, 4)), (4, 1, 4, 2), r"x has shape \(4, 1, 4, 2\).*\(B, \*\(1, 4, 4\)\)"),
        (networks.DenseDenoiser((1, 4, 4)), (4, 16), r"x has shape \(4, 16\)"),
        (unet(), (4, 3, 8, 8), r"x has shape \(4, 3, 8, 8\) but the network was built for \(B, 2, H, W\)"),
        (unet(), (2, 8, 8), r"x has shape \(2, 8, 8\)"),
        (unet(), (4, 2, 9, 8), "x is 9x8; with 1 halvings both sides must be multiples of 2: pad or resize"),
        (unet(), (4, 2, 8, 7), "x is 8x7"),
        (unet(multipliers=(1, 1, 1)), (4, 2, 8, 6), "x is 8x6; with 2 halvings both sides must be multiples of 4"),
        (networks.Classifier(1, 8, 10), (4, 1, 8, 4), r"x has shape \(4, 1, 8, 4\) but the classifier was built for"),
    ],
)
def test_bad_shape(net, shape, message):
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(shape), *([] if isinstance(net, networks.Classifier) else [torch.tensor(0.5)]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: networks.MLP(0), ValueError, "dim is 0; it must be at least 1"),
        (lambda: networks.MLP(2.0), TypeError, r"dim is 2\.0; it must be an int"),
        (lambda: networks.MLP(2, width=0), ValueError, "width is 0"),
        (lambda: networks.MLP(2, width=33), ValueError, "width is 33; it must be even"),
        (lambda: networks.MLP(2, depth=0), ValueError, "depth is 0"),
        (lambda: networks.MLP(2, num_classes=0), ValueError, "num_classes is 0"),
        (lambda: networks.DenseDenoiser((2, 0)), ValueError, "each size in shape is 0"),
        (lambda: networks.DenseDenoiser((2,), width=0), ValueError, "width is 0"),
        (lambda: networks.DenseDenoiser((2,), step_dim=3), ValueError, "step_dim is 3; it must be even"),
        (lambda: networks.DenseDenoiser((2,), step_dim=-2), ValueError, "step_dim is -2; it must be at least 0"),
        (lambda: unet(attention=(2,)), ValueError, r"attention is \(2,\) with 2 level\(s\); name levels from 0"),
        (lambda: unet(attention=(-1,)), ValueError, r"attention is \(-1,\)"),
        (lambda: unet(multipliers=(), attention=()), ValueError, r"with 0 level\(s\)"),
        (lambda: unet(multipliers=(1, 0)), ValueError, "each multiplier is 0"),
        (lambda: unet(multipliers=(1, 1.5)), TypeError, r"each multiplier is 1\.5"),
        (lambda: unet(width=0), ValueError, "width is 0; it must be at least 1"),
        (lambda: unet(blocks=0), ValueError, "blocks is 0"),
        (lambda: unet(num_classes=-1), ValueError, "num_classes is -1"),
        (lambda: networks.UNet(0), ValueError, "channels is 0"),
        (lambda: networks.Classifier(1, 10, 3), ValueError, "size is 10; it must be a multiple of 4"),
        (lambda: networks.Classifier(1, 8, 1), ValueError, "num_classes is 1; it must be at least 2"),
        (lambda: networks.Classifier(0, 8, 2), ValueError, "channels is 0"),
    ],
)
def test_bad_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- the dense networks, written out ---


@pytest.mark.parametrize("step_dim", [0, 32])
def test_dense_denoiser_written_out(step_dim):
    net, (x, t) = shaken(networks.DenseDenoiser((2, 4, 4), width=16, step_dim=step_dim)), batch((2, 4, 4))
    joined = torch.cat([x.flatten(1), sinusoidal(t, step_dim)], dim=1) if step_dim else x.flatten(1)
    hidden = (joined @ net.hidden.weight.T + net.hidden.bias).clamp(min=0)
    wanted = (hidden @ net.out.weight.T + net.out.bias).reshape(x.shape)
    torch.testing.assert_close(net(x, t), wanted)
    assert net.hidden.in_features == 32 + step_dim


def test_dense_denoiser_without_a_step_encoding_cannot_tell_the_time():
    net, (x, t) = shaken(networks.DenseDenoiser((3,), step_dim=0)), batch((3,))
    assert torch.equal(net(x, t), net(x, 1 - t))


def test_block_written_out():
    block, generator = shaken(_Block(6)), seeded(1)
    h, code = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    normed = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    normed = normed * block.norm.weight + block.norm.bias
    inner = block.first(normed * torch.sigmoid(normed)) + block.shift(code)
    torch.testing.assert_close(block(h, code), h + block.second(inner * torch.sigmoid(inner)))


def test_mlp_written_out():
    net, (x, t) = shaken(networks.MLP(5, width=16, depth=2, num_classes=3)), batch((5,))
    cond = torch.tensor([0, 1, 2, 3])
    code = net.conditioning.of_time(sinusoidal(t, 16)) + net.conditioning.of_class.weight[cond]
    h = net.inward(x)
    assert len(net.blocks) == 2
    for block in net.blocks:
        h = block(h, code)
    torch.testing.assert_close(net(x, t, cond), net.out(h))


# --- the U-Net ---


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (16, 8)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("multipliers", "blocks"), [((1,), 1), ((1, 2), 2), ((2, 1, 3), 1)])
def test_unet_takes_every_size_that_halves(size, channels, multipliers, blocks):
    net = networks.UNet(channels, width=4, multipliers=multipliers, blocks=blocks)
    x = torch.randn(2, channels, *size, generator=seeded())
    assert net(x, torch.tensor(0.5)).shape == x.shape


@pytest.mark.parametrize("width", [3, 5, 6, 28, 50])
def test_unet_takes_every_width(width):
    """Norms and attention find groups and heads that divide it: 4 * 28 channels have no 3 heads."""
    net = networks.UNet(1, width=width, multipliers=(1, 4), attention=(0, 1))
    assert net(torch.randn(1, 1, 4, 4), torch.tensor(0.5)).isfinite().all()


def test_unet_begins_at_zero():
    """Untrained, it answers 0, whatever the image, the time and the class."""
    net = networks.UNet(2, width=8, attention=(0, 1), num_classes=3)
    assert (net(torch.randn(3, 2, 8, 8), torch.rand(3), torch.tensor([0, 1, 3])) == 0).all()


def test_unet_blocks_begin_as_identities():
    layer = _Layer(8, 8, 16, 0.0, True)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(layer(x, torch.randn(2, 16)), x)
    assert not torch.equal(shaken(layer)(x.double(), torch.randn(2, 16).double()), x)


@pytest.mark.parametrize("attention", [False, True])
def test_unet_layer_written_out(attention):
    layer = shaken(_Layer(4, 6, 10, 0.0, attention))
    generator = seeded(2)
    x = torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64)
    code = torch.randn(3, 10, generator=generator, dtype=torch.float64)

    def normed(norm, h):
        groups = h.reshape(3, norm.num_groups, -1)
        groups = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return groups.reshape(h.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]

    h = normed(layer.norm1, x)
    h = layer.conv1(h * torch.sigmoid(h))
    scale, shift = (z[:, :, None, None] for z in layer.scale_shift(code).split(6, dim=1))
    h = normed(layer.norm2, h) * (1 + scale) + shift
    h = layer.conv2(h * torch.sigmoid(h))
    h = layer.skip(x) + h
    torch.testing.assert_close(layer(x, code), layer.attention(h) if attention else h)


def test_unet_written_out():
    """Two levels: down, middle, up, and each skip joined where the way up has its size."""
    net, (x, t) = shaken(unet(num_classes=3)), batch((2, 4, 8))
    cond = torch.tensor([0, 1, 2, 3])
    code = net.conditioning.of_time(sinusoidal(t, 64)) + net.conditioning.of_class.weight[cond]
    code = code * torch.sigmoid(code)
    assert (len(net.down), len(net.middle), len(net.up)) == (3, 2, 5)

    def join(layer, h, skip):
        return layer(torch.cat([h, skip], dim=1), code)

    fine = net.inward(x)
    finer = net.down[0](fine, code)
    half = net.down[1].conv(finer)
    coarse = net.down[2](half, code)
    h = net.middle[1](net.middle[0](coarse, code), code)
    h = join(net.up[1], join(net.up[0], h, coarse), half)
    h = net.up[2].conv(h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    h = join(net.up[4], join(net.up[3], h, finer), fine)
    torch.testing.assert_close(net(x, t, cond), net.out(h))
    assert half.shape[2:] == (2, 4)
    assert {module.num_groups for module in net.modules() if isinstance(module, nn.GroupNorm)} == {8}


@pytest.mark.parametrize(("channels", "heads"), [(8, 1), (64, 2), (96, 3), (100, 2)])
def test_attention_written_out(channels, heads):
    """Each head by itself: softmax(q k' / sqrt(d)) v over the pixels."""
    attention = shaken(_Attention(channels))
    x = torch.randn(2, channels, 3, 2, generator=seeded(1), dtype=torch.float64)
    assert attention.heads == heads
    each = channels // heads
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).split(channels, dim=1)
    mixed = torch.zeros_like(v)
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        share = torch.softmax(torch.einsum("bcp,bcq->bpq", q[:, part], k[:, part]) / math.sqrt(each), dim=-1)
        mixed[:, part] = torch.einsum("bpq,bcq->bcp", share, v[:, part])
    torch.testing.assert_close(attention(x), x + attention.out(mixed.reshape(x.shape)))


@pytest.mark.parametrize("levels", [(), (0,), (1,), (2,), (0, 2)], ids=str)
def test_attention_stands_where_it_is_asked(levels):
    """Two blocks down and three up at each level named, and one in the middle."""
    sizes = []
    net = unet(multipliers=(1, 2, 2), blocks=2, attention=levels)
    for module in net.modules():
        if isinstance(module, _Attention):
            module.register_forward_hook(lambda module, given, out: sizes.append(tuple(out.shape[2:])))
    net(torch.zeros(1, 2, 8, 16), torch.tensor(0.5))
    wanted = [(8 >> level, 16 >> level) for level in levels for _ in range(5)] + [(2, 4)] * bool(levels)
    assert sorted(sizes) == sorted(wanted)


class Nothing(nn.Module):
    """A norm that does nothing, so that pixels meet only in convolutions and attention."""

    def forward(self, x):
        return x


@pytest.mark.parametrize("attention", [(), (0,)], ids=str)
def test_receptive_field(attention):
    """Without norms, one level sees as far as its convolutions; with attention, everywhere."""
    net = shaken(networks.UNet(1, width=4, multipliers=(1,), attention=attention))
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, Nothing())
    x = torch.randn(1, 1, 1, 40, generator=seeded(), dtype=torch.float64, requires_grad=True)
    net(x, torch.tensor(0.5))[0, 0, 0, 0].backward()
    reach = int(x.grad[0, 0, 0].nonzero().max())
    assert reach == (39 if attention else 12)  # in, out, and 2 convolutions in each of 1 + 2 + 2 blocks


def test_depth_widens_the_receptive_field():
    """A level down and up, without norms: pixels meet that one level keeps apart."""
    net = shaken(networks.UNet(1, width=4, multipliers=(1, 1)))
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, Nothing())
    x = torch.randn(1, 1, 2, 64, generator=seeded(), dtype=torch.float64, requires_grad=True)
    net(x, torch.tensor(0.5))[0, 0, 0, 0].backward()
    assert int(x.grad[0, 0].nonzero()[:, 1].max()) > 24


def test_the_skips_carry_every_pixel():
    """With the way through the bottleneck cut, each pixel still reaches the output."""
    net, (x, t) = shaken(unet()), batch((2, 4, 8))
    through = net(x, t)
    for module in net.up:
        if isinstance(module, _Up):
            module.register_forward_hook(lambda module, given, out: 0 * out)
    x.requires_grad_()
    out = net(x, t)
    out.square().sum().backward()
    assert (x.grad.abs() > 1e-9).all() and not torch.allclose(out, through)


def test_dropout_only_while_training():
    net = shaken(unet(dropout=0.5))
    x, t = batch((2, 4, 8))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


# --- the classifier ---


@pytest.mark.parametrize(("channels", "size", "classes", "features"), [(1, 8, 10, 32), (3, 12, 2, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_classifier(channels, size, classes, features, dtype):
    net = networks.Classifier(channels, size, classes, width=4, feature_dim=features).to(dtype).eval()
    x = torch.randn(5, channels, size, size, generator=seeded()).to(dtype)
    assert net(x).shape == (5, classes) and net.features(x).shape == (5, features)
    assert net(x).dtype == net.features(x).dtype == dtype
    torch.testing.assert_close(net(x), net.head(functional.silu(net.features(x))))
    torch.testing.assert_close(net(x[1:2]), net(x)[1:2])
