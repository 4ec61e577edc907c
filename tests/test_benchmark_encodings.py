"""The benchmark of the step encodings runs at a tiny size, and its stored results keep what chapter 3 says."""

import json
import math

import pytest
import torch
from test_benchmarks import ROOT, script

from companion import encodings, networks, noise, predictions, schedules

STORED = ROOT / "companion" / "results" / "encodings.json"


@pytest.fixture(scope="module")
def benchmark():
    return script("encodings")


@pytest.fixture(scope="module")
def stored():
    return json.loads(STORED.read_text(encoding="utf8"))


def test_runs_at_a_tiny_size(benchmark, stored, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "DRAWS", 1)
    out = tmp_path / "results" / "tiny.json"
    sizes = ["--points", "10", "--num-times", "20", "--num-steps", "1", "--unseen-steps", "1"]
    benchmark.main(["--seeds", "1", *sizes, "--out", str(out)])
    tiny = json.loads(out.read_text(encoding="utf8"))
    assert tiny.keys() == stored.keys() and tiny["settings"].keys() == stored["settings"].keys()
    assert tiny["settings"]["num_steps"] == 1 and tiny["settings"]["points"] == 10
    for table, rows in stored["tables"].items():
        assert list(tiny["tables"][table]) == list(rows)
        for name, runs in rows.items():
            assert tiny["tables"][table][name][0].keys() == runs[0].keys()
            assert all(math.isfinite(v) for run in runs for value in run.values() for v in torch.tensor(value).view(-1))
    assert "gap        learned" in capsys.readouterr().out


def test_stored_was_made_with_the_settings_of_the_script(benchmark, stored):
    sizes = {"widths": benchmark.WIDTHS, "points": 2000, "num_times": 20_000, "sigma_min": benchmark.SIGMA_MIN}
    assert stored["settings"] == {**benchmark.SETTINGS, **sizes}
    assert stored["seeds"] == [0, 1, 2]
    assert all(len(runs) == 3 for rows in stored["tables"].values() for runs in rows.values())


@pytest.mark.parametrize(("name", "allowed"), [("roll", 0.03), ("digits", 0.05)])
def test_each_way_to_join_has_about_the_same_number_of_parameters(benchmark, stored, name, allowed):
    dim = 2 if name == "roll" else 64
    for joining, width in benchmark.WIDTHS.items():
        row = "sinusoidal" if joining == "add" else f"sinusoidal, {joining}"
        net = networks.MLP(
            dim, width=width, encoding=benchmark.choices(schedules.Cosine())["sinusoidal"](), joining=joining
        )
        count = sum(p.numel() for p in net.parameters())
        assert {run["parameters"] for run in stored["tables"][name][row]} == {count}
        assert abs(count / stored["tables"][name]["sinusoidal"][0]["parameters"] - 1) < allowed


@pytest.mark.parametrize("prediction", [predictions.V, predictions.EPS, predictions.edm(0.7)], ids=lambda p: p.name)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_above_floor_is_0_for_the_exact_network_and_adds_up(benchmark, prediction, t):
    """A network that is off by a constant c is c^2 above the floor, and floor + c^2 is its mean loss."""
    schedule = schedules.Cosine()
    exact = benchmark.roll(schedule)

    def perfect(x, times):
        alpha, sigma = schedule.alpha(times)[:, None].double(), schedule.sigma(times)[:, None].double()
        x = x.double() / prediction.input_scale(alpha, sigma)
        x0_hat = exact(x, times)
        return prediction.target(x0_hat, (x - alpha * x0_hat) / sigma, alpha, sigma)

    times = torch.full((2000,), t)
    above, floor = benchmark.above_floor(perfect, exact, prediction, times)
    assert above.shape == floor.shape == (2000,) and float(above.max()) < 1e-8
    above, _ = benchmark.above_floor(lambda x, t: perfect(x, t) + 0.3, exact, prediction, times)
    torch.testing.assert_close(above, torch.full_like(above, 0.09), rtol=1e-3, atol=0)
    generator = torch.Generator().manual_seed(9)
    x0 = exact.sample(2000, generator=generator)
    x, eps = noise.add_noise(x0.double(), times.double(), schedule, generator=generator)
    alpha, sigma = schedule.alpha(times.double())[:, None], schedule.sigma(times.double())[:, None]
    x = prediction.input_scale(alpha, sigma) * x
    loss = (perfect(x, times.double()) - prediction.target(x0, eps, alpha, sigma)).square().mean(1)
    torch.testing.assert_close(floor, loss, rtol=1e-6, atol=1e-9)


