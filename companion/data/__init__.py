"""Data: small sets that train in seconds, captioned pictures, your own images, and batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ._emoji import (
    COLOURS,
    RELATIONS,
    ColouredEmoji,
    Emoji,
    Scenes,
    coloured_emoji,
    compose,
    emoji,
    emoji_objects,
    scenes,
)
from ._fashion import FASHION_CLASSES, download_fashion, fashion
from ._folder import Folder, folder

__all__ = [
    "COLOURS", "FASHION_CLASSES", "RELATIONS", "SWISS_ROLL_SCALE", "Batches", "ColouredEmoji", "Emoji", "Folder",
    "Scenes", "batches", "coloured_emoji", "compose", "digits", "download_fashion", "emoji", "emoji_objects", "fashion",
    "folder", "moons", "scenes", "sines", "swiss_roll", "swiss_roll_curve",
]  # fmt: skip

SWISS_ROLL_SCALE = 10.0
"""What the roll's coordinates are divided by, so that their standard deviation is near 0.7."""


def swiss_roll(n: int, *, noise: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """Draw points of the Swiss roll seen from its side: a spiral of one and a half turns, blurred.

    An angle is drawn uniformly from 1.5 pi to 4.5 pi; the point stands at that angle and that radius, plus Gaussian
    noise; all is divided by 10.

    Args:
        n: how many.
        noise: the standard deviation of the blur, before the division.

    Returns:
        (n, 2) float32, within about [-1.6, 1.6].

    >>> swiss_roll(5, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5, 2])
    """
    _checks.count("n", n)
    _not_negative("noise", noise)
    device = _device(generator)
    curve = swiss_roll_curve(torch.rand(n, generator=generator, device=device))
    return curve + noise / SWISS_ROLL_SCALE * torch.randn(n, 2, generator=generator, device=device)


def swiss_roll_curve(u: Tensor) -> Tensor:
    """Return the middle line of the Swiss roll at u (N,) in [0, 1], (N, 2): where the points lie without noise.

    With u equally spaced these are the means of a Gaussian mixture that is the Swiss roll's exact density.

    >>> swiss_roll_curve(torch.tensor([0.0, 1.0])).shape
    torch.Size([2, 2])
    """
    angle = 1.5 * math.pi * (1 + 2 * u)
    return torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1) / SWISS_ROLL_SCALE


