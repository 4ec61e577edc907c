"""python -m companion train, sample and evaluate: what they make, that a stopped run goes on, and what they refuse."""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image

from companion import checkpoints, data, metrics, training
from companion.commands import _evaluate, _images, _options, _run, _train, main
from companion.commands._problems import Problem, foreseen, memory

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--size", 8, "--width", 8, "--steps", 4, "--batch", 4, "--save-every", 2, "--device", "cpu")


def call(*words):
    """The exit code of a command, whichever way it ends."""
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def refused(capsys, *words, code=1):
    """What a command that must fail says: one or two lines, and no traceback."""
    capsys.readouterr()
    assert call(*words) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said and 1 <= len(said.strip().splitlines()) <= 2
    return said


def fill(folder, classes=("cats", "dogs"), count=6, size=(8, 8), seed=0):
    """Write images that differ: cats are dark, dogs are light."""
    generator = torch.Generator().manual_seed(seed)
    for k, name in enumerate(classes or [""]):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            x = 0.6 * torch.rand(3, *size, generator=generator) - 0.8 + k
            _images.write(folder / name / f"{i}.png", x)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("data") / "my photos")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("data") / "plain", classes=(), count=12)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A finished run with classes, not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert call("train", photos, "--out", out, *TINY, "--hold-out", 0.25) == 0
    return out


@pytest.fixture(scope="module")
def unconditional(plain, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain-run"
    assert call("train", plain, "--out", out, *TINY) == 0
    return out


@pytest.fixture
def copy(trained, tmp_path):
    """The finished run, to be damaged."""
    return shutil.copytree(trained, tmp_path / "copy")


def image(path):
    with Image.open(path) as opened:
        return opened.mode, opened.size


# --- what they make ---


def test_train_fills_the_folder(trained):
    assert sorted(p.name for p in trained.iterdir()) == [
        "checkpoint.safetensors", "log.jsonl", "samples.png", "settings.json",
    ]  # fmt: skip
    settings = json.loads((trained / "settings.json").read_text())
    assert settings["classes"] == ["cats", "dogs"] and settings["size"] == 8 and sum(settings["class_counts"]) == 9
    assert settings["data"]["images"] == 12 and settings["data"]["held_out"] == 3
    assert settings["network"]["arguments"]["num_classes"] == 2 and settings["versions"]["torch"]
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [2, 4] and all(entry["loss"] > 0 for entry in log)
    assert _run.steps_done(trained) == 4
    assert image(trained / "samples.png") == ("RGB", (4 * 68, 4 * 68))


def test_a_run_is_that_of_the_library(photos, trained):
    """The command is nothing but these calls."""
    found = data.folder(photos, size=8)
    held = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:3]
    kept = torch.tensor([i not in held for i in range(12)])
    net = _run.network(_run.read_settings(trained), trained)
    source = data.batches(
        found.x[kept], found.labels[kept], size=4, generator=torch.Generator().manual_seed(0)
    )  # fmt: skip
    for _ in training.fit(
        net, source, *_run.SCHEDULES["cosine"], num_steps=4, lr=2e-3, warmup=0, drop_cond=0.1,
        generator=torch.Generator().manual_seed(1), progress=False,
    ):  # fmt: skip
        pass
    theirs = _run.load(trained, torch.device("cpu")).net.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in net.state_dict().items())


def test_sample_writes_a_sheet_and_images(trained, tmp_path, capsys):
    assert call("sample", trained, "--num", 5, "--steps", 2, "--out", tmp_path / "new" / "drawn") == 0
    names = sorted(p.name for p in (tmp_path / "new" / "drawn").iterdir())
    assert names == ["0000-cats.png", "0001-dogs.png", "0002-cats.png", "0003-dogs.png", "0004-cats.png", "sheet.png"]
    assert image(tmp_path / "new" / "drawn" / "sheet.png") == ("RGB", (3 * 68, 2 * 68))
    assert image(tmp_path / "new" / "drawn" / names[0]) == ("RGB", (8, 8))
    assert "network of step 4" in capsys.readouterr().out


def test_the_same_seed_draws_the_same(trained, tmp_path):
    def drawn(name, *options):
        assert (
            call("sample", trained, "--num", 2, "--steps", 2, "--out", tmp_path / name, "--sheet-only", *options) == 0
        )
        assert [p.name for p in (tmp_path / name).iterdir()] == ["sheet.png"]
        return (tmp_path / name / "sheet.png").read_bytes()

    one = drawn("a")
    assert one == drawn("b") != drawn("c", "--seed", 1)
    assert one != drawn("d", "--class", "dogs") != drawn("e", "--class", "dogs", "--scale", 3)


