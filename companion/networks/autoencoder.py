"""The autoencoder: pictures to a few numbers and back, so that diffusion can run on the few."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from .. import _checks
from .unet import _norm


class Autoencoder(nn.Module):
    """An encoder to `latent` channels at the coarsest level and a decoder (Rombach et al. 2022, without attention).

    Args:
        channels: of the image, such as 1 or 3.
        width: channels at the finest level.
        multipliers: the width of each level, from fine to coarse, as a multiple of `width`; each level but the last
            halves the image.
        latent: channels of the latent.
        blocks: residual blocks of each level, on the way down and on the way up, one number for each or one for all.

    Raises:
        TypeError, ValueError: a size that is not a whole number of at least 1 (of blocks, 0), no multipliers, or blocks
            for another number of levels.

    >>> import torch
    >>> net = Autoencoder(3, width=8, multipliers=(1, 2, 2), latent=4)
    >>> z = net.encode(torch.zeros(5, 3, 32, 32))
    >>> z.shape, net.decode(z).shape
    (torch.Size([5, 4, 8, 8]), torch.Size([5, 3, 32, 32]))
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 4),
        latent: int = 4,
        blocks: int | tuple[int, ...] = 1,
    ) -> None:
        super().__init__()
        _checks.count("width", width)
        if not multipliers:
            raise ValueError("multipliers is empty; give one width for each level, such as (1, 2, 4).")
        each = (blocks,) * len(multipliers) if isinstance(blocks, int) else tuple(blocks)
        if len(each) != len(multipliers):
            raise ValueError(f"blocks is {blocks} with {len(multipliers)} level(s); give one number for each, or one.")
        for n in each:
            _checks.count("blocks", n, 0)
        widths = [width * _checks.count("each multiplier", m) for m in multipliers]
        self.channels, self.latent = _checks.count("channels", channels), _checks.count("latent", latent)
        self.halvings = len(multipliers) - 1
        down: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(latent, widths[-1], 1)]
        for level, wide in enumerate(widths):
            if level:
                down.append(nn.Conv2d(widths[level - 1], wide, 3, stride=2, padding=1))
            down += [_Residual(wide) for _ in range(each[level])]
        for level, wide in reversed(list(enumerate(widths))):
            up += [_Residual(wide) for _ in range(each[level])]
            if level:
                up += [nn.Upsample(scale_factor=2.0), nn.Conv2d(wide, widths[level - 1], 3, padding=1)]
        self.encoder = nn.Sequential(*down, _norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], 2 * latent, 1))
        self.decoder = nn.Sequential(*up, _norm(widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels, 3, padding=1))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log variance of the latent of images x, each (B, latent, H / 2^halvings, W / ...).

        The log variance is held in [-30, 20]. Only a training with a KL term makes it mean anything.

        Args:
            x: (B, channels, H, W) in [-1, 1], H and W multiples of 2^halvings.

        Raises:
            TypeError, ValueError: x of another dtype, rank, number of channels, or a size that does not halve.

        >>> import torch
        >>> mean, log_variance = Autoencoder(1, width=8).posterior(torch.zeros(5, 1, 8, 8))
        >>> mean.shape
        torch.Size([5, 4, 2, 2])
        """
        _checks.images(_checks.floating("x", x, min_dims=4), self.channels, self.halvings)
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latent of images x, the mean of `posterior`, (B, latent, H / 2^halvings, W / 2^halvings).

        >>> import torch
        >>> Autoencoder(1, width=8).encode(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 4, 2, 2])
        """
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents z (B, latent, h, w): (B, channels, 2^halvings h, 2^halvings w), not clipped.

        Raises:
            TypeError, ValueError: z of another dtype, rank or number of channels.

        >>> import torch
        >>> Autoencoder(1, width=8).decode(torch.zeros(5, 4, 2, 2)).shape
        torch.Size([5, 1, 8, 8])
        """
        _checks.floating("z", z, min_dims=4)
        if z.ndim != 4 or z.shape[1] != self.latent:
            raise ValueError(f"z has shape {tuple(z.shape)} but the latents are (B, {self.latent}, h, w).")
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """Return x encoded and decoded, of the same shape."""
        return self.decode(self.encode(x))


class _Residual(nn.Module):
    """Two convolutions, each after a norm, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = _norm(channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        return x + self.conv2(silu(self.norm2(h)))
