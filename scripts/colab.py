"""Run each notebook alone, as Colab does: in an empty folder, with Colab's versions, installing the package itself.

    make colab                                  all chapters
    make colab CHAPTERS="05 09"                 some
    python scripts/colab.py --newest            with the newest release of everything instead
    python scripts/colab.py --keep out 05       keeps the notebooks with the outputs of this run

scripts/colab.txt lists the versions. The first cell asks for the repository's address; git is told to find a copy of
this tree there, so that the cell runs as it stands. Nothing is uploaded, and no notebook of the book is written.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import repository
from workshop import BUILD, ROOT, Failed, clean_environment, environment, run, snapshot
from workshop import repository as make_repository

LIST = ROOT / "scripts/colab.txt"
PACKAGE = "diffusion-companion"


def wanted(newest: bool = False) -> list[str]:
    """Return the packages of the list, as pip takes them, without their versions if asked for the newest."""
    lines = [line.strip() for line in LIST.read_text(encoding="utf8").splitlines()]
    packages = [line for line in lines if line and not line.startswith("#")]
    return [name.split("==")[0] for name in packages] if newest else packages


def python_version() -> str:
    """Return the Python of Colab's image, which the list states."""
    return re.search(r"^# python (3\.\d+)$", LIST.read_text(encoding="utf8"), re.MULTILINE)[1]


def interpreter(version: str) -> str:
    """Return an interpreter of this version where there is one, else the one that runs this."""
    name = shutil.which(f"python{version}")
    works = name and subprocess.run([name, "-m", "venv", "--help"], capture_output=True).returncode == 0
    if works or sys.version_info[:2] == tuple(map(int, version.split("."))):
        return name if works else sys.executable
    print(f"there is no python{version} here: running with {sys.version.split()[0]}. pip says so where a version that")
    print("the list pins does not exist for it.")
    return sys.executable


def chosen(asked: list[str], book: Path) -> list[Path]:
    """Return the notebooks whose names start with what was asked, or all.

    Raises:
        Failed: where no notebook starts so.
    """
    notebooks = sorted(book.glob("[0-9][0-9]-*.ipynb"))
    for start in asked:
        if not any(path.stem.startswith(start) for path in notebooks):
            raise Failed(f"no chapter starts with {start!r}; there are: {', '.join(p.stem for p in notebooks)}.")
    return [path for path in notebooks if not asked or path.stem.startswith(tuple(asked))]


def execute(path: Path) -> None:
    """Run a notebook in its folder and store it with its outputs, also where a cell fails. Run inside."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    there = {"metadata": {"path": path.parent}}
    client = NotebookClient(notebook, kernel_name="python3", timeout=1800, resources=there)
    try:
        client.execute()
    except CellExecutionError as error:
        outputs = (cell.get("outputs", []) for cell in notebook.cells)
        cell = next(i for i, some in enumerate(outputs) if any(o.output_type == "error" for o in some))
        sys.exit(f"{error}\ncell {cell}: {error.ename}: {error.evalue}")
    finally:
        nbformat.write(notebook, path)
    said = "".join(o.text for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stderr")
    warnings = sorted(set(re.findall(r"\w*Warning: .*", said)))
    print("passed" + "".join(f"; {warning}" for warning in warnings))


def packages(python: Path) -> dict[str, str]:
    """Return what is installed in an environment: name -> version."""
    lines = run(python, "-m", "pip", "list", "--format=freeze").split()
    return dict(line.lower().replace("_", "-").split("==") for line in lines)


def alone(notebook: Path, python: Path, source: Path, keep: Path | None) -> tuple[bool, str]:
    """Run one notebook where nothing is installed but the list; return whether it passed, and the last line it gave."""
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", PACKAGE)
    before = packages(python)
    where = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{source.as_uri()}.insteadOf"}
    where["GIT_CONFIG_VALUE_0"] = repository.configured().url
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, notebook.name)
        shutil.copyfile(notebook, copy)
        command = [str(python), str(Path(__file__).resolve()), "--execute", str(copy)]
        done = subprocess.run(command, cwd=folder, env=clean_environment(**where), capture_output=True, text=True)
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(copy, keep / notebook.name)
            (keep / f"{notebook.stem}.log").write_text(done.stdout + done.stderr, encoding="utf8")
    after = packages(python)
    if after.pop(PACKAGE, None) is None:
        return False, "the first cell did not install the package: " + last_line(done.stderr)
    if after != before:
        return False, f"the first cell changed other packages: {sorted(set(after.items()) ^ set(before.items()))}"
    return done.returncode == 0, last_line(done.stderr if done.returncode else done.stdout)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no word"])[-1][:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapters", nargs="*", help="how the names of chapters start, such as 05 (all)")
    parser.add_argument("--newest", action="store_true", help="the newest release of each package, not Colab's")
    parser.add_argument("--keep", type=Path, help="a folder for the executed notebooks")
    parser.add_argument("--env", type=Path, help="a folder for the environment (under _build), used again if it fits")
    parser.add_argument("--execute", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.execute:
        return execute(args.execute)
    folder = (args.env or BUILD / ("newest" if args.newest else "colab")).resolve()
    try:
        notebooks = chosen(args.chapters, ROOT / "book")
        python = environment(folder, wanted(args.newest), python=interpreter(python_version()), fresh=args.newest)
        failed = table(notebooks, python, args.keep and args.keep.resolve())
    except (Failed, ValueError) as error:
        sys.exit(str(error))
    sys.exit(f"{failed} of {len(notebooks)} chapters failed" if failed else 0)


def table(notebooks: list[Path], python: Path, keep: Path | None) -> int:
    """Run the notebooks, print a line for each, and return how many failed."""
    have, failed = packages(python), 0
    print(run(python, "--version").strip(), *(f"{name} {have[name.lower()]}" for name in wanted(newest=True)), sep=", ")
    print("\n| chapter | minutes | result |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        source = make_repository(snapshot(Path(folder, "tree")), repository.configured().branch)
        for notebook in notebooks:
            start = time.perf_counter()
            passed, word = alone(source / notebook.relative_to(ROOT), python, source, keep)
            failed += not passed
            minutes = (time.perf_counter() - start) / 60
            print(f"| {notebook.stem} | {minutes:.1f} | {word if passed else 'FAILED: ' + word} |", flush=True)
    return failed


if __name__ == "__main__":
    main()
