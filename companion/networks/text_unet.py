"""A U-Net that reads a prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .. import _checks
from .text_encoder import TextEncoder
from .unet import CrossAttention, UNet

JOININGS = ("concatenation", "scale-and-shift", "cross-attention")


class TextUNet(UNet):
    """A U-Net conditioned on a prompt, which its own text encoder reads (Rombach et al. 2022; Saharia et al. 2022).

    cond is a batch of tokens (B, length) from a `text.Tokenizer`; a row of 0, `null_cond`, is no text.

    Args:
        channels: of the image or the latent.
        vocabulary: how many words.
        length: the most tokens in a prompt.
        joining: how the text comes in, one or more of "concatenation" (the mean word as `width` channels more at the
            input), "scale-and-shift" (the mean word beside the time, in every block) and "cross-attention" (each pixel
            looks at the words, at the levels named in `attention`).
        text_width, text_layers: of the text encoder.
        width, multipliers, blocks, attention, dropout: as in `UNet`.

    Raises:
        TypeError, ValueError: sizes that are not whole numbers, an unknown joining, or cross-attention without a level.

    >>> net = TextUNet(4, vocabulary=20, length=6, width=16, attention=(1,), text_width=16)
    >>> net(torch.zeros(2, 4, 8, 8), torch.tensor([0.1, 0.9]), torch.tensor([[3, 7, 0, 0, 0, 0]])).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        *,
        vocabulary: int,
        length: int,
        joining: tuple[str, ...] = ("scale-and-shift", "cross-attention"),
        text_width: int = 128,
        text_layers: int = 2,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2),
        blocks: int = 1,
        attention: tuple[int, ...] = (0, 1),
        dropout: float = 0.0,
    ) -> None:
        joining = (joining,) if isinstance(joining, str) else tuple(joining)
        if not joining or not set(joining) <= set(JOININGS):
            raise ValueError(f"joining is {joining}; give one or more of {', '.join(JOININGS)}.")
        looks = "cross-attention" in joining
        if looks and not attention:
            raise ValueError("cross-attention needs a level to look from, but attention is (): name one, such as (1,).")
        super().__init__(
            channels,
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            dropout=dropout,
            context=text_width if looks else None,
        )
        self.null_cond, self.joining = 0, joining
        self.text = TextEncoder(vocabulary, length, width=text_width, layers=text_layers)
        if "concatenation" in joining:
            self.to_channels = nn.Linear(text_width, width)
            self.inward = nn.Conv2d(channels + width, width, 3, padding=1)
        if "scale-and-shift" in joining:
            self.to_code = nn.Linear(text_width, self.conditioning.width)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | int | None = None) -> Tensor:
        """Return a tensor like x (B, channels, H, W) for times t, () or (B,), and tokens cond, (B, length), or None.

        Raises:
            TypeError: tokens that are not integers.
            ValueError: x of another rank or number of channels, a size that does not halve, t or cond of another
                batch, or tokens out of range.
        """
        _checks.images(x, self.channels, self.halvings)
        if cond is None:
            cond = torch.zeros(1, self.text.length, dtype=torch.int64, device=x.device)
        words, seen = self.text(cond, len(x))  # which refuses an int
        share = seen[:, :, None].to(words.dtype)
        mean = (words * share).sum(1) / share.sum(1)
        code = self.conditioning(x, t, None)
        if "scale-and-shift" in self.joining:
            code = code + self.to_code(mean)
        if "concatenation" in self.joining:
            told = self.to_channels(mean)[:, :, None, None].expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, told.to(x.dtype)], dim=1)
        return self._walk(x, silu(code), (words, seen) if "cross-attention" in self.joining else ())

    def attention_maps(self, x: Tensor, t: Tensor, cond: Tensor) -> list[Tensor]:
        """Return where each word is looked at from: for each cross-attention in turn, maps (B, 1 + length, H, W).

        Entry 0 is the start, entry k the word at k - 1. A pixel's maps sum to 1 over the words; heads are averaged.

        Raises:
            ValueError: a network without cross-attention.

        >>> net = TextUNet(4, vocabulary=20, length=6, width=16, attention=(1,), text_width=16)
        >>> [m.shape for m in net.attention_maps(torch.zeros(1, 4, 8, 8), torch.tensor(0.5), torch.ones(1, 6).long())]
        [torch.Size([1, 7, 4, 4]), torch.Size([1, 7, 4, 4]), torch.Size([1, 7, 4, 4]), torch.Size([1, 7, 4, 4])]
        """
        layers = [module for module in self.modules() if isinstance(module, CrossAttention)]
        if not layers:
            raise ValueError(f"the network joins by {' and '.join(self.joining)}; only cross-attention has maps.")
        maps: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda module, inputs, output: maps.append(module.weights(*inputs).mean(1)))
            for layer in layers
        ]
        try:
            with torch.no_grad():
                self(x, t, cond)
        finally:
            for hook in hooks:
                hook.remove()
        return maps