@pytest.mark.parametrize("sampler", _run.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_sampler_and_one_step(unconditional, sampler, steps):
    run = _run.load(unconditional, torch.device("cpu"))
    x = run.draw(3, None, steps=steps, sampler=sampler, scale=1.0, seed=0, batch=2)
    assert x.shape == (3, 3, 8, 8) and x.abs().max() <= 1 and x.std() > 0


def test_samples_do_not_depend_on_how_they_are_batched(trained):
    run = _run.load(trained, torch.device("cpu"))
    labels = _run.in_turn(5, run.classes)
    one, other = (run.draw(5, labels, steps=2, sampler="adams", scale=2.0, seed=0, batch=n) for n in (2, 5))
    torch.testing.assert_close(one, other)


def test_samples_go_to_new_folders(unconditional, tmp_path):
    run = shutil.copytree(unconditional, tmp_path / "run")
    for _ in range(2):
        assert call("sample", run, "--num", 1, "--steps", 1) == 0
    assert (run / "samples-1" / "0000.png").exists() and (run / "samples-2" / "sheet.png").exists()


def test_evaluate_writes_and_prints_the_figures(trained, tmp_path, capsys):
    out = tmp_path / "metrics.json"
    assert call("evaluate", trained, "--num", 100, "--steps", 2, "--scale", 2, "--out", out) == 0
    found = json.loads(out.read_text())
    assert found["samples"]["num"] == 6 and found["samples"]["network_calls_per_sample"] == 4  # two for guidance
    distance, near = found["frechet_distance"], found["nearest_training_image"]
    assert distance["floor"] >= 0 and distance["images_in_each_set"] == 6
    assert "principal components" in distance["features"] and "FID" in distance["features"]
    assert near["samples_median"] > 0 and near["images_kept_back"] == 3
    assert near["kept_back_median"] > 0.05  # from those trained on, not from themselves
    assert found["versions"]["torch"] and found["step"] == 4
    printed = capsys.readouterr().out
    assert "6 samples in the place of 100" in printed and f"{distance['value']:.4f}" in printed


def test_evaluate_against_other_images(trained, photos, tmp_path):
    other = fill(tmp_path / "other", count=4, seed=1)
    assert call("evaluate", trained, other, "--num", 4, "--steps", 1, "--out", tmp_path / "a.json") == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["images"] == {"source": str(other), "count": 8}
    assert found["nearest_training_image"]["images_kept_back"] == 4


def copying(monkeypatch, x):
    """Let every run draw these images, and nearly so."""
    monkeypatch.setattr(_run.Trained, "draw", lambda self, num, *_, **__: x[torch.arange(num) % len(x)] + 1e-4)


def test_images_trained_on_are_not_kept_back_in_a_larger_folder(unconditional, plain, tmp_path, monkeypatch):
    more = shutil.copytree(plain, tmp_path / "more")
    for i, one in enumerate(sorted(fill(tmp_path / "new", (), 10, seed=1).iterdir())):
        one.rename(more / f"new{i}.png")
    held = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:1]
    x = data.folder(plain, size=8).x[torch.tensor([i not in held for i in range(12)])]
    copying(monkeypatch, x)
    assert call("evaluate", unconditional, more, "--steps", 1, "--out", tmp_path / "a.json") == 0
    near = json.loads((tmp_path / "a.json").read_text())["nearest_training_image"]
    assert near["images_kept_back"] == 11 and near["share_nearer"] == 1
    kept = next(name for i, name in enumerate(data.folder(plain, size=8).files) if i in held)
    shutil.copytree(plain, tmp_path / "fewer", ignore=lambda *_: [kept])
    assert call("evaluate", unconditional, tmp_path / "fewer", "--steps", 1, "--out", tmp_path / "a.json") == 0
    near = json.loads((tmp_path / "a.json").read_text())["nearest_training_image"]
    assert near == {"not_measured": "the run was trained on all these images: name others"}


def test_images_kept_back_are_of_all_classes(trained, tmp_path, monkeypatch):
    seen, nearest = [], _evaluate.nearest
    monkeypatch.setattr(_evaluate, "nearest", lambda x, a, b: (seen.append(b.mean((1, 2, 3))), nearest(x, a, b))[1])
    other = fill(tmp_path / "other", count=12, seed=1)
    for seed in (0, 0, 1):
        words = ("--num", 8, "--steps", 1, "--seed", seed, "--out", tmp_path / "a.json")
        assert call("evaluate", trained, other, *words) == 0
    assert all(len(means) == 8 and 0 < int((means < 0).sum()) < 8 for means in seen)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_evaluate_without_the_training_images(plain, tmp_path, capsys):
    moved = shutil.copytree(plain, tmp_path / "moved")
    assert call("train", moved, "--out", tmp_path / "run", *TINY) == 0
    moved = moved.rename(tmp_path / "elsewhere")
    assert call("evaluate", tmp_path / "run", moved, "--num", 4, "--steps", 1) == 0
    near = json.loads((tmp_path / "run" / "metrics.json").read_text())["nearest_training_image"]
    assert near["images_kept_back"] == 1  # the same images, by their pixels
    fill(moved, classes=(), count=13)
    capsys.readouterr()
    assert call("evaluate", tmp_path / "run", moved, "--num", 4, "--steps", 1) == 0
    assert "in the place of the file that was there" in capsys.readouterr().out
    near = json.loads((tmp_path / "run" / "metrics.json").read_text())["nearest_training_image"]
    assert re.search("moved, which the run was trained on, is gone", near["not_measured"])


def test_evaluate_without_images_kept_back(plain, tmp_path):
    assert call("train", plain, "--out", tmp_path / "run", *TINY, "--hold-out", 0) == 0
    assert call("evaluate", tmp_path / "run", "--num", 4, "--steps", 1) == 0
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "train with a larger --hold-out" in found["nearest_training_image"]["not_measured"]


