"""Text: from a prompt to the numbers that a network reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import _checks


@dataclass(frozen=True)
class Tokenizer:
    """One number for each word: 0 for no word, k + 1 for the word at k.

    Args:
        words: the vocabulary, lower case, each word once.
        length: the most words in a prompt; shorter ones are filled up with 0.

    Raises:
        TypeError, ValueError: no words, a word given twice or not in lower case, a length that is not a whole number.

    >>> tokenize = Tokenizer(("a", "fox", "red"), length=4)
    >>> tokenize(["A red fox.", ""]).tolist()
    [[1, 3, 2, 0], [0, 0, 0, 0]]
    """

    words: tuple[str, ...]
    length: int
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _checks.count("length", self.length)
        object.__setattr__(self, "words", tuple(self.words))
        object.__setattr__(self, "_numbers", {word: k + 1 for k, word in enumerate(self.words)})
        if not self.words or len(self._numbers) != len(self.words) or any(split(w) != [w] for w in self.words):
            raise ValueError(
                f"words are {self.words[:8]}...; a vocabulary has at least one word, each once, in lower case and "
                f"without spaces or marks: use text.vocabulary(captions)."
            )

    def __call__(self, prompts: str | Sequence[str]) -> Tensor:
        """Return the numbers of a prompt (1, length), or of several (B, length), int64.

        Capitals, full stops and commas make no difference. An empty prompt is all 0, which is what a network takes
        for no text.

        Raises:
            TypeError: prompts that are not text.
            ValueError: a word that is not in the vocabulary (the message suggests others), or a prompt too long.
        """
        several = [prompts] if isinstance(prompts, str) else list(prompts)
        rows = torch.zeros(len(several), self.length, dtype=torch.int64)
        for row, prompt in zip(rows, several, strict=True):
            if not isinstance(prompt, str):
                raise TypeError(f"a prompt is a {type(prompt).__name__}; it must be a str, such as 'a red fox'.")
            numbers = [self._number(word, prompt) for word in split(prompt)]
            if len(numbers) > self.length:
                raise ValueError(f"the prompt {prompt!r} has {len(numbers)} words; the most is {self.length}.")
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return rows

    def decode(self, tokens: Tensor) -> list[str]:
        """Return the prompts of tokens (B, length).

        >>> Tokenizer(("a", "fox", "red"), length=4).decode(torch.tensor([[1, 3, 2, 0]]))
        ['a red fox']
        """
        return [" ".join(self.words[k - 1] for k in row if k) for row in tokens.tolist()]

    def _number(self, word: str, prompt: str) -> int:
        if word not in self._numbers:
            near = difflib.get_close_matches(word, self.words, n=3)
            hint = f"do you mean {', '.join(near)}?" if near else "see tokenizer.words for those it knows."
            raise ValueError(f"the word {word!r} of the prompt {prompt!r} is not in the vocabulary; {hint}")
        return self._numbers[word]


def vocabulary(captions: Iterable[str]) -> tuple[str, ...]:
    """Return the words of captions, each once, in alphabetical order.

    >>> vocabulary(["a red fox", "a fox"])
    ('a', 'fox', 'red')
    """
    return tuple(sorted({word for caption in captions for word in split(caption)}))


def split(prompt: str) -> list[str]:
    """Return the words of a prompt, in lower case, without full stops, commas and the like at their ends.

    >>> split("A red fox, please!")
    ['a', 'red', 'fox', 'please']
    """
    return [word for word in (part.strip(".,;:!?\"'()") for part in prompt.lower().split()) if word]
