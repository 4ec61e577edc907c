"""The scripts that made the networks of the clothes, at a tiny size, and what the networks that ship are worth."""

import pytest
import torch

from companion import data, metrics, weights
from companion.weights import fashion_autoencoder, fashion_classifier, fashion_denoisers

NAMES = ("fashion_classifier", "fashion_autoencoder", "fashion_latents_denoiser", "fashion_pixels_denoiser")


def run(script, *arguments, folder, seed=3):
    script.main([*arguments, "--source", "subset", "--seed", str(seed), "--folder", str(folder)])


@pytest.fixture
def small(monkeypatch):
    """Three hundred images to a split, batches of four, and no samples drawn to evaluate."""
    whole = data.fashion

    def fashion(*arguments, **options):
        x, y = whole(*arguments, **options)
        return x[:300], y[:300]

    monkeypatch.setattr(data, "fashion", fashion)
    monkeypatch.setattr(fashion_denoisers, "evaluate", lambda kind, net: {"of": kind})
    for settings in (fashion_classifier.SETTINGS, fashion_autoencoder.SETTINGS, *fashion_denoisers.SETTINGS.values()):
        monkeypatch.setitem(settings, "batch", 4)


# --- the scripts ---


@pytest.mark.parametrize(
    ("script", "name", "arguments"),
    [
        (fashion_classifier, "fashion_classifier", ()),
        (fashion_autoencoder, "fashion_autoencoder", ()),
        (fashion_denoisers, "fashion_latents_denoiser", ("latents",)),
    ],
    ids=["classifier", "autoencoder", "denoiser"],
)
def test_the_script_writes_what_load_reads(script, name, arguments, small, tmp_path, monkeypatch, capsys):
    state = torch.get_rng_state()
    run(script, *arguments, "--num-steps", "2", folder=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    first = (tmp_path / f"{name}.safetensors").read_bytes()
    run(script, *arguments, "--num-steps", "2", folder=tmp_path)
    assert (tmp_path / f"{name}.safetensors").read_bytes() == first  # the same seed, the same file
    run(script, *arguments, "--num-steps", "2", folder=tmp_path, seed=4)
    assert (tmp_path / f"{name}.safetensors").read_bytes() != first
    shipped = weights.card(name)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    card, net = weights.card(name), weights.load(name)
    assert card["settings"] == {**shipped["settings"], "num_steps": 2, "batch": 4} and card["seed"] == 4
    assert "subset of 5,000" in card["data"] and "all 60,000" in shipped["data"]
    for key in ("network", "arguments", "script"):
        assert card[key] == shipped[key]
    assert all(p.dtype == torch.float32 for p in net.parameters()) and str(card["metrics"]) in capsys.readouterr().out


def test_pixels_train_too(small, tmp_path, monkeypatch):
    run(fashion_denoisers, "pixels", "--num-steps", "1", folder=tmp_path)
    shipped = weights.card("fashion_pixels_denoiser")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    assert weights.load("fashion_pixels_denoiser").channels == 1
    assert weights.card("fashion_pixels_denoiser")["arguments"] == shipped["arguments"]


@pytest.mark.parametrize("script", [fashion_autoencoder, fashion_denoisers], ids=["autoencoder", "denoiser"])
def test_a_run_goes_on_from_its_checkpoint(script, small, tmp_path):
    """What was trained for 2 steps, and asked for again, is read and not trained once more."""
    kind = ("latents",) if script is fashion_denoisers else ()
    options = {"num_steps": 2, "source": "subset", "checkpoint": tmp_path / "run.safetensors"}
    net = script.train(*kind, **options)
    assert list(tmp_path.iterdir())
    torch.manual_seed(9)
    again = script.train(*kind, **options)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="num_steps"):
        script.train(*kind, **{**options, "num_steps": 3})


def test_unknown_kind(capsys):
    with pytest.raises(SystemExit):
        fashion_denoisers.main(["voxels"])
    assert "invalid choice" in capsys.readouterr().err


# --- what ships ---


def test_small():
    sizes = [(weights.FOLDER / f"{name}.{kind}").stat().st_size for name in NAMES for kind in ("safetensors", "json")]
    assert sum(sizes) <= 3e6


def test_made_with_the_settings_of_the_scripts():
    for name, settings in (
        ("fashion_classifier", fashion_classifier.SETTINGS),
        ("fashion_autoencoder", fashion_autoencoder.SETTINGS),
        ("fashion_latents_denoiser", fashion_denoisers.SETTINGS["latents"]),
        ("fashion_pixels_denoiser", fashion_denoisers.SETTINGS["pixels"]),
    ):
        card = weights.card(name)
        assert {**card["settings"], **settings} == card["settings"], name
    for name, script in (("fashion_classifier", fashion_classifier), ("fashion_autoencoder", fashion_autoencoder)):
        assert weights.card(name)["settings"]["num_steps"] == script.train.__kwdefaults__["num_steps"]


