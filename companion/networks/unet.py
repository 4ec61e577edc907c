"""The U-Net: down to few pixels and many channels, back up, with skips between equal sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from .. import _checks
from ._conditioning import Conditioning, Encoding


class UNet(nn.Module):
    """A U-Net with attention, time and class conditioning (Ronneberger et al. 2015; Ho et al. 2020).

    Args:
        channels: of the image, such as 1 or 3.
        width: channels at the finest level.
        multipliers: the width of each level, from fine to coarse, as a multiple of `width`; each level but the last
            halves the image.
        blocks: residual blocks per level on the way down, and one more on the way up.
        attention: the levels, counted from 0 at the finest, whose blocks are followed by self-attention.
        num_classes: how many classes cond may name; None for an unconditional network.
        dropout: inside each residual block.
        checkpointing: while training, keep only what goes into each layer and compute the rest again on the way back:
            less memory, more time, the same result.
        encoding: how the time is told, from times (B,) to vectors (B, n); by default `encodings.sinusoidal` of 4 width.
        context: the width of the words that a subclass hands to cross-attention, which then follows self-attention.

    >>> net = UNet(1, width=16, multipliers=(1, 2), blocks=1, attention=(1,), num_classes=10)
    >>> net(torch.zeros(2, 1, 8, 8), torch.tensor([0.1, 0.9]), torch.tensor([3, 7])).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2),
        blocks: int = 1,
        attention: tuple[int, ...] = (),
        num_classes: int | None = None,
        dropout: float = 0.0,
        checkpointing: bool = False,
        encoding: Encoding | None = None,
        context: int | None = None,
    ) -> None:
        super().__init__()
        _checks.count("channels", channels)
        _checks.count("width", width)
        _checks.count("blocks", blocks)
        if not multipliers or any(level not in range(len(multipliers)) for level in attention):
            raise ValueError(
                f"attention is {attention} with {len(multipliers)} level(s); name levels from 0, the finest."
            )
        self.channels, self.num_classes, self.null_cond = channels, num_classes, num_classes
        self.halvings, self.checkpointing = len(multipliers) - 1, checkpointing
        code = 4 * width
        self.conditioning = Conditioning(code, num_classes, encoding)
        self.inward = nn.Conv2d(channels, width, 3, padding=1)

        widths = [width * _checks.count("each multiplier", m) for m in multipliers]
        here, skips = width, [width]
        self.down = nn.ModuleList()
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Layer(here, wide, code, dropout, level in attention, context))
                here = wide
                skips.append(here)
            if level < self.halvings:
                self.down.append(_Down(here))
                skips.append(here)
        self.middle = nn.ModuleList(
            [_Layer(here, here, code, dropout, bool(attention), context), _Layer(here, here, code, dropout, False)]
        )
        self.up = nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(_Layer(here + skips.pop(), wide, code, dropout, level in attention, context))
                here = wide
            if level:
                self.up.append(_Up(here))
        self.out = nn.Sequential(_norm(here), nn.SiLU(), _zeroed(nn.Conv2d(here, channels, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | int | None = None) -> Tensor:
        """Return a tensor like x (B, channels, H, W) for times t, () or (B,), and classes cond, (B,), an int or None.

        Raises:
            ValueError: x of another rank or number of channels, a size that does not halve, t or cond of another
                batch, a class out of range, or a class for a network without classes.
        """
        _checks.images(x, self.channels, self.halvings)
        return self._walk(x, silu(self.conditioning(x, t, cond)))

    def _walk(self, x: Tensor, code: Tensor, text: tuple[Tensor, ...] = ()) -> Tensor:
        """Go down, through the middle and up, every layer told the code and, where there is any, the text."""
        h = self.inward(x)
        skips = [h]
        for layer in self.down:
            h = self._run(layer, code, text, h)
            skips.append(h)
        for layer in self.middle:
            h = self._run(layer, code, text, h)
        for layer in self.up:
            parts = (h,) if isinstance(layer, _Up) else (h, skips.pop())
            h = self._run(layer, code, text, *parts)
        return self.out(h)

    def _run(self, layer: nn.Module, code: Tensor, text: tuple[Tensor, ...], *parts: Tensor) -> Tensor:
        """Run a layer on the parts joined, and where asked keep nothing but them for the way back."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(_joined, layer, code, text, *parts, use_reentrant=False)
        return _joined(layer, code, text, *parts)


def _joined(layer: nn.Module, code: Tensor, text: tuple[Tensor, ...], *parts: Tensor) -> Tensor:
    return layer(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), code, *text)


class _Layer(nn.Module):
    """A residual block, then attention to the other pixels, and to the text, where asked."""

    def __init__(
        self, before: int, after: int, code: int, dropout: float, attention: bool, context: int | None = None
    ) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.scale_shift = nn.Linear(code, 2 * after)
        self.norm2, self.dropout = _norm(after), nn.Dropout(dropout)
        self.conv2 = _zeroed(nn.Conv2d(after, after, 3, padding=1))
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.attention = _Attention(after) if attention else nn.Identity()
        self.reading = CrossAttention(after, context) if attention and context else None

    def forward(self, x: Tensor, code: Tensor, *text: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        scale, shift = self.scale_shift(code)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(self.dropout(silu(h)))
        h = self.attention(self.skip(x) + h)
        return h if self.reading is None else self.reading(h, *text)


class _Attention(nn.Module):
    """Self-attention over the pixels, added to its input."""

    def __init__(self, channels: int, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = _heads(channels, head_dim)
        self.norm, self.qkv = _norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each (B, heads, pixels, channels of a head)
        mixed = scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(-1, -2).reshape(b, c, height, width))


class CrossAttention(nn.Module):
    """Each pixel looks at the words and adds what it finds (Vaswani et al. 2017; Rombach et al. 2022).

    Args:
        channels: of the pixels.
        context: numbers for each word.
        head_dim: channels of a head, as far as they divide.

    >>> reading = CrossAttention(16, 8)
    >>> reading(torch.zeros(2, 16, 4, 4), torch.zeros(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).shape
    torch.Size([2, 16, 4, 4])
    """

    def __init__(self, channels: int, context: int, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = _heads(channels, head_dim)
        self.norm, self.query = _norm(channels), nn.Conv2d(channels, channels, 1)
        self.key, self.value = nn.Linear(context, channels), nn.Linear(context, channels)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def weights(self, x: Tensor, words: Tensor, seen: Tensor) -> Tensor:
        """Return how much each pixel looks at each word, (B, heads, words, H, W), which over the words sums to 1.

        Args:
            x: (B, channels, H, W).
            words: (B, L, context).
            seen: (B, L) bool, which words are there; at least one in each row.

        >>> look = CrossAttention(16, 8).weights(torch.zeros(2, 16, 4, 4), torch.zeros(2, 5, 8), torch.ones(2, 5) > 0)
        >>> look.shape, look[0, 0, 0, 0, 0].item()
        (torch.Size([2, 1, 5, 4, 4]), 0.2...)
        """
        b, c, height, width = x.shape
        q = self.query(self.norm(x)).reshape(b, self.heads, c // self.heads, height * width)
        k = self.key(words).reshape(b, -1, self.heads, c // self.heads).transpose(1, 2)
        logits = (k @ q) * (c // self.heads) ** -0.5  # (B, heads, words, pixels)
        logits = logits.masked_fill(~seen[:, None, :, None], -torch.inf)
        return logits.softmax(dim=2).reshape(b, self.heads, -1, height, width)

    def forward(self, x: Tensor, words: Tensor, seen: Tensor) -> Tensor:
        """Return x (B, channels, H, W) and what its pixels found in the words (B, L, context)."""
        look = self.weights(x, words, seen).flatten(3)
        v = self.value(words).reshape(len(x), words.shape[1], self.heads, -1).permute(0, 2, 3, 1)
        return x + self.out((v @ look.to(v.dtype)).reshape(x.shape))


class _Down(nn.Module):
    """Halve the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, code: Tensor, *text: Tensor) -> Tensor:
        return self.conv(x)


class _Up(nn.Module):
    """Double the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, code: Tensor, *text: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


def _heads(channels: int, head_dim: int) -> int:
    """Return how many heads of about head_dim channels each."""
    return next(n for n in range(max(1, channels // head_dim), 0, -1) if channels % n == 0)


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def _zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """Start at zero, so that each block begins as the identity and the network's first answer is 0."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
