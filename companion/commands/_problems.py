"""What can go wrong and be foreseen, and how it and the rest is said."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "storage size calculation overflowed")
"""What PyTorch says, in small letters, when it asks for more memory than there is."""


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
    """Turn errors of these kinds, which the package documents, into a `Problem` with the same words.

    What the system says when a file cannot be read is put into words of ours.
    """
    try:
        yield
    except BrokenPipeError:  # of the output, not of a file
        raise
    except kinds as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror:  # of the system
            text = f"{error.filename or 'a file'} cannot be read ({error.strerror.lower()}); name another."
        raise Problem(text, code) from error


@contextmanager
def writing() -> Iterator[None]:
    """Turn what the system says when a file cannot be written into a `Problem`."""
    try:
        yield
    except BrokenPipeError:  # of the output, not of a file
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Problem(f"{error.filename or 'the file'} cannot be written ({reason}); give another --out.") from error


@contextmanager
def memory(fix: str) -> Iterator[None]:
    """Turn a lack of memory, of the machine or of an accelerator, into a `Problem`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch tells it by its words only, but for CUDA
        if isinstance(error, RuntimeError) and not any(words in str(error).lower() for words in NO_MEMORY):
            raise
        raise Problem(f"there is not enough memory; {fix}.") from error


def say(text: str) -> None:
    """Print a line, above a progress bar where there is one."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(text)
        sys.stdout.flush()  # a pipe or a file shows it now, not at the end
    else:
        print(text, flush=True)


def bar(items: Sequence[T], what: str) -> Iterable[T]:
    """Return the items, with a progress bar if tqdm is installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what, leave=False, disable=len(items) < 2 or bool(os.environ.get("TQDM_DISABLE")))