def moons(n: int, *, noise: float = 0.1, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw points of two half circles that interlock, with their class.

    Args:
        n: how many.
        noise: the standard deviation of the blur.

    Returns:
        x (n, 2) float32, centred and within about [-1.8, 1.8]; y (n,) int64, 0 for the upper moon and 1 for the lower.

    >>> x, y = moons(6)
    >>> x.shape, sorted(set(y.tolist()) | {0, 1})
    (torch.Size([6, 2]), [0, 1])
    """
    _checks.count("n", n)
    _not_negative("noise", noise)
    device = _device(generator)
    y = torch.randint(2, (n,), generator=generator, device=device)
    angle = math.pi * torch.rand(n, generator=generator, device=device)
    side = 1.0 - 2.0 * y
    x = torch.stack([side * angle.cos() - side / 2, side * angle.sin() - side / 4], dim=1)
    return x + noise * torch.randn(n, 2, generator=generator, device=device), y


def sines(
    n: int,
    *,
    length: int = 64,
    frequencies: tuple[int, ...] = (1, 2, 3),
    amplitudes: tuple[float, float] = (0.5, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw sine waves of random whole frequency, amplitude and phase.

    Args:
        n: how many.
        length: samples in one signal, which spans one unit of time.
        frequencies: the periods in one signal to choose from, each below length / 2.
        amplitudes: the range from which the amplitude is drawn uniformly. The phase is uniform on the circle.

    Returns:
        (n, length) float32, within [-1, 1] for the amplitudes given.

    >>> sines(3).shape
    torch.Size([3, 64])
    """
    _checks.count("n", n)
    if not frequencies or not all(isinstance(f, int) and 0 < f < length / 2 for f in frequencies):
        raise ValueError(f"frequencies is {frequencies}; each must be an int in (0, length / 2), with length {length}.")
    low, high = amplitudes
    if not 0 < low <= high:
        raise ValueError(f"amplitudes is {amplitudes}; it must be a range (low, high) with 0 < low <= high.")
    device = _device(generator)
    chosen = torch.randint(len(frequencies), (n, 1), generator=generator, device=device)
    frequency = torch.tensor(frequencies, device=device)[chosen]
    amplitude = low + (high - low) * torch.rand(n, 1, generator=generator, device=device)
    phase = torch.rand(n, 1, generator=generator, device=device)
    time = torch.arange(length, device=device) / length
    return amplitude * torch.sin(2 * math.pi * (frequency * time + phase))


def digits(split: str = "train") -> tuple[Tensor, Tensor]:
    """Return the handwritten digits of scikit-learn, 8x8 pixels (Alpaydin and Kaynak 1998).

    The 1,797 images are split once, at random with a fixed seed: 1,297 to train on and 500 held out.

    Args:
        split: "train" or "held-out".

    Returns:
        x (N, 1, 8, 8) float32 in [-1, 1]; y (N,) int64 in 0 to 9.

    Raises:
        ImportError: where scikit-learn is not installed.

    >>> x, y = digits("held-out")
    >>> x.shape, y.shape, x.min().item(), x.max().item()
    (torch.Size([500, 1, 8, 8]), torch.Size([500]), -1.0, 1.0)
    """
    if split not in ("train", "held-out"):
        raise ValueError(f'split is {split!r}; it must be "train" or "held-out".')
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("data.digits needs scikit-learn: pip install scikit-learn") from error
    images, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    chosen = order[500:] if split == "train" else order[:500]
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return x[chosen], torch.tensor(y, dtype=torch.int64)[chosen]


Transform = Callable[[Tensor, torch.Generator | None], Tensor]


def batches(
    x: Tensor,
    y: Tensor | None = None,
    *,
    size: int,
    generator: torch.Generator | None = None,
    transform: Transform | None = None,
) -> Batches:
    """Yield shuffled batches for ever: each sample once an epoch, the remainder of an epoch dropped.

    Args:
        x: (N, *D).
        y: (N,) labels, or None.
        size: samples in a batch, at most N.
        generator: where the order comes from, and what the transform is handed.
        transform: transform(x, generator) -> x, run on each batch, for augmentation; of the same shape and dtype.

    Yields:
        (x, y) of `size` samples each; y is None where there are no labels.

    Raises:
        TypeError: data that are not floating point.
        ValueError: an empty x, a size above N, labels that are not one for each sample, or a transform that changes
            the shape or the dtype.

    >>> x, y = next(batches(torch.zeros(10, 2), size=4))
    >>> x.shape, y
    (torch.Size([4, 2]), None)
    """
    _checks.floating("x", x)
    _checks.count("size", size)
    if size > len(x):
        raise ValueError(f"size is {size} but there are {len(x)} samples; a batch holds each sample at most once.")
    if y is not None and len(y) != len(x):
        raise ValueError(f"y has {len(y)} labels but x has {len(x)} samples; give one label for each.")
    return Batches(x, y, size, generator, transform)


class Batches:
    """What `batches` returns: an iterator that knows where it is, so that a training can be resumed.

    >>> source = batches(torch.arange(6.0)[:, None], size=2, generator=torch.Generator().manual_seed(0))
    >>> first = next(source)
    >>> state = source.state_dict()
    >>> second = next(source)[0]
    >>> source.load_state_dict(state)
    >>> torch.equal(next(source)[0], second)
    True
    """

    def __init__(
        self, x: Tensor, y: Tensor | None, size: int, generator: torch.Generator | None, transform: Transform | None
    ) -> None:
        self.x, self.y, self.size, self.generator, self.transform = x, y, size, generator, transform
        self.order, self.position = torch.empty(0, dtype=torch.int64, device=x.device), 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor | None]:
        if self.position + self.size > len(self.order):
            device = self.x.device if self.generator is None else self.generator.device
            order = torch.randperm(len(self.x), generator=self.generator, device=device)
            self.order, self.position = order.to(self.x.device), 0
        chosen = self.order[self.position : self.position + self.size]
        self.position += self.size
        x = self.x[chosen]
        if self.transform is not None:
            before, x = x, self.transform(x, self.generator)
            if x.shape != before.shape or x.dtype != before.dtype:
                raise ValueError(
                    f"the transform made {tuple(before.shape)} {before.dtype} into {tuple(x.shape)} {x.dtype}; it must "
                    f"keep both."
                )
        return x, None if self.y is None else self.y[chosen.to(self.y.device)]

    def state_dict(self) -> dict[str, Any]:
        """Return where the iterator is: the epoch's order, the position in it, and the generator's state."""
        state = {"order": self.order.cpu(), "position": self.position, "samples": len(self.x), "size": self.size}
        return state if self.generator is None else {**state, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken, of batches of the same size from as many samples.

        Raises:
            ValueError: a state of other batches.
        """
        mine = {"samples": len(self.x), "size": self.size, "a generator": self.generator is not None}
        theirs = {"samples": state["samples"], "size": state["size"], "a generator": "generator" in state}
        if mine != theirs:
            raise ValueError(f"the state is of batches with {theirs}, these have {mine}; the two must be equal.")
        self.order, self.position = state["order"].to(self.x.device), int(state["position"])
        if self.generator is not None:
            self.generator.set_state(state["generator"].cpu())


def _device(generator: torch.Generator | None) -> torch.device | None:
    """Return where a generator draws, and so where the data are."""
    return None if generator is None else generator.device


def _not_negative(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value}; it must be finite and at least 0.")
