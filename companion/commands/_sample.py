"""python -m companion sample: a run in, new images out."""

from __future__ import annotations

from argparse import Namespace
from itertools import count
from pathlib import Path

import torch

from ..data._folder import normal
from . import _images, _run
from ._problems import Problem, memory, say, writing


def sample(options: Namespace) -> int:
    """Draw images, write them, and return the exit code."""
    run = _run.load(options.run, _run.device_of(options.device))
    _run.refuse_guidance(options.run, run.classes, options.scale)
    kind = None if options.kind is None else _class_of(options.run, run.classes, options.kind)
    out = _folder(options.out, options.run)
    with memory(_run.LESS):
        num = options.num
        labels = _run.in_turn(num, run.classes) if kind is None else torch.full((num,), kind)
        x = run.draw(num, labels, steps=options.steps, sampler=options.sampler, scale=options.scale, seed=options.seed)
        sheet = _images.sheet(x)
    with writing():
        _images.write(out / "sheet.png", sheet)
        for i in range(0 if options.sheet_only else options.num):
            of_class = "" if labels is None else f"-{run.classes[int(labels[i])]}"
            _images.write(out / f"{i:04d}{of_class.replace('/', '-')}.png", x[i])
    singles = "" if options.sheet_only else f", and {options.num} single images beside it"
    say(f"{out / 'sheet.png'}: {options.num} images, network of step {run.step}{singles}")
    return 0


def _class_of(path: Path, classes: list[str], wanted: str) -> int:
    """Return the number of a class, by its name."""
    if not classes:
        raise Problem(
            f"--class is {wanted!r} but {path} has no classes; train on a folder with one subfolder for each class, "
            f"or leave --class out."
        )
    name = normal(wanted)
    if name not in classes:
        shown = ", ".join(repr(name) for name in classes[:20]) + ", ..." * (len(classes) > 20)
        raise Problem(f"--class is {wanted!r}; {path} has the classes {shown}.")
    return classes.index(name)


def _folder(asked: Path | None, run: Path) -> Path:
    """Return the folder to write to, made and empty."""
    with writing():
        if asked is None:
            asked = next(path for i in count(1) if not (path := run / f"samples-{i}").exists())
        asked.mkdir(parents=True, exist_ok=True)
        if any(asked.iterdir()):
            raise Problem(f"--out is {asked}, which holds files that might be overwritten; give a new or empty folder.")
    return asked