def test_times(benchmark):
    u = (torch.arange(1000) + 0.5) / 1000
    sigma = 80 * benchmark.steep_times(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(sigma, torch.tensor([0.01, 0.8**0.5, 80.0], dtype=torch.float64))
    assert torch.equal(benchmark.every_twentieth(u).unique(), torch.arange(1, 21) / 20)
    gap = benchmark.with_a_gap(u)
    assert float(gap[u <= 0.5].max()) < 0.4 < 0.6 < float(gap[u > 0.5].min()) and float(gap.max()) <= 1
    assert abs(float(gap[:500].diff().mean()) - 0.0008) < 1e-6 and abs(float(gap[500:].diff().mean()) - 0.0008) < 1e-6


def test_choices(benchmark):
    t, schedule = torch.tensor([0.25, 0.5]), schedules.FlowMatching()
    made = {name: make() for name, make in benchmark.choices(schedule).items()}
    assert made["raw integer"](t).tolist() == [[250.0], [500.0]]
    assert torch.equal(made["sinusoidal"](t), encodings.sinusoidal(t, 64))
    assert torch.equal(made["log-SNR"](t), encodings.log_snr(t, schedule, 64))
    assert float(made["raw log-SNR"](t)[1, 0]) == 0.0
    assert [len(made[f"Fourier{more}"](t)[0]) for more in ("", ", scale 4", ", scale 16")] == [64] * 3
    assert all(code(t).shape[0] == 2 for code in made.values())


# --- the chapter's sentences ---


def mean(stored, table, row, key="above"):
    runs = stored["tables"][table][row]
    values = [sum(run["above"]) / sum(run["floor"]) if key == "above" else run[key] for run in runs]
    return sum(values) / len(values)


def test_the_chapters_sentences(stored):
    assert mean(stored, "roll", "none") > 3 * mean(stored, "roll", "sinusoidal")
    assert 1.1 < mean(stored, "digits", "none") / mean(stored, "digits", "sinusoidal") < 1.4
    for code in ("sinusoidal", "Fourier", "log-SNR"):
        assert mean(stored, "roll", "raw number") < 1.1 * mean(stored, "roll", code)  # as good as any code
        assert mean(stored, "digits", code) < mean(stored, "digits", "raw number")
    assert mean(stored, "digits", "raw integer", "quality") > 5 * mean(stored, "digits", "none", "quality")
    order = [mean(stored, "steep", row) for row in ("none", "raw number", "raw log-SNR", "sinusoidal", "log-SNR")]
    assert order == sorted(order, reverse=True)
    for row in ("learned", "Fourier, scale 16"):
        assert mean(stored, "twentieths", row, "unseen") > 20 * mean(stored, "twentieths", row, "seen")
    for row in ("none", "raw number", "Fourier"):
        for table in ("twentieths", "gap"):
            assert mean(stored, table, row, "unseen") < 1.3 * mean(stored, table, row, "seen")
    assert mean(stored, "gap", "Fourier, scale 4", "unseen") > 5 * mean(stored, "gap", "Fourier, scale 4", "seen")
    assert mean(stored, "roll", "sinusoidal, scale_shift") < mean(stored, "roll", "sinusoidal") / 3
    assert mean(stored, "digits", "sinusoidal, scale_shift") > mean(stored, "digits", "sinusoidal")
