"""The ablation table of chapter 6: its script at a tiny size, and what the stored results promise."""

import json
import math

import pytest
import torch
from test_benchmarks import ROOT
from test_benchmarks import script as load

from companion import data, networks, training

STORED = json.loads((ROOT / "companion" / "results" / "training.json").read_text(encoding="utf8"))


@pytest.fixture(scope="module")
def script():
    return load("training")


def test_it_runs_at_a_tiny_size_and_goes_on_where_it_stopped(script, tmp_path, capsys, monkeypatch):
    out = tmp_path / "results" / "tiny.json"
    monkeypatch.setattr(script, "TIMED", ("baseline", "bfloat16"))
    small = ["--seeds", "1", "--shrink", "100", "--out", str(out), "--rows", "baseline"]
    script.main(small)
    first = json.loads(out.read_text(encoding="utf8"))
    assert set(first["rows"]) == {"baseline"} and set(first["watched"]) == {"longer", "few"}
    assert first["time"].keys() == {"baseline", "bfloat16"} and first["time"]["baseline"] == 1.0
    assert len(first["watched"]["longer"]["runs"][0]["step"]) == 6
    capsys.readouterr()
    script.main([*small, "bfloat16", "data in [0, 255]"])
    second = json.loads(out.read_text(encoding="utf8"))
    assert set(second["rows"]) == {"baseline", "bfloat16", "data in [0, 255]"}
    assert second["rows"]["baseline"] == first["rows"]["baseline"]
    assert capsys.readouterr().out.count("rows ") == 2  # only what was missing
    assert second["rows"]["data in [0, 255]"]["runs"][0]["loss"] > 1000


def test_a_run_that_breaks_is_reported(script):
    found = script.run_row({"lr": 1e4, "warmup": 0, "clip": math.inf, "num_steps": 10}, 0, script.Judge(20))
    assert 1 < found["stopped"] <= 10 and found["error"].endswith("is nan")


def test_the_augmentations(script):
    x, _ = data.digits("held-out")
    moved = script.shift(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape and moved.min() >= -1
    for before, after in zip(x[:50], moved[:50], strict=True):
        shifted = [
            torch.nn.functional.pad(before, (1, 1, 1, 1), value=-1.0)[:, i : i + 8, j : j + 8]
            for i in range(3)
            for j in range(3)
        ]
        assert any(torch.equal(after, candidate) for candidate in shifted)
    turned = script.flip(x, torch.Generator().manual_seed(0))
    same, mirrored = (torch.stack([torch.equal(a, b) * torch.ones(()) for a, b in zip(turned, z, strict=True)])
                      for z in (x, x.flip(-1)))  # fmt: skip
    assert ((same + mirrored) >= 1).all() and 0.4 < mirrored.mean() < 0.6


def test_kept_bytes_are_counted_and_repeat(script):
    rows = {
        name: script.saved_bytes(script.ROWS[name]) for name in ("baseline", "activation checkpointing", "bfloat16")
    }
    assert rows == {name: STORED["rows"][name]["kept bytes"] for name in rows}
    assert rows["activation checkpointing"] < 0.5 * rows["baseline"]


# --- what ships ---


def test_stored_results_were_made_with_the_settings_of_the_script(script):
    assert STORED["settings"] == script.BASE and STORED["later"] == script.LATER and STORED["few"] == script.FEW
    assert list(STORED["rows"]) == list(script.ROWS) and STORED["seeds"] == [0, 1, 2]
    for name, row in script.ROWS.items():
        assert STORED["rows"][name]["changes"] == script.written(row) and len(STORED["rows"][name]["runs"]) == 3
    assert set(STORED["time"]) == set(script.TIMED)
    assert STORED["floor"] == pytest.approx(script.Judge(script.BASE["samples"]).floor, rel=1e-3)


def distance(name):
    return sum(run["frechet"] for run in STORED["rows"][name]["runs"]) / 3


def test_stored_results_say_what_the_chapter_says():
    base = distance("baseline")
    for name in ("EMA 0.999 without its warm-up", "lr x 10, no warm-up", "lr / 10", "data in [0, 255]"):
        assert distance(name) > 4 * base
    assert distance("batch 16, same samples") < 0.6 * base
    one, other = (STORED["rows"][n]["runs"] for n in ("baseline", "activation checkpointing"))
    assert one == other  # the same bits, so the same samples
    assert STORED["time"]["activation checkpointing"] > 1.1


def test_the_baseline_of_the_script_is_a_plain_call_of_fit(script):
    steps = script.prepare(script.settings_of({"num_steps": 3}), 1)[1]
    torch.manual_seed(1)
    draw, (x, y) = torch.Generator().manual_seed(1), data.digits("train")
    twin, base = networks.UNet(1, width=12, num_classes=10), script.BASE
    ours = training.fit(
        twin, data.batches(x, y, size=64, generator=draw), script.schedules.Cosine(), script.predictions.V,
        num_steps=3, lr=base["lr"], warmup=base["warmup"], generator=draw, progress=False,
    )  # fmt: skip
    assert [float(s.loss) for s in steps] == [float(s.loss) for s in ours]
