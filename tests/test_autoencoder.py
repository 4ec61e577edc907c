"""The autoencoder: shapes, what its parts mean, its training with and without the KL term, and what it refuses."""

import copy
import math

import pytest
import torch
from cases import seeded, shaken

from companion import checkpoints, data, training
from companion.networks import Autoencoder
from companion.training._autoencoder import kl_divergence

CASES = {  # settings, an image's shape, its latent's shape
    "grey": ({"channels": 1, "width": 8}, (1, 32, 32), (4, 8, 8)),
    "colour": ({"channels": 3, "width": 4, "multipliers": (1, 2), "latent": 2, "blocks": 2}, (3, 8, 12), (2, 4, 6)),
    "one level": ({"channels": 2, "width": 6, "multipliers": (2,), "latent": 3, "blocks": 0}, (2, 5, 3), (3, 5, 3)),
    "blocks by level": (
        {"channels": 1, "width": 4, "multipliers": (1, 2, 1, 3), "latent": 1, "blocks": (0, 1, 2, 0)},
        (1, 16, 8),
        (1, 2, 1),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    settings, image, latent = CASES[request.param]
    torch.manual_seed(0)
    net = shaken(Autoencoder(**settings))
    return net, torch.randn(3, *image, generator=seeded(1), dtype=torch.float64), latent


# --- the network ---


def test_shapes(case):
    net, x, latent = case
    mean, log_variance = net.posterior(x)
    assert mean.shape == log_variance.shape == (3, *latent)
    assert net.decode(mean).shape == net(x).shape == x.shape
    assert net.latent == latent[0] and net.channels == x.shape[1]
    assert net.halvings == int(math.log2(x.shape[2] // latent[1])) and net(x).dtype == torch.float64


def test_encode_is_the_mean_and_forward_is_there_and_back(case):
    net, x, latent = case
    mean, log_variance = net.posterior(x)
    both = net.encoder(x)
    assert torch.equal(both[:, : latent[0]], mean) and torch.allclose(both[:, latent[0] :], log_variance)
    assert torch.equal(net.encode(x), mean) and torch.equal(net(x), net.decode(mean))
    assert not torch.allclose(mean, log_variance)


def test_every_weight_matters(case):
    net, x, _ = case
    (net(x).square().sum() + net.posterior(x)[1].square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_each_image_for_itself(case):
    net, x, _ = case
    assert torch.allclose(net(x[1:2]), net(x)[1:2], atol=1e-9)


@pytest.mark.parametrize("name", ["grey", "colour", "one level"])
def test_of_any_size_that_halves(name):
    settings, image, _ = CASES[name]
    net = Autoencoder(**settings)
    side = 4 * 2**net.halvings
    x = torch.zeros(2, image[0], side, 2 * side)
    assert net.encode(x).shape == (2, net.latent, 4, 8) and net(x).shape == x.shape


def test_what_a_block_computes():
    """Two convolutions, each after a norm and SiLU, added to the input."""
    net = shaken(Autoencoder(1, width=8, multipliers=(1,)))
    block = net.encoder[1]
    x = torch.randn(2, 8, 5, 5, generator=seeded(2), dtype=torch.float64)
    h = block.norm1(x)
    h = block.conv1(h * h.sigmoid())
    h = block.norm2(h)
    assert torch.allclose(block(x), x + block.conv2(h * h.sigmoid()))


@pytest.mark.parametrize(("blocks", "expected"), [(1, 3), (0, 0), (2, 6), ((0, 1, 2), 3)])
def test_number_of_blocks(blocks, expected):
    net = Autoencoder(1, width=4, multipliers=(1, 2, 3), blocks=blocks)
    for part in (net.encoder, net.decoder):
        assert sum(type(layer).__name__ == "_Residual" for layer in part) == expected
    if isinstance(blocks, tuple):
        widths = [layer.conv1.in_channels for layer in net.encoder if type(layer).__name__ == "_Residual"]
        assert widths == [8, 12, 12]
        widths = [layer.conv1.in_channels for layer in net.decoder if type(layer).__name__ == "_Residual"]
        assert widths == [12, 12, 8]


def test_size_of_the_emoji_autoencoder():
    """32x32x3 to 8x8x4 under a million parameters: 3,072 numbers to 256."""
    net = Autoencoder(3, width=32, multipliers=(1, 2, 4), latent=4)
    assert 900_000 < sum(p.numel() for p in net.parameters()) < 1_000_000
    assert net.encode(torch.zeros(1, 3, 32, 32)).numel() == 256


def test_a_latent_looks_at_its_neighbourhood():
    """With the norms away (they see the whole image) a change in one corner leaves the far corner's latent alone."""
    net = shaken(Autoencoder(1, width=8))
    for name, module in list(net.named_modules()):
        if isinstance(module, torch.nn.GroupNorm):
            parent = net.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], torch.nn.Identity())
    x = torch.zeros(1, 1, 96, 96, dtype=torch.float64)
    y = x.clone()
    y[..., :4, :4] = 0.1
    change = (net.encode(y) - net.encode(x)).abs().sum(1)[0]
    assert change[0, 0] > 0 and change[:2].sum() > 0 and change[12:, 12:].max() == 0


def test_log_variance_is_held():
    net = Autoencoder(1, width=4, multipliers=(1,), latent=2)
    with torch.no_grad():
        net.encoder[-1].bias.copy_(torch.tensor([1e3, -1e3, 1e3, -1e3]))
    mean, log_variance = net.posterior(torch.zeros(1, 1, 2, 2))
    assert log_variance[0, 0].unique().item() == 20 and log_variance[0, 1].unique().item() == -30
    assert mean[0, 0].min() > 500 and mean[0, 1].max() < -500  # the mean is not


def test_nothing_is_clipped():
    net = Autoencoder(1, width=8)
    with torch.no_grad():
        net.decoder[-1].bias.fill_(5.0)
    assert net(torch.zeros(1, 1, 8, 8)).mean() > 3


def test_on_each_device(device):
    torch.manual_seed(0)
    net = Autoencoder(1, width=8)
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    assert torch.allclose(copy.deepcopy(net).to(device)(x.to(device)).cpu(), net(x), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"channels": 0}, ValueError, "channels is 0; it must be at least 1"),
        ({"channels": 1.0}, TypeError, "channels is 1.0; it must be an int"),
        ({"width": 0}, ValueError, "width is 0"),
        ({"latent": 0}, ValueError, "latent is 0"),
        ({"latent": True}, TypeError, "latent is True"),
        ({"multipliers": ()}, ValueError, r"multipliers is empty; give one width for each level, such as \(1, 2, 4\)"),
        ({"multipliers": (1, 0)}, ValueError, "each multiplier is 0"),
        ({"multipliers": (1, 1.5)}, TypeError, "each multiplier is 1.5"),
        ({"blocks": -1}, ValueError, "blocks is -1; it must be at least 0"),
        ({"blocks": (1, 1)}, ValueError, r"blocks is \(1, 1\) with 3 level\(s\); give one number for each, or one"),
        ({"blocks": (1, -1, 1)}, ValueError, "blocks is -1"),
        ({"blocks": (1, 0.5, 1)}, TypeError, "blocks is 0.5"),
    ],
)
def test_settings_refused(change, error, message):
    with pytest.raises(error, match=message):
        Autoencoder(**{"channels": 1, "width": 8, **change})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3, 8, 8), ValueError, r"\(2, 3, 8, 8\) but the network was built for \(B, 1, H, W\)"),
        (torch.zeros(2, 1, 1, 8, 8), ValueError, "but the network was built for"),
        (torch.zeros(1, 8, 8), ValueError, "at least 4 dimension"),
        (torch.zeros(2, 1, 8, 10), ValueError, r"x is 8x10; with 2 halvings both sides must be multiples of 4"),
        (torch.zeros(2, 1, 6, 8), ValueError, "x is 6x8"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), TypeError, "must be floating point"),
        ([[0.0]], TypeError, "x is a list"),
    ],
)
def test_images_refused(x, error, message):
    net = Autoencoder(1, width=8)
    for call in (net, net.encode, net.posterior):
        with pytest.raises(error, match=message):
            call(x)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (torch.zeros(2, 3, 8, 8), ValueError, r"z has shape \(2, 3, 8, 8\) but the latents are \(B, 4, h, w\)"),
        (torch.zeros(2, 4, 8, 8, 1), ValueError, "but the latents are"),
        (torch.zeros(4, 8, 8), ValueError, "at least 4 dimension"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.int64), TypeError, "z has dtype torch.int64"),
    ],
)
def test_latents_refused(z, error, message):
    with pytest.raises(error, match=message):
        Autoencoder(1, width=8).decode(z)


