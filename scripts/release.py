"""Build the wheel and the source archive into dist/, look into both, and try each where only torch and numpy are.

    make release

Nothing is uploaded. What is built is a copy of the tree, so that no leftover of an earlier build gets in.
"""

import ast
import hashlib
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from email import message_from_string
from pathlib import Path

import repository
from workshop import BUILD, ROOT, Failed, environment, run, snapshot

KINDS = {  # what the package cannot do without: a name -> how its files end
    "types": "companion/py.typed",
    "weights": ".safetensors",
    "cards of weights": "companion/weights/digit_denoiser.json",
    "results": "companion/results/swiss_roll.json",
    "pictures": "companion/data/fashion.png",
    "licences of the data": "-LICENSE.txt",
    "styles of players": ".css",
    "scripts of players": ".js",
}
NEEDS = {  # what a function says where a package is missing: code -> the package
    "companion.plots": "matplotlib",
    "companion.data.digits('train')": "scikit-learn",
    "companion.data.emoji()": "pillow",
    "companion.metrics.wasserstein(torch.zeros(2, 2), torch.zeros(2, 2))": "scipy",
    "companion.weights.load('digit_classifier')": "safetensors",
    "companion.weights.save('a', torch.nn.Linear(1, 1), {}, pathlib.Path())": "safetensors",
    "companion.checkpoints.save('a.safetensors', torch.nn.Linear(1, 1))": "safetensors",
    "companion.checkpoints.read('README.md')": "safetensors",
}
TRIAL = """\
import importlib, pathlib, pkgutil, sys, torch, companion

for module in pkgutil.walk_packages(companion.__path__, "companion."):
    if module.name not in ("companion.plots", "companion.__main__"):
        importlib.import_module(module.name)
for code, package in NEEDS.items():
    try:
        eval(code)
    except ImportError as error:
        assert str(error).endswith(f": pip install {package}"), f"{code} says: {error}"
    else:
        raise AssertionError(f"{code} works without {package}")
print(len(companion.weights.names()), "weights,", companion.__version__)
"""


def version(tree: Path) -> str:
    """Return the version, which three files must agree on.

    Raises:
        Failed: where they do not.
    """
    patterns = {
        "pyproject.toml": r'^version = "(.*)"$',
        "companion/__init__.py": r'^__version__ = "(.*)"$',
        "CITATION.cff": r"^version: (.*)$",
    }
    found = {
        path: re.search(pattern, (tree / path).read_text(encoding="utf8"), re.MULTILINE)
        for path, pattern in patterns.items()
    }
    versions = {path: match[1] if match else "none" for path, match in found.items()}
    if len(set(versions.values())) != 1:
        raise Failed(f"the versions differ: {versions}; write the same into each.")
    return versions["pyproject.toml"]


def in_wheel(path: Path) -> dict[str, bytes]:
    """Return the files of a wheel: name -> content."""
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}


def in_archive(path: Path) -> dict[str, bytes]:
    """Return the files of a source archive, named without its first folder."""
    with tarfile.open(path) as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        return {member.name.split("/", 1)[1]: archive.extractfile(member).read() for member in files}


def package_files(tree: Path) -> dict[str, bytes]:
    """Return every file of the package in a tree: name -> content."""
    paths = (path for path in (tree / "companion").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in paths}


def complaints(kind: str, files: dict[str, bytes], package: dict[str, bytes]) -> list[str]:
    """Return what is wrong with the files of a wheel or an archive, given the files of the package."""
    inside = {name: content for name, content in files.items() if name.startswith("companion/")}
    wrong = [f"lacks {name}" for name in sorted(set(package) - set(inside))]
    wrong += [f"has {name}, which the tree has not" for name in sorted(set(inside) - set(package))]
    wrong += [f"has another {name}" for name in sorted(set(inside) & set(package)) if inside[name] != package[name]]
    wrong += [f"has no {what}" for what, end in KINDS.items() if not any(name.endswith(end) for name in inside)]
    if not any(name.split("/")[-1] == "LICENSE" for name in files):
        wrong.append("has no LICENSE")
    if kind == "wheel":
        allowed = ("companion/", "diffusion_companion-")
        wrong += [f"has {name}, which is no part of the package" for name in files if not name.startswith(allowed)]
    else:
        needed = ("pyproject.toml", "README.md", "PKG-INFO")
        wrong += [f"lacks {name}" for name in needed if name not in files]
        wrong += [f"has {name}" for name in files if name.startswith(("tests/", "book/", "benchmarks/"))]
    return [f"the {kind} {word}" for word in wrong]


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def example(readme: str) -> str:
    """Return the example of README.md."""
    return re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]


