"""Tests of players.live: a headless browser walks with its script, and must end where the companion does."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import pytest
import torch
from browsing import browse, needs_browser, spec_of
from cases import seeded
from torch import Tensor

from companion import (
    data,
    denoisers,
    encodings,
    guidance,
    metrics,
    networks,
    players,
    predictions,
    samplers,
    schedules,
    weights,
)
from companion.players import live
from companion.players._base import source
from companion.weights import live_denoisers

COSINE = schedules.Cosine()
STEPS = (1, 5, 20)
WALKS: list[tuple[str, dict[str, Any]]] = [
    *(("ddpm", {"variance": variance}) for variance in ("posterior", "upper")),
    *(("ddim", {"eta": eta}) for eta in (0.0, 0.5, 1.0)),
    *((name, {}) for name in ("heun", "dpmpp_2m", "adams")),
]
ASKED: list[tuple[str, int | None, float]] = [
    ("live_roll", None, 1.0),
    *(("live_modes", cond, scale) for cond in (0, 1) for scale in (0.0, 1.0, 3.0)),
    *(("live_modes", None, scale) for scale in (1.0, 3.0)),
]
SLOWER = functools.partial(encodings.sinusoidal, dim=8, max_period=10.0)
TIMES = (0.0, 0.0064, 0.3, 0.77, 0.99, 1.0)


def player_of(name: str, **options: Any) -> players.Player:
    net = weights.load(name)
    classes = ["upper", "lower"] if name == "live_modes" else None
    return live(net, COSINE, predictions.V, label="samples", classes=classes, **options)


def together() -> list[dict[str, Any]]:
    """Return the walks that share a network, a sampler and its options, with noise for 8 points of each one asked."""
    made: list[dict[str, Any]] = []
    for name in ("live_roll", "live_modes"):
        asked = [(cond, scale) for of, cond, scale in ASKED if of == name]
        for sampler, options in WALKS:
            for steps in STEPS:
                g, shape = seeded(len(made)), (8 * len(asked), 2)
                ts = samplers.grid(getattr(samplers, sampler), COSINE, steps)
                x = samplers.start(COSINE, shape, ts, generator=g, dtype=torch.float64)
                noise = [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(steps)]
                case = {"net": name, "asked": asked, "sampler": sampler, "steps": steps, "ts": ts, "options": options}
                made.append({**case, "x": x, "noise": noise, "seed": len(made)})
    return made


def cases() -> list[dict[str, Any]]:
    """Return every walk, one class and scale at a time, as the page is asked for it."""
    made = []
    for case in together():
        for i, (cond, scale) in enumerate(case["asked"]):
            mine = slice(8 * i, 8 * i + 8)
            given = {"x": case["x"][mine].flatten().tolist()}
            given["noise"] = [z[mine].flatten().tolist() for z in case["noise"]]
            made.append({key: case[key] for key in ("net", "sampler", "steps")} | case["options"] | given)
            made[-1] |= {"cls": cond, "scale": scale}
    return made


SCRIPT = """
const {network, forward, decode, cosine, grid, denoiser, walk, normals} = companionLive, schedule = cosine(0.008);
const nets = Object.fromEntries(Object.entries(given.nets).map(([name, stored]) => [name, network(stored)]));
const known = {}, gridOf = (...asked) => known[asked] ||= grid(asked[0], schedule, asked[1]);
const answer = {
  weights: Object.fromEntries(Object.entries(given.nets).map(([name, stored]) => [name, [...decode(stored)]])),
  schedule: given.times.map((t) => [schedule.alpha(t), schedule.sigma(t)]),
  forward: given.asked.map(([name, cls, t]) => [...forward(nets[name], given.points, t, cls ?? nets[name].classes)]),
  grids: given.grids.map(([sampler, steps]) => [...grid(sampler, schedule, steps)]),
  predictions: given.predictions.map((name) => [...denoiser(nets.live_roll, schedule, name)(given.points, 0.6)]),
  walks: given.walks.map(({net, cls, scale, sampler, steps, eta, variance, x, noise}) => {
    const ask = denoiser(nets[net], schedule, "v", {scale, ...(cls === null ? {} : {cls})});
    const draw = () => noise.shift(), ts = gridOf(sampler, steps);
    const path = [...walk(sampler, ask, schedule, Float64Array.from(x), ts, {draw, eta, variance})];
    return {path: path.map((x) => [...x]), calls: ask.calls, left: noise.length};
  }),
  normals: [normals(0)(50000), normals(0)(7), normals(1)(50000)].map((drawn) => [...drawn]),
};
document.querySelector("pre").textContent = JSON.stringify(answer);
"""
GRIDS = [(name, steps) for name in ("ddpm", "ddim", "heun", "dpmpp_2m", "adams") for steps in (1, 2, 3, 10, 37, 100)]
POINTS = torch.randn(5, 2, generator=seeded(3), dtype=torch.float64) * 1.5  # not a multiple of 4
FORWARD = [(name, cond, t) for name, cond, scale in ASKED if scale == 1 for t in TIMES]


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser computed, in one visit."""
    unrounded = networks.MLP(2, width=8, depth=1, num_classes=3)
    with torch.no_grad():
        for parameter in unrounded.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(len(parameter))))
    answer_nets = {"unrounded": spec_of(live(unrounded, COSINE, predictions.V, label="a", classes=["a", "b", "c"]))}
    answer_nets |= {name: spec_of(player_of(name)) for name in ("live_roll", "live_modes")}
    given = {
        "nets": {name: spec["net"] for name, spec in answer_nets.items()},
        "times": TIMES,
        "asked": FORWARD,
        "points": POINTS.flatten().tolist(),
        "grids": GRIDS,
        "predictions": ["eps", "x0", "v", "velocity"],
        "walks": cases(),
    }
    scripts = (source("live.js"), f"const given = {json.dumps(given)};{SCRIPT}")
    body = "".join(f"<script>{script}</script>" for script in scripts)
    found = json.loads(browse(tmp_path_factory.mktemp("live"), body))
    found["unrounded"] = torch.cat([p.flatten() for p in unrounded.state_dict().values()]).tolist()
    return found


