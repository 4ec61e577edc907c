"""The benchmark of chapter 10 runs at a tiny size, and the results that ship were made with its settings."""

import json
from pathlib import Path

import pytest
import torch
from cases import seeded
from test_benchmarks import script

from companion import data, weights
from companion.weights import emoji_text_to_image as painter

ROOT = Path(__file__).resolve().parents[1]
STORED = json.loads((ROOT / "companion" / "results" / "text_to_image.json").read_text(encoding="utf8"))


@pytest.fixture(scope="module")
def benchmark():
    return script("text_to_image")


@pytest.fixture
def small(benchmark, monkeypatch):
    """Networks of a few thousand parameters, and samples of one step."""
    monkeypatch.setitem(benchmark.SMALL, "width", 8)
    for row in benchmark.ROWS.values():
        monkeypatch.setitem(row, "text_width", 8)
    call = benchmark.text_to_image.TextToImage.__call__
    monkeypatch.setattr(
        benchmark.text_to_image.TextToImage, "__call__", lambda self, *a, **k: call(self, *a, **{**k, "num_steps": 1})
    )


def test_runs_at_a_tiny_size_and_keeps_what_it_has(benchmark, small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results" / "tiny.json"
    benchmark.main(["--tiny", "--out", str(out)])
    result = json.loads(out.read_text(encoding="utf8"))
    assert set(result) == set(STORED)
    assert [row["name"] for row in result["joinings"]] == list(benchmark.ROWS)
    for row, stored in zip(result["joinings"], STORED["joinings"], strict=False):
        assert row.keys() == stored.keys() and row["scenes"].keys() == stored["scenes"].keys()
    reader = result["joinings"][2]
    assert [row["scale"] for row in reader["scenes by scale"]] == [1.0, 2.0]
    assert reader["scenes by scale"][1] == {"scale": 2.0, **reader["scenes"]}
    shipped = result["shipped"]
    assert [(row["scale"], row["seed"]) for row in shipped["pairs"]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [(row["scale"], row["split"]) for row in shipped["scenes"]] == [
        (scale, split) for scale in (1.0, 2.0) for split in ("train", "held-out")
    ]
    assert shipped["pairs"][0].keys() == STORED["shipped"]["pairs"][0].keys()
    assert "cross-attention" in capsys.readouterr().out

    def never(*arguments):
        raise AssertionError("made again")

    for name in ("train", "on_pairs", "on_scenes"):
        monkeypatch.setattr(benchmark, name, never)
    benchmark.main(["--tiny", "--out", str(out)])
    assert json.loads(out.read_text(encoding="utf8")) == result
    result["shipped"]["pairs"][0]["network"] = "another"
    out.write_text(json.dumps(result))
    with pytest.raises(AssertionError, match="made again"):
        benchmark.main(["--tiny", "--only", "shipped", "--out", str(out)])
    result["joinings"][0]["made_with"]["lr"] = 1.0
    out.write_text(json.dumps(result))
    with pytest.raises(AssertionError, match="made again"):
        benchmark.main(["--tiny", "--only", "joinings", "--out", str(out)])


def test_shuffled_captions_are_those_of_other_pictures(benchmark):
    space = painter.latent_space()
    source = painter.Captioned(space, 8, seeded(), among=torch.arange(9))
    z, tokens = next(benchmark.Shuffled(painter.Captioned(space, 8, seeded(), among=torch.arange(9))))
    same, own = next(source)
    assert torch.equal(z, same) and torch.equal(tokens.sort(0).values, own.sort(0).values)
    assert not torch.equal(tokens, own)


def test_who_is_told_nothing_is_judged_without_captions(benchmark, monkeypatch):
    asked, seen = data.scenes(5, generator=seeded()), []

    class Model:
        space = None

        def __call__(self, prompts, **options):
            seen.append(list(prompts))
            return asked.x

    monkeypatch.setattr(benchmark.painter, "judge_scenes", lambda x, asked, space: {k: x for k in benchmark.SCENE})
    benchmark.on_scenes(Model(), asked, 2.0, 0)
    benchmark.on_scenes(Model(), asked, 2.0, 0, told=False)
    assert seen == [list(asked.captions), [""] * 5]
    net = benchmark.networks.TextUNet(
        vocabulary=len(painter.tokenizer().words),
        joining=("scale-and-shift",),
        text_width=8,
        **{**benchmark.SMALL, "width": 8},
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=seeded())
    space = painter.latent_space()
    told, untold = (benchmark.fresh_loss(net, space, 9, told) for told in (True, False))
    assert told == benchmark.fresh_loss(net, space, 9, True) and abs(told - untold) > 1e-4


def test_the_rows_differ_in_the_joining_and_not_in_size(benchmark):
    sizes = {row["name"]: row["parameters"] for row in STORED["joinings"]}
    assert set(sizes) == set(benchmark.ROWS) and max(sizes.values()) < 1.01 * min(sizes.values())


# --- what is stored ---


def test_stored_was_made_with_the_settings_of_the_script(benchmark):
    settings = benchmark.SETTINGS
    assert STORED["settings"] == settings
    assert [(row["seed"], row["name"]) for row in STORED["joinings"]] == [
        (seed, name)
        for seed in settings["joining_seeds"]
        for name in benchmark.ROWS
        if name not in benchmark.BASELINES or seed in settings["baseline_seeds"]
    ]
    for row in STORED["joinings"]:
        assert row["made_with"].items() >= {**benchmark.ROWS[row["name"]], "network": benchmark.SMALL}.items()
        assert all(row["made_with"][key] == settings[key] for key in row["made_with"].keys() & settings.keys())
    pairs, scenes = STORED["shipped"]["pairs"], STORED["shipped"]["scenes"]
    assert [(r["scale"], r["seed"]) for r in pairs] == [
        (s, k) for s in settings["scales"] for k in settings["pair_seeds"]
    ]
    assert {(r["scale"], r["seed"], r["split"]) for r in scenes} == {
        (s, k, split) for s in settings["scales"] for k in settings["scene_seeds"] for split in ("train", "held-out")
    }
    assert {r["count"] for r in pairs} == {734} and {r["count"] for r in scenes} == {settings["scenes"]}
    checksum = weights.card(painter.NAME)["sha256"]
    assert all(checksum.startswith(r["network"]) for r in [*pairs, *scenes])


def test_stored_keeps_its_promises():
    """Every pair held out is named right, sharply on average; scenes too, and far from half as well without words."""
    pairs = [row for row in STORED["shipped"]["pairs"] if row["scale"] == 2.0]
    assert all(row["both"] >= 0.97 and row["ratio"] <= 1.3 for row in pairs)
    assert all(row["strict"] >= 0.6 for row in STORED["shipped"]["scenes"] if row["scale"] == 2.0)
    assert STORED["shipped"]["ceiling"]["pairs"]["right"] >= 0.97


def test_stored_joinings_rank_as_the_chapter_says():
    def share(name, part, key):
        found = [row[part][key] for row in STORED["joinings"] if row["name"] == name]
        return sum(found) / len(found)

    strict = {row["name"]: share(row["name"], "scenes", "strict") for row in STORED["joinings"]}
    assert strict["cross-attention"] > 5 * max(strict["concatenation"], strict["scale-and-shift"])
    for name in ("concatenation", "scale-and-shift", "cross-attention"):
        assert share(name, "pairs", "both") > 0.95
    for name in ("no text", "other captions"):
        assert share(name, "pairs", "both") < 0.1 and strict[name] < 0.02


def test_a_stored_row_is_made_again(benchmark):
    """The first of the pairs that ship, and the autoencoder's own, on a part of the pictures."""
    model, some = painter.load(), torch.arange(0, 734, 20)
    held_out = painter.some(data.coloured_emoji("held-out"), some)
    found = benchmark.on_pairs(model, held_out, 2.0, 0)
    row = next(r for r in STORED["shipped"]["pairs"] if r["scale"] == 2.0)
    assert found["both"] >= 0.94 and found["ratio"] == pytest.approx(row["ratio"], abs=0.12)
    restored = model.space.decode(model.space.encode(held_out.x)).clamp(-1, 1)
    ceiling = benchmark.shares(painter.judge(restored, held_out, model.space), benchmark.PAIR)
    assert ceiling["right"] == pytest.approx(STORED["shipped"]["ceiling"]["pairs"]["right"], abs=0.06)
