"""Guidance: exact on mixtures, one call where one is enough, off where it should be off."""

import math

import pytest
import torch
from cases import SCHEDULES, batch, seeded

from companion import denoisers, guidance, networks, predictions, samplers, schedules
from companion.guidance import classifier, clip_x0, condition, extrapolate, rescale

LINEAR = schedules.Linear()
MEANS = torch.tensor([[1.0, 0.0], [0.2, 1.0], [-1.0, 0.3], [0.1, -0.8]], dtype=torch.float64)
VARIANCES = torch.tensor([0.1, 0.05, 0.2, 0.1], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
WANTED = [0, 1]  # the components of the wanted class


def mixture(components, schedule=LINEAR):
    return denoisers.GaussianMixture(MEANS[components], VARIANCES[components], WEIGHTS[components], schedule)


def posterior(everything, wanted, share):
    """log p_t(c | x), from the densities of the class and of everything."""
    return lambda x, t: math.log(share) + wanted.log_prob(x, t) - everything.log_prob(x, t)


SHARE = float(WEIGHTS[WANTED].sum() / WEIGHTS.sum())


class Counted:
    """A denoiser of tokens or classes that counts its calls and the samples in each: x0_hat = x / 2 + f(cond)."""

    def __init__(self, null_cond=0):
        self.net, self.sizes, self.null_cond = self, [], null_cond

    def __call__(self, x, t, cond=None):
        self.sizes.append(len(x))
        cond = torch.full((len(x),), self.null_cond) if cond is None else cond
        assert len(cond) == len(x) and t.shape in ((), (len(x),))
        told = (cond.double() ** 2).reshape(len(x), -1).sum(1) / 10
        shape = (-1, *[1] * (x.ndim - 1))
        return (x / 2 + told.sin().reshape(shape) + t.reshape(shape if t.ndim else ())).to(x.dtype)


# --- condition ---


@pytest.mark.parametrize(
    ("cond", "same"),
    [
        (None, [0, 0, 0]),
        (2, [2, 2, 2]),
        (torch.tensor(2), [2, 2, 2]),
        (torch.tensor([2]), [2, 2, 2]),
        (torch.tensor([1, 0, 2], dtype=torch.int32), [1, 0, 2]),
        (torch.tensor([[4, 5]]), [[4, 5]] * 3),
        (torch.tensor([[1, 0], [0, 2], [3, 3]]), [[1, 0], [0, 2], [3, 3]]),
        (torch.tensor([[[1], [2]]]), [[[1], [2]]] * 3),
    ],
)
def test_condition_tells_each_sample(cond, same):
    x, _ = batch((2, 2), n=3)
    model = Counted()
    told = condition(model, cond)
    assert told.denoiser is model and told.cond is cond
    assert torch.equal(told(x, torch.tensor(0.3)), model(x, torch.tensor(0.3), torch.tensor(same)))
    if isinstance(cond, torch.Tensor) and cond.ndim:
        assert told._for_batch(x).shape == torch.tensor(same).shape


def test_condition_none_serves_a_denoiser_that_takes_none():
    x, _ = batch((2,))
    everything = mixture([0, 1, 2, 3])
    assert torch.equal(condition(everything, None)(x, 0.5), everything(x, 0.5))

    def needs_it(x, t, cond):
        assert cond is None
        return x

    assert condition(needs_it, None)(x, 0.5) is x


@pytest.mark.parametrize(
    ("cond", "error", "message"),
    [
        (True, TypeError, "cond is a bool; it must be an int"),
        ("cat", TypeError, "cond is a str"),
        (1.0, TypeError, "cond is a float"),
        (torch.tensor([1.0]), TypeError, r"dtype torch.float32; classes and tokens are integers: use cond.long\(\)"),
        (torch.tensor([True]), TypeError, "dtype torch.bool"),
        (torch.tensor([1j]), TypeError, "dtype torch.complex64"),
    ],
)
def test_a_condition_is_of_integers(cond, error, message):
    with pytest.raises(error, match=message):
        condition(Counted(), cond)


def test_a_condition_for_a_denoiser_that_takes_none_is_refused():
    with pytest.raises(TypeError, match=r"GaussianMixture takes no condition: .* use cond=None, or a denoiser"):
        condition(mixture([0]), 1)
    with pytest.raises(TypeError, match="Conditional takes no condition"):
        condition(condition(Counted(), 1), 2)
    with pytest.raises(TypeError, match="<lambda> takes no condition"):
        condition(lambda x, t: x, 2)
    for net in (networks.MLP(2), networks.DenseDenoiser((2,)), networks.UNet(1, width=8)):
        plain = denoisers.from_network(net, LINEAR, predictions.V)
        with pytest.raises(ValueError, match=f"{type(net).__name__} takes no condition, .*num_classes="):
            condition(plain, 1)
        assert condition(plain, None).cond is None


def test_what_has_no_signature_is_taken_at_its_word():
    assert condition(max, 1).cond == 1  # written in C


@pytest.mark.parametrize("shape", [(2,), (4,), (2, 5), (0,)])
def test_a_condition_that_does_not_fit_the_batch_is_refused(shape):
    x, _ = batch((2,), n=3)
    model = Counted()
    wrong = condition(model, torch.ones(shape, dtype=torch.long))
    for call in (wrong, extrapolate(wrong, condition(model, None), 2.0), extrapolate(condition(model, 1), wrong, 2.0)):
        with pytest.raises(ValueError, match=r"cond has shape \(\d.*\) but x has batch 3; give \(3, \.\.\.\)"):
            call(x, torch.tensor(0.5))
    assert not model.sizes


# --- extrapolate ---


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 2, 7.5])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_extrapolate_is_linear_in_scale(schedule, scale):
    good, bad = mixture(WANTED, schedule), mixture([0, 1, 2, 3], schedule)
    x, t = batch((2,))
    for time in (torch.tensor(0.4, dtype=torch.float64), t):
        expected = bad(x, time) + scale * (good(x, time) - bad(x, time))
        assert torch.allclose(extrapolate(good, bad, scale)(x, time), expected, rtol=1e-12, atol=1e-12)


