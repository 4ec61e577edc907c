"""The package's shape: which module may import which, what an import costs, and whether every name shows its use."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import companion

PACKAGE = Path(companion.__file__).parent
ORDER = [
    *("_checks", "schedules", "noise", "encodings", "text", "networks", "predictions", "denoisers", "losses"),
    *("guidance", "samplers", "latents", "text_to_image", "data", "checkpoints", "training", "metrics", "diagnose"),
    *("weights", "interop", "plots", "players", "commands", "__main__"),
]
FILES = sorted(PACKAGE.rglob("*.py"))
NO_EXAMPLE = {  # a record, a protocol, an abstract class, or a class that one function makes and shows
    "samplers.Step",
    "denoisers.Denoiser",
    "denoisers.NetworkDenoiser",
    "schedules.Schedule",
    "schedules.Table",
}
HEAVY = ("matplotlib", "ipywidgets", "IPython", "sklearn", "scipy", "tqdm", "pandas", "torchvision", "PIL")


def name_of(path):
    """The dotted name of a file inside the package, "" for the package itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def imported_modules(source, name, is_package):
    """The top modules of the package that a file imports, wherever in the file."""
    here = ["companion", *name.split(".")] if name else ["companion"]
    parent = here if is_package else here[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*parent[: len(parent) - node.level + 1]] if node.level else []
            base = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            parts = target.split(".")
            if parts[0] == "companion":
                yield parts[1] if len(parts) > 1 else ""


def wrong_imports(source, name, is_package=False):
    """What a file imports against the order."""
    top = name.split(".")[0]
    allowed = ORDER[: ORDER.index(top) + 1]  # its own submodules are of the same top module
    return sorted({module for module in imported_modules(source, name, is_package)} - set(allowed))


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p)], ids=name_of)
def test_imports_go_down_the_list(path):
    assert name_of(path).split(".")[0] in ORDER, "a new module: give it its place in ORDER and in the design"
    assert not wrong_imports(path.read_text(), name_of(path), path.name == "__init__.py")


@pytest.mark.parametrize(
    ("source", "name", "wrong"),
    [
        ("from . import samplers", "schedules", ["samplers"]),
        ("from .samplers import ddim", "schedules", ["samplers"]),
        ("def f():\n    from companion.training import fit", "data", ["training"]),
        ("import companion.plots as p", "metrics", ["plots"]),
        ("import companion", "metrics", [""]),
        ("from .. import losses", "networks.unet", ["losses"]),
        ("from ..losses import simple", "networks.unet", ["losses"]),
        ("from ._conditioning import Conditioning\nfrom ..encodings import sinusoidal", "networks.unet", []),
        ("from . import _checks\nfrom .schedules import Schedule\nimport torch", "noise", []),
        ("from .. import data, networks, weights", "weights.digit_classifier", []),
    ],
)
def test_the_rule_can_fail(source, name, wrong):
    assert wrong_imports(source, name) == wrong


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_is_cheap_silent_and_leaves_the_seed_alone():
    """Nothing heavy is loaded, beyond what torch itself loads, and torch's state stays as it is."""
    loaded = run(
        "import sys, torch\n"
        "before, state = set(sys.modules), torch.get_rng_state()\n"
        "settings = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()\n"
        "import companion\n"
        "assert torch.equal(state, torch.get_rng_state())\n"
        "assert settings == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))\n"
    )
    assert "companion" in loaded and not set(loaded) & set(HEAVY)


def test_every_module_loads_by_itself():
    """Each in a fresh list of modules: none needs another to have been imported first."""
    names = [name_of(path) for path in FILES if name_of(path) and name_of(path) != "plots"]
    run(
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    for module in [m for m in sys.modules if m.split('.')[0] == 'companion']:\n"
        "        del sys.modules[module]\n"
        "    importlib.import_module('companion.' + name)\n"
    )


def test_what_the_package_offers():
    for name in companion.__all__:
        if name not in companion._WHEN_ASKED:
            assert inspect.ismodule(getattr(companion, name))
    assert companion.__all__ == sorted(companion.__all__)
    public = {name_of(p).split(".")[0] for p in FILES} - {"", "_checks", "commands", "__main__"}  # from the shell
    assert set(companion.__all__) == public
    with pytest.raises(AttributeError, match="module 'companion' has no attribute 'nonsense'"):
        companion.nonsense  # noqa: B018


# --- size ---


def code_lines(path):
    """The lines that are neither blank nor comment nor docstring, as a set of numbers, and the tree."""
    source = path.read_text()
    tree = ast.parse(source)
    text = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            text |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return {i for i, line in lines if line.strip() and not line.strip().startswith("#") and i not in text}, tree


@pytest.mark.parametrize("path", FILES, ids=lambda path: name_of(path) or "companion")
def test_size(path):
    """A module fits on a few screens, a function on one."""
    code, tree = code_lines(path)
    assert len(code) <= 330
    assert len(path.read_text().splitlines()) <= 500
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert len(code & set(range(node.lineno, node.end_lineno + 1))) <= 50, node.name


# --- every public name has a docstring with an example ---


def public_names():
    for path in FILES:
        name = name_of(path)
        if not name or any(part.startswith("_") for part in name.split(".")):
            continue
        tree = ast.parse(path.read_text())
        if name.startswith("weights."):  # scripts that train: each is run at a tiny size by a test
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield f"{name}.{node.name}", node, name


NAMES = {full: (node, module) for full, node, module in public_names()}


@pytest.mark.parametrize("full", NAMES)
def test_every_public_name_shows_its_use(full):
    node, _ = NAMES[full]
    doc = ast.get_docstring(node)
    assert doc and doc.splitlines()[0].endswith((".", ":"))
    if full not in NO_EXAMPLE:
        assert ">>> " in doc
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and method.name != "log_alphas":
                assert ast.get_docstring(method), method.name


def exposed():
    """What a package of the companion offers from its private files, such as data.emoji."""
    for name in companion.__all__:
        module = getattr(companion, name)
        for key, value in vars(module).items():
            home = getattr(value, "__module__", None) or ""
            if not key.startswith("_") and callable(value) and home.startswith(f"{module.__name__}._"):
                yield f"{name}.{key}", value


RECORDS = {"data.ColouredEmoji", "data.Emoji", "data.Scenes", "players.Player", "training.TrainStep"}
INSIDE = {"training.Run", "training.Saving", "training.next_batch", "training.steps"}  # not for the reader


@pytest.mark.parametrize(("full", "value"), list(exposed()), ids=lambda v: v if isinstance(v, str) else "")
def test_every_exposed_name_shows_its_use(full, value):
    assert value.__doc__ and (">>> " in value.__doc__ or full in RECORDS | INSIDE)


METHODS = {
    f"{full}.{method.name}": method
    for full in ("schedules.Schedule", "predictions.Prediction", "denoisers.GaussianMixture")
    for method in NAMES[full][0].body
    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
}


@pytest.mark.parametrize("full", METHODS)
def test_methods_that_readers_call_show_their_use(full):
    assert ">>> " in ast.get_docstring(METHODS[full])


def test_exempt_names_exist():
    assert set(NAMES) >= NO_EXAMPLE


def test_modules_say_what_they_are_for():
    for module in [companion, *(m for m in pkgutil.iter_modules([str(PACKAGE)]) if m.name != "plots")]:
        module = module if inspect.ismodule(module) else importlib.import_module(f"companion.{module.name}")
        assert (module.__doc__ or "").split("\n\n")[0].rstrip().endswith((".", ":")), module.__name__
