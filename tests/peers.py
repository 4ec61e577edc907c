"""Other people's packages that tests compare with. Neither is needed to use the book or the package."""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest

TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


def k_diffusion() -> tuple[ModuleType, ModuleType]:
    """Return the modules k_diffusion.sampling and k_diffusion.external; skip the test if they are not installed.

    The package's own __init__ imports all of its training code, with torchvision, wandb and more, so its folder is
    registered as a package without running it. One of its helpers for images asks for torchvision, too: without
    torchvision an empty stand-in is there while k-diffusion is imported, and gone afterwards.
    """
    for name in ("torchdiffeq", "torchsde"):
        pytest.importorskip(name)
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or spec.submodule_search_locations is None:
            pytest.skip("k-diffusion is not installed")
        bare = ModuleType("k_diffusion")
        bare.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = bare
    stand_ins = {} if importlib.util.find_spec("torchvision") else {name: ModuleType(name) for name in TORCHVISION}
    for name, module in stand_ins.items():
        if "." in name:
            parent, _, child = name.rpartition(".")
            setattr(stand_ins[parent], child, module)
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("k_diffusion.sampling"), importlib.import_module("k_diffusion.external")
    finally:
        for name in stand_ins:
            del sys.modules[name]
