"""The benchmark of chapter 4 runs at a tiny size, and the results that ship were made with its settings."""

import json

import pytest
from test_benchmarks import ROOT
from test_benchmarks import script as load


@pytest.fixture(scope="module")
def script():
    return load("losses")


@pytest.fixture(scope="module")
def stored():
    return json.loads((ROOT / "companion" / "results" / "losses.json").read_text(encoding="utf8"))


def test_losses_runs_at_a_tiny_size(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "PAIRS", [("v", "simple"), ("x0", "elbo")])
    out = tmp_path / "results" / "tiny.json"
    sizes = ["--seeds", "2", "--num-steps", "3", "--digit-steps", "2", "--judge-steps", "3", "--points", "40"]
    script.main([*sizes, "--out", str(out)])
    result = json.loads(out.read_text(encoding="utf8"))
    assert set(result["roll"]) == {"v, simple", "x0, elbo"} and len(result["digits"]) == 5
    for row in [*result["roll"].values(), *result["digits"].values()]:
        assert all(len(found["values"]) == 2 for found in row.values())
    assert result["roll"]["v, simple"]["excess"]["mean"] > 0.2  # an untrained network is far from the exact one
    assert "v, simple" in capsys.readouterr().out


def test_the_exact_denoiser_has_no_excess(script):
    exact = script.exact_denoiser()
    assert script.excess(exact, exact, levels=5, num_points=20) == 0
    worse = script.excess(lambda x, t: 0.9 * exact(x, t), exact, levels=5, num_points=20)
    assert worse > 0.1


def test_stored_losses_were_made_with_the_settings_of_the_script(script, stored):
    assert stored["settings"] == script.SETTINGS and stored["digit_settings"] == script.DIGITS
    assert stored["seeds"] == [0, 1, 2]
    assert set(stored["roll"]) == {f"{p}, {w}" for p, w in script.PAIRS}


def test_stored_losses_keep_what_the_chapter_says(stored):
    roll = {name: {k: row[k]["mean"] for k in row} for name, row in stored["roll"].items()}
    assert min(roll, key=lambda name: roll[name]["excess"]) == "v, snr"
    assert roll["x0, simple"]["excess"] > 10 * roll["x0, snr"]["excess"]
    assert roll["x0, elbo"]["distance"] > 4 * roll["x0, simple"]["distance"]
    for target in ("eps", "v", "edm"):
        for measure in ("excess", "distance"):
            assert roll[f"{target}, min_snr"][measure] > roll[f"{target}, simple"][measure]
    digits = {name: {k: row[k]["mean"] for k in row} for name, row in stored["digits"].items()}
    assert max(digits, key=lambda name: digits[name]["psnr"]) == "mse"
    assert digits["perceptual"]["accuracy"] > digits["mse"]["accuracy"] > digits["ssim"]["accuracy"]
    assert digits["mse"]["sharpness"] < 0.9 < digits["perceptual"]["sharpness"]
