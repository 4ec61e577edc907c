"""A small transformer that reads a prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from .. import _checks


class TextEncoder(nn.Module):
    """A transformer over words, which sees the whole prompt at every word (Vaswani et al. 2017, norm first).

    A learned start stands before the first word, so that an empty prompt is something too.

    Args:
        vocabulary: how many words; tokens are 1 to vocabulary, and 0 is no word.
        length: the most tokens in a prompt.
        width: numbers for each word, a multiple of `heads`.
        layers: how many times the words look at each other.
        heads: of each attention.

    Raises:
        TypeError, ValueError: a size that is not a whole number of at least 1, or a width that the heads do not divide.

    >>> read = TextEncoder(20, 6, width=16, layers=1, heads=2)
    >>> words, seen = read(torch.tensor([[3, 7, 0, 0, 0, 0]]))
    >>> words.shape, seen.tolist()
    (torch.Size([1, 7, 16]), [[True, True, True, False, False, False, False]])
    """

    def __init__(self, vocabulary: int, length: int, *, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        for name, n in (("vocabulary", vocabulary), ("length", length), ("layers", layers), ("heads", heads)):
            _checks.count(name, n)
        if _checks.count("width", width) % heads:
            raise ValueError(f"width is {width} with {heads} heads; each head takes an equal share: use a multiple.")
        self.vocabulary, self.length, self.width = vocabulary, length, width
        self.start = nn.Parameter(torch.randn(1, 1, width))
        self.words = nn.Embedding(vocabulary + 1, width)
        self.places = nn.Parameter(0.3 * torch.randn(length, width))
        self.layers = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor | int, batch: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the start and the words, each in its context, (B, 1 + length, width), and which are there, bool.

        Args:
            tokens: (B, length) integers in 0 to vocabulary; 0 is no word.
            batch: B, where one row of tokens is to serve all of a batch.

        Raises:
            TypeError, ValueError: tokens of another dtype or shape, or out of range.
        """
        if batch is None:
            batch = len(tokens) if isinstance(tokens, Tensor) and tokens.ndim else 1
        tokens = self.check(tokens, batch)
        seen = torch.cat([torch.ones_like(tokens[:, :1], dtype=torch.bool), tokens != 0], dim=1)
        h = torch.cat([self.start.expand(len(tokens), 1, -1), self.words(tokens) + self.places], dim=1)
        for layer in self.layers:
            h = layer(h, seen)
        return self.norm(h), seen

    def check(self, tokens: Tensor | int, batch: int) -> Tensor:
        """Return tokens as (batch, length) int64; one row serves the whole batch.

        Raises:
            TypeError, ValueError: tokens of another dtype or shape, or out of range.

        >>> TextEncoder(20, 6, width=8, heads=2).check(torch.zeros(1, 6, dtype=torch.int64), 3).shape
        torch.Size([3, 6])
        """
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dtype == torch.bool:
            got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TypeError(f"tokens are {got}; they must be integers: use a text.Tokenizer.")
        if tokens.shape not in ((batch, self.length), (1, self.length)):
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)} for a batch of {batch}; give ({batch}, {self.length}), one "
                f"row for each image, or (1, {self.length}) for all."
            )
        if tokens.device.type == "cpu" and tokens.numel():
            low, high = (int(v) for v in torch.aminmax(tokens))
            if low < 0 or high > self.vocabulary:
                raise ValueError(
                    f"tokens range from {low} to {high}; words are 1 to {self.vocabulary}, and 0 is no word: use the "
                    f"tokenizer that the network was trained with."
                )
        return tokens.long().expand(batch, -1)


class _Block(nn.Module):
    """The words look at each other, then each is worked on by itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.mix = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.wide, self.narrow = (
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width),
        )  # fmt: skip

    def forward(self, h: Tensor, seen: Tensor) -> Tensor:
        b, n, width = h.shape
        qkv = self.qkv(self.norm1(h)).reshape(b, n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, words, width of a head)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :])
        h = h + self.mix(mixed.transpose(1, 2).reshape(b, n, width))
        return h + self.narrow(gelu(self.wide(self.norm2(h))))
