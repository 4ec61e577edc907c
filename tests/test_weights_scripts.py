"""What the training scripts share."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from cases import seeded
from torch import nn

from companion import metrics, networks, weights
from companion.weights import _scripts

ARGUMENTS = {"channels": 1, "size": 8, "num_classes": 3}


def test_options_have_the_defaults_that_help_states(capsys):
    options = _scripts.parser("About.", 7, "--device", "--source", "--checkpoint").parse_args([])
    assert options == argparse.Namespace(
        num_steps=7, seed=0, folder=weights.FOLDER, device="cpu", source="full", checkpoint=None
    )
    assert _scripts.parser("About.", None).parse_args([]).num_steps is None
    with pytest.raises(SystemExit):
        _scripts.parser("What it is for.", None).parse_args(["--help"])
    assert {"What it is for.", "as shipped"} <= set(capsys.readouterr().out.replace("(default: ", "\n").replace(
        ")", "\n").splitlines())  # fmt: skip


def test_only_the_options_named():
    with pytest.raises(SystemExit):
        _scripts.parser("About.", 7, "--device").parse_args(["--checkpoint", "a"])
    given = ["--checkpoint", "a", "--folder", "b", "--num-steps", "3", "--seed", "4"]
    options = _scripts.parser("About.", 7, "--checkpoint").parse_args(given)
    assert (options.checkpoint, options.folder, options.num_steps, options.seed) == (Path("a"), Path("b"), 3, 4)


@pytest.mark.parametrize("half", [True, False])
def test_ship_writes_weights_and_card(half, tmp_path, monkeypatch, capsys):
    net = networks.Classifier(**ARGUMENTS)
    kept = [p.clone() for p in net.parameters()]
    options = _scripts.parser("About.", None).parse_args(["--folder", str(tmp_path), "--seed", "5"])
    _scripts.ship(
        net, "mine", options, 0.0, arguments=ARGUMENTS, data="of mine", settings={"num_steps": 9, "lr": 1.0},
        metrics={"m": 2.0}, script="mine small", half=half,
    )  # fmt: skip
    card = json.loads((tmp_path / "mine.json").read_text())
    assert card["network"] == "Classifier" and card["arguments"] == ARGUMENTS and card["data"] == "of mine"
    assert card["script"] == "python -m companion.weights.mine small" and card["seed"] == 5
    assert card["settings"] == {"num_steps": 9, "lr": 1.0} and card["seconds"] > 0
    assert "{'m': 2.0}" in capsys.readouterr().out
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    loaded = list(weights.load("mine").parameters())
    assert all(p.dtype == torch.float32 for p in loaded)
    exact = all(torch.equal(a, b) for a, b in zip(loaded, kept, strict=True))
    assert exact is not half
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(loaded, kept, strict=True))


def test_the_steps_asked_for_go_on_the_card(tmp_path):
    options = _scripts.parser("About.", None).parse_args(["--folder", str(tmp_path), "--num-steps", "4"])
    _scripts.ship(
        networks.Classifier(**ARGUMENTS), "mine", options, 0.0, arguments=ARGUMENTS, data="", settings={"num_steps": 9},
        metrics={},
    )  # fmt: skip
    card = json.loads((tmp_path / "mine.json").read_text())
    assert card["settings"]["num_steps"] == 4 and card["script"].endswith("weights.mine")


def test_restored_is_the_psnr_of_metrics():
    x = torch.rand(30, 1, 4, 4, generator=seeded()) * 1.6 - 0.8
    noise = 0.1 * torch.randn(x.shape, generator=seeded(1)) * torch.rand(30, 1, 1, 1, generator=seeded(2))

    class Noisy(nn.Module):
        def forward(self, given):
            return given + noise

    found, each = _scripts.restored(Noisy(), x), metrics.psnr((x + noise).clamp(-1, 1), x)
    assert found["held-out PSNR, mean"] == pytest.approx(each.mean().item(), abs=0.006)
    assert found["held-out PSNR, 0.1 quantile"] == pytest.approx(each.quantile(0.1).item(), abs=0.006)
    assert found["held-out PSNR, 0.9 quantile"] == pytest.approx(each.quantile(0.9).item(), abs=0.006)
    pooled = -10 * torch.log10(((x + noise).clamp(-1, 1) - x).square().mean() / 4).item()
    assert found["held-out PSNR, pooled"] == pytest.approx(pooled, abs=0.006)
    assert found["held-out PSNR, pooled"] < found["held-out PSNR, mean"]


def test_data_is_described_without_its_path():
    assert _scripts.described("full") == _scripts.described("/somewhere/else") == "all 60,000"