def wide(name: str) -> Any:
    return weights.load(name).double()


def as_points(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, 2)


# The page computes what the companion does


@needs_browser
def test_weights_come_back_exactly(answer: dict[str, Any]) -> None:
    for name in ("live_roll", "live_modes"):
        stored = torch.cat([value.flatten() for value in weights.load(name).state_dict().values()])
        assert answer["weights"][name] == stored.tolist()
        assert spec_of(player_of(name))["net"]["half"]
    assert answer["weights"]["unrounded"] == answer["unrounded"]


@needs_browser
def test_the_schedule_and_the_grids(answer: dict[str, Any]) -> None:
    t = torch.tensor(TIMES, dtype=torch.float64)
    here = torch.stack([COSINE.alpha(t), COSINE.sigma(t)], 1)
    assert (torch.tensor(answer["schedule"], dtype=torch.float64) - here).abs().max() < 1e-15
    for (sampler, steps), found in zip(GRIDS, answer["grids"], strict=True):
        ts = samplers.grid(getattr(samplers, sampler), COSINE, steps)
        assert (torch.tensor(found, dtype=torch.float64) - ts).abs().max() < 1e-12, (sampler, steps)


@needs_browser
def test_the_network_alone(answer: dict[str, Any]) -> None:
    for (name, cond, t), found in zip(FORWARD, answer["forward"], strict=True):
        here = wide(name)(POINTS, torch.full((5,), t), cond)
        assert (as_points(found) - here).abs().max() < 1e-5, (name, cond, t)


@needs_browser
def test_each_prediction(answer: dict[str, Any]) -> None:
    for prediction, found in zip(
        (predictions.EPS, predictions.X0, predictions.V, predictions.VELOCITY), answer["predictions"], strict=True
    ):
        here = denoisers.from_network(wide("live_roll"), COSINE, prediction)(POINTS, torch.tensor(0.6).double())
        assert (as_points(found) - here).abs().max() < 1e-5, prediction.name


