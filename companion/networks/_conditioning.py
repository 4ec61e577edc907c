"""What the denoising networks share: the time and the class as one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from ..encodings import sinusoidal


class Conditioning(nn.Module):
    """Turn times (B,), and classes where there are any, into one vector (B, width).

    Args:
        width: the vector's length, even.
        num_classes: how many classes; None for a network that takes none. Class num_classes means "no class".
    """

    def __init__(self, width: int, num_classes: int | None) -> None:
        super().__init__()
        if _checks.count("width", width, 4) % 2:
            raise ValueError(f"width is {width}; it must be even: half of the time's encoding is cosines, half sines.")
        self.width, self.num_classes = width, num_classes
        self.of_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        if num_classes is not None:
            self.of_class = nn.Embedding(_checks.count("num_classes", num_classes) + 1, width)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | int | None) -> Tensor:
        """Return the vector for the batch of x; t is () or (B,), cond is (B,) classes, one class, or None."""
        t = _checks.batch_time(t, x).to(torch.promote_types(t.dtype, torch.float32)).expand(len(x))
        code = self.of_time(sinusoidal(t, self.width).to(next(self.of_time.parameters()).dtype))
        if self.num_classes is None:
            if cond is not None:
                raise ValueError("this network takes no class, but cond was given: build it with num_classes=...")
            return code
        y = _checks.labels(self.num_classes if cond is None else cond, len(x), self.num_classes, device=x.device)
        return code + self.of_class(y)
