"""The benchmark of chapter 8 runs at a tiny size, and the results that ship were made with its settings."""

import json
from pathlib import Path

import pytest
import torch
from test_benchmarks import script

from companion import networks, weights

ROOT = Path(__file__).resolve().parents[1]
STORED = json.loads((ROOT / "companion" / "results" / "latents.json").read_text(encoding="utf8"))


@pytest.fixture(scope="module")
def benchmark():
    return script("latents")


def test_runs_at_a_tiny_size(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark.data, "fashion", fewer(benchmark.data.fashion))
    out = tmp_path / "results" / "tiny.json"
    benchmark.main(["--tiny", "--out", str(out)])
    result = json.loads(out.read_text(encoding="utf8"))
    assert set(result) == set(STORED) and set(result["cost"]) == set(STORED["cost"])
    assert set(result["cost"]["rows"]) == {"pixels, 2", "latents, 2", "latents, 3"}
    assert set(result["scale"]) == {"1.0", "5.0"} and set(result["shifted"]) == {"5.0"}
    assert set(result["kl"]) == {"0.0", "0.1"}
    assert result["scale"]["5.0"]["std"] == pytest.approx(5 * result["scale"]["1.0"]["std"], rel=1e-3)
    assert result["shifted"]["5.0"]["std"] == pytest.approx(result["scale"]["1.0"]["std"], rel=1e-6)
    assert result["kl"]["0.0"].keys() == STORED["kl"]["0.0"].keys()
    assert "latents, 3 calls" in capsys.readouterr().out
    one, rows = result["cost"]["one_call"], result["cost"]["rows"]
    assert rows["latents, 3"]["multiply_adds"] == 3 * one["latents"] + one["decoder"]
    assert rows["pixels, 2"]["multiply_adds"] == 2 * one["pixels"]


def test_a_part_alone_keeps_the_rest(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "train_kl", lambda weight, settings, seed: {"again": weight + seed})
    out = tmp_path / "latents.json"
    out.write_text(json.dumps(STORED))
    benchmark.main(["--tiny", "--only", "kl", "--out", str(out)])
    result = json.loads(out.read_text(encoding="utf8"))
    assert result["kl"]["0.0"] == {"again": 0.5, "each": [{"again": 0.0}, {"again": 1.0}]}  # the mean of two seeds
    assert result["kl"].keys() == {"0.0", "0.1"}
    assert result["cost"] == STORED["cost"] and result["scale"] == STORED["scale"]


def fewer(fashion):
    """A tenth of the subset."""

    def part(*arguments, **options):
        x, y = fashion(*arguments, **options)
        return x[::7][:300], y[::7][:300]

    return part


# --- what counts ---


@pytest.mark.parametrize("size", [4, 8])
def test_multiply_adds_by_hand(benchmark, size):
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    x = torch.zeros(1, 3, size, size)
    assert benchmark.multiply_adds(conv, x) == 5 * size**2 * 3 * 9
    assert benchmark.multiply_adds(torch.nn.Linear(7, 4), torch.zeros(2, 7)) == 2 * 7 * 4
    assert benchmark.multiply_adds(torch.nn.Sequential(conv, torch.nn.SiLU()), x) == 5 * size**2 * 3 * 9
    assert not any(module._forward_hooks for module in conv.modules())


def test_attention_is_counted(benchmark):
    """A U-Net with attention: its products, of queries with keys and of weights with values, and its dense layers'."""
    plain, looking = (networks.UNet(1, width=8, multipliers=(1,), attention=attention) for attention in ((), (0,)))
    x, t = torch.zeros(1, 1, 4, 4), torch.tensor([0.5])
    more = benchmark.multiply_adds(looking, x, t) - benchmark.multiply_adds(plain, x, t)
    one = 16 * 8 * 3 * 8 + 16 * 8 * 8 + 2 * 16 * 16 * 8  # queries, keys and values; out; the two products
    assert more == 4 * one  # one layer down, one in the middle, two up


def test_cheapest_that_is_as_good(benchmark):
    def row(distance, products):
        return {"distance": distance, "multiply_adds": products}

    rows = {
        "pixels, 1": row(9.0, 100), "pixels, 2": row(3.0, 200), "pixels, 3": row(0.5, 300),
        "latents, 1": row(9.0, 10), "latents, 2": row(2.0, 20), "latents, 3": row(1.0, 30),
    }  # fmt: skip
    assert benchmark.cheaper(rows) == {
        "pixels, 1": {"by": "latents, 1", "times": 10},
        "pixels, 2": {"by": "latents, 2", "times": 10},
    }


def test_rows_of_the_same_networks_are_kept(benchmark, monkeypatch):
    """What was drawn is not drawn again; what another network drew is."""
    drawn = []

    def sample(net, labels, *, num_calls, seed):
        drawn.append((net.channels, num_calls, seed))
        return torch.zeros(len(labels), *((1, 32, 32) if net.channels == 1 else (4, 8, 8)))

    monkeypatch.setattr(benchmark.fashion_denoisers, "sample", sample)
    monkeypatch.setattr(benchmark.fashion_denoisers, "distance", lambda x: float(len(x)))
    monkeypatch.setattr(benchmark, "clock", lambda: {})
    monkeypatch.setattr(benchmark.data, "fashion", fewer(benchmark.data.fashion))
    options = {"samples": 6, "draws": 2, "pixel_calls": [1], "latent_calls": [2]}
    first = benchmark.compare(options, {})
    assert drawn == [(1, 1, 0), (1, 1, 1), (4, 2, 0), (4, 2, 1)] and first["rows"]["latents, 2"]["each"] == [6.0, 6.0]
    drawn.clear()
    assert benchmark.compare(options, first["rows"])["rows"] == first["rows"] and not drawn
    first["rows"]["latents, 2"]["made_with"]["network"] = "another"
    assert benchmark.compare(options, first["rows"])["rows"].keys() == first["rows"].keys()
    assert drawn == [(4, 2, 0), (4, 2, 1)]
    benchmark.compare({**options, "draws": 1}, first["rows"])
    assert drawn[2:] == [(1, 1, 0), (4, 2, 0)]