def test_classifier_is_as_good_as_its_card_says():
    found, card = fashion_classifier.evaluate(weights.load("fashion_classifier")), weights.card("fashion_classifier")
    assert found == pytest.approx(card["metrics"], abs=0.003) and found["accuracy, held-out"] > 0.9


def test_autoencoder_is_as_good_as_its_card_says():
    found = fashion_autoencoder.evaluate(weights.load("fashion_autoencoder"))
    assert found == pytest.approx(weights.card("fashion_autoencoder")["metrics"], abs=0.1)
    assert found["held-out PSNR, pooled"] > 27


def test_what_the_card_says_of_the_autoencoder(small):
    net, x = weights.load("fashion_autoencoder"), data.fashion("held-out", size=32)[0]
    found, back = fashion_autoencoder.evaluate(net), net(x).clamp(-1, 1)
    each = metrics.psnr(back, x)
    wanted = {"pooled": metrics.psnr(back[None], x[None]), "mean": each.mean()}
    wanted |= {f"{q} quantile": each.quantile(q) for q in (0.1, 0.5, 0.9)}
    assert found == pytest.approx({f"held-out PSNR, {name}": v.item() for name, v in wanted.items()}, abs=0.006)


def test_the_space_is_the_shipped_autoencoders():
    space = fashion_denoisers.space()
    z = space.encode(data.fashion("train", size=32)[0][:1000])
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=1e-3)


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_samples_are_what_was_asked_for(kind):
    net, judge = weights.load(f"fashion_{kind}_denoiser"), weights.load("fashion_classifier")
    labels = torch.arange(60) % 10
    x = fashion_denoisers.sample(net, labels, num_calls=8, seed=1)
    assert x.shape == ((60, 1, 32, 32) if kind == "pixels" else (60, 4, 8, 8))
    x = fashion_denoisers.space().decode(x) if kind == "latents" else x
    assert (judge(x.clamp(-1, 1)).argmax(1) == labels).double().mean() > 0.7
    again = fashion_denoisers.sample(net, labels[:8], num_calls=2, seed=1, batch=3)
    whole = fashion_denoisers.sample(net, labels[:8], num_calls=2, seed=1)
    assert torch.allclose(again, whole, atol=1e-3)
    other = fashion_denoisers.sample(net, labels[:8], num_calls=2, seed=2)
    assert not torch.allclose(other, whole, atol=0.1)


def test_distance_and_its_floor(small, monkeypatch):
    x, held_out = data.fashion("train", size=32)[0], data.fashion("held-out", size=32)[0]
    assert fashion_denoisers.distance(x) == pytest.approx(0, abs=1e-3)
    floor = fashion_denoisers.distance(held_out)
    assert fashion_denoisers.distance(held_out.flip(3)) > 2 * floor  # shoes that look the other way
    beyond, judge = 3 * held_out, weights.load("fashion_classifier")
    wanted = metrics.frechet_distance(beyond.clamp(-1, 1), x, features=judge.features)
    assert fashion_denoisers.distance(beyond) == pytest.approx(wanted)


def test_the_denoisers_are_evaluated_against_the_floor(monkeypatch):
    """Images held out in the place of samples score the floor itself; of latents, what the decoder makes of them."""
    held_out, space = data.fashion("held-out", size=32)[0], fashion_denoisers.space()
    monkeypatch.setattr(fashion_denoisers, "distance", lambda x: x.double().mean().item() + len(x))
    monkeypatch.setattr(fashion_denoisers, "sample", lambda net, labels, num_calls: held_out[: len(labels)])
    found = fashion_denoisers.evaluate("pixels", weights.load("fashion_pixels_denoiser"), count=50)
    assert found["Frechet distance, 20 calls"] == found["Frechet distance, floor"]
    assert found["Frechet distance, floor"] == pytest.approx(held_out[:50].mean().item() + 50, abs=0.001)
    z = space.encode(held_out[:50])
    monkeypatch.setattr(fashion_denoisers, "sample", lambda net, labels, num_calls: z)
    found = fashion_denoisers.evaluate("latents", weights.load("fashion_latents_denoiser"), count=50)
    assert found["Frechet distance, 20 calls"] == pytest.approx(space.decode(z).mean().item() + 50, abs=0.001)
