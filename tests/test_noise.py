"""The jump against the chain, exactly and in distribution, and every other corruption against its moments."""

import copy
import functools
import math

import pytest
import torch
from cases import SCHEDULES, generators
from torch import Tensor, nn

from companion.noise import NoiseAddition, add_noise, gaussian, markov_chain, salt_and_pepper, shot
from companion.schedules import Cosine, FlowMatching, Linear, Schedule

each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
Z = 4.5  # standard errors; the seeds are fixed, so a test that passes once passes always


def seeded(seed: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def randn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def rises(n: int) -> Tensor:
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)


# --- the jump ---


@each
@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 1, 4, 4), (5, 2, 3, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_add_noise_is_the_formula(schedule, shape, dtype):
    x0, eps = randn(*shape).to(dtype), randn(*shape, seed=2).to(dtype)
    t = torch.tensor([0.0, 1e-4, 0.3, 0.8, 1.0], dtype=torch.float64)
    x, same = add_noise(x0, t, schedule, eps)
    assert x.dtype == dtype and x.shape == shape
    assert same is eps
    for i in range(5):
        signal = float(schedule.alpha(t[i])) * x0[i].double()
        noise = float(schedule.sigma(t[i])) * eps[i].double()
        allowed = 2 * torch.finfo(dtype).eps * (signal.abs() + noise.abs())
        assert bool(((x[i].double() - signal - noise).abs() <= allowed).all())
        one, _ = add_noise(x0[i : i + 1], float(t[i]), schedule, eps[i : i + 1])
        assert one.dtype == dtype
        assert bool(((one[0].double() - signal - noise).abs() <= allowed).all())


@each
def test_one_time_for_all_is_the_same_as_that_time_for_each(schedule):
    x0 = randn(6, 3)
    for t in (0.0, 0.2, 0.77, 1.0):
        each_t, eps = add_noise(x0, torch.full((6,), t, dtype=torch.float64), schedule, generator=seeded())
        for whole in (t, torch.tensor(t, dtype=torch.float64)):
            x, same = add_noise(x0, whole, schedule, generator=seeded())
            assert torch.equal(same, eps)
            torch.testing.assert_close(
                x, each_t, rtol=0, atol=4 * torch.finfo(torch.float64).eps * float(x.abs().max())
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_ends_are_data_and_noise(dtype):
    x0 = randn(4, 3, dtype=dtype) if dtype.itemsize > 2 else randn(4, 3).to(dtype)
    x, eps = add_noise(x0, torch.tensor([0.0, 1.0, 0.0, 1.0]), Cosine(), generator=seeded())
    assert torch.equal(x[0::2], x0[0::2]) and torch.equal(x[1::2], eps[1::2])
    assert eps.dtype == dtype
    assert torch.equal(add_noise(x0, 0.0, Cosine())[0], x0)


def test_a_float64_time_keeps_its_digits_beside_float32_data():
    t = torch.full((3,), 1e-9 + 0.5, dtype=torch.float64)
    x, _ = add_noise(torch.full((3, 1), 2.0**24), t, FlowMatching(), torch.zeros(3, 1))
    assert x.dtype == torch.float32
    torch.testing.assert_close(
        x.double(), ((1 - t) * 2.0**24).unsqueeze(1), rtol=torch.finfo(torch.float32).eps, atol=0
    )
    # and a float32 time is not computed below float32 beside bfloat16 data
    t = torch.tensor([0.9990234375 + 2**-12])
    x, _ = add_noise(torch.ones(1, 1, dtype=torch.bfloat16), t, FlowMatching(), torch.zeros(1, 1, dtype=torch.bfloat16))
    assert x.item() == 1 - t.item()


@pytest.mark.parametrize("t", [0.6, torch.full((200,), 0.6)], ids=["one", "each"])
def test_drawn_noise_is_standard_normal(t):
    x0 = randn(200, 500, dtype=torch.float32)
    x, eps = add_noise(x0, t, FlowMatching(), generator=seeded(3))
    n = eps.numel()
    assert abs(eps.mean().item()) <= Z / math.sqrt(n)
    assert abs(eps.var().item() - 1) <= Z * math.sqrt(2 / n)
    assert abs((eps**4).mean().item() - 3) <= Z * math.sqrt(96 / n)  # Gaussian, not uniform
    assert abs((eps * x0).mean().item()) <= Z / math.sqrt(n)
    assert abs((eps[1:] * eps[:-1]).mean().item()) <= Z / math.sqrt(n)  # not one draw for the whole batch
    torch.testing.assert_close(x, 0.4 * x0 + 0.6 * eps, rtol=1e-6, atol=1e-6)


def test_gradient_of_the_jump_is_alpha():
    x0 = randn(2, 3).requires_grad_()
    add_noise(x0, torch.tensor([0.25, 0.5], dtype=torch.float64), FlowMatching())[0].sum().backward()
    assert x0.grad.tolist() == [[0.75] * 3, [0.5] * 3]


def test_add_noise_on_each_device(device):
    x0 = randn(4, 3, dtype=torch.float32).to(device)
    t = torch.tensor([0.0, 0.3, 0.9, 1.0], device=device)
    for generator in generators(device):  # a CPU generator serves every device
        x, eps = add_noise(x0, t, Cosine(), generator=generator)
        assert x.device == eps.device == x0.device and x.dtype == torch.float32
    expected = randn(4, 3, seed=0, dtype=torch.float32).to(device)
    x, eps = add_noise(x0, torch.tensor(0.5, dtype=torch.float64), FlowMatching(), generator=seeded())
    assert torch.equal(eps, expected) and x.device == x0.device
    torch.testing.assert_close(x, (x0 + eps) / 2, rtol=1e-6, atol=1e-6)
    *_, last = markov_chain(x0, FlowMatching(), rises(4), generator=seeded())
    assert last.device == x0.device


# --- the chain ---


@each
@pytest.mark.parametrize("num_steps", [1, 2, 10, 100])
def test_steps_compose_to_the_jump_exactly(schedule, num_steps):
    ts = rises(num_steps)
    x0 = randn(1, 64)
    chain = list(markov_chain(x0, schedule, ts, generator=seeded()))
    moved = list(markov_chain(x0 + 1, schedule, ts, generator=seeded()))
    generator = seeded()
    noise = [torch.randn(1, 64, generator=generator, dtype=torch.float64) for _ in range(num_steps)]
    assert len(chain) == num_steps
    variance, mean, x = 0.0, 1.0, x0
    for k in range(num_steps):
        alpha, sigma = float(schedule.alpha(ts[k + 1])), float(schedule.sigma(ts[k + 1]))
        gain = (moved[k] - chain[k]).mean().item()  # what is left of a shift of the data by 1
        assert abs(gain - alpha) <= 1e-12 * max(1.0, sigma)
        ratio, mean = gain / mean, gain
        spread = (((chain[k] - ratio * x) * noise[k]).sum() / (noise[k] ** 2).sum()).item()
        torch.testing.assert_close(chain[k], ratio * x + spread * noise[k], rtol=1e-9, atol=1e-9 * max(1.0, sigma))
        variance = ratio**2 * variance + spread**2
        assert abs(variance - sigma**2) <= 1e-10 * max(1.0, sigma**2)
        x = chain[k]


@each
def test_chain_and_jump_have_one_mean_and_one_covariance(schedule):
    n, ts = 20_000, rises(12)
    mean = torch.tensor([1.5, -0.5], dtype=torch.float64)
    root = torch.tensor([[1.0, 0.0], [0.6, 0.3]], dtype=torch.float64)
    x0 = mean + randn(n, 2, seed=4) @ root.T
    steps = list(markov_chain(x0, schedule, ts, generator=seeded(5)))
    for k in (0, 1, 5, 11):
        alpha, sigma = schedule.alpha(ts[k + 1]), schedule.sigma(ts[k + 1])
        covariance = alpha**2 * root @ root.T + sigma**2 * torch.eye(2, dtype=torch.float64)
        jump, _ = add_noise(x0, ts[k + 1], schedule, generator=seeded(6))
        for x in (steps[k], jump):
            white = torch.linalg.inv(torch.linalg.cholesky(covariance)) @ (x - alpha * mean).T
            assert float(white.mean(1).abs().max()) <= Z / math.sqrt(n)
            second = white @ white.T / n
            assert abs(float(second[0, 1])) <= Z / math.sqrt(n)
            assert float((second.diag() - 1).abs().max()) <= Z * math.sqrt(2 / n)


def test_a_thousand_bfloat16_steps_do_not_drift():
    x0 = torch.full((20_000, 1), 4.0, dtype=torch.bfloat16)
    for k, x in enumerate(markov_chain(x0, Linear(), rises(1000), generator=seeded()), 1):
        assert x.dtype == torch.bfloat16
        if k in (50, 1000):  # the first betas, about 1e-4, are far below bfloat16's 2^-8
            alpha, sigma = float(Linear().alpha(k / 1000)), float(Linear().sigma(k / 1000))
            rounding = torch.finfo(torch.bfloat16).eps
            assert abs(x.double().mean().item() - 4 * alpha) <= Z * sigma / math.sqrt(20_000) + rounding / 100
            assert abs(x.double().var().item() / sigma**2 - 1) <= Z * math.sqrt(2 / 20_000) + rounding**2 / sigma**2


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_chain_keeps_shape_and_dtype(shape, dtype):
    for x in markov_chain(torch.ones(shape, dtype=dtype), Cosine(), rises(3)):
        assert x.shape == shape and x.dtype == dtype and bool(x.isfinite().all())


def test_chain_is_lazy_and_starts_again_from_the_data():
    chain = markov_chain(torch.zeros(2, 2), Linear(), rises(1000))
    assert iter(chain) is chain and next(chain).abs().max() < 0.1  # beta_1 = 1e-4: a std of 0.01


class Emptied(Schedule):
    """Pure noise from t = 0.5 on."""

    def _alpha(self, t: Tensor) -> Tensor:
        return (1 - 2 * t).clamp(min=0)

    def _sigma(self, t: Tensor) -> Tensor:
        return (2 * t).clamp(max=1)


def test_chain_refuses_to_go_past_pure_noise():
    x0 = torch.ones(2, 2)
    assert len(list(markov_chain(x0, Emptied(), torch.tensor([0.0, 0.25, 0.5])))) == 2
    with pytest.raises(ValueError, match=r"alpha is 0 before the last time in ts.*end the chain there"):
        markov_chain(x0, Emptied(), torch.tensor([0.0, 0.25, 0.5, 0.75]))


# --- salt and pepper, shot noise, Gaussian noise ---


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 255.0)])
def test_salt_and_pepper_replaces_the_share_it_says(amount, data_range):
    low, high = data_range
    n = 100_000
    x = torch.full((n,), 0.25)
    out = salt_and_pepper(x, amount, data_range=data_range, generator=seeded())
    for value in (low, high):
        share = (out == value).double().mean().item()
        p = amount / 2
        assert abs(share - p) <= Z * math.sqrt(p * (1 - p) / n)
    assert bool(((out == 0.25) | (out == low) | (out == high)).all())
    assert bool((out == 0.25).any()) == (amount < 1)


