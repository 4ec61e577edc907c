"""A run: the folder that `train` fills and the other commands read."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoints, denoisers, guidance, networks, predictions, samplers, schedules
from ._problems import Problem, bar, foreseen, memory, writing

FORMAT = 1
SETTINGS, CHECKPOINT, LOG, SHEET = "settings.json", "checkpoint.safetensors", "log.jsonl", "samples.png"
SCHEDULES = {
    "cosine": (schedules.Cosine(), predictions.V),
    "flow": (schedules.FlowMatching(), predictions.VELOCITY),
}
"""What --schedule may name: the schedule, and the prediction that goes with it."""
SAMPLERS: dict[str, Callable[..., Iterator[samplers.Step]]] = {
    f.__name__: f for f in (samplers.adams, samplers.ddim, samplers.ddpm, samplers.heun, samplers.dpmpp_2m)
}
LESS = "give a smaller --num, or leave a GPU alone with --device cpu"
"""What to do where the memory does not suffice to draw."""
_KEYS = {
    "format", "versions", "network", "schedule", "prediction", "size", "classes", "class_counts", "data", "options",
}  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("diffusion-companion", "torch", "numpy", "pillow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_of(name: str) -> torch.device:
    """Return the device that an option names; "auto" is the fastest that is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in there if there[kind])
    if not there[name]:
        kinds = ", ".join(kind for kind in there if there[kind])
        raise Problem(f"--device is {name}, but PyTorch finds none here; there is: {kinds}. Leave --device out.")
    return torch.device(name)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a run's folder, or say what is there instead."""
    file = path / SETTINGS
    with foreseen(OSError):
        if not path.exists():
            raise Problem(f"{path} does not exist; train a run first: python -m companion train FOLDER --out {path}")
        if not path.is_dir():
            raise Problem(f"{path} is a file; give the folder that train filled.")
        if not file.is_file():
            raise Problem(f"{path} holds no {SETTINGS}, so it is no run; give the folder that was the --out of train.")
        text = file.read_bytes()
    try:
        settings: dict[str, Any] = json.loads(text)
        known = settings["format"]
    except (ValueError, TypeError, KeyError):
        raise Problem(f"{file} is damaged: it is not what train wrote; take a copy of it, or train again.") from None
    if known != FORMAT:
        raise Problem(
            f"{file} has format {known!r}, and this version of companion reads {FORMAT}; use the version that wrote it."
        )
    if not settings.keys() >= _KEYS:
        missing = ", ".join(sorted(_KEYS - settings.keys()))
        raise Problem(f"{file} is damaged: it lacks {missing}; take a copy of it, or train again.")
    return settings


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of JSON, made to be read by people too."""
    with writing():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf8", errors="backslashreplace")  # of a name that is no Unicode


def network(settings: dict[str, Any], path: Path) -> networks.UNet:
    """Return a new network of the kind that settings name, its weights drawn with the run's seed."""
    with torch.random.fork_rng(devices=[]), foreseen(ValueError, TypeError):
        torch.manual_seed(settings["options"]["seed"])
        if settings["network"]["name"] != "UNet" or settings["schedule"] not in SCHEDULES:
            raise ValueError(f"{path / SETTINGS} names a network or a schedule that train does not make: train again.")
        return networks.UNet(**settings["network"]["arguments"])


def steps_done(path: Path) -> int:
    """Return how far a run's checkpoint is, 0 where there is none."""
    with foreseen(ValueError, OSError):
        if not (path / CHECKPOINT).exists():
            return 0
        return int(checkpoints.read(path / CHECKPOINT)[1].get("step", 0))


@dataclass(frozen=True, eq=False)
class Trained:
    """A run with its averaged network, ready to draw."""

    settings: dict[str, Any]
    net: networks.UNet
    device: torch.device
    step: int

    @property
    def classes(self) -> list[str]:
        """The names of the classes, none for a run without."""
        names: list[str] = self.settings["classes"]
        return names

    def draw(
        self, num: int, labels: Tensor | None, *, steps: int, sampler: str, scale: float, seed: int, batch: int = 64
    ) -> Tensor:
        """Return images (num, C, size, size) clipped to [-1, 1], on the CPU."""
        schedule, prediction = SCHEDULES[self.settings["schedule"]]
        walk = SAMPLERS[sampler]
        model = denoisers.from_network(self.net, schedule, prediction)
        ts, generator = samplers.grid(walk, schedule, steps), torch.Generator().manual_seed(seed)
        shape = (num, self.net.channels, self.settings["size"], self.settings["size"])
        x = samplers.start(schedule, shape, ts, generator=generator)
        fresh = {"generator": generator} if walk is samplers.ddpm else {}
        parts = []
        for chosen in bar(torch.arange(num).split(batch), "drawing"):
            told = None if labels is None else labels[chosen].to(self.device)
            denoiser: denoisers.Denoiser = guidance.condition(model, told)
            if told is not None and scale != 1:
                denoiser = guidance.extrapolate(denoiser, guidance.condition(model, None), scale)
            path = walk(denoiser, schedule, x[chosen].to(self.device), ts, **fresh)
            parts.append(samplers.last(path).x.cpu().clamp(-1, 1))
        return torch.cat(parts)


def load(path: Path, device: torch.device) -> Trained:
    """Return a run, from the folder that `train` filled."""
    settings = read_settings(path)
    net = network(settings, path)
    file = path / CHECKPOINT
    if not file.is_file():
        raise Problem(f"{path} holds no {CHECKPOINT} yet; go on with: python -m companion train --out {path} --resume")
    with foreseen(ValueError, OSError):
        step = int(checkpoints.load(file, net).get("step", 0))
    with memory(f"--device {device.type} has no room for the network: wait, or give --device cpu"):
        net = net.to(device)
    return Trained(settings, net.eval().requires_grad_(False), device, step)


def in_turn(num: int, classes: list[str]) -> Tensor | None:
    """Return the classes one after the other, over and over, or None where there are none."""
    return torch.arange(num) % len(classes) if classes else None


def refuse_guidance(path: Path, classes: list[str], scale: float) -> None:
    """Refuse guidance where there are no classes to guide to."""
    if scale != 1 and not classes:
        raise Problem(
            f"--scale is {scale:g} but {path} has no classes: guidance moves away from what is drawn without a class. "
            f"Train on a folder with one subfolder for each class, or leave --scale out."
        )