@needs_browser
def test_every_walk_ends_where_the_companion_ends(answer: dict[str, Any]) -> None:
    """Every sampler, eta, variance, number of steps, class and scale, at each step, from the same noise."""
    models = {name: denoisers.from_network(wide(name), COSINE, predictions.V) for name in ("live_roll", "live_modes")}
    left, apart = iter(answer["walks"]), {}
    for case in together():
        denoise: denoisers.Denoiser = models[case["net"]]
        if case["net"] == "live_modes":
            told = torch.tensor([2 if cond is None else cond for cond, _ in case["asked"]]).repeat_interleave(8)
            good, bad = guidance.condition(denoise, told), guidance.condition(denoise, None)
            scales = torch.tensor([scale for _, scale in case["asked"]], dtype=torch.float64).repeat_interleave(8)
            denoise = guidance.extrapolate(good, bad, scales)
        options, sampler = dict(case["options"]), case["sampler"]
        if sampler in ("ddpm", "ddim"):
            options["generator"] = seeded(case["seed"])
            torch.randn(case["x"].shape, generator=options["generator"], dtype=torch.float64)  # the start
        steps = getattr(samplers, sampler)(denoise, COSINE, case["x"], case["ts"], **options)
        here = torch.stack([step.x for step in steps])
        for i, asked in enumerate(case["asked"]):
            found, key = next(left), (case["net"], sampler, case["steps"], str(case["options"]), *asked)
            there = torch.stack([as_points(x) for x in found["path"]])
            apart[key] = float((there - here[:, 8 * i : 8 * i + 8]).abs().max())
            assert found["calls"] == (2 * case["steps"] - 1 if sampler == "heun" else case["steps"]), key
            fresh = sampler == "ddpm" or case["options"].get("eta", 0) > 0  # but none onto data
            assert case["steps"] - found["left"] == (case["steps"] - 1 if fresh else 0), key
    worst = max(apart, key=apart.__getitem__)
    print(f"largest difference {apart[worst]:.1e} of {len(apart)} walks, at {worst}")
    assert len(apart) == len(answer["walks"]) and apart[worst] < 1e-4, worst


@needs_browser
def test_noise_of_the_page_is_normal(answer: dict[str, Any]) -> None:
    one, few, other = (torch.tensor(drawn, dtype=torch.float64) for drawn in answer["normals"])
    assert torch.equal(one[:6], few[:6]) and bool(one.isfinite().all())
    for drawn in (one, other):
        moments = [float((drawn**k).mean()) for k in (1, 2, 3, 4)]
        assert moments == pytest.approx([0, 1, 0, 3], abs=0.1) and 3.5 < drawn.abs().max() < 6
        assert (
            abs(float((drawn[::2] * drawn[1::2]).mean())) < 0.03 and abs(float((drawn[1:] * drawn[:-1]).mean())) < 0.03
        )
    assert abs(float((one * other).mean())) < 0.03


DRIVE = """
<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
addEventListener("load", async () => {
  const figures = [...document.querySelectorAll("figure")], log = {};
  const until = async (done) => { while (!done()) await new Promise((resume) => { setTimeout(resume, 5); }); };
  const figure = figures[1], picture = () => figure.querySelector("canvas").toDataURL();
  const moved = async (name, act) => {
    const before = picture(), walks = +figure.dataset.walks;
    act();
    await until(() => +figure.dataset.walks > walks);
    log[name] = {changed: picture() !== before, says: figure.querySelector(".cp-status").textContent,
      disabled: [...figure.querySelectorAll("[name]:disabled")].map((node) => node.name)};
  };
  const set = (name, value) => () => {
    const control = figure.querySelector(`[name=${name}]`);
    control.value = value;
    control.dispatchEvent(new Event("input", {bubbles: true}));
  };
  for (const each of figures) { each.scrollIntoView(); await until(() => +each.dataset.walks > 0); }
  const first = picture();
  await moved("steps", set("steps", 4));
  await moved("eta", set("eta", 1));
  await moved("sampler", set("sampler", "ddpm"));
  await moved("variance", set("variance", "upper"));
  await moved("scale", set("scale", 3));
  await moved("cls", set("cls", 1));
  await moved("none", set("cls", 2));
  await moved("new noise", () => figure.querySelector(".cp-live button").click());
  for (const [name, value] of [["sampler", "adams"], ["cls", 0], ["scale", 1], ["steps", 10]]) set(name, value)();
  await moved("adams", set("steps", 12));
  const [slider, output] = figure.querySelectorAll(".cp-controls input, .cp-controls output"), ended = picture();
  const times = [[slider.max, slider.value, output.value]];
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  times.push([slider.value, output.value, String(picture() !== ended)]);
  figure.querySelector(".cp-controls button").click();
  times.push([figure.querySelector(".cp-controls button").textContent]);
  await until(() => slider.value === slider.max);
  times.push([String(picture() === ended), figure.querySelector(".cp-controls button").textContent]);
  set("steps", 5)();  // Play, pressed on the old walk while the new one is made, comes to an end
  figure.querySelector(".cp-controls button").click();
  const pressed = figure.querySelector(".cp-controls button").textContent, before = +figure.dataset.walks;
  await until(() => +figure.dataset.walks > before);
  times.push([pressed, figure.querySelector(".cp-controls button").textContent, slider.value]);
  const walks = figures.map((each) => each.dataset.walks), roll = figures[0].querySelector(".cp-status").textContent;
  document.querySelector("pre").textContent = JSON.stringify({log, times, walks, roll, errors});
});
</script>
"""


