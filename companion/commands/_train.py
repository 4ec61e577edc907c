"""python -m companion train: images in, a run out."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import data, networks, training
from . import _images, _run
from ._options import DEFAULTS
from ._problems import Problem, foreseen, memory, say, writing

DROP_COND = 0.1
CLASS_TABLE, TIME_BIAS = "conditioning.of_class.weight", "conditioning.of_time.2.bias"
LOG_EVERY, SAVE_EVERY = 10, 100
SMALLER = "give a smaller --batch, --width or --size"


def train(options: Namespace) -> int:
    """Train a run, or go on with one, and return the exit code."""
    out: Path = options.out
    device = _run.device_of(options.device)
    settings, images = _resumed(options) if options.resume else _begun(options)
    chosen = settings["options"]
    done = _run.steps_done(out)
    with memory(SMALLER):
        net = _run.network(settings, out)
    if chosen["init"] is not None and not done:
        net.load_state_dict(_initial(_run_folder(chosen["init"]), net, settings))
    with memory(SMALLER):
        net = net.to(device)
    if not options.resume:
        with writing():
            out.mkdir(parents=True, exist_ok=True)
        _run.write_json(out / _run.SETTINGS, settings)
    if done >= chosen["steps"]:
        say(f"{out} is finished: {done} of {chosen['steps']} steps. To train further: --init {out} and another --out.")
        return 0
    parameters = sum(p.numel() for p in net.parameters())
    say(f"training {parameters:,} weights on {device} for {chosen['steps']} steps" + f", from step {done}" * bool(done))
    go_on = f"Go on with: python -m companion train --out {shlex.quote(str(out))} --resume"
    try:
        stopped = _fit(net, settings, images, out, done, options.save_every or SAVE_EVERY)
    except KeyboardInterrupt:
        say(f"stopped at once; the last checkpoint is of step {_run.steps_done(out)}. {go_on}")
        return 130
    if stopped is not None:
        say(f"stopped and saved at step {stopped}. {go_on}")
        return 130
    say(f"done: {out / _run.SHEET}. Next: python -m companion sample {shlex.quote(str(out))}")
    return 0


def _begun(options: Namespace) -> tuple[dict[str, Any], _images.Images]:
    """Return the settings of a new run, and its images."""
    if options.images is None:
        raise Problem("no images are named: give a folder, or one of the words digits, fashion and emoji.", 2)
    source = _images.source_of(options.images)
    _refuse_out(options.out, source)
    if options.hold_out is not None and source in ("digits", "fashion"):
        raise Problem(f"--hold-out is given, but {source} have held-out images of their own; leave it out.", 2)
    parent = None if options.init is None else _run.read_settings(_run_folder(options.init))
    chosen = {name: _first(getattr(options, name), value) for name, value in DEFAULTS.items()}
    size = _images.SETS.get(source, (32,))[0]
    if parent and source not in _images.SETS:
        size, chosen["grey"] = parent["size"], parent["network"]["arguments"]["channels"] == 1
    size, chosen["grey"] = _first(options.size, size), _first(options.grey, chosen["grey"])
    arguments = _arguments(options, chosen, size, parent)
    images = _images.load(source, size=size, grey=chosen["grey"], strict=chosen["strict"], hold_out=chosen["hold_out"])
    if parent and images.x.shape[1] != arguments["channels"]:
        raise Problem(
            f"--init {options.init} draws images of {arguments['channels']} channel(s), these have "
            f"{images.x.shape[1]}; " + ("leave --grey out." if chosen["grey"] else "take another run to start from.")
        )
    arguments |= {"channels": images.x.shape[1], "num_classes": len(images.classes) or None}
    chosen["batch"] = _batch(options.batch, int((~images.held).sum()))
    _refuse_empty(images)
    kept_back = int(images.held.sum())
    chosen |= {"images": source, "size": size, "init": None if options.init is None else str(_run_folder(options.init))}
    return {
        "format": _run.FORMAT,
        "versions": _run.versions(),
        "network": {"name": "UNet", "arguments": arguments},
        "schedule": chosen["schedule"],
        "prediction": _run.SCHEDULES[chosen["schedule"]][1].name,
        "size": size,
        "classes": list(images.classes),
        "class_counts": images.counts(),
        "data": {"source": source, "images": len(images.x), "held_out": kept_back, "sha256": images.sha256},
        "options": chosen,
    }, images


def _refuse_out(out: Path, source: str) -> None:
    """Refuse a folder where something would be overwritten, or read as an image."""
    with writing():
        if out.exists() and not out.is_dir():
            raise Problem(f"--out is {out}, which is a file; give the name of a folder to make.")
        if (out / _run.SETTINGS).exists():
            raise Problem(f"{out} holds a run already; add --resume to go on with it, or give another --out.")
        for name in (_run.CHECKPOINT, _run.LOG, _run.SHEET):
            if (out / name).exists():
                raise Problem(f"--out is {out}, which holds {name}, which would be overwritten; give another --out.")
    if Path(os.path.realpath(out)).is_relative_to(source):
        raise Problem(f"--out is {out}, inside the folder of the images, where its pictures would be read as images.")


def _refuse_empty(images: _images.Images) -> None:
    """Refuse classes that there is nothing to learn from."""
    empty = [repr(name) for name, n in zip(images.classes, images.counts(), strict=True) if not n]
    if empty:
        shown = ", ".join(empty[:20]) + ", ..." * (len(empty) > 20)
        raise Problem(
            f"{len(empty)} of {len(images.classes)} classes have no image to train on: {shown}; add images that can be "
            f"read, lower --hold-out, or take the subfolder away."
        )


def _first(*values: Any) -> Any:
    """Return the first that is not None."""
    return next(value for value in values if value is not None)


def _batch(asked: int | None, usable: int) -> int:
    if usable < 2:
        raise Problem(f"there is {usable} image to train on, and at least 2 are needed: add images, or --hold-out 0.")
    if asked is not None and asked > usable:
        raise Problem(f"--batch is {asked} but there are {usable} images to train on; give at most {usable}.")
    if asked is None and usable < DEFAULTS["batch"]:
        say(f"  a batch is all of the {usable} images")
    return min(asked or DEFAULTS["batch"], usable)


def _arguments(options: Namespace, chosen: dict[str, Any], size: int, parent: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the network is built with, of the run to start from where there is one."""
    if parent is None:
        levels = _levels(size)
        if chosen["width"] % 4:
            raise Problem(f"--width is {chosen['width']}; it must be a multiple of 4, such as 16, 32 or 64.", 2)
        found = {"width": chosen["width"], "multipliers": list(range(1, levels + 1)), "attention": [levels - 1]}
    else:
        found = dict(parent["network"]["arguments"])
        for name, theirs in (("width", found["width"]), ("schedule", parent["schedule"])):
            mine = getattr(options, name)
            if mine not in (None, theirs):
                raise Problem(f"--{name} is {mine} but the run of --init has {theirs}, which is kept; leave it out.", 2)
            chosen[name] = theirs
    halvings = len(found["multipliers"]) - 1
    if size % 2**halvings:
        fits = [n for n in range(1, 2 * size + 8) if n % 2 ** (halvings if parent else _levels(n) - 1) == 0]
        less, more = max((n for n in fits if n < size), default=0), min(n for n in fits if n > size)
        raise Problem(
            f"--size is {size}; the network halves it {halvings} time(s), so it must be a multiple of "
            f"{2**halvings}: use {f'{less} or ' if less else ''}{more}.", 2,
        )  # fmt: skip
    return found