def test_salt_and_pepper_defaults_to_the_range_of_images():
    assert salt_and_pepper(torch.zeros(1000), 0.5, generator=seeded()).unique().tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("data_range", [None, (0.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("peak", [3.0, 40.0])
@pytest.mark.parametrize("brightness", [0.1, 0.5, 1.0])
def test_shot_noise_is_poisson(data_range, peak, brightness):
    low, high = data_range or (-1.0, 1.0)
    n, rate = 50_000, brightness * peak
    given = {} if data_range is None else {"data_range": data_range}
    x = torch.full((n,), low + brightness * (high - low), dtype=torch.float64)
    counts = (shot(x, peak, generator=seeded(), **given) - low) / (high - low) * peak
    torch.testing.assert_close(counts, counts.round(), rtol=1e-12, atol=1e-12)  # photons are whole
    assert abs(counts.mean().item() - rate) <= Z * math.sqrt(rate / n)
    # the variance of a Poisson variable is its mean, so in units of x it grows with brightness
    assert abs(counts.var().item() - rate) <= Z * math.sqrt((rate + 2 * rate**2) / n)


def test_no_light_no_noise():
    assert torch.equal(shot(torch.full((9,), -1.0), 5.0), torch.full((9,), -1.0))
    assert torch.equal(shot(torch.zeros(9), 5.0, data_range=(0.0, 1.0)), torch.zeros(9))


def test_gaussian_is_x_plus_std_times_eps():
    x = randn(4, 5)
    got = gaussian(x, 0.3, generator=seeded())
    torch.testing.assert_close(got, x + 0.3 * randn(4, 5, seed=0), rtol=0, atol=1e-15)
    assert torch.equal(gaussian(x, 0.0), x)


KINDS = {"gaussian": (gaussian, 0.3), "salt_and_pepper": (salt_and_pepper, 0.4), "shot": (shot, 10.0)}
kinds = pytest.mark.parametrize(("kind", "level"), KINDS.values(), ids=KINDS.keys())


@kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_corruptions_keep_shape_dtype_and_device(kind, level, dtype, device):
    x = torch.zeros(2, 1, 4, 4, dtype=dtype, device=device)
    for generator in generators(device):
        out = kind(x, level, generator=generator)
        assert out.shape == x.shape and out.dtype == dtype and out.device == x.device


# --- the layer ---


@kinds
def test_layer_corrupts_in_training_only(kind, level):
    layer = NoiseAddition(level, kind, generator=seeded())
    x = torch.zeros(50, 4)
    assert layer.training
    assert torch.equal(layer(x), kind(x, level, generator=seeded()))
    assert not torch.equal(layer(x), layer(x))  # new noise each time
    assert layer.eval()(x) is x
    assert layer.train()(x) is not x


@kinds
def test_layer_holds_no_state(kind, level):
    layer = NoiseAddition(level, kind)
    assert layer.state_dict() == {} and list(layer.parameters()) == []
    copied = copy.deepcopy(NoiseAddition(level, kind, generator=seeded()))
    assert (copied.level, copied.kind) == (level, kind)
    assert repr(layer) == f"NoiseAddition(level={level}, kind={kind.__name__})"


def test_layer_takes_a_function_with_its_own_range():
    bright = functools.partial(shot, data_range=(0.0, 255.0))
    layer = NoiseAddition(5.0, bright)
    assert float(layer(torch.full((100, 4), 255.0)).max()) > 255
    assert "shot" in repr(layer)


@kinds
def test_gradient_passes_through_the_layer(kind, level):
    x = torch.linspace(-0.9, 0.9, 1000).requires_grad_()
    out = NoiseAddition(level, kind, generator=seeded())(x)
    out.sum().backward()
    kept = (out != -1) & (out != 1) if kind is salt_and_pepper else torch.ones(1000, dtype=torch.bool)
    assert not torch.equal(out, x)
    torch.testing.assert_close(x.grad, kept.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("position", ["input", "activation"])
def test_layer_at_the_input_or_between_layers(position):
    torch_state = torch.get_rng_state()
    first, second = nn.Linear(3, 8), nn.Linear(8, 1)
    torch.set_rng_state(torch_state)
    noise = NoiseAddition(0.1, generator=seeded())
    order = (noise, first, nn.Tanh(), second) if position == "input" else (first, nn.Tanh(), noise, second)
    net, clean = nn.Sequential(*order), nn.Sequential(first, nn.Tanh(), second)
    x = randn(400, 3, dtype=torch.float32)
    assert torch.equal(net.eval()(x), clean(x))
    seen = []
    layer = first if position == "input" else second
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.train()(x).sum().backward()
    added = seen[0] - (x if position == "input" else first(x).tanh())
    n = added.numel()
    assert abs(added.std().item() / 0.1 - 1) <= Z / math.sqrt(2 * n)
    assert all(bool(p.grad.abs().sum() > 0) for p in net.parameters())
    assert [key.split(".")[1] for key in net.state_dict()] == ["weight", "bias"] * 2


# --- randomness comes in through the generator, and inputs are left alone ---

DRAWS = {
    "add_noise": lambda x, g: add_noise(x, 0.5, Cosine(), generator=g)[0],
    "add_noise_each": lambda x, g: add_noise(x, torch.full((len(x),), 0.5), Cosine(), generator=g)[1],
    "markov_chain": lambda x, g: torch.stack(list(markov_chain(x, Cosine(), rises(3), generator=g))),
    "gaussian": lambda x, g: gaussian(x, 0.3, generator=g),
    "salt_and_pepper": lambda x, g: salt_and_pepper(x, 0.5, generator=g),
    "shot": lambda x, g: shot(x, 10.0, generator=g),
    "layer": lambda x, g: NoiseAddition(0.3, generator=g)(x),
    "layer_shot": lambda x, g: NoiseAddition(5.0, shot, generator=g)(x),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_one_seed_one_sample(draw):
    x = torch.linspace(-1, 1, 40).reshape(20, 2)
    before, state = x.clone(), torch.get_rng_state()
    first, again, other = draw(x, seeded(7)), draw(x, seeded(7)), draw(x, seeded(8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before)
    torch.manual_seed(9)
    first = draw(x, None)
    torch.manual_seed(9)
    assert torch.equal(draw(x, None), first)  # without a generator the global one is used
    torch.set_rng_state(state)


def test_a_given_eps_and_time_are_left_alone():
    x0, eps, t, ts = randn(3, 2), randn(3, 2, seed=2), torch.tensor([0.1, 0.5, 0.9]), rises(4)
    before = [v.clone() for v in (x0, eps, t, ts)]
    state = torch.get_rng_state()
    add_noise(x0, t, FlowMatching(), eps)
    list(markov_chain(x0, FlowMatching(), ts, generator=seeded()))
    assert all(torch.equal(a, b) for a, b in zip((x0, eps, t, ts), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # a given eps draws nothing


# --- bad input ---

X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: add_noise(X.long(), 0.5, Cosine()), TypeError, "x0 has dtype torch.int64; it must be floating point"),
        (lambda: add_noise([0.0], 0.5, Cosine()), TypeError, "x0 is a list; it must be a torch.Tensor"),
        (lambda: add_noise(torch.tensor(1.0), 0.5, Cosine()), ValueError, r"x0 has shape \(\).*the batch first"),
        (lambda: add_noise(X / 0, 0.5, Cosine()), ValueError, "x0 holds NaN or infinity.*it must be finite"),
        (lambda: add_noise(X + math.inf, 0.5, Cosine()), ValueError, "x0 holds NaN or infinity"),
        (lambda: add_noise(X - math.inf, 0.5, Cosine()), ValueError, "x0 holds NaN or infinity"),
        (lambda: add_noise(X, 7, Cosine()), ValueError, r"t ranges from 7 to 7; times lie in \[0, 1\]"),
        (lambda: add_noise(X, -0.5, Cosine()), ValueError, "t ranges from -0.5"),
        (lambda: add_noise(X, math.nan, Cosine()), ValueError, "t ranges from nan"),
        (lambda: add_noise(X, torch.tensor([1, 2, 3]), Cosine()), TypeError, "t has dtype torch.int64.*t = k / T"),
        (lambda: add_noise(X, X[:, 0].half(), Cosine()), TypeError, "t has dtype torch.float16"),
        (lambda: add_noise(X, torch.zeros(2), Cosine()), ValueError, r"t has shape \(2,\) but x has batch 3.*\(3,\)"),
        (lambda: add_noise(X, torch.zeros(1), Cosine()), ValueError, r"t has shape \(1,\) but x has batch 3"),
        (lambda: add_noise(X, torch.zeros(3, 1), Cosine()), ValueError, r"t has shape \(3, 1\) but x has batch 3"),
        (
            lambda: add_noise(X, 0.5, Cosine(), X[:1]),
            ValueError,
            r"eps has shape \(1, 2\) but x0 has \(3, 2\).*broadcast",
        ),
        (lambda: add_noise(X, 0.5, Cosine(), X.long()), TypeError, "eps has dtype torch.int64"),
        (lambda: markov_chain(X, Cosine(), rises(4).flip(0)), ValueError, "ts does not rise strictly.*use ts.flip"),
        (lambda: markov_chain(X, Cosine(), torch.tensor([0.0, 0.5, 0.5])), ValueError, "ts does not rise strictly"),
        (lambda: markov_chain(X, Cosine(), rises(4)[1:]), ValueError, "ts starts at 0.25; a chain starts at the data"),
        (
            lambda: markov_chain(X, Cosine(), rises(4)[:1]),
            ValueError,
            r"ts has shape \(1,\); a grid is 1-D with at least 2",
        ),
        (lambda: markov_chain(X, Cosine(), rises(4)[0]), ValueError, r"ts has shape \(\); a grid is 1-D"),
        (
            lambda: markov_chain(X, Cosine(), rises(4).reshape(1, 5)),
            ValueError,
            r"ts has shape \(1, 5\); a grid is 1-D",
        ),
        (lambda: markov_chain(X, Cosine(), 2 * rises(4)), ValueError, r"ts ranges from 0 to 2; times lie in \[0, 1\]"),
        (lambda: markov_chain(X, Cosine(), rises(4) - 0.5), ValueError, "ts ranges from -0.5"),
        (lambda: markov_chain(X, Cosine(), rises(4) / 0), ValueError, "ts ranges from nan"),
        (lambda: markov_chain(X, Cosine(), torch.arange(5)), TypeError, "ts has dtype torch.int64"),
        (lambda: markov_chain(X.int(), Cosine(), rises(4)), TypeError, "x0 has dtype torch.int32"),
        (lambda: markov_chain(X / 0, Cosine(), rises(4)), ValueError, "x0 holds NaN"),
        (lambda: gaussian(X, -0.1), ValueError, "std is -0.1; it must be finite"),
        (lambda: gaussian(X, math.inf), ValueError, "std is inf; it must be finite"),
        (lambda: gaussian(X.long(), 0.1), TypeError, "x has dtype torch.int64"),
        (lambda: salt_and_pepper(X, 1.1), ValueError, r"amount is 1.1; it must be finite and lie in \[0, 1\]"),
        (lambda: salt_and_pepper(X, -0.1), ValueError, "amount is -0.1"),
        (lambda: salt_and_pepper(X, math.nan), ValueError, "amount is nan"),
        (lambda: salt_and_pepper(X.bool(), 0.1), TypeError, "x has dtype torch.bool"),
        (lambda: shot(X, 0.0), ValueError, "peak is 0.0.*a peak is above 0"),
        (lambda: shot(X, -1.0), ValueError, "peak is -1.0"),
        (lambda: shot(X, math.inf), ValueError, "peak is inf"),
        (
            lambda: shot(X - 1.5, 5.0),
            ValueError,
            r"x ranges from -1.5 to -1.5, outside data_range \(-1.0, 1.0\).*clamp",
        ),
        (lambda: shot(X + 1.5, 5.0), ValueError, "x ranges from 1.5 to 1.5, outside"),
        (lambda: shot(X / 0, 5.0), ValueError, "x ranges from nan to nan"),
        (lambda: shot(X.int(), 5.0), TypeError, "x has dtype torch.int32"),
        (lambda: NoiseAddition(-0.1), ValueError, "std is -0.1"),
        (lambda: NoiseAddition(2.0, salt_and_pepper), ValueError, "amount is 2.0"),
        (lambda: NoiseAddition(0.0, shot), ValueError, "peak is 0.0"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_faint_light_is_allowed():
    """A peak of 0.05 photons: nearly always nothing, sometimes one, which counts 20 times the highest value."""
    x = shot(torch.ones(20_000), 0.05, data_range=(0.0, 1.0), generator=torch.Generator().manual_seed(0))
    assert set(x.round(decimals=3).tolist()) <= {0.0, 20.0, 40.0, 60.0}
    assert abs(float(x.mean()) - 1) < 5 * (1 / 0.05) ** 0.5 / 20_000**0.5