def test_the_same_extrapolation_in_every_quantity():
    """At one x, eps, v, the velocity and the score are linear in x0_hat with the same x part on both sides."""
    good, bad = mixture(WANTED), mixture([0, 1, 2, 3])
    x, t = batch((2,))[0], 0.6
    alpha, sigma = (float(f(torch.tensor(t, dtype=torch.float64))) for f in (LINEAR.alpha, LINEAR.sigma))
    guided = extrapolate(good, bad, 3.0)(x, torch.tensor(t))
    for prediction in (predictions.EPS, predictions.V, predictions.VELOCITY, predictions.edm(0.5)):

        def out(x0, prediction=prediction):
            return prediction.target(x0, predictions.x0_to_eps(x, x0, alpha, sigma), alpha, sigma)

        other = out(bad(x, t)) + 3.0 * (out(good(x, t)) - out(bad(x, t)))
        assert torch.allclose(out(guided), other, atol=1e-12)
    score = bad.score(x, t) + 3.0 * (good.score(x, t) - bad.score(x, t))
    assert torch.allclose(x + sigma**2 * score, alpha * guided, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_scale_1_is_good_bit_for_bit_and_bad_is_not_asked(dtype, device):
    model = Counted()
    x = batch((3,))[0].to(device, dtype)
    good = extrapolate(lambda x, t: x.sin(), lambda x, t: x.cos(), 1.7)

    def never(x, t):
        raise AssertionError("asked")

    for scale in (1, 1.0, torch.tensor(1.0)):
        assert torch.equal(extrapolate(good, never, scale)(x, torch.tensor(0.5)), good(x, torch.tensor(0.5)))
    assert good(x, torch.tensor(0.5)).dtype == dtype
    mixed = extrapolate(lambda x, t: x.sin(), lambda x, t: x.cos(), torch.tensor([1.0, 2.0, 1.0, 0.0]))
    answer = mixed(x, torch.tensor(0.5))
    assert answer.dtype == dtype and torch.equal(answer[::2], x[::2].sin())
    x = x.cpu()
    assert torch.equal(
        extrapolate(condition(model, 3), condition(model, 1), 1.0)(x, torch.tensor(0.5)),
        model(x, torch.tensor(0.5), torch.full((4,), 3)),
    )
    assert model.sizes == [4, 4]


PAIRS = [
    (1, None),
    (None, 2),
    (1, 3),
    (torch.tensor([1, 2, 3, 4]), None),
    (torch.tensor([1, 2, 3, 4]), 2),
    (torch.tensor([1, 2, 3, 4]), torch.tensor([2])),
    (torch.tensor([1, 2, 3, 4], dtype=torch.int32), torch.tensor([3, 1, 1, 0])),
    (torch.tensor([[1, 2, 0]]), None),
    (torch.tensor([[1, 2, 0]]), torch.tensor([[4, 0, 0]])),
    (torch.arange(12).reshape(4, 3), None),
    (None, torch.arange(12).reshape(4, 3)),
    (torch.arange(12).reshape(4, 3), torch.tensor([[4, 0, 0]])),
]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("wanted", "other"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_call_for_both_sides(wanted, other, per_sample, dtype):
    model = Counted(null_cond=5)
    x, t = batch((2, 3))
    x, t = x.to(dtype), t if per_sample else torch.tensor(0.5, dtype=torch.float64)
    before = x.clone()
    good, bad = condition(model, wanted), condition(model, other)
    guided = extrapolate(good, bad, 2.5)(x, t)
    assert model.sizes == [8]
    full = [
        torch.full_like(o, 5) if c is None else c
        for c, o in (
            (wanted, torch.as_tensor(other if other is not None else 0)),
            (other, torch.as_tensor(wanted if wanted is not None else 0)),
        )
    ]
    separate = [condition(Counted(), c)(x, t) for c in full]
    assert guided.dtype == dtype and torch.equal(x, before)
    assert torch.allclose(guided, separate[1] + 2.5 * (separate[0] - separate[1]), atol=1e-6)


@pytest.mark.parametrize(
    ("wanted", "other", "sizes"),
    [
        (torch.tensor([[1, 2]]), torch.tensor([[1, 2, 3]]), [4, 4]),  # tokens of other lengths
        (torch.tensor([[1, 2]]), 3, [4, 4]),
        (None, None, [4, 4]),
        (3, 1, [8]),
    ],
)
def test_two_calls_where_conditions_do_not_fit(wanted, other, sizes):
    """And one where they do, also if the network does not say what means nothing."""
    model = Counted()
    if wanted is not None:
        del model.null_cond
    x = batch((2,))[0]
    extrapolate(condition(model, wanted), condition(model, other), 2.0)(x, torch.tensor(0.5))
    assert model.sizes == sizes


def test_two_calls_where_nothing_says_what_nothing_is():
    sizes = []

    def model(x, t, cond=None):
        sizes.append(len(x))
        return x if cond is None else x + 1

    x = batch((2,))[0]
    guided = extrapolate(condition(model, 3), condition(model, None), 2.0)(x, torch.tensor(0.5))
    assert sizes == [4, 4] and torch.allclose(guided, x + 2)


def test_two_calls_for_two_networks():
    """Autoguidance: the same condition, another network."""
    big, small = Counted(), Counted()
    x, t = batch((2,))[0], torch.tensor(0.5)
    extrapolate(condition(big, 3), condition(small, 3), 2.0)(x, t)
    assert big.sizes == small.sizes == [4]


@pytest.mark.parametrize(
    "net",
    [
        networks.MLP(4, width=16, depth=1, num_classes=3),
        networks.UNet(1, width=8, multipliers=(1,), num_classes=3),
        networks.EncoderDecoder(1, width=12, num_classes=3),
    ],
    ids=lambda net: type(net).__name__,
)
def test_one_call_of_a_network_equals_two(net):
    generator = seeded(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    sizes = []

    def counted(x, t, cond):
        sizes.append(len(x))
        return net(x, t, cond)

    counted.null_cond = net.null_cond
    model = denoisers.from_network(counted, LINEAR, predictions.V)
    x = torch.randn(4, *((4,) if isinstance(net, networks.MLP) else (1, 4, 4)), generator=generator)
    for wanted in (1, torch.tensor([0, 1, 2, 0])):
        for t in (torch.tensor(0.4, dtype=torch.float64), torch.rand(4, generator=generator)):
            with torch.no_grad():
                sizes.clear()
                answer = extrapolate(condition(model, wanted), condition(model, None), 3.0)(x, t)
                assert sizes == [8]
                told = torch.as_tensor(wanted).expand(4)
                good, bad = model(x, t, told), model(x, t, None)
            assert (good - bad).abs().max() > 1e-3
            assert torch.allclose(answer, bad + 3 * (good - bad), atol=1e-5)


def test_one_scale_for_each_sample():
    good, bad = mixture(WANTED), mixture([0, 1, 2, 3])
    x, t = batch((2,))
    scale = torch.tensor([1.0, 2.0, 4.0, 0.0])
    guided = extrapolate(good, bad, scale)
    scale += 1  # what was handed over is not looked at again
    for time in (torch.tensor(0.5), t):
        for i, w in enumerate((1.0, 2.0, 4.0, 0.0)):
            one = extrapolate(good, bad, w)(x[i : i + 1], time[i : i + 1] if time.ndim else time)
            assert torch.allclose(guided(x, time)[i : i + 1], one, atol=1e-12)
    whole = extrapolate(good, bad, torch.tensor([2, 2, 2, 2]))(x, t)
    assert torch.allclose(whole, extrapolate(good, bad, 2.0)(x, t))
    with pytest.raises(ValueError, match=r"scale has shape \(4,\) but x has batch 3; give one number, or \(3,\)"):
        guided(x[:3], torch.tensor(0.5))


def test_guidance_of_guidance():
    """A guided denoiser is a denoiser: it can be guided again, on either side."""
    good, bad, worse = mixture([0]), mixture(WANTED), mixture([0, 1, 2, 3])
    x, t = batch((2,))[0], torch.tensor(0.5)
    inner = extrapolate(bad, worse, 2.0)
    expected = inner(x, t) + 1.5 * (good(x, t) - inner(x, t))
    assert torch.allclose(extrapolate(good, inner, 1.5)(x, t), expected)
    assert torch.allclose(
        clip_x0(extrapolate(inner, worse, 1.5), -0.3, 0.3)(x, t).abs().max(), torch.tensor(0.3).double()
    )


# --- t_range ---


@pytest.mark.parametrize(
    ("t", "on"),
    [(0.0, False), (0.24999, False), (0.25, True), (0.5, True), (0.75, True), (0.75001, False), (1.0, False)],
)
def test_outside_the_interval_only_good_is_asked(t, on):
    """Both ends belong to the interval."""
    model = Counted()
    x, t = batch((2,))[0], torch.tensor(t, dtype=torch.float64)
    good = condition(model, 3)
    guided = extrapolate(good, condition(model, None), 3.0, t_range=(0.25, 0.75))
    assert torch.equal(guided(x, t), good(x, t)) is not on
    assert model.sizes == ([8, 4] if on else [4, 4])


def test_the_interval_is_decided_for_each_sample():
    model = Counted()
    x, t = batch((2,))[0], torch.tensor([0.1, 0.25, 0.75, 0.9], dtype=torch.float64)
    good, bad = condition(model, 3), condition(model, None)
    for scale in (3.0, torch.tensor([3.0, 3.0, 3.0, 3.0])):
        guided = extrapolate(good, bad, scale, t_range=(0.25, 0.75))
        always = extrapolate(good, bad, scale)
        assert torch.equal(guided(x, t)[[0, 3]], good(x, t)[[0, 3]])
        assert torch.equal(guided(x, t)[1:3], always(x, t)[1:3])
        model.sizes.clear()
        assert torch.equal(guided(x, t / 8), good(x, t / 8)) and model.sizes == [4, 4]
        assert torch.equal(guided(x, torch.tensor(0.1)), good(x, torch.tensor(0.1))) and model.sizes == [4] * 4
    assert torch.equal(extrapolate(good, bad, 3.0, t_range=(0.0, 1.0))(x, t), extrapolate(good, bad, 3.0)(x, t))


@pytest.mark.parametrize(
    ("t_range", "message"),
    [
        ((0.7, 0.3), r"t_range is \(0.7, 0.3\); it must be \(low, high\) with 0 <= low <= high <= 1"),
        ((-0.1, 0.3), "0 <= low"),
        ((0.2, 1.1), "high <= 1"),
        ((0.2, math.nan), "0 <= low"),
        ((0.2,), "must be two times"),
        (0.5, "t_range is 0.5; it must be two times"),
    ],
)
def test_a_wrong_interval_is_refused(t_range, message):
    for make in (
        lambda: extrapolate(mixture([0]), mixture([1]), 2.0, t_range=t_range),
        lambda: classifier(mixture([0]), mixture([1]).log_prob, LINEAR, t_range=t_range),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (math.nan, ValueError, "scale is nan; it must be finite: 1 is off"),
        (math.inf, ValueError, "scale is inf"),
        (torch.tensor([1.0, -math.inf]), ValueError, "it must be finite"),
        ("2", TypeError, "scale is a str; it must be a number"),
        (True, TypeError, "scale is a bool"),
        (None, TypeError, "scale is a NoneType"),
        (torch.ones(2, 2), ValueError, r"scale has shape \(2, 2\)"),
        (torch.tensor([True]), ValueError, "dtype torch.bool"),
        (torch.tensor([1j]), ValueError, "dtype torch.complex64"),
    ],
)
def test_a_wrong_scale_is_refused(scale, error, message):
    for make in (
        lambda: extrapolate(mixture([0]), mixture([1]), scale),
        lambda: classifier(mixture([0]), mixture([1]).log_prob, LINEAR, scale),
    ):
        with pytest.raises(error, match=message):
            make()


def test_an_answer_of_another_shape_is_refused():
    def short(x, t, cond=None):
        return x[:, :1]

    def fine(x, t):
        return x

    x, t = batch((2,))[0], torch.tensor(0.5)
    wrong = [
        condition(short, None),
        condition(short, 1),
        extrapolate(fine, short, 2.0),
        extrapolate(short, fine, 2.0),
        extrapolate(short, fine, 1.0),
        extrapolate(condition(short, 1), condition(short, 2), 2.0),
        classifier(short, mixture([0]).log_prob, LINEAR),
        rescale(short, fine, 0.5),
        rescale(fine, short, 0.5),
        clip_x0(short),
    ]
    for denoise in wrong:
        with pytest.raises(ValueError, match=r"the denoiser's answer has shape .* nothing is broadcast"):
            denoise(x, t)
    for denoise in (extrapolate(fine, fine, 2.0), classifier(fine, mixture([0]).log_prob, LINEAR)):
        with pytest.raises(ValueError, match=r"t has shape \(3,\) but x has batch 4"):
            denoise(x, torch.rand(3))
        with pytest.raises(TypeError, match=r"x has dtype torch.int64"):
            denoise(x.long(), t)


# --- classifier guidance ---


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_exact_classifier_gives_the_conditional_denoiser(schedule, dtype, tolerance):
    """Bayes' rule, at every time and also at many standard deviations from the data."""
    everything, wanted = mixture([0, 1, 2, 3], schedule), mixture(WANTED, schedule)
    guided = classifier(everything, posterior(everything, wanted, SHARE), schedule)
    low, high = (float(schedule.t_of_log_snr(-2 * math.log(n))) for n in (0.02, 14.0))
    x, t = batch((2,), n=8)
    x, t = x.to(dtype), low + (high - low) * t
    for time in (t, *t[:3]):
        scaled = (x * _size(schedule, time)).to(dtype)
        assert guided(scaled, time).dtype == dtype
        assert torch.allclose(guided(scaled, time), wanted(scaled, time), atol=tolerance, rtol=tolerance)


def _size(schedule, t):
    size = (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt()
    return size[:, None] if size.ndim else size


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, torch.tensor([0.0, 1.0, 2.0, 5.0])], ids=str)
def test_classifier_guidance_is_extrapolation_for_exact_models(scale):
    """Scale 0 leaves the denoiser; elsewhere it is bad + scale * (good - bad)."""
    everything, wanted = mixture([0, 1, 2, 3]), mixture(WANTED)
    x, t = batch((2,))
    t = 0.05 + 0.9 * t
    guided = classifier(everything, posterior(everything, wanted, SHARE), LINEAR, scale)
    for time in (t, t[0]):
        assert torch.allclose(guided(x, time), extrapolate(wanted, everything, scale)(x, time), atol=1e-9)


def test_classifier_guidance_without_gradients_and_without_mutation():
    everything, wanted = mixture([0, 1, 2, 3]), mixture(WANTED)
    guided = classifier(everything, posterior(everything, wanted, SHARE), LINEAR, 2.0)
    x, t = batch((2,))
    before, free = x.clone(), guided(x, t)
    with torch.no_grad():
        assert torch.equal(guided(x, t), free)
    with torch.inference_mode():
        inside = x + 0
        assert inside.is_inference() and torch.equal(guided(inside, t + 0), free)
    assert torch.equal(x, before) and not x.requires_grad
    assert guided(x.float(), t).dtype == torch.float32
    ts = LINEAR.time_grid(5)
    start = samplers.start(LINEAR, (4, 2), ts, generator=seeded(), dtype=torch.float64)
    both = [
        samplers.last(samplers.dpmpp_2m(d, LINEAR, start, ts)).x for d in (guided, extrapolate(wanted, everything, 2.0))
    ]
    assert torch.allclose(*both, atol=1e-8)


def test_a_network_judges_images_of_any_shape():
    judge = networks.Classifier(1, 4, 3, width=4, feature_dim=4).eval()
    x, t = torch.randn(5, 1, 4, 4, generator=seeded()), torch.tensor(0.3, dtype=torch.float64)
    alpha, sigma = float(LINEAR.alpha(t)), float(LINEAR.sigma(t))

    def log_prob(x, t):
        return judge(x).log_softmax(1)[:, 2]

    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(log_prob(leaf, t).sum(), leaf)[0]
    expected = x + 4.0 * sigma**2 / alpha * gradient
    assert torch.allclose(classifier(lambda x, t: x, log_prob, LINEAR, 4.0)(x, t), expected, atol=1e-6)
    assert all(p.grad is None for p in judge.parameters())


def test_classifier_outside_its_interval():
    asked = []
    everything, wanted = mixture([0, 1, 2, 3]), mixture(WANTED)

    def log_prob(x, t):
        asked.append(len(x))
        return wanted.log_prob(x, t) - everything.log_prob(x, t)

    x, t = batch((2,))[0], torch.tensor([0.1, 0.25, 0.75, 0.9], dtype=torch.float64)
    guided = classifier(everything, log_prob, LINEAR, 2.0, t_range=(0.25, 0.75))
    always = classifier(everything, log_prob, LINEAR, 2.0)
    assert torch.equal(guided(x, t)[[0, 3]], everything(x, t)[[0, 3]])
    assert torch.allclose(guided(x, t)[1:3], always(x, t)[1:3], atol=1e-12)
    asked.clear()
    for off in (torch.tensor(0.2), torch.tensor(0.8), t / 8):
        assert torch.equal(guided(x, off), everything(x, off))
    assert not torch.equal(guided(x, t[1]), everything(x, t[1])) and asked == [4]
    assert torch.equal(classifier(everything, log_prob, LINEAR, 0.0)(x, t), everything(x, t)) and asked == [4]


def test_where_alpha_is_0_a_classifier_is_refused():
    cosine = schedules.Cosine()
    everything, wanted = mixture([0, 1, 2, 3], cosine), mixture(WANTED, cosine)
    log_prob = posterior(everything, wanted, SHARE)
    x, t = batch((2,))[0], torch.tensor([0.5, 0.2, 1.0, 0.7], dtype=torch.float64)
    for time in (torch.tensor(1.0), t):
        with pytest.raises(
            ValueError, match=r"alpha is 0.0e\+00 at t = 1, .* smaller t_max.* or end t_range before it"
        ):
            classifier(everything, log_prob, cosine)(x, time)
        ended = classifier(everything, log_prob, cosine, t_range=(0.0, 0.99))(x, time)
        expected = torch.where((time < 1).reshape(-1, 1), wanted(x, time), everything(x, time))
        assert torch.allclose(ended, expected, atol=1e-10)
    ended = classifier(everything, log_prob, cosine, torch.tensor([1.0, 1.0, 0.0, 1.0]))(x, t)
    assert torch.isfinite(ended).all()


def test_a_wrong_log_prob_is_refused():
    x, t = batch((2,))[0], torch.tensor(0.5)
    for wrong, message in (
        (lambda x, t: x.sum(), r"shape \(\) for a batch of 4; it must be \(4,\)"),
        (lambda x, t: x, r"shape \(4, 2\) for a batch of 4"),
        (lambda x, t: 1.0, "type float for a batch of 4"),
        (lambda x, t: x.detach().sum(1), "log_prob has no gradient in x"),
        (lambda x, t: x.argmax(1), "log_prob has no gradient in x"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier(mixture([0]), wrong, LINEAR)(x, t)


# --- the whole of guided sampling, in closed form ---


def gaussian(mean, variance, schedule):
    return denoisers.GaussianMixture(
        torch.tensor([[mean]], dtype=torch.float64),
        torch.tensor([variance], dtype=torch.float64),
        torch.ones(1),
        schedule,
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "exploding"])
def test_guided_sampling_of_gaussians_in_closed_form(name, scale):
    """With p(x | c) = N(m, v) and p(x) = N(0, V) the guided ODE is linear, and its solution known.

    With n = sigma / alpha and y = x / alpha it is dy/dn = n [w (y - m) / (v + n^2) + (1 - w) y / (V + n^2)], which
    shrinks differences in proportion to f(n) = (v + n^2)^(w/2) (V + n^2)^((1-w)/2), and moves the mean by
    f(0) times the integral of m w n / ((v + n^2) f(n)).
    """
    schedule, m, v, V = SCHEDULES[name], 0.8, 0.3, 1.4
    guided = extrapolate(gaussian(m, v, schedule), gaussian(0.0, V, schedule), scale)
    t_max = float(schedule.t_of_log_snr(-2 * math.log(40.0)))
    ts = schedule.time_grid(300, spacing="log_snr", t_max=t_max, t_min=float(schedule.t_of_log_snr(2 * math.log(1e3))))
    x = samplers.start(schedule, (6, 1), ts, generator=seeded(), dtype=torch.float64)
    n = schedule.noise_to_signal(ts[0])

    def f(n):
        return (v + n**2) ** (scale / 2) * (V + n**2) ** ((1 - scale) / 2)

    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64) ** 3 * n
    drift = torch.trapezoid(m * scale * grid / ((v + grid**2) * f(grid)), grid)
    expected = f(torch.zeros(())) * (x / float(schedule.alpha(ts[0])) / f(n) + drift)
    assert torch.allclose(samplers.last(samplers.adams(guided, schedule, x, ts)).x, expected, atol=1e-5)


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.ddpm, samplers.heun, samplers.dpmpp_2m, samplers.adams])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_sampler_walks_with_guidance(name, sampler):
    """To the mode that the guided class has, from every schedule."""
    schedule = SCHEDULES[name]
    model = Counted()

    def told(x, t, cond):  # class 1 at +1, class 2 at -1; nothing told: 0
        model.sizes.append(len(x))
        return (torch.tensor([0.0, 1.0, -1.0])[cond].reshape(-1, 1) + 0 * x).to(x.dtype)

    told.null_cond = 0
    guided = clip_x0(
        extrapolate(condition(told, torch.tensor([1, 2, 1])), condition(told, None), 3.0, t_range=(0.0, 0.9)), -2, 2
    )
    ts = samplers.grid(sampler, schedule, 6)
    x = samplers.start(schedule, (3, 1), ts, generator=seeded())
    more = {"generator": seeded(1)} if sampler is samplers.ddpm else {}
    last = samplers.last(sampler(guided, schedule, x, ts, **more))
    assert torch.allclose(last.x, torch.tensor([[2.0], [-2.0], [2.0]]), atol=1e-4)
    assert set(model.sizes) <= {3, 6} and 6 in model.sizes