# --- the KL divergence ---


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4, 5)])
def test_kl_divergence_against_torch(shape):
    mean, log_variance = torch.randn(2, *shape, generator=seeded())
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0))
    assert torch.allclose(kl_divergence(mean, log_variance), wanted, atol=1e-6)
    assert kl_divergence(mean.bfloat16(), log_variance.bfloat16()).dtype == torch.float32


# --- training ---


def small(seed=0, **settings):
    torch.manual_seed(seed)
    return Autoencoder(**{"channels": 1, "width": 4, "multipliers": (1, 2), "latent": 2, **settings})


def pictures(n=24, seed=5):
    """Discs of random place and size, (n, 1, 8, 8) in [-1, 1]."""
    row, column, radius = torch.rand(3, n, 1, 1, generator=seeded(seed))
    grid = torch.linspace(0, 1, 8)
    inside = (grid[:, None] - row) ** 2 + (grid - column) ** 2 < (0.2 + 0.3 * radius) ** 2
    return 2 * inside[:, None].float() - 1


def source(size=8, seed=3, y=None):
    return data.batches(pictures(), y, size=size, generator=seeded(seed))


def fit(net, batches=None, *, num_steps=3, **options):
    batches = source() if batches is None else batches
    return list(training.fit_autoencoder(net, batches, num_steps=num_steps, progress=False, **options))


