"""Controls for a live kernel, and a player in their place where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from ._base import Player


def explore(draw: Callable[..., Any], page: Player, **controls: Any) -> Any:
    """Return controls over `draw` where a kernel runs, and `page`, which needs none, everywhere else.

    In JupyterLab and Colab you get one control an argument of `draw`, which is called and shown anew when you move
    one. The book is built from stored outputs, and COMPANION_STATIC=1 in the environment stores `page`.

    Args:
        draw: called with the controls' values by name; what it returns is shown. A ValueError is shown as its message.
        page: the player for a page without a kernel.
        controls: for each argument of `draw` (low, high, step), a list of choices, a text or a widget of ipywidgets.

    Raises:
        ImportError: a kernel runs, but ipywidgets is not installed.

    Example:
        >>> import torch
        >>> from companion import players
        >>> page = players.trajectory(torch.randn(2, 9, 2), label="Noise.")
        >>> players.explore(lambda scale: f"guided by {scale}", page, scale=(0.0, 8.0, 0.5))  # no kernel here
        Player('Noise.', 2 frames)
    """
    if os.environ.get("COMPANION_STATIC") or not _in_kernel():
        return page
    import ipywidgets
    from IPython.display import display

    def shown(**values: Any) -> None:
        try:
            display(draw(**values))
        except ValueError as error:
            print(error)

    box = ipywidgets.interactive(shown, **controls)
    for control in box.children:
        if control.has_trait("continuous_update"):
            control.continuous_update = False  # one call when the slider comes to rest
    return box


def _in_kernel() -> bool:
    """Whether this Python is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")
