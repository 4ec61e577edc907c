"""The sampler benchmark runs at a tiny size, and the results that ship keep what the book says of them."""

import json
import math

import pytest
import torch
from test_benchmarks import ROOT
from test_benchmarks import script as load

from companion import samplers


@pytest.fixture(scope="module")
def script():
    return load("samplers")


@pytest.fixture(scope="module")
def stored():
    return json.loads((ROOT / "companion" / "results" / "samplers.json").read_text(encoding="utf8"))


def test_the_exact_end_is_exact(script):
    """Of one Gaussian the end of each path is known."""
    exact = script.denoisers.GaussianMixture(
        torch.full((1, 3), 0.7, dtype=torch.float64),
        torch.tensor([0.04], dtype=torch.float64),
        torch.ones(1),
        script.LINEAR,
    )
    noise = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = float(script.LINEAR.alpha(1.0)), float(script.LINEAR.sigma(1.0))
    end = 0.7 + math.sqrt(0.04 / (0.04 * alpha**2 + sigma**2)) * (sigma * noise - alpha * 0.7)
    assert script.distance(script.exact_end(exact, noise), end) < 1e-7


def test_digits_run_at_a_tiny_size(script, tmp_path):
    out = tmp_path / "tiny.json"
    script.main(["--parts", "digits", "--seeds", "2", "--longest", "5", "--out", str(out)])
    rows = json.loads(out.read_text(encoding="utf8"))["digits"]["rows"]
    assert set(rows) == {"adams, 5", "dpmpp_2m, 5", "heun, 5", "ddim, 5"}
    script.main(["--parts", "digits", "--rows", "ddim", "--seeds", "2", "--longest", "5", "--out", str(out)])
    again = json.loads(out.read_text(encoding="utf8"))["digits"]["rows"]
    assert list(again) == list(rows) and again["adams, 5"] == rows["adams, 5"]
    assert again["ddim, 5"]["by seed"] == pytest.approx(rows["ddim, 5"]["by seed"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # numpy's, of diffusers' schedulers
def test_mixtures_run_at_a_tiny_size(script, tmp_path, monkeypatch):
    """Every choice of every library walks, and the best known answer comes out best."""
    pytest.importorskip("diffusers")
    pytest.importorskip("torchsde")
    monkeypatch.setattr(script, "CALLS", (10,))
    out = tmp_path / "tiny.json"
    script.main(["--parts", "mixtures", "--samples", "8", "--only", "ring", "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf8"))["mixtures"]
    errors = {name: rows["ring"][0] for name, rows in found["errors"].items()}
    assert len(errors) > 60 and all(math.isfinite(e) and e > 0 for e in errors.values())
    assert errors["adams, angle"] < errors["ddim, angle"]
    # the same method and the same grid in three libraries
    assert errors["ddim, karras"] == pytest.approx(errors["k-diffusion Euler, karras"], rel=1e-3)
    assert errors["dpmpp_2m, log_snr"] == pytest.approx(errors["k-diffusion DPM++ 2M, exponential"], rel=1e-3)


def test_stored_mixtures_keep_their_promise(stored):
    for group in ("named", "all"):
        assert stored["mixtures"][group]["ratio"] <= 0.35
    assert stored["mixtures"]["calls"] == [5, 10, 20] and len(stored["mixtures"]["errors"]["adams, angle"]) >= 12


def test_stored_ratio_is_what_the_errors_say(script, stored):
    """The summary is computed anew from the table: the best single choice of the others, by geometric mean."""
    table = stored["mixtures"]["errors"]
    for group, names in (("named", script.NAMED), ("all", tuple(table["adams, angle"]))):
        overall = {c: script.mean_log([v for n in names for v in rows[n]]) for c, rows in table.items()}
        best = min(v for c, v in overall.items() if script.is_peer(c))
        assert stored["mixtures"][group]["ratio"] == pytest.approx(overall["adams, angle"] / best, rel=1e-3)


def test_stored_digits_keep_their_promise(stored):
    few, many = (stored["digits"]["rows"][name] for name in ("adams, 20", "ddpm, 1000"))
    assert len(few["by seed"]) >= 3 and len(many["by seed"]) >= 3
    assert few["ratio"] <= many["ratio"] + 2 * math.hypot(few["error"], many["error"])


def test_stored_costs_keep_their_promise(stored):
    for name, row in stored["cost"]["rows"].items():
        assert row["ratio"] <= (0.65 if name == "ddpm" else 0.5), name
        assert getattr(samplers, name)


def test_each_sampler_has_the_grid_that_measured_best(script, stored):
    """`samplers.grid` by the table: within a tenth of the best spacing over all mixtures."""
    table = stored["mixtures"]["errors"]
    for sampler in (samplers.ddim, samplers.heun, samplers.dpmpp_2m, samplers.adams):
        score = {
            spacing: script.mean_log([v for row in table[f"{sampler.__name__}, {spacing}"].values() for v in row])
            for spacing in script.schedules.SPACINGS
        }
        assert score[samplers.GRIDS[sampler]] <= 1.1 * min(score.values()), (sampler.__name__, score)
