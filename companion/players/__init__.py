"""Players: a slider and a Play button over frames computed beforehand, with no kernel and no library.

A player is one HTML figure that holds its data (quantised, base64), its style and its script, so it works in
the rendered book, in JupyterLab and in Colab. It opens on the last frame, the result, and plays when asked.
`live` has no frames: a small network samples in the page.
"""

from ._base import Player
from ._curves import curves
from ._explore import explore
from ._frames import frames
from ._live import live
from ._trajectory import trajectory

__all__ = ["Player", "curves", "explore", "frames", "live", "trajectory"]
