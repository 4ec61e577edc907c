"""Fashion-MNIST (Xiao et al. 2017, MIT): a part that ships with the package, and the whole set where you have it."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.request
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

FOLDER = Path(__file__).parent
SIZE = 28
FASHION_CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
"""The names of the classes of `fashion`, in the order of their numbers."""

VARIABLE = "FASHION_MNIST"
"""The environment variable that may name the folder of the full set."""

URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
FILES = {  # file to the SHA-256 of its content, unpacked: packed again, the same content may be other bytes
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
KEPT = {"train": 500, "held-out": 100}  # images of each class in the subset
_NAMES = {"train": "train", "held-out": "t10k"}


def fashion(split: str = "train", *, source: str | Path = "subset", size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Return pictures of clothes, 28x28 grey, of ten classes, as many of each (Fashion-MNIST, Xiao et al. 2017).

    The subset ships with the package: of each class the first 500 images of the training file and the first 100 of the
    test file, in turn, so that image k is of class k % 10.

    Args:
        split: "train" or "held-out".
        source: "subset" (5,000 and 1,000 images); "full" (60,000 and 10,000) from the folder that the environment
            variable FASHION_MNIST names; or the path of a folder with the full set's four files, which
            `download_fashion` fills.
        size: 28, or 32 with a border of 2 pixels of -1, so that the image can be halved five times.

    Returns:
        x (N, 1, size, size) float32 in [-1, 1]; y (N,) int64 in 0 to 9, numbers of `FASHION_CLASSES`.

    Raises:
        ImportError: the subset, where Pillow is not installed.
        FileNotFoundError: the full set, where it is not found; the subset is never given in its place.
        ValueError: an unknown split or size, or a file that is damaged.

    >>> x, y = fashion("held-out")
    >>> x.shape, x.min().item(), x.max().item(), FASHION_CLASSES[y[1]]
    (torch.Size([1000, 1, 28, 28]), -1.0, 1.0, 'trouser')
    >>> fashion("held-out", size=32)[0].shape
    torch.Size([1000, 1, 32, 32])
    """
    if split not in _NAMES:
        raise ValueError(f'split is {split!r}; it must be "train" or "held-out".')
    if size not in (SIZE, SIZE + 4):
        raise ValueError(f"size is {size}; it must be 28, or 32 for a border of 2 pixels.")
    x, y = _subset(split) if source == "subset" else _full(split, _folder(source))
    x = x.float()[:, None] / 127.5 - 1
    return pad(x, [(size - SIZE) // 2] * 4, value=-1.0), y.long()


def download_fashion(folder: str | Path, *, opener: Callable[[str], Any] = urllib.request.urlopen) -> Path:
    """Download the full set (30 MB) into a folder, check it, and return the folder; files that are there are kept.

    Args:
        folder: made where it does not exist.
        opener: opener(url) -> a file to read, as a context manager.

    Raises:
        ValueError: a file whose content is not that of Fashion-MNIST; it is not kept.
        OSError: no connection.

    >>> import tempfile
    >>> def offline(url):
    ...     raise OSError(f"no way to {url.rsplit('/', 1)[1]}")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     download_fashion(folder, opener=offline)
    Traceback (most recent call last):
    OSError: no way to train-images-idx3-ubyte.gz
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (folder / name).exists():
            _unpacked(folder / name)
            continue
        partial = folder / f"{name}.partial"
        try:
            with opener(URL + name) as response:
                partial.write_bytes(response.read())
            _unpacked(partial, name)
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
    return folder


@lru_cache(maxsize=2)
def _subset(split: str) -> tuple[Tensor, Tensor]:
    """Return the images (N, 28, 28) and classes that ship with the package: the sheet is one image wide."""
    from ._png import read

    images = (read(FOLDER / "fashion.png") * 255).round().to(torch.uint8).reshape(-1, SIZE, SIZE)
    count = 10 * KEPT["train"]
    chosen = images[:count] if split == "train" else images[count:]
    return chosen, (torch.arange(len(chosen)) % 10).to(torch.uint8)


def _folder(source: str | Path) -> Path:
    """Return the folder of the full set."""
    ways = (
        f"give its folder, source=PATH; or set the environment variable {VARIABLE} to it; or fetch it with "
        f'data.download_fashion(PATH). What ships with the package is source="subset".'
    )
    if source == "full" and not os.environ.get(VARIABLE):
        raise FileNotFoundError(f'source is "full" but {VARIABLE} is not set: {ways}')
    folder = Path(os.environ[VARIABLE] if source == "full" else source)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"Fashion-MNIST is not in {folder}: there is no {', no '.join(missing)}: {ways}")
    return folder


def _full(split: str, folder: Path) -> tuple[Tensor, Tensor]:
    """Return all images (N, 28, 28) and classes."""
    images, labels = (
        torch.frombuffer(bytearray(_unpacked(folder / f"{_NAMES[split]}-{kind}-ubyte.gz")), dtype=torch.uint8)
        for kind in ("images-idx3", "labels-idx1")
    )
    return images[16:].reshape(-1, SIZE, SIZE), labels[8:]  # 16 and 8 bytes say how many there are, and their size


def _unpacked(path: Path, name: str | None = None) -> bytes:
    """Return the content of a file of the full set, checked; `name` where the file has another one for now."""
    name = path.name if name is None else name
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is damaged, it does not unpack ({error}): remove it and fetch it again.") from None
    found = hashlib.sha256(content).hexdigest()
    if found != FILES[name]:
        raise ValueError(
            f"{name} is damaged or of another set: the SHA-256 of its content is {found[:12]}..., it must be "
            f"{FILES[name][:12]}...: remove it and fetch it again."
        )
    return content
