"""The device that stands for a second one refuses what CUDA refuses, and computes what the CPU computes."""

import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import second_device
import torch
from cases import seeded
from torch import nn

from companion import losses, networks, noise, predictions, schedules

pytestmark = pytest.mark.skipif(not second_device.SUPPORTED, reason="this PyTorch is too old")
HERE = torch.arange(12.0).reshape(3, 4)
AWAY = "away"


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + HERE,
        lambda x: HERE @ x.T,
        lambda x: torch.where(x > 0, x, HERE),
        lambda x: torch.cat([x, HERE]),
        lambda x: x.lerp_(HERE, 0.5),
        lambda x: HERE.add_(x),
        lambda x: HERE[torch.tensor([0], device=AWAY)],
        lambda x: x.index_put_((torch.tensor([0]),), HERE[0]),
        lambda x: nn.functional.embedding(torch.tensor(0), x),
        lambda x: nn.Linear(4, 2)(x),
        lambda x: torch.randn(3, generator=seeded(), device=AWAY),
        lambda x: x.normal_(generator=seeded()),
    ],
)
def test_refused(mixed):
    with pytest.raises(RuntimeError, match="expected"):
        mixed(HERE.to(AWAY))


@pytest.mark.parametrize("to_numpy", [lambda x: x.numpy(), np.asarray, lambda x: np.add(x, 1)])
def test_numpy_is_refused(to_numpy):
    with pytest.raises(TypeError, match="to numpy"):
        to_numpy(HERE.to(AWAY))


def test_allowed():
    x = HERE.to(AWAY)
    assert x.device.type == AWAY and x.cpu().device.type == "cpu" and torch.equal(x.cpu(), HERE)
    assert torch.equal((x * torch.tensor(2.0)).cpu(), 2 * HERE)  # a CPU tensor without dimensions
    assert torch.equal(x[torch.tensor([2, 0])].cpu(), HERE[[2, 0]])  # indices of the CPU
    x[0] = HERE[1].to(AWAY)
    assert x[0].tolist() == HERE[1].tolist() and f"{x.sum():.0f}" == "82"
    for made in (torch.zeros(2, device=AWAY), torch.arange(5, device=AWAY), torch.randn(3, device=AWAY), x.new_ones(2)):
        assert made.device.type == AWAY
    assert torch.arange(5, device=AWAY).shape == (5,)


def test_learns_as_on_the_cpu():
    ends = []
    for device in ("cpu", AWAY):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 2)
        )
        net.to(device)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        x = torch.randn(8, 1, 4, 4, generator=seeded()).to(device)
        for _ in range(3):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().cpu().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)])
def test_times_of_the_cpu_follow_the_batch(t, device):
    """A sampler's times are on the CPU; the batch and the network may be anywhere."""
    schedule, x0 = schedules.Cosine(), torch.rand(3, 2)
    torch.manual_seed(0)
    for net in (networks.MLP(2, width=8, depth=1), networks.DenseDenoiser((2,), width=8)):
        found = [
            losses.denoising_loss(net.to(where), x0.to(where), schedule, predictions.V, t=t, generator=seeded()).cpu()
            for where in ("cpu", device)
        ]
        torch.testing.assert_close(*found)
        found = [net.to(where)(x0.to(where), t).cpu() for where in ("cpu", device)]
        torch.testing.assert_close(*found)
    found = [noise.add_noise(x0.to(where), t, schedule, generator=seeded())[0].cpu() for where in ("cpu", device)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("line", "fails"), [("x + torch.ones(3, device=device)", False), ("x + torch.ones(3)", True)])
def test_the_script_fails_where_a_chapter_does(line, fails, tmp_path):
    device = 'import torch\ndevice = "cuda" if torch.cuda.is_available() else "cpu"\nx = torch.zeros(3, device=device)'
    cells = [nbformat.v4.new_code_cell(source) for source in (device, line)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "chapter.ipynb")
    script = Path(__file__).parents[1] / "scripts/second_device.py"
    command = [sys.executable, script, "--here", tmp_path / "chapter.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode != 0) == fails
    assert ("expected all tensors on one device" if fails else " operations, ") in done.stderr
