"""Training against the loop written out, and against the exact denoiser that it should approach."""

import copy
import math
import sys

import pytest
import torch
from torch import nn

from companion import data, denoisers, losses, networks, predictions, schedules, training

COSINE, FLOW = schedules.Cosine(), schedules.FlowMatching()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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