@pytest.mark.parametrize("kl_weight", [0.0, 0.01, 3.0])
def test_the_first_loss_by_hand(kl_weight):
    net = small()
    with torch.no_grad():
        net.encoder[-1].bias[2:] = 0.5  # a variance that is not 1
    x, _ = next(source())
    mean, log_variance = net.posterior(x)
    eps = torch.randn(mean.shape, generator=seeded(7))
    z = mean + (0.5 * log_variance).exp() * eps if kl_weight else mean
    wanted = (net.decode(z) - x).square().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    assert kl.mean() > 0.1
    wanted = (wanted + kl_weight * kl.mean()).item()
    step, *_ = training.fit_autoencoder(
        net, source(), num_steps=1, kl_weight=kl_weight, generator=seeded(7), progress=False
    )
    assert step.loss.item() == pytest.approx(wanted, rel=1e-5)


def test_the_first_step_is_adams():
    """By hand: gradient, clipping, one step of Adam at the first learning rate of the warm-up."""
    net, twin = small(), small()
    x, _ = next(source())
    (twin(x) - x).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2 / 4)
    optimizer.step()
    walk = training.fit_autoencoder(net, source(), num_steps=9, lr=1e-2, warmup=4, clip=0.5, progress=False)
    step = next(walk)
    assert step.lr == 1e-2 / 4 and step.index == 1
    pairs = zip(net.parameters(), twin.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("kl_weight", [0.0, 1e-3])
def test_it_learns(kl_weight):
    net = small(width=8)
    steps = fit(net, num_steps=150, lr=1e-2, warmup=10, kl_weight=kl_weight, generator=seeded(), ema_decay=0.9)
    losses = torch.stack([step.loss for step in steps])
    assert [step.index for step in steps] == list(range(1, 151))
    assert losses[-20:].mean() < 0.3 * losses[:5].mean() and not losses.requires_grad
    assert not net.training and net(pictures()).sub(pictures()).square().mean() < 0.3


def test_the_kl_term_pulls_latents_towards_the_normal():
    means, spread = {}, {}
    for weight in (0.0, 1.0):
        net = small(width=8)
        fit(net, num_steps=120, lr=1e-2, warmup=10, kl_weight=weight, generator=seeded(), ema_decay=0.9)
        mean, log_variance = net.posterior(pictures())
        means[weight], spread[weight] = mean.square().mean().item(), log_variance.abs().mean().item()
    assert means[1.0] < 0.2 * means[0.0] and spread[1.0] < 0.3


def test_a_plain_autoencoder_draws_nothing():
    generator, state = seeded(4), torch.get_rng_state()
    fit(small(), generator=generator)
    assert torch.equal(generator.get_state(), seeded(4).get_state())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fit_net = small()
    after = torch.get_rng_state()
    fit(fit_net, kl_weight=0.0)
    assert torch.equal(torch.get_rng_state(), after) and not torch.equal(before, after)
    torch.set_rng_state(state)


def test_the_seed_decides():
    nets = [small() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        fit(net, kl_weight=0.1, generator=seeded(seed))
    one, same, other = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_labels_are_not_looked_at():
    nets = [small(), small()]
    fit(nets[0])
    fit(nets[1], source(y=torch.arange(24)))
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_it_ends_with_the_averaged_weights():
    net = small()
    steps = fit(net, num_steps=5, ema_decay=0.9)
    pairs = zip(net.parameters(), steps[-1].ema.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    plain = small()
    fit(plain, num_steps=5, ema_decay=0.0)
    assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))


def test_in_bfloat16():
    net = small()
    steps = fit(net, precision="bfloat16", kl_weight=0.1, generator=seeded())
    exact = fit(small(), kl_weight=0.1, generator=seeded())
    assert steps[0].loss.dtype == torch.float32 and all(p.dtype == torch.float32 for p in net.parameters())
    assert steps[0].loss.item() == pytest.approx(exact[0].loss.item(), rel=0.03)
    assert steps[0].loss.item() != exact[0].loss.item()


def test_on_each_device_it_trains(device):
    net = small().to(device)
    assert fit(net)[-1].loss.device.type == device.type


@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
@pytest.mark.parametrize("stop", [2, 4])
def test_stopped_and_resumed(stop, kl_weight, tmp_path):
    """To the last bit what the run would have been."""
    options = {"num_steps": 6, "kl_weight": kl_weight, "save_every": 2}
    whole = small()
    losses = [step.loss for step in fit(whole, generator=seeded(7), **{**options, "save_every": None})]
    path = tmp_path / "run.safetensors"
    walk = training.fit_autoencoder(small(), source(), checkpoint=path, generator=seeded(7), progress=False, **options)
    for step in walk:
        if step.index == stop + 1:
            break  # one step after the last save
    again = small(seed=99)
    steps = fit(again, generator=seeded(8), checkpoint=path, resume=True, **options)
    assert [step.index for step in steps] == list(range(stop + 1, 7))
    assert [step.loss for step in steps] == losses[stop:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    loaded = small(seed=5)
    checkpoints.load(path, loaded)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kl_weight": 0.2}, r"a run with kl_weight 0\.1, this run has 0\.2"),
        ({"lr": 1e-4}, "a run with lr"),
        ({"num_steps": 7}, "a run with num_steps"),
        ({"precision": "bfloat16"}, "a run with precision"),
        ({"ema_decay": 0.5}, "a run with ema_decay"),
        ({"clip": 2.0}, "a run with clip"),
        ({"warmup": 5}, "a run with warmup"),
    ],
)
def test_another_run_is_not_resumed(changed, message, tmp_path):
    path = tmp_path / "run.safetensors"
    options = {"kl_weight": 0.1, "checkpoint": path}
    fit(small(), generator=seeded(), **options)
    with pytest.raises(ValueError, match=message):
        fit(small(), generator=seeded(), resume=True, **{**options, **changed})


