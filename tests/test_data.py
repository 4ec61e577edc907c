"""Data against their definitions: curves, frequencies, distributions."""

import math

import numpy as np
import pytest
import torch
from cases import seeded
from scipy import stats

from companion import data, metrics


def uniform_on(values, low, high):
    """The Kolmogorov-Smirnov test's p-value that the values are uniform on [low, high]."""
    return stats.kstest(np.asarray(values), stats.uniform(low, high - low).cdf).pvalue


# --- the Swiss roll ---


def test_swiss_roll_without_noise_is_its_curve():
    x = 10 * data.swiss_roll(5000, noise=0.0, generator=seeded()).double()
    angle = x.norm(dim=1)  # radius and angle are one number
    wanted = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1)
    torch.testing.assert_close(x, wanted, rtol=0, atol=2e-5)
    assert 1.5 * math.pi <= angle.min() and angle.max() <= 4.5 * math.pi
    assert uniform_on(angle, 1.5 * math.pi, 4.5 * math.pi) > 1e-3


def test_swiss_roll_curve():
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    angle = math.pi * (1.5 + 3 * u)
    wanted = torch.stack([angle * torch.cos(angle), angle * torch.sin(angle)], dim=1) / 10
    torch.testing.assert_close(data.swiss_roll_curve(u), wanted)
    assert data.swiss_roll_curve(u).dtype == torch.float64 and data.swiss_roll_curve(u.float()).dtype == torch.float32
    first, last = data.swiss_roll_curve(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(first, torch.tensor([0.0, -0.15 * math.pi]))
    torch.testing.assert_close(last, torch.tensor([0.0, 0.45 * math.pi]))


@pytest.mark.parametrize("noise", [0.05, 0.5, 2.0])
def test_swiss_roll_noise_is_gaussian(noise):
    """The same seed has the same points on the curve: what is left is round, Gaussian, of deviation noise / 10."""
    n = 20_000
    left = data.swiss_roll(n, noise=noise, generator=seeded()) - data.swiss_roll(n, noise=0.0, generator=seeded())
    for column in left.double().T:
        assert column.std().item() == pytest.approx(noise / 10, rel=5 / math.sqrt(2 * n))
        assert stats.kstest(column.numpy(), stats.norm(0, noise / 10).cdf).pvalue > 1e-3
    assert abs(torch.corrcoef(left.T)[0, 1].item()) < 5 / math.sqrt(n)


def test_swiss_roll_distance_to_the_curve():
    """With little noise the way to the nearest point of the curve is one Gaussian coordinate."""
    curve = data.swiss_roll_curve(torch.linspace(0, 1, 20_000))
    distance = metrics.nearest_distance(data.swiss_roll(2000, noise=0.05, generator=seeded()), curve)
    assert distance.square().mean().sqrt().item() == pytest.approx(0.005, rel=5 / math.sqrt(2 * 2000))


def test_swiss_roll_is_the_mixture_on_its_curve():
    """300 means on the curve with variance (noise / 10)^2 are its density: as far from it as the roll from itself."""
    n, seeds = 1500, iter(range(1000))

    def roll():
        return data.swiss_roll(n, generator=seeded(next(seeds)))

    def mixture():
        generator = seeded(next(seeds))
        means = data.swiss_roll_curve((torch.arange(300) + 0.5) / 300)[torch.randint(300, (n,), generator=generator)]
        return means + 0.05 * torch.randn(n, 2, generator=generator)

    mean, sd = metrics.floor(metrics.sliced_wasserstein, roll, pairs=16)
    between = [metrics.sliced_wasserstein(roll(), mixture()) for _ in range(16)]
    assert abs(np.mean(between) - mean) < 4 * sd * math.sqrt(2 / 16)
    assert metrics.sliced_wasserstein(roll(), 0.9 * roll()) > mean + 4 * sd  # the yardstick is fine enough


def test_swiss_roll_scale():
    x = data.swiss_roll(5000, generator=seeded())
    assert x.dtype == torch.float32 and x.shape == (5000, 2)
    assert 0.6 < x.std().item() < 0.8 and x.abs().max() < 1.7


# --- moons ---


def test_moons_without_noise_are_half_circles():
    x, y = data.moons(4000, noise=0.0, generator=seeded())
    assert x.shape == (4000, 2) and x.dtype == torch.float32 and y.shape == (4000,) and y.dtype == torch.int64
    for label, (cx, cy), up in ((0, (-0.5, -0.25), 1), (1, (0.5, 0.25), -1)):
        away = x[y == label] - torch.tensor([cx, cy])
        torch.testing.assert_close(away.norm(dim=1), torch.ones(len(away)), rtol=0, atol=1e-6)
        assert (up * away[:, 1] > -1e-6).all()
        assert uniform_on(torch.atan2(up * away[:, 1], away[:, 0]).abs(), 0, math.pi) > 1e-3


def test_moons_are_those_of_scikit_learn_moved():
    from sklearn.datasets import make_moons

    theirs, label = make_moons(400, noise=0.0)
    theirs = torch.tensor(theirs - [0.5, 0.25])
    ours, y = data.moons(20_000, noise=0.0, generator=seeded())
    for c in (0, 1):
        assert metrics.nearest_distance(theirs[label == c], ours[y == c]).max() < 0.01


def test_moons_noise_and_balance():
    n = 20_000
    (x, y), (clean, same) = (data.moons(n, noise=noise, generator=seeded()) for noise in (0.1, 0.0))
    assert torch.equal(y, same)
    assert abs(y.sum().item() - n / 2) < 5 * math.sqrt(n) / 2
    for column in (x - clean).double().T:
        assert stats.kstest(column.numpy(), stats.norm(0, 0.1).cdf).pvalue > 1e-3
    assert x.mean(0).abs().max() < 0.05


# --- sines ---


@pytest.mark.parametrize(
    ("length", "frequencies", "amplitudes"),
    [(64, (1, 2, 3), (0.5, 1.0)), (50, (4,), (0.2, 0.3)), (16, (1, 7), (1.0, 1.0))],
)
def test_sines_by_their_spectrum(length, frequencies, amplitudes):
    """One line in each spectrum: its place, height and angle are uniform on what was asked for."""
    n = 3000
    x = data.sines(n, length=length, frequencies=frequencies, amplitudes=amplitudes, generator=seeded())
    assert x.shape == (n, length) and x.dtype == torch.float32
    spectrum = np.fft.rfft(x.double().numpy()) / (length / 2)
    height = np.abs(spectrum)
    line = height.argmax(1)
    assert (height > 1e-5).sum() == n  # nothing beside the line
    counts = [(line == f).sum() for f in frequencies]
    assert sum(counts) == n and (len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-3)
    peak, phase = height.max(1), np.angle(spectrum[np.arange(n), line])
    low, high = amplitudes
    assert low - 1e-6 <= peak.min() and peak.max() <= high + 1e-6
    if high > low:
        assert uniform_on(peak, low, high) > 1e-3
        assert abs(np.corrcoef(peak, phase)[0, 1]) < 5 / math.sqrt(n)
    assert uniform_on(phase, -math.pi, math.pi) > 1e-3
    assert x.abs().max() <= high + 1e-6


# --- digits ---


def test_digits():
    (x, y), (held_x, held_y) = data.digits(), data.digits("held-out")
    assert x.shape == (1297, 1, 8, 8) and held_x.shape == (500, 1, 8, 8)
    assert y.shape == (1297,) and held_y.shape == (500,)
    assert x.dtype == held_x.dtype == torch.float32 and y.dtype == held_y.dtype == torch.int64
    assert x.min() == held_x.min() == -1 and x.max() == held_x.max() == 1
    assert set(y.tolist()) == set(held_y.tolist()) == set(range(10))
    again = data.digits("train")
    assert torch.equal(again[0], x) and torch.equal(again[1], y)


def test_digits_are_those_of_scikit_learn_each_once():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    theirs = sorted((*image.tolist(), int(label)) for image, label in zip(images, labels, strict=True))
    ours = []
    for split in ("train", "held-out"):
        for image, label in zip(*data.digits(split), strict=True):
            ours.append((*((image.flatten() + 1) * 8).tolist(), int(label)))
    assert sorted(ours) == theirs  # disjoint, complete, each with its own label
    assert [y for y in data.digits()[1].tolist()] != sorted(data.digits()[1].tolist())  # shuffled


# --- batches ---


def test_batches_hold_each_sample_once_an_epoch():
    x, y = torch.arange(20.0).reshape(10, 2), torch.arange(10) + 100
    source = data.batches(x, y, size=5, generator=seeded())
    epochs = [[next(source), next(source)] for _ in range(6)]
    orders = []
    for epoch in epochs:
        order = torch.cat([y for _, y in epoch]) - 100
        assert sorted(order.tolist()) == list(range(10))
        orders.append(tuple(order.tolist()))
        for bx, by in epoch:
            assert bx.shape == (5, 2) and torch.equal(bx, x[by - 100])  # labels follow their samples
    assert len(set(orders)) == 6 and tuple(range(10)) not in orders


def test_batches_drop_the_remainder():
    source = data.batches(torch.arange(11.0)[:, None], size=4, generator=seeded())
    seen = set()
    for _ in range(40):
        first, second = next(source), next(source)
        both = torch.cat([first[0], second[0]]).flatten().tolist()
        assert first[1] is second[1] is None and len(set(both)) == 8
        seen |= set(both)
    assert seen == set(range(11))  # another remainder each time


@pytest.mark.parametrize("size", [1, 7, 10])
def test_batches_of_any_size(size):
    source = data.batches(torch.arange(10.0)[:, None], size=size, generator=seeded())
    for _ in range(3):
        epoch = torch.cat([next(source)[0] for _ in range(10 // size)])
        assert len(set(epoch.flatten().tolist())) == 10 // size * size


def test_batches_leave_data_and_device_alone(device):
    x, y = torch.randn(8, 1, 2, 2, device=device), torch.arange(8)
    kept = x.clone()
    bx, by = next(data.batches(x, y, size=8, generator=seeded()))
    assert bx.device.type == device.type and by.device.type == "cpu"
    assert torch.equal(bx.cpu(), x.cpu()[by])
    bx.add_(1)
    assert torch.equal(x, kept)


def numbered(size=4, generator="own", seed=3, n=10, **more):
    """Batches of samples that carry their number, with their number as label."""
    x = torch.arange(float(n))[:, None]
    generator = seeded(seed) if generator == "own" else generator
    return data.batches(x, torch.arange(n), size=size, generator=generator, **more)


@pytest.mark.parametrize("with_generator", [True, False])
def test_batches_are_these(with_generator):
    """What the stored outputs of the book rest on: one permutation an epoch, drawn when it is needed, and cut."""
    source, draw = numbered(generator=seeded(3) if with_generator else None), seeded(3)
    if not with_generator:
        torch.manual_seed(3)
    for _ in range(4):
        order = torch.randperm(10, generator=draw)
        for k in range(2):
            x, y = next(source)
            assert torch.equal(y, order[4 * k : 4 * k + 4]) and torch.equal(x[:, 0], y.float())
            state = torch.get_rng_state() if not with_generator else source.generator.get_state()
            assert torch.equal(state, draw.get_state())  # nothing is drawn ahead


def test_batches_go_on_after_a_loop():
    source, again = numbered(), numbered()
    for k, _ in enumerate(source):
        next(again)
        if k == 2:
            break
    assert iter(source) is source and torch.equal(next(again)[1], next(source)[1])


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("generator", ["own", None])
def test_batches_are_stopped_and_resumed(taken, generator, device):
    """At any place of an epoch, the ends included, and with the state kept while the batches go on."""
    if device.type == "cuda" and generator is None:
        pytest.skip("without a generator the order of CUDA data comes from CUDA's global one")
    torch.manual_seed(5)
    source = numbered(generator=generator)
    source.x = source.x.to(device)
    for _ in range(taken):
        next(source)
    state, outer = source.state_dict(), torch.get_rng_state()
    wanted = [next(source)[1] for _ in range(5)]
    other = numbered(generator=generator, seed=99)
    next(other)
    other.load_state_dict(state)
    torch.set_rng_state(outer)  # what a generator-less order draws from; fit does the same
    assert all(torch.equal(a, next(other)[1]) for a in wanted)
    assert ("generator" in state) is (generator == "own") and state["order"].device.type == "cpu"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (numbered(size=5), r"'size': 4.*these have .*'size': 5"),
        (numbered(n=11), r"'samples': 10.*these have .*'samples': 11"),
        (numbered(generator=None), r"'a generator': True.*these have .*'a generator': False"),
    ],
)
def test_a_state_of_other_batches(other, message):
    with pytest.raises(ValueError, match=rf"^the state is of batches with .*{message}.*; the two must be equal"):
        other.load_state_dict(numbered().state_dict())


def test_batches_are_transformed():
    """Each batch, with the generator of the order, after the order is drawn; labels and data stay as they are."""
    seen = []

    def transform(x, generator):
        seen.append(generator)
        return x + torch.rand(x.shape, generator=generator)

    draw, same = seeded(1), seeded(1)
    source = numbered(generator=draw, transform=transform)
    order = torch.randperm(10, generator=same)
    for k in range(2):
        x, y = next(source)
        assert torch.equal(y, order[4 * k : 4 * k + 4])
        assert torch.equal(x, y[:, None].float() + torch.rand(4, 1, generator=same))
    assert seen == [draw, draw] and torch.equal(source.x[:, 0], torch.arange(10.0))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda x, generator: x[:2], r"the transform made \(4, 1\) torch\.float32 into \(2, 1\) torch\.float32"),
        (lambda x, generator: x.double(), r"into \(4, 1\) torch\.float64; it must keep both"),
    ],
)
def test_a_transform_that_changes_more(transform, message):
    with pytest.raises(ValueError, match=message):
        next(numbered(transform=transform))