def _levels(size: int) -> int:
    """Return how many levels bring images of a size to at most 8 pixels, at least two."""
    levels = 2
    while size >> (levels - 1) > 8:
        levels += 1
    return levels


def _resumed(options: Namespace) -> tuple[dict[str, Any], _images.Images]:
    """Return the settings of a run that is there, and its images, or refuse other ones."""
    out: Path = options.out
    settings = _run.read_settings(out)
    chosen = settings["options"]
    given = {name: getattr(options, name) for name in [*DEFAULTS, "size"]}
    given["images"] = None if options.images is None else _images.source_of(options.images)
    given["init"] = None if options.init is None else str(_run_folder(options.init))
    for name, mine in given.items():
        if mine is not None and mine != chosen.get(name):
            option = "the folder of images" if name == "images" else "--" + name.replace("_", "-")
            raise Problem(
                f"{option} is {mine}, but {out} began with {chosen.get(name)}, and a run goes on with its settings; "
                f"leave it out, or begin another run (--init {out} starts from these weights).", 2,
            )  # fmt: skip
    images = _images.load(
        settings["data"]["source"], size=settings["size"], grey=chosen["grey"], strict=chosen["strict"],
        hold_out=chosen["hold_out"],
    )  # fmt: skip
    _images.refuse_others(images, settings, out, f"bring them back, or begin another run with --init {out}")
    return settings, images


def _run_folder(words: str) -> Path:
    """Return the folder of a run, named by itself or by its checkpoint."""
    path = Path(os.path.realpath(os.path.expanduser(words)))
    return path.parent if path.name == _run.CHECKPOINT else path


