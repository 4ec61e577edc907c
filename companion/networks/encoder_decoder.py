"""The encoder-decoder: down to a few numbers and back up, with nothing past them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from .. import _checks
from ._conditioning import Conditioning
from .unet import _Down, _Layer, _norm, _Up, _zeroed


class EncoderDecoder(nn.Module):
    """A U-Net without skips: all that the answer knows of x has gone through `latent` channels at the coarsest level.

    With latent * height * width / 4^halvings numbers in the middle it cannot copy its input, so it must draw what it
    has learned (Hinton and Salakhutdinov 2006; as a denoiser, Vincent et al. 2008).

    Args:
        channels: of the image, such as 1 or 3.
        width: channels at the finest level.
        multipliers: the width of each level, from fine to coarse, as a multiple of `width`; each level but the last
            halves the image.
        latent: channels in the middle.
        blocks: residual blocks per level, on the way down and on the way up.
        num_classes: how many classes cond may name; None for an unconditional network.

    Raises:
        TypeError, ValueError: a size that is not a whole number of at least 1, or no multipliers.

    >>> import torch
    >>> net = EncoderDecoder(1, width=8, multipliers=(1, 2, 2), latent=4)
    >>> x, t = torch.zeros(5, 1, 8, 8), torch.rand(5)
    >>> net(x, t).shape, net.encode(x, t).shape
    (torch.Size([5, 1, 8, 8]), torch.Size([5, 4, 2, 2]))
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2),
        latent: int = 4,
        blocks: int = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        _checks.count("width", width)
        _checks.count("blocks", blocks)
        if not multipliers:
            raise ValueError("multipliers is empty; give one width for each level, such as (1, 2).")
        widths = [width * _checks.count("each multiplier", m) for m in multipliers]
        self.channels, self.num_classes, self.null_cond = _checks.count("channels", channels), num_classes, num_classes
        self.halvings = len(multipliers) - 1
        code = 4 * width
        self.conditioning = Conditioning(code, num_classes)
        self.inward = nn.Conv2d(channels, width, 3, padding=1)
        self.to_latent = nn.Conv2d(widths[-1], _checks.count("latent", latent), 1)
        self.from_latent = nn.Conv2d(latent, widths[-1], 1)
        here = width
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Layer(here, wide, code, 0.0, False))
                here = wide
            if level < self.halvings:
                self.down.append(_Down(here))
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks):
                self.up.append(_Layer(here, wide, code, 0.0, False))
                here = wide
            if level:
                self.up.append(_Up(here))
        self.out = nn.Sequential(_norm(here), nn.SiLU(), _zeroed(nn.Conv2d(here, channels, 3, padding=1)))

    def encode(self, x: Tensor, t: Tensor, cond: Tensor | int | None = None) -> Tensor:
        """Return the numbers in the middle, (B, latent, H / 2^halvings, W / 2^halvings).

        Args:
            x: (B, channels, H, W), H and W multiples of 2^halvings.
            t: () or (B,) in [0, 1].
            cond: (B,) classes, one class, or None.

        Raises:
            ValueError: as when the network is called.

        >>> import torch
        >>> EncoderDecoder(1, width=8, latent=2).encode(torch.zeros(5, 1, 8, 8), torch.rand(5)).shape
        torch.Size([5, 2, 4, 4])
        """
        return self._down(x, silu(self.conditioning(_checks.images(x, self.channels, self.halvings), t, cond)))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | int | None = None) -> Tensor:
        """Return a tensor like x (B, channels, H, W) for times t, () or (B,), and classes cond, (B,), an int or None.

        Raises:
            ValueError: x of another rank or number of channels, a size that does not halve, t or cond of another
                batch, a class out of range, or a class for a network without classes.
        """
        code = silu(self.conditioning(_checks.images(x, self.channels, self.halvings), t, cond))
        h = self.from_latent(self._down(x, code))
        for layer in self.up:
            h = layer(h, code)
        return self.out(h)

    def _down(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.inward(x)
        for layer in self.down:
            h = layer(h, code)
        return self.to_latent(h)