def test_a_checkpoint_is_not_overwritten(tmp_path):
    path = tmp_path / "run.safetensors"
    fit(small(), checkpoint=path)
    with pytest.raises(FileExistsError, match=r"run\.safetensors exists and would be overwritten"):
        fit(small(), checkpoint=path)
    with pytest.raises(ValueError, match=r"another|architecture|shape"):
        fit(small(width=8), checkpoint=path, resume=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps is 0"),
        ({"num_steps": 2.0}, TypeError, "num_steps is 2.0"),
        ({"warmup": -1}, ValueError, "warmup is -1"),
        ({"kl_weight": -0.1}, ValueError, "kl_weight is -0.1; it must be finite and at least 0"),
        ({"kl_weight": float("inf")}, ValueError, "kl_weight is inf"),
        ({"kl_weight": float("nan")}, ValueError, "kl_weight is nan"),
        ({"lr": 0.0}, ValueError, "lr is 0.0 and clip 1.0; both must be positive"),
        ({"lr": float("inf")}, ValueError, "lr is inf"),
        ({"clip": 0.0}, ValueError, "clip 0.0"),
        ({"precision": "float64"}, ValueError, "precision is 'float64'; it must be one of float32, bfloat16, float16"),
        ({"ema_decay": 1.0}, ValueError, "decay is 1.0"),
        ({"save_every": 2}, ValueError, "save_every is 2 but there is no file"),
    ],
)
def test_training_settings_refused(options, error, message):
    with pytest.raises(error, match=message):
        fit(small(), **options)


def test_batches_refused():
    with pytest.raises(ValueError, match="the batches ended at step 3 of 5"):
        fit(small(), iter([next(source()), next(source())]), num_steps=5)
    bad = pictures()
    bad[3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the loss at step 1 is nan; it must be finite"):
        fit(small(), data.batches(bad, size=24))
    with pytest.raises(ValueError, match="but the network was built for"):
        fit(small(), data.batches(torch.zeros(8, 3, 8, 8), size=4))
