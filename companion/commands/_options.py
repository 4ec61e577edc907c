"""The options of the commands, and a help that teaches them."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from .. import training
from ._run import SAMPLERS, SCHEDULES

DEFAULTS: dict[str, Any] = {
    "steps": 2000, "batch": 32, "width": 16, "lr": 2e-3, "seed": 0, "precision": "float32", "schedule": "cosine",
    "mirror": False, "grey": False, "hold_out": 0.1, "strict": False,
}  # fmt: skip
"""What train does where it is not told; --size, --init and --batch also depend on the images."""

ABOUT = """\
Train a diffusion model on a folder of images, draw new ones, and judge them.

  train      images from a folder in, a run out
  sample     a run in, new images out
  evaluate   a run and real images in, a file of figures out
"""

EXAMPLES = """\
examples:
  python -m companion train photos --out run
  python -m companion sample run --num 64
  python -m companion evaluate run --out metrics.json

`python -m companion train --help` says what each option changes.
"""

TRAIN_ABOUT = """\
Train a diffusion model on images.

IMAGES is a folder of images, or one with a subfolder for each class; or one of
the words digits, fashion and emoji, to try the command with no images (./digits
is a folder of that name). Images are cropped to the middle square and resized.

RUN is made. It then holds checkpoint.safetensors, settings.json (all that the
other commands need), log.jsonl (step, loss, learning rate, seconds) and
samples.png, drawn anew each quarter of the way. Ctrl-C stops at the next
checkpoint and says how to go on.
"""

TRAIN_EXAMPLES = """\
examples:
  python -m companion train digits --out run
  python -m companion train photos --out run --size 64 --steps 20000 --width 64
  python -m companion train stamps --out run2 --init run --steps 500 --lr 5e-4

when the samples are bad:
  blurred or shapeless   more --steps; then a larger --width, if you have a GPU
  the loss is NaN        a lower --lr, such as 5e-4
  copies of the images   more images, --mirror, a smaller --width; `evaluate`
                         measures it
  few images             start from a run on many: --init
  too slow               a smaller --size or --width, or a GPU
"""

SAMPLE_ABOUT = """\
Draw new images from a run that train made.

The folder that --out names then holds sheet.png, all of them side by side, and
one PNG for each. Values outside the range of an image are clipped. The same
seed, number and options give the same images.
"""

SAMPLE_EXAMPLES = """\
examples:
  python -m companion sample run --num 64
  python -m companion sample run --class cats --scale 2 --out cats-drawn
  python -m companion sample run --steps 50 --sampler heun --seed 1 --sheet-only

when the samples are bad:
  blurred or dirty       look at samples.png of the run: if it is as bad, train
                         longer; more --steps than 20 change little
  not of the class       a larger --scale: 2 or 3
  all alike, too vivid   a smaller --scale; 1 is off
"""

EVALUATE_ABOUT = """\
Judge a run: how far its samples are from real images, and do they copy.

IMAGES is what to compare with, and by default what the run was trained on,
those kept back included. The Frechet distance stands beside its floor, what two
sets of real images score against each other, and that of pure noise. It is
measured on principal components of the real images and not on the features of
Inception: compare runs on the same images, not with an FID from a paper.
"""

EVALUATE_EXAMPLES = """\
examples:
  python -m companion evaluate run --out metrics.json
  python -m companion evaluate run other-photos --out other.json
  python -m companion evaluate run --num 1000 --steps 50 --out slow.json

when the figures are bad:
  far above the floor    train longer, or wider; look at the samples first
  nearer to the training images than those kept back
                         the run copies: more images, fewer steps
  it differs each time   more samples: --num
