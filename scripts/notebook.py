"""Turn a jupytext percent script into an executed notebook, and back.

    python scripts/notebook.py --to-py book/05-full-ddpm.ipynb > twin.py
    python scripts/notebook.py twin.py book/05-full-ddpm.ipynb

The notebook is run from top to bottom in its own folder and is not written if a cell fails. Only the notebook is
kept in the repository: the twin is for editing. Running the same twin again changes nothing but measured numbers.
"""

import argparse
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT = ("tags", "mystnb")  # cell metadata that is ours


def clean(notebook):
    """Leave in the metadata only what the book needs, with ids that do not change from run to run."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:03d}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT if key in cell.metadata})
    return notebook


def to_notebook(twin, path, timeout):
    """Execute `twin` in the folder of `path` and store it there with its outputs."""
    os.environ.pop("MPLBACKEND", None)
    os.environ["TQDM_DISABLE"] = os.environ["COMPANION_STATIC"] = "1"  # no progress bars, no widgets
    notebook = clean(jupytext.read(twin, fmt="py:percent"))
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=timeout,
        coalesce_streams=True,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    nbformat.write(clean(notebook), path)


def to_py(path):
    """Return `path` as a percent script, with the tags and figure settings of its cells."""
    notebook = clean(nbformat.read(path, as_version=4))
    notebook.metadata["jupytext"] = {
        "notebook_metadata_filter": "-all",
        "cell_metadata_filter": ",".join([*KEPT, "-all"]),
    }
    return jupytext.writes(notebook, fmt="py:percent")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to-py", metavar="NOTEBOOK", type=Path, help="print a notebook as a percent script")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one cell")
    parser.add_argument("twin", nargs="?", type=Path)
    parser.add_argument("notebook", nargs="?", type=Path)
    args = parser.parse_args()
    if args.to_py:
        sys.stdout.write(to_py(args.to_py))
    elif args.twin and args.notebook:
        try:
            to_notebook(args.twin, args.notebook, args.timeout)
        except CellExecutionError as error:
            sys.exit(f"{args.notebook} was not written, because a cell failed:\n{error}")
    else:
        parser.error("give a script and the notebook to write, or --to-py NOTEBOOK")


if __name__ == "__main__":
    main()
