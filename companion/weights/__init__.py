"""The small trained networks that ship with the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import _checks, networks

FOLDER = Path(__file__).parent
"""The folder of the weights and their cards.

:meta hide-value:
"""


def names() -> list[str]:
    """Return the names that `load` knows.

    >>> "digit_classifier" in names()
    True
    """
    return sorted(card.stem for card in FOLDER.glob("*.json"))


def card(name: str) -> dict[str, Any]:
    """Return how a network was trained: architecture, data, script, settings, seed, time, metrics and checksum.

    Raises:
        ValueError: an unknown name; the message lists what there is.

    >>> card("digit_classifier")["network"]
    'Classifier'
    """
    path = FOLDER / f"{name}.json"
    if name not in names():
        raise ValueError(f"there are no weights named {name!r}; there are: {', '.join(names())}.")
    return json.loads(path.read_text())


def load(name: str) -> nn.Module:
    """Return a trained network in evaluation mode, on the CPU.

    Raises:
        ValueError: an unknown name, or a file whose checksum is not the one on its card.
        ImportError: where safetensors is not installed.

    >>> load("digit_classifier").training
    False
    """
    about = card(name)
    read = _checks.needed("safetensors.torch", "weights.load", "safetensors").load
    content = (FOLDER / f"{name}.safetensors").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != about["sha256"]:
        raise ValueError(
            f"{name}.safetensors is damaged: its SHA-256 is {found[:12]}..., the card says {about['sha256'][:12]}...: "
            f"install the package again."
        )
    with torch.random.fork_rng(devices=[]):  # a new network draws weights; the caller's generator does not see it
        net: nn.Module = getattr(networks, about["network"])(**about["arguments"])
    net.load_state_dict(read(content))
    return net.requires_grad_(False).eval()


def save(name: str, net: nn.Module, about: dict[str, Any], folder: Path = FOLDER) -> None:
    """Write a network's weights and its card, with the checksum, into a folder.

    Args:
        name: of both files.
        net: whose weights to write, as they are: net.half() takes half the size, and `load` gives float32 all the same.
        about: the card; "network" and "arguments" say how to build the network again.
        folder: where to write.

    >>> import tempfile
    >>> net = networks.Classifier(1, 8, 10)
    >>> about = {"network": "Classifier", "arguments": {"channels": 1, "size": 8, "num_classes": 10}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save("example", net, about, Path(folder))
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['example.json', 'example.safetensors']
    """
    pack = _checks.needed("safetensors.torch", "weights.save", "safetensors").save
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    content = pack(state)
    (folder / f"{name}.safetensors").write_bytes(content)
    about = {**about, "sha256": hashlib.sha256(content).hexdigest()}
    (folder / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n")
