"""Latents: the few numbers of an autoencoder, shifted and scaled to what a schedule expects, and back to images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _checks
from .networks import Autoencoder

_SLACK = 1e-3  # how far beyond [-1, 1] rounding may have taken an image


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """An autoencoder whose latents have mean 0 and standard deviation 1 in every channel: z = (latent - shift) * scale.

    Schedules say how much noise there is beside data of about unit variance; a raw latent may have any. `measure`
    derives shift and scale from data (Rombach et al. 2022 derive one scale for all channels, and no shift).

    Args:
        autoencoder: with encode, decode, channels and halvings; it is not changed.
        shift: (C,) float, the mean of each channel of the raw latents.
        scale: (C,) float, one over the standard deviation of each; positive.
        shape: (C, h, w) of one latent.

    Raises:
        TypeError: a shift or a scale that is not a floating-point tensor.
        ValueError: one that is of another length, not finite or, the scale, not positive; a shape that does not fit
            the autoencoder.

    >>> autoencoder = Autoencoder(1, width=8)
    >>> space = LatentSpace(autoencoder, torch.zeros(4), torch.ones(4), (4, 2, 2))
    >>> z = space.encode(torch.zeros(5, 1, 8, 8))
    >>> z.shape, space.decode(z).shape
    (torch.Size([5, 4, 2, 2]), torch.Size([5, 1, 8, 8]))
    """

    autoencoder: Autoencoder
    shift: Tensor
    scale: Tensor
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        latent = self.autoencoder.latent
        if len(self.shape) != 3 or self.shape[0] != latent or any(n < 1 for n in self.shape):
            raise ValueError(f"shape is {tuple(self.shape)} but the latents are ({latent}, h, w); give those three.")
        for name in ("shift", "scale"):
            value = _checks.floating(name, getattr(self, name))
            if value.shape != (latent,):
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)} but the latents have {latent} channel(s); give one number "
                    f"for each: torch.full(({latent},), value)."
                )
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} is {value.tolist()}; it must be finite: measure it on images.")
        if not bool((self.scale > 0).all()):
            raise ValueError(f"scale is {self.scale.tolist()}; it must be positive: one over a standard deviation.")

    @classmethod
    def measure(cls, autoencoder: Autoencoder, x: Tensor, *, batch: int = 256) -> LatentSpace:
        """Return the space in which the latents of images x have mean 0 and standard deviation 1 in each channel.

        Args:
            autoencoder: trained.
            x: (N, channels, H, W) in [-1, 1], a thousand or so of the training images.
            batch: how many images at once.

        Raises:
            TypeError, ValueError: as `encode`; a channel that is the same number everywhere.

        >>> space = LatentSpace.measure(Autoencoder(1, width=8), torch.rand(64, 1, 8, 8))
        >>> space.encode(torch.rand(64, 1, 8, 8)).shape, space.shape
        (torch.Size([64, 4, 2, 2]), (4, 2, 2))
        """
        raw = _in_batches(autoencoder.encode, _images(autoencoder, x), batch, autoencoder)
        wide = raw.cpu().double()
        shift, std = wide.mean((0, 2, 3)), wide.std((0, 2, 3), correction=0)
        dead = [c for c, value in enumerate(std.tolist()) if not value > 1e-6]
        if dead:
            raise ValueError(
                f"channel(s) {dead} of the latents have standard deviation {[float(std[c]) for c in dead]} over "
                f"{len(x)} image(s); it must be above 0 to divide by: give more images, or train the autoencoder."
            )
        _, c, h, w = raw.shape
        return cls(autoencoder, shift.to(raw.dtype), (1 / std).to(raw.dtype), (c, h, w))

    def encode(self, x: Tensor, *, batch: int = 256) -> Tensor:
        """Return the latents of images x, (N, C, h, w), on x's device and without gradient.

        Args:
            x: (N, channels, H, W) in [-1, 1], of the size of the images measured.
            batch: how many images at once.

        Raises:
            TypeError: x of another dtype than the autoencoder's.
            ValueError: x of another rank, number of channels or size, none of it, or values outside [-1, 1].

        >>> space = LatentSpace(Autoencoder(1, width=8), torch.zeros(4), torch.ones(4), (4, 2, 2))
        >>> space.encode(torch.ones(3, 1, 8, 8), batch=2).shape
        torch.Size([3, 4, 2, 2])
        """
        _images(self.autoencoder, x)
        side = 2**self.autoencoder.halvings
        height, width = self.shape[1] * side, self.shape[2] * side
        if tuple(x.shape[2:]) != (height, width):
            raise ValueError(
                f"x is {x.shape[2]}x{x.shape[3]} but this space is of images {height}x{width}; pad or resize them."
            )
        raw = _in_batches(self.autoencoder.encode, x, batch, self.autoencoder)
        return (raw - _over(self.shift, raw)) * _over(self.scale, raw)

    def decode(self, z: Tensor, *, batch: int = 256) -> Tensor:
        """Return the images of latents z, (N, channels, H, W), on z's device and without gradient.

        They are not clipped: the decoder may go a little beyond [-1, 1].

        Args:
            z: (N, C, h, w).
            batch: how many latents at once.

        Raises:
            TypeError: z of another dtype than the autoencoder's.
            ValueError: z of another shape, none of it, or with NaN.

        >>> space = LatentSpace(Autoencoder(1, width=8), torch.zeros(4), torch.ones(4), (4, 2, 2))
        >>> space.decode(torch.zeros(3, 4, 2, 2), batch=2).shape
        torch.Size([3, 1, 8, 8])
        """
        _checks.floating("z", z, min_dims=4)
        if z.shape[1:] != self.shape or not len(z):
            raise ValueError(f"z has shape {tuple(z.shape)} but the latents of this space are (N, *{self.shape}).")
        _same_dtype("z", z, self.autoencoder)
        _checks.finite("z", z, "look at the sampler's steps")
        raw = z / _over(self.scale, z) + _over(self.shift, z)
        return _in_batches(self.autoencoder.decode, raw, batch, self.autoencoder)


def _images(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    """Return x if it is images in [-1, 1] that the autoencoder takes."""
    _checks.images(_checks.floating("x", x, min_dims=4), autoencoder.channels, autoencoder.halvings)
    _same_dtype("x", x, autoencoder)
    if not len(x):
        raise ValueError(f"x has shape {tuple(x.shape)}; give at least one image.")
    low, high = (float(v) for v in torch.aminmax(x.detach()))  # once, at the boundary, on every device
    if not (low >= -1 - _SLACK and high <= 1 + _SLACK):
        raise ValueError(
            f"x ranges from {low:g} to {high:g}; images lie in [-1, 1]: use x / 127.5 - 1 for bytes, 2 * x - 1 for "
            f"[0, 1], x.clamp(-1, 1) for samples."
        )
    return x


def _same_dtype(name: str, x: Tensor, autoencoder: Autoencoder) -> None:
    dtype = next(autoencoder.parameters()).dtype
    if x.dtype != dtype:
        raise TypeError(f"{name} has dtype {x.dtype} but the autoencoder {dtype}; the two must be equal: convert one.")


@torch.no_grad()
def _in_batches(f: Callable[[Tensor], Tensor], x: Tensor, batch: int, autoencoder: Autoencoder) -> Tensor:
    """Return f(x), a part at a time on the autoencoder's device, put together on x's."""
    _checks.count("batch", batch)
    device = next(autoencoder.parameters()).device
    return torch.cat([f(part.to(device)).to(x.device) for part in x.detach().split(batch)])


def _over(c: Tensor, z: Tensor) -> Tensor:
    """Shape one number a channel so that it multiplies z (N, C, h, w)."""
    return c.to(z)[:, None, None]
