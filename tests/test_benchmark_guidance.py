"""The guidance benchmark runs at a tiny size, and the results that ship keep what the book says of them."""

import json
import statistics

import pytest
import torch
from test_benchmarks import ROOT
from test_benchmarks import script as load

from companion.weights import digit_denoiser


@pytest.fixture(scope="module")
def script():
    return load("guidance")


@pytest.fixture(scope="module")
def stored():
    return json.loads((ROOT / "companion" / "results" / "guidance.json").read_text(encoding="utf8"))


def test_runs_at_a_tiny_size(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "CANDIDATES", script.CANDIDATES[:1])
    few = slice(None, None, 10)
    images, labels, held_out, wanted = script.digits()
    monkeypatch.setattr(script, "digits", lambda: (images, labels, held_out[few], wanted[few]))
    out = tmp_path / "results" / "tiny.json"
    names = ["off", "plain, 5", "interval 0.1 to 0.2, 2", "rescale 1, 2", "the weaker network", "classifier, 1"]
    sizes = ["--seeds", "2", "--choice-seeds", "2", "--num-steps", "4", "--weak-steps", "2", "--critic-steps", "2"]
    script.references.cache_clear()
    script.main([*sizes, "--out", str(out), "--rows", *names])
    result = json.loads(out.read_text(encoding="utf8"))
    script.main([*sizes, "--out", str(out), "--choice", "--rows", "plain, 1.1"])  # one row more
    more = json.loads(out.read_text(encoding="utf8"))
    with pytest.raises(ValueError, match="other settings"):
        script.main([*sizes, "--num-steps", "5", "--out", str(out), "--choice", "--rows", "plain, 1.1"])
    assert json.loads(out.read_text(encoding="utf8")) == more
    script.references.cache_clear()
    assert list(result["rows"]) == names and list(result["choice"]) == ["off", "interval 0 to 0.1, 2"]
    assert list(more["rows"]) == ["off", "plain, 1.1", *names[1:]] and more["rows"].pop("plain, 1.1")
    assert more == result
    rows = result["rows"]
    assert rows["off"]["samples"] == 100 and rows["off"]["seeds"] == [0, 1]
    assert result["choice"]["interval 0 to 0.1, 2"]["seeds"] == [100, 101]
    assert rows["plain, 5"]["distance"] > rows["off"]["distance"]
    assert rows["the weaker network"]["as asked"] < 0.5  # hardly trained
    assert result["settings"]["weaker network"]["num_steps"] == 2


def test_every_row_is_a_denoiser_of_its_own(script):
    rows = script.denoisers_of(script.model(), script.noisy_classifier(0))
    x = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = {name: denoise(x, torch.tensor(0.15)) for name, denoise in rows.items()}
    assert not torch.equal(answers["plain, 2"], answers["off"])
    assert torch.equal(answers["interval 0.1 to 0.2, 2"], answers["plain, 2"])
    assert torch.equal(answers["interval 0.5 to 1, 2"], answers["off"])
    assert not torch.equal(answers["classifier, 1"], answers["classifier, 2"])
    assert answers["classifier, 4, clipped"].abs().max() <= 1
    assert torch.allclose(answers["the weaker network"], answers["off"])  # here the shipped one stands in for it


def test_stored_was_made_with_the_settings_of_the_script(script, stored):
    settings = stored["settings"]
    assert settings["weaker network"] == {"num_steps": 400, "seed": 1, **digit_denoiser.SETTINGS}
    assert settings["num_steps"] == 20 and settings["sampler"] == "dpmpp_2m"
    assert set(stored["rows"]) == set(script.denoisers_of(script.model(), script.noisy_classifier(0)))
    assert settings["classifier"] == {"num_steps": 2000, "seed": 0}
    assert list(stored["choice"]) == list(script.candidates())
    assert stored["floor"] == pytest.approx(script.references()["floor"], rel=1e-3)
    for row in stored["rows"].values():
        assert row["samples"] >= 2000 and not set(row["seeds"]) & {100, 101, 102, 103}
        for name in ("distance", "as asked", "spread"):
            assert row[name] == pytest.approx(statistics.fmean(row[f"{name}, by seed"]), abs=1e-4)


def test_stored_keeps_its_promises(stored):
    """At least 99.5 % as asked within 1.5 floors, by the interval that was chosen on other seeds."""
    good = {name: row for name, row in stored["choice"].items() if row["as asked"] >= 0.996}
    chosen = stored["rows"][min(good, key=lambda name: good[name]["distance"])]
    assert chosen["as asked"] >= 0.995 and chosen["distance"] <= 1.5
    rows = stored["rows"]
    assert rows["off"]["as asked"] < chosen["as asked"]
    plain = [rows[f"plain, {scale}"]["distance"] for scale in ("1.1", "1.15", "1.25", "1.5", "2", "3", "5")]
    assert plain == sorted(plain) and rows["plain, 2"]["distance"] > 3
    assert rows["rescale 1, 2"]["distance"] < rows["plain, 2"]["distance"]
    assert rows["autoguidance, 1.5"]["spread"] > rows["plain, 1.5"]["spread"] + 0.03


def test_a_stored_row_comes_out_again(script, stored):
    row = stored["rows"]["interval 0.1 to 0.2, 2"]
    again = script.frechet(script.draw(script.interval(2.0, 0.1, 0.2), 0)) / script.references()["floor"]
    assert again == pytest.approx(row["distance, by seed"][0], rel=0.05)


def test_noisy_classifier_learns_and_leaves_the_global_seed(script):
    """A few steps do better than chance on clean digits, twice the same; the channel of sigma changes the answer."""
    state = torch.get_rng_state()
    first, second = script.noisy_classifier(150), script.noisy_classifier(150)
    assert torch.equal(torch.get_rng_state(), state)
    held_out, wanted = script.digits()[2:]
    clean = first(torch.cat([held_out, torch.zeros_like(held_out)], 1))
    assert torch.equal(clean, second(torch.cat([held_out, torch.zeros_like(held_out)], 1)))
    assert float((clean.argmax(1) == wanted).double().mean()) > 0.7
    assert not torch.allclose(clean, first(torch.cat([held_out, torch.ones_like(held_out)], 1)))


def test_stored_classifier_rows_are_worse_than_asking_the_network(stored):
    rows = stored["rows"]
    for name in ("classifier, 1", "classifier, 2", "classifier, 4, clipped"):
        assert rows[name]["as asked"] < rows["off"]["as asked"] and rows[name]["distance"] > rows["off"]["distance"]
    assert rows["classifier, 1"]["as asked"] < rows["classifier, 2"]["as asked"]
