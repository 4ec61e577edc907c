"""Reading the pictures that ship with the package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def read(path: Path) -> Tensor:
    """Return a PNG as (channels, H, W) float32 in [0, 1]."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("the pictures of companion.data need Pillow: pip install pillow") from error
    import numpy as np

    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image))
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)).float() / 255
