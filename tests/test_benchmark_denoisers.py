"""benchmarks/denoisers.py runs at a tiny size, and the results that ship were made with its settings and hold."""

import json
import math

import pytest
import torch
from test_benchmarks import ROOT
from test_benchmarks import script as load

from companion import data, denoisers, networks, schedules

STORED = json.loads((ROOT / "companion" / "results" / "denoisers.json").read_text(encoding="utf8"))
LEVELS = STORED["settings"]["levels"]


@pytest.fixture(scope="module")
def script():
    return load("denoisers")


def psnr(name, level, table="rows"):
    return STORED[table][name]["psnr"][LEVELS.index(level)]


# --- the script ---


def test_runs_at_a_tiny_size(script, tmp_path, capsys):
    out = tmp_path / "results" / "tiny.json"
    script.main(["--seeds", "1", "--num-steps", "1", "--kinds-steps", "3", "--images", "20", "--out", str(out)])
    tiny = json.loads(out.read_text(encoding="utf8"))
    assert tiny.keys() == STORED.keys() and tiny["seeds"] == [0] and tiny["settings"]["num_steps"] == 1
    for table in ("rows", "kinds", "toy", "cost"):
        assert tiny[table].keys() == STORED[table].keys()
    assert tiny["cost"] == STORED["cost"]
    assert tiny["rows"]["noisy"]["psnr"] == pytest.approx(STORED["rows"]["noisy"]["psnr"], abs=0.3)
    assert "psnr_error" not in tiny["rows"]["U-Net"]
    assert "U-Net, target v" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["noisy", "median", "Wiener"])
def test_stored_rows_that_need_no_training_come_out_again(script, name):
    schedule = script.SCHEDULE
    wiener = denoisers.Wiener.fit(data.digits("train")[0], schedule)
    rules = {"noisy": script.do_nothing, "median": denoisers.MedianFilter(3, schedule), "Wiener": wiener}
    found = script.judge(rules[name], data.digits("held-out")[0], LEVELS)
    for key, values in STORED["rows"][name].items():
        assert found[key] == pytest.approx(values, abs=0.006 if key != "psnr" else 0.001)


def test_stored_toy_comes_out_again(script):
    toy = script.toy_mixture()
    fresh = toy.sample(500, generator=torch.Generator().manual_seed(500))
    assert script.judge(toy, fresh, LEVELS)["psnr"] == pytest.approx(STORED["toy"]["exact"]["psnr"], abs=0.001)


@pytest.mark.parametrize("level", [0.1, 1.0, 3.0])
def test_a_level_is_noise_over_signal(script, level):
    t = script.time_of(level)
    assert float(script.SCHEDULE.sigma(t) / script.SCHEDULE.alpha(t)) == pytest.approx(level, rel=1e-9)
    x = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(script.do_nothing(script.SCHEDULE.alpha(t) * x, t), x, check_dtype=False)


@pytest.mark.parametrize("kind", ["gaussian", "salt and pepper", "shot"])
@pytest.mark.parametrize("level", [0.2, 1.0])
def test_every_kind_of_noise_does_the_same_damage(script, kind, level):
    x0 = data.digits("train")[0]
    x = script.corrupt(kind, x0, level, torch.Generator().manual_seed(0))
    assert (x - x0).square().mean().item() == pytest.approx(level**2, rel=0.05)


def test_sharpness_of_an_edge(script):
    x = torch.zeros(1, 1, 4, 4)
    x[..., 2:] = 1.0
    assert script.roughness(x).item() == pytest.approx(4 / 12)  # 4 steps of 1 among 12 pairs, along one axis
    assert script.roughness(x.mT).item() == pytest.approx(4 / 12)


def test_pooled_psnr_averages_errors(script):
    x = torch.tensor([0.0, 0.2]).reshape(2, 1, 1, 1)
    assert script.pooled_psnr(x, torch.zeros(2, 1, 1, 1)) == pytest.approx(10 * math.log10(4 / 0.02), rel=1e-6)


def test_over_seeds(script):
    row = script.over_seeds([{"psnr": [1.0, 5.0], "changed": [0.0, 0.5]}, {"psnr": [3.0, 5.0], "changed": [1.0, 0.5]}])
    assert row["psnr"] == [2.0, 5.0] and row["psnr_error"] == [1.0, 0.0] and row["changed"] == [0.5, 0.5]
    assert row["runs"] == [[1.0, 5.0], [3.0, 5.0]]
    assert script.over_seeds([{"psnr": [1.0]}]) == {"psnr": [1.0]}


# --- what is stored ---


def test_stored_with_the_settings_of_the_script(script):
    assert STORED["settings"] == script.SETTINGS and STORED["kind_levels"] == script.KIND_LEVELS
    assert STORED["seeds"] == [0, 1, 2] and schedules.Cosine() == script.SCHEDULE
    assert all(len(row["runs"]) == 3 for name, row in STORED["rows"].items() if name in script.NETWORKS)


def test_stored_budget(script):
    cost = {name: STORED["cost"][name]["parameters"] for name in ("dense", "encoder-decoder", "U-Net")}
    assert max(cost.values()) / min(cost.values()) < 1.01
    assert {name: sum(p.numel() for p in script.NETWORKS[name]().parameters()) for name in cost} == cost
    assert isinstance(script.NETWORKS["U-Net"](), networks.UNet)


def test_stored_promises():
    for level in LEVELS:
        assert psnr("noisy", level) == pytest.approx(20 * math.log10(2 / level), abs=0.1)
        assert psnr("Wiener", level) > psnr("median", level) and psnr("U-Net", level) > psnr("dense", level)
        assert psnr("exact", level, "toy") > max(psnr(name, level, "toy") for name in ("Wiener", "dense", "U-Net"))
    assert max(max(row.get("psnr_error", [0])) for row in STORED["rows"].values()) < 0.5
