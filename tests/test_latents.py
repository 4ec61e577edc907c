"""The latent space: shift and scale from data, there and back in batches, and what it refuses."""

import copy
import dataclasses
import re

import pytest
import torch
from cases import SCHEDULES, seeded, shaken

from companion import latents, networks, samplers
from companion.latents import LatentSpace

CASES = {  # settings of the autoencoder, size of the image, shape of the latent
    "grey": ({"channels": 1, "width": 8, "latent": 4}, (32, 32), (4, 8, 8)),
    "colour": ({"channels": 3, "width": 4, "multipliers": (1, 2), "latent": 2}, (8, 12), (2, 4, 6)),
    "one level": ({"channels": 2, "width": 4, "multipliers": (1,), "latent": 3, "blocks": 0}, (5, 3), (3, 5, 3)),
    "deep": ({"channels": 1, "width": 4, "multipliers": (1, 1, 1, 2), "latent": 1}, (16, 8), (1, 2, 1)),
}


def made(name, n=40, seed=0):
    """An autoencoder whose latents are neither centred nor of unit size, and images for it."""
    settings, size, shape = CASES[name]
    torch.manual_seed(seed)
    net = shaken(networks.Autoencoder(**settings), seed)
    with torch.no_grad():
        net.encoder[-1].weight.mul_(3)
        net.encoder[-1].bias.add_(torch.arange(2.0 * shape[0], dtype=torch.float64) - 0.5)
    x = 2 * torch.rand(n, settings["channels"], *size, generator=seeded(seed), dtype=torch.float64) - 1
    return net, x, shape


@pytest.fixture(params=CASES)
def case(request):
    return made(request.param)


def unit_space():
    return LatentSpace(networks.Autoencoder(1, width=8), torch.zeros(4), torch.ones(4), (4, 8, 8))


def test_measured_latents_have_mean_0_and_deviation_1(case):
    net, x, shape = case
    space = LatentSpace.measure(net, x)
    z = space.encode(x)
    assert z.shape == (40, *shape) and space.shape == shape and space.autoencoder is net
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(shape[0], dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.std((0, 2, 3), correction=0), torch.ones(shape[0], dtype=torch.float64), atol=1e-12)


def test_measured_by_hand(case):
    net, x, shape = case
    space = LatentSpace.measure(net, x)
    raw = net.encode(x).detach()
    for c in range(shape[0]):
        assert space.shift[c].item() == pytest.approx(raw[:, c].mean().item(), rel=1e-9)
        assert space.scale[c].item() == pytest.approx(1 / raw[:, c].std(correction=0).item(), rel=1e-9)
        assert torch.allclose(space.encode(x)[:, c], (raw[:, c] - space.shift[c]) * space.scale[c])
    assert space.shift.shape == space.scale.shape == (shape[0],) and space.shift.dtype == torch.float64
    if shape[0] > 1:
        assert space.shift.std() > 0.1 and space.scale.std() > 0.01  # or this says little


def test_there_and_back_is_the_autoencoder(case):
    net, x, _ = case
    space = LatentSpace.measure(net, x[:20])
    assert torch.allclose(space.decode(space.encode(x)), net(x), atol=1e-9)


def test_decoding_undoes_shift_and_scale():
    net, _, _ = made("grey", 3)
    space = LatentSpace(net, torch.tensor([0.0, 1, 2, -3]), torch.tensor([1, 0.5, 2, 4.0]), (4, 8, 8))
    z = torch.randn(3, 4, 8, 8, generator=seeded(), dtype=torch.float64)
    raw = torch.stack([z[:, 0], z[:, 1] / 0.5 + 1, z[:, 2] / 2 + 2, z[:, 3] / 4 - 3], 1)
    assert torch.allclose(space.decode(z), net.decode(raw))
    assert space.decode(100 * z).abs().max() > 1  # not clipped


@pytest.mark.parametrize("batch", [1, 7, 40, 1000])
def test_parts_make_no_difference(case, batch):
    net, x, _ = case
    space = LatentSpace.measure(net, x, batch=batch)
    whole = LatentSpace.measure(net, x)
    assert torch.allclose(space.scale, whole.scale) and torch.allclose(space.shift, whole.shift)
    z = whole.encode(x)
    assert torch.allclose(space.encode(x, batch=batch), z, atol=1e-9)
    assert torch.allclose(space.decode(z, batch=batch), whole.decode(z), atol=1e-9)


def test_parts_are_as_large_as_asked(monkeypatch):
    net, x, _ = made("colour", 10)
    space, seen = LatentSpace.measure(net, x), []
    encode, decode = networks.Autoencoder.encode, networks.Autoencoder.decode
    monkeypatch.setattr(networks.Autoencoder, "encode", lambda self, x: (seen.append(len(x)), encode(self, x))[1])
    monkeypatch.setattr(networks.Autoencoder, "decode", lambda self, z: (seen.append(len(z)), decode(self, z))[1])
    z = space.encode(x, batch=4)
    space.decode(z, batch=8)
    LatentSpace.measure(net, x, batch=6)
    assert seen == [4, 4, 2, 8, 2, 6, 4]