# --- the figures mean what they say ---


def test_frechet_is_at_its_floor_for_real_images_and_sees_noise_and_blur():
    x, _ = data.digits("train")
    found = _evaluate.frechet(x[:300], x[300:], seed=0)
    assert found["value"] < found["floor"] + 4 * found["floor_sd"]
    assert found["of_noise"] > 20 * found["floor"]
    generator = torch.Generator().manual_seed(0)
    dirty = x[:300] + 0.3 * torch.randn(x[:300].shape, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(x[:300], 3, 1, 1)
    for spoilt in (dirty, blurred):
        assert _evaluate.frechet(spoilt, x[300:], seed=0)["value"] > 2 * found["floor"]


@pytest.mark.parametrize("count", [40, 200])  # fewer and more images than pixels
def test_principal_components(count):
    generator = torch.Generator().manual_seed(0)
    scales = torch.arange(64, 0, -1.0).reshape(1, 8, 8)
    x = torch.randn(count, 1, 8, 8, generator=generator) * scales
    found = _evaluate.principal(x, 5, generator)(x)
    values = torch.linalg.eigvalsh(torch.cov(x.flatten(1).double().T)).flip(0)
    torch.testing.assert_close(torch.cov(found.T).diagonal()[:5].flip(0) * 64, values[:5])
    torch.testing.assert_close(
        found.square().sum(1) * 64, (x.flatten(1).double() - x.flatten(1).double().mean(0)).square().sum(1)
    )


def test_copies_are_found():
    x, _ = data.digits("train")
    unseen, _ = data.digits("held-out")
    assert _evaluate.nearest(x[:100] + 0.01, x, unseen)["share_nearer"] == 1
    honest = _evaluate.nearest(unseen[250:], x, unseen[:250])
    assert honest["share_nearer"] < 0.15
    assert honest["kept_back_median"] == pytest.approx(float(metrics.nearest_distance(unseen[:250], x).median()) / 8)


def test_classes_are_drawn_as_often_as_they_are_there(trained):
    run = _run.load(trained, torch.device("cpu"))
    run.settings["class_counts"] = [9, 1]
    assert 0.85 < float((_evaluate._labels(run, 2000, 0) == 0).double().mean()) < 0.95


# --- what is read ---


def test_what_was_done_to_the_images_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE")
    fill(tmp_path / "in", classes=(), count=6)
    _images.write(tmp_path / "in" / "wide.png", torch.zeros(3, 4, 9))
    (tmp_path / "in" / "broken.png").write_bytes(b"")
    (tmp_path / "in" / "notes.txt").write_text("x")
    assert call("train", tmp_path / "in", "--out", tmp_path / "run", *TINY) == 0
    said, bar = capsys.readouterr()
    assert "training: " in bar and "0/4" in bar  # how often it is drawn anew depends on the machine
    assert "2 size(s): 1 of 7 cropped to the middle square, 1 resized (1 of them enlarged)" in said
    assert "1 file(s) skipped that cannot be read: broken.png: it is empty (0 bytes)" in said
    assert "1 file(s) ignored that are no images or hidden, such as notes.txt" in said
    assert "7 images of 8x8: 6 to train on, 1 kept back" in said


def test_the_shipped_sets():
    for name, (size, _) in _images.SETS.items():
        images = _images.load(name, size=size, grey=False, strict=False, hold_out=0.1)
        assert images.x.shape[-1] == size and len(images.classes) > 1 and images.held.any()
        assert images.y.max() == len(images.classes) - 1 and images.x.min() >= -1 and images.x.max() <= 1
    held_out = data.digits("held-out")[0]
    images = _images.load("digits", size=8, grey=False, strict=False, hold_out=0.1)
    assert torch.equal(images.x[images.held], held_out)


def test_grey_mirror_flow_and_bfloat16(photos, tmp_path):
    words = ("--grey", "--mirror", "--schedule", "flow", "--precision", "bfloat16")
    assert call("train", photos, "--out", tmp_path / "run", *TINY, *words) == 0
    assert call("sample", tmp_path / "run", "--num", 1, "--steps", 2) == 0
    assert image(tmp_path / "run" / "samples-1" / "0000-cats.png") == ("L", (8, 8))
    assert call("evaluate", tmp_path / "run", "--num", 4, "--steps", 1) == 0  # grey again without being told


def test_small_images_are_enlarged_to_64_pixels_or_more():
    for size, shown in ((8, 64), (40, 80), (63, 126), (64, 64), (100, 100)):
        assert _images.sheet(torch.zeros(1, 3, size, size)).shape == (3, shown + 4, shown + 4)


def test_half_of_the_images_are_mirrored():
    x = torch.arange(8.0).expand(1000, 1, 1, 8)
    mirrored = _train._mirrored(x, torch.Generator().manual_seed(0))
    turned = mirrored[:, 0, 0, 0] == 7
    assert torch.equal(mirrored[turned], x[turned].flip(-1)) and torch.equal(mirrored[~turned], x[~turned])
    assert 0.4 < float(turned.double().mean()) < 0.6


@pytest.mark.parametrize(("size", "levels"), [(8, 2), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_the_network_halves_to_8_pixels_or_less(size, levels):
    options = _options.parse(["train", "digits", "--out", "x"])[1]
    found = _train._arguments(options, dict(_options.DEFAULTS), size, None)
    assert found["multipliers"] == list(range(1, levels + 1)) and found["attention"] == [levels - 1]


# --- stop and go on ---


def stopping(monkeypatch, at, presses=1):
    """Press Ctrl-C when a step is done."""
    fit = training.fit

    def with_ctrl_c(*args, **options):
        for step in fit(*args, **options):
            if at <= step.index < at + presses:
                signal.raise_signal(signal.SIGINT)
            yield step

    monkeypatch.setattr(training, "fit", with_ctrl_c)


def test_a_stopped_run_goes_on_to_the_last_bit(photos, trained, tmp_path, monkeypatch, capsys):
    out, before = tmp_path / "run", signal.getsignal(signal.SIGINT)  # another one where the tests run in the background
    with monkeypatch.context() as patch:
        stopping(patch, at=1)
        assert call("train", photos, "--out", out, *TINY, "--hold-out", 0.25) == 130
    said = capsys.readouterr().out
    assert "stopping at step 2" in said and f"python -m companion train --out {out} --resume" in said
    assert _run.steps_done(out) == 2 and signal.getsignal(signal.SIGINT) is before
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 1, "lr": 1, "seconds": 1}\n{"step"')  # after the checkpoint, and torn
    assert call("train", "--out", out, "--resume", "--save-every", 2) == 0
    ours, theirs = (checkpoints.read(run / "checkpoint.safetensors")[0] for run in (out, trained))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    ours, theirs = (
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (out, trained)
    )
    assert [(line["step"], line["loss"]) for line in ours] == [(line["step"], line["loss"]) for line in theirs]
    assert (out / "samples.png").read_bytes() == (trained / "samples.png").read_bytes()


def test_a_second_ctrl_c_stops_at_once(photos, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    stopping(monkeypatch, at=1, presses=2)
    assert call("train", photos, "--out", tmp_path / "run", *TINY[:-3], 4) == 130
    said = capsys.readouterr().out
    assert "stopped at once; the last checkpoint is of step 0. Go on with: python -m companion train --out " in said
    assert signal.getsignal(signal.SIGINT) is before


def test_fine_tuning_that_was_stopped_at_once_still_starts_from_the_weights(photos, trained, tmp_path, monkeypatch):
    words = ("--init", trained, "--steps", 4, "--batch", 4, "--save-every", 4)
    assert call("train", photos, "--out", tmp_path / "whole", *words) == 0
    with monkeypatch.context() as patch:
        stopping(patch, at=1, presses=2)
        assert call("train", photos, "--out", tmp_path / "run", *words) == 130
    assert _run.steps_done(tmp_path / "run") == 0
    assert call("train", "--out", tmp_path / "run", "--resume", "--save-every", 4) == 0
    ours, theirs = (_run.load(tmp_path / name, torch.device("cpu")).net.state_dict() for name in ("run", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_finished_run_says_so(copy, capsys):
    assert call("train", "--out", copy, "--resume") == 0
    assert "is finished: 4 of 4 steps" in capsys.readouterr().out


def test_going_on_before_the_first_checkpoint_begins_again(copy, trained):
    (copy / "checkpoint.safetensors").unlink()
    assert call("train", "--out", copy, "--resume", "--save-every", 2) == 0
    ours, theirs = (checkpoints.read(run / "checkpoint.safetensors")[0] for run in (copy, trained))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_fine_tuning_starts_from_the_weights(photos, trained, tmp_path):
    options = ("--init", trained, "--steps", 1, "--lr", 1e-9, "--batch", 4)
    assert call("train", photos, "--out", tmp_path / "run", *options) == 0
    old, new = (_run.load(run, torch.device("cpu")).net.state_dict() for run in (trained, tmp_path / "run"))
    assert all(torch.allclose(old[key], new[key], atol=1e-6) for key in old)
    assert _run.read_settings(tmp_path / "run")["size"] == 8


def test_fine_tuning_on_other_classes_starts_without_a_class(trained, unconditional, tmp_path):
    """Whatever classes there were and are, the first answer is the old network's without a class."""
    three, none = fill(tmp_path / "three", ("a", "b", "c"), 4), fill(tmp_path / "none", (), 8)
    x, t = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)
    for i, (parent, folder) in enumerate([(trained, three), (trained, none), (unconditional, three)]):
        out = tmp_path / f"run{i}"
        words = ("--init", parent / "checkpoint.safetensors", "--steps", 1, "--lr", 1e-9, "--batch", 4)
        assert call("train", folder, "--out", out, *words) == 0
        old, new = (_run.load(run, torch.device("cpu")).net for run in (parent, out))
        conds = [None, torch.tensor([0, 1, 2])] if folder == three else [None]
        for cond in conds:
            torch.testing.assert_close(new(x, t, cond), old(x, t), atol=1e-4, rtol=1e-4)


# --- what is refused ---


def test_train_refuses_bad_folders(tmp_path, capsys):
    out = ("--out", tmp_path / "run")
    assert "nowhere does not exist; give" in refused(capsys, "train", tmp_path / "nowhere", *out)
    (tmp_path / "file.png").write_bytes(b"x")
    assert "is a file; give the folder" in refused(capsys, "train", tmp_path / "file.png", *out)
    (tmp_path / "empty").mkdir()
    assert "holds no image but nothing" in refused(capsys, "train", tmp_path / "empty", *out)
    (tmp_path / "empty" / "a.png").write_bytes(b"")
    assert "1 of 1 image file(s) cannot be read" in refused(capsys, "train", tmp_path / "empty", *out)
    assert "no images are named" in refused(capsys, "train", *out, code=2)
    assert not (tmp_path / "run").exists()


def test_strict_refuses_what_is_otherwise_skipped(tmp_path, capsys):
    folder = fill(tmp_path / "in", (), 3)
    (folder / "broken.png").write_bytes(b"")
    said = refused(capsys, "train", folder, "--out", tmp_path / "run", *TINY, "--strict")
    assert "1 of 4 image file(s) cannot be read (broken.png" in said
    (folder / "broken.png").unlink()
    _images.write(folder / "wide.png", torch.zeros(3, 4, 9))
    said = refused(capsys, "train", folder, "--out", tmp_path / "run", *TINY, "--strict")
    assert "2 sizes: 3 of 8x8 such as 0.png, 1 of 9x4 such as wide.png" in said


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (
            ("--size", 30),
            2,
            "--size is 30; the network halves it 2 time(s), so it must be a multiple of 4: use 28 or 32",
        ),
        (("--width", 10), 2, "--width is 10; it must be a multiple of 4"),
        (("--batch", 11), 1, "--batch is 11 but there are 9 images to train on; give at most 9"),
        (("--steps", -1), 2, "-1 is out of range; it must be at least 1"),
        (("--steps", "many"), 2, "'many' is not a whole number"),
        (("--lr", 0), 2, "0 is out of range; it must be above 0"),
        (("--lr", "inf"), 2, "inf is not finite"),
        (("--hold-out", 1), 2, "it is a share of the images"),
        (("--hold-out", 0.95), 1, "there is 1 image to train on"),
        (("--schedule", "square"), 2, "invalid choice"),
        (("--precision", "int8"), 2, "invalid choice"),
        (("--device", "abacus"), 2, "invalid choice"),
        (("--colour", "red"), 2, "unrecognized arguments"),
        (("--init", "nowhere"), 1, "nowhere does not exist; train a run first"),
        (("--resume",), 1, "does not exist"),
    ],
)
def test_train_refuses_bad_options(photos, tmp_path, capsys, words, code, expected):
    words = ("--hold-out", 0.25, *words)
    assert expected in refused(capsys, "train", photos, "--out", tmp_path / "run", *words, code=code)
    assert not (tmp_path / "run").exists()


def test_train_refuses_what_does_not_fit_a_set(tmp_path, capsys):
    out = ("--out", tmp_path / "run")
    assert "--size is 16 but digits come in 8" in refused(capsys, "train", "digits", *out, "--size", 16, code=2)
    assert "emoji are in colour" in refused(capsys, "train", "emoji", *out, "--grey", code=2)
    assert "held-out images of their own" in refused(capsys, "train", "digits", *out, "--hold-out", 0.2, code=2)


def test_train_refuses_to_write_over_something(copy, photos, tmp_path, capsys):
    said = refused(capsys, "train", photos, "--out", copy, *TINY)
    assert "holds a run already; add --resume" in said
    (tmp_path / "file").write_text("x")
    assert "is a file; give the name of a folder" in refused(capsys, "train", photos, "--out", tmp_path / "file")
    assert "inside the folder of the images" in refused(capsys, "train", photos, "--out", photos / "run")
    said = refused(capsys, "train", photos, "--out", tmp_path / "file" / "run", *TINY)
    assert "cannot be written (not a directory); give another --out" in said


@pytest.mark.parametrize("name", ["samples.png", "log.jsonl", "checkpoint.safetensors"])
def test_train_leaves_the_files_of_others_alone(photos, tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    said = refused(capsys, "train", photos, "--out", tmp_path, *TINY)
    assert f"which holds {name}, which would be overwritten; give another --out" in said
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_lines_of_others_in_the_log_are_passed_over(tmp_path):
    ours = '{"step": 2, "loss": 1, "lr": 1, "seconds": 7.5}'
    others = ['{"loss": 1}', "[]", "3", "null", '{"step": "two", "seconds": 1}', '{"step": Infinity, "seconds": 1}']
    (tmp_path / "log.jsonl").write_bytes("\n".join([*others, ours, ""]).encode() + b"\xff\xfe")
    assert _train._Log(tmp_path / "log.jsonl", 4).before == 7.5
    assert (tmp_path / "log.jsonl").read_text() == ours + "\n"


def test_a_class_without_an_image_to_train_on_is_refused(tmp_path, capsys):
    folder = fill(tmp_path / "in", ("cats", "dogs"))
    (folder / "cows").mkdir()
    (folder / "cows" / "a.png").write_bytes(b"")
    said = refused(capsys, "train", folder, "--out", tmp_path / "run", *TINY)
    assert "1 of 3 classes have no image to train on: 'cows'; add images that can be read, lower --hold-out" in said
    shutil.copyfile(folder / "cats" / "0.png", folder / "cows" / "a.png")
    names = data.folder(folder, size=8).files
    kept_back = torch.randperm(13, generator=torch.Generator().manual_seed(0)).tolist().index(names.index("cows/a.png"))
    share = (kept_back + 1) / 13
    said = refused(capsys, "train", folder, "--out", tmp_path / "run", *TINY[:-4], "--batch", 2, "--hold-out", share)
    assert "'cows'" in said and not (tmp_path / "run").exists()


def test_names_that_are_too_long_or_of_nobody_are_said(trained, photos, tmp_path, capsys):
    long, nobody = tmp_path / ("x" * 300), "~no-such-user/x"
    too_long = "(file name too long)"
    assert too_long in refused(capsys, "sample", long) and too_long in refused(capsys, "evaluate", long)
    assert too_long in refused(capsys, "sample", trained, "--out", long)
    assert too_long in refused(capsys, "evaluate", trained, "--out", long)
    assert too_long in refused(capsys, "train", photos, "--out", long)
    assert too_long in refused(capsys, "train", photos, "--out", long, "--resume")
    assert too_long in refused(capsys, "train", long, "--out", tmp_path / "run")
    assert too_long in refused(capsys, "train", photos, "--out", tmp_path / "run", "--init", long)
    assert "does not exist; give" in refused(capsys, "train", nobody, "--out", tmp_path / "run")
    assert "does not exist; train" in refused(capsys, "train", photos, "--out", tmp_path / "run", "--init", nobody)
    assert "does not exist; train" in refused(capsys, "sample", nobody)


def test_a_link_that_goes_round_is_said(photos, tmp_path, capsys):
    (tmp_path / "round").symlink_to(tmp_path / "round")
    said = refused(capsys, "train", tmp_path / "round", "--out", tmp_path / "run")
    assert "round does not exist; give the path of a folder" in said
    said = refused(capsys, "train", photos, "--out", tmp_path / "round", *TINY)
    assert "round cannot be written (" in said


def test_the_users_own_folder_may_be_short(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copytree(trained, tmp_path / "run")
    assert call("sample", "~/run", "--num", 1, "--steps", 1, "--out", "~/drawn") == 0
    assert call("evaluate", "~/run", "--num", 2, "--steps", 1, "--out", "~/a.json") == 0
    assert (tmp_path / "drawn" / "sheet.png").exists() and (tmp_path / "a.json").exists()
    assert _options.parse(["train", "x", "--out", "~/new"])[1].out == tmp_path / "new"


def test_more_than_fits_into_memory_is_said(trained, photos, tmp_path, capsys, monkeypatch):
    for num in (10**13, 2**62):
        said = refused(capsys, "sample", trained, "--num", num, "--out", tmp_path / "a")
        assert "there is not enough memory; give a smaller --num" in said
    said = refused(capsys, "sample", trained, "--num", 1, "--steps", 10**13, "--out", tmp_path / "a")
    assert "there is not enough memory" in said
    said = refused(capsys, "train", photos, "--out", tmp_path / "run", "--size", 8, "--width", 4_000_000)
    assert "there is not enough memory; give a smaller --batch, --width or --size" in said
    assert "it must be at most 4096" in refused(capsys, "train", photos, "--out", "x", "--size", 2**40, code=2)

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(data, "folder", full)
    said = refused(capsys, "train", photos, "--out", tmp_path / "run")
    assert "there is not enough memory; give a smaller --size, or fewer images" in said
    with pytest.raises(RuntimeError, match="another mistake"), memory("anything"):
        raise RuntimeError("another mistake")


def test_evaluate_leaves_a_link_alone(unconditional, tmp_path, capsys):
    few = fill(tmp_path / "few", (), 3)
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    assert "two halves" in refused(capsys, "evaluate", unconditional, few, "--out", tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink() and not (tmp_path / "target.json").exists()


def test_a_full_disk_is_said(photos, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "checkpoint.safetensors")

    monkeypatch.setattr(checkpoints, "write", full)
    said = refused(capsys, "train", photos, "--out", tmp_path / "run", *TINY)
    assert "checkpoint.safetensors cannot be written (no space left on device)" in said


def test_a_loss_that_is_nan_is_said(photos, tmp_path, capsys):
    said = refused(capsys, "train", photos, "--out", tmp_path / "run", *TINY[:-4], "--lr", 1e30, "--steps", 20)
    assert "must be finite: lower lr" in said


def test_resuming_with_other_settings_is_refused(copy, photos, plain, capsys):
    for words, expected in [
        (("--lr", 0.5), "--lr is 0.5, but"), (("--steps", 8), "began with 4"), (("--hold-out", 0.5), "--hold-out is"),
        (("--mirror",), "--mirror is True"), (("--init", copy), "--init is"), ((plain,), "the folder of images is"),
    ]:  # fmt: skip
        assert expected in refused(capsys, "train", "--out", copy, "--resume", *words, code=2)
    assert call("train", photos, "--out", copy, "--resume", "--lr", 2e-3) == 0  # the same is fine


def test_resuming_with_other_images_is_refused(tmp_path, capsys):
    folder = fill(tmp_path / "in")
    assert call("train", folder, "--out", tmp_path / "run", *TINY) == 0
    _images.write(folder / "cats" / "0.png", torch.zeros(3, 8, 8))
    assert "(as many, but not the same)" in refused(capsys, "train", "--out", tmp_path / "run", "--resume")
    (folder / "cats" / "0.png").unlink()
    assert "(11 now, 12 then)" in refused(capsys, "train", "--out", tmp_path / "run", "--resume")
    assert "(11 now, 12 then)" in refused(capsys, "evaluate", tmp_path / "run", "--num", 2)


def test_fine_tuning_refuses_what_does_not_fit(photos, trained, tmp_path, capsys):
    words = ("train", photos, "--out", tmp_path / "new", "--init", trained)
    assert "--width is 32 but the run of --init has 8" in refused(capsys, *words, "--width", 32, code=2)
    assert "--schedule is flow" in refused(capsys, *words, "--schedule", "flow", code=2)
    assert "leave --grey out" in refused(capsys, *words, "--grey")
    assert "draws images of 3 channel(s), these have 1; take another" in refused(
        capsys, "train", "digits", "--out", tmp_path / "new", "--init", trained
    )


def test_what_is_no_run_is_refused(trained, photos, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for command in ("sample", "evaluate"):
        assert "nowhere does not exist; train a run first" in refused(capsys, command, tmp_path / "nowhere")
        assert "is a file; give the folder" in refused(capsys, command, tmp_path / "file")
        assert "holds no settings.json, so it is no run" in refused(capsys, command, photos)


def test_a_damaged_run_is_refused(copy, capsys):
    settings, weights = copy / "settings.json", copy / "checkpoint.safetensors"
    content, text = weights.read_bytes(), settings.read_text()
    weights.write_bytes(content[:-5])
    assert "is truncated" in refused(capsys, "sample", copy)
    assert "is truncated" in refused(capsys, "train", "--out", copy, "--resume")
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is damaged or was changed" in refused(capsys, "sample", copy)
    settings.write_text(text.replace('"width": 8', '"width": 16'))
    weights.write_bytes(content)
    assert "is of another network" in refused(capsys, "sample", copy)
    weights.unlink()
    assert "holds no checkpoint.safetensors yet; go on with" in refused(capsys, "sample", copy)
    for broken, expected in [
        (text[:50], "is damaged"), ("[]", "is damaged"), ('{"format": 1}', "it lacks class_counts"),
        (text.replace('"format": 1', '"format": 2'), "has format 2, and this version of companion reads 1"),
        (text.replace('"cosine"', '"square"'), "names a network or a schedule"),
    ]:  # fmt: skip
        settings.write_text(broken)
        assert expected in refused(capsys, "sample", copy)


def test_sample_refuses(trained, unconditional, tmp_path, capsys):
    assert "has the classes 'cats', 'dogs'" in refused(capsys, "sample", trained, "--class", "cows")
    assert "has no classes; train on a folder" in refused(capsys, "sample", unconditional, "--class", "cats")
    assert "guidance moves away from" in refused(capsys, "sample", unconditional, "--scale", 2)
    assert "guidance moves away from" in refused(capsys, "evaluate", unconditional, "--scale", 2)
    assert "nan is not finite" in refused(capsys, "sample", trained, "--scale", "nan", code=2)
    assert "'big' is not a number" in refused(capsys, "sample", trained, "--scale", "big", code=2)
    assert "invalid choice: 'euler'" in refused(capsys, "sample", trained, "--sampler", "euler", code=2)
    assert "at least 1" in refused(capsys, "sample", trained, "--num", 0, code=2)
    assert "which holds files" in refused(capsys, "sample", trained, "--out", trained)
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in refused(capsys, "sample", trained, "--out", tmp_path / "file")


def test_evaluate_refuses(trained, unconditional, tmp_path, capsys):
    said = refused(capsys, "evaluate", trained, "--out", tmp_path / "no" / "metrics.json")
    assert "cannot be written (no such file or directory)" in said
    assert "digits has 1 channel(s), but" in refused(
        capsys, "evaluate", trained, "digits", "--out", tmp_path / "a.json"
    )
    few = fill(tmp_path / "few", (), 3)
    said = refused(capsys, "evaluate", unconditional, few, "--out", tmp_path / "a.json")
    assert "there are 3 real images, and two halves of 2" in said and not (tmp_path / "a.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(trained, photos, tmp_path, capsys):
    assert "--device is cuda, but PyTorch finds none" in refused(capsys, "sample", trained, "--device", "cuda")
    said = refused(capsys, "train", photos, "--out", tmp_path / "run", "--device", "cuda")
    assert "there is: " in said and "cpu. Leave --device out" in said and not (tmp_path / "run").exists()


def test_what_is_not_foreseen_is_not_hidden(trained, photos, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ValueError("a mistake of the package")

    monkeypatch.setattr(_images, "sheet", broken)
    with pytest.raises(ValueError, match="a mistake of the package"):
        main(["sample", str(trained), "--num", "1", "--steps", "1", "--out", str(trained / "broken")])
    shutil.rmtree(trained / "broken")
    with pytest.raises(ValueError, match="a mistake of the package"):
        main([str(word) for word in ("train", photos, "--out", tmp_path / "run", *TINY)])


def test_only_what_is_named_is_foreseen():
    with pytest.raises(Problem, match="this"), foreseen(ValueError):
        raise ValueError("this")
    with pytest.raises(TypeError), foreseen(ValueError):
        raise TypeError


def test_no_memory_on_the_accelerator_is_said(trained, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(_run.SAMPLERS, "adams", full)
    monkeypatch.setattr(_run.samplers, "grid", lambda *_: torch.tensor([1.0, 0.0]))
    said = refused(capsys, "sample", trained, "--out", tmp_path / "a")
    assert "there is not enough memory; give a smaller --num, or leave a GPU alone with --device cpu" in said


def test_no_memory_for_the_network_itself_is_said(trained, photos, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    assert "--device cpu has no room for the network" in refused(capsys, "sample", trained, "--out", tmp_path / "a")
    said = refused(capsys, "train", photos, "--out", tmp_path / "run", "--size", "8")
    assert "there is not enough memory; give a smaller --batch" in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", range(9, 257))
def test_the_sizes_that_a_refusal_names_are_taken(size):
    options, chosen = Namespace(), {"width": 32}
    try:
        _train._arguments(options, chosen, size, None)
    except Problem as problem:
        less, more = map(int, re.search(r"use (\d+) or (\d+)\.", str(problem)).groups())
        assert less < size < more
        for near in (less, more):
            _train._arguments(options, chosen, near, None)


def test_a_set_of_another_size_than_the_run_is_refused(trained, capsys):
    assert "draws images of 8, but emoji come in 32; name a folder" in refused(capsys, "evaluate", trained, "emoji")


# --- the help ---

COMMANDS = ("train", "sample", "evaluate")


def help_of(capsys, *words):
    capsys.readouterr()
    assert call(*words) == 0
    return capsys.readouterr().out


def examples(text):
    return [
        shlex.split(line.strip())[3:] for line in text.splitlines() if line.strip().startswith("python -m companion ")
    ]


@pytest.mark.parametrize("words", [(), ("--help",), *((command, "--help") for command in COMMANDS)])
def test_help_fits_80_columns_and_its_examples_parse(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "200")
    text = help_of(capsys, *words)
    assert max(map(len, text.splitlines())) <= 80
    assert len(examples(text)) == 3
    for line in examples(text):
        assert _options.parse(line)[0] == line[0]
    assert "See:" not in text and ("when the" in text or len(words) < 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_with_its_default(command):
    parser = _options.parsers()[1][command]
    for action in parser._actions:
        assert action.help, action.dest
        if action.option_strings and action.nargs != 0 and action.dest not in ("out", "init"):
            assert re.search(r"\[.+\]$", action.help), action.option_strings
    for name, value in _options.DEFAULTS.items():
        shown = next((a.help for a in _options.parsers()[1]["train"]._actions if a.dest == name and a.nargs != 0), None)
        assert shown is None or f"[{value}" in shown


def test_the_examples_of_the_documents_parse():
    files = [ROOT / "README.md", *(ROOT / "book").glob("*.md")]
    for file in files:
        for line in examples(file.read_text(encoding="utf8")):
            assert "--help" in line or _options.parse(line)[0] == line[0], file.name


def test_no_abbreviations_and_two_lines_for_an_unknown_command(capsys):
    assert "unrecognized arguments: --st" in refused(capsys, "sample", "x", "--st", 3, code=2)
    assert "See: python -m companion --help" in refused(capsys, "paint", code=2)


# --- as a process ---


def test_as_a_process(photos, tmp_path):
    words = ["-m", "companion", "train", photos, "--out", "Läufe/eins", *TINY]
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, words)], capture_output=True, text=True, cwd=tmp_path, encoding="utf8"
    )
    assert done.returncode == 0, done.stderr
    assert "step 4 of 4: loss" in done.stdout and (tmp_path / "Läufe" / "eins" / "samples.png").exists()


def test_a_terminal_that_does_not_know_the_letters(tmp_path):
    folder = fill(tmp_path / "写真", ("猫", "犬"))
    words = ["-m", "companion", "train", folder, "--out", tmp_path / "run", *TINY]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, env=environment)
    assert done.returncode == 0 and b"\\u5199\\u771f" in done.stdout and b"Traceback" not in done.stderr
    assert _run.read_settings(tmp_path / "run")["classes"] == ["犬", "猫"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_folder_whose_name_is_no_unicode(tmp_path):
    folder = fill(tmp_path / "in", (os.fsdecode(b"caf\xe9"), "tea"))
    assert call("train", folder, "--out", tmp_path / "run", *TINY) == 0
    assert _run.read_settings(tmp_path / "run")["classes"] == ["caf\udce9", "tea"]
    assert call("train", "--out", tmp_path / "run", "--resume") == 0


@pytest.mark.parametrize("words", [("--help",), ("train",)])
def test_an_output_that_nobody_reads(photos, tmp_path, words):
    if words == ("train",):
        words = ("train", photos, "--out", tmp_path / "run", *TINY)
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "companion", *map(str, words)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_exit_code_is_that_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["companion", "sample", "nowhere"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("companion", run_name="__main__")
    said = capsys.readouterr()
    assert stop.value.code == 1 and said.out == ""
    assert said.err.startswith("companion sample: nowhere does not exist; train a run first")


def test_ctrl_c_elsewhere(trained, tmp_path, monkeypatch, capsys):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_run.Trained, "draw", pressed)
    assert "companion sample: stopped." in refused(capsys, "sample", trained, "--out", tmp_path / "a", code=130)
