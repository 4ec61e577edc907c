"""Dense networks: the flat baseline, and a residual network for points and short signals."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import _checks
from ..encodings import sinusoidal
from ._conditioning import Conditioning, Encoding

JOININGS = ("add", "concatenate", "scale_shift")


class DenseDenoiser(nn.Module):
    """The smallest denoiser: flatten, join the step encoding, one hidden layer, back to the shape of the data.

    Args:
        shape: the shape of one sample, such as (1, 8, 8).
        width: the number of hidden units.
        step_dim: the length of the sinusoidal step encoding joined to the data, even; 0 for none.

    >>> DenseDenoiser((1, 8, 8))(torch.zeros(5, 1, 8, 8), torch.rand(5)).shape
    torch.Size([5, 1, 8, 8])
    """

    null_cond = None

    def __init__(self, shape: tuple[int, ...], *, width: int = 128, step_dim: int = 32) -> None:
        super().__init__()
        if _checks.count("step_dim", step_dim, 0) % 2:
            raise ValueError(f"step_dim is {step_dim}; it must be even: half cosines, half sines; 0 for no encoding.")
        self.shape, self.step_dim = tuple(_checks.count("each size in shape", n) for n in shape), step_dim
        size = math.prod(self.shape)
        self.hidden = nn.Linear(size + step_dim, _checks.count("width", width))
        self.out = nn.Linear(width, size)

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        """Return a tensor like x (B, *shape) for times t, () or (B,).

        Raises:
            ValueError: x of another shape, t of another batch, or a condition, which this network does not take.
        """
        if cond is not None:
            raise ValueError("DenseDenoiser takes no condition: leave cond out, or use MLP or UNet with num_classes.")
        if x.shape[1:] != self.shape:
            raise ValueError(f"x has shape {tuple(x.shape)} but the network was built for (B, *{self.shape}).")
        flat = x.flatten(1)
        if self.step_dim:
            t = _checks.beside(_checks.batch_time(t, x), x).expand(len(x))
            flat = torch.cat([flat, sinusoidal(t, self.step_dim).to(x.dtype)], dim=1)
        return self.out(torch.relu(self.hidden(flat))).reshape(x.shape)


class MLP(nn.Module):
    """A residual network for vectors: points in the plane, short signals, latents.

    Args:
        dim: the length of one sample.
        width: the width of the residual stream, even unless an encoding is given.
        depth: the number of residual blocks.
        num_classes: how many classes cond may name; None for an unconditional network.
        encoding: how the time is told, from times (B,) to vectors (B, n); by default `encodings.sinusoidal` of `width`.
        joining: how the blocks meet the code of time and class. "add" shifts the hidden units of each block by a linear
            map of it; "scale_shift" multiplies them as well (Perez et al. 2018); "concatenate" joins the code to x,
            once, before the first layer.

    >>> net = MLP(2, num_classes=3)
    >>> net(torch.zeros(5, 2), torch.rand(5), torch.tensor([0, 1, 2, 0, net.null_cond])).shape
    torch.Size([5, 2])
    >>> from companion import encodings
    >>> MLP(2, encoding=encodings.GaussianFourier(32), joining="scale_shift")(torch.zeros(5, 2), torch.rand(5)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 128,
        depth: int = 3,
        num_classes: int | None = None,
        encoding: Encoding | None = None,
        joining: str = "add",
    ) -> None:
        super().__init__()
        if joining not in JOININGS:
            raise ValueError(f"joining is {joining!r}; it must be one of {', '.join(JOININGS)}.")
        self.dim, self.num_classes, self.null_cond = _checks.count("dim", dim), num_classes, num_classes
        self.joining = joining
        self.conditioning = Conditioning(width, num_classes, encoding)
        self.inward = nn.Linear(dim + (width if joining == "concatenate" else 0), width)
        self.blocks = nn.ModuleList(_Block(width, joining) for _ in range(_checks.count("depth", depth)))
        self.out = nn.Sequential(nn.SiLU(), nn.Linear(width, dim))  # no norm: it would hide the amplitude of x

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | int | None = None) -> Tensor:
        """Return a tensor like x (B, dim) for times t, () or (B,), and classes cond, (B,), an int or None.

        Raises:
            ValueError: x of another shape, t or cond of another batch, a class out of range, or a class for a
                network without classes.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)} but the network was built for (B, {self.dim}).")
        code = self.conditioning(x, t, cond)
        h = self.inward(torch.cat([x, code], dim=1) if self.joining == "concatenate" else x)
        for block in self.blocks:
            h = block(h, code)
        return self.out(h)


class _Block(nn.Module):
    """h + W2 SiLU(u), u = W1 SiLU(norm(h)): the code shifts u, or scales and shifts it, or was joined to x before."""

    def __init__(self, width: int, joining: str = "add") -> None:
        super().__init__()
        self.joining = joining
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        if joining != "concatenate":
            self.shift = nn.Linear(width, 2 * width if joining == "scale_shift" else width)
        self.second = nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)  # each block starts close to the identity

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        u = self.first(torch.nn.functional.silu(self.norm(h)))
        if self.joining == "add":
            u = u + self.shift(code)
        elif self.joining == "scale_shift":
            scale, shift = self.shift(code).chunk(2, dim=1)
            u = u * (1 + scale) + shift
        return h + self.second(torch.nn.functional.silu(u))