def test_no_gradient_and_nothing_changed(case):
    net, x, _ = case
    weights, given = copy.deepcopy(net.state_dict()), x.clone()
    x.requires_grad_(True)
    space = LatentSpace.measure(net, x)
    z = space.encode(x)
    kept = z.clone()
    assert not z.requires_grad and not space.decode(z).requires_grad and not space.scale.requires_grad
    assert torch.equal(x, given) and torch.equal(z, kept) and torch.is_grad_enabled()
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    state = torch.get_rng_state()
    space.decode(space.encode(x))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    net, x, _ = made("grey", 5)
    net, x = net.to(dtype), x.to(dtype)
    space = LatentSpace.measure(net, x)
    assert space.shift.dtype == space.scale.dtype == space.encode(x).dtype == space.decode(space.encode(x)).dtype
    assert space.encode(x).dtype == dtype
    with pytest.raises(TypeError, match=r"x has dtype torch\.float\d\d but the autoencoder torch\.float\d\d"):
        space.encode(x.to(torch.float32 if dtype == torch.float64 else torch.float64))
    with pytest.raises(TypeError, match=r"z has dtype torch\.bfloat16 but the autoencoder"):
        space.decode(torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_sampler_walks_in_the_space_and_the_end_is_decoded(name):
    """Under any schedule, a denoiser that knows the answer leads to the autoencoder's own picture of it."""
    net, x, _ = made("colour")
    space = LatentSpace.measure(net, x)
    goal, schedule = space.encode(x[:3]), SCHEDULES[name]
    ts = samplers.grid(samplers.ddim, schedule, 4)
    start = samplers.start(schedule, (3, *space.shape), ts, dtype=torch.float64, generator=seeded())
    end = samplers.last(samplers.ddim(lambda x, t: goal, schedule, start, ts)).x
    assert torch.allclose(space.decode(end), net(x[:3]), atol=1e-6)


def test_one_image_of_one_pixel_each_side_counts_every_number():
    """Mean and deviation run over images and places alike."""
    net = networks.Autoencoder(1, width=4, multipliers=(1,), latent=1, blocks=0)
    x = torch.tensor([[[[-1.0, 1.0]]], [[[0.5, 0.0]]]])
    raw = net.encode(x).detach().double()
    space = LatentSpace.measure(net, x)
    assert space.shift.item() == pytest.approx(raw.mean().item(), rel=1e-5)
    assert space.scale.item() == pytest.approx(1 / raw.std(correction=0).item(), rel=1e-5)


def test_where_the_accelerator_is(device):
    net, x, _ = made("grey", 6)
    net = net.float()
    space = LatentSpace.measure(net, x.float())
    away = LatentSpace.measure(copy.deepcopy(net).to(device), x.float())
    z = away.encode(x.float())
    assert z.device.type == "cpu" and torch.allclose(z, space.encode(x.float()), atol=1e-3)
    there = away.encode(x.float().to(device))
    assert there.device.type == away.decode(there).device.type == device.type


# --- refused ---


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        unit_space().scale = torch.ones(4)
    assert unit_space() != unit_space()  # compared by identity


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"scale": torch.tensor([1.0, 0.0, 1.0, 1.0])},
            ValueError,
            r"scale is \[1\.0, 0\.0.*must be positive: one over",
        ),
        ({"scale": torch.full((4,), -1.0)}, ValueError, "must be positive"),
        (
            {"scale": torch.tensor([1.0, float("inf"), 1.0, 1.0])},
            ValueError,
            r"scale is \[1\.0, inf.*finite: measure it",
        ),
        ({"scale": torch.full((4,), float("nan"))}, ValueError, "scale is .*must be finite"),
        ({"shift": torch.full((4,), float("nan"))}, ValueError, "shift is .*must be finite"),
        ({"shift": torch.tensor([0.0, 0.0, -float("inf"), 0.0])}, ValueError, "shift is .*must be finite"),
        (
            {"scale": torch.ones(3)},
            ValueError,
            r"scale has shape \(3,\) but the latents have 4 channel\(s\).*full\(\(4,",
        ),
        ({"shift": torch.zeros(1, 4, 1, 1)}, ValueError, r"shift has shape \(1, 4, 1, 1\) but"),
        ({"scale": torch.tensor(0.18215)}, ValueError, r"at least 1 dimension"),
        ({"scale": 0.18215}, TypeError, r"scale is a float; it must be a torch\.Tensor"),
        ({"shift": torch.zeros(4, dtype=torch.int64)}, TypeError, "shift has dtype torch.int64"),
        ({"shape": (3, 8, 8)}, ValueError, r"shape is \(3, 8, 8\) but the latents are \(4, h, w\)"),
        ({"shape": (4, 8)}, ValueError, r"shape is \(4, 8\) but"),
        ({"shape": (4, 0, 8)}, ValueError, r"shape is \(4, 0, 8\) but"),
    ],
)
def test_a_space_that_is_none(change, error, message):
    sound = {"shift": torch.zeros(4), "scale": torch.ones(4), "shape": (4, 8, 8)}
    with pytest.raises(error, match=message):
        LatentSpace(networks.Autoencoder(1, width=8), **{**sound, **change})


