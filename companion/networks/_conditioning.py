"""What the denoising networks share: the time and the class as one vector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .. import _checks
from ..encodings import sinusoidal

Encoding = Callable[[Tensor], Tensor]  # times (B,) to vectors (B, n)


class Conditioning(nn.Module):
    """Turn times (B,), and classes where there are any, into one vector (B, width).

    Args:
        width: the vector's length; even, unless an encoding is given.
        num_classes: how many classes; None for a network that takes none. Class num_classes means "no class".
        encoding: from times (B,) to vectors (B, n); n is found by calling it once. By default `sinusoidal` of `width`.
    """

    def __init__(self, width: int, num_classes: int | None, encoding: Encoding | None = None) -> None:
        super().__init__()
        if _checks.count("width", width, 4) % 2 and encoding is None:
            raise ValueError(f"width is {width}; it must be even: half of the time's encoding is cosines, half sines.")
        self.width, self.num_classes = width, num_classes
        self.encoding = partial(sinusoidal, dim=width) if encoding is None else encoding
        self.length = self._length()
        self.of_time = nn.Sequential(nn.Linear(self.length, width), nn.SiLU(), nn.Linear(width, width))
        if num_classes is not None:
            self.of_class = nn.Embedding(_checks.count("num_classes", num_classes) + 1, width)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | int | None) -> Tensor:
        """Return the vector for the batch of x; t is () or (B,), cond is (B,) classes, one class, or None."""
        t = _checks.beside(_checks.batch_time(t, x).to(_checks.wide(t.dtype)), x).expand(len(x))
        code = self.encoding(t)
        if code.shape != (len(x), self.length):
            raise ValueError(
                f"encoding returned shape {tuple(code.shape)} for {len(x)} times; it must be "
                f"({len(x)}, {self.length}), one row for each time."
            )
        code = self.of_time(code.to(next(self.of_time.parameters()).dtype))
        if self.num_classes is None:
            if cond is not None:
                raise ValueError("this network takes no class, but cond was given: build it with num_classes=...")
            return code
        y = _checks.labels(self.num_classes if cond is None else cond, len(x), self.num_classes, device=x.device)
        return code + self.of_class(y)

    def _length(self) -> int:
        """Return the length n of the encoding."""
        if not callable(self.encoding):
            raise TypeError(
                f"encoding is a {type(self.encoding).__name__}; it must be a function or a module from times (B,) to "
                f"vectors (B, n), such as encodings.raw or encodings.GaussianFourier(64)."
            )
        with torch.no_grad():
            code = self.encoding(torch.zeros(1))
        if not isinstance(code, Tensor) or code.ndim != 2 or code.shape[0] != 1 or not code.shape[1]:
            got = f"shape {tuple(code.shape)}" if isinstance(code, Tensor) else f"a {type(code).__name__}"
            raise ValueError(
                f"encoding returned {got} for times of shape (1,); it must be (1, n): one row for each time."
            )
        return code.shape[1]
