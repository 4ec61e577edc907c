"""Training against the loop written out, and against the exact denoiser that it should approach."""

import copy
import math
import sys

import pytest
import torch
from cases import seeded
from torch import nn

from companion import checkpoints, data, denoisers, losses, networks, predictions, schedules, training

COSINE, FLOW = schedules.Cosine(), schedules.FlowMatching()


def small(seed=0, **more):
    """An MLP with known initial weights, made without touching the global seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return networks.MLP(2, **{"width": 16, "depth": 1, **more})


def source(labels=False, size=8, seed=5):
    x = torch.randn(32, 2, generator=seeded(seed))
    return data.batches(x, torch.arange(32) % 3 if labels else None, size=size, generator=seeded(seed))


def train(net, batches, *, schedule=COSINE, prediction=predictions.V, num_steps=5, progress=False, **more):
    return training.fit(net, batches, schedule, prediction, num_steps=num_steps, progress=progress, **more)


def run(net, batches, **more):
    return list(train(net, batches, **more))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


class WithBuffer(nn.Module):
    """A network that counts its calls in a buffer, and keeps the classes and the mode that it saw."""

    def __init__(self, null_cond=None):
        super().__init__()
        self.linear, self.null_cond, self.seen, self.modes = nn.Linear(2, 2), null_cond, [], []
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x, t, cond=None):
        self.seen.append(cond)
        self.modes.append(self.training)
        with torch.no_grad():
            self.calls += 1.5
            self.count += 1
        return self.linear(x)


# --- the average ---


def test_ema_by_hand():
    """m <- d m + (1 - d) w with d = min(decay, (1 + k) / (10 + k)) after k updates."""
    net = nn.Linear(2, 1, bias=False).double()
    net.weight.data = torch.tensor([[1.0, -2.0]]).double()
    ema = training.EMA(net, decay=0.3)
    average = net.weight.detach().clone()
    for k in range(12):
        net.weight.data = torch.randn(1, 2, generator=seeded(k), dtype=torch.float64)
        ema.update(net)
        decay = min(0.3, (1 + k) / (10 + k))
        average = decay * average + (1 - decay) * net.weight.detach()
        torch.testing.assert_close(ema.net.weight, average, rtol=1e-12, atol=1e-12)
        assert ema.updates == k + 1
    assert (1 + 2) / (10 + 2) < 0.3 < (1 + 3) / (10 + 3)  # both branches were taken


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_ema_of_little_decay(decay):
    net = nn.Linear(3, 3)
    ema = training.EMA(net, decay=decay)
    before = ema.net.weight.clone()
    net.weight.data += 1
    ema.update(net)
    torch.testing.assert_close(ema.net.weight, decay * before + (1 - decay) * net.weight)


def test_ema_copies_buffers_and_leaves_the_network_alone():
    net = WithBuffer()
    ema = training.EMA(net)
    assert ema.net is not net and not ema.net.training and net.training
    assert not any(p.requires_grad for p in ema.net.parameters()) and all(p.requires_grad for p in net.parameters())
    kept = copy.deepcopy(net.state_dict())
    net.calls += 7.25
    net.count += 3
    ema.update(net)
    assert ema.net.calls.item() == 7.25 and ema.net.count.item() == 3
    assert net.calls.item() == 7.25 and torch.equal(net.linear.weight, kept["linear.weight"])
    net.linear.weight.data.add_(1)
    assert torch.equal(ema.net.linear.weight, kept["linear.weight"])  # shares no memory


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match=rf"decay is {decay}; it must lie in \[0, 1\): 0.999"):
        training.EMA(nn.Linear(1, 1), decay)
    with pytest.raises(ValueError, match=rf"decay is {decay}"):
        train(small(), source(), ema_decay=decay)


# --- fit, written out ---


def book_lr(index, num_steps, warmup, lr):
    """Up in a straight line over the warm-up, then down half a cosine."""
    if index <= warmup:
        return lr * index / warmup
    return lr * (1 + math.cos(math.pi * (index - 1 - warmup) / (num_steps - warmup))) / 2


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(("warmup", "clip"), [(3, 0.05), (0, 100.0)])
@pytest.mark.parametrize(
    ("schedule", "prediction", "weight"),
    [
        (COSINE, predictions.V, losses.simple),
        (FLOW, predictions.VELOCITY, lambda alpha, sigma, a, b: 2 + sigma),
    ],
)
def test_fit_written_out(labels, warmup, clip, schedule, prediction, weight):
    """Adam, warm-up and cosine, clipping by the norm, and the average, step by step."""
    num_steps, drop = 12, 0.4 if labels else 0.0
    net = small(num_classes=3 if labels else None)
    mine = copy.deepcopy(net)
    steps = train(
        net, source(labels), schedule=schedule, prediction=prediction, weight=weight, num_steps=num_steps,
        lr=0.01, warmup=warmup, clip=clip, ema_decay=0.35, drop_cond=drop, generator=seeded(9),
    )  # fmt: skip

    parameters, generator = list(mine.parameters()), seeded(9)
    average = [p.detach().clone() for p in parameters]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for k, (step, (x, cond)) in enumerate(zip(steps, source(labels), strict=False), start=1):
        if labels:
            cond = torch.where(torch.rand(len(x), generator=generator) < drop, 3, cond)
        loss = losses.denoising_loss(mine, x, schedule, prediction, cond=cond, weight=weight, generator=generator)
        grads = torch.autograd.grad(loss.mean(), parameters)
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        lr = book_lr(k, num_steps, warmup, 0.01)
        decay = min(0.35, k / (9 + k))
        with torch.no_grad():
            for p, g, m, v, a in zip(parameters, grads, first, second, average, strict=True):
                g = g * min(1.0, clip / norm)
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g**2)
                p.sub_(lr * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8))
                a.mul_(decay).add_((1 - decay) * p)
        assert step.index == k
        torch.testing.assert_close(step.loss, loss.mean().detach(), rtol=1e-4, atol=1e-5)
        for theirs, a in zip(step.ema.parameters(), average, strict=True):
            torch.testing.assert_close(theirs, a, rtol=1e-3, atol=2e-5)
        if k < num_steps:
            for theirs, p in zip(net.parameters(), parameters, strict=True):
                torch.testing.assert_close(theirs, p, rtol=1e-3, atol=2e-5)
    assert k == num_steps
    for theirs, a in zip(net.parameters(), average, strict=True):
        torch.testing.assert_close(theirs, a, rtol=1e-3, atol=2e-5)


@pytest.fixture
def recorded(monkeypatch):
    """The learning rate and the gradient's norm at each of the optimiser's steps."""
    seen = []

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            grads = [p.grad for group in self.param_groups for p in group["params"]]
            seen.append((self.param_groups[0]["lr"], math.sqrt(sum(float(g.square().sum()) for g in grads))))
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    return seen


@pytest.mark.parametrize(("num_steps", "warmup"), [(40, 10), (40, 0), (40, 39), (5, 100), (1, 0), (10, 10)])
def test_learning_rates(recorded, num_steps, warmup):
    run(small(), source(), num_steps=num_steps, warmup=warmup, lr=0.01)
    rates = [rate for rate, _ in recorded]
    assert rates == pytest.approx([book_lr(k, num_steps, warmup, 0.01) for k in range(1, num_steps + 1)], rel=1e-12)
    if warmup:
        assert rates[0] == pytest.approx(0.01 / warmup)  # not 0: the first step counts
    if warmup < num_steps:
        assert max(rates) == rates[max(warmup - 1, 0)] == pytest.approx(0.01)
    assert rates[-1] > 0  # nor is the last step lost
    if num_steps - warmup >= 30:
        assert rates[-1] < 0.01 * 0.01


@pytest.mark.parametrize("clip", [1e-3, 0.05])
def test_gradients_are_clipped(recorded, clip):
    run(small(), source(), num_steps=8, clip=clip)
    assert [norm for _, norm in recorded] == pytest.approx([clip] * 8, rel=1e-2)


def test_gradients_are_not_clipped_below_the_limit(recorded):
    run(small(), source(), num_steps=8, clip=math.inf)
    free = [norm for _, norm in recorded]
    recorded.clear()
    run(small(), source(), num_steps=8, clip=1e6, generator=seeded())
    one = [norm for _, norm in recorded]
    recorded.clear()
    run(small(), source(), num_steps=8, clip=math.inf, generator=seeded())
    assert one == pytest.approx([norm for _, norm in recorded], rel=1e-6) and min(free) > 0.1


# --- classes ---


def test_a_share_of_the_classes_is_dropped():
    x, y = torch.zeros(1000, 2), torch.arange(1000) % 3
    net, batches = WithBuffer(null_cond=3), data.batches(x, y, size=1000, generator=seeded(1))
    run(net, batches, num_steps=20, drop_cond=0.2, generator=seeded(2))
    given = data.batches(x, y, size=1000, generator=seeded(1))
    drops = []
    for cond, (_, clean) in zip(net.seen, given, strict=False):
        assert ((cond == clean) | (cond == 3)).all()
        drops.append(cond == 3)
    drops = torch.stack(drops).double()
    assert abs(drops.mean().item() - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 20_000)
    by_batch = drops.mean(1)  # each sample by itself, not a batch at a time
    assert by_batch.min() > 0.1 and by_batch.max() < 0.3
    assert torch.equal(y, torch.arange(1000) % 3)


@pytest.mark.parametrize(("share", "wanted"), [(0.0, {0, 1, 2}), (1.0, {3})])
def test_none_or_all_of_the_classes_are_dropped(share, wanted):
    net = WithBuffer(null_cond=3)
    run(net, source(labels=True), drop_cond=share)
    assert set(torch.cat(net.seen).tolist()) == wanted


def test_the_callers_labels_are_not_changed():
    x, y = torch.randn(8, 2), torch.arange(8) % 3
    run(small(num_classes=3), iter([(x, y)] * 5), drop_cond=0.9)
    assert torch.equal(y, torch.arange(8) % 3)


def test_an_unconditional_network_is_told_nothing():
    net = WithBuffer()
    run(net, source())
    assert net.seen == [None] * 5


# --- what comes out ---


def test_what_a_step_holds():
    net = WithBuffer()
    steps, seen = train(net, source(), num_steps=7), []
    for step in steps:
        assert isinstance(step, training.TrainStep)
        seen.append(step.index)
        assert step.loss.shape == () and not step.loss.requires_grad and step.loss > 0
        assert net.training and net.modes[-1]
        assert step.ema is not net and not step.ema.training
        assert not any(p.requires_grad for p in step.ema.parameters())
        assert step.ema.count == len(seen)
    assert seen == list(range(1, 8)) and len(net.seen) == 7
    assert same(net, step.ema) and not net.training and net.count == 7
    assert all(p.requires_grad for p in net.parameters())


def test_the_network_is_put_into_training_mode():
    net = WithBuffer().eval()
    next(train(net, source()))
    assert net.modes == [True]


def test_lazy_but_checked_at_once():
    net = WithBuffer()
    steps = train(net, source())
    assert not net.seen
    next(steps)
    assert len(net.seen) == 1


def test_the_average_is_what_the_network_ends_with():
    net = small()
    steps = train(net, source(), num_steps=10, lr=0.01, warmup=0)
    for step in steps:
        last_raw = copy.deepcopy(net)
        average = copy.deepcopy(step.ema)
        assert not same(net, step.ema)
        if step.index == 10:
            break
    assert not list(steps)
    assert same(net, average) and not same(net, last_raw) and not net.training


def test_training_under_no_grad():
    """A consumer in no_grad, such as one that samples between steps, does not stop the training."""
    net, twin = small(), small()
    with torch.no_grad():
        run(net, source(), generator=seeded(1))
    run(twin, source(), generator=seeded(1))
    assert same(net, twin)


def test_same_seed_same_weights_and_the_global_seed_is_left_alone():
    state = torch.get_rng_state()
    nets = [small(num_classes=3) for _ in range(3)]
    first = [
        run(net, source(labels=True), num_steps=10, drop_cond=0.3, generator=seeded(seed))
        for net, seed in zip(nets, (1, 1, 2), strict=True)
    ]
    assert same(nets[0], nets[1]) and not same(nets[0], nets[2])
    assert [float(step.loss) for step in first[0]] == [float(step.loss) for step in first[1]]
    assert torch.equal(torch.get_rng_state(), state)


def test_data_are_not_changed():
    x = torch.randn(32, 2, generator=seeded())
    kept = x.clone()
    run(small(), iter([(x, None)] * 5))
    assert torch.equal(x, kept)


def test_batches_come_to_the_network(device):
    """The caller's batches lie on the CPU, wherever the network is."""
    net = small(num_classes=3).to(device)
    steps = run(net, source(labels=True), drop_cond=0.5, generator=seeded(1))
    assert steps[-1].loss.device.type == device.type
    assert {p.device.type for p in (*net.parameters(), *steps[-1].ema.parameters())} == {device.type}
    here = run(small(num_classes=3), source(labels=True), drop_cond=0.5, generator=seeded(1))
    assert [float(s.loss) for s in steps] == pytest.approx([float(s.loss) for s in here], rel=1e-3)