@needs_browser
def test_the_figure_does_what_is_asked_of_it(tmp_path: Any) -> None:
    """Two figures in a page: each is set up once, and every control changes the picture."""
    roll = player_of("live_roll", goal=True, sampler="adams", num_points=100)
    both = roll.html + player_of("live_modes", num_points=100, max_steps=30).html
    found = json.loads(browse(tmp_path, DRIVE + both, "--virtual-time-budget=60000"))
    assert found["errors"] == [] and found["walks"] == ["1", "11"]
    log = found["log"]
    assert all(log[name]["changed"] for name in log)
    says = {name: line["says"].split(":")[0] for name, line in log.items()}
    assert says["steps"] == says["variance"] == says["none"] == "100 samples in 4 network calls"
    assert says["scale"] == says["cls"] == "100 samples in 4 network calls of twice the points"
    assert says["adams"] == "100 samples in 12 network calls"
    assert re.fullmatch(r"100 samples in 10 network calls: \d+ ms\. Error: 0\.0\d\d\.", found["roll"])
    assert log["eta"]["disabled"] == ["variance"] and log["variance"]["disabled"] == ["eta"]
    assert log["none"]["disabled"] == ["eta", "scale"] and log["adams"]["disabled"] == ["eta", "variance"]
    assert found["times"][0] == ["12", "12", "t = 0.000"] and found["times"][1] == ["0", "t = 0.992", "true"]
    assert found["times"][2:] == [["Pause"], ["true", "Play"], ["Pause", "Play", "5"]]


# What is stored and shown


def test_the_player_is_small_labelled_and_the_same_each_time() -> None:
    player = player_of("live_modes", reference=torch.zeros(400, 2))
    assert player.html == player_of("live_modes", reference=torch.zeros(400, 2)).html
    assert repr(player) == "Player('samples', 11 frames)"
    for name in ("live_roll", "live_modes"):
        assert len(player_of(name, reference=torch.zeros(500, 2)).html) < 90_000
    assert "http" not in player.html and "eval(" not in player.html and not re.search(r"\sid=", player.html)
    for control in re.findall(r"<(?:input|select)[^>]*>", player.html):
        assert "aria-label=" in control and 'data-lm-suppress-shortcuts="true"' in control
    assert re.findall(r'name="(\w+)"', player.html.split("<script>")[0]) == [
        "sampler", "steps", "eta", "variance", "cls", "scale"
    ]  # fmt: skip
    assert re.findall(r'<option value="(\w+)"( selected)?>', player.html)[-3:] == [
        ("0", " selected"),
        ("1", ""),
        ("2", ""),
    ]
    assert '<script>"use strict"' in player.html and player.html.count("</script>") == 1


def test_controls_that_would_do_nothing_are_left_out() -> None:
    def names(**options: Any) -> list[str]:
        return re.findall(r'name="(\w+)"', player_of("live_roll", **options).html.split("<script>")[0])

    assert names() == ["sampler", "steps", "eta", "variance"]
    assert names(choices=("heun", "adams"), sampler="heun") == ["sampler", "steps"]
    assert names(choices=("ddim",)) == ["sampler", "steps", "eta"]


def test_labels_and_names_are_escaped() -> None:
    net = networks.MLP(2, width=8, depth=1, num_classes=1)
    player = live(net, COSINE, predictions.V, label='<b> & "so"', classes=["<i>"])
    assert "<b>" not in player.html and "<i>" not in player.html and "&lt;i&gt;" in player.html


def test_the_extent_holds_data_and_noise() -> None:
    assert spec_of(player_of("live_roll"))["extent"] == [-2.4, 2.4, -2.4, 2.4]
    far = torch.tensor([[-3.0, 0.0], [1.0, 4.0]])
    assert spec_of(player_of("live_roll", reference=far))["extent"] == pytest.approx([-3.1, 2.4, -2.4, 4.1])
    assert spec_of(player_of("live_roll", extent=(-1, 1, -1, 1)))["extent"] == [-1, 1, -1, 1]


