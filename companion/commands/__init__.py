"""The commands: python -m companion train | sample | evaluate, for those who want no notebook.

They are made of the package's parts and of nothing else: each lives in a file that can be read as an example of them.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from ._evaluate import evaluate
from ._options import parse
from ._problems import Problem
from ._sample import sample
from ._train import train

__all__ = ["main"]
_COMMANDS = {"train": train, "sample": sample, "evaluate": evaluate}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code: 0 done, 1 something is wrong, 2 wrong usage, 130 stopped with Ctrl-C.

    What can be foreseen, such as a folder that does not exist, is said in a line or two on stderr. What cannot is not
    caught: it is a mistake of this package, and its traceback says where. Where the output is not read to its end, as
    with `| head`, the command stops with 1 and without a word.

    Args:
        argv: the words of the command line; None takes those of this process.

    Raises:
        SystemExit: after --help, and for options that are wrong.

    >>> main(["sample", "no-such-run"])           # says on stderr that there is none
    1
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal need not know every letter
    try:
        try:
            return _answer(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # for what Python itself still flushes at its end
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return 1


def _answer(argv: Sequence[str] | None) -> int:
    """Run a command, say what is wrong where something is, and return the exit code."""
    name, options = parse(argv)
    try:
        return _COMMANDS[name](options)
    except Problem as problem:
        print(f"companion {name}: {problem}", file=sys.stderr)
        return problem.code
    except KeyboardInterrupt:
        print(f"companion {name}: stopped.", file=sys.stderr)
        return 130
