"""Diffusion models, short and exact: x_t = alpha(t) * x0 + sigma(t) * eps, and every choice around it."""

from importlib import import_module
from types import ModuleType

from . import (
    checkpoints,
    data,
    denoisers,
    encodings,
    guidance,
    interop,
    latents,
    losses,
    metrics,
    networks,
    noise,
    predictions,
    samplers,
    schedules,
    text,
    text_to_image,
    training,
    weights,
)

__version__ = "0.1.0"
_WHEN_ASKED = ("plots", "players")  # plots imports matplotlib

__all__ = [
    "checkpoints",
    "data",
    "denoisers",
    "encodings",
    "guidance",
    "interop",
    "latents",
    "losses",
    "metrics",
    "networks",
    "noise",
    "players",
    "plots",
    "predictions",
    "samplers",
    "schedules",
    "text",
    "text_to_image",
    "training",
    "weights",
]


def __getattr__(name: str) -> ModuleType:
    if name in _WHEN_ASKED:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