def test_weights_of_half_precision_only_where_it_is_exact() -> None:
    net = networks.MLP(2, width=8, depth=1)
    assert not spec_of(live(net, COSINE, predictions.V, label="a"))["net"]["half"]
    assert spec_of(live(net.half().float(), COSINE, predictions.V, label="a"))["net"]["half"]
    assert spec_of(live(net.half(), COSINE, predictions.V, label="a"))["net"]["half"]


SMALL = {"net": networks.MLP(2, width=8, depth=1), "schedule": COSINE, "prediction": predictions.V, "label": "a"}


def broken() -> networks.MLP:
    net = networks.MLP(2, width=8, depth=1)
    with torch.no_grad():
        net.out[1].bias.fill_(torch.nan)
    return net


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"net": networks.DenseDenoiser((2,))}, TypeError, r"net is a DenseDenoiser; .* networks.MLP\(2\)"),
        ({"net": networks.MLP(3, width=8)}, ValueError, r"net takes 3 numbers.*points of 2 numbers"),
        ({"net": networks.MLP(2, width=8, joining="scale_shift")}, ValueError, r"joining is 'scale_shift'"),
        ({"net": networks.MLP(2, width=8, encoding=lambda t: t[:, None])}, ValueError, "default encoding"),
        ({"net": networks.MLP(2, width=128)}, ValueError, r"net has 18\d,\d{3} weights; a page holds up to 50,000"),
        ({"net": broken()}, ValueError, "the network's weights holds NaN"),
        ({"schedule": schedules.Linear()}, TypeError, r"schedule is a Linear; .*schedules\.Cosine\(\)"),
        ({"prediction": predictions.edm()}, TypeError, "prediction is 'edm'; the page knows eps, x0, v, velocity"),
        ({"prediction": "v"}, TypeError, "prediction is 'v'; the page knows"),
        ({"choices": ["euler"]}, ValueError, r"choices is \['euler'\]; it must be a list of some of ddpm, ddim"),
        ({"choices": "ddim"}, ValueError, "choices is 'ddim'; it must be a list"),
        ({"choices": ["ddim", "ddim"]}, ValueError, "choices is "),
        ({"choices": []}, ValueError, r"choices is \[\]"),
        ({"choices": ["heun"]}, ValueError, "sampler is 'ddim'; it must be one of the choices: heun"),
        ({"num_steps": 0}, ValueError, "num_steps is 0"),
        ({"num_steps": 61}, ValueError, "num_steps is 61 and max_steps 60; the player opens within its slider"),
        ({"num_points": 30}, ValueError, "num_points is 30; it must be a multiple of 4 up to 1,000"),
        ({"num_points": 1004}, ValueError, "num_points is 1004"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"height": 99}, ValueError, "height is 99"),
        ({"label": " "}, ValueError, "label is empty"),
        ({"label": 3}, TypeError, "label has 3; it must be text"),
        ({"classes": ["a"]}, ValueError, r"classes is \['a'\], but the network has 0 classes; name each"),
        ({"classes": []}, ValueError, r"classes is \[\], but the network has 0 classes"),
        ({"scale": 2.0}, ValueError, "scale is 2.0, but guidance needs classes"),
        ({"net": networks.MLP(2, width=8, encoding=SLOWER)}, ValueError, "default encoding"),
        ({"reference": torch.zeros(3)}, ValueError, r"reference has shape \(3,\)"),
        ({"extent": (1, -1, 0, 1)}, ValueError, r"extent is \(1, -1, 0, 1\)"),
    ],
)
def test_refused(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    given = SMALL | change
    with pytest.raises(kind, match=message):
        live(given.pop("net"), given.pop("schedule"), given.pop("prediction"), **given)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"classes": None}, ValueError, "classes is None, but the network has 2 classes"),
        ({"classes": "ab"}, ValueError, "classes is 'ab', but the network has 2 classes"),
        ({"classes": ["a", "a"]}, ValueError, r"classes is \['a', 'a'\].* differently"),
        ({"classes": ["a", "a", "b"]}, ValueError, r"classes is \['a', 'a', 'b'\].* 2 classes"),
        ({"classes": ()}, ValueError, r"classes is \(\), but the network has 2 classes"),
        ({"scale": 1.1}, ValueError, "scale is 1.1 .*a multiple of 0.25"),
        ({"classes": ["a", ""]}, ValueError, "is empty or blank"),
        ({"classes": ["a", 2]}, TypeError, "has 2; it must be text"),
        ({"scale": 9.0}, ValueError, "scale is 9.0 and max_scale 8.0; they must satisfy"),
        ({"scale": -1.0}, ValueError, "scale is -1.0"),
        ({"max_scale": float("inf")}, ValueError, "max_scale inf"),
        ({"scale": float("nan")}, ValueError, "scale is nan"),
    ],
)
def test_refused_with_classes(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    net = networks.MLP(2, width=8, depth=1, num_classes=2)
    with pytest.raises(kind, match=message):
        live(net, COSINE, predictions.V, **({"label": "a", "classes": ["a", "b"]} | change))


# The networks that ship for the page


@pytest.mark.parametrize("name", ["live_roll", "live_modes"])
def test_the_networks_are_as_good_as_their_cards_say(name: str) -> None:
    """A quarter of the draws of the card."""
    card = weights.card(name)
    found = live_denoisers.evaluate(name, weights.load(name), draws=2)  # type: ignore[arg-type]
    assert found.keys() == card["metrics"].keys()
    for key, value in found.items():
        assert card["metrics"][key] < 1.35 and value == pytest.approx(card["metrics"][key], abs=0.45), key
    size = (weights.FOLDER / f"{name}.safetensors").stat().st_size
    assert size < 50_000


def test_the_metric_of_the_card_is_1_for_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def exact(net: Any, n: int, cond: int | None, generator: torch.Generator) -> Tensor:
        x, y = live_denoisers.modes(4 * n, generator=generator)
        return (x if cond is None else x[y == cond])[:n]

    monkeypatch.setattr(live_denoisers, "sample", exact)
    found = live_denoisers.evaluate("live_modes", weights.load("live_modes"), draws=12, n=500)  # type: ignore[arg-type]
    assert list(found.values()) == pytest.approx([1, 1, 1], abs=0.25) and next(iter(found)).endswith("no class")


def test_the_clusters_have_their_class_and_their_spread() -> None:
    x, y = live_denoisers.modes(6000, generator=seeded())
    nearest = torch.cdist(x, live_denoisers.MODES).argmin(1)
    assert float((nearest // 3 == y).double().mean()) > 0.9 and 0.47 < float(y.double().mean()) < 0.53
    near = metrics.nearest_distance(x[y == 0], live_denoisers.MODES[:3]).square().mean()
    assert 0.75 < float(near / (2 * 0.3**2)) < 1.02  # a point may be nearer to another cluster's middle


def test_the_roll_of_the_page_is_the_roll() -> None:
    line = data.swiss_roll_curve(torch.linspace(0, 1, 2000))
    x = live_denoisers.sample(weights.load("live_roll"), 1000, None, seeded())  # type: ignore[arg-type]
    assert 0.8 < float(metrics.nearest_distance(x, line).square().mean().sqrt()) / 0.05 < 1.2


@pytest.mark.parametrize("name", ["live_roll", "live_modes"])
def test_the_script_writes_what_load_reads(name: str, tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(live_denoisers, "evaluate", lambda name, net: {"weight": float(net.out[1].bias[0].detach())})
    state = torch.get_rng_state()
    live_denoisers.main([name, "--num-steps", "3", "--seed", "2", "--folder", str(tmp_path)])
    assert torch.equal(state, torch.get_rng_state())
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    card, first = weights.card(name), (tmp_path / f"{name}.safetensors").read_bytes()
    assert card["settings"]["num_steps"] == 3 and card["seed"] == 2 and str(card["metrics"]) in capsys.readouterr().out
    assert card["script"] == f"python -m companion.weights.live_denoisers {name}"
    assert float(weights.load(name).out[1].bias[0]) == card["metrics"]["weight"]  # rounded before it was judged
    live_denoisers.main([name, "--num-steps", "3", "--seed", "2", "--folder", str(tmp_path)])
    assert (tmp_path / f"{name}.safetensors").read_bytes() == first
    assert live_denoisers.train.__kwdefaults__ == {"num_steps": None, "seed": 0}


def test_cards_hold_the_settings_of_the_script() -> None:
    for name, arguments in live_denoisers.ARGUMENTS.items():
        card = weights.card(name)
        assert card["arguments"] == arguments and card["seed"] == 0
        assert card["settings"].items() >= live_denoisers.SETTINGS.items()
        assert ("drop_cond" in card["settings"]) == (name == "live_modes")