def build(tree: Path, out: Path) -> tuple[Path, Path]:
    """Build a source archive and, from it, a wheel; a wheel from the tree must be the same."""
    tools = environment(BUILD / "release-tools", ["build", "twine"])
    run(tools, "-m", "build", "--outdir", out, tree)
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    run(tools, "-m", "build", "--wheel", "--outdir", out / "direct", tree)
    (direct,) = (out / "direct").glob("*.whl")
    if digests(in_wheel(direct)) != digests(in_wheel(wheel)):
        raise Failed("the wheel from the source archive is not the wheel from the tree: see MANIFEST.in.")
    run(tools, "-m", "twine", "check", "--strict", wheel, archive)
    return wheel, archive


def look_into(wheel: Path, archive: Path, tree: Path) -> None:
    """Compare both with the tree, and the metadata with what the files of the tree say."""
    package, files = package_files(tree), in_wheel(wheel)
    wrong = complaints("wheel", files, package) + complaints("source archive", in_archive(archive), package)
    if wrong:
        raise Failed("\n".join(wrong))
    text = next(content for name, content in files.items() if name.endswith(".dist-info/METADATA")).decode()
    about, home = message_from_string(text), repository.configured(tree)
    if about["Version"] != version(tree) or f"Repository, {home.url}" not in about.get_all("Project-URL"):
        raise Failed("the metadata states another version or address than the tree: make repository URL=...")
    print(f"{wheel.name}: {len(files)} files, {wheel.stat().st_size / 1e6:.1f} MB, needs {about['Requires-Python']}")
    if home.owner == repository.PLACEHOLDER:
        print("note: the address is still the placeholder; set it before you publish: make repository URL=...")


def trial(path: Path, python: Path, tree: Path) -> None:
    """Install one file without what it asks for, run README's example and import everything, and take it out again."""
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            readme = (tree / "README.md").read_text(encoding="utf8")
            for name, code in [("example.py", example(readme)), ("trial.py", f"NEEDS = {NEEDS!r}\n{TRIAL}")]:
                Path(folder, name).write_text(code, encoding="utf8")
            printed = run(python, "-W", "error", "example.py", cwd=Path(folder))
            ast.literal_eval(re.search(r"tensor\((.*)\)", printed, re.DOTALL)[1])  # three points, as numbers
            checked = run(python, "-W", "error", "trial.py", cwd=Path(folder))
    finally:
        run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "diffusion-companion")
    print(f"{path.name}: README's example ran with torch and numpy alone, every module loads; {checked.strip()}")


def main() -> None:
    try:
        lines = (ROOT / "requirements.txt").read_text(encoding="utf8").split("\n")
        only = [line for line in lines if line.startswith(("torch==", "numpy=="))]
        with tempfile.TemporaryDirectory() as folder:
            tree, out = snapshot(Path(folder, "tree")), Path(folder, "out")
            print(f"version {version(tree)}", flush=True)
            wheel, archive = build(tree, out)
            look_into(wheel, archive, tree)
            python = environment(BUILD / "release", only)
            for path in (wheel, archive):
                trial(path, python, tree)
            shutil.rmtree(ROOT / "dist", ignore_errors=True)
            (ROOT / "dist").mkdir()
            for path in (wheel, archive):
                shutil.copyfile(path, ROOT / "dist" / path.name)
    except (Failed, ValueError) as error:
        sys.exit(f"no release: {error}")
    print(f"dist/{wheel.name} and dist/{archive.name} are ready. Nothing was uploaded.")


if __name__ == "__main__":
    main()
