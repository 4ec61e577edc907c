"""What can go wrong and be foreseen, and how it and the rest is said."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Problem(Exception):
    """Something that the user can put right: the value got, the rule, the fix.

    Args:
        text: one or two lines.
        code: the exit code, 1, or 2 for wrong usage.
    """

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


@contextmanager
def foreseen(*kinds: type[Exception], code: int = 1) -> Iterator[None]:
    """Turn errors of these kinds, which the package documents, into a `Problem` with the same words."""
    try:
        yield
    except kinds as error:
        raise Problem(str(error), code) from error


@contextmanager
def writing() -> Iterator[None]:
    """Turn what the system says when a file cannot be written into a `Problem`."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Problem(f"{error.filename or 'the file'} cannot be written ({reason}); give another --out.") from error


@contextmanager
def memory(fix: str) -> Iterator[None]:
    """Turn an accelerator's lack of memory into a `Problem`."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise Problem(f"the accelerator has not enough memory; {fix}.") from error


def say(text: str) -> None:
    """Print a line, above a progress bar where there is one."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(text)
    else:
        print(text, flush=True)


def bar(items: Sequence[T], what: str) -> Iterable[T]:
    """Return the items, with a progress bar if tqdm is installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what, leave=False, disable=len(items) < 2 or bool(os.environ.get("TQDM_DISABLE")))
