"""Your own images: a folder, or one subfolder for each class."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _checks

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""The suffixes, in lower case, by which `folder` tells an image from another file."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What a file may hold, whatever its suffix, as Pillow names it; of other kinds it knows some call a program."""


class Folder(NamedTuple):
    """What `folder` read.

    >>> "labels" in Folder._fields
    True
    """

    x: Tensor
    """(N, channels, size, size) float32 in [-1, 1]."""
    labels: Tensor | None
    """(N,) int64, numbers of `classes`; None where there are no classes."""
    classes: tuple[str, ...]
    """The names of the subfolders, sorted; empty where there are no classes."""
    files: tuple[str, ...]
    """The file of each image, its path inside the folder."""
    skipped: tuple[tuple[str, str], ...]
    """(file, reason) for each file that has an image's suffix and could not be read."""
    ignored: tuple[str, ...]
    """The files that were not looked at, hidden or without an image's suffix."""
    sizes: dict[tuple[int, int], int]
    """(width, height) -> how many images came in that size."""


class _Picture(NamedTuple):
    pixels: np.ndarray  # (size, size, channels) uint8
    size: tuple[int, int]


def folder(path: str | Path, *, size: int, channels: int = 3, strict: bool = False) -> Folder:
    """Read the images of a folder, cropped to the middle square and resized.

    Images that lie in the folder itself have no classes. Where they lie in subfolders, each subfolder is a class, and
    what lies deeper belongs to the first subfolder on its way; a single subfolder makes no class. Images both beside
    and inside subfolders are refused.

    Images are read much as a viewer shows them: turned as the camera says (EXIF), palettes resolved, transparency laid
    over white, grey of 16 bits rounded to 8, the first frame of an animation. But colours are taken as the file stores
    them: a colour profile (ICC) is not applied, CMYK is converted by Pillow's plain formula, and of 16 bits of red,
    green or blue Pillow keeps the upper 8. The square is as wide as the image's shorter side; it is resized with
    Pillow's bicubic filter, which averages when it shrinks, and left alone where it fits.

    Files are told by their suffix, small or capital: .png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm; other files,
    and what begins with a dot, are listed as ignored. Which of these kinds a file holds is seen from its content; one
    that holds another kind, or twice as many pixels as `PIL.Image.MAX_IMAGE_PIXELS` (179 million in all), cannot be
    read. Names are compared letter by letter, so that the order is the same on every machine.

    Args:
        path: of the folder. Links to folders are followed, each folder once.
        size: of the images that come out, in pixels.
        channels: 3 for colour, 1 for grey.
        strict: refuse a file that cannot be read, which is otherwise listed as skipped, and images of more than one
            size.

    Returns:
        The images, which take 4 * channels * size^2 bytes each, and what became of each file.

    Raises:
        ImportError: where Pillow is not installed.
        FileNotFoundError, NotADirectoryError: no such folder.
        ValueError: no image that can be read; images beside and inside subfolders; with strict, a file that cannot be
            read or mixed sizes.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as path:
    ...     for name, colour in (("cats", "white"), ("dogs", "black")):
    ...         (Path(path) / name).mkdir()
    ...         Image.new("RGB", (12, 10), colour).save(Path(path) / name / "1.png")
    ...     found = folder(path, size=8)
    >>> found.x.shape, found.labels.tolist(), found.classes, found.sizes
    (torch.Size([2, 3, 8, 8]), [0, 1], ('cats', 'dogs'), {(12, 10): 2})
    """
    _checks.count("size", size)
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}; it must be 3 for colour or 1 for grey.")
    read = _reader(size, channels)
    root = Path(path)
    names, ignored = _find(root)
    classes = _classes(root, names, ignored)
    found = _read_all(read, [root / name for name in names])
    both = [(normal(name), result) for name, result in zip(names, found, strict=True)]
    pictures = [(name, result) for name, result in both if isinstance(result, _Picture)]
    skipped = tuple((name, result) for name, result in both if isinstance(result, str))
    if skipped and (strict or not pictures):
        raise ValueError(_unreadable(root, skipped, len(names), strict))
    sizes = Counter(p.size for _, p in pictures)
    if strict and len(sizes) > 1:
        raise ValueError(_mixed(root, pictures, sizes))
    pixels = np.stack([p.pixels for _, p in pictures])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    labels = torch.tensor([classes.index(name.split("/")[0]) for name, _ in pictures]) if classes else None
    ordered = dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))
    files = tuple(name for name, _ in pictures)
    return Folder(x.contiguous(), labels, classes, files, skipped, tuple(map(normal, ignored)), ordered)