# --- rescale and clip_x0 ---


@pytest.mark.parametrize("shape", [(7,), (2, 3, 3)])
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_brings_the_spread_back(shape, phi):
    model = Counted()
    x, t = batch(shape)

    def wavy(x, t, cond):
        model.sizes.append(len(x))
        return (x * (1 + cond.reshape(-1, *[1] * (x.ndim - 1)))).sin() + 0.2

    good, bad = condition(wavy, 2), condition(wavy, 1)
    guided = extrapolate(good, bad, 4.0)
    like, before = good(x, t).flatten(1), guided(x, t).flatten(1)
    model.sizes.clear()
    after = rescale(guided, good, phi)(x, t)
    assert model.sizes == [8]  # both answers from one call
    ratio = like.std(1) / before.std(1)
    assert torch.allclose(after.flatten(1), (1 - phi + phi * ratio)[:, None] * before, atol=1e-12)
    if phi == 1:
        assert torch.allclose(after.flatten(1).std(1), like.std(1))
    apart = rescale(lambda x, t: guided(x, t), good, phi)(x, t)  # not known as an extrapolation: asked apart
    assert torch.allclose(apart, after) and model.sizes == [8, 8, 4][:1] + sorted(model.sizes[1:])
    other = rescale(guided, bad, 1.0)(x, t).flatten(1).std(1)
    assert torch.allclose(other, bad(x, t).flatten(1).std(1))