BAD_IMAGES = [
    (torch.zeros(2, 3, 32, 32), ValueError, r"x has shape \(2, 3, 32, 32\) but the network was built for \(B, 1"),
    (torch.zeros(1, 32, 32), ValueError, "at least 4 dimension"),
    (torch.zeros(2, 1, 30, 32), ValueError, r"30x32; with 2 halvings both sides must be multiples of 4"),
    (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), TypeError, "must be floating point"),
    (torch.zeros(0, 1, 32, 32), ValueError, r"x has shape \(0, 1, 32, 32\); give at least one image"),
    (
        torch.full((2, 1, 32, 32), 1.01),
        ValueError,
        r"ranges from 1\.01 to 1\.01; images lie in \[-1, 1\]: use x / 127\.5",
    ),
    (
        torch.full((2, 1, 32, 32), -1.01),
        ValueError,
        r"images lie in \[-1, 1\].*2 \* x - 1 for \[0, 1\], x\.clamp\(-1, 1\)",
    ),
    (torch.full((2, 1, 32, 32), 255.0), ValueError, "from 255 to 255"),
    (torch.full((2, 1, 32, 32), float("nan")), ValueError, "ranges from nan to nan"),
    (torch.full((2, 1, 32, 32), -float("inf")), ValueError, "ranges from -inf"),
]


@pytest.mark.parametrize(("x", "error", "message"), BAD_IMAGES)
def test_images_that_are_none(x, error, message):
    with pytest.raises(error, match=message):
        unit_space().encode(x)
    with pytest.raises(error, match=message):
        LatentSpace.measure(networks.Autoencoder(1, width=8), x)


@pytest.mark.parametrize("size", [(16, 16), (32, 16), (16, 32), (36, 32)])
def test_images_of_another_size(size):
    with pytest.raises(ValueError, match=f"x is {size[0]}x{size[1]} but this space is of images 32x32; pad or resize"):
        unit_space().encode(torch.zeros(2, 1, *size))


def test_rounding_is_let_through():
    z = unit_space().encode(torch.full((1, 1, 32, 32), 1.0005))
    assert z.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 4, 8, 4), (2, 4, 4, 8), (4, 8, 8), (0, 4, 8, 8), (2, 1, 32, 32)])
def test_latents_of_another_shape(shape):
    message = (
        "at least 4 dimension" if len(shape) < 4 else re.escape(f"{shape} but the latents of this space are (N, *(4, 8")
    )
    with pytest.raises(ValueError, match=message):
        unit_space().decode(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite(value):
    z = torch.zeros(2, 4, 8, 8)
    z[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=r"z holds NaN or infinity .* look at the sampler's steps"):
        unit_space().decode(z)


@pytest.mark.parametrize(("batch", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_batch_that_is_none(batch, error):
    net, x = networks.Autoencoder(1, width=8), torch.zeros(2, 1, 32, 32)
    for call in (unit_space().encode, lambda x, batch: LatentSpace.measure(net, x, batch=batch)):
        with pytest.raises(error, match=f"batch is {batch}; it must be"):
            call(x, batch=batch)
    with pytest.raises(error, match=f"batch is {batch}; it must be"):
        unit_space().decode(torch.zeros(2, 4, 8, 8), batch=batch)


def test_a_dead_channel():
    net = networks.Autoencoder(1, width=8)
    with torch.no_grad():
        net.encoder[-1].weight[2] = 0
    with pytest.raises(
        ValueError, match=r"channel\(s\) \[2\] of the latents have standard deviation \[0\.0\] over 6 image"
    ):
        LatentSpace.measure(net, 2 * torch.rand(6, 1, 8, 8) - 1)


def test_a_single_number_has_no_deviation():
    net = networks.Autoencoder(1, width=8)
    with pytest.raises(ValueError, match=r"channel\(s\) \[0, 1, 2, 3\] .*give more images"):
        LatentSpace.measure(net, torch.zeros(1, 1, 4, 4))


def test_the_slack_is_small():
    assert 0 < latents._SLACK <= 1e-3