def test_clock(benchmark):
    found = benchmark.clock(turns=2, batch=2)
    assert found.keys() == {"pixels", "latents", "decoder"} and all(value > 0 for value in found.values())


def test_scaled(benchmark):
    space = benchmark.fashion_denoisers.space()
    x = benchmark.data.fashion("held-out", size=32)[0][:4]
    larger = benchmark.scaled(space, 5.49)
    assert torch.allclose(larger.encode(x), 5.49 * space.encode(x), rtol=1e-4, atol=1e-4)
    assert torch.allclose(larger.decode(5.49 * space.encode(x)), space.decode(space.encode(x)), atol=1e-3)


@pytest.mark.parametrize("factor", [0.18215, 5.49])
def test_shifted(benchmark, factor):
    """It noises latents as the schedule noises those `factor` times as large, up to a factor on what comes out."""
    base, shifted = benchmark.fashion_denoisers.SCHEDULE, benchmark.Shifted(factor)
    t = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64)
    assert torch.allclose(shifted.log_snr(t), base.log_snr(t) + 2 * torch.tensor(factor).double().log())
    assert torch.allclose(shifted.alpha(t) ** 2 + shifted.sigma(t) ** 2, torch.ones_like(t))
    assert float(shifted.alpha(0.0)) == 1 and float(shifted.sigma(1.0)) == 1
    assert torch.allclose(benchmark.Shifted(1.0).alpha(t), base.alpha(t))


# --- what is stored ---


def test_stored_was_made_with_the_settings_of_the_script(benchmark):
    assert STORED["settings"] == benchmark.SETTINGS
    rows = STORED["cost"]["rows"]
    assert set(rows) == {f"pixels, {n}" for n in benchmark.SETTINGS["pixel_calls"]} | {
        f"latents, {n}" for n in benchmark.SETTINGS["latent_calls"]
    }
    assert all(len(row["each"]) == benchmark.SETTINGS["draws"] for row in rows.values())
    assert set(STORED["scale"]) == {str(s) for s in benchmark.SETTINGS["scales"]}
    assert set(STORED["kl"]) == {str(w) for w in benchmark.SETTINGS["kl_weights"]}
    assert set(STORED["shifted"]) == set(STORED["scale"]) - {"1.0"}
    for part, seeds in (("scale", "seeds"), ("shifted", "seeds"), ("kl", "kl_seeds")):
        for row in STORED[part].values():
            assert len(row["each"]) == len(benchmark.SETTINGS[seeds])
            means = {name: sum(one[name] for one in row["each"]) / len(row["each"]) for name in row["each"][0]}
            assert {name: row[name] for name in means} == pytest.approx(means)
    assert STORED["cost"]["training_seconds"] == {
        name: weights.card(f"fashion_{name}")["seconds"] for name in STORED["cost"]["training_seconds"]
    }


def test_stored_costs_are_those_of_the_networks(benchmark):
    assert benchmark.costs() == STORED["cost"]["one_call"]
    for name, row in STORED["cost"]["rows"].items():
        kind, calls = name.split(", ")
        assert row["made_with"]["network"] == benchmark.sha256(kind)
        decoder = STORED["cost"]["one_call"]["decoder"] if kind == "latents" else 0
        assert row["multiply_adds"] == int(calls) * STORED["cost"]["one_call"][kind] + decoder
        assert row["distance"] == pytest.approx(sum(row["each"]) / len(row["each"]))
    assert benchmark.cheaper(STORED["cost"]["rows"]) == STORED["cost"]["cheaper"]


def test_stored_keeps_its_promises():
    """At a distance that both reach, a sample from latents takes an eighth of the multiply-adds or less."""
    cost = STORED["cost"]
    assert max(found["times"] for found in cost["cheaper"].values()) >= 8
    floor = cost["floor"]
    assert floor["held out"] < floor["restored"] < min(row["distance"] for row in cost["rows"].values())


def test_stored_scale_says_what_the_chapter_says():
    """Too large does harm with every seed; too small, no more than seeds differ."""
    each = {float(scale): [one["distance"] for one in row["each"]] for scale, row in STORED["scale"].items()}
    assert min(each[5.49]) > 1.5 * max(each[1.0])
    assert min(each[1.0]) < sum(each[0.18215]) / 3 < max(each[1.0])
    for scale, row in STORED["scale"].items():
        assert row["std"] == pytest.approx(float(scale), rel=0.02)


def test_stored_kl_term_trades():
    """More of it: latents of a smaller spread, and a lower PSNR."""
    rows = [STORED["kl"][key] for key in sorted(STORED["kl"], key=float)]
    assert rows[-1]["psnr"] < rows[0]["psnr"] - 0.4 and rows[-1]["std"] < 0.6 * rows[1]["std"]