def test_rescale_where_guidance_is_off_changes_nothing():
    x = batch((5,))[0].float()
    good = lambda x, t: x.sin()  # noqa: E731
    guided = extrapolate(good, lambda x, t: x.cos(), 4.0, t_range=(0.2, 0.8))
    for phi in (0.3, 0.7, 1.0):
        assert torch.equal(rescale(guided, good, phi)(x, torch.tensor(0.1)), x.sin())
    flat = rescale(lambda x, t: 0 * x + 3, good, 1.0)(x, torch.tensor(0.5))
    assert torch.equal(flat, torch.full_like(x, 3.0)) and flat.dtype == torch.float32
    assert rescale(guided, good, 0.5)(x.bfloat16(), torch.tensor(0.5)).dtype == torch.bfloat16


def test_rescale_refuses():
    good = mixture([0])
    for phi in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"phi is .*; it must lie in \[0, 1\]: 0 is off"):
            rescale(good, good, phi)
    with pytest.raises(ValueError, match=r"x has shape \(4, 1\); a sample of one element has no spread"):
        rescale(lambda x, t: x, lambda x, t: x, 0.5)(torch.ones(4, 1), torch.tensor(0.5))


def test_clip():
    x = batch((50,))[0] * 3
    assert torch.equal(clip_x0(lambda x, t: x)(x, 0.5), x.clamp(-1, 1))
    assert torch.equal(clip_x0(lambda x, t: x, 0.0, 0.5)(x, 0.5), x.clamp(0, 0.5))
    for low, high in ((1.0, 1.0), (1.0, -1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="low must be below high"):
            clip_x0(lambda x, t: x, low, high)


def test_objects_are_frozen():
    guided = extrapolate(condition(Counted(), 1), condition(Counted(), None), 2.0)
    assert isinstance(guided, guidance.Extrapolated) and guided.t_range == (0.0, 1.0)
    for thing, name in ((guided, "scale"), (guided.good, "cond")):
        with pytest.raises(AttributeError):
            setattr(thing, name, 3)
