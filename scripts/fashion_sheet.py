"""Make the part of Fashion-MNIST that the package ships: python scripts/fashion_sheet.py FOLDER.

FOLDER holds the four files of the full set (data.download_fashion fetches them) and, where there is one, their LICENSE.
Writes one PNG, one image wide: of each class the first 500 images of the training file, then the first 100 of the test
file, the classes in turn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from companion import data
from companion.data import _fashion

OUT = Path(_fashion.__file__).parent


def chosen(x: Tensor, y: Tensor, count: int) -> Tensor:
    """Return the first `count` images of each class, the classes in turn, (10 count, 28, 28) as bytes."""
    first = torch.stack([x[y == c][:count] for c in range(10)], 1).flatten(0, 1)
    return ((first[:, 0] + 1) * 127.5).round().to(torch.uint8)


def main(argv: list[str] | None = None) -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the four files of the full set")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write (default: the package)")
    options = parser.parse_args(argv)
    parts = [chosen(*data.fashion(split, source=options.folder), n) for split, n in _fashion.KEPT.items()]
    sheet = torch.cat(parts).reshape(-1, _fashion.SIZE)
    Image.fromarray(sheet.numpy()).save(options.out / "fashion.png", optimize=True)
    print(f"{len(sheet) // _fashion.SIZE} images")


if __name__ == "__main__":
    main()