"""


def parse(argv: Sequence[str] | None) -> tuple[str, argparse.Namespace]:
    """Return the command and its options; without a command print the help."""
    parser, _ = parsers()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        parser.print_help()
        raise SystemExit(0)
    options = parser.parse_args(words)
    return options.command, options


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take two lines."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nSee: {self.prog} --help\n")


def parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """Return the parser and those of the commands."""
    shape = partial(argparse.RawDescriptionHelpFormatter, width=80, max_help_position=24)
    common: dict[str, Any] = {"formatter_class": shape, "allow_abbrev": False}
    parser = _Parser(
        prog="python -m companion",
        usage="python -m companion COMMAND ...",
        description=ABOUT,
        epilog=EXAMPLES,
        **common,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, prog=parser.prog, metavar="COMMAND", help=argparse.SUPPRESS
    )
    texts = {
        "train": (TRAIN_ABOUT, TRAIN_EXAMPLES, _train),
        "sample": (SAMPLE_ABOUT, SAMPLE_EXAMPLES, _sample),
        "evaluate": (EVALUATE_ABOUT, EVALUATE_EXAMPLES, _evaluate),
    }
    each = {}
    for name, (about, examples, fill) in texts.items():
        each[name] = commands.add_parser(name, description=about, epilog=examples, **common)
        fill(each[name])
    return parser, each


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="?", metavar="IMAGES", help="a folder, or: digits, fashion, emoji")
    parser.add_argument("--out", type=path, required=True, metavar="RUN", help="the folder to make")
    parser.add_argument(
        "--resume", action="store_true",
        help="go on with the run in --out, with the settings that it began with",
    )  # fmt: skip
    parser.add_argument(
        "--init", metavar="RUN",
        help="start from the weights of this run instead of from nothing (fine-tuning); its width and schedule are "
        "kept, and a class begins as 'no class' unless the classes are the same",
    )  # fmt: skip
    _train_images(parser.add_argument_group("the images"))
    _train_network(parser.add_argument_group("the network and its training"))


def _train_images(group: argparse._ArgumentGroup) -> None:
    option = partial(group.add_argument, default=None)
    option("--size", type=count(8, 4096), metavar="N", help="pixels of a side, such as 16, 32, 64; four times the time "
           "for twice the size [32, or that of the set]")  # fmt: skip
    option("--mirror", action="store_true", help="show each image mirrored half of the time: for faces and landscapes, "
           "not for letters")  # fmt: skip
    option("--grey", action="store_true", help="read the images in grey: a third of the numbers to learn")
    option("--hold-out", type=share, metavar="SHARE", help="how much of the images is kept back for evaluate; digits "
           "and fashion have images of their own for it [0.1]")  # fmt: skip
    option("--strict", action="store_true", help="refuse a file that cannot be read, which is otherwise skipped, and "
           "images of mixed sizes")  # fmt: skip


def _train_network(group: argparse._ArgumentGroup) -> None:
    option = partial(group.add_argument, default=None)
    option("--steps", type=count(), metavar="N", help="how long to train: time and quality [2000]")
    option("--batch", type=count(), metavar="N", help="images in one step: steadier, and slower in proportion "
           "[32, or all the images if there are fewer]")  # fmt: skip
    option("--width", type=count(4), metavar="N", help="channels of the U-Net at full size, a multiple of 4: twice the "
           "width learns more and takes up to four times as long [16]")  # fmt: skip
    option("--lr", type=positive, metavar="RATE", help="the highest learning rate; lower it for a large width or a "
           "NaN [0.002]")  # fmt: skip
    option("--schedule", choices=tuple(SCHEDULES), help="how noise is added: cosine with v-prediction, or flow, the "
           "straight path of flow matching [cosine]")  # fmt: skip
    option("--precision", choices=tuple(training.PRECISIONS), help="what the network computes in: bfloat16 is faster "
           "on a recent GPU [float32]")  # fmt: skip
    option("--seed", type=count(0), metavar="N", help="another seed is another run [0]")
    option("--save-every", type=count(), metavar="N", help="steps from one checkpoint to the next, so what a crash "
           "costs at most, and how long Ctrl-C takes [100]")  # fmt: skip
    _device(group)


def _sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, metavar="RUN", help="the folder that train filled")
    parser.add_argument("--num", type=count(), default=16, metavar="N", help="how many images [16]")
    _drawing(parser)
    parser.add_argument("--class", dest="kind", metavar="NAME",
                        help="draw this class only [the classes in turn, where there are any]")  # fmt: skip
    parser.add_argument("--out", type=path, metavar="DIR",
                        help="a new or empty folder [RUN/samples-1, then samples-2, ...]")  # fmt: skip
    parser.add_argument("--sheet-only", action="store_true", help="no single images")
    _device(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, metavar="RUN", help="the folder that train filled")
    parser.add_argument("images", nargs="?", metavar="IMAGES", help="a folder, or: digits, fashion, emoji [those that "
                        "the run was trained on]")  # fmt: skip
    parser.add_argument("--num", type=count(2), default=500, metavar="N", help="how many samples to draw, at most half "
                        "of the real images [500]")  # fmt: skip
    _drawing(parser)
    parser.add_argument("--out", type=path, default=None, metavar="FILE", help="where to write [RUN/metrics.json]")
    parser.add_argument("--strict", action="store_true", help="refuse a file that cannot be read, and mixed sizes")
    _device(parser)


def _drawing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=count(), default=20, metavar="N", help="network calls for one image: time, and "
                        "quality up to about 20; ddpm wants 250, and heun takes two calls a step [20]")  # fmt: skip
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), default="adams", help="how to walk from noise to image; "
                        "ddpm draws fresh noise on the way, the others none [adams]")  # fmt: skip
    parser.add_argument("--scale", type=finite, default=1.0, metavar="X", help="guidance: above 1 the class shows more "
                        "and the images vary less; twice the time; 1 is off [1]")  # fmt: skip
    parser.add_argument("--seed", type=count(0), default=0, metavar="N", help="another seed, other images [0]")


def _device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute: "
                        "auto is a GPU where there is one [auto]")  # fmt: skip


def path(words: str) -> Path:
    """Return a path, with ~ for the user's own folder; of a user who is not known it is kept as it is.

    >>> path("runs/one").name
    'one'
    """
    return Path(os.path.expanduser(words))


def count(least: int = 1, most: int = 2**63 - 1) -> Callable[[str], int]:
    """Return a type of argparse: a whole number of at least `least` and at most `most`.

    >>> count()("3")
    3
    """

    def read(words: str) -> int:
        try:
            n = int(words)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{words!r} is not a whole number") from None
        if not least <= n <= most:
            limit = f"at least {least}" if n < least else f"at most {most}"
            raise argparse.ArgumentTypeError(f"{n} is out of range; it must be {limit}")
        return n

    return read


def finite(words: str) -> float:
    """Return a finite number.

    >>> finite("1.5")
    1.5
    """
    try:
        x = float(words)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{words!r} is not a number") from None
    if not math.isfinite(x):
        raise argparse.ArgumentTypeError(f"{words} is not finite; give a number such as 1.5")
    return x


def positive(words: str) -> float:
    """Return a finite number above 0.

    >>> positive("1e-3")
    0.001
    """
    x = finite(words)
    if x <= 0:
        raise argparse.ArgumentTypeError(f"{words} is out of range; it must be above 0")
    return x


def share(words: str) -> float:
    """Return a number in [0, 1), a part of a whole.

    >>> share("0.1")
    0.1
    """
    x = finite(words)
    if not 0 <= x < 1:
        raise argparse.ArgumentTypeError(f"{words} is out of range; it is a share of the images, from 0 to below 1")
    return x