def _initial(path: Path, net: networks.UNet, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights of another run; where its classes are others, as that network is without a class."""
    parent = _run.load(path, torch.device("cpu"))
    weights = dict(parent.net.state_dict())
    if parent.classes == settings["classes"]:
        say(f"starting from {path}, step {parent.step}")
        return weights
    say(f"starting from {path}, step {parent.step}; its classes are others: starting as it is without a class")
    mine = net.state_dict()
    nothing = weights.pop(CLASS_TABLE)[-1] if CLASS_TABLE in weights else torch.zeros_like(mine[TIME_BIAS])
    weights[TIME_BIAS] = weights[TIME_BIAS] + nothing
    if CLASS_TABLE in mine:
        weights[CLASS_TABLE] = torch.zeros_like(mine[CLASS_TABLE])
    return weights


def _mirrored(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return images (B, C, H, W), each mirrored or not."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], x.flip(-1), x)


def _fit(
    net: networks.UNet, settings: dict[str, Any], images: _images.Images, out: Path, done: int, save_every: int
) -> int | None:
    """Train to the end and return None, or to the first checkpoint after Ctrl-C and return its step."""
    total, told, losses = settings["options"]["steps"], False, []
    tenth = done * 10 // total
    with _interrupts() as asked:
        log = _Log(out / _run.LOG, done)
        for step in _steps(net, settings, images, out, save_every):
            losses.append(step.loss)
            saved = step.index % save_every == 0 or step.index == total
            if saved or step.index % LOG_EVERY == 0:
                loss = float(torch.stack(losses).mean())
                losses.clear()
                log.write(step.index, loss, step.lr)
                if step.index * 10 // total > tenth:  # ten lines in all
                    tenth = step.index * 10 // total
                    say(f"step {step.index} of {total}: loss {loss:.4f}")
            if step.index % max(LOG_EVERY, total // 4) == 0 or step.index == total:
                assert isinstance(step.ema, networks.UNet)
                _sheet(_run.Trained(settings, step.ema, next(net.parameters()).device, step.index), out)
            if asked and saved and step.index < total:
                return step.index
            if asked and not told:
                at, told = min(total, (step.index // save_every + 1) * save_every), True
                say(f"stopping at step {at}, the next checkpoint; Ctrl-C again stops now and loses what came since")
    return None


def _steps(
    net: networks.UNet, settings: dict[str, Any], images: _images.Images, out: Path, save_every: int
) -> Iterator[training.TrainStep]:
    """Yield the steps of the training; only what goes wrong in here is foreseen, not what is done between them."""
    chosen, shown = settings["options"], images.x[~images.held]
    source = data.batches(
        shown, None if images.y is None else images.y[~images.held], size=chosen["batch"],
        generator=torch.Generator().manual_seed(chosen["seed"]), transform=_mirrored if chosen["mirror"] else None,
    )  # fmt: skip
    schedule, prediction = _run.SCHEDULES[settings["schedule"]]
    total = chosen["steps"]
    with foreseen(ValueError), writing(), memory(SMALLER):
        yield from training.fit(
            net, source, schedule, prediction, num_steps=total, lr=chosen["lr"], warmup=min(100, total // 10),
            drop_cond=DROP_COND if images.classes else 0.0, precision=chosen["precision"], resume=True,
            generator=torch.Generator().manual_seed(chosen["seed"] + 1), checkpoint=out / _run.CHECKPOINT,
            save_every=save_every,
        )  # fmt: skip


def _sheet(run: _run.Trained, out: Path) -> None:
    """Write the sheet of samples that shows how far a run is."""
    labels = _run.in_turn(16, run.classes)
    with memory(SMALLER):
        x = run.draw(16, labels, steps=20, sampler="adams", scale=1.0, seed=run.settings["options"]["seed"])
    with writing():
        _images.write(out / _run.SHEET, _images.sheet(x))


class _Log:
    """A file with a line of JSON for each so many steps; lines from after the checkpoint are dropped."""

    def __init__(self, path: Path, done: int) -> None:
        self.path, self.began, self.before = path, time.monotonic(), 0.0
        kept = []
        with writing():
            for line in path.read_text(encoding="utf8", errors="replace").splitlines() if path.exists() else []:
                try:
                    entry = json.loads(line)
                    step, seconds = int(entry["step"]), float(entry["seconds"])
                except (ValueError, TypeError, KeyError, OverflowError):  # cut short by a crash, or not ours
                    continue
                if step <= done:
                    kept.append(line)
                    self.before = seconds
            path.write_text("".join(line + "\n" for line in kept), encoding="utf8")

    def write(self, step: int, loss: float, lr: float) -> None:
        """Add a line; the loss is the mean since the last one."""
        seconds = round(self.before + time.monotonic() - self.began, 1)
        with writing(), self.path.open("a", encoding="utf8") as file:
            file.write(json.dumps({"step": step, "loss": loss, "lr": lr, "seconds": seconds}) + "\n")


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Note the first Ctrl-C in the list that is given, and let the second one stop the process."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen
        yield asked
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