def _find(root: Path) -> tuple[list[str], list[str]]:
    """Return the files with an image's suffix and the others, as sorted paths inside the folder."""
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; give the path of a folder with images.")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; give the folder that holds the images.")
    images: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(root, followlinks=True, onerror=_refuse_folder):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        inside = Path(here).relative_to(root)
        others += [(inside / name).as_posix() + "/" for name in folders if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            is_image = name.lower().endswith(SUFFIXES) and not name.startswith(".")
            (images if is_image else others).append((inside / name).as_posix())
    return sorted(images, key=normal), sorted(others, key=normal)


def _refuse_folder(error: OSError) -> None:
    raise error


def normal(name: str) -> str:
    """Return a name with each accented letter as one character: some systems store it as two."""
    return unicodedata.normalize("NFC", name)


def _classes(root: Path, names: list[str], ignored: list[str]) -> tuple[str, ...]:
    """Return the subfolders that make the classes, or refuse a folder whose images say two things."""
    if not names:
        suffixes = sorted({Path(name).suffix.lower() or "no suffix" for name in ignored})
        there = f"{len(ignored)} other file(s) ({', '.join(suffixes[:5])})" if ignored else "nothing"
        raise ValueError(f"{root} holds no image but {there}; images end in {' '.join(SUFFIXES)}.")
    beside = [name for name in names if "/" not in name]
    classes = sorted({normal(name).split("/")[0] for name in names if "/" in name})
    if beside and classes:
        raise ValueError(
            f"{root} holds {len(beside)} image(s) itself, such as {beside[0]}, and {len(names) - len(beside)} in "
            f"{len(classes)} subfolder(s), such as {classes[0]}; move all into subfolders, one for each class, or none."
        )
    return tuple(classes) if len(classes) > 1 else ()


def _read_all(read: Callable[[Path], _Picture | str], paths: list[Path]) -> list[_Picture | str]:
    """Return what `read` makes of each file."""
    from PIL import Image

    workers = min(8, os.cpu_count() or 1)  # Pillow lets other threads run while it decodes
    with ThreadPoolExecutor(workers) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of a large photo; a larger one is an error
        return list(pool.map(read, paths))


def _reader(size: int, channels: int) -> Callable[[Path], _Picture | str]:
    """Return a function from a file to its picture, or to the reason why there is none."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("data.folder needs Pillow to read images: pip install pillow") from error

    def read(path: Path) -> _Picture | str:
        try:
            if not path.stat().st_size:
                return "it is empty (0 bytes)"
            with Image.open(path, formats=FORMATS) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened)
                flat = _flat(image, opened.format, channels)
        except MemoryError:
            raise
        except UnidentifiedImageError:
            return f"it is none of {', '.join(FORMATS)}, or damaged"
        except Exception as error:  # a damaged file can make a decoder raise anything; the reason is kept
            return str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(flat, str):
            return flat
        side = min(flat.size)
        left, top = (flat.width - side) // 2, (flat.height - side) // 2
        square = flat.crop((left, top, left + side, top + side))
        if side != size:
            square = square.resize((size, size), Image.Resampling.BICUBIC)
        return _Picture(np.asarray(square).reshape(size, size, channels), flat.size)

    return read


def _flat(image: Any, file_format: str | None, channels: int) -> Any:
    """Return an image of 8-bit grey or RGB without transparency, or the reason why it cannot be one."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        image = Image.fromarray(np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        return f"its pixels are {'32-bit integers' if image.mode == 'I' else 'floating point'} of no known range"
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if channels == 3 else "L")


def _unreadable(root: Path, skipped: tuple[tuple[str, str], ...], count: int, strict: bool) -> str:
    """Return the message for files that could not be read."""
    first = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    fix = "remove or repair them, or leave strict out to skip them" if strict else "put images there that can be opened"
    return f"{root}: {len(skipped)} of {count} image file(s) cannot be read ({first}{more}); {fix}."


def _mixed(root: Path, pictures: list[tuple[str, _Picture]], sizes: Counter[tuple[int, int]]) -> str:
    """Return the message for images of more than one size, with a file of each."""
    example = {p.size: name for name, p in reversed(pictures)}
    shown = ", ".join(f"{n} of {w}x{h} such as {example[w, h]}" for (w, h), n in sizes.most_common(3))
    more = f", and {len(sizes) - 3} size(s) more" if len(sizes) > 3 else ""
    return (
        f"{root} holds images of {len(sizes)} sizes: {shown}{more}; bring them to one size, or leave strict out to "
        f"crop and resize them."
    )