# --- seeds ---


DRAWS = {
    "swiss_roll": lambda g: data.swiss_roll(9, generator=g),
    "moons": lambda g: torch.cat([z.float().flatten() for z in data.moons(9, generator=g)]),
    "sines": lambda g: data.sines(9, generator=g),
    "batches": lambda g: next(data.batches(torch.arange(99.0)[:, None], size=50, generator=g))[0],
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_a_seed_decides(draw):
    state = torch.get_rng_state()
    one, same, other = draw(seeded(1)), draw(seeded(1)), draw(seeded(2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_digits_leave_the_seed_alone():
    state = torch.get_rng_state()
    data.digits()
    assert torch.equal(torch.get_rng_state(), state)


# --- bad input ---


X = torch.zeros(10, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: data.swiss_roll(0), ValueError, "n is 0; it must be at least 1"),
        (lambda: data.swiss_roll(2.5), TypeError, r"n is 2\.5; it must be an int"),
        (lambda: data.swiss_roll(5, noise=-1.0), ValueError, r"noise is -1\.0; it must be finite and at least 0"),
        (lambda: data.swiss_roll(5, noise=math.nan), ValueError, "noise is nan"),
        (lambda: data.moons(0), ValueError, "n is 0"),
        (lambda: data.moons(5, noise=math.inf), ValueError, "noise is inf"),
        (lambda: data.sines(0), ValueError, "n is 0"),
        (lambda: data.sines(5, frequencies=()), ValueError, r"frequencies is \(\)"),
        (lambda: data.sines(5, frequencies=(0, 1)), ValueError, r"\(0, 1\); each must be an int in \(0, len"),
        (lambda: data.sines(5, length=8, frequencies=(4,)), ValueError, r"frequencies is \(4,\).*with length 8"),
        (lambda: data.sines(5, amplitudes=(1.0, 0.5)), ValueError, r"amplitudes is \(1\.0, 0\.5\); it must be a range"),
        (lambda: data.sines(5, amplitudes=(0.0, 0.5)), ValueError, r"amplitudes is \(0\.0, 0\.5\)"),
        (lambda: data.digits("test"), ValueError, 'split is \'test\'; it must be "train" or "held-out"'),
        (lambda: data.batches(X, size=11), ValueError, "size is 11 but there are 10 samples; a batch holds each"),
        (lambda: data.batches(X, size=0), ValueError, "size is 0; it must be at least 1"),
        (lambda: data.batches(X, size=-3), ValueError, "size is -3"),
        (lambda: data.batches(X, size=2.0), TypeError, r"size is 2\.0; it must be an int"),
        (lambda: data.batches(X, torch.zeros(9), size=2), ValueError, "y has 9 labels but x has 10 samples; give one"),
        (lambda: data.batches(X[:0], size=1), ValueError, "size is 1 but there are 0 samples"),
        (lambda: data.batches(X.long(), size=2), TypeError, r"x has dtype torch.int64.*x\.float\(\)"),
        (lambda: data.batches([1.0], size=1), TypeError, r"x is a list.*torch\.as_tensor\(x\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"data\.digits needs scikit-learn: pip install scikit-learn"):
        data.digits()