def test_batches_come_to_a_network_elsewhere():
    """The same without an accelerator: torch's meta device has shapes and no values."""
    net = WithBuffer(null_cond=3).to("meta")
    step = next(train(net, source(labels=True), drop_cond=0.5, generator=seeded(1)))
    assert step.loss.device.type == net.seen[0].device.type == "meta"


# --- the bar ---


def test_no_bar(capsys):
    run(small(), source(), progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_bar(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    run(small(), source(), progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "training" in shown.err and "0/5" in shown.err


def test_no_bar_where_the_environment_says_so(capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert len(run(small(), source(), progress=True)) == 5
    assert capsys.readouterr() == ("", "")


def test_no_bar_without_tqdm(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert len(run(small(), source(), progress=True)) == 5
    assert capsys.readouterr() == ("", "")


# --- it learns ---


def as_network(exact, schedule):
    """The exact denoiser as a network that outputs v = alpha eps - sigma x0."""

    def net(x, t, cond=None):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        x0 = exact(x, t)
        return alpha * (x - alpha * x0) / sigma - sigma * x0

    return net


def test_learns_the_exact_denoiser():
    """Two blobs: after 700 small steps the mean squared error to E[x0 | x] is under 2 % of the data's power.

    The loss reaches the floor that the exact denoiser has on the same noise, and does not fall below it.
    """
    exact = denoisers.GaussianMixture(
        torch.tensor([[1.0, 0.4], [-0.9, -0.5]]), torch.tensor([0.04, 0.15]), torch.tensor([0.4, 0.6]), COSINE
    )
    net = small(width=64, depth=2)
    draw = seeded(3)
    batches = ((exact.sample(256, generator=draw), None) for _ in range(700))
    steps = run(net, batches, num_steps=700, lr=6e-3, generator=seeded(4))
    assert len(steps) == 700
    x0 = exact.sample(4000, generator=seeded(5))
    model = denoisers.from_network(net, COSINE, predictions.V)
    with torch.no_grad():
        for t in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
            x = COSINE.alpha(t) * x0 + COSINE.sigma(t) * torch.randn(4000, 2, generator=seeded(6))
            wanted, time = exact(x.float(), t), torch.tensor(t)
            assert (model(x.float(), time) - wanted).square().mean() < 0.02 * x0.square().mean()
        untrained = denoisers.from_network(small(width=64, depth=2), COSINE, predictions.V)
        assert (untrained(x.float(), time) - wanted).square().mean() > 0.05 * x0.square().mean()
        loss, floor = (
            losses.denoising_loss(f, x0, COSINE, predictions.V, generator=seeded(7)).mean()
            for f in (net, as_network(exact, COSINE))
        )
    assert 0.995 * floor < loss < 1.05 * floor


def test_learns_two_points():
    """Two points: the exact denoiser is a hyperbolic tangent, which the network finds to 0.1 in the mean square."""
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    exact = denoisers.FiniteDataset(points, COSINE)
    net = small(width=32, depth=1)
    draw = seeded(3)
    batches = ((points[torch.randint(2, (128,), generator=draw)], None) for _ in range(500))
    run(net, batches, num_steps=500, lr=6e-3, generator=seeded(4))
    x = torch.randn(2000, 2, generator=seeded(5))
    model = denoisers.from_network(net, COSINE, predictions.V)
    for t in (0.5, 0.7, 0.9):
        alpha, sigma = float(COSINE.alpha(t)), float(COSINE.sigma(t))
        noisy = alpha * points.repeat(1000, 1) + sigma * x
        wanted = exact(noisy, t)
        torch.testing.assert_close(wanted[:, 0], torch.tanh(alpha * noisy[:, 0] / sigma**2), rtol=1e-3, atol=1e-4)
        assert (model(noisy, torch.tensor(t)) - wanted).square().sum(1).mean().sqrt() < 0.1


# --- bad input ---


class Loop:
    """A network whose answer is NaN from its third call on."""

    def __init__(self):
        self.calls = 0

    def __call__(self, module, given, out):
        self.calls += 1
        return out * (math.nan if self.calls >= 3 else 1.0)


def test_nan_in_the_loss():
    net = small()
    net.register_forward_hook(Loop())
    steps = train(net, source())
    assert [next(steps).index, next(steps).index] == [1, 2]
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match=r"the loss at step 3 is nan; it must be finite: lower lr, and look for NaN"):
        next(steps)
    assert same(net, before)  # the weights from before the bad step are kept


@pytest.mark.parametrize("num_steps", [3, 50])
def test_nan_on_each_device(device, num_steps):
    """An accelerator is asked only now and then, but at the last step always."""
    net = small().to(device)
    net.register_forward_hook(Loop())
    with pytest.raises(ValueError, match=r"the loss at step \d+ is nan"):
        run(net, source(), num_steps=num_steps)


def test_nan_in_the_data():
    with pytest.raises(ValueError, match=r"x0 holds NaN or infinity.*look at the data"):
        run(small(), iter([(torch.full((4, 2), math.nan), None)]))


def test_integer_data():
    with pytest.raises(TypeError, match=r"x0 has dtype torch\.int64.*scaled to \[-1, 1\]"):
        run(small(), iter([(torch.zeros(4, 2, dtype=torch.int64), None)]))


def test_batches_that_end():
    steps = train(small(), iter([(torch.randn(4, 2), None)] * 3))
    for _ in range(3):
        next(steps)
    with pytest.raises(ValueError, match=r"the batches ended at step 4 of 5: data\.batches goes on for ever"):
        next(steps)


def test_batches_without_labels():
    with pytest.raises(ValueError, match=r"network takes classes but the batches give none: use data\.batches\(x, y"):
        next(train(small(num_classes=3), source()))


def test_labels_for_a_network_without_classes():
    with pytest.raises(ValueError, match="takes no class"):
        next(train(small(), source(labels=True)))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps is 0; it must be at least 1"),
        ({"num_steps": 10.0}, TypeError, r"num_steps is 10\.0; it must be an int"),
        ({"warmup": -1}, ValueError, "warmup is -1; it must be at least 0"),
        ({"lr": 0.0}, ValueError, r"lr is 0\.0 and clip 1\.0; both must be positive"),
        ({"lr": -1e-3}, ValueError, r"lr is -0\.001"),
        ({"lr": math.nan}, ValueError, "lr is nan"),
        ({"lr": math.inf}, ValueError, "lr is inf"),
        ({"clip": 0.0}, ValueError, r"clip 0\.0; both must be positive"),
        ({"clip": -1.0}, ValueError, r"clip -1\.0"),
        ({"clip": math.nan}, ValueError, "clip nan"),
        ({"drop_cond": -0.1}, ValueError, r"drop_cond is -0\.1; it is a share and must lie in \[0, 1\]"),
        ({"drop_cond": 1.1}, ValueError, r"drop_cond is 1\.1"),
        ({"drop_cond": math.nan}, ValueError, "drop_cond is nan"),
        ({"accumulate": 0}, ValueError, "accumulate is 0; it must be at least 1"),
        ({"accumulate": 1.5}, TypeError, r"accumulate is 1\.5; it must be an int"),
        ({"precision": "half"}, ValueError, "precision is 'half'; it must be one of float32, bfloat16, float16"),
        ({"save_every": 3}, ValueError, "save_every is 3 but there is no file to save in: give checkpoint="),
        ({"save_every": 0}, ValueError, "save_every is 0; it must be at least 1"),
        ({"drop_cond": 0.1}, ValueError, r"drop_cond is 0\.1 but MLP has no null_cond: give it num_classes"),
    ],
)
def test_bad_settings(settings, error, message):
    """Refused when fit is called, before the first batch is taken."""
    taken = []

    def batches():
        taken.append(1)
        yield torch.randn(4, 2), None

    with pytest.raises(error, match=message):
        train(small(), batches(), **settings)
    assert not taken


# --- options ---


def test_half_cosine_and_constant():
    assert [training.half_cosine(k / 4) for k in range(5)] == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    assert [training.constant(k / 4) for k in range(5)] == [1] * 5


@pytest.mark.parametrize("lr_decay", [training.constant, lambda done: 1 - done])
def test_another_decay_of_the_learning_rate(recorded, lr_decay):
    """It is asked for the part of the steps after the warm-up that is done, and multiplies the warm-up."""
    steps = run(small(), source(), num_steps=20, warmup=4, lr=0.01, lr_decay=lr_decay)
    wanted = [0.01 * min(1, k / 4) * lr_decay(max(0, k - 5) / 16) for k in range(1, 21)]
    assert [rate for rate, _ in recorded] == pytest.approx(wanted, rel=1e-12)
    assert [step.lr for step in steps] == [rate for rate, _ in recorded]


def test_the_norm_in_a_step_is_from_before_clipping(recorded):
    loose = [float(s.grad_norm) for s in run(small(), source(), num_steps=1, clip=math.inf, generator=seeded())]
    tight = [float(s.grad_norm) for s in run(small(), source(), num_steps=1, clip=0.01, generator=seeded())]
    assert loose == tight == pytest.approx([recorded[0][1]]) and recorded[1][1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_ema_without_its_warmup(decay):
    net = small()
    average = [p.detach().clone() for p in net.parameters()]
    for step in train(net, source(), num_steps=6, ema_decay=decay, ema_warmup=False, lr=0.01, warmup=0):
        with torch.no_grad():
            average = [decay * a + (1 - decay) * p for a, p in zip(average, net.parameters(), strict=True)]
        for mine, theirs in zip(average, step.ema.parameters(), strict=True):
            torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-7)
    assert decay or same(step.ema, net)


def test_times_of_ones_own():
    """Asked for n times with the generator and the device; the network sees them."""
    asked, seen = [], []

    def times(n, *, generator, device):
        asked.append((n, generator, torch.device(device).type))
        return torch.linspace(0.25, 0.75, n)

    net, draw = small(), seeded()
    net.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    run(net, source(size=4), num_steps=3, times=times, generator=draw)
    assert asked == [(4, draw, "cpu")] * 3
    assert all(torch.equal(t, torch.linspace(0.25, 0.75, 4)) for t in seen)


def test_default_times_are_those_of_the_loss():
    nets = [small(), small()]
    run(nets[0], source(), generator=seeded(1), times=losses.stratified_times)
    run(nets[1], source(), generator=seeded(1))
    assert same(*nets)


# --- accumulation ---


def even_times(n, *, generator, device):
    """Times that draw nothing from the generator and do not depend on how the batch is cut."""
    return torch.full((n,), 0.6, device=device)


@pytest.mark.parametrize(("accumulate", "size"), [(2, 16), (4, 8)])
@pytest.mark.parametrize("clip", [0.05, math.inf])
def test_accumulation_is_one_large_batch(accumulate, size, clip):
    """The same samples and the same noise in pieces: the gradient of the whole, to the rounding of float64."""
    x = torch.randn(128, 4, generator=seeded(2), dtype=torch.float64)

    def pieces(n):
        return ((piece, None) for piece in x.split(n))

    nets, found = [], []
    for n, k in ((32, 1), (size, accumulate)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = networks.MLP(4, width=16, depth=1).double()
        steps = run(
            net, pieces(n), num_steps=4, accumulate=k, times=even_times, generator=seeded(3), lr=0.01, warmup=0,
            clip=clip,
        )  # fmt: skip
        nets.append(net)
        found.append([(float(s.loss), float(s.grad_norm)) for s in steps])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_accumulation_takes_so_many_batches():
    taken = []

    def batches():
        while True:
            taken.append(1)
            yield torch.randn(4, 2, generator=seeded(len(taken))), None

    net = WithBuffer()
    steps = run(net, batches(), num_steps=3, accumulate=5)
    assert len(steps) == 3 and len(taken) == 15 and net.count == 15


def test_nan_in_the_second_of_two_batches():
    net = small()
    net.register_forward_hook(Loop())
    steps = train(net, source(), accumulate=2)
    next(steps)
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match=r"the loss at step 2 is nan"):
        next(steps)
    assert same(net, before)


# --- precision ---


class SeesDtype(nn.Module):
    """A network that notes in which type it computes."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(2, 2), set()

    def forward(self, x, t, cond=None):
        out = self.linear(x)
        self.seen.add((x.dtype, t.dtype, out.dtype))
        return out


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precision(precision, device):
    """Only the network computes in it: its inputs, weights, gradients, average and loss stay float32."""
    if device.type == "away" and precision != "float32":
        pytest.skip("the device that stands for a second one has no autocast")
    torch.manual_seed(0)
    net = SeesDtype().to(device)
    grads = []
    net.linear.weight.register_hook(lambda grad: grads.append(grad.dtype))
    steps = run(net, source(), precision=precision)
    assert net.seen == {(torch.float32, torch.float32, getattr(torch, precision))}
    assert {p.dtype for p in (*net.parameters(), *steps[-1].ema.parameters())} == {torch.float32}
    assert set(grads) == {torch.float32} and {s.loss.dtype for s in steps} == {torch.float32}
    assert int(steps[-1].skipped) <= (1 if precision == "float16" else 0)  # float16 begins with a large scale


@pytest.mark.parametrize(("precision", "digits"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_half_precision_is_near(precision, digits):
    """The losses, and the gradient's norm with the scale of the loss taken out of it."""
    runs = [
        run(small(), source(), generator=seeded(1), num_steps=10, precision=p, clip=0.05)
        for p in ("float32", precision)
    ]
    for name in ("loss", "grad_norm"):
        found = [[float(getattr(step, name)) for step in steps] for steps in runs]
        assert found[0] != found[1] and found[0] == pytest.approx(found[1], rel=3 * digits)


class Overflow(nn.Module):
    """A network whose gradient leaves float16's range while the loss is scaled by more than `limit`."""

    def __init__(self, limit):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.linear.weight.register_hook(lambda grad: grad * (math.inf if grad.abs().max() > limit else 1.0))

    def forward(self, x, t, cond=None):
        return self.linear(x)


def test_float16_skips_are_counted():
    """The scale falls until the gradient fits; until then no weight moves, and each step says so."""
    torch.manual_seed(0)
    net = Overflow(5_000)
    before, moved, counted, norms = net.linear.weight.detach().clone(), [], [], []
    for step in train(net, source(), precision="float16", num_steps=12, lr=0.01, warmup=0, generator=seeded()):
        moved.append(not torch.equal(net.linear.weight, before))
        before = net.linear.weight.detach().clone()
        counted.append(int(step.skipped))
        norms.append(math.isfinite(float(step.grad_norm)))
    skips = moved.index(True)
    assert 1 <= skips <= 6 and moved == norms == [False] * skips + [True] * (12 - skips)
    assert counted == [min(k, skips) for k in range(1, 13)]


def test_float16_that_never_fits():
    with pytest.raises(ValueError, match=r"at step 20 the float16 gradient has overflowed 20 times in a row.*bfloat16"):
        run(Overflow(0.0), source(), precision="float16", num_steps=50)


def test_an_infinite_gradient():
    net = Overflow(0.0)
    before = copy.deepcopy(net.linear)
    with pytest.raises(ValueError, match=r"the gradient's norm at step 1 is (inf|nan); it must be finite: lower lr"):
        run(net, source())
    assert same(net.linear, before)


# --- activation checkpointing ---


def unet(seed=0, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return networks.UNet(1, width=8, multipliers=(1, 2), num_classes=3, **more)


def image_source(size=8, seed=5):
    x = torch.randn(24, 1, 4, 4, generator=seeded(seed))
    return data.batches(x, torch.arange(24) % 3, size=size, generator=seeded(seed))


def kept_bytes(net, x):
    """What autograd keeps for the way back, the weights not counted."""
    own, kept = {p.untyped_storage().data_ptr() for p in net.parameters()}, {}

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        out = net(x, torch.full((len(x),), 0.5))
    assert out.requires_grad == bool(kept)
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("attention", [(), (1,)])
def test_activation_checkpointing_changes_no_bit(dropout, attention):
    nets = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        net = unet(dropout=dropout, attention=attention, checkpointing=checkpointing)
        run(net, image_source(), num_steps=4, generator=seeded(2), warmup=0)
        nets.append(net)
    assert same(*nets) and nets[0].state_dict().keys() == nets[1].state_dict().keys()


def test_activation_checkpointing_keeps_less():
    x = torch.randn(32, 1, 16, 16)
    plain, thrifty = (unet(checkpointing=c) for c in (False, True))
    assert 0 < kept_bytes(thrifty, x) < 0.4 * kept_bytes(plain, x)
    assert kept_bytes(thrifty.eval(), x) == kept_bytes(plain.eval(), x)  # only while training
    with torch.no_grad():
        assert kept_bytes(thrifty.train(), x) == 0


# --- stop and resume ---

ON = {"num_steps": 12, "drop_cond": 0.3, "accumulate": 2, "warmup": 3, "lr": 0.01, "progress": False}


def whole_run(setting):
    """Networks, source and generators of a setting, as a program makes them when it starts; and the steps."""

    def start(seed, path=None, **more):
        torch.manual_seed(seed)  # dropout, and whatever has no generator
        draw = None if setting == "global" else seeded(seed)
        x = torch.randn(10, 1, 4, 4, generator=seeded(77))
        y = torch.arange(10) % 3
        own = {"shared": draw, "separate": seeded(seed + 1), "global": None, "plain": None}[setting]
        batches = data.batches(x, y, size=3, generator=own, transform=noisy if setting == "shared" else None)
        if setting == "plain":  # an iterator without a state, with a seed of its own
            batches = ((x[i : i + 3], y[i : i + 3]) for i in [0, 3, 6, 1, 4, 7, 2, 5] * 9)
        net = networks.UNet(1, width=8, multipliers=(1,), num_classes=3, dropout=0.3)
        saving = {} if path is None else {"checkpoint": path, "save_every": 3}
        options = {**ON, **saving, **more, "generator": draw}
        return net, training.fit(net, batches, COSINE, predictions.V, **options)

    return start


def noisy(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def finish(net, steps):
    """Run to the end: the raw and the averaged weights after the last step, and the losses."""
    losses_, raw, averaged = [], None, None
    for step in steps:
        losses_.append(float(step.loss))
        raw, averaged = copy.deepcopy(net.state_dict()), copy.deepcopy(step.ema.state_dict())
    return raw, averaged, losses_


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


SETTINGS = ["shared", "separate", "global", "plain"]


@pytest.fixture(scope="module", params=SETTINGS)
def straight(request):
    """A run that nothing stops."""
    start = whole_run(request.param)
    return start, finish(*start(0))


@pytest.mark.parametrize("stop", [3, 5, 6, 11])
def test_stopped_and_resumed(straight, stop, tmp_path):
    """Left after a step and begun again in a world with other seeds: every bit of both sets of weights is the same.

    With dropout, dropped classes and accumulation; 10 samples in batches of 3, so stops fall on any place of an epoch.
    """
    start, (raw, averaged, losses_) = straight
    path = tmp_path / "run.safetensors"
    _, steps = start(0, path)
    for step in steps:
        if step.index == stop:
            break
    steps.close()
    net, steps = start(123, path, resume=True)
    again = finish(net, steps)
    assert equal(again[0], raw) and equal(again[1], averaged)
    assert again[2] == losses_[stop // 3 * 3 :]  # from the last step that was saved
    assert not net.training and equal(net.state_dict(), averaged)


def test_saving_changes_nothing(straight, tmp_path):
    start, wanted = straight
    found = finish(*start(0, tmp_path / "run.safetensors", save_every=1))
    assert equal(found[0], wanted[0]) and equal(found[1], wanted[1]) and found[2] == wanted[2]


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "safetensors.torch.save"])
def test_killed_while_it_saves(tmp_path, monkeypatch, where):
    """The second save dies: the first is whole, and the run goes on from it."""
    start, path = whole_run("shared"), tmp_path / "run.safetensors"
    raw, averaged, _ = finish(*start(0))
    _, steps = start(0, path)
    for _ in range(3):
        next(steps)

    def crash(*_, **__):
        path.with_name(path.name + ".tmp").write_bytes(b"half of a fi")
        raise KeyboardInterrupt

    monkeypatch.setattr(where, crash)
    with pytest.raises(KeyboardInterrupt):
        list(steps)
    monkeypatch.undo()
    again = finish(*start(123, path, resume=True))
    assert len(again[2]) == 9 and equal(again[0], raw) and equal(again[1], averaged)


def test_resumed_twice_and_after_the_end(tmp_path):
    start, path = whole_run("shared"), tmp_path / "run.safetensors"
    raw, averaged, _ = finish(*start(0))
    for seed, more in ((0, {}), (1, {"resume": True}), (2, {"resume": True})):
        net, steps = start(seed, path, **more)
        for _ in range(4):
            next(steps, None)
    again = finish(*start(3, path, resume=True))
    assert equal(again[0], raw) and equal(again[1], averaged) and len(again[2]) == 3
    net, steps = start(4, path, resume=True)  # a run that is over gives the result and takes no step
    assert list(steps) == [] and equal(net.state_dict(), averaged) and not net.training


def test_resume_without_a_file_begins(tmp_path):
    start = whole_run("shared")
    wanted, found = finish(*start(0)), finish(*start(0, tmp_path / "run.safetensors", resume=True))
    assert equal(wanted[0], found[0]) and wanted[2] == found[2] and len(found[2]) == 12


def test_when_it_saves(tmp_path):
    """Before the step is handed out, at each multiple and after the last; without save_every only after the last."""
    for every, wanted in ((4, [0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12]), (None, [0] * 11 + [12])):
        path, found = tmp_path / f"{every}.safetensors", []
        for _ in whole_run("shared")(0, path, save_every=every)[1]:
            found.append(checkpoints.read(path)[1]["step"] if path.exists() else 0)
        assert found == wanted


def test_resume_in_float16(tmp_path):
    """The loss's scale and the count of skipped steps come back too."""
    path, found = tmp_path / "run.safetensors", []

    def start(seed, **more):
        torch.manual_seed(seed)
        net = Overflow(5_000)
        options = {"precision": "float16", "num_steps": 10, "warmup": 0, "generator": seeded(seed)}
        return net, train(net, source(), **options, **more)

    net, steps = start(0)
    wanted = [int(step.skipped) for step in steps]
    _, steps = start(0, checkpoint=path, save_every=2)
    for _ in range(2):
        next(steps)
    again, steps = start(1, checkpoint=path, save_every=2, resume=True)
    found = [int(step.skipped) for step in steps]
    assert found == wanted[2:] and wanted[1] == 2 and wanted[-1] > 2 and same(net, again)


def test_a_checkpoint_serves_for_inference(tmp_path):
    start, path = whole_run("shared"), tmp_path / "run.safetensors"
    net, steps = start(0, path)
    raw, averaged, _ = finish(net, steps)
    other = copy.deepcopy(net)
    for wanted, options in ((averaged, {}), (raw, {"averaged": False})):
        about = checkpoints.load(path, other, **options)
        assert equal(other.state_dict(), wanted) and about["step"] == 12 and about["settings"]["drop_cond"] == 0.3
    assert not equal(raw, averaged)


def test_resume_on_each_device(device, tmp_path):
    """The optimizer's state goes to the network's device; on an accelerator equal up to rounding."""
    path, nets = tmp_path / "run.safetensors", []
    for parts in ([10], [5, 10]):
        for seed, part in enumerate(parts):
            net = small(seed, num_classes=3).to(device)
            files = {"checkpoint": path, "save_every": 5, "resume": True} if len(parts) > 1 else {}
            for step in train(net, source(True), num_steps=10, drop_cond=0.3, generator=seeded(seed), **files):
                if step.index == part:
                    break
        nets.append(copy.deepcopy(step.ema))
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0 if device.type == "cpu" else 1e-4, atol=0)


# --- checkpoints that are refused ---


def stopped(tmp_path, **more):
    path = tmp_path / "run.safetensors"
    next(train(small(num_classes=3), source(True), generator=seeded(), checkpoint=path, save_every=1, **more))
    return path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_steps": 6}, "num_steps 5, this run has 6; a run goes on with the settings that it began with"),
        ({"lr": 1e-3}, r"lr 0\.002, this run has 0\.001"),
        ({"warmup": 7}, "warmup 100, this run has 7"),
        ({"clip": 2.0}, r"clip 1\.0, this run has 2\.0"),
        ({"ema_decay": 0.9}, r"ema_decay 0\.999, this run has 0\.9"),
        ({"ema_warmup": False}, "ema_warmup True, this run has False"),
        ({"drop_cond": 0.1}, r"drop_cond 0\.0, this run has 0\.1"),
        ({"precision": "bfloat16"}, "precision 'float32', this run has 'bfloat16'"),
        ({"accumulate": 2}, "accumulate 1, this run has 2"),
        ({"lr_decay": training.constant}, r"lr_decay \[1\.0, 0\.853553"),
        ({"weight": lambda alpha, sigma, a, b: 2.0}, r"weight \[1\.0\], this run has \[2\.0\]"),
        ({"times": even_times}, "times 'stratified_times', this run has 'even_times'"),
        ({"schedule": FLOW}, r"schedule \["),
        ({"prediction": predictions.EPS}, r"prediction \["),
        ({"generator": None}, "generator 'cpu', this run has None"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, changed, message):
    path = stopped(tmp_path)
    net = small(3, num_classes=3)
    before = copy.deepcopy(net)
    options = {"generator": seeded(), "checkpoint": path, "resume": True, **changed}
    with pytest.raises(ValueError, match=rf"^run\.safetensors was saved by a run with {message}"):
        train(net, source(True), **options)
    assert same(net, before)


def test_the_trap_of_a_generator_that_two_share(tmp_path):
    """Batches and fit with one generator cannot go on with two, nor the other way round: the draws would differ."""
    start, path = whole_run("shared"), tmp_path / "run.safetensors"
    next(start(0, path, save_every=1)[1])
    with pytest.raises(ValueError, match="one generator for batches and fit True, this run has False; a run goes on"):
        whole_run("separate")(0, path, resume=True)
    path.unlink()
    next(whole_run("separate")(0, path, save_every=1)[1])
    with pytest.raises(ValueError, match="one generator for batches and fit False, this run has True"):
        start(0, path, resume=True)
    with pytest.raises(ValueError, match="batches with a state True, this run has False"):
        whole_run("plain")(0, path, resume=True)


def test_other_batches_are_refused(tmp_path):
    path = stopped(tmp_path)
    net = small(3, num_classes=3)
    before = copy.deepcopy(net)
    steps = train(net, source(True, size=4), generator=seeded(), checkpoint=path, resume=True)
    with pytest.raises(ValueError, match=r"the state is of batches with .*'size': 8.*these have .*'size': 4"):
        next(steps)
    assert same(net, before)


def test_another_network_is_refused(tmp_path):
    path = stopped(tmp_path)
    with pytest.raises(ValueError, match=r"^run\.safetensors is of another network: "):
        train(small(width=8, num_classes=3), source(True), generator=seeded(), checkpoint=path, resume=True)


def test_weights_alone_are_no_run(tmp_path):
    path = tmp_path / "net.safetensors"
    checkpoints.save(path, small())
    with pytest.raises(
        ValueError, match=r"^net\.safetensors holds weights but no run to go on with: .*checkpoints\.load"
    ):
        train(small(), source(), checkpoint=path, resume=True)


def test_a_damaged_checkpoint_is_refused_at_once(tmp_path):
    path = stopped(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"^run\.safetensors is truncated"):
        train(small(num_classes=3), source(True), generator=seeded(), checkpoint=path, resume=True)


def test_a_checkpoint_is_not_overwritten(tmp_path):
    path = stopped(tmp_path)
    with pytest.raises(FileExistsError, match=r"run\.safetensors exists and would be overwritten: pass resume=True"):
        train(small(num_classes=3), source(True), checkpoint=path)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(
        ValueError, match=r"checkpoint is a\.safetensors in a folder that does not exist: make .*nowhere"
    ):
        train(small(), source(), checkpoint=tmp_path / "nowhere" / "a.safetensors")


def test_a_source_that_ends_before_the_place(tmp_path):
    path, x = tmp_path / "run.safetensors", torch.randn(4, 2)
    steps = train(small(), iter([(x, None)] * 9), checkpoint=path, save_every=1)
    for _ in range(3):
        next(steps)
    with pytest.raises(ValueError, match="the batches ended at step 3 of 3"):
        next(train(small(), iter([(x, None)] * 2), checkpoint=path, resume=True))


def test_a_state_that_cannot_be_saved(tmp_path):
    class Source:
        def __iter__(self):
            return self

        def __next__(self):
            return torch.randn(4, 2), None

        def state_dict(self):
            return {"order": torch.arange(3), "other": {1, 2}}

    with pytest.raises(TypeError, match=r"the batches' state_dict holds more than tensors and JSON: .*set"):
        train(small(), Source(), checkpoint=tmp_path / "run.safetensors")


def test_the_bar_of_a_resumed_run(tmp_path, capsys, monkeypatch):
    path = stopped(tmp_path)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    steps = run(small(num_classes=3), source(True), generator=seeded(), checkpoint=path, resume=True, progress=True)
    assert [step.index for step in steps] == [2, 3, 4, 5] and "1/5" in capsys.readouterr().err
