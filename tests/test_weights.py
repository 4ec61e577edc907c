"""The networks that ship with the package, and the script that made them."""

import hashlib
import json
import shutil
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

import companion
from companion import data, networks, weights
from companion.weights import digit_classifier, digit_denoiser

PACKAGE = Path(companion.__file__).parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the weights that a test may damage."""
    for path in weights.FOLDER.iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copy(path, tmp_path)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    return tmp_path


def test_names():
    assert "digit_classifier" in weights.names() and weights.names() == sorted(weights.names())


@pytest.mark.parametrize("name", weights.names())
def test_card_and_file_agree(name):
    card = weights.card(name)
    content = (weights.FOLDER / f"{name}.safetensors").read_bytes()
    assert card["sha256"] == hashlib.sha256(content).hexdigest()
    for key in ("network", "arguments", "data", "script", "settings", "seed", "seconds", "versions", "metrics"):
        assert card[key] not in (None, "", {}), key


@pytest.mark.parametrize("name", weights.names())
def test_load_gives_a_network_at_rest(name):
    net, again = weights.load(name), weights.load(name)
    assert type(net).__name__ == weights.card(name)["network"]
    assert not any(module.training for module in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    assert all(p.device.type == "cpu" and p.isfinite().all() for p in net.parameters())
    pairs = zip(net.parameters(), again.parameters(), strict=True)
    assert net is not again and all(torch.equal(a, b) for a, b in pairs)


def test_load_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    weights.load("digit_classifier")
    assert torch.equal(torch.get_rng_state(), state)


def test_digit_classifier_is_as_good_as_its_card_says():
    net = weights.load("digit_classifier")
    metrics = weights.card("digit_classifier")["metrics"]
    for split, least in (("train", 0.995), ("held-out", 0.99)):
        x, y = data.digits(split)
        accuracy = (net(x).argmax(1) == y).double().mean().item()
        assert accuracy >= least and accuracy == pytest.approx(metrics[f"accuracy, {split}"], abs=0.003)
        assert digit_classifier.accuracy(net, split) == pytest.approx(accuracy, abs=1e-6)


def test_package_is_small():
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 20e6


def test_digit_denoiser_is_as_good_as_its_card_says():
    """One draw of 500: digits that are what was asked for, and answers without a class too."""
    net, judge = weights.load("digit_denoiser"), weights.load("digit_classifier")
    labels = data.digits("held-out")[1]
    x = digit_denoiser.sample(net, labels, seed=11, num_steps=10)
    right = (judge(x).argmax(1) == labels).double().mean().item()
    assert right == pytest.approx(weights.card("digit_denoiser")["metrics"]["as asked"], abs=0.015)
    any_class = digit_denoiser.sample(net, torch.full((100,), net.null_cond), seed=11, num_steps=10)
    assert len(judge(any_class).argmax(1).unique()) == 10


# --- save and load ---


def test_saved_and_loaded(folder):
    before, net = weights.names(), networks.MLP(3, width=8, depth=1, num_classes=2)
    about = {"network": "MLP", "arguments": {"dim": 3, "width": 8, "depth": 1, "num_classes": 2}}
    weights.save("mine", net, about, folder)
    assert weights.names() == sorted([*before, "mine"]) and "sha256" not in about
    again = weights.load("mine")
    assert weights.card("mine") == {**about, "sha256": weights.card("mine")["sha256"]}
    x, t, y = torch.randn(4, 3), torch.rand(4), torch.tensor([0, 1, 2, 0])
    assert torch.equal(again(x, t, y), net(x, t, y))


def test_the_script_writes_what_load_reads(folder, capsys):
    state = torch.get_rng_state()
    digit_classifier.main(["--num-steps", "20", "--seed", "3", "--folder", str(folder)])
    assert torch.equal(torch.get_rng_state(), state)
    card = weights.card("digit_classifier")
    assert card["settings"]["num_steps"] == 20 and card["seed"] == 3
    assert str(card["metrics"]) in capsys.readouterr().out
    net = weights.load("digit_classifier")
    assert digit_classifier.accuracy(net, "held-out") == pytest.approx(card["metrics"]["accuracy, held-out"], abs=1e-4)
    assert 0.2 < card["metrics"]["accuracy, held-out"] < 0.99
    first = (folder / "digit_classifier.safetensors").read_bytes()
    digit_classifier.main(["--num-steps", "20", "--seed", "3", "--folder", str(folder)])
    assert (folder / "digit_classifier.safetensors").read_bytes() == first  # the same seed, the same file
    digit_classifier.main(["--num-steps", "20", "--seed", "4", "--folder", str(folder)])
    assert (folder / "digit_classifier.safetensors").read_bytes() != first


def test_the_script_of_the_denoiser_writes_what_load_reads(folder, capsys, monkeypatch):
    monkeypatch.setattr(digit_denoiser, "evaluate", lambda net: digit_denoiser_metrics(net, 40))
    digit_denoiser.main(["--num-steps", "3", "--seed", "3", "--folder", str(folder)])
    card = weights.card("digit_denoiser")
    assert card["settings"]["num_steps"] == 3 and card["seed"] == 3
    assert str(card["metrics"]) in capsys.readouterr().out
    first = (folder / "digit_denoiser.safetensors").read_bytes()
    digit_denoiser.main(["--num-steps", "3", "--seed", "3", "--folder", str(folder)])
    assert (folder / "digit_denoiser.safetensors").read_bytes() == first
    assert weights.load("digit_denoiser").null_cond == 10


def digit_denoiser_metrics(net, count):
    """What `evaluate` measures, on fewer samples."""
    x = digit_denoiser.sample(net, torch.arange(count) % 10, seed=0, num_steps=3)
    return {"mean": round(float(x.mean()), 3)}


def test_the_denoiser_is_evaluated_against_its_floor(monkeypatch):
    """Training images in the place of samples score the floor itself: 1."""
    images, labels = data.digits("train")
    monkeypatch.setattr(digit_denoiser, "sample", lambda net, asked, seed: images)
    found = digit_denoiser.evaluate(weights.load("digit_denoiser"), draws=1)
    assert found["Frechet distance over its floor"] == pytest.approx(1.0) and found["as asked"] > 0.99
    assert torch.equal(labels, data.digits("train")[1])


def test_the_script_writes_into_the_package_by_default():
    defaults = digit_classifier.train.__kwdefaults__
    settings = weights.card("digit_classifier")["settings"]
    assert (defaults["num_steps"], defaults["size"], defaults["lr"], defaults["seed"]) == (
        settings["num_steps"],
        settings["batch"],
        settings["lr"],
        weights.card("digit_classifier")["seed"],
    )


# --- bad input ---


@pytest.mark.parametrize("call", [weights.card, weights.load])
@pytest.mark.parametrize("name", ["mnist", "", "../weights/digit_classifier", "digit_classifier.json"])
def test_unknown_name(call, name):
    with pytest.raises(ValueError, match=f"no weights named '{name}'; there are: .*digit_classifier"):
        call(name)


def damaged(content):
    return bytes([*content[:-9], content[-9] ^ 1, *content[-8:]])


@pytest.mark.parametrize(
    "damage",
    [damaged, lambda content: content[:-1], lambda content: content[:100], lambda content: b"", lambda c: c + b"\0"],
    ids=["one bit", "one byte short", "truncated", "empty", "one byte more"],
)
def test_damaged_file(folder, damage):
    path = folder / "digit_classifier.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError,
        match=r"digit_classifier\.safetensors is damaged: its SHA-256 is \w{12}\.\.\., the card says .*install",
    ):
        weights.load("digit_classifier")


def test_card_of_another_file(folder):
    path = folder / "digit_classifier.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"the card says 000000000000\.\.\."):
        weights.load("digit_classifier")


def test_card_of_another_architecture(folder):
    path = folder / "digit_classifier.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "arguments": {**card["arguments"], "num_classes": 11}}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        weights.load("digit_classifier")


def test_all_that_ships_is_packed_and_small():
    """A file that no pattern of pyproject.toml names would be missing where the package is installed."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["companion"]
    files = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    names = [str(p.relative_to(PACKAGE)) for p in files if p.suffix != ".py"]
    assert names and not [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]
    assert sum(p.stat().st_size for p in files) < 20_000_000
