"""Checkpoints: tensors and a card in one safetensors file that is written whole or not at all, and checked when read.

A file is refused with the reason where it is cut short, where a bit has changed, or where it is not one of ours.
Nothing is ever unpickled: reading a file cannot run what is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks

_KEY, _FORMAT = "companion", 1
_FRESH = "take an earlier checkpoint or train again"


def write(path: str | Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and a card, with a SHA-256 over both, so that a crash leaves the old file or the new one.

    The content goes to a file beside it, is forced to the disk, and takes the name in one step.

    Args:
        path: of the file, in a folder that exists.
        tensors: name -> tensor, on any device.
        about: the card, of what JSON can hold.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder) / "a.safetensors", {"x": torch.ones(2)}, {"step": 3})
    ...     read(Path(folder) / "a.safetensors")
    ({'x': tensor([1., 1.])}, {'step': 3})
    """
    pack = _checks.needed("safetensors.torch", "checkpoints.write", "safetensors").save
    path = Path(path)
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    card = json.dumps(about, sort_keys=True)
    mark = json.dumps({"format": _FORMAT, "about": card, "sha256": _checksum(copies, card)})
    content = pack(copies, metadata={_KEY: mark})
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the card that `write` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated, damaged or tampered with, a pickle, or not one of ours.
        ImportError: where safetensors is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.safetensors"
    ...     write(path, {"x": torch.ones(2)}, {})
    ...     _ = path.write_bytes(path.read_bytes()[:-1])
    ...     read(path)
    Traceback (most recent call last):
    ...
    ValueError: a.safetensors is truncated: ...
    """
    unpack = _checks.needed("safetensors.torch", "checkpoints.read", "safetensors").load
    damaged = _checks.needed("safetensors", "checkpoints.read", "safetensors").SafetensorError
    path = Path(path)
    content = path.read_bytes()
    mark = _mark(path.name, content)
    try:
        tensors = unpack(content)
    except damaged as error:
        raise ValueError(f"{path.name} is damaged: {error}: {_FRESH}.") from None
    found = _checksum(tensors, mark["about"])
    if found != mark["sha256"]:
        raise ValueError(
            f"{path.name} is damaged or was changed: its SHA-256 is {found[:12]}..., the file says "
            f"{str(mark['sha256'])[:12]}...: {_FRESH}."
        )
    return tensors, json.loads(mark["about"])


def save(path: str | Path, net: nn.Module, about: dict[str, Any] | None = None) -> None:
    """Write a network's weights, for `load`.

    Args:
        path: of the file, in a folder that exists.
        net: its state_dict is written.
        about: a card to find again, of what JSON can hold.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder) / "net.safetensors", nn.Linear(2, 1), {"data": "moons"})
    ...     load(Path(folder) / "net.safetensors", nn.Linear(2, 1))
    {'data': 'moons'}
    """
    write(path, {f"net.{name}": value for name, value in net.state_dict().items()}, {} if about is None else about)


def load(path: str | Path, net: nn.Module, *, averaged: bool = True) -> dict[str, Any]:
    """Fill a network with the weights of a file, and return the file's card.

    Args:
        path: a file that `save` or `training.fit` wrote.
        net: of the architecture that was saved; it changes, and only if all its weights are there.
        averaged: take the EMA weights of a training's checkpoint, the ones to sample from; else the raw ones.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what `read` refuses, or weights of another architecture.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder) / "net.safetensors", nn.Linear(2, 1))
    ...     load(Path(folder) / "net.safetensors", nn.Linear(3, 1))
    Traceback (most recent call last):
    ...
    ValueError: net.safetensors is of another network: weight is (1, 2) torch.float32 there and (1, 3) torch.float32 ...
    """
    tensors, about = read(path)
    weights = part(tensors, "ema") if averaged else {}
    weights = weights or part(tensors, "net")
    refuse_other_network(Path(path).name, weights, net)
    net.load_state_dict(weights)
    return about


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors called "name.something" under their "something".

    >>> part({"net.weight": 1, "ema.weight": 2}, "ema")
    {'weight': 2}
    """
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def refuse_other_network(name: str, weights: dict[str, Tensor], net: nn.Module) -> None:
    """Raise a ValueError that says where weights differ from those of `net` in name, shape or dtype.

    >>> net = nn.Linear(2, 1)
    >>> refuse_other_network("net.safetensors", net.state_dict(), net)
    """
    mine = {key: f"{tuple(value.shape)} {value.dtype}" for key, value in net.state_dict().items()}
    theirs = {key: f"{tuple(value.shape)} {value.dtype}" for key, value in weights.items()}
    differ = [key for key in [*mine, *(theirs.keys() - mine.keys())] if mine.get(key) != theirs.get(key)]
    if differ:
        key = differ[0]
        raise ValueError(
            f"{name} is of another network: {key} is {theirs.get(key, 'not')} there and {mine.get(key, 'not')} here, "
            f"and {len(differ) - 1} more differ: build the network with the arguments that it was trained with."
        )


def _mark(name: str, content: bytes) -> dict[str, Any]:
    """Return the mark that `write` left in a file's header, or say what the file is instead."""
    pickled = content[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if pickled and content[8:9] != b"{":  # the length of a safetensors header may begin with the same two bytes
        raise ValueError(
            f"{name} is a pickle or a file of torch.save, which can run code when it is read; nothing is unpickled "
            f"here: save its weights with checkpoints.save."
        )
    start = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or start > len(content):
        raise ValueError(
            f"{name} is truncated, or no safetensors file: it has {len(content)} bytes and its header alone would take "
            f"{start}: {_FRESH}."
        )
    try:
        header = json.loads(content[8:start])
        metadata = header.pop("__metadata__", {})
        end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        mark: dict[str, Any] = json.loads(metadata[_KEY]) if _KEY in metadata else {"format": None}
        ours = mark["format"] == _FORMAT and isinstance(mark["about"], str) and "sha256" in mark
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{name} has a damaged header, or is no safetensors file: {_FRESH}.") from None
    if end > len(content):
        raise ValueError(f"{name} is truncated: it has {len(content)} bytes and should have {end}: {_FRESH}.")
    if not ours:
        raise ValueError(
            f"{name} was not written by this version of companion.checkpoints: it carries no mark of format "
            f"{_FORMAT}; load its tensors with safetensors and save them with checkpoints.save."
        )
    return mark


def _checksum(tensors: dict[str, Tensor], card: str) -> str:
    """Return the SHA-256 over the card and each tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
