"""The example of README.md runs as it stands, and learns."""

import re
from pathlib import Path

import torch

from companion import data, metrics

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf8")
EXAMPLE = re.search(r"```python\n(.*?)```", README, re.S).group(1)


def test_the_example_is_short():
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 15


def test_the_example_learns_the_swiss_roll(capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    names = {}
    exec(EXAMPLE, names)
    samples, generator = names["last"].x, torch.Generator().manual_seed(1)
    fresh = data.swiss_roll(len(samples), generator=generator)
    blob = torch.randn(samples.shape, generator=generator) * fresh.std(0)
    assert metrics.sliced_wasserstein(samples, fresh) < 0.5 * metrics.sliced_wasserstein(blob, fresh)
    line = data.swiss_roll_curve(torch.linspace(0, 1, 2000))
    assert metrics.nearest_distance(samples, line).median() < 0.5 * metrics.nearest_distance(blob, line).median()
    assert "step 1000: loss" in capsys.readouterr().out


def test_every_named_file_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).resolve().parents[1] / target).exists(), target
