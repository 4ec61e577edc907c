"""What the training scripts of this folder share: their options, the card they write, and the error of restored images.

A script stays what it is about: its data, its settings, its training and its judge.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import metrics, weights


def parser(about: str | None, num_steps: int | None, *others: str) -> argparse.ArgumentParser:
    """Return the parser of a script: --num-steps, --seed and --folder, and those of the others that are named.

    Args:
        about: what the script is for.
        num_steps: the default; None is said to be as shipped.
        others: of "--device", "--source" and "--checkpoint".

    >>> parser("Train.", 10, "--device").parse_args(["--seed", "3"]).device
    'cpu'
    """
    made = argparse.ArgumentParser(description=about)
    default = "as shipped" if num_steps is None else num_steps
    made.add_argument("--num-steps", type=int, default=num_steps, help=f"batches to train on (default: {default})")
    made.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the noise (default: 0)")
    made.add_argument("--folder", type=Path, default=weights.FOLDER, help="where to write (default: the package)")
    options: dict[str, dict[str, Any]] = {
        "--device": {"default": "cpu", "help": "where to train (default: cpu)"},
        "--source": {"default": "full", "help": 'of data.fashion: "full", "subset" or a folder'},
        "--checkpoint": {"type": Path, "help": "a file to save the run in and to go on from"},
    }
    for name in others:
        made.add_argument(name, **options[name])
    return made


def ship(
    net: nn.Module,
    name: str,
    options: argparse.Namespace,
    began: float,
    *,
    arguments: dict[str, Any],
    data: str,
    settings: dict[str, Any],
    metrics: dict[str, float],
    script: str | None = None,
    half: bool = True,
) -> None:
    """Write a network's weights and its card into options.folder, and print the metrics.

    Args:
        net: whose weights to write.
        name: of both files.
        options: what `parser` read.
        began: time.process_time() before the training.
        arguments, data, settings, metrics: for the card; options.num_steps, where given, goes before the settings'.
        script: the module of this folder, and what it is called with; None is `name`.
        half: whether to store half precision.

    >>> import tempfile
    >>> from companion import networks
    >>> arguments = {"channels": 1, "size": 8, "num_classes": 10}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     options = parser("Train.", 10).parse_args(["--folder", folder])
    ...     ship(networks.Classifier(**arguments), "a", options, 0.0, arguments=arguments, data="", settings={},
    ...          metrics={"of it": 1.0})
    {'of it': 1.0}
    """
    about = {
        "network": type(net).__name__,
        "arguments": arguments,
        "data": data,
        "script": f"python -m companion.weights.{script or name}",
        "settings": {**settings, "num_steps": options.num_steps or settings["num_steps"]},
        "seed": options.seed,
        "seconds": round(time.process_time() - began, 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "metrics": metrics,
    }
    weights.save(name, net.cpu().half() if half else net.cpu(), about, options.folder)
    print(metrics)


@torch.no_grad()
def restored(net: nn.Module, x: Tensor) -> dict[str, float]:
    """Return the PSNR in dB of what an autoencoder gives back: of all pixels pooled, the mean and quantiles.

    >>> restored(nn.Identity().requires_grad_(False), torch.zeros(2, 1, 4, 4))["held-out PSNR, mean"]
    inf
    """
    device = next((p.device for p in net.parameters()), x.device)
    given = net(x.to(device)).cpu().clamp(-1, 1)
    each = metrics.psnr(given, x)
    figures = {"pooled": metrics.psnr(given[None], x[None])[0], "mean": each.mean()}
    figures |= {f"{q} quantile": each.quantile(q) for q in (0.1, 0.5, 0.9)}
    return {f"held-out PSNR, {name}": round(float(value), 2) for name, value in figures.items()}


def described(source: str | Path) -> str:
    """Say which data of clothes a network was trained on, without the path.

    >>> described("subset")
    'the subset of 5,000'
    """
    return "the subset of 5,000" if source == "subset" else "all 60,000"
