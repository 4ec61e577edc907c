"""Tests of players.curves and players.explore."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browsing import browse, needs_browser, spec_of
from torch import Tensor

from companion import players, schedules
from companion.players import _curves, curves
from companion.players._base import source, ticks

T = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
COSINE = schedules.Cosine()


def levels(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u2") / 65535


def axis(ticks: list, log: bool) -> tuple[float, float]:
    """The value at place 0 and the height of the panel, from two ticks."""
    powers = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")

    def value(text: str) -> float:
        return float(text.removeprefix("10").translate(powers)) if log else float(text.replace("\u2212", "-"))

    (u0, a), (u1, b) = ticks[0], ticks[-1]
    slope = (value(b) - value(a)) / (u1 - u0)
    return value(a) - slope * u0, slope


def test_the_key_has_the_colours_of_the_curves() -> None:
    in_script = re.search(r"const COLOURS = (\[.*?\])", source("page.js"))
    assert in_script and (*json.loads(in_script[1]), "currentColor") == _curves._COLOURS


@pytest.mark.parametrize(("low", "high"), [(1000.001, 1000.002), (-1.0, 1.0), (0.0, 80.0), (1e-9, 2e-9)])
def test_ticks_can_be_told_apart(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) == len({text for _, text in found})
    for place, text in found:
        assert float(text.replace("\u2212", "-")) == pytest.approx(low + place * (high - low), abs=2e-6 * (high - low))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_curves_stand_where_the_ticks_say(dtype: torch.dtype, log: bool) -> None:
    y = COSINE.snr(T).to(dtype)
    spec = spec_of(curves(T, {"snr": {"cosine": y}}, xlabel="t", label="SNR.", log=["snr"] if log else []))
    start, slope = axis(spec["ticks"][0][1], log)
    given = y.double().log10() if log else y.double()
    drawn = levels(spec["panels"][0][0]) * slope + start
    assert np.abs(drawn - given.numpy()).max() < 1e-4 * slope
    across, stretch = axis(spec["ticks"][0][0], False)
    assert np.abs(levels(spec["x"]) * stretch + across - T.numpy()).max() < 1e-4


def test_the_cursor_walks_along_x_and_the_key_says_the_values() -> None:
    player = curves(T, {"alpha": {"cosine": COSINE.alpha(T), "line": 1 - T}}, xlabel="t", label="Alpha.")
    spec = spec_of(player)
    assert player.num_frames == len(T) == len(spec["cursor"]) == len(spec["labels"])
    assert np.allclose(spec["cursor"], (T.numpy() - 0.01) / 0.98)
    assert spec["labels"][0] == "t = 0.01" and spec["labels"][-1] == "t = 0.99"
    assert spec["values"][0][0][7] == f"{float(COSINE.alpha(T[7])):.4g}"
    assert spec["values"][0][1][30] == f"{float(1 - T[30]):.4g}"
    assert player.html.count("data-value") - player.html.count("[data-value]") == 2
    assert 'value="25"' in player.html and 'aria-valuetext="t = 0.51"' in player.html


def test_a_negative_value_has_a_minus_sign() -> None:
    spec = spec_of(curves(T, {"log SNR": {"cosine": COSINE.log_snr(T)}}, xlabel="t", label="Log SNR."))
    assert spec["values"][0][0][-1].startswith("\u2212")


def test_curves_that_change_have_frames_and_no_cursor() -> None:
    moving = torch.stack([torch.sin(6 * T + k) for k in range(5)])
    player = curves(T, {"wave": {"a": moving, "still": T}}, [0.0, 1, 2, 3, 4], xlabel="x", label="A wave.")
    spec = spec_of(player)
    assert player.num_frames == 5 and spec["cursor"] is None and spec["labels"][3] == "t = 3.00"
    wave, still = (levels(line) for line in spec["panels"][0])
    assert wave.shape == (250,) and still.shape == (50,)
    start, slope = axis(spec["ticks"][0][1], False)
    assert np.abs(wave.reshape(5, 50) * slope + start - moving.numpy()).max() < 1e-4
    assert "data-value " not in player.html and 'value="4"' in player.html


def test_every_curve_of_a_panel_has_its_own_line_in_the_key() -> None:
    player = curves(T, {"y": {f"c{k}": T + k for k in range(8)}}, xlabel="t", label="Eight lines.")
    assert len(set(re.findall(r'<i style="border-top-color:([^;]+)', player.html))) == 8
    assert re.findall(r"<span>(c\d)</span>", player.html) == [f"c{k}" for k in range(8)]


def test_a_flat_curve_is_drawn_inside_the_frame() -> None:
    spec = spec_of(curves(T, {"one": {"c": torch.ones(50)}}, xlabel="t", label="Flat."))
    assert np.allclose(levels(spec["panels"][0][0]), 0.5, atol=1e-4)


def test_texts_are_escaped_once() -> None:
    player = curves(T, {"a<b": {"<i>": T}}, xlabel="t & u", label='Say "no".')
    page = player.html
    assert "a&lt;b" in page and "&lt;i&gt;" in page and "<i>" not in page and "&quot;no&quot;" in page
    assert spec_of(player)["labels"][0] == "t & u = 0.01" and ">t &amp; u = 0.51</output>" in page


@pytest.mark.parametrize(("low", "high"), [(2.0, 3.0), (1.2, 8.0), (0.0031, 0.0062)])
def test_a_short_logarithmic_axis_has_round_numbers(low: float, high: float) -> None:
    y = torch.linspace(low, high, 50, dtype=torch.float64)
    marks = spec_of(curves(T, {"q": {"n": y}}, xlabel="t", label="L.", log=["q"]))["ticks"][0][1]
    assert len(marks) >= 3
    pad = 0.05 * np.log10(high / low)
    for place, text in marks:
        expected = (np.log10(float(text)) - np.log10(low) + pad) / (np.log10(high / low) + 2 * pad)
        assert place == pytest.approx(expected, abs=1e-3)


def test_a_huge_flat_curve_is_drawn() -> None:
    assert np.allclose(levels(spec_of(one(torch.full((50,), 1e20)))["panels"][0][0]), 0.5, atol=1e-4)


@needs_browser
def test_the_cursor_stands_on_the_curve_where_x_is_uneven(tmp_path: Path) -> None:
    """Draw a rising line over x from 1e-6 to 1 and look for the dot at each end of the slider."""
    x = torch.logspace(-6, 0, 25, dtype=torch.float64)
    page = curves(x, {"y": {"line": torch.linspace(0, 1, 25, dtype=torch.float64)}}, xlabel="x", label="A line.").html
    drive = """<script>
      const arcs = [], arc = CanvasRenderingContext2D.prototype.arc;
      CanvasRenderingContext2D.prototype.arc = function (x, y, ...rest) {
        arcs.push(y);
        arc.call(this, x, y, ...rest);
      };
      addEventListener("load", () => {
        const slider = document.querySelector("input"), heights = [];
        for (const frame of [0, 1, 12, 24]) {
          slider.value = frame;
          slider.dispatchEvent(new Event("input"));
          heights.push(arcs[arcs.length - 1]);
        }
        document.getElementById("answer").textContent = JSON.stringify(heights);
      });
    </script>"""
    heights = np.array(json.loads(browse(tmp_path, drive + page, "--virtual-time-budget=5000")))
    shares = (heights[0] - heights) / (heights[0] - heights[-1])  # the axis is linear: 0, 1/24, 12/24, 1
    assert np.allclose(shares, [0, 1 / 24, 0.5, 1], atol=1e-3)


def one(y: Tensor, **options: object) -> players.Player:
    return curves(**({"x": T, "panels": {"q": {"n": y}}, "xlabel": "t", "label": "L."} | options))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda: one(T[1:]), ValueError, r"q of n has shape \(49,\); x has 50 values"),
        (lambda: one(torch.ones(2, 3, 50)), ValueError, r"shape \(2, 3, 50\)"),
        (lambda: one(torch.ones(0, 50)), ValueError, r"shape \(0, 50\)"),
        (lambda: one(torch.arange(50)), TypeError, "q of n"),
        (lambda: one(T / 0), ValueError, "q of n"),
        (lambda: one(T, x=T.flip(0)), ValueError, "do not all increase"),
        (lambda: one(T[:1], x=T[:1]), ValueError, "give 2 or more"),
        (lambda: one(T, x=T[None]), ValueError, "x has shape"),
        (lambda: one(T - 0.5, log=["q"]), ValueError, "a logarithmic axis needs positive values"),
        (lambda: one(T, log=["other"]), ValueError, r"log names \['other'\]; the quantities are \['q'\]"),
        (lambda: one(T, panels={}), ValueError, "1 to 8 curves"),
        (lambda: one(T, panels={"q": {}}), ValueError, "1 to 8 curves"),
        (lambda: one(T, panels={"q": {str(k): T for k in range(9)}}), ValueError, "1 to 8 curves"),
        (lambda: one(T, panels={"q": {"a": T.expand(2, 50), "b": T.expand(3, 50)}}), ValueError, "one number of"),
        (lambda: one(T, ts=[0.0, 1.0]), ValueError, "no curve changes"),
        (lambda: one(T.expand(3, 50), ts=[0.0, 1.0]), ValueError, "2 times for 3 frames"),
        (lambda: one(T, height=50), ValueError, "height"),
        (lambda: one(T, label=" "), ValueError, "label is empty"),
        (lambda: one(T, xlabel=3), TypeError, "xlabel"),
        (lambda: one(T, panels={"q": {5: T}}), TypeError, "a name"),
        (lambda: one(T, fps=0), ValueError, "fps"),
    ],
)
def test_refused(change: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        change()


# Exploring: controls where a kernel runs, the player elsewhere

PAGE = one(T)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPANION_STATIC", raising=False)
    monkeypatch.setattr(players._explore, "_in_kernel", lambda: True)


def test_without_a_kernel_the_page_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPANION_STATIC", raising=False)
    assert players.explore(lambda scale: scale, PAGE, scale=(0.0, 8.0, 0.5)) is PAGE


def test_the_page_is_stored_where_the_environment_asks(kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_STATIC", "1")
    assert players.explore(lambda scale: scale, PAGE, scale=(0.0, 8.0, 0.5)) is PAGE


def test_a_kernel_is_told_from_a_script_and_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell, expected in [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)]:
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert players._explore._in_kernel() is expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_controls_call_draw_with_their_values(kernel: None) -> None:
    pytest.importorskip("ipywidgets")
    seen: list[tuple] = []
    box = players.explore(
        lambda scale, sampler, prompt: seen.append((scale, sampler, prompt)), PAGE,
        scale=(0.0, 8.0, 0.5), sampler=["ddim", "heun"], prompt="a red fox",
    )  # fmt: skip
    scale, sampler, prompt, _ = box.children
    assert (scale.min, scale.max, scale.step, scale.continuous_update) == (0.0, 8.0, 0.5, False)
    assert sampler.options == ("ddim", "heun") and prompt.continuous_update is False
    box.update()
    scale.value, sampler.value, prompt.value = 3.0, "heun", "a blue owl"
    assert seen[-1] == (3.0, "heun", "a blue owl")
    assert seen[0] == (4.0, "ddim", "a red fox")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_value_that_is_refused_shows_its_message(kernel: None, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("ipywidgets")

    def draw(prompt: str) -> None:
        raise ValueError(f"the tokenizer does not know {prompt!r}")

    players.explore(draw, PAGE, prompt="zebra").update()
    assert "does not know 'zebra'" in capsys.readouterr().out
